"""Heads look back in strides: each sees the same number of tokens, every one, every second or every fourth.

Source: proposed as future work in github.com/tomhartke/transformer-modifications; the pattern is the strided
attention of Sparse Transformers (arXiv 1904.10509) and the dilated attention of LongNet (arXiv 2307.02486),
with a stride for each head.

    r = stride^(h % levels),   distance = pos_q - pos_k
    a key is seen where distance is a multiple of r, and distance / r < keys

Tokens a multiple of r apart form r rows of T / r tokens, and in each row this is a sliding window: one call
of attention for each stride.

Claim: none, the source did not try it.
Expect: slightly worse than full attention at 256 tokens. The aim is reach with a fixed number of keys, for
long contexts.
Control: stride=1 with the same keys; `sliding_window`.
"""
from dataclasses import dataclass

import torch
import torch.nn.functional as F

import model
from configurator import Count, Stop
from core.nn.attention import attend, local_attention
from core.nn.layers import in_every_nth

NEUTRAL = dict(stride=1, keys=10 ** 9)


@dataclass
class GPTConfig(model.GPTConfig):
    stride: Count = 2                   # ratio of a level's stride to that of the level before
    levels: Count = 3                   # how many strides there are; head h has level h % levels
    keys: Count = 64                    # tokens that each head sees, the query's own included
    every: Count = 1                    # variant in every n-th layer

    def __post_init__(self):
        super().__post_init__()
        longest = self.stride ** (min(self.levels, self.n_head) - 1)
        if longest > self.block_size:
            raise Stop(f'stride={self.stride}: with levels={self.levels} the longest is {longest}, '
                       f'and must not be above block_size={self.block_size}')


class CausalSelfAttention(model.CausalSelfAttention):

    def __init__(self, config, classes, layer):
        super().__init__(config, classes, layer)
        self.strided = in_every_nth(layer, config.every)

    def score_mod(self, x, pos_k, step):
        if not self.strided:
            return super().score_mod(x, pos_k, step)
        c, pos_q = self.config, step.pos
        r = c.stride ** (torch.arange(self.n_head, device=x.device) % c.levels) # (nh,)

        def f(s, b, h, i, j):
            distance, r_h = pos_q[b, i] - pos_k[b, j], r[h]
            return torch.where((distance % r_h == 0) & (distance < c.keys * r_h), s, float('-inf'))
        return f

    def attend(self, q, k, v, x, pos_k, step):
        c = self.config
        if not self.strided or c.attn in ('math', 'flex'):
            return super().attend(q, k, v, x, pos_k, step)
        dropout = self.attn_dropout if self.training else 0.0
        if not step.from_zero:
            return attend(q, k, v, step.pos, pos_k, self.score_mod(x, pos_k, step), dropout=dropout)
        y = torch.empty_like(v)
        for level in range(min(c.levels, self.n_head)):
            heads, r = slice(level, None, c.levels), c.stride ** level
            rows = (split_rows(z[:, heads], r) for z in (q, k, v)) # (B * r, heads, T / r, hs) each
            y[:, heads] = merge_rows(local_attention(*rows, c.keys, dropout), r, q.size(2))
        return y


def split_rows(z, r):
    """Returns z (B, nh, T, hs) as rows of positions r apart, (B * r, nh, T / r, hs); T is padded."""
    z = F.pad(z, (0, 0, 0, -z.size(2) % r)).unflatten(2, (-1, r)) # (B, nh, T / r, r, hs)
    return z.permute(0, 3, 1, 2, 4).flatten(0, 1)


def merge_rows(y, r, T):
    """Returns what split_rows() made of a tensor as (B, nh, T, hs) again, without the padding."""
    return y.unflatten(0, (-1, r)).permute(0, 2, 3, 1, 4).flatten(2, 3)[:, :, :T]
