"""A learned temperature for each head."""
import torch
import torch.nn as nn

import model

NEUTRAL = {}


class CausalSelfAttention(model.CausalSelfAttention):

    def __init__(self, config, classes, layer):
        super().__init__(config, classes, layer)
        self.log_temperature = nn.Parameter(torch.zeros(config.n_head, 1, 1))

    def norm_qk(self, q, k):
        return q * torch.exp(-self.log_temperature), k
