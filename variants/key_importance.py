"""Every token says how important it is as a key, for all queries alike, in each head.

Source: github.com/tomhartke/transformer-modifications, model_residual_importance, a first try.

    score += (W x)_j      for the key's own token j; W starts at 0, like the baseline

The source carries the importance through n_head more channels of the residual stream, which the MLPs of
earlier layers write; here each layer reads it from its own input. (The source also replaces its residual
stream by a norm's output.)

Claim: none.
Expect: nothing beyond seed noise: a part that all queries share can say the same with ordinary keys.
Control: `forgetting`, where what lies between adds up; `soft_window`, where the query decides.
Logged: `importance`, its mean absolute value.
"""
import torch
import torch.nn as nn

import model
from core.nn.attention import Bias
from core.nn.numerics import wide

NEUTRAL = {}


class CausalSelfAttention(model.CausalSelfAttention):

    def __init__(self, config, classes, layer):
        super().__init__(config, classes, layer)
        self.importance = nn.Linear(config.n_embd, config.n_head, bias=False) # softmax would not see a bias
        self.importance.weight.init = nn.init.zeros_

    def score_mod(self, x, pos_k, step):
        z = wide(self.importance(x).transpose(1, 2)) # (B, nh, T)
        step.stat('importance', z.abs())
        all_z, = step.extend(self.layer, importance=z[..., None]) # (B, nh, Tk, 1), with those in the cache
        # a constant cancels in softmax, but would cost precision
        c = (all_z - all_z[..., :1, :]).squeeze(-1) # (B, nh, Tk)
        return Bias(torch.ones_like(z), c)
