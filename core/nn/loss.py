"""The mean cross entropy, for large vocabularies on CUDA by core/kernels/cross_entropy.py's kernels."""
import torch
import torch.nn.functional as F

LARGE = 4096


def cross_entropy(logits, targets):
    """F.cross_entropy of logits (N, V) and targets (N,) of which -1 is ignored."""
    V, compiled = logits.size(1), logits.is_cuda and torch.compiler.is_compiling() # eager, nothing requires Triton
    if not compiled or V < LARGE or V % 8 or logits.dtype == torch.float64:
        return F.cross_entropy(logits, targets, ignore_index=-1)
    losses, _ = nll(logits, targets)
    return losses.sum() / (targets != -1).sum()


@torch.library.custom_op('core::nll', mutates_args=())
def nll(logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The negative log-likelihoods (N,) in float32, 0 for a target of -1, NaN for one that is no token, and what the gradient needs
    (N,), for logits (N, V) and targets (N,)."""
    from core.kernels.cross_entropy import launch_nll_forward  # Triton
    return launch_nll_forward(logits, targets)


@nll.register_fake
def _(logits, targets):
    return logits.new_empty(len(logits), dtype=torch.float32), logits.new_empty(len(logits), dtype=torch.float32)


@torch.library.custom_op('core::nll_backward', mutates_args=())
def nll_backward(dlosses: torch.Tensor, logits: torch.Tensor, targets: torch.Tensor, lse: torch.Tensor) -> torch.Tensor:
    """(N, V)."""
    from core.kernels.cross_entropy import launch_nll_backward  # Triton
    return launch_nll_backward(dlosses, logits, targets, lse)


@nll_backward.register_fake
def _(dlosses, logits, targets, lse):
    return logits.new_empty(logits.shape)


def save(ctx, inputs, output):
    ctx.save_for_backward(*inputs, output[1])


def gradient(ctx, dlosses, _):
    logits, targets, lse = ctx.saved_tensors
    return nll_backward(dlosses, logits, targets, lse), None


nll.register_autograd(gradient, setup_context=save)
