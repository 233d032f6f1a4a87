"""State that a forward pass may change beside its results: buffers, attributes, a variant's own globals."""
import contextlib
import sys
from collections import deque
from typing import NamedTuple

import torch
import torch.nn as nn

from core.overrides import path_of
from core.rng import seed_cpu

# what nn.Module keeps for itself
OF_MODULES = vars(nn.Module()).keys()
CONTAINERS = list, tuple, set, dict, deque


class Place(NamedTuple):
    """An attribute in which a pass may leave something."""
    owner: object       # a module, one of its classes, or a variant's file
    key: str
    name: str           # for messages: 'h.0.attn: buffer seen'


def short(name):
    """Returns a module's name as messages have it: h.0.attn, or GPT for the whole model."""
    return name.removeprefix('transformer.') or 'GPT'


def is_kept(value):
    """Returns True for what can hold memory of a pass: numbers, tensors, containers of them, None."""
    if isinstance(value, CONTAINERS):
        return all(is_kept(part) for part in (value.values() if isinstance(value, dict) else value))
    return value is None or isinstance(value, (bool, int, float, str, torch.Tensor))


def places(model, buffers_only=False):
    """Yields each Place of a model once. buffers_only: leaves out what is not a buffer."""
    seen, modules = set(), {}
    for name, module in model.named_modules():
        for key, buffer in module._buffers.items():
            if buffer is not None and id(buffer) not in seen:
                seen.add(id(buffer))
                yield Place(module, key, f'{short(name)}: buffer {key}')
        if buffers_only:
            continue
        for key, value in list(vars(module).items()):
            if key not in OF_MODULES and is_kept(value):
                yield Place(module, key, f'{short(name)}: attribute {key}')
        # classes and files are shared by modules
        for c in type(module).__mro__:
            if c.__module__.startswith('variants.') and c not in seen:
                seen.add(c)
                modules[c.__module__] = sys.modules.get(c.__module__)
                yield from places_of(c, f'class {c.__name__}')
    for name, module in modules.items():
        if module is not None:
            yield from places_of(module, path_of(name))


def places_of(owner, name):
    """Yields the Places of a class or of a file."""
    for key, value in list(vars(owner).items()):
        if not key.startswith('__') and is_kept(value):
            yield Place(owner, key, f'{name}: {key}')


def copy(value):
    """Returns a copy of a kept value that no later pass changes."""
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {key: copy(part) for key, part in value.items()}
    if isinstance(value, CONTAINERS):
        return type(value)(copy(part) for part in value)
    return value


def same(a, b):
    """Returns True if two kept values are equal, tensors to the bit."""
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        if a.shape != b.shape or a.dtype != b.dtype or a.device != b.device:
            return False
        # NaN equals NaN here
        return bool(((a == b) | (a != a) & (b != b)).all())
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(part, b[key]) for key, part in a.items())
    if isinstance(a, (list, tuple, deque)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


class State:
    """The state of a model at one time: what changed since then, and the way back."""

    def __init__(self, model, buffers_only=False):
        self.model, self.buffers_only, self.kept = model, buffers_only, {}
        for place in places(model, buffers_only):
            value = vars_of(place)[place.key]
            self.kept[place] = value, copy(value)

    def changes(self):
        """Returns {place: (value then, value now)} of all that differs now; None for what was not there."""
        found = {}
        now = {place: vars_of(place)[place.key] for place in places(self.model, self.buffers_only)}
        for place in now.keys() | self.kept.keys():
            then = self.kept[place][1] if place in self.kept else None
            # rebound to a buffer that is kept elsewhere, or deleted
            value = now.get(place, vars_of(place).get(place.key))
            if place not in self.kept or not same(then, value):
                found[place] = then, value
        return dict(sorted(found.items(), key=lambda item: item[0].name))

    @torch.no_grad()
    def restore(self):
        """Puts back what has changed, and writes into no tensor that has not.

        A tensor that a pass has read for its gradient must not be written to.
        """
        for place in self.changes():
            if place not in self.kept:
                delattr(place.owner, place.key)
                continue
            value, then = self.kept[place]
            if not same(value, then):
                if isinstance(value, torch.Tensor):
                    value.copy_(then)
                else:
                    refill(value, then)
            setattr(place.owner, place.key, value)


def vars_of(place):
    """Returns the dictionary in which a place's value is."""
    if isinstance(place.owner, nn.Module) and place.key in place.owner._buffers:
        return place.owner._buffers
    return vars(place.owner)


def refill(container, then):
    """Gives a list, set, dict or deque the contents that it had."""
    container.clear()
    for part in copy(then) if not isinstance(container, dict) else ():
        container.add(part) if isinstance(container, set) else container.append(part)
    if isinstance(container, dict):
        container.update(copy(then))


@contextlib.contextmanager
def same_circumstances(model, seed=0, buffers_only=False):
    """Seeds the noise of a pass, and afterwards restores what the pass has changed beside its results."""
    before = State(model, buffers_only)
    # torch.manual_seed also seeds the GPUs, and takes half a millisecond
    (torch.manual_seed if torch.cuda.is_available() else seed_cpu)(seed)
    try:
        yield
    finally:
        before.restore()
