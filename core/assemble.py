"""Puts a model's classes together from the files of a variant: 'soft_window+surprise' is two of variants/."""
import importlib.util
import inspect
import sys
from dataclasses import dataclass, is_dataclass
from difflib import get_close_matches
from functools import cache
from importlib import import_module
from itertools import combinations
from pathlib import Path
from types import ModuleType, SimpleNamespace

from core import ROOT
from core.errors import Stop
from core.overrides import by_file, check_names, lost_override, path_of

FOLDER = ROOT / 'variants'


class Classes(SimpleNamespace):
    """The classes that a model is built from, by their slots' names, and `files`, the variant's modules.

    An object equals only itself, so that it can be a dictionary key.
    """
    __eq__ = object.__eq__
    __hash__ = object.__hash__

    # a copy of a model has the same classes
    def __deepcopy__(self, memo):
        return self


def variant_names():
    """Returns the variants' names, sorted: the files in variants/ except helpers, which begin with _."""
    return sorted(p.stem for p in FOLDER.glob('*.py') if not p.stem.startswith('_'))


def is_path(name):
    """Returns True if one part of a variant is the path of a file, not the name of one in variants/."""
    return name.endswith('.py')


def full_name(variant):
    """Returns a variant with absolute paths, which mean the same file from every folder and in every later run."""
    def full(name):
        path = Path(name).expanduser().resolve()
        return name if not is_path(name) else path.stem if path.parent == FOLDER else str(path)
    return '+'.join(map(full, variant.split('+')))


def short_name(variant):
    """Returns a variant with its paths shortened to names: 'mine+rope' for 'ideas/mine.py+rope'."""
    return '+'.join(Path(name).stem if is_path(name) else name for name in variant.split('+'))


def assemble(variant, slots, classes=()):
    """Returns the Classes of a variant: 'base', or names in variants/ and paths of .py files, joined by +.

    slots: the baseline's classes, the config first. A file subclasses those it changes, under the same names;
    where two files subclass the same one, they must define different methods. classes: subclasses of slots
    under any names, one a slot, as a notebook has them; together they count as one more file. Stop if a file
    does not exist, changes nothing, or does not go together with another.
    """
    names = [name for name in variant.split('+') if name != 'base']
    for name in names:
        if names.count(name) > 1:
            raise Stop(f'variant={variant}: {name} is named twice')
    files = [load_path(variant, name) if is_path(name) else load_name(variant, name) for name in names]
    if classes:
        files.append(as_file(tuple(classes), tuple(slots)))
    return combine(variant, slots, *files)


def load_name(variant, name):
    """Returns the module of a file in variants/; Stop with the nearest name if there is none."""
    present = variant_names()
    if name not in present:
        near = get_close_matches(name, ['base', *present], n=1)
        guess = f'did you mean {near[0]}? ' if near else ''
        raise Stop(f'variant={variant}: no file variants/{name}.py; {guess}'
                   f"there are: base, {', '.join(present)}")
    return import_module('variants.' + name)


def load_path(variant, name):
    """Returns the module of a file anywhere, imported once; Stop if there is none."""
    path = Path(name).expanduser().resolve()
    if path.parent == FOLDER:
        return load_name(variant, path.stem)
    if not path.is_file():
        raise Stop(f'variant={variant}: no file {name}')
    # a name of its own, because two folders may each have a mine.py
    module_name = f'variants.{path}'
    if module_name not in sys.modules:
        spec = importlib.util.spec_from_file_location(module_name, path)
        module = sys.modules[module_name] = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[module_name]
            raise
    return sys.modules[module_name]


# cached, so that the same classes make the same file
@cache
def as_file(classes, slots):
    """Returns a module without a file, in which each class has the name of the slot that it subclasses."""
    module = ModuleType('classes', doc=None)
    for c in classes:
        slot = next((slot for slot in slots if inspect.isclass(c) and issubclass(c, slot)), None)
        if slot is None or c is slot:
            raise Stop(f"classes: {getattr(c, '__name__', c)} must subclass one of "
                       f"{', '.join(slot.__name__ for slot in slots)}")
        if hasattr(module, slot.__name__):
            raise Stop(f'classes: two of them subclass {slot.__name__}')
        setattr(module, slot.__name__, c)
    return module


def defines(file, name):
    """Returns the class that a file defines under a name; None if it has none, or imports it."""
    c = vars(file).get(name)
    return c if inspect.isclass(c) and (not by_file(file) or c.__module__ == file.__name__) else None


# cached: compiled code serves one class, so the same variant must have the same classes
@cache
def combine(variant, slots, *files):
    """Returns the Classes made of the baseline's slots and a variant's modules."""
    # a file may say which others it cannot be combined with, and why
    for f, g in combinations(files, 2):
        for one, other in ((f, g), (g, f)):
            if why := getattr(one, 'CLASHES', {}).get(name_of(other)):
                raise Stop(f'variant={variant}: these two do not go together: {why}')
    classes = Classes(files=list(files))
    for slot in slots:
        # the subclasses of this slot that the files define, not those that they import
        subclasses = [c for f in files if (c := defines(f, slot.__name__))]
        for c in subclasses:
            if not issubclass(c, slot):
                raise Stop(f'{path_of(c.__module__)}: class {slot.__name__} must subclass model.{slot.__name__}')
        for one, other in combinations(subclasses, 2):
            # constructors call each other through super(); nothing else may be defined twice
            if both := sorted(n for n in own_names(one) & own_names(other)
                              if not is_same_option(one, other, n)):
                raise Stop(f'variant={variant}: both files define {slot.__name__}.{both[0]}; '
                           'a third file can say how they combine')
            # a method that replaces the baseline's may not call what the other file changes
            for c, partner in ((one, other), (other, one)):
                if lost := lost_override(slot, c, partner):
                    raise Stop(f'variant={variant}: {path_of(c.__module__)} replaces the code that calls '
                               f'{slot.__name__}.{lost}, which {path_of(partner.__module__)} changes: that would '
                               'do nothing; a third file can say how they combine')
        # a config's fields come from its base classes, each a dataclass
        if is_dataclass(slot):
            subclasses = [dataclass(c) for c in subclasses]
        combined = type(slot.__name__, (*subclasses, slot), {'__doc__': slot.__doc__}) if subclasses else slot
        setattr(classes, slot.__name__, dataclass(combined) if is_dataclass(slot) else combined)
    for f in files:
        check_names(f, slots)
        # a file that changes nothing would pass for the baseline
        if not any(defines(f, slot.__name__) for slot in slots):
            raise Stop(f"{path_of(f.__name__)}: defines none of {', '.join(s.__name__ for s in slots)}")
    return classes


def name_of(file):
    """Returns the name by which CLASHES knows a file."""
    return Path(file.__file__).stem if by_file(file) else file.__name__


def own_names(c):
    """Returns the names that a class itself defines, without those that begin with __."""
    return {name for name in vars(c) if not name.startswith('__')}


def is_same_option(one, other, name):
    """Returns True if two configs share an option: same name, type and default."""
    kinds = [inspect.get_annotations(c).get(name) for c in (one, other)]
    return kinds[0] is not None and kinds[0] == kinds[1] and getattr(one, name) == getattr(other, name)
