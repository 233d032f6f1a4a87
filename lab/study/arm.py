"""An arm of a study, one way to train; and arms parsed from a command line or derived from other arms."""
import dataclasses
import os
import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path

import torch

import train
from configurator import COMMAND_LINE, Given, configure, construct, did_you_mean, options_of
from core import ROOT
from core.assemble import short_name
from core.data.dataset import Dataset
from core.errors import Stop
from lab.read_losses import choose_baseline
from lab.study.store import code_hash, device_kind
from model import GPTConfig, build, load_classes

# options that a study sets itself
SET_BY_AB = 'seed', 'out_dir', 'init_from', 'keep'
# options that change what is measured: losses of arms that differ in one cannot be compared
MEASURED = 'dataset', 'block_size', 'eval_iters', 'curve_iters', 'eval_train', 'eval_only'
# options that change where and how a run runs, not what it computes
NOT_COMPUTED = ('out_dir', 'init_from', 'seed', 'wandb_log', 'wandb_project', 'wandb_run_name', 'device',
                'backend', 'eval_only', 'log_interval', 'checkpoint_minutes', 'save_best',
                'always_save_checkpoint', 'keep')


@dataclass
class Arm:
    """One way to train: a name, train.py's options and the model's."""
    name: str
    options: train.Options
    model_args: dict            # every field of the variant's GPTConfig
    given: dict                 # what sets it apart from the config, {option: text}
    origin: dict = field(repr=False, default_factory=dict) # of each option, as configure() returns it
    # its folder in the store, once Study.key() has computed it; dataclasses.replace() does not copy it
    key: str = field(init=False, default='')

    @property
    def folder(self):
        """The name of the arm's folder within the study's, before there was the store."""
        name = re.sub(r'[^\w.+=-]+', '_', self.name)
        return name if name.strip('.') else '_'

    @property
    def variant_args(self):
        """Those of model_args that are the variant's own options, not model.py's."""
        base = options_of(GPTConfig)
        return {name: value for name, value in self.model_args.items() if name not in base}

    @property
    def code_key(self):
        """A text that arms share whose compiled code is the same: they differ in their texts and rates alone."""
        rest = dataclasses.replace(self.options, dataset='', learning_rate=0.0, min_lr=0.0)
        return f'{rest} {self.model_args}'

    def build(self, seed):
        model = build(self.options.variant, seed, **self.model_args)
        model.schedule_iters = self.options.lr_decay_iters
        return model

    def meta_model(self):
        """Returns the model on the meta device: its parameters have shapes, but no values."""
        classes = load_classes(self.options.variant)
        with torch.device('meta'):
            return classes.GPT(classes.GPTConfig(**self.model_args), classes)

    def identity(self, data_hash):
        """Returns all that a run of this arm depends on, except the seed, as a dict for JSON.

        data_hash: the data set's. Equal identities and seeds mean the same run.
        """
        # all code that training runs
        files = [ROOT / 'model.py', ROOT / 'train.py', ROOT / 'configurator.py']
        files += sorted(ROOT.glob('core/**/*.py'))
        files += [Path(f.__file__) for f in load_classes(self.options.variant).files]
        # helpers that several variants share
        files += sorted(ROOT.glob('variants/_[!_]*.py'))
        # a variant in another folder than ROOT has a path of its own
        code = {os.path.relpath(path, ROOT): code_hash(path) for path in files}
        options = {n: value for n, value in dataclasses.asdict(self.options).items() if n not in NOT_COMPUTED}
        return dict(options=options, model_args=self.model_args, data=data_hash, code=code,
                    device=device_kind(self.options), torch=torch.__version__.split('+')[0])

    def as_dict(self):
        """Returns what study.json keeps of the arm."""
        return dict(name=self.name, options=dataclasses.asdict(self.options), model_args=self.model_args,
                    given=self.given, key=self.key)

    @classmethod
    def from_dict(cls, d):
        """Returns the arm that as_dict() described. KeyError or TypeError if d is of another version."""
        # options that train.py no longer has are of no use to a report
        known = options_of(train.Options)
        options = {name: value for name, value in d['options'].items() if name in known}
        arm = cls(d['name'], train.Options(**options), d['model_args'], d['given'])
        # studies from before the store have no keys, and their runs lie in their own folders
        arm.key = d.get('key', '')
        return arm


