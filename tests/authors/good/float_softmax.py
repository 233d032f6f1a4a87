"""Scores by cosine similarity with a learned scale, the softmax computed in float32."""
import torch
import torch.nn as nn
import torch.nn.functional as F

import model


class CausalSelfAttention(model.CausalSelfAttention):

    def __init__(self, config, classes, layer):
        super().__init__(config, classes, layer)
        self.scale = nn.Parameter(torch.full((config.n_head, 1, 1), 10.0))

    def attend(self, q, k, v, x, pos_k, step):
        q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
        att = self.scale * (q @ k.transpose(-2, -1))
        future = pos_k[:, None, None, :] > step.pos[:, None, :, None]
        att = att.float().masked_fill(future, float('-inf')).softmax(dim=-1).type_as(q)
        return att @ v
