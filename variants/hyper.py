"""Several residual streams: each sublayer reads a learned mixture of them and writes to all of them.

Source: Hyper-Connections, Zhu et al., arXiv 2409.19606, Algorithms 2 and 3; with hyper_norm='rms':
github.com/lucidrains/hyper-connections.

    u = sum_s a_s0 H_s;   H_m = sum_s a_sm H_s + b_m f(LN(u))           m = 1 .. n; f: attention or the MLP
    a_s = A_s + s_a tanh(LN(H_s) W_a);   b_s = B_s + s_b tanh(LN(H_s) . w_b)        A_s, a_s: n + 1 numbers

All streams start as the embedding, and their sum goes to the last norm. At first sublayer k reads stream k
mod n and writes to all alike (A_m = e_k, A_r = 1, B = 1, W_a = w_b = 0, s = 0.01): n times the baseline,
which the last norm undoes. The paper also divides c_proj's initial values by sqrt(n).

Claim: converges 1.8 times faster (a mixture of experts of 7B parameters, n = 4, 500B tokens).
Expect: nothing certain; modded-nanogpt saw no faster convergence. n = 1 is worse than the baseline, in the
paper too.
Control: hyper_dynamic=False, mixtures that do not depend on the token; `mhc`; the baseline for as long.
"""
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn as nn
import torch.nn.functional as F

import model
from configurator import Whole

NEUTRAL = dict(hyper_rate=0)
CLASHES = {other: 'it expects one residual stream' for other in ('mod', 'stt', 'sdt', 'surprise', 'bigram')}


@dataclass
class GPTConfig(model.GPTConfig):
    hyper_rate: Whole = 4               # residual streams; 0: the baseline
    hyper_dynamic: bool = True          # mixtures depend on the token
    hyper_norm: Literal['layer', 'rms'] = 'layer' # the norm before W; rms has a learned weight
    hyper_tanh: bool = True             # bound what depends on the token


class HyperConnection(nn.Module):
    """Reads a sublayer's input from the streams (B, T, n, C), and mixes them."""

    def __init__(self, config, sublayer):
        super().__init__()
        self.config, n, C = config, config.hyper_rate, config.n_embd
        read = F.one_hot(torch.tensor(sublayer % n), n)[:, None].float() # (n, 1)
        self.static_alpha = nn.Parameter(torch.cat((read, torch.eye(n)), dim=1)) # (n, n + 1)
        self.static_alpha.no_decay, self.static_alpha.muon = True, False
        self.static_beta = nn.Parameter(torch.ones(n))
        if config.hyper_dynamic:
            self.dynamic_alpha_fn = nn.Parameter(torch.zeros(C, n + 1))
            self.dynamic_alpha_fn.muon = False
            self.dynamic_beta_fn = nn.Parameter(torch.zeros(C))
            self.dynamic_scale = nn.Parameter(torch.full((2,), 0.01))
            if config.hyper_norm == 'rms':
                self.gamma = nn.Parameter(torch.zeros(C))

    def forward(self, h):
        """Returns the sublayer's input (B, T, C), the mixed streams, and its output's weights (..., n)."""
        alpha, beta = self.static_alpha, self.static_beta
        if self.config.hyper_dynamic:
            x = self.norm(h)
            bound = torch.tanh if self.config.hyper_tanh else nn.Identity()
            alpha_scale, beta_scale = self.dynamic_scale
            alpha = alpha + alpha_scale * bound(x @ self.dynamic_alpha_fn) # (B, T, n, n + 1)
            beta = beta + beta_scale * bound(x @ self.dynamic_beta_fn) # (B, T, n)
        # not a matrix product, which autocast would round to half precision
        mixed = (alpha[..., None] * h[..., None, :]).sum(2) # (B, T, n + 1, C)
        return mixed[:, :, 0], mixed[:, :, 1:], beta

    def norm(self, h):
        C = h.size(-1)
        if self.config.hyper_norm == 'layer':
            return F.layer_norm(h, (C,))
        return F.normalize(h, dim=-1) * C ** 0.5 * (1 + self.gamma)


class Block(model.Block):

    def __init__(self, config, classes, layer):
        super().__init__(config, classes, layer)
        if config.hyper_rate:
            self.hc_attn = HyperConnection(config, 2 * layer)
            self.hc_mlp = HyperConnection(config, 2 * layer + 1)

    # x: the streams (B, T, n, C)
    def attn_residual(self, x, step):
        if not self.config.hyper_rate:
            return super().attn_residual(x, step)
        u, x, beta = self.hc_attn(x)
        y = self.attn_out(self.attn(self.ln_1(u), step), step)
        return self.add(x, beta[..., None] * y[:, :, None])

    def mlp_residual(self, x, step):
        if not self.config.hyper_rate:
            return super().mlp_residual(x, step)
        u, x, beta = self.hc_mlp(x)
        y = self.mlp_out(self.mlp(self.ln_2(u), step), step)
        return self.add(x, beta[..., None] * y[:, :, None])


class GPT(model.GPT):

    def widen(self, x, step):
        n = self.config.hyper_rate
        return x[:, :, None].expand(-1, -1, n, -1) if n else x

    def narrow(self, x, step):
        return x.sum(2) if self.config.hyper_rate else x
