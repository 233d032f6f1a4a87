"""Options are the fields of a dataclass: the annotation says what is allowed, the trailing comment what it means.

    n_layer: Count = 12             # blocks, one after the other
    compile: Literal['auto', True, False] = 'auto'
"""
import ast
import difflib
import inspect
import io
import textwrap
import tokenize
from contextlib import suppress
from dataclasses import dataclass, fields
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Literal, Union, get_args, get_origin, get_type_hints

from core.errors import Stop

# The interval is printed as it stands. 'inf)' keeps infinity itself out; an option that may be infinite says 'inf]'.
Count = Annotated[int, '[1, inf)']
Whole = Annotated[int, '[0, inf)']
Positive = Annotated[float, '(0, inf)']
NonNegative = Annotated[float, '[0, inf)']
Rate = Annotated[float, '[0, 1)']
Share = Annotated[float, '[0, 1]']

COMMAND_LINE = 'command line'           # the origin of a value that came as text
WORDS = {'None': None, 'True': True, 'true': True, 'False': False, 'false': False}
REFUSALS = ValueError, OverflowError    # OverflowError: float(10**400)


@dataclass
class Option:
    name: str
    kind: object        # the annotation
    default: object
    meaning: str
    allowed: str        # the annotation in words


def options(cls):
    """{name: Option} of a dataclass, inherited fields first, as dataclasses order them."""
    kinds, meant = get_type_hints(cls, include_extras=True), meanings(cls)
    return {f.name: Option(f.name, kinds[f.name], f.default, meant.get(f.name, ''), allowed(kinds[f.name]))
            for f in fields(cls)}


def read(option, value, origin=COMMAND_LINE):
    """The value as the option's type wants it: text from the command line, or a Python value from a file:line."""
    for reading in readings(value) if origin == COMMAND_LINE else [value]:
        with suppress(*REFUSALS):
            return convert(option.kind, reading)
    raise Stop(f'{spelled(option.name, value, origin)}: {option.name} takes {option.allowed}')


def make(cls, values):
    """cls(**values), where a rule between fields (n_embd % n_head, in __post_init__) ends in one line."""
    try:
        return cls(**values)
    except ValueError as error:
        raise Stop(' '.join(str(error).split())) from None


def make_checked(cls, values):
    """The same from Python values that no configure() has seen: every name and value is checked first."""
    known = options(cls)
    for name, value in values.items():
        if name not in known:
            raise Stop(f"{spelled(name, value, '')}: no such option{nearest(name, known)}")
    return make(cls, {name: read(known[name], value, '') for name, value in values.items()})


def readings(text):
    """What a text may stand for. The raw text comes last and only a text option takes it, so --start=12 stays text."""
    if text in WORDS:
        yield WORDS[text]
    for number in int, float:           # int first: a float would round 2**53 + 1
        with suppress(ValueError):
            yield number(text)
    yield text


def convert(kind, value):
    """ValueError unless the annotation allows the value. A bool is an int to Python, but no count of anything."""
    origin, args = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        for one in args:
            with suppress(*REFUSALS):
                return convert(one, value)
    elif origin is Literal:
        for choice in args:
            if type(choice) is type(value) and choice == value:     # 1 == True
                return choice
    elif origin is Annotated:
        number = convert(args[0], value)
        if inside(number, args[1]):
            return number
    elif kind in (bool, str, NoneType) or isinstance(value, bool):
        if type(value) is kind:
            return value
    elif kind is int and (isinstance(value, int) or isinstance(value, float) and value.is_integer()):
        if abs(value) < 2 ** 63:        # what a tensor holds
            return int(value)           # max_iters = 1e3
    elif kind is float and isinstance(value, (int, float)) and value == value:      # NaN differs from itself
        return float(value)
    raise ValueError


def inside(number, interval):
    low, high = map(float, interval[1:-1].split(','))
    return (low <= number if interval[0] == '[' else low < number) and \
           (number <= high if interval[-1] == ']' else number < high)


def allowed(kind):
    """The annotation in words: 'int in [1, inf) | None'."""
    origin, args = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return ' | '.join(map(allowed, args))
    if origin is Literal:
        return ' | '.join(map(str, args))
    if origin is Annotated:
        return f'{allowed(args[0])} in {args[1]}'
    words = {int: 'int', float: 'float', bool: 'True | False', str: 'text', NoneType: 'None'}
    if kind not in words:
        raise TypeError(f'{kind} is no type for an option: see configurator.py for those that are')
    return words[kind]


def meanings(cls):
    """{field: its trailing comment}, from the source of the class and of those it inherits from."""
    found = {}
    for base in filter(inspect.get_annotations, reversed(cls.__mro__)):
        found |= own_meanings(base)
    return found


@cache # Python parses the whole file for it, which takes as long as all else that building a small model does
def own_meanings(cls):
    found = {}
    with suppress(OSError):             # typed in at a prompt: no source
        source = textwrap.dedent(inspect.getsource(cls))
        tokens = tokenize.generate_tokens(io.StringIO(source).readline)
        comments = {token.start[0]: token.string for token in tokens if token.type == tokenize.COMMENT}
        for node in ast.parse(source).body[0].body:
            if isinstance(node, ast.AnnAssign) and node.end_lineno in comments:
                found[node.target.id] = comments[node.end_lineno].lstrip('# ')
    return found


def spelled(name, value, origin):
    """What the user wrote and where, on one line."""
    if origin == COMMAND_LINE:
        return f'--{name}={value}' if value.isprintable() else f'--{name}={value!r}'
    return f'{origin}{": " if origin else ""}{name} = {show(value)}'


def nearest(name, known):
    near = difflib.get_close_matches(name, known, 1)
    return f'; did you mean {near[0]}?' if near else ''


def show(value):
    """repr on one line of bearable length, for any object that a config file can hold."""
    try:
        text = repr(value).replace('\n', ' ')
    except ValueError:                  # Python does not print an int of more than 4300 digits
        text = f'a huge {type(value).__name__}'
    return text if len(text) <= 100 else text[:97] + '...'
