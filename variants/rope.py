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
from configurator import Positive, Share

NEUTRAL = dict(rope_share=0.0, positions=True)


@dataclass
class GPTConfig(model.GPTConfig):
    rope_base: Positive = 10000.0       # the slowest pair turns by about 1 / rope_base a token
    rope_share: Share = 1.0             # of each head's channels, those rotated, rounded down to pairs; 0: none
    positions: bool = False             # learned position embeddings too


class CausalSelfAttention(model.CausalSelfAttention):

    def rotate_qk(self, q, k, step):
        n, dtype = int(self.config.rope_share * q.size(-1)) // 2 * 2, torch.promote_types(q.dtype, torch.float32)
        if not step.from_zero:
            turns = angles(step.pos, n, self.config.rope_base, dtype)
        elif (turns := step.shared.get('rope')) is None: # the same in every layer
            turns = step.shared['rope'] = angles(step.pos[:1], n, self.config.rope_base, dtype)
        return turn(q, *turns), turn(k, *turns)


@torch.library.custom_op('variants::angles', mutates_args=())
def angles(pos: torch.Tensor, n: int, base: float, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin of pos * base^(-2 i / n), (B, 1, T, n / 2) each, for pos (B, T) and pairs i = 0 .. n / 2 - 1. An operator, so
    that they are computed once: Inductor would put powers and sines into every kernel that turns something, for all rows."""
    pairs = torch.arange(0, n, 2, device=pos.device, dtype=dtype)
    angle = pos[:, None, :, None] * base ** (-pairs / n)
    return angle.cos(), angle.sin()


@angles.register_fake
def _(pos, n, base, dtype):
    shape = pos.size(0), 1, pos.size(1), n // 2
    return pos.new_empty(shape, dtype=dtype), pos.new_empty(shape, dtype=dtype)


def turn(x, cos, sin):
    n = 2 * cos.size(-1)
    a, b = x[..., :n].unflatten(-1, (-1, 2)).unbind(-1) # (B, nh, T, n / 2)
    turned = torch.stack((a * cos - b * sin, a * sin + b * cos), dim=-1).flatten(-2).to(x.dtype)
    return torch.cat((turned, x[..., n:]), dim=-1) if n < x.size(-1) else turned


class GPT(model.GPT):

    def __init__(self, config, classes):
        super().__init__(config, classes)
        if not config.positions:
            self.transformer.wpe.weight = None

    def pos_emb(self, step):
        return super().pos_emb(step) if self.config.positions else 0.0
