"""Reads from the source of variants whether what they define can have any effect.

A misspelt method or class would pass for the baseline: Python calls what it knows and ignores the rest.
"""
import ast
import inspect
import sys
import textwrap
from copy import deepcopy
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from types import SimpleNamespace

from core.errors import Stop


def check_names(file, slots):
    """Stop if a variant's module defines a slot's subclass, or a method of one, that nothing uses.

    slots: the baseline's classes. Methods that begin with _ are the author's own business.
    """
    path, used, used_here = path_of(file.__name__), attributes_read(file), names_read(file)
    for name, c in vars(file).items():
        slot = next((s for s in slots if inspect.isclass(c) and issubclass(c, s) and c is not s), None)
        if slot is None or by_file(file) and c.__module__ != file.__name__:
            continue
        if name != slot.__name__ and name not in used_here:
            raise Stop(f'{path}: class {name}: nothing uses this subclass of {slot.__name__}; '
                       f'did you mean {slot.__name__}?')
        for method in methods(c):
            if not method.startswith('_') and not hasattr(slot, method) and method not in used:
                hooks = [name for name in vars(slot) if not name.startswith('_')]
                near = get_close_matches(method, hooks, n=1, cutoff=0.5)
                guess = f'; did you mean {near[0]}?' if near else f"; it has: {', '.join(hooks)}"
                raise Stop(f'{path}: {name}.{method}: model.{slot.__name__} has no such method '
                           f'and nothing calls it{guess}')


def lost_override(slot, c, partner):
    """Returns the name of a method of the baseline's class that `partner` overrides and c never lets run.

    slot: the baseline's class; c, partner: subclasses of it, to be combined. A method is lost if the
    baseline's own code calls it, but nothing that runs does once c's methods stand in their places, with the
    default options of its file. None if there is none.
    """
    lost = methods_that_run(slot, slot) - methods_that_run(slot, c)
    return next((name for name in methods(partner) if name in lost), None)


def methods_that_run(slot, c):
    """Returns the names of the methods that can run in an object of class c, a slot or its subclass."""
    base, own = methods(slot), live_methods(c)
    called = set().union(*map(self_calls, base.values()))
    # where callers enter: methods that the baseline does not call itself, those that it does not have, and
    # those that functions beside the class call
    entries = (base.keys() - called) | (own.keys() - base.keys()) | (called_beside(c) if c is not slot else set())
    # (class, method)
    waiting, found = [(c, name) for name in entries], set()
    while waiting:
        owner, name = waiting.pop()
        # what c does not define is the baseline's
        owner = owner if name in methods(owner) else slot
        if name in methods(owner) and (owner, name) not in found:
            found.add((owner, name))
            function = live_methods(owner)[name]
            waiting += [(c, other) for other in self_calls(function)]
            waiting += [(slot, other) for other in super_calls(function)]
    return {name for _, name in found}


# -----------------------------------------------------------------------------
# source code

def path_of(module_name):
    """Returns the path of a variant's file, for messages; the name itself for a module that has none."""
    name = module_name.removeprefix('variants.')
    # a file elsewhere has its path as its name
    return name if name.endswith('.py') or name == module_name else f'variants/{name}.py'


def by_file(module):
    """Returns True if a module comes from a file, False if its classes were handed in."""
    return getattr(module, '__file__', None) is not None


@cache
def methods(c):
    """Returns {name: syntax tree} of the functions in a class's own body; {} if its source is not at hand."""
    try:
        body = ast.parse(textwrap.dedent(inspect.getsource(c))).body[0].body
    # made in a shell, or by exec
    except (OSError, TypeError, SyntaxError):
        return {}
    return {node.name: node for node in body if isinstance(node, ast.FunctionDef)}


@cache
def live_methods(c):
    """Returns methods(c) without what the default options of the class's file never reach."""
    config = getattr(sys.modules.get(c.__module__), 'GPTConfig', None)
    try:
        config = config()
    # no options, or some without a default
    except TypeError:
        return methods(c)
    return {name: Live(config).visit(deepcopy(function)) for name, function in methods(c).items()}


class Live(ast.NodeTransformer):
    """Takes branches that depend on self.config alone, as in `if not self.config.rate: return super().forward(x)`."""

    def __init__(self, config):
        self.names = dict(self=SimpleNamespace(config=config))

    def visit_FunctionDef(self, function):
        self.generic_visit(function)
        returns = [n for n, statement in enumerate(function.body, 1) if isinstance(statement, ast.Return)]
        function.body = function.body[:min(returns, default=None)]
        return function

    def visit_If(self, node):
        self.generic_visit(node)
        # the test is code of a file that is imported already
        try:
            taken = eval(ast.unparse(node.test), {}, self.names) # noqa: S307
        # it reads something else than options
        except Exception:
            return node
        return node.body if taken else node.orelse

    visit_IfExp = visit_If


def self_calls(function):
    """Returns the names of all attributes of `self` in a function."""
    return {node.attr for node in ast.walk(function)
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == 'self'}


def super_calls(function):
    """Returns the names of all attributes of super(), or of a class such as model.MLP, in a function."""
    return {node.attr for node in ast.walk(function) if isinstance(node, ast.Attribute)
            and ast.unparse(node.value).startswith(('super()', 'model.'))}


def called_beside(c):
    """Returns the attributes that the file of a class, and the helpers that it imports, read of other objects.

    A helper variants/_moments.py that is given an attention module calls attn.score_mod() for it.
    """
    file = sys.modules[c.__module__]
    origins = {getattr(value, '__module__', None) or getattr(value, '__name__', '') for value in vars(file).values()}
    helpers = [sys.modules[name] for name in sorted(origins & sys.modules.keys()) if name.startswith('variants._')]
    return {node.attr for module in (file, *helpers) if by_file(module) for node in ast.walk(tree_of(module))
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id != 'self'}


def names_read(file):
    """Returns all names that a module reads."""
    return {node.id for tree in trees_of(file) for node in ast.walk(tree)
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}


def attributes_read(file):
    """Returns all attributes that a module, and the helpers in variants/, read."""
    helpers = [tree_of(m) for name, m in sys.modules.items() if name.startswith('variants._') and by_file(m)]
    return {node.attr for tree in (*trees_of(file), *helpers) for node in ast.walk(tree)
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)}


def trees_of(file):
    """Returns the syntax trees of a module: one, or those of its classes' methods if it has no file."""
    if by_file(file):
        return [tree_of(file)]
    return [f for c in vars(file).values() if inspect.isclass(c) for f in methods(c).values()]


@cache
def tree_of(module):
    """Returns the syntax tree of a module's file."""
    return ast.parse(Path(module.__file__).read_text(encoding='utf-8'))
