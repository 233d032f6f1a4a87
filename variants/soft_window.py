"""Each query learns how far back its head looks: scores fall by 1/window for every token of distance.

Source: github.com/tomhartke/transformer-modifications, query_dependent_attention, soft window. It is ALiBi (arXiv 2108.12409)
with a slope that depends on the query, so `alibi` is its control.

    w = 1 + window_init * exp(W x)      per query and head, in tokens; W starts at 0
    score -= (pos_q - pos_k) / w

Expect a small gain at T=256 (the source says 1.457 against 1.46-1.47, one seed), most of which ALiBi has too. The source's own
form is window_init = block_size / 2. Logged: `window`, in tokens.
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
        self.window = parts.Linear(config, config.n_embd, config.n_head)
        self.window.weight.init = nn.init.zeros_

    def score_mod(self, x, pos_k, step):
        z = self.window(x).transpose(1, 2) # (B, nh, T)
        z = z.to(torch.promote_types(z.dtype, torch.float32)) + math.log(self.config.window_init)
        slope = torch.sigmoid(-z) # 1 / w, with a gradient where exp would overflow
        step.stat('window', 1 / slope)
        return distance_bias(slope, step.pos, pos_k)
