"""Each head learns how far back it looks, the same for every query: soft_window with its query dependence taken out.

Source: a sham of github.com/tomhartke/transformer-modifications (soft window), a learned form of ALiBi (arXiv 2108.12409).

    w = 1 + window_init * exp(b_h)      per head, in tokens; b starts at 0
    score -= (pos_q - pos_k) / w

soft_window's claim is soft_window minus this. Logged: `window`, in tokens.
"""
import math
from dataclasses import dataclass

import torch
import torch.nn as nn

import model
from lab.attention import distance_bias
from lab.options import Positive

NEUTRAL = dict(window_init=1e12)


@dataclass
class GPTConfig(model.GPTConfig):
    window_init: Positive = 32.0        # attention span at initialization, in tokens


class CausalSelfAttention(model.CausalSelfAttention):

    def __init__(self, config, parts, layer):
        super().__init__(config, parts, layer)
        self.window = nn.Parameter(torch.zeros(config.n_head))

    def score_mod(self, x, pos_k, step):
        slope = torch.sigmoid(-self.window - math.log(self.config.window_init)) # 1 / w, (nh,)
        step.stat('window', 1 / slope)
        return distance_bias(slope[:, None].expand(x.size(0), -1, x.size(1)), step.pos, pos_k)
