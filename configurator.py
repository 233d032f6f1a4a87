"""Options of a script and of a model, from config files and the command line:

    python train.py config/train_shakespeare_char.py --n_layer=4 --variant=alibi

Options are the fields of a dataclass. The annotation says which values are allowed; the trailing comment is
the help text:

    n_layer: Count = 12             # blocks, one after the other
    compile: Literal['auto', True, False] = 'auto'

A config file holds plain assignments, n_layer = 4. It is Python and runs as Python, with your rights: read a
stranger's config file before you use it. Every name it sets and every --key must be an option, which is a
field of the script's Options or of the variant's GPTConfig, and every value must fit the field's type.
"""
import ast
import difflib
import inspect
import io
import os
import re
import runpy
import sys
import textwrap
import tokenize
import traceback
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass, fields
from functools import cache
from itertools import zip_longest
from pathlib import Path
from types import ModuleType, NoneType, SimpleNamespace, UnionType
from typing import Annotated, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

from core.assemble import full_name
from core.errors import Stop

# Messages print the interval as it stands here. 'inf)' excludes infinity; an option that may be infinite says
# 'inf]'.
Count = Annotated[int, '[1, inf)']
Whole = Annotated[int, '[0, inf)']
Positive = Annotated[float, '(0, inf)']
NonNegative = Annotated[float, '[0, inf)']
Rate = Annotated[float, '[0, 1)']
Share = Annotated[float, '[0, 1]']
FilePath = Annotated[str, 'path']       # of a file or folder; ~ is the user's own

COMMAND_LINE = 'command line'           # the origin of a value that came as text
WORDS = {'None': None, 'True': True, 'true': True, 'False': False, 'false': False}
REFUSALS = ValueError, OverflowError    # OverflowError: float(10**400)
HERE = Path(__file__).parent


@dataclass
class DeviceOptions:
    """Options of every script that computes."""
    # device
    device: str = 'auto'                # cpu, cuda, cuda:1, mps; auto: the best there is
    dtype: Literal[
        'auto', 'float32', 'bfloat16', 'float16'] = 'auto' # of matrix products; bfloat16 on CUDA and AMX, else float32
    compile: Literal['auto', True, False] = 'auto' # torch.compile, and on CUDA one graph a step; auto: on CUDA


# -----------------------------------------------------------------------------
# the options of a dataclass

@dataclass
class Option:
    """One field of a dataclass of options."""
    name: str
    kind: object        # the annotation
    default: object
    meaning: str        # the trailing comment
    group: str          # the comment on a line of its own above it and its like
    allowed: str        # the annotation in words


class Given(NamedTuple):
    """A value that the user gave an option."""
    name: str
    value: object       # text if it comes from the command line
    origin: str         # COMMAND_LINE, or config/x.py:3


def options_of(cls):
    """Returns {name: Option} of a dataclass, inherited fields first, as dataclasses order them."""
    kinds, comments = get_type_hints(cls, include_extras=True), comments_of(cls)
    return {f.name: Option(f.name, kinds[f.name], f.default, *comments.get(f.name, ('', '')),
                           in_words(kinds[f.name]))
            for f in fields(cls)}


def in_words(kind):
    """Returns an annotation as text, like 'int in [1, inf) | None'. TypeError if no option can have it."""
    origin, args = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return ' | '.join(map(in_words, args))
    if origin is Literal:
        return ' | '.join(map(str, args))
    if kind == FilePath:
        return 'a path'
    if origin is Annotated:
        return f'{in_words(args[0])} in {args[1]}'
    words = {int: 'int', float: 'float', bool: 'True | False', str: 'text', NoneType: 'None'}
    if kind not in words:
        raise TypeError(f'{kind} is no type for an option: see configurator.py for those that are')
    return words[kind]


def comments_of(cls):
    """Returns {field: (meaning, group)}, as in Option, from the source of the class and of its base classes."""
    found = {}
    for base in filter(inspect.get_annotations, reversed(cls.__mro__)):
        found |= own_comments(base)
    return found


