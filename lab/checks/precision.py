"""Rounding: how much of a change it explains, and float64 in everything that a model computes."""
import contextlib
import copy

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from core.rng import generator

EPS = dict(float64=2.0 ** -52, float32=2.0 ** -23, tf32=2.0 ** -10, float16=2.0 ** -10, bfloat16=2.0 ** -7)
# A change is rounding if it is at most this many times what a perturbation as small as rounding makes
ROUNDINGS = 32
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
def perturbed(model, eps):
    """Multiplies each parameter, element by element, by 1 + eps times normal noise, and puts it back."""
    before = [(p, p.data) for p in model.parameters()]
    try:
        for i, (p, data) in enumerate(before):
            noise = torch.randn(data.shape, generator=generator('perturbed', i)).to(data)
            p.data = data * (1 + eps * noise)
        yield
    finally:
        for p, data in before:
            p.data = data


def largest_change(logits, base):
    """Returns the largest difference of logits (B, T, V) at each position, (B, T), as float64."""
    return (logits.double() - base.double()).abs().amax(-1)


def rounding(model, eps, run, base):
    """Returns by how much logits change when every weight changes by a rounding error, at a median position.

    run() returns the logits (B, T, V), and base is what it returned. eps: of the model's products, relative.
    """
    with perturbed(model, eps):
        return largest_change(run(), base).median().item()
