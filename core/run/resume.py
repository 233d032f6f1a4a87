"""Checks what a run folder says of its run, and merges its options with those given now."""
import dataclasses
import math
from contextlib import contextmanager

import torch

from core.assemble import is_path
from core.data.tokenizer import Tokenizer
from core.errors import NO_CHECKPOINT, Stop
from core.run.checkpoint import check_tensors, model_tensors
from core.run.files import read_json
from core.run.folder import is_run_config

# options of a model that may change on resuming
CHANGEABLE = 'dropout', 'attn_dropout', 'attn'
# for each tensor of a checkpoint, how many layers a model may have; layers can share theirs
LAYERS_PER_TENSOR = 16


# -----------------------------------------------------------------------------
# what may come from anywhere

@contextmanager
def unusable(where):
    """A context in which a Stop means that the checkpoint cannot be used; where: its folder, for the message."""
    try:
        yield
    except Stop as stop:
        raise Stop(f'{where}: no usable checkpoint: {stop}', NO_CHECKPOINT) from None


def check_state(state, tensors):
    """Raises Stop unless a checkpoint's state has all fields, of the right types, and sizes its tensors can have.

    Options and model_args are left to those who know which there are.
    """
    is_time = lambda x: is_number(x) and x >= 0
    is_names = lambda x: isinstance(x, dict) and all(isinstance(text, str) for text in x.values())
    is_numbers = lambda x: isinstance(x, dict) and all(isinstance(n, bool) or is_number(n) for n in x.values())
    is_dict = lambda x: isinstance(x, dict)
    checks = dict(step=lambda x: type(x) is int, seconds=is_time, scaler=is_scaler, origin=is_names,
                  best_val_loss=lambda x: x is None or is_number(x), data=lambda x: isinstance(x, str),
                  options=lambda x: (is_dict(x) and isinstance(x.get('variant'), str)
                                     and is_number(x.get('lr_decay_iters', 0))), model_args=is_dict)
    for name, is_sound in checks.items():
        if name not in state or not is_sound(state[name]):
            value = short(state[name]) if name in state else 'nothing'
            raise Stop(f'state.json: {name} is {value}, which is not what train.py writes')
    # what the optimizer keeps besides tensors, which older checkpoints do not have
    optimizer = state.get('optimizer', dict(tensors=0, numbers={}, groups=[]))
    if not (isinstance(optimizer, dict) and type(optimizer.get('tensors')) is int
            and is_numbers(optimizer.get('numbers')) and isinstance(optimizer.get('groups'), list)
            and all(map(is_numbers, optimizer['groups']))):
        raise Stop(f'state.json: optimizer is {short(optimizer)}, which is not what train.py writes')
    Tokenizer.from_meta(state.get('tokenizer'))
    check_sizes(state['model_args'], tensors)


def check_named(variant, given):
    """Raises Stop if a saved variant is a file that the user has not named: no run folder decides what code runs."""
    if variant != given and any(map(is_path, variant.split('+'))):
        raise Stop('the variant of this run is a file, whose code would run: '
                   f'if you trust it, add --variant={variant}')


def is_number(x):
    """Returns True for a finite number that a float can be."""
    return type(x) is float and math.isfinite(x) or type(x) is int and abs(x) < 1 << 63


def is_scaler(x):
    """Returns True for a GradScaler's state: empty without float16, else numbers above or from 0 on."""
    names = {'scale', 'growth_factor', 'backoff_factor', 'growth_interval', '_growth_tracker'}
    return isinstance(x, dict) and (not x or x.keys() == names and all(
        is_number(n) and n >= (name == 'growth_interval') for name, n in x.items()))


def check_sizes(model_args, tensors):
    """Raises Stop if a model of these sizes, which may be anything, cannot have these tensors."""
    elements = sum(t.numel() for t in tensors.values())
    # other options, as a window's width, may be larger than any tensor
    limits = dict(n_layer=LAYERS_PER_TENSOR * len(tensors), n_embd=elements, n_head=elements, vocab_size=elements)
    for name, value in model_args.items():
        if type(value) in (int, float) and not value <= limits.get(name, max(1 << 20, elements)):
            raise Stop(f'{name}={short(value)}: not the size of its {len(tensors)} tensors with {elements:,} numbers')


def check_fits(make_model, config, tensors):
    """Raises Stop if make_model() would be much larger than a checkpoint's tensors.

    Such a one is made on the meta device, without memory. Others are made at once: a variant might keep a table
    from a model on the meta device.
    """
    matrices = 12 * config.n_layer * config.n_embd ** 2 + config.n_embd * (config.vocab_size + config.block_size)
    if matrices <= 4 * sum(t.numel() for t in tensors.values()) + (1 << 22):
        return
    try:
        with torch.device('meta'):
            model = make_model()
    # sizes that overflow; but a variant may also compute with values, which a meta tensor does not have
    except (RuntimeError, TypeError, ValueError) as error:
        if 'overflow' in str(error):
            raise Stop(f'its sizes make no model: {short(str(error))}') from None
        return
    check_tensors(model_tensors(model), tensors)


def load_run_config(path):
    """Returns the content of a run's config.json, None if there is none; Stop if it is not train.py's."""
    saved = read_json(path)
    if saved is not None and not is_run_config(saved):
        raise Stop(f'{path}: not what train.py writes; start another run with --init_from=scratch')
    return saved


def short(value):
    """Returns a value that may be anything on one line, of at most 80 characters."""
    text = ascii(value) if not isinstance(value, int) or abs(value) < 1 << 64 else 'a huge number'
    return text if len(text) <= 80 else text[:77] + '...'


# -----------------------------------------------------------------------------
# options

def resumed(config, saved, print0):
    """Returns a saved run's (options, model_args, origin) overridden by those given now; prints differences.

    config: as configure() returns it; saved: a dict with options, model_args and origin. Stop if the model
    would change.
    """
    # defaults override nothing
    before = saved['options'] | saved['model_args']
    now = {name: value for name, value in (dataclasses.asdict(config.options) | config.model_args).items()
           if config.origin[name] != 'default' and name not in ('init_from', 'out_dir')}
    for name, value in now.items():
        if value != before.get(name, value):
            if name == 'variant' or name in config.model_args and name not in CHANGEABLE:
                raise Stop(f'{name}={value}: the run to resume has {name}={before[name]}; '
                           'start another with --init_from=scratch')
            print0(f'{name}: {before[name]} before, {value} from here')
    # an option that is newer than the saved run has its default
    options = {name: now.get(name, saved['options'].get(name, value))
               for name, value in dataclasses.asdict(config.options).items()}
    options['init_from'] = saved['options']['init_from']
    return (dataclasses.replace(config.options, **options),
            saved['model_args'] | {name: now[name] for name in config.model_args},
            saved['origin'] | {name: config.origin[name] for name in now})
