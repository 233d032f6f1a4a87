"""Heads come in sizes: the first is whole, the second is cut in 2, the third in 4, and every slice is a head of its own.

Source: github.com/evintunador/fractal-head-attention.

    head i (0-based): split^i slices of its channels, q, k and v alike; each attends alone, side by side they are the head again

Below `smallest` channels, or where a size does not divide, a head keeps the most cuts that are allowed. The source divides all
scores by the root of the whole head's size (fractal_scale='head'), so that small slices look at everything almost evenly; here each
has its own. All slices of one size are one call of attention.

Claim: none; its author does "not expect this idea to perform that well".
Expect: nothing, or worse: slices of a few channels can say little about where to look. It costs one softmax row a slice.
Control: the baseline at n_head of 3, 6, 12 and 24: mixed sizes must beat the best uniform one.
"""
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

import torch

import model
from configurator import Count

NEUTRAL = dict(split=1)


@dataclass
class GPTConfig(model.GPTConfig):
    split: Count = 2                    # head i is cut into split^i slices; 1: the baseline
    fractal_scale: Literal['own', 'head'] = 'own' # scores over the root of the slice's size, or the whole head's
    smallest: Count = 2                 # channels of the smallest slice


class CausalSelfAttention(model.CausalSelfAttention):

    def __init__(self, config, classes, layer):
        super().__init__(config, classes, layer)
        cuts, size = [1], self.n_embd // self.n_head
        while len(cuts) < self.n_head: # once a cut is refused, all smaller ones are
            finer = cuts[-1] * config.split
            cuts.append(finer if size % finer == 0 and size // finer >= config.smallest else cuts[-1])
        self.sizes = [(n, len(list(heads))) for n, heads in groupby(cuts)] # (slices a head, heads cut like this)

    def attend(self, q, k, v, x, pos_k, step):
        score_mod, form = self.score_mod(x, pos_k, step)
        first, ys = 0, []
        for n, heads in self.sizes:
            ys.append(self.attend_sliced(n, slice(first, first + heads), q, k, v, pos_k, score_mod, form, step))
            first += heads
        return torch.cat(ys, dim=1)

    def attend_sliced(self, n, heads, q, k, v, pos_k, score_mod, form, step):
        """Heads of one size, each in n slices; score_mod and form are those of the whole heads."""
        q, k, v = (z[:, heads].unflatten(-1, (n, -1)).transpose(2, 3).flatten(1, 2) for z in (q, k, v)) # (B, heads n, T, hs / n)
        if self.config.fractal_scale == 'head':
            q = q * n ** -0.5
        whole = score_mod and (lambda s, b, h, i, j: score_mod(s, b, heads.start + h // n, i, j))
        if form is not None:
            each = lambda z: z if isinstance(z, float) or z.size(1) == 1 else z[:, heads].repeat_interleave(n, dim=1)
            form = {name: each(z) for name, z in form.items()}
        y = model.attend(q, k, v, step.pos, pos_k, whole, form, self.config.attn, step.from_zero,
                         self.attn_dropout if self.training else 0.0)
        return y.unflatten(1, (-1, n)).transpose(2, 3).flatten(-2) # (B, heads, T, hs)
