"""A scaled block, with a print left over from debugging."""
import torch
import torch.nn as nn

import model


class Block(model.Block):

    def __init__(self, config, classes, layer):
        super().__init__(config, classes, layer)
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x, step):
        print('block', self.layer, x.shape)
        return x + self.scale * (super().forward(x, step) - x)
