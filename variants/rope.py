"""Queries and keys are rotated by their position, so that scores see distances; no learned position embeddings.

Source: RoFormer, Su et al., arXiv 2104.09864.

    channels (2m, 2m + 1) of q and k turn by the angle pos * rope_base^(-2m / n),   n channels of a head are rotated

rope_share=0.25 rotates a quarter of them, as GPT-NeoX; 0 none, which without positions leaves the causal mask alone to tell where.

Claim: none with a number at this size; the default of nearly every open model since 2021.
Expect: a clear gain at equal steps, one of the few switches that shows on Shakespeare; fewer parameters by block_size * n_embd.
Control: `alibi`; rope_share=0, no positions at all.
"""
from dataclasses import dataclass

import torch

import model
from lab.options import Positive, Share

NEUTRAL = dict(rope_share=0.0, positions=True)


@dataclass
class GPTConfig(model.GPTConfig):
    rope_base: Positive = 10000.0       # the slowest pair turns by about 1 / rope_base a token
    rope_share: Share = 1.0             # of each head's channels, those rotated, rounded down to pairs; 0: none
    positions: bool = False             # learned position embeddings too


class CausalSelfAttention(model.CausalSelfAttention):

    def rotated(self, q, k, step):
        n = int(self.config.rope_share * q.size(-1)) // 2 * 2
        pairs = torch.arange(0, n, 2, device=q.device, dtype=torch.promote_types(q.dtype, torch.float32))
        pos = step.pos[:1] if step.plain else step.pos
        angle = pos[:, None, :, None] * self.config.rope_base ** (-pairs / n) # (B or 1, 1, T, n / 2)
        cos, sin = angle.cos(), angle.sin()
        return turn(q, cos, sin), turn(k, cos, sin)


def turn(x, cos, sin):
    n = 2 * cos.size(-1)
    a, b = x[..., 0:n:2], x[..., 1:n:2] # (B, nh, T, n / 2)
    turned = torch.stack((a * cos - b * sin, a * sin + b * cos), dim=-1).flatten(-2)
    return torch.cat((turned.to(x.dtype), x[..., n:]), dim=-1)


class GPT(model.GPT):

    def __init__(self, config, parts):
        super().__init__(config, parts)
        if not config.positions:
            self.transformer.wpe.weight = None

    def pos_emb(self, step):
        return super().pos_emb(step) if self.config.positions else 0.0
