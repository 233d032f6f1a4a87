"""The negative log-likelihood of a large vocabulary and its gradient, a block a row: every logit is read once in each.

What torch.compile makes of F.cross_entropy reads GPT-2's 3.3 GB of logits for the maximum and again for the sum, and in backward
adds up a row of zeros with one -1 (LOG.md 2026-11-30).
"""
import torch
import triton
import triton.language as tl

BLOCK = 4096
LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def forward_kernel(logits, targets, nll, lse, V, BLOCK: tl.constexpr):
    """nll (N,) float32 of targets (N,), 0 for -1, NaN for what is no token, and lse (N,): log2 of the sum of exp(logits (N, V))."""
    row = tl.program_id(0)
    logits += row.to(tl.int64) * V
    top, sums = -1e38, tl.zeros((BLOCK,), tl.float32) # not -inf, from which no other -inf can be taken
    for start in range(0, V, BLOCK):
        n = start + tl.arange(0, BLOCK)
        x = tl.load(logits + n, mask=n < V, other=float('-inf')).to(tl.float32) * LOG2_E
        new = tl.maximum(top, tl.max(x, 0))
        sums = sums * tl.exp2(top - new) + tl.exp2(x - new)
        top = new
    total = top + tl.log2(tl.sum(sums, 0))
    target = tl.load(targets + row)
    token = (target >= 0) & (target < V)
    x = tl.load(logits + target, mask=token, other=0.0).to(tl.float32) * LOG2_E
    tl.store(lse + row, total)
    tl.store(nll + row, tl.where(token, (total - x) / LOG2_E, tl.where(target == -1, 0.0, float('nan'))))


@triton.jit
def backward_kernel(dnll, logits, targets, lse, dlogits, V, BLOCK: tl.constexpr):
    """dlogits (N, V) = (softmax - one-hot) dnll (N,), 0 where the target is -1."""
    row = tl.program_id(0)
    at = row.to(tl.int64) * V
    target, total = tl.load(targets + row), tl.load(lse + row)
    scale = tl.where(target >= 0, tl.load(dnll + row), 0.0)
    for start in range(0, V, BLOCK):
        n = start + tl.arange(0, BLOCK)
        x = tl.load(logits + at + n, mask=n < V, other=0.0).to(tl.float32) * LOG2_E
        dx = (tl.exp2(x - total) - tl.where(n == target, 1.0, 0.0)) * scale
        tl.store(dlogits + at + n, dx.to(dlogits.dtype.element_ty), mask=n < V)


def forward(logits, targets):
    """(nll, lse) for logits (N, V) and targets (N,)."""
    (N, V), logits, targets = logits.shape, logits.contiguous(), targets.contiguous()
    nll, lse = (torch.empty(N, device=logits.device) for _ in range(2))
    forward_kernel[N,](logits, targets, nll, lse, V, BLOCK, num_warps=8)
    return nll, lse


def backward(dnll, logits, targets, lse):
    """dlogits, contiguous; lse: forward()'s."""
    (N, V), logits = logits.shape, logits.contiguous()
    dlogits = torch.empty_like(logits)
    backward_kernel[N,](dnll.contiguous(), logits, targets.contiguous(), lse, dlogits, V, BLOCK, num_warps=8)
    return dlogits
