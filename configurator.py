"""Options for a script, from config files and the command line:

    python train.py config/train_shakespeare_char.py --n_layer=4 --variant=alibi

A config file is plain assignments, n_layer = 4. It is Python and it runs as Python, with your rights: read a stranger's
config file before you use it. Every name it sets and every --key has to be an option, a field of the script's
Options or of the variant's GPTConfig, and every value has to fit the field's type (configurator.py).
"""
import dis
import os
import re
import runpy
import sys
import textwrap
import traceback
from itertools import zip_longest
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import NamedTuple

from core.errors import Stop
from configurator import COMMAND_LINE, make, nearest, options, read, show, spelled

HERE = Path(__file__).parent


class Given(NamedTuple):
    name: str
    value: object       # text if it comes from the command line
    origin: str         # COMMAND_LINE, or config/x.py:3


def configure(Options, load=None, argv=None, say=print, given=None):
    """Reads the arguments. Returns .options, .model_args (only what was given), .origin of every name, .GPTConfig.
    given: what arguments(argv) returned, where the caller has use for some of it himself."""
    argv = sys.argv[1:] if argv is None else argv
    given, script = arguments(argv) if given is None else given, options(Options)
    chosen = settle(script, given)
    ready = make(Options, chosen)
    variant = getattr(ready, 'variant', 'base')     # it decides which model options there are
    GPTConfig = load(variant).GPTConfig if load else None
    model = options(GPTConfig) if load else {}
    if both := script.keys() & model.keys():
        raise Stop(f'variant={variant}: {min(both)} is an option of the script already, the model needs another name')
    if {'-h', '--help'} & set(argv):
        say(help_text(Options, script, model, variant, load))
        raise SystemExit(0)

    known, origin = script | model, dict.fromkeys(script | model, 'default')
    for g in given:
        if g.name in known:
            origin[g.name] = g.origin
        elif not (callable(g.value) or isinstance(g.value, ModuleType)):    # a config file may import and define
            raise Stop(f'{spelled(*g)}: no such option{advice(g.name, known, load)}')
    model_args = settle(model, given)
    for name, value in (chosen | model_args).items():
        say(f'{name} = {show(value)} ({origin[name]})')
    return SimpleNamespace(options=ready, model_args=model_args, origin=origin, GPTConfig=GPTConfig)


def settle(known, given):
    """{name: value} of those given that are known; later beats earlier, and an overruled value has to be sound too."""
    return {g.name: read(known[g.name], g.value, g.origin) for g in given if g.name in known}


def arguments(argv):
    """Everything the user set, in the order in which later beats earlier: files as they come, then --key=value."""
    from_files, from_line = [], []
    for arg, following in zip_longest(argv, argv[1:], fillvalue=''):
        name, equals, value = arg.removeprefix('--').partition('=')
        if arg in ('-h', '--help'):
            continue
        if not arg.startswith('-'):
            from_files += config_file(arg)
        elif not arg.startswith('--') or not name:
            raise Stop(f'{arg}: options have two dashes, a name and a value: --name=value; --help lists them')
        elif not equals:
            if following and not following.startswith('-') and not os.path.isfile(following):
                raise Stop(f'{arg} {following}: type {arg}={following}')
            raise Stop(f'{arg} has no value: type {arg}=VALUE; for a switch that is {arg}=True or {arg}=False')
        else:
            from_line.append(Given(name, value, COMMAND_LINE))
    return from_files + from_line


def config_file(path):
    """Runs the file in an empty namespace and returns the public names it leaves there."""
    if not os.path.isfile(path):
        if '=' in path:
            raise Stop(f'{path}: type --{path}')
        there = [f'config/{file.name}' for file in HERE.glob('config/*.py')]
        raise Stop(f'{path}: no such config file{nearest(path, there)}')
    try:
        names = runpy.run_path(path)
        code = compile(Path(path).read_bytes(), path, 'exec')
    except Exception as error:          # whatever the user's code raises is the user's to mend
        inner = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
        at = inner[-1] if inner else getattr(error, 'lineno', None)
        what = getattr(error, 'msg', None) or ' '.join(str(error).split())
        raise Stop(f'{path}{f":{at}" if at else ""}: {type(error).__name__}: {what}') from None
    # the line that stored a name last; names inside functions live in code objects of their own
    line = {step.argval: step.positions.lineno for step in dis.get_instructions(code) if step.opname == 'STORE_NAME'}
    return [Given(name, value, f'{path}:{line[name]}' if name in line else path)
            for name, value in names.items() if not name.startswith('_')]


def advice(name, known, load):
    """For a name that is no option: whose it is, or what it resembles."""
    if load:
        owners = [file.stem for file in sorted(HERE.glob('variants/*.py'))
                  if re.search(rf'^ +{re.escape(name)} *:', file.read_text(encoding='utf-8'), re.MULTILINE)]
        if owners:
            return '; it belongs to ' + ' and '.join(f'--variant={owner}' for owner in owners)
    return nearest(name, known) or '; --help lists them'


def help_text(Options, script, model, variant, load):
    base = options(load('base').GPTConfig) if load else {}
    program = os.path.basename(sys.argv[0])
    sections = {f'options of {program}': script.values(),
                'options of the model': [o for o in model.values() if o.name in base],
                f'options of the variant {variant}': [o for o in model.values() if o.name not in base]}
    rows = {title: [(spelled(o.name, str(o.default), COMMAND_LINE), o.allowed, o.meaning) for o in section]
            for title, section in sections.items()}
    left, middle = (max(len(row[column]) for section in rows.values() for row in section) for column in (0, 1))
    intro = (sys.modules[Options.__module__].__doc__ or '').strip().split('\n\n')[0]
    lines = [intro, '', f'usage: python {program} [config/x.py ...] [--key=value ...]',
             'A later file beats an earlier one; --key=value beats both in any place. A config file is code that runs.']
    for title, section in rows.items():
        lines += ['', title] if section else []
        for option, allowed, meaning in section:
            head = f'  {option:<{left}}  {allowed:<{middle}}  '
            lines.append(textwrap.fill(meaning, 110, initial_indent=head, subsequent_indent=' ' * len(head),
                                       break_long_words=False) or head.rstrip())
    return '\n'.join(lines)
