"""A norm on the output of each head, before the heads are mixed."""
import torch.nn as nn

import model


class CausalSelfAttention(model.CausalSelfAttention):

    def __init__(self, config, classes, layer):
        super().__init__(config, classes, layer)
        self.head_norm = nn.LayerNorm(config.n_embd // config.n_head)

    def attend(self, q, k, v, x, pos_k, step):
        return self.head_norm(super().attend(q, k, v, x, pos_k, step))
