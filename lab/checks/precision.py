"""Rounding: how much of a change it explains, and float64 in everything that a model computes."""
import contextlib
import copy
from contextvars import ContextVar

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from core.rng import generator
from lab.checks.failures import Failed

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


# set by in_float64_if_it_fails()
insisting = ContextVar('insisting', default=False)


def float64_throughout(model):
    """Returns the context of a pass of a small model: Float64 where in_float64_if_it_fails() insists on it."""
    wide = insisting.get() and next(model.parameters()).dtype == torch.float64
    return Float64() if wide else contextlib.nullcontext()


def in_float64_if_it_fails(check):
    """Calls check(), and if it fails, once more in float64 throughout, which has the last word.

    A softmax in float32 may explain the failure. Float64 everywhere from the start would double the time of all.
    """
    try:
        return check()
    except Failed:
        token = insisting.set(True)
        try:
            return check()
        finally:
            insisting.reset(token)


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
