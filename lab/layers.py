"""Dropout and Embedding with other ways to the same on a GPU: one cheaper, one that repeats itself to the bit."""
import torch
import torch.nn as nn
import torch.nn.functional as F


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


class Embedding(nn.Embedding):
    """nn.Embedding; on CUDA, for vocabularies to 1024, with Lookup's gradient."""

    def forward(self, idx):
        return Lookup.apply(self.weight, idx) if idx.is_cuda and self.num_embeddings <= 1024 else super().forward(idx)


class Lookup(torch.autograd.Function):
    """Rows idx of weight. The gradient is a product with the one-hot matrix of idx, a sum in one order: F.embedding's, compiled for
    CUDA, adds with atomics, in whatever order they come, and two runs of one seed drift apart."""

    @staticmethod
    def forward(ctx, weight, idx):
        ctx.save_for_backward(idx)
        ctx.rows = weight.size(0)
        return F.embedding(idx, weight)

    @staticmethod
    def backward(ctx, dy): # (..., C)
        idx, = ctx.saved_tensors
        with torch.autocast(dy.device.type, enabled=False):
            hot = idx.flatten() == torch.arange(ctx.rows, device=idx.device)[:, None] # (rows, N)
            return hot.to(dy.dtype) @ dy.flatten(0, -2), None
