"""Norms scale every vector to length 1, so that a Linear after them sees only directions.

Source: CosineNorm of github.com/evintunador/templateGPT, after cosine normalization, arXiv 1702.05870.

    y = x / sqrt(sum(x^2) + n * cosine_eps) * weight      over n channels

This is RMSNorm divided by sqrt(n). cosine_unit=False restores the length sqrt(n); cosine_center subtracts the
mean first; both together are LayerNorm.

Claim: none; templateGPT offers it beside RMSNorm and LayerNorm without a comparison.
Expect: worse than the baseline or slower to learn: attention, MLP and logits start sqrt(n) smaller and
weights must make up for it.
Control: `rmsnorm`, or cosine_unit=False, the same direction at RMSNorm's length.
"""
from dataclasses import dataclass

import torch

import model
from configurator import Positive
from core.nn.numerics import wide

NEUTRAL = dict(cosine_unit=False, cosine_center=True, cosine_eps=1e-5)


@dataclass
class GPTConfig(model.GPTConfig):
    cosine_unit: bool = True            # length 1; False: the root of the number of channels, as in RMSNorm
    cosine_center: bool = False         # subtract the mean first, as LayerNorm does
    cosine_eps: Positive = 1e-6         # added to the mean square; LayerNorm has 1e-5


class LayerNorm(model.LayerNorm):

    def __init__(self, config, ndim):
        super().__init__(config, ndim)
        self.center, self.eps = config.cosine_center, config.cosine_eps
        self.length = 1.0 if config.cosine_unit else ndim ** 0.5

    def forward(self, x):
        n, x = x.size(-1), wide(x)
        if self.center:
            x = x - x.mean(-1, keepdim=True)
        y = self.length * x * torch.rsqrt(x.square().sum(-1, keepdim=True) + n * self.eps) * self.weight
        return y if self.bias is None else y + self.bias
