"""Dropout that costs a byte an element on a GPU."""
import torch
import torch.nn as nn


class Dropout(nn.Dropout):
    """nn.Dropout; on CUDA, from 2 % on, by byte_dropout, and so at a rate in 256ths."""

    def forward(self, x):
        return byte_dropout(x, self.p) if self.training and x.is_cuda and self.p >= 0.02 else super().forward(x)


def byte_dropout(x, rate):
    """x with elements set to 0 at this rate, rounded to 256ths, and the others over the share that stays.

    One random byte decides for each element. Fused by torch.compile, F.dropout computes ten rounds of Philox for each, forward
    and backward, which takes longer than the memory traffic of the whole residual stream.
    """
    cut = round(256 * rate)
    return torch.where(random_bytes(x.size(), x.device) >= cut, x * (256 / (256 - cut)), 0.0)


@torch.library.custom_op('lab::random_bytes', mutates_args=(), tags=(torch.Tag.nondeterministic_seeded,)) # no two calls are one
def random_bytes(size: list[int], device: torch.device) -> torch.Tensor:
    """uint8 of this size, from the device's default generator."""
    n = torch.Size(size).numel()
    words = torch.empty(-(-n // 8), dtype=torch.int64, device=device).random_(-2 ** 63, None) # all 64 bits
    return words.view(torch.uint8)[:n].view(size)


@random_bytes.register_fake
def _(size, device):
    return torch.empty(size, dtype=torch.uint8, device=device)
