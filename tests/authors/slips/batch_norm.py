"""Normalises over the rows of the batch."""
import torch.nn as nn

import model


class LayerNorm(nn.Module):

    def __init__(self, config, ndim):
        super().__init__()
        self.norm = nn.BatchNorm1d(ndim, track_running_stats=False)

    def forward(self, x):
        return self.norm(x.flatten(0, 1)).view(x.shape)


class Block(model.Block):

    def __init__(self, config, classes, layer):
        super().__init__(config, classes, layer)
        self.ln_2 = LayerNorm(config, config.n_embd)
