"""Randomness is keyed, never consumed: what is drawn depends on what it is for, not on what was drawn before."""
import hashlib

import torch


def key(*parts):
    """A 63-bit number from the parts' text, the same in every process and on every machine."""
    digest = hashlib.blake2b('/'.join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, 'little') >> 1


def generator(*parts):
    """A CPU generator of its own for these parts: whatever the device, the numbers are the same."""
    return torch.Generator().manual_seed(key(*parts))
