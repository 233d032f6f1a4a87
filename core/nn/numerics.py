"""Precision for sums and exponentials, and a softmax with a mask."""
import torch
import torch.nn.functional as F


def wide_dtype(x):
    """Returns float32, or float64 if x has it: the dtype for sums, norms and exponentials."""
    return torch.promote_types(x.dtype, torch.float32)


def wide(x):
    """Returns x in float32, or in float64 if it has that."""
    return x.to(wide_dtype(x))


def masked_softmax(score, seen):
    """Returns softmax over the last dimension where seen, a bool that broadcasts to score; 0 elsewhere."""
    return F.softmax(score.masked_fill(~seen, float('-inf')), dim=-1)
