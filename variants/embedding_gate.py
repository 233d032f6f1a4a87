"""Attention's update of a token is gated and offset by how far and how widely the token's heads look.

Source: github.com/tomhartke/transformer-modifications,
attention_structure_alteration/embedding_based_on_attention.

    loc = [distance, deviation, position]        of the weights, before dropout: 2 n_head + 1 numbers a token
    x = x + attn * (1 + MLP_scale(loc)) + MLP_bias(loc);   x = x + mlp + MLP_loc(loc)

The numbers enter as log(1 + tokens); the source divides them by block_size (features='source'), and its three
MLPs start at random. Here they start at 0, like the baseline.

Claim: none; its README sees no change from the baseline, one seed.
Expect: nothing beyond seed noise; the position features let it learn another position embedding in every
layer.
Control: `gated_attention` and `value_residual`; shuffle_stats=True.
Logged: `gate`, the mean of 1 + MLP_scale; `distance`, in tokens.
"""
from dataclasses import dataclass
from typing import Literal

import torch

import model
from variants._moments import SmallMLP, attend_and_measure, deviation, shuffle_stats, source_units

NEUTRAL = {}


@dataclass
class GPTConfig(model.GPTConfig):
    features: Literal['log', 'source'] = 'log' # distances and position as log(1 + tokens), or in the source's units
    shuffle_stats: bool = False         # sham: the statistics of an earlier position, picked by its number


class CausalSelfAttention(model.CausalSelfAttention):

    def attend(self, q, k, v, x, pos_k, step):
        y, distance, variance, _ = attend_and_measure(self, q, k, v, x, pos_k, step)
        pos = step.pos[:, None].to(distance.dtype) # (B, 1, T)
        if self.config.features == 'log':
            loc = [torch.log1p(t) for t in (distance, deviation(variance), pos)]
        else:
            size = self.config.block_size
            loc = [*source_units(distance, variance, size), self.n_head * pos / size]
        loc = torch.cat(loc, dim=1).transpose(1, 2) # (B, T, 2 nh + 1)
        if self.config.shuffle_stats:
            loc = shuffle_stats(loc, self.layer, step)
        step.shared['loc', self.layer] = loc
        return y


class Block(model.Block):

    def __init__(self, config, classes, layer):
        super().__init__(config, classes, layer)
        self.mlp_scale, self.mlp_bias, self.mlp_loc = (
            SmallMLP(config, classes, 2 * config.n_head + 1, config.n_embd) for _ in range(3))

    def attn_out(self, y, step):
        loc = step.shared['loc', self.layer]
        gate = 1 + self.mlp_scale(loc)
        step.stat('gate', gate)
        return y * gate + self.mlp_bias(loc)

    def mlp_out(self, y, step):
        return y + self.mlp_loc(step.shared['loc', self.layer])
