"""The MLP's hidden units are products of a gate and a linear unit.

Source: GLU Variants Improve Transformer, Shazeer, arXiv 2002.05202.

    mlp = W_proj (gate(W_gate x) * W_up x)    hidden: 8/3 n_embd, a multiple of 8; c_fc is W_gate, then W_up

glu_gate='silu' is SwiGLU (Llama), 'gelu' GeGLU (Gemma, Grok), 'relu' ReGLU. 8/3 instead of 4 n_embd keeps the
number of parameters.

Claim: log-perplexity 1.944 (SwiGLU) and 1.942 (GeGLU) against 1.997 for ReLU, T5-base after 65,536 steps at
equal parameters.
Expect: a small gain, near seed noise on a million characters; nanochat measured it worse than ReLU^2.
Control: `relu2`, which also makes units quadratic, without a gate; `wide_mlp`.
"""
from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F

import model
from configurator import Positive

NEUTRAL = dict(glu_gate='none')
CLASHES = {'relu2': 'each has its own nonlinearity in the MLP',
           'wide_mlp': 'each has its own width of the MLP; see glu_ratio',
           'relative_location': 'it adds to the units of an MLP without gates'}
GATES = dict(silu=F.silu, gelu=F.gelu, relu=F.relu)


@dataclass
class GPTConfig(model.GPTConfig):
    glu_gate: Literal['silu', 'gelu', 'relu', 'none'] = 'silu' # the gate's nonlinearity; none: the baseline's MLP
    glu_ratio: Positive = 8 / 3         # hidden units over n_embd, rounded to a multiple of 8


class MLP(model.MLP):

    def __init__(self, config, classes, layer):
        super().__init__(config, classes, layer)
        self.gate = GATES.get(config.glu_gate)
        if self.gate:
            hidden = max(1, round(config.glu_ratio * config.n_embd / 8)) * 8
            self.c_fc = classes.Linear(config, config.n_embd, 2 * hidden)
            self.c_proj = classes.Linear(config, hidden, config.n_embd)

    def forward(self, x, step):
        if self.gate is None:
            return super().forward(x, step)
        gate, up = self.hidden(x, step).chunk(2, dim=-1) # (B, T, hidden) each
        return self.dropout(self.c_proj(self.gate(gate) * up))
