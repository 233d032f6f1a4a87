"""Each head's output is scaled by how far, how widely and how surely all heads look.

Source: github.com/tomhartke/transformer-modifications, attention_structure_alteration/head_output_scaling.

    f = [LN(mean score), LN(distance), LN(deviation)]    of the weights before dropout; each a vector of heads
    y_h *= 2 * sigmoid(MLP(f))_h                           MLP: 3 n_head -> 12 n_head -> n_head

Distance and deviation enter as log(1 + tokens); the source divides them by block_size (features='source'),
and its MLP starts at random. Here it starts at 0, like the baseline. detach and norm=False are ours: the
LayerNorms divide by how much heads differ, which is little at first, and so multiply what flows back into scores.

Claim: none; its README sees no change from the baseline, one seed.
Expect: nothing beyond seed noise. Without the kernel, scores and statistics are T x T in float32, and slow.
Control: `gated_attention`, a gate from the token itself; static=True, a constant for each head;
shuffle_stats=True.
Logged: `head_scale`; `distance`, in tokens.
"""
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn as nn

import model
from variants._moments import SmallMLP, attend_and_measure, deviation, shuffle_stats, source_units

NEUTRAL = {}


@dataclass
class GPTConfig(model.GPTConfig):
    features: Literal['log', 'source'] = 'log' # distances as log(1 + tokens), or in the source's units
    norm: bool = True                   # LayerNorm of each statistic over the heads, as in the source
    static: bool = False                # sham: a learned constant for each head instead
    detach: bool = False                # the loss does not reach attention through its statistics
    shuffle_stats: bool = False         # sham: the statistics of an earlier position, picked by its number


class CausalSelfAttention(model.CausalSelfAttention):

    def __init__(self, config, classes, layer):
        super().__init__(config, classes, layer)
        if config.static:
            self.scale = nn.Parameter(torch.zeros(config.n_head))
        else:
            self.ln_importance, self.ln_rel, self.ln_std = (
                classes.LayerNorm(config, config.n_head) if config.norm else nn.Identity() for _ in range(3))
            self.mlp_scale = SmallMLP(config, classes, 3 * config.n_head, config.n_head)

    def attend(self, q, k, v, x, pos_k, step):
        if self.config.static:
            y = super().attend(q, k, v, x, pos_k, step)
            z = self.scale[:, None] # (nh, 1)
        else:
            y, *stats = attend_and_measure(self, q, k, v, x, pos_k, step)
            z = self.mlp_scale(self.structure(*stats, step)).transpose(1, 2) # (B, nh, T)
        scale = 2 * torch.sigmoid(z)
        step.stat('head_scale', scale)
        return y * scale[..., None].to(y.dtype)

    # (B, nh, T) each -> (B, T, 3 nh)
    def structure(self, distance, variance, score, step):
        if self.config.features == 'log':
            rel, std = torch.log1p(distance), torch.log1p(deviation(variance))
        else:
            rel, std = source_units(distance, variance, self.config.block_size)
        rel, std, score = (t.transpose(1, 2) for t in (rel, std, score))
        f = torch.cat((self.ln_importance(score), self.ln_rel(rel), self.ln_std(std)), dim=-1)
        return shuffle_stats(f, self.layer, step) if self.config.shuffle_stats else f
