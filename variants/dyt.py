"""A pointwise S-shaped function stands in for every norm: nothing is averaged, outliers saturate.

Source: Dynamic Tanh (DyT), Zhu et al., "Transformers without Normalization", arXiv 2503.10622; Derf, arXiv
2512.10938; both as in github.com/zlab-princeton/Derf, a patch on nanoGPT.

    y = g * tanh(a x) + b          dyt_curve='erf' is Derf: g * erf(a x + s) + b
    x = c (tok + pos)              the stream's size matters now: c starts at sqrt(n_embd)

a, s and c are single numbers, g and b one per channel, b whatever bias says. a starts at 1 in nanoGPT; the
papers' LLaMA of 7B has dyt_attn_alpha=0.8 and 0.2 elsewhere, and less when wider.

Claim: the quality of norms; GPT-2 124M: 2.97 nats with DyT and 2.94 with Derf, where LayerNorm has 2.94.
Expect: worse where text is plenty, better where it is repeated (arXiv 2604.23434: -27 % perplexity on 1M
tokens, +19 % on 118M): it regularises. nanochat: negative, 10 % slower.
Control: the baseline, and both at another a; `scaled_embedding`, c without the rest.
"""
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn as nn

import model
from configurator import Positive

NEUTRAL = dict(dyt_curve='none')


@dataclass
class GPTConfig(model.GPTConfig):
    dyt_curve: Literal['tanh', 'erf', 'none'] = 'tanh' # DyT, Derf, or the baseline's norms
    dyt_attn_alpha: Positive = 1.0      # initial slope of the one before attention
    dyt_mlp_alpha: Positive = 1.0       # of the one before the MLP
    dyt_final_alpha: Positive = 1.0     # of the one before the logits


class LayerNorm(model.LayerNorm):

    def __init__(self, config, ndim):
        super().__init__(config, ndim)
        self.curve = config.dyt_curve
        if self.curve != 'none':
            self.bias = nn.Parameter(torch.zeros(ndim))
            self.alpha = nn.Parameter(torch.ones(1))
        if self.curve == 'erf':
            self.shift = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        if self.curve == 'none':
            return super().forward(x)
        y = torch.tanh(self.alpha * x) if self.curve == 'tanh' else torch.erf(self.alpha * x + self.shift)
        return self.weight * y + self.bias


class Block(model.Block):

    def __init__(self, config, classes, layer):
        super().__init__(config, classes, layer)
        if config.dyt_curve != 'none':
            nn.init.constant_(self.ln_1.alpha, config.dyt_attn_alpha)
            nn.init.constant_(self.ln_2.alpha, config.dyt_mlp_alpha)


class GPT(model.GPT):

    def __init__(self, config, classes):
        super().__init__(config, classes)
        if config.dyt_curve != 'none':
            nn.init.constant_(self.transformer.ln_f.alpha, config.dyt_final_alpha)
            self.shared_scale = nn.Parameter(torch.full((1,), config.n_embd ** 0.5))

    def embed(self, idx, step):
        x = super().embed(idx, step)
        return x if self.config.dyt_curve == 'none' else self.shared_scale * x
