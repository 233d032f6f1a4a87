"""An embedding whose gradient is the same to the bit in every run, also on a GPU and compiled."""
import torch
import torch.nn as nn
import torch.nn.functional as F


class Embedding(nn.Embedding):
    """nn.Embedding, computed by embedding()."""

    def forward(self, idx):
        return embedding(self.weight, idx)


def embedding(weight, idx):
    """Returns weight[idx] (..., C) for weight (rows, C) and idx (...); the gradient sums in a fixed order."""
    # F.embedding's gradient sums by atomics, in any order, so that two runs of one seed drift apart
    in_any_order = idx.is_cuda or torch.compiler.is_compiling()
    return lookup(weight, idx) if in_any_order else F.embedding(idx, weight)


# An operator, because torch.compile does not cache graphs that contain a torch.autograd.Function.
@torch.library.custom_op('core::lookup', mutates_args=())
def lookup(weight: torch.Tensor, idx: torch.Tensor) -> torch.Tensor:
    """Returns weight[idx] (..., C). Up to 1,024 rows, its gradient is a product with idx's one-hot matrix."""
    return F.embedding(idx, weight)


@lookup.register_fake
def _(weight, idx):
    return weight.new_empty(*idx.shape, weight.size(1))


@torch.library.custom_op('core::sum_by_row', mutates_args=())
def sum_by_row(dy: torch.Tensor, idx: torch.Tensor, rows: int) -> torch.Tensor:
    """Returns (rows, C): each row is the sum of dy (..., C) where idx (...) is that row, in eager order."""
    return torch.ops.aten.embedding_dense_backward(dy, idx, rows, -1, False)


@sum_by_row.register_fake
def _(dy, idx, rows):
    return dy.new_empty(rows, dy.size(-1))


def lookup_context(ctx, inputs, output):
    weight, idx = inputs
    ctx.save_for_backward(idx)
    ctx.rows = weight.size(0)


def lookup_gradient(ctx, dy): # (..., C)
    idx, = ctx.saved_tensors
    # a product is faster while the one-hot matrix is small
    if ctx.rows > 1024:
        return sum_by_row(dy, idx, ctx.rows), None
    with torch.autocast(dy.device.type, enabled=False):
        one_hot = idx.flatten() == torch.arange(ctx.rows, device=idx.device)[:, None] # (rows, N)
        return one_hot.to(dy.dtype) @ dy.flatten(0, -2), None # (rows, N) x (N, C) -> (rows, C)


lookup.register_autograd(lookup_gradient, setup_context=lookup_context)
