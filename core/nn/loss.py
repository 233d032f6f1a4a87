"""The mean cross entropy; for large vocabularies on CUDA, by the kernels of core/kernels/cross_entropy.py."""
import torch
import torch.nn.functional as F

# vocabularies from this size on use the kernels, which read a row of logits in blocks of as many
LARGE = 4096


def cross_entropy(logits, targets):
    """Returns the mean cross entropy, in nats, of logits (N, V) and targets (N,), of which -1 is ignored."""
    V = logits.size(1)
    # eager mode works without Triton
    compiled = logits.is_cuda and torch.compiler.is_compiling()
    if not compiled or V < LARGE or V % 8 or logits.dtype == torch.float64:
        return F.cross_entropy(logits, targets, ignore_index=-1)
    losses, _ = nll(logits, targets)
    return losses.sum() / (targets != -1).sum()


@torch.library.custom_op('core::nll', mutates_args=())
def nll(logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns negative log-likelihoods, in nats, and base-2 logsumexps for the gradient, (N,) float32 each.

    logits (N, V), targets (N,). The loss is 0 for a target of -1, and NaN for one that is no token.
    """
    from core.kernels.cross_entropy import launch_nll_forward  # Triton
    return launch_nll_forward(logits, targets)


@nll.register_fake
def _(logits, targets):
    N = len(logits)
    return logits.new_empty(N, dtype=torch.float32), logits.new_empty(N, dtype=torch.float32)


@torch.library.custom_op('core::nll_backward', mutates_args=())
def nll_backward(dlosses: torch.Tensor, logits: torch.Tensor, targets: torch.Tensor,
                 lse: torch.Tensor) -> torch.Tensor:
    """Returns the gradient of the logits (N, V) from that of the losses (N,)."""
    from core.kernels.cross_entropy import launch_nll_backward  # Triton
    return launch_nll_backward(dlosses, logits, targets, lse)


@nll_backward.register_fake
def _(dlosses, logits, targets, lse):
    return logits.new_empty(logits.shape)


def nll_context(ctx, inputs, output):
    ctx.save_for_backward(*inputs, output[1])


def nll_gradient(ctx, dlosses, _):
    logits, targets, lse = ctx.saved_tensors
    return nll_backward(dlosses, logits, targets, lse), None


nll.register_autograd(nll_gradient, setup_context=nll_context)