# -----------------------------------------------------------------------------
# arms from a command line

def parse_arms(o, given):
    """Returns the arms that ab.py's Options name, the baseline first. Raises Stop for what makes no sense.

    given: the Givens of train.py's and the variants' options; each goes to the arms that have it.
    """
    # the recipe's own variant is part of every arm
    common = next((g.value for g in reversed(given) if g.name == 'variant'), 'base')
    given = [g for g in given if g.name != 'variant']

    # [(name, {option: text})]: the options that only this arm has
    specs = parse_specs(o, common)
    names = [name for name, _ in specs]
    if not names:
        raise Stop(f'arms={o.arms}: names no arm; write NAME: option=value; ...')
    # --null=True adds an arm of this name
    taken = ['null'] * o.null + [name.casefold() for name in names]
    if doubled := next((name for name in names if taken.count(name.casefold()) > 1), None):
        raise Stop(f'arms: {doubled} is there twice; every arm needs a name of its own')
    if o.baseline and o.baseline not in names:
        raise Stop(f'baseline={o.baseline}: no such arm; there are {", ".join(names)}')
    # the baseline first; sort() keeps the others in order
    baseline = o.baseline or choose_baseline(names)[0]
    specs.sort(key=lambda spec: spec[0] != baseline)

    if wrong := next((g for g in given if g.name in SET_BY_AB and g.origin == COMMAND_LINE), None):
        raise Stop(f'{wrong.name}={wrong.value}: is set by ab.py, for each run; --first_seed moves all seeds, and '
                   '--keep_checkpoints=log keeps spaced checkpoints')
    # an option that no arm has is a typo; an option that some arms have goes to those
    known = []
    for _, own in specs:
        GPTConfig = load_classes(own.get('variant', common)).GPTConfig
        known.append(options_of(train.Options).keys() | options_of(GPTConfig).keys())
    for g in given:
        if not any(g.name in options for options in known):
            advice = did_you_mean(g.name, set().union(*known, options_of(type(o))))
            raise Stop(f'{g.name}={g.value}: no such option of any arm{advice}')
    if len(names) < 2 and not o.null:
        raise Stop('nothing to compare: name arms with --variants=a,b, or with --arms, '
                   'or --null=True for the noise floor')
    variant = Given('variant', common, COMMAND_LINE)
    arms = [make_arm(name, own, [variant] + [g for g in given if g.name in options])
            for (name, own), options in zip(specs, known)]
    for arm in arms[1:]:
        check_measured_alike(arm, arms[0])
    return arms


def check_measured_alike(arm, baseline):
    """Raises Stop if an arm's losses would be of other text than the baseline's, or in another context."""
    def measured(one):
        o = one.options
        # with eval_iters a batch is a unit of what is evaluated
        return {'dataset': o.dataset, 'block_size': one.model_args['block_size'],
                'eval_iters x batch_size': o.eval_iters * o.batch_size}
    found, expected = measured(arm), measured(baseline)
    if name := next((name for name in found if found[name] != expected[name]), None):
        raise Stop(f'arm {arm.name}: {name}={found[name]}: must be the same in all arms, {expected[name]} as in '
                   f'{baseline.name}, because it changes what is measured')


def parse_specs(o, common):
    """Returns [(name, {option: text})] from --arms, or from --variants, each added to the common variant."""
    if o.arms and o.variants:
        raise Stop('arms and variants: give one of the two')
    if o.arms:
        return [parse_spec(text) for text in o.arms.split(';') if text.strip()]
    variants = [v if common == 'base' else f'{common}+{v}' for v in o.variants.split(',') if v]
    return [(short_name(common), {})] + [(short_name(variant), dict(variant=variant)) for variant in variants]


def parse_spec(text):
    """Returns (name, {option: text}) from 'soft: variant=soft_window window_init=128'.

    A name without a colon names a variant, or base.
    """
    name, colon, rest = text.partition(':')
    name = name.strip()
    if not name or not name.isprintable():
        raise Stop(f'arms: {text.strip()!r} has no name; write NAME: option=value option=value')
    try:
        words = shlex.split(rest)
    except ValueError as error:
        raise Stop(f'arms: {text.strip()}: {error}') from None
    # --option=value is accepted as well
    options = {}
    for word in words:
        option, equals, value = word.removeprefix('--').partition('=')
        if not equals:
            raise Stop(f'arms: {name}: {word}: write option=value')
        options[option] = value
    if not colon and name not in ('base', 'baseline'):
        options['variant'] = name
    return name, options


