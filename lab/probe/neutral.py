"""A trained model without what its variant adds, and the modules that the baseline does not have."""
import copy
from dataclasses import asdict, replace as change
from typing import NamedTuple

import torch

from core.assemble import name_of
from core.errors import Stop
from core.rng import generator
from lab.probe.hooks import eager
from model import build, load_classes


class Neutral(NamedTuple):
    """A Run whose model lacks a part of its variant, and a clause that says how the part was taken out."""
    run: object
    how: str


def parts(run):
    """Returns the files of the run's variant, {name: as it is written in the variant}; {} for the baseline."""
    written = [name for name in run.options['variant'].split('+') if name != 'base']
    return {name_of(file): name for file, name in zip(run.model.classes.files, written)}


def neutral_run(run, part=None):
    """Returns the Neutral of a run: its trained model without one of its variant's parts, or without all.

    By NEUTRAL a variant is the baseline wherever the weights are the same: so the rest of the variant, or the
    baseline, gets the trained values of all its parameters. Of a part without NEUTRAL its own modules put out 0, or
    their input where they start so, and its other own parameters are back where they started. The run itself stays
    as it is. Stop, in one line, where neither is defined, or where it changes nothing.
    """
    if not parts(run):
        raise Stop(f'{run.title}: the baseline has nothing to take out')
    files = [file for file in run.model.classes.files if part in (None, name_of(file))]
    other, hows = run, []
    for taken, take in ((True, neutral_model), (False, model_of_idle_modules)):
        # those with NEUTRAL first, together
        if names := [name_of(file) for file in files if hasattr(file, 'NEUTRAL') is taken]:
            rest = '+'.join(written for name, written in parts(other).items() if name not in names) or 'base'
            other, how = take(other, ' and '.join(names), rest)
            hows.append(how)
    idx = sample_tokens(run)
    if torch.equal(run.logits(idx), other.logits(idx)):
        raise Stop(f'{part or " and ".join(parts(run))}: changes nothing in evaluation, so that a trained model has '
                   'nothing to take out')
    return Neutral(other, '; '.join(hows))


def neutral_model(run, name, rest):
    """Returns the run with a model of `rest` that has the trained parameters, and how. Stop if it lacks some."""
    model, trained = build_like(run, rest), eager(run.model).state_dict()
    for key, value in model.state_dict().items():
        if key not in trained:
            raise Stop(f'{name}: cannot be taken out of a trained model, which has no {key}')
        if trained[key].shape != value.shape:
            raise Stop(f'{name}: cannot be taken out of a trained model, whose {key} is {tuple(trained[key].shape)} '
                       f'and not {tuple(value.shape)}')
    model.load_state_dict({key: trained[key] for key in model.state_dict()})
    options = run.options | dict(variant=rest)
    return change(run, model=model, options=options), f'the same weights in a model without {name}'


def model_of_idle_modules(run, name, rest):
    """Returns the run with the modules that `rest` lacks idle, and how. Stop if there are none."""
    found, own = own_modules(run, rest), own_names(run, rest)
    if not found and not own:
        raise Stop(f'{name}: has no NEUTRAL, and neither modules nor parameters of its own, so that nothing says '
                   'what a trained model is without it')
    model = copy.deepcopy(eager(run.model))
    loose = [key for key in own if not any(key.startswith(module + '.') for module in found)]
    started, trained = build_like(run, run.options['variant']).state_dict(), model.state_dict()
    for key in loose:
        trained[key].copy_(started[key])
    for module, idle in found.items():
        # for as long as the copy lives
        model.get_submodule(module).register_forward_hook(lambda m, args, y, idle=idle: idle(args, y))
    said = [f'{len(found)} modules of its own put out nothing'] if found else []
    said += [f'{len(loose)} tensors of its own are back where they started'] if loose else []
    return change(run, model=model), f'{name}: {" and ".join(said)}'


def own_names(run, rest='base'):
    """Returns the names of the run's tensors that a model of `rest` does not have at all."""
    theirs = build_like(run, rest).state_dict().keys()
    return [key for key in eager(run.model).state_dict() if key not in theirs]


def own_modules(run, rest='base'):
    """Returns {name: f(x, y)} of modules that a model of `rest` lacks and that a pass of evaluation calls.

    f returns what the module puts out when idle, for its inputs x and output y: its first input where the module's
    initial weights make it so, else 0. Modules within such modules are left out, as are those that put out
    anything else than one tensor of floats.
    """
    fresh = build_like(run, run.options['variant'])
    theirs = {name for name, _ in build_like(run, rest).named_modules()}
    own = [name for name, _ in fresh.named_modules() if name not in theirs]
    if not own:
        return {}
    seen = {}
    # the copy goes with its hooks
    for name in own:
        fresh.get_submodule(name).register_forward_hook(lambda m, x, y, name=name: seen.update({name: (x, y)}))
    change(run, model=fresh).logits(sample_tokens(run))
    found = {}
    # a module's name begins with that of the one it is in, which comes first
    for name in own:
        x, y = seen.get(name, ((), None))
        if torch.is_tensor(y) and y.is_floating_point() and not any(name.startswith(f'{n}.') for n in found):
            found[name] = hand_on if x and torch.is_tensor(x[0]) and torch.equal(x[0], y) else put_out_nothing
    return found


def hand_on(x, y):
    return x[0]


def put_out_nothing(x, y):
    return torch.zeros_like(y)


def build_like(run, variant):
    """Returns a model of a variant, in eval mode, of the run's size, seed and options, as far as it has them."""
    fields = load_classes(variant).GPTConfig.__dataclass_fields__
    options = {name: value for name, value in asdict(run.model.config).items() if name in fields}
    return build(variant, run.seed, **options).to(run.machine.device).eval()


def sample_tokens(run):
    """Returns some random tokens, (2, block_size)."""
    c = run.model.config
    return torch.randint(c.vocab_size, (2, c.block_size), generator=generator(0, 'probe')).to(run.machine.device)
