"""Keyed randomness: what is drawn depends on its purpose, never on what was drawn before."""
import hashlib
import math

import torch
from torch.overrides import TorchFunctionMode


def key(*parts):
    """Returns a 63-bit number made from the parts as text, the same in every process and on every machine."""
    # not Python's hash(), which is salted anew in every process; a seed must fit a signed 64-bit number
    digest = hashlib.blake2b('/'.join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, 'little') >> 1


def generator(*parts):
    """Returns a CPU generator seeded by key(*parts), whose numbers are the same whatever the device."""
    return torch.Generator().manual_seed(key(*parts))


def seed_cpu(number):
    """Seeds PyTorch's default CPU generator.

    torch.manual_seed also looks for other devices, and formats a stack trace to do so: 0.5 ms a call.
    """
    torch.default_generator.manual_seed(number)


EMPTY = torch.empty, torch.empty_like, torch.empty_strided, torch.Tensor.new_empty


class NanWhereUninitialised(TorchFunctionMode):
    """A context in which torch.empty returns NaN, so that a parameter without initial values can be found."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if function in EMPTY and out.is_floating_point():
            out.fill_(math.nan)
        return out
