"""Attention's update of a token is gated and offset by how far and how widely the token's heads look.

Source: github.com/tomhartke/transformer-modifications,
attention_structure_alteration/embedding_based_on_attention.

    loc = [distance, deviation, position]        of the weights, before dropout: 2 n_head + 1 numbers a token
    x = x + attn * (1 + MLP_scale(loc)) + MLP_bias(loc);   x = x + mlp + MLP_loc(loc)

The numbers enter as log(1 + tokens); the source divides them by block_size (features='source'), and its three
MLPs start at random. Here they start at 0, like the baseline. detach, position and offsets are ours.

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
    detach: bool = False                # the loss does not reach attention through its statistics
    position: bool = True               # the position is among the numbers
    offsets: bool = True                # both offsets are there; False: the gate alone
    shuffle_stats: bool = False         # sham: the statistics of an earlier position, picked by its number


class CausalSelfAttention(model.CausalSelfAttention):

    def attend(self, q, k, v, x, pos_k, step):
        y, distance, variance, _ = attend_and_measure(self, q, k, v, x, pos_k, step)
        c, pos = self.config, step.pos[:, None].to(distance.dtype) # (B, 1, T)
        if c.features == 'log':
            loc = [torch.log1p(t) for t in (distance, deviation(variance), pos)]
        else:
            loc = [*source_units(distance, variance, c.block_size), self.n_head * pos / c.block_size]
        # the position is the last one
        loc = torch.cat(loc if c.position else loc[:2], dim=1).transpose(1, 2) # (B, T, 2 nh + 1 or 2 nh)
        if c.shuffle_stats:
            loc = shuffle_stats(loc, self.layer, step)
        step.shared['loc', self.layer] = loc
        return y


class Block(model.Block):

    def __init__(self, config, classes, layer):
        super().__init__(config, classes, layer)
        n_loc = 2 * config.n_head + config.position
        small_mlp = lambda: SmallMLP(config, classes, n_loc, config.n_embd)
        self.mlp_scale = small_mlp()
        if config.offsets:
            self.mlp_bias, self.mlp_loc = small_mlp(), small_mlp()

    def attn_out(self, y, step):
        loc = step.shared['loc', self.layer]
        gate = 1 + self.mlp_scale(loc)
        step.stat('gate', gate)
        return y * gate + self.mlp_bias(loc) if self.config.offsets else y * gate

    def mlp_out(self, y, step):
        return y + self.mlp_loc(step.shared['loc', self.layer]) if self.config.offsets else y