# cached: finding a class's source parses its whole file, which takes as long as building a small model
@cache
def own_comments(cls):
    """Returns {field: (meaning, group)} of the class alone, {} if its source cannot be found."""
    found, group = {}, ''
    # a class typed at a prompt has no source
    with suppress(OSError):
        source = textwrap.dedent(inspect.getsource(cls))
        tokens = tokenize.generate_tokens(io.StringIO(source).readline)
        comments = {token.start[0]: token.string.lstrip('# ') for token in tokens if token.type == tokenize.COMMENT}
        tree = ast.parse(source).body[0]
        above = tree.lineno
        for node in tree.body:
            # the last comment between the field before and this one
            group = next((comments[n] for n in range(node.lineno - 1, above, -1) if n in comments), group)
            above = node.end_lineno
            # the comment behind the last line of a field
            if isinstance(node, ast.AnnAssign):
                found[node.target.id] = comments.get(node.end_lineno, ''), group
    return found


# -----------------------------------------------------------------------------
# values

def parse_option(option, value, origin=COMMAND_LINE):
    """Returns the value in the option's type; Stop if it is not allowed.

    value: text if the origin is COMMAND_LINE; else a Python value from a config file, origin file:line.
    """
    for candidate in candidates(value) if origin == COMMAND_LINE else [value]:
        with suppress(*REFUSALS):
            return convert(option.kind, candidate)
    raise Stop(f'{as_typed(option.name, value, origin)}: {option.name} takes {option.allowed}')


def candidates(text):
    """Yields the values that a text may stand for. The text itself is last, which keeps --start=12 a text."""
    if text in WORDS:
        yield WORDS[text]
    for number in int, float:           # int first: a float would round 2**53 + 1
        with suppress(ValueError):
            yield number(text)
    yield text


def convert(kind, value):
    """Returns the value in the annotation's type; ValueError if not allowed. A bool is not an int here."""
    origin, args = get_origin(kind), get_args(kind)
    # the first type of a union that takes the value
    if origin in (Union, UnionType):
        for one in args:
            with suppress(*REFUSALS):
                return convert(one, value)
    elif origin is Literal:
        for choice in args:
            if type(choice) is type(value) and choice == value:     # 1 == True
                return choice
    elif kind == FilePath:
        # an unset shell variable leaves nothing
        if (path := convert(str, value)).strip() and '\0' not in path:
            return os.path.expanduser(path)
    elif origin is Annotated:
        number = convert(args[0], value)
        if in_interval(number, args[1]):
            return number
    elif kind in (bool, str, NoneType) or isinstance(value, bool):
        if type(value) is kind:
            return value
    elif kind is int and (isinstance(value, int) or isinstance(value, float) and value.is_integer()):
        if abs(value) < 2 ** 63:        # the largest int of a tensor
            return int(value)           # max_iters = 1e3
    elif kind is float and isinstance(value, (int, float)) and value == value:      # NaN differs from itself
        return float(value)
    raise ValueError


def in_interval(number, interval):
    """Returns True if the number lies in an interval written like '[0, 1)'."""
    low, high = map(float, interval[1:-1].split(','))
    return (low <= number if interval[0] == '[' else low < number) and \
           (number <= high if interval[-1] == ']' else number < high)


def construct(cls, values):
    """Returns cls(**values); Stop if __post_init__ finds a rule between fields broken, as n_embd % n_head."""
    try:
        return cls(**values)
    except ValueError as error:
        raise Stop(' '.join(str(error).split())) from None


def construct_checked(cls, values):
    """Returns cls(**values) from Python values, after checking every name and value."""
    known = options_of(cls)
    for name, value in values.items():
        if name not in known:
            raise Stop(f"{as_typed(name, value, '')}: no such option{did_you_mean(name, known)}")
    return construct(cls, {name: parse_option(known[name], value, '') for name, value in values.items()})


# -----------------------------------------------------------------------------
# config files and the command line

