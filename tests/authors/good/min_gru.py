"""minGRU in place of attention: h = (1 - z) h + z h~, both from the input alone (arXiv 2410.01201)."""
import torch
import torch.nn as nn

import model


class CausalSelfAttention(model.CausalSelfAttention):

    def __init__(self, config, classes, layer):
        nn.Module.__init__(self)
        self.layer = layer
        self.gate = classes.Linear(config, config.n_embd, config.n_embd)
        self.candidate = classes.Linear(config, config.n_embd, config.n_embd)
        self.c_proj = classes.Linear(config, config.n_embd, config.n_embd)

    def forward(self, x, step):
        z = torch.sigmoid(self.gate(x))
        new = z * self.candidate(x)
        h = step.state(self.layer, 'h', torch.zeros_like(x[:, 0]))
        out = []
        for t in range(x.size(1)):
            h = (1 - z[:, t]) * h + new[:, t]
            out.append(h)
        step.set_state(self.layer, 'h', h)
        return self.c_proj(torch.stack(out, dim=1))
