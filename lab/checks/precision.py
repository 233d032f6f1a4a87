"""Rounding: how much of a change it explains, and float64 in everything that a model computes."""
import contextlib
import copy

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from core.rng import generator

# Relative changes of weights that make all rounding errors anew: a few times those errors
EPS = dict(float64=2.0 ** -48, float32=2.0 ** -20, tf32=2.0 ** -9, float16=2.0 ** -9, bfloat16=2.0 ** -6)
# The mean correlation from which on changes are more than rounding: measured, .002 for rounding, .84 to 1 for leaks
CORRELATED = 0.25
WIDER = {torch.complex64: torch.complex128, torch.complex32: torch.complex128}
WIDER |= dict.fromkeys((torch.float32, torch.float16, torch.bfloat16), torch.float64)


class Float64(TorchDispatchMode):
    """A context in which a float64 model stays one where it asks for less, such as a softmax in float32."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        wide = {name: WIDER.get(value, value) if isinstance(value, torch.dtype) else value
                for name, value in (kwargs or {}).items()}
        return function(*(WIDER.get(a, a) if isinstance(a, torch.dtype) else a for a in args), **wide)


def float64_copy(model, device):
    """Returns a copy of the model in float64, on this device."""
    return copy.deepcopy(model).to(device, torch.float64)


def float64_throughout(model):
    """Returns a Float64 context for a model in float64, for others one that does nothing."""
    return Float64() if next(model.parameters()).dtype == torch.float64 else contextlib.nullcontext()


@contextlib.contextmanager
def perturbed(model, eps, seed):
    """Multiplies each parameter, element by element, by 1 + eps times normal noise, and puts it back."""
    before = [(p, p.data) for p in model.parameters()]
    try:
        for i, (p, data) in enumerate(before):
            noise = torch.randn(data.shape, generator=generator('perturbed', seed, i)).to(data)
            p.data = data * (1 + eps * noise)
        yield
    finally:
        for p, data in before:
            p.data = data


def largest_change(logits, base):
    """Returns the largest difference of logits (B, T, V) at each position, (B, T), as float64."""
    return (logits.double() - base.double()).abs().amax(-1)


def is_rounding(model, eps, run, one, two, kept):
    """Returns True if rounding explains why logits change at positions `kept` (B, T) from tokens one to two.

    run(idx) returns logits (B, T, V); eps: a few times the relative rounding error. Where the
    order of a sum depends on other tokens, as in a Fourier transform, the change is as random as its digits:
    with weights that differ by a rounding error it is another one. What a leak adds stays.
    """
    changes = []
    for seed in range(4):
        with perturbed(model, eps if seed else 0.0, seed):
            change = (run(two).double() - run(one).double())[kept] # (positions, V)
        changes.append(change / change.norm().clamp(min=torch.finfo(torch.float64).tiny))
    # of all pairs
    total = sum(changes).norm().square() - sum(change.norm().square() for change in changes)
    return total.item() / 12 < CORRELATED