def configure(Options, load_classes=None, argv=None, say=print, given=None):
    """Reads the arguments of a script, and prints each value that was given with its origin.

    Options: the script's dataclass. load_classes(variant).GPTConfig: the model's, if the script builds one.
    given: the result of arguments(argv), for a caller that keeps some arguments for itself.
    Returns .options, .model_args (only those given), .origin ({name: where its value is from}), .GPTConfig.
    Stop if an argument is not allowed.
    """
    argv = sys.argv[1:] if argv is None else argv
    given = arguments(argv) if given is None else given
    known_script = options_of(Options)
    script_args = parse_known(known_script, given)
    script_options = construct(Options, script_args)

    # the variant decides which model options there are; what is saved of it must hold from any folder
    variant = getattr(script_options, 'variant', 'base')
    if variant != 'base':
        script_options.variant = script_args['variant'] = full_name(variant)
    try:
        GPTConfig = load_classes(variant).GPTConfig if load_classes else None
    # with exit() in a file the script would end with code 0
    except SystemExit:
        raise Stop(f'variant={variant}: its file calls exit()') from None
    known_model = options_of(GPTConfig) if load_classes else {}
    # no name may mean two things
    if both := known_script.keys() & known_model.keys():
        raise Stop(f'variant={variant}: {min(both)} is an option of the script already, the model needs another name')
    if {'-h', '--help'} & set(argv):
        # a script may say its options elsewhere than on stdout
        print(help_text(Options, known_script, known_model, variant, load_classes), flush=True)
        raise SystemExit(0)

    # every name must be known
    known = known_script | known_model
    origin = dict.fromkeys(known, 'default')
    for g in given:
        if g.name in known:
            origin[g.name] = g.origin
        # a config file may import modules and define functions
        elif not (callable(g.value) or isinstance(g.value, ModuleType)):
            raise Stop(f'{as_typed(*g)}: no such option{advice(g.name, known, load_classes)}')

    model_args = parse_known(known_model, given)
    for name, value in (script_args | model_args).items():
        say(f'{name} = {short_repr(value)} ({origin[name]})')
    return SimpleNamespace(options=script_options, model_args=model_args, origin=origin, GPTConfig=GPTConfig)


def parse_known(known, given):
    """Returns {name: value} of the given names that are known. The last value wins; all must be allowed."""
    return {g.name: parse_option(known[g.name], g.value, g.origin) for g in given if g.name in known}


def arguments(argv):
    """Returns a list of Given, of which later ones win: config files in their order, then --key=value."""
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
            # argparse's form, --key value
            if following and not following.startswith('-') and not os.path.isfile(following):
                raise Stop(f'{arg} {following}: type {arg}={following}')
            raise Stop(f'{arg} has no value: type {arg}=VALUE; for a switch that is {arg}=True or {arg}=False')
        else:
            from_line.append(Given(name, value, COMMAND_LINE))
    return from_files + from_line


def expand_flags(argv, Options, valued=()):
    """Returns argv with --flag written as --flag=True and --name VALUE as --name=VALUE.

    Flags are the bool fields of Options; names are those in valued.
    """
    switches = {name for name, option in options_of(Options).items() if option.kind is bool}
    expanded, argv = [], list(argv)
    while argv:
        arg = argv.pop(0)
        name = arg.removeprefix('--')
        if arg.startswith('--') and name in switches:
            arg += '=True'
        elif arg.startswith('--') and name in valued and argv and not argv[0].startswith('-'):
            arg += '=' + argv.pop(0)
        expanded.append(arg)
    return expanded


def config_file(path):
    """Runs a config file in an empty namespace; returns a Given for each public name that it leaves there."""
    if not os.path.isfile(path):
        if '=' in path:
            raise Stop(f'{path}: type --{path}')
        present = [f'config/{file.name}' for file in HERE.glob('config/*.py')]
        raise Stop(f'{path}: no such config file{did_you_mean(path, present)}')
    try:
        names = runpy.run_path(path)
        tree = ast.parse(Path(path).read_bytes(), path)
    except KeyboardInterrupt:
        raise
    # the user's code may raise anything, SystemExit too, and the user is told where
    except BaseException as error:
        inner = [frame.lineno for frame in traceback.extract_tb(error.__traceback__)
                 if frame.filename == path]
        at = inner[-1] if inner else getattr(error, 'lineno', None)
        reason = getattr(error, 'msg', None) or ' '.join(str(error).split())
        raise Stop(f'{path}{f":{at}" if at else ""}: {type(error).__name__}: {reason}') from None
    lines = assigned_lines(tree)
    return [Given(name, value, f'{path}:{lines[name]}' if name in lines else path)
            for name, value in names.items() if not name.startswith('_')]