def make_arm(name, own, given):
    """Returns the arm with its own options, {name: text}, on top of those given for all arms."""
    if wrong := next((option for option in own if option in SET_BY_AB), None):
        raise Stop(f'arms: {name}: {wrong} is the same for all arms, and is set by ab.py')
    if wrong := next((option for option in own if option in MEASURED), None):
        raise Stop(f'arms: {name}: {wrong}={own[wrong]}: changes what is measured, so that its losses could not '
                   'be compared; it can be given to all arms alike, outside of --arms')
    # the last value of an option wins
    given = given + [Given(option, value, COMMAND_LINE) for option, value in own.items()]
    try:
        config = configure(train.Options, load_classes, argv=[], given=given, say=lambda text: None)
    except Stop as stop:
        raise Stop(f'arm {name}: {stop}') from None
    o = config.options
    if o.eval_only or o.init_from != 'scratch':
        raise Stop(f'arm {name}: eval_only={o.eval_only}, init_from={o.init_from}: a study trains each run from '
                   'scratch, and takes False and scratch')
    # a data set sets the vocabulary, unless the user does
    vocab_size = Dataset(o.dataset, 1).vocab_size
    model_config = construct(config.GPTConfig, dict(vocab_size=vocab_size) | config.model_args)
    return Arm(name, o, dataclasses.asdict(model_config), own, config.origin)


# -----------------------------------------------------------------------------
# arms from arms

def null_arm(baseline):
    """Returns the baseline with its initial weights moved a little, so that only chaos makes it differ."""
    o = baseline.options
    variant = 'perturb' if o.variant == 'base' else f'{o.variant}+perturb'
    args = dataclasses.asdict(construct(load_classes(variant).GPTConfig, baseline.model_args))
    return dataclasses.replace(baseline, name='null', options=dataclasses.replace(o, variant=variant),
                               model_args=args, given=dict(variant=variant))


def matched_baseline(baseline, arm, match, prices):
    """Returns a baseline that equals an arm in parameters, in training FLOPs or in training time.

    match: params widens the MLPs; flops and time train longer, by the ratio of the arms' costs per step.
    prices: {arm: numbers of lab/timing.py}.
    """
    name, o = f'{baseline.name} ({match} of {arm.name})', baseline.options
    # wider MLPs until the numbers of parameters agree
    if match == 'params':
        args = baseline.model_args
        missing = arm.meta_model().get_num_params() - baseline.meta_model().get_num_params()
        # an MLP of width r * C has r * (2 C^2 + C) parameters; without biases r * 2 C^2
        a_unit_of_r = args['n_layer'] * args['n_embd'] * (2 * args['n_embd'] + args['bias'])
        mlp_ratio = 4.0 + missing / a_unit_of_r
        variant = 'wide_mlp' if o.variant == 'base' else f'{o.variant}+wide_mlp'
        wide_args = args | dict(mlp_ratio=max(mlp_ratio, 1 / args['n_embd']))
        wide_args = dataclasses.asdict(construct(load_classes(variant).GPTConfig, wide_args))
        return dataclasses.replace(baseline, name=name, options=dataclasses.replace(o, variant=variant),
                                   model_args=wide_args, given=dict(mlp_ratio=f'{mlp_ratio:.4f}'))
    # the same model, trained longer, until it has cost what the arm costs
    price = prices[arm.name]
    if match == 'time' and 'step_ratio' in price:
        ratio = price['step_ratio']
    else:
        cost = dict(flops='flops_per_token', time='step_ms')[match]
        ratio = price[cost] / prices[baseline.name][cost]
    longer = {n: round(getattr(o, n) * ratio) for n in ('max_iters', 'lr_decay_iters')}
    return dataclasses.replace(baseline, name=name, options=dataclasses.replace(o, **longer),
                               given={n: str(v) for n, v in longer.items()})


def scale_lr(arm, factor):
    """Returns the arm with learning_rate and min_lr multiplied by a factor."""
    o = arm.options
    scaled = dataclasses.replace(o, learning_rate=o.learning_rate * factor, min_lr=o.min_lr * factor)
    return dataclasses.replace(arm, options=scaled, given=arm.given | dict(lr=f'x{factor:g}'))
