"""Triton kernels of the negative log-likelihood for large vocabularies and its gradient, one program per row.

Each reads every logit once. The kernels that torch.compile makes of F.cross_entropy read GPT-2's 3.3 GB of
logits for the maximum and again for the sum, and in backward sum up rows of zeros with one -1.
"""
import torch
import triton
import triton.language as tl

# logits that a program reads at once
BLOCK = 4096
LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def nll_forward_kernel(logits, targets, nll, lse, V, BLOCK: tl.constexpr):
    """Stores nll (N,) in nats and lse (N,), log2 of the sum of exp, for logits (N, V) and targets (N,).

    nll is 0 for a target of -1, and NaN for one that is no token.
    """
    row = tl.program_id(0)
    logits += row.to(tl.int64) * V

    # the online softmax sums 2 ** (x - top). top starts finite, because -inf minus -inf would be NaN
    top, sums = -1e38, tl.zeros((BLOCK,), tl.float32)
    for start in range(0, V, BLOCK):
        n = start + tl.arange(0, BLOCK)
        x = tl.load(logits + n, mask=n < V, other=float('-inf')).to(tl.float32) * LOG2_E
        new_top = tl.maximum(top, tl.max(x, 0))
        sums = sums * tl.exp2(top - new_top) + tl.exp2(x - new_top)
        top = new_top
    total = top + tl.log2(tl.sum(sums, 0))

    # in base 2 up to here, and in nats from here on
    target = tl.load(targets + row)
    token = (target >= 0) & (target < V)
    x = tl.load(logits + target, mask=token, other=0.0).to(tl.float32) * LOG2_E
    tl.store(lse + row, total)
    tl.store(nll + row, tl.where(token, (total - x) / LOG2_E, tl.where(target == -1, 0.0, float('nan'))))


@triton.jit
def nll_backward_kernel(dnll, logits, targets, lse, dlogits, V, BLOCK: tl.constexpr):
    """Stores dlogits (N, V) = (softmax - one-hot) dnll (N,), 0 where the target is -1."""
    row = tl.program_id(0)
    at = row.to(tl.int64) * V
    target, total = tl.load(targets + row), tl.load(lse + row)
    # a row without a target has no gradient, whatever dnll is
    scale = tl.where(target >= 0, tl.load(dnll + row), 0.0)
    for start in range(0, V, BLOCK):
        n = start + tl.arange(0, BLOCK)
        x = tl.load(logits + at + n, mask=n < V, other=0.0).to(tl.float32) * LOG2_E
        dx = (tl.exp2(x - total) - tl.where(n == target, 1.0, 0.0)) * scale
        tl.store(dlogits + at + n, dx.to(dlogits.dtype.element_ty), mask=n < V)


def launch_nll_forward(logits, targets):
    """Returns (nll, lse), (N,) float32 each, for logits (N, V) and targets (N,)."""
    N, V = logits.shape
    logits, targets = logits.contiguous(), targets.contiguous()
    nll = torch.empty(N, device=logits.device)
    lse = torch.empty(N, device=logits.device)
    nll_forward_kernel[N,](logits, targets, nll, lse, V, BLOCK, num_warps=8)
    return nll, lse


def launch_nll_backward(dnll, logits, targets, lse):
    """Returns dlogits (N, V), contiguous, for dnll (N,) and the lse of launch_nll_forward()."""
    N, V = logits.shape
    logits = logits.contiguous()
    dlogits = torch.empty_like(logits)
    nll_backward_kernel[N,](
        dnll.contiguous(), logits, targets.contiguous(), lse, dlogits, V, BLOCK, num_warps=8)
    return dlogits