def assigned_lines(tree):
    """Returns {name: last line that binds it} for a module's syntax tree, without names inside functions."""
    lines, waiting = {}, [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)):
            # its own name, but nothing from inside
            if not isinstance(node, ast.Lambda):
                lines[node.name] = max(node.lineno, lines.get(node.name, 0))
            continue
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            lines[node.id] = max(node.lineno, lines.get(node.id, 0))
        # import a.b binds a
        if isinstance(node, ast.alias):
            name = node.asname or node.name.partition('.')[0]
            lines[name] = max(node.lineno, lines.get(name, 0))
        waiting += ast.iter_child_nodes(node)
    return lines


# -----------------------------------------------------------------------------
# messages

def advice(name, known, load_classes):
    """Returns the end of a message about an unknown name: the variants that have it, or a name like it."""
    # found in the text of the files, so that no variant with a bug in it is imported
    if load_classes:
        owners = [file.stem for file in sorted(HERE.glob('variants/*.py'))
                  if re.search(rf'^ +{re.escape(name)} *:', file.read_text(encoding='utf-8'), re.MULTILINE)]
        if owners:
            return '; it belongs to ' + ' and '.join(f'--variant={owner}' for owner in owners)
    return did_you_mean(name, known) or '; --help lists them'


def did_you_mean(name, known):
    """Returns '; did you mean ...?' with the known name most like this one, or '' if none is."""
    near = difflib.get_close_matches(name, known, 1)
    return f'; did you mean {near[0]}?' if near else ''


def as_typed(name, value, origin):
    """Returns the assignment as the user wrote it, and where, on one line."""
    if origin == COMMAND_LINE:
        return f'--{name}={value}' if value.isprintable() else f'--{name}={value!r}'
    return f'{origin}{": " if origin else ""}{name} = {short_repr(value)}'


def short_repr(value):
    """Returns repr(value) on one line of at most 100 characters, for any object in a config file."""
    try:
        text = repr(value).replace('\n', ' ')
    # Python refuses to print an int of more than 4300 digits
    except ValueError:
        text = f'a huge {type(value).__name__}'
    return text if len(text) <= 100 else text[:97] + '...'


def help_text(Options, known_script, known_model, variant, load_classes):
    """Returns the text of --help: each option with its default, the values it takes, and its meaning."""
    base = options_of(load_classes('base').GPTConfig) if load_classes else {}
    device = options_of(DeviceOptions)
    program = os.path.basename(sys.argv[0])
    sections = defaultdict(list)
    for o in sorted(known_script.values(), key=lambda o: o.name in device):
        sections[f'options of {program}{": " if o.group else ""}{o.group}'].append(o)
    sections['options of the model'] = [o for o in known_model.values() if o.name in base]
    sections[f'options of the variant {variant}'] = [o for o in known_model.values() if o.name not in base]
    rows = {title: [(as_typed(o.name, str(o.default), COMMAND_LINE), o.allowed, o.meaning) for o in section]
            for title, section in sections.items()}
    # widths of the first two columns, over all sections
    left, middle = (max(len(row[column]) for section in rows.values() for row in section)
                    for column in (0, 1))
    # the first paragraph of the script's docstring
    intro = (sys.modules[Options.__module__].__doc__ or '').strip().split('\n\n')[0]
    lines = [intro, '', f'usage: python {program} [config/x.py ...] [--key=value ...]',
             'A later file beats an earlier one; --key=value beats both in any place. A config file is code that runs.']
    for title, section in rows.items():
        lines += ['', title] if section else []
        for option, allowed, meaning in section:
            head = f'  {option:<{left}}  {allowed:<{middle}}  '
            lines.append(textwrap.fill(meaning, 110, initial_indent=head, subsequent_indent=' ' * len(head),
                                       break_long_words=False) or head.rstrip())
    if load_classes:
        names = [file.stem for file in sorted(HERE.glob('variants/[!_]*.py'))]
        lines += ['', 'variants, of which --variant=NAME --help lists the options',
                  textwrap.fill(', '.join(names), 110, initial_indent='  ', subsequent_indent='  ')]
    return '\n'.join(lines)
