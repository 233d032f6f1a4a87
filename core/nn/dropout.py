"""Dropout whose compiled mask costs thirteen instructions an element instead of Philox's hundred."""
import torch
import torch.nn as nn
import torch.nn.functional as F


class Dropout(nn.Dropout):
    """nn.Dropout; under torch.compile with keep_mask(), of two seeds that PyTorch's generator draws."""

    def forward(self, x):
        if not (self.training and self.p):
            return x
        if not torch.compiler.is_compiling():
            return F.dropout(x, self.p)
        # beyond 32 bits torch 2.11 draws nothing
        seeds = torch.randint(2 ** 31 - 1, (2,), dtype=torch.int32, device=x.device)
        return torch.where(keep_mask(x.size(), self.p, seeds), x / (1 - self.p), 0.0)


def keep_mask(size, p, seeds):
    """Returns a mask of this size, True with probability 1 - p: a hash of numbers and seeds (2,), int32."""
    # triple32 of github.com/skeeto/hash-prospector, without its last step, which changes only bits that
    # decide nothing here. The second seed comes in its middle: masks that differ in the first alone would be
    # permutations of each other.
    h = torch.arange(size.numel(), dtype=torch.int32, device=seeds.device) ^ seeds[0]
    h = (h ^ logical_right_shift(h, 17)) * (0xed5ad4bb - 2 ** 32) + seeds[1]
    h = (h ^ logical_right_shift(h, 11)) * (0xac4c1b51 - 2 ** 32)
    h = (h ^ logical_right_shift(h, 15)) * 0x31848bab
    return (h >= round(p * 2 ** 32) - 2 ** 31).view(size)


def logical_right_shift(h, n):
    """Returns h >> n with zeros in the gap, where >> of an int32 copies the sign."""
    return (h >> n) & (1 << 32 - n) - 1
