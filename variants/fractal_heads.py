"""Heads of different sizes: the first is whole, the second is cut in 2, the third in 4; slices are heads.

Source: github.com/evintunador/fractal-head-attention.

    head i (0-based): split^i slices of its channels, q, k and v alike
    each slice attends alone; side by side, the slices make the head again

No slice is smaller than `smallest`, and sizes must divide: a head is cut as far as that allows. The source
divides all scores by the root of the whole head's size (fractal_scale='head'), so that small slices look at
everything almost evenly; here each slice has its own. One call of attention computes all slices of a size.

Claim: none; its author does "not expect this idea to perform that well".
Expect: nothing, or worse: slices of a few channels can say little about where to look. Each slice costs a
softmax row.
Control: the baseline at n_head of 3, 6, 12 and 24: mixed sizes must beat the best uniform one.
"""
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

import torch

import model
from configurator import Count
from core.nn.attention import Bias, Window

NEUTRAL = dict(split=1)


@dataclass
class GPTConfig(model.GPTConfig):
    split: Count = 2                    # head i is cut into split^i slices; 1: the baseline
    fractal_scale: Literal['own', 'head'] = 'own' # scores over the root of the slice's size, or the whole head's
    smallest: Count = 2                 # channels of the smallest slice


class CausalSelfAttention(model.CausalSelfAttention):

    def __init__(self, config, classes, layer):
        super().__init__(config, classes, layer)
        # slices of each head; once a cut is too fine, all finer ones are
        cuts, size = [1], self.n_embd // self.n_head
        while len(cuts) < self.n_head:
            finer = cuts[-1] * config.split
            cuts.append(finer if size % finer == 0 and size // finer >= config.smallest else cuts[-1])
        # (slices per head, number of heads cut like this)
        self.sizes = [(n, len(list(heads))) for n, heads in groupby(cuts)]

    def attend(self, q, k, v, x, pos_k, step):
        score_mod = self.score_mod(x, pos_k, step) # of whole heads
        first, ys = 0, []
        for n, heads in self.sizes:
            part = slice(first, first + heads)
            sliced = (slice_heads(z[:, part], n) for z in (q, k, v)) # (B, heads n, T, hs / n) each
            ys.append(self.attend_slices(*sliced, n, for_slices(score_mod, part, n), pos_k, step))
            first += heads
        return torch.cat(ys, dim=1) # (B, nh, T, hs)

    def attend_slices(self, q, k, v, n, score_mod, pos_k, step):
        """Returns whole heads (B, heads, T, hs) of attention by n slices each, (B, heads n, T, hs / n)."""
        if self.config.fractal_scale == 'head':
            q = q * n ** -0.5
        y = self.compute_attention(q, k, v, score_mod, pos_k, step) # (B, heads n, T, hs / n)
        return y.unflatten(1, (-1, n)).transpose(2, 3).flatten(-2) # (B, heads, T, hs)


def slice_heads(z, n):
    """Returns z (B, heads, T, hs) as (B, heads n, T, hs / n)."""
    return z.unflatten(-1, (n, -1)).transpose(2, 3).flatten(1, 2)


def for_slices(score_mod, part, n):
    """Returns a score_mod of all heads as one for n slices of each head in part, a slice object."""
    repeat = lambda z: z if z.size(1) == 1 else z[:, part].repeat_interleave(n, dim=1)
    if isinstance(score_mod, Bias):
        return Bias(repeat(score_mod.slope), repeat(score_mod.key))
    if isinstance(score_mod, Window):
        return Window(repeat(score_mod.width), score_mod.ramp)
    return score_mod and (lambda s, b, h, i, j: score_mod(s, b, part.start + h // n, i, j))
