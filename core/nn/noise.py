"""Gaussian noise that torch.compile leaves PyTorch to draw."""
import torch


def noise_like(x):
    """Returns independent normal numbers, mean 0 and variance 1, in x's shape and dtype, without gradient."""
    return noise(x.detach())


# An operator, because Inductor would compute ten rounds of Philox, a logarithm and a cosine in each kernel
# that reads the noise. It takes x instead of its shape, because torch.compile merges two calls with the same
# arguments, whatever the operator's tags say.
@torch.library.custom_op('core::noise', mutates_args=())
def noise(x: torch.Tensor) -> torch.Tensor:
    """Returns torch.randn_like(x)."""
    return torch.randn_like(x)


@noise.register_fake
def _(x):
    return torch.empty_like(x)
