"""The MLP also reads how far and how widely the token's heads look.

Source: github.com/tomhartke/transformer-modifications,
attention_structure_alteration/autoregressive_relative_location.

    loc = LN([distance, deviation])              of the weights, before dropout: 2 n_head numbers a token
    mlp = W_2 gelu(W_1 LN(x) + W_loc loc)        W_loc starts at 0, like the baseline

Distance and deviation enter as log(1 + tokens). The source (features='source') divides them by block_size,
subtracts their mean over the row so far, and has a weight and a bias for each absolute position. Its MLP is
wider (wide_hidden=True), and it normalises the residual stream itself, post-norm, which confounds its result
(stream='post'). detach is ours.

Claim: 1.51 nats on Shakespeare where its baseline has 1.46 to 1.47, one seed each: worse.
Expect: nothing beyond seed noise.
Control: `canon`, which brings relative position cheaply; `wide_mlp`; shuffle_stats=True.
Logged: `distance`, in tokens.
"""
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn as nn

import model
from variants._moments import attend_and_measure, deviation, shuffle_stats, source_units

NEUTRAL = {}


@dataclass
class GPTConfig(model.GPTConfig):
    features: Literal['log', 'source'] = 'log' # log(1 + tokens), or centred over the row so far, weights by position
    stream: Literal['pre', 'post'] = 'pre' # post: the second LayerNorm replaces the residual stream, as in the source
    wide_hidden: bool = False           # 4 (n_embd + 2 n_head) hidden units in the MLP, as in the source; else 4 n_embd
    detach: bool = False                # the loss does not reach attention through its statistics
    shuffle_stats: bool = False         # sham: the statistics of an earlier position, picked by its number


class CausalSelfAttention(model.CausalSelfAttention):

    def __init__(self, config, classes, layer):
        super().__init__(config, classes, layer)
        # for distance and deviation, by absolute position
        if config.features == 'source':
            self.scale = nn.Parameter(torch.full((2, config.block_size), 4.0 * config.block_size))
            self.offset = nn.Parameter(torch.zeros(2, config.block_size))
            self.scale.no_decay = self.offset.no_decay = True

    def attend(self, q, k, v, x, pos_k, step):
        y, distance, variance, _ = attend_and_measure(self, q, k, v, x, pos_k, step)
        if self.config.features == 'log':
            loc = torch.cat((torch.log1p(distance), torch.log1p(deviation(variance))), dim=1)
            loc = loc.transpose(1, 2) # (B, T, 2 nh)
        else:
            units = source_units(distance, variance, self.config.block_size)
            loc = torch.cat([t.transpose(1, 2) for t in units], dim=-1) # (B, T, 2 nh)
            past, = step.extend(self.layer, loc=loc) # (B, Tk, 2 nh)
            count = torch.arange(1, past.size(1) + 1, device=loc.device)[:, None]
            loc = loc - (past.cumsum(1) / count)[:, -loc.size(1):]
            # weights by position, the same for all heads: (2, B, T) -> (B, T, 2 nh)
            by_head = lambda p: p[:, step.pos].permute(1, 2, 0).repeat_interleave(self.n_head, dim=-1)
            loc = loc * by_head(self.scale) + by_head(self.offset)
        if self.config.shuffle_stats:
            loc = shuffle_stats(loc, self.layer, step)
        step.shared['loc', self.layer] = loc
        return y


class MLP(model.MLP):

    def __init__(self, config, classes, layer):
        super().__init__(config, classes, layer)
        self.layer, n_loc, hidden = layer, 2 * config.n_head, 4 * config.n_embd
        if config.wide_hidden:
            hidden += 4 * n_loc
            self.c_fc = classes.Linear(config, config.n_embd, hidden)
            self.c_proj = classes.Linear(config, hidden, config.n_embd)
        self.ln_loc = classes.LayerNorm(config, n_loc)
        self.loc_fc = nn.Linear(n_loc, hidden, bias=False)
        self.loc_fc.weight.init = nn.init.zeros_

    def hidden(self, x, step):
        return super().hidden(x, step) + self.loc_fc(self.ln_loc(step.shared['loc', self.layer]))


class Block(model.Block):

    def attn_residual(self, x, step):
        x = super().attn_residual(x, step)
        return self.ln_2(x) if self.config.stream == 'post' else x

    def mlp_residual(self, x, step):
        if self.config.stream == 'pre':
            return super().mlp_residual(x, step)
        # x is normalised already
        return self.add(x, self.mlp_out(self.mlp(x, step), step))
