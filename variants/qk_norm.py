"""Queries and keys have a fixed length in every head, so that no score can run away.

Source: Query-Key Normalization, Henry et al., arXiv 2010.04245; without its learned scale:
github.com/karpathy/nanochat.

    q, k = q / rms(q)^qk_power, k / rms(k)^qk_power      over each head's channels

At qk_power=1 scores lie within +-sqrt(head size). The paper has unit vectors and one learned scale, which no
later weight can replace; nanochat has none.

Claim: 0.9 BLEU on five low-resource translation pairs; nanochat keeps it for stability at high learning
rates.
Expect: no change in loss at this size and learning rate; a gain where the learning rate is higher.
Control: qk_power=0.5; `softcap` with score_cap, the other way to bound scores.
"""
from dataclasses import dataclass

import model
from configurator import Share
from core.nn.numerics import wide

NEUTRAL = dict(qk_power=0.0)


@dataclass
class GPTConfig(model.GPTConfig):
    qk_power: Share = 1.0               # 1: all queries and keys have the same length; 0: the baseline


class CausalSelfAttention(model.CausalSelfAttention):

    def norm_qk(self, q, k):
        return divide_by_rms(q, self.config.qk_power), divide_by_rms(k, self.config.qk_power)


def divide_by_rms(z, power):
    """Returns z / rms(z)^power over the last dimension."""
    x = wide(z)
    return (x * (x.square().mean(-1, keepdim=True) + 1e-6) ** (-power / 2)).to(z.dtype)
