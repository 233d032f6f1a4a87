"""Attention that may attend to nothing: softmax with a 1 added to its denominator, and a tril mask as a buffer."""
import math

import torch
import torch.nn.functional as F

import model


class CausalSelfAttention(model.CausalSelfAttention):

    def __init__(self, config, classes, layer):
        super().__init__(config, classes, layer)
        mask = torch.tril(torch.ones(config.block_size, config.block_size))
        self.register_buffer('mask', mask.view(1, 1, config.block_size, config.block_size))

    def attend(self, q, k, v, x, pos_k, step):
        T, Tk = q.size(2), k.size(2)
        att = (q @ k.transpose(-2, -1)) * (1.0 / math.sqrt(k.size(-1)))
        att = att.masked_fill(self.mask[:, :, Tk - T:Tk, :Tk] == 0, float('-inf'))
        # a key whose score is always 0, and whose value is 0
        att = F.softmax(F.pad(att, (1, 0)), dim=-1)[..., 1:]
        att = F.dropout(att, self.attn_dropout, self.training)
        return att @ v
