"""Each head learns how far back it looks, the same for every query.

Source: a sham for github.com/tomhartke/transformer-modifications (soft window), without its dependence on the
query; a learned form of ALiBi (arXiv 2108.12409).

    w = 1 + window_init * exp(b_h)      per head, in tokens; b starts at 0
    score -= (pos_q - pos_k) / w

Claim: none, it is a control: the dependence on the query is worth what `soft_window` gains over this.
Expect: about the loss of `soft_window`.
Control: `alibi`, whose slopes are not learned.
Logged: `window`, in tokens.
"""
import math
from dataclasses import dataclass

import torch
import torch.nn as nn

import model
from configurator import Count, Positive
from core.nn.attention import distance_bias
from core.nn.layers import in_every_nth

NEUTRAL = dict(window_init=1e12)


@dataclass
class GPTConfig(model.GPTConfig):
    window_init: Positive = 32.0        # attention span at initialization, in tokens
    every: Count = 1                    # variant in every n-th layer


class CausalSelfAttention(model.CausalSelfAttention):

    def __init__(self, config, classes, layer):
        super().__init__(config, classes, layer)
        self.window = nn.Parameter(torch.zeros(config.n_head)) if in_every_nth(layer, config.every) else None

    def score_mod(self, x, pos_k, step):
        if self.window is None:
            return super().score_mod(x, pos_k, step)
        slope = torch.sigmoid(-self.window - math.log(self.config.window_init)) # 1 / w, (nh,)
        step.stat('window', 1 / slope)
        return distance_bias(slope[:, None].expand(x.size(0), -1, x.size(1)), pos_k)
