"""Randomness is keyed, never consumed: what is drawn depends on what it is for, not on what was drawn before."""
import hashlib
from contextlib import contextmanager

import torch


def key(*parts):
    """A 63-bit number from the parts' text, the same in every process and on every machine."""
    digest = hashlib.blake2b('/'.join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, 'little') >> 1


def generator(*parts):
    """A CPU generator of its own for these parts: whatever the device, the numbers are the same."""
    return torch.Generator().manual_seed(key(*parts))


@contextmanager
def nan_where_uninitialised():
    """Inside, torch.empty gives NaN, so that a parameter nobody initialised is found by its value."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
