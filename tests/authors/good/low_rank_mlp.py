"""The MLP's matrices are products of two thin ones."""
import torch.nn as nn

import model


class LowRank(nn.Module):

    def __init__(self, n_in, n_out, rank):
        super().__init__()
        self.down = nn.Linear(n_in, rank, bias=False)
        self.up = nn.Linear(rank, n_out, bias=False)

    def forward(self, x):
        return self.up(self.down(x))


class MLP(model.MLP):

    def __init__(self, config, classes, layer):
        super().__init__(config, classes, layer)
        rank = config.n_embd // 4
        self.c_fc = LowRank(config.n_embd, 4 * config.n_embd, rank)
        self.c_proj = LowRank(4 * config.n_embd, config.n_embd, rank)
