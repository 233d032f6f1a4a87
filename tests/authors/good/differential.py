"""Differential attention (arXiv 2410.05258): the difference of two softmaxes, with values twice as wide."""
import torch
import torch.nn as nn

import model


class CausalSelfAttention(model.CausalSelfAttention):

    def __init__(self, config, classes, layer):
        super().__init__(config, classes, layer)
        head_dim = config.n_embd // config.n_head // 2
        self.lambda_init = 0.8
        self.lambda_q = nn.Parameter(torch.randn(2, head_dim) * 0.1)
        self.lambda_k = nn.Parameter(torch.randn(2, head_dim) * 0.1)
        self.norm = nn.RMSNorm(2 * head_dim, eps=1e-5)

    def attend(self, q, k, v, x, pos_k, step):
        q1, q2 = q.chunk(2, dim=-1)
        k1, k2 = k.chunk(2, dim=-1)
        # v is as wide as two of the small heads
        y1 = self.compute_attention(q1, k1, v, None, pos_k, step)
        y2 = self.compute_attention(q2, k2, v, None, pos_k, step)
        lam = (self.lambda_q * self.lambda_k).sum(-1).exp()
        y = y1 - (lam[0] - lam[1] + self.lambda_init) * y2
        return self.norm(y) * (1 - self.lambda_init)
