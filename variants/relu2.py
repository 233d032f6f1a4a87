"""The MLP's units are squared ReLUs.

Source: Primer, So et al., arXiv 2109.08668; the default of github.com/karpathy/nanochat and modded-nanogpt.

    hidden = relu(W x)^relu_power

relu_power=1 is plain ReLU; 0 is the baseline's GELU.

Claim: one of the two changes (with convolutions after q, k and v) by which Primer trains to the Transformer's
quality in up to 4 times less compute.
Expect: a small gain, at no cost; on a million characters within seed noise.
Control: relu_power=1; `glu`.
"""
from dataclasses import dataclass

import torch.nn as nn

import model
from configurator import Whole

NEUTRAL = dict(relu_power=0)


@dataclass
class GPTConfig(model.GPTConfig):
    relu_power: Whole = 2               # 2 is squared ReLU, 1 ReLU, 0 the baseline's GELU


class PowerReLU(nn.Module):
    """relu(x)^power."""

    def __init__(self, power):
        super().__init__()
        self.power = power

    def forward(self, x):
        return x.relu() ** self.power


class MLP(model.MLP):

    def __init__(self, config, classes, layer):
        super().__init__(config, classes, layer)
        if config.relu_power:
            self.gelu = PowerReLU(config.relu_power)
