"""Several residual streams that are mixed by doubly stochastic matrices, so that their mean is kept.

Source: Manifold-Constrained Hyper-Connections (mHC), DeepSeek, arXiv 2512.24880; computed as in DeepSeek-V4,
by github.com/huggingface/transformers, models/deepseek_v4.

    u = sum_s pre_s H_s;   H_k = sum_j R_jk H_j + post_k f(LN(u))       f: attention or the MLP
    pre = sigmoid(p);   post = 2 sigmoid(q);   R = Sinkhorn(r);   p, q, r = scale * W RMSNorm(H) + base

W reads all n streams of a token at once; Sinkhorn makes rows and columns sum to 1 in turn, mhc_sinkhorn
times. The last norm reads one more sum with sigmoid weights. Initial values are those of transformers: W of
0.02, base 0, scale 1; the paper has a scale of 0.01 and does not say the others. So streams start as copies
of the baseline's, and R near 1 / n, their mean.

Claim: 0.02 nats at 27B parameters, for 6.7 % more time.
Expect: nothing certain; at this size `hyper` needs no rescue, and mixing to the mean starts without its
variety.
Control: `hyper`, and its hyper_dynamic=False; the baseline for as long.
Logged: `stream_read`, pre; `stream_write`, post; `stream_stay`, the diagonal of R.
"""
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn as nn
import torch.nn.functional as F

import model
from configurator import Count, Positive, Whole
from core.nn.numerics import wide

NEUTRAL = dict(mhc_rate=0)
CLASHES = {other: 'it expects one residual stream' for other in ('mod', 'stt', 'sdt', 'surprise', 'bigram')}
EPS = 1e-6


@dataclass
class GPTConfig(model.GPTConfig):
    mhc_rate: Whole = 4                 # residual streams; 0: the baseline
    mhc_sinkhorn: Count = 20            # times that rows and columns are divided by their sums
    mhc_scale: Positive = 1.0           # initial scale of what depends on the token; the paper's is 0.01


def sinkhorn(r, times):
    """Returns exp(r) (..., n, n) with columns that sum to 1, and rows nearly."""
    r = r.softmax(-1) + EPS
    r = r / (r.sum(-2, keepdim=True) + EPS)
    for _ in range(times - 1):
        r = r / (r.sum(-1, keepdim=True) + EPS)
        r = r / (r.sum(-2, keepdim=True) + EPS)
    return r


class Coefficients(nn.Module):
    """Computes coefficients of a token from its streams (B, T, n, C), in groups of rows of n."""

    def __init__(self, config, *rows):
        super().__init__()
        n, C = config.mhc_rate, config.n_embd
        self.sizes = [count * n for count in rows]
        self.fn = nn.Parameter(torch.empty(sum(rows) * n, n * C))
        self.fn.init, self.fn.muon = partial(nn.init.normal_, std=0.02), False
        self.base = nn.Parameter(torch.zeros(sum(rows) * n))
        self.scale = nn.Parameter(torch.full((len(rows),), config.mhc_scale))

    def forward(self, h):
        z = h.flatten(2) # (B, T, n * C)
        z = F.rms_norm(z, z.shape[-1:], eps=EPS)
        y = wide(F.linear(z, self.fn)) # (B, T, sum(rows) * n)
        groups = zip(self.scale, y.split(self.sizes, dim=-1), self.base.split(self.sizes), strict=True)
        return [scale * y + base for scale, y, base in groups]


class Connection(Coefficients):
    """Reads a sublayer's input from the streams (B, T, n, C), and mixes them."""

    def __init__(self, config):
        # to read, to write, and to mix
        super().__init__(config, 1, 1, config.mhc_rate)
        self.times = config.mhc_sinkhorn

    def forward(self, h, step):
        """Returns the sublayer's input (B, T, C), the mixed streams, and its output's weights (B, T, n)."""
        n = h.size(2)
        pre, post, r = super().forward(h)
        pre, post = torch.sigmoid(pre) + EPS, 2 * torch.sigmoid(post)
        r = sinkhorn(r.unflatten(-1, (n, n)), self.times)
        step.stat('stream_read', pre)
        step.stat('stream_write', post)
        step.stat('stream_stay', r.diagonal(dim1=-2, dim2=-1))
        # not matrix products, which autocast would round to half precision
        return (pre[..., None] * h).sum(2), (r[..., None] * h[..., None, :]).sum(2), post


class Block(model.Block):

    def __init__(self, config, classes, layer):
        super().__init__(config, classes, layer)
        if config.mhc_rate:
            self.hc_attn, self.hc_mlp = Connection(config), Connection(config)

    # x: the streams (B, T, n, C)
    def attn_residual(self, x, step):
        if not self.config.mhc_rate:
            return super().attn_residual(x, step)
        u, x, post = self.hc_attn(x, step)
        y = self.attn_out(self.attn(self.ln_1(u), step), step)
        return self.add(x, post[..., None] * y[:, :, None])

    def mlp_residual(self, x, step):
        if not self.config.mhc_rate:
            return super().mlp_residual(x, step)
        u, x, post = self.hc_mlp(x, step)
        y = self.mlp_out(self.mlp(self.ln_2(u), step), step)
        return self.add(x, post[..., None] * y[:, :, None])


class GPT(model.GPT):

    def __init__(self, config, classes):
        super().__init__(config, classes)
        if config.mhc_rate:
            self.hc_head = Coefficients(config, 1)

    def widen(self, x, step):
        n = self.config.mhc_rate
        return x[:, :, None].expand(-1, -1, n, -1) if n else x

    def narrow(self, x, step):
        if not self.config.mhc_rate:
            return x
        pre, = self.hc_head(x)
        return ((torch.sigmoid(pre) + EPS)[..., None] * x).sum(2)
