"""Switch-style mixture of experts: each token goes to the best of four small MLPs, with a load-balancing loss."""
import torch
import torch.nn as nn
import torch.nn.functional as F

import model

N_EXPERTS = 4


class MLP(model.MLP):

    def __init__(self, config, classes, layer):
        nn.Module.__init__(self)
        self.router = nn.Linear(config.n_embd, N_EXPERTS, bias=False)
        self.experts = nn.ModuleList([
            nn.Sequential(nn.Linear(config.n_embd, 2 * config.n_embd), nn.GELU(),
                          nn.Linear(2 * config.n_embd, config.n_embd))
            for _ in range(N_EXPERTS)])
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x, step):
        probs = self.router(x).softmax(dim=-1)
        best, index = probs.max(dim=-1)
        chosen = F.one_hot(index, N_EXPERTS).to(x.dtype)
        # every expert sees every token: simple, and dense
        outs = torch.stack([expert(x) for expert in self.experts], dim=-1)
        y = (outs * chosen[:, :, None]).sum(-1) * best[..., None]
        step.loss('balance', 0.01 * N_EXPERTS * (chosen.mean((0, 1)) * probs.mean((0, 1))).sum())
        return self.dropout(y)
