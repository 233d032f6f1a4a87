"""Gaussian noise that torch.compile leaves to PyTorch."""
import torch


def noise_like(x):
    """Returns independent normal numbers, mean 0 and variance 1, in x's shape and precision; no gradient."""
    return noise(x.detach())


# An operator: Inductor computes logarithm and cosine of ten rounds of Philox in each kernel that reads the
# noise. It takes x, not its shape, because torch.compile makes one of two calls with the same arguments,
# whatever an operator's tags say.
@torch.library.custom_op('core::noise', mutates_args=())
def noise(x: torch.Tensor) -> torch.Tensor:
    return torch.randn_like(x)


@noise.register_fake
def _(x):
    return torch.empty_like(x)
