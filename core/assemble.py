"""Puts a model's classes together from the files of a variant: 'soft_window+surprise' is two of variants/."""
import inspect
from dataclasses import dataclass, is_dataclass
from difflib import get_close_matches
from functools import cache
from importlib import import_module
from itertools import combinations
from types import SimpleNamespace

from core import ROOT
from core.errors import Stop

FOLDER = ROOT / 'variants'


class Classes(SimpleNamespace):
    """The classes that a model is built from, by their slots' names, and `files`, the variant's modules.

    An object equals only itself, so that it can be a dictionary key.
    """
    __eq__ = object.__eq__
    __hash__ = object.__hash__


def variant_names():
    """Returns the variants' names, sorted: the files in variants/ except helpers, which begin with _."""
    return sorted(p.stem for p in FOLDER.glob('*.py') if not p.stem.startswith('_'))


def assemble(variant, slots):
    """Returns the Classes of a variant, which is 'base' or file names joined by +.

    slots: the baseline's classes, the config first. A file subclasses those it changes, under the same names;
    where two files subclass the same one, they must define different methods. Stop if a file does not exist,
    or if two do not go together.
    """
    names = [name for name in variant.split('+') if name != 'base']
    for name in names:
        present = variant_names()
        if name not in present:
            near = get_close_matches(name, ['base', *present], n=1)
            guess = f'did you mean {near[0]}? ' if near else ''
            raise Stop(f'variant={variant}: no file variants/{name}.py; {guess}'
                       f"there are: base, {', '.join(present)}")
        if names.count(name) > 1:
            raise Stop(f'variant={variant}: {name} is named twice')
    return combine(variant, slots, *(import_module('variants.' + name) for name in names))


# cached: compiled code serves one class, so the same variant must have the same classes
@cache
def combine(variant, slots, *files):
    """Returns the Classes made of the baseline's slots and a variant's modules."""
    # a file may say which others it cannot be combined with, and why
    for f, g in combinations(files, 2):
        for one, other in ((f, g), (g, f)):
            if why := getattr(one, 'CLASHES', {}).get(other.__name__.removeprefix('variants.')):
                raise Stop(f'variant={variant}: these two do not go together: {why}')
    classes = Classes(files=list(files))
    for slot in slots:
        # the subclasses of this slot that the files define, not those that they import
        subclasses = [c for f in files if (c := vars(f).get(slot.__name__)) and c.__module__ == f.__name__]
        for c in subclasses:
            if not issubclass(c, slot):
                raise Stop(f"{path_of(c.__module__)}: class {slot.__name__} must subclass model.{slot.__name__}")
        # constructors call each other through super(); nothing else may be defined twice
        for one, other in combinations(subclasses, 2):
            if both := sorted(n for n in own_names(one) & own_names(other)
                              if not is_same_option(one, other, n)):
                raise Stop(f'variant={variant}: both files define {slot.__name__}.{both[0]}; '
                           'a third file can say how they combine')
        # a config's fields come from its base classes, each a dataclass
        if is_dataclass(slot):
            subclasses = [dataclass(c) for c in subclasses]
        combined = type(slot.__name__, (*subclasses, slot), {'__doc__': slot.__doc__}) if subclasses else slot
        setattr(classes, slot.__name__, dataclass(combined) if is_dataclass(slot) else combined)
    # a file that changes nothing would pass for the baseline
    for f in files:
        if not any(inspect.isclass(c) and c.__module__ == f.__name__ and issubclass(c, slots)
                   for c in vars(f).values()):
            raise Stop(f"{path_of(f.__name__)}: defines none of {', '.join(s.__name__ for s in slots)}")
    return classes


def path_of(module):
    """Returns the path of a module's file, for messages."""
    return module.replace('.', '/') + '.py'


def own_names(c):
    """Returns the names that a class itself defines, without those that begin with __."""
    return {name for name in vars(c) if not name.startswith('__')}


def is_same_option(one, other, name):
    """Returns True if two configs share an option: same name, type and default."""
    kinds = [inspect.get_annotations(c).get(name) for c in (one, other)]
    return kinds[0] is not None and kinds[0] == kinds[1] and getattr(one, name) == getattr(other, name)
