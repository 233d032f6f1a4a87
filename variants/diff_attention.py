"""Each head subtracts a second softmax map from its first, so that noise common to both cancels.

Source: Differential Transformer, Ye et al., arXiv 2410.05258; github.com/microsoft/unilm, Diff-Transformer.

    y_h = (1 - lambda_init) RMSNorm((A_1 - lambda A_2) v),    A_i = softmax(q_i k_i / sqrt(hs / 2))
    lambda = exp(l_q1 . l_k1) - exp(l_q2 . l_k2) + lambda_init,   lambda_init = 0.8 - 0.6 exp(-0.3 layer)

q_1, q_2 and k_1, k_2 are the halves of the head's query and key, v its whole value. The l, of hs / 2 channels
each and N(0, 0.1) at first, are the layer's, as is the norm's weight of hs. The paper has half as many heads
as its baseline, n_head=3 for 6, so that the maps keep the baseline's head size.

Claim: the baseline's loss with 65 % of its parameters or training tokens.
Expect: no gain at this scale that seed noise would not hide: nanochat closed its pull request for it.
Control: diff_lambda='fixed'; 'fixed' with lambda_init=0, the norm without a difference. Parameters and FLOPs
are nearly the baseline's.
Logged: `lambda`.
"""
import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn as nn

import model
from configurator import Share, Stop
from core.nn.numerics import wide

NEUTRAL = dict(diff_lambda='off')


@dataclass
class GPTConfig(model.GPTConfig):
    diff_lambda: Literal['learned', 'fixed', 'off'] = 'learned' # fixed: stays lambda_init; off: the baseline
    lambda_init: Share | None = None    # lambda at first; None: by layer, 0.2, 0.36, 0.47 and on to 0.8

    def __post_init__(self):
        super().__post_init__()
        if self.diff_lambda != 'off' and self.n_embd // self.n_head % 2:
            raise Stop(f'n_head={self.n_head}: must divide n_embd={self.n_embd} into heads of even width')


class CausalSelfAttention(model.CausalSelfAttention):

    def __init__(self, config, classes, layer):
        super().__init__(config, classes, layer)
        hs = config.n_embd // config.n_head
        by_layer = 0.8 - 0.6 * math.exp(-0.3 * layer)
        self.lambda_init = by_layer if config.lambda_init is None else config.lambda_init
        if config.diff_lambda == 'learned':
            # l_q1 and l_q2, then l_k1 and l_k2: vectors, so they do not decay
            self.lambda_qk = nn.Parameter(torch.empty(2, 2, hs // 2))
            self.lambda_qk.init = lambda p: nn.init.normal_(p, std=0.1)
            self.lambda_qk.no_decay = True
        if config.diff_lambda != 'off':
            self.head_norm = nn.Parameter(torch.ones(hs))

    # as the baseline's, but halves of queries and keys are heads of their own until attend() pairs them
    def forward(self, x, step):
        if self.config.diff_lambda == 'off':
            return super().forward(x, step)
        q, k, v = self.qkv(x)
        q, k = halves(q), halves(k) # (B, 2 nh, T, hs / 2)
        q, k = self.norm_qk(q, k)
        q, k = self.rotate_qk(q, k, step)
        v = self.values(v, x, step) # (B, nh, T, hs)

        k, v, pos_k = step.extend(self.layer, k=k, v=v, pos=step.pos)
        groups = self.n_head // v.size(1)
        k, v = (z if groups == 1 else z.repeat_interleave(groups, dim=1) for z in (k, v))

        y = self.attend(q, k, v, x, pos_k, step) # (B, nh, T, hs)
        y = y.transpose(1, 2).flatten(2) # (B, T, C)
        return self.resid_dropout(self.c_proj(y))

    def attend(self, q, k, v, x, pos_k, step):
        if self.config.diff_lambda == 'off':
            return super().attend(q, k, v, x, pos_k, step)
        score_mod, weight = self.score_mod(x, pos_k, step), self.weight_of_second(step)
        first, second = (self.compute_attention(q[:, i::2], k[:, i::2], v, score_mod, pos_k, step)
                         for i in (0, 1)) # (B, nh, T, hs) each
        return self.norm_heads(wide(first) - weight * wide(second)).to(v.dtype)

    # differences (B, nh, T, hs) with a length of their own, smaller in later layers
    def norm_heads(self, y):
        y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + 1e-5) * self.head_norm
        return (1 - self.lambda_init) * y

    # lambda, a number
    def weight_of_second(self, step):
        if self.config.diff_lambda == 'fixed':
            return self.lambda_init
        l_q, l_k = self.lambda_qk # (2, hs / 2) each
        first, second = (l_q * l_k).sum(-1).exp()
        weight = first - second + self.lambda_init
        step.stat('lambda', weight)
        return weight


def halves(z):
    """Returns (B, 2 n, T, hs / 2), the halves of each head of z (B, n, T, hs) side by side."""
    return z.unflatten(-1, (2, -1)).transpose(2, 3).flatten(1, 2)
