"""Gaussian noise on the residual stream after each of its sums, in training only.

Source: the noise notebook of github.com/MeghnaAllamudi/COMS6998_FinalProject, noisy residuals.

    x = x + y + residual_std * z        after attention and the MLP; z: mean 0, variance 1 for each element

The source also adds it in evaluation and sampling, so that one input can have two losses; here those are
without noise. relative is ours: the stream can then not outgrow the noise.

Claim: none that holds; the notebook compares one run of each of its noises, and evaluates this one with its
noise on.
Expect: a worse loss. At initialization 0.1 is several times as large as the embeddings; the stream learns to
be larger.
Control: `noise_embedding`, noise once instead of in every block; `base` with a tuned dropout.
"""
from dataclasses import dataclass

import model
from configurator import NonNegative
from core.nn.noise import noise_like

NEUTRAL = dict(residual_std=0.0)


@dataclass
class GPTConfig(model.GPTConfig):
    residual_std: NonNegative = 0.1     # standard deviation of the noise after each residual sum
    relative: bool = False              # residual_std in units of each token's root mean square


class Block(model.Block):

    def add(self, x, y):
        x = super().add(x, y)
        if not self.training or self.config.residual_std == 0:
            return x
        z = self.noise(x)
        if self.config.relative:
            z = z * x.detach().square().mean(-1, keepdim=True).sqrt() # (B, T, C) x (B, T, 1)
        return x + self.config.residual_std * z

    def noise(self, x):
        return noise_like(x)
