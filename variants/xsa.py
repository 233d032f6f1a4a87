"""What a head returns for a token loses its component along that token's own value.

Source: exclusive self attention, arXiv 2603.09078; no code of the authors. As in
github.com/openai/parameter-golf (records of March 2026); with a gate: github.com/qlabs-eng/slowrun.

    y = y - g (y . v) v / |v|^2      v: the token's own value in this head; g: 1, or tanh(a), a number a head

a starts at 0, so that xsa_form='gated' starts like the baseline. The token's own key stays in the softmax.
With g = 1 the first token, which sees itself alone, gets no update from attention.

Claim: better at 0.7B, 1.4B and 2.7B parameters on 100B tokens, by 1.36 points in the mean of 8 tasks at 2.7B;
more so in long contexts.
Expect: a small gain a step: the residual stream has the token already. nanochat: better a step, not a second.
Control: xsa_form='gated', which shows whether training wants it; `gated_attention`.
Logged: `exclusion`, g.
"""
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn as nn
import torch.nn.functional as F

import model
from core.nn.numerics import wide

NEUTRAL = dict(xsa_form='none')


@dataclass
class GPTConfig(model.GPTConfig):
    xsa_form: Literal['plain', 'gated', 'none'] = 'plain' # all of it, a learned share, or the baseline


class CausalSelfAttention(model.CausalSelfAttention):

    def __init__(self, config, classes, layer):
        super().__init__(config, classes, layer)
        if config.xsa_form == 'gated':
            self.xsa_alpha = nn.Parameter(torch.zeros(config.n_head))

    def attend(self, q, k, v, x, pos_k, step):
        y = super().attend(q, k, v, x, pos_k, step) # (B, nh, T, hs)
        if self.config.xsa_form == 'none':
            return y
        # the last T of Tk values are those of this pass
        own = F.normalize(wide(v[:, :, -q.size(2):]), dim=-1, eps=1e-12)
        along = (y * own).sum(-1, keepdim=True) * own
        if self.config.xsa_form == 'gated':
            gate = torch.tanh(self.xsa_alpha)
            step.stat('exclusion', gate)
            along = along * gate[:, None, None]
        return y - along
