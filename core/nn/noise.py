"""Gaussian noise that torch.compile leaves to PyTorch."""
import torch


def noise_like(x):
    """Independent, mean 0, variance 1, of x's shape and precision; without a gradient."""
    return draw(x.detach())


# An operator: Inductor computes logarithm and cosine of ten rounds of Philox in each kernel that reads the noise. It takes x, not
# its shape, because torch.compile makes one of two calls with the same arguments, whatever an operator's tags say.
@torch.library.custom_op('core::noise', mutates_args=())
def draw(x: torch.Tensor) -> torch.Tensor:
    return torch.randn_like(x)


@draw.register_fake
def _(x):
    return torch.empty_like(x)
