"""Merges a resumed run's own options with those given now."""
import dataclasses

from core.errors import Stop
from core.run.files import read_json

# options of a model that may change on resuming
CHANGEABLE = 'dropout', 'attn_dropout', 'attn'


def load_run_config(path):
    """Returns the content of a run's config.json, None if there is none; Stop if it is not train.py's."""
    saved = read_json(path)
    if saved is not None and not all(isinstance(saved.get(name), dict)
                                     for name in ('options', 'model_args', 'origin')):
        raise Stop(f'{path}: not what train.py writes; start another run with --init_from=scratch')
    return saved


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
