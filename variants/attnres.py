"""Attention over depth in place of residual sums: each sublayer reads a weighted mean of all earlier outputs.

Source: Attention Residuals, Kimi team, arXiv 2603.15031; github.com/MoonshotAI/Attention-Residuals
(pseudo-code).

    h_l = sum_i a_li v_i,   a_li = softmax over i of w_l . RMSNorm(v_i)      v_0: the embedding
    v_l = f_l(LN(h_l))                  f_l: attention or the MLP; w_l: learned, of n_embd numbers

The last norm reads one more such mean. That is the full form, attnres_size=1; in the block form each source
is the sum of so many sublayers in a row; the paper has about 8 sources, which at 6 layers is the default of
2. w starts at 0: plain means, which norms make equal to the residual sum; here not quite, because the means
are small and norms add 1e-5.

Claim: the loss of 1.25 times the compute; at 194M parameters 1.931 nats becomes 1.899 (full) or 1.909
(block).
Expect: nothing certain; public ports disagree, and none does what the paper says.
Control: the baseline; `x0`, which brings back the embedding alone; `hyper`, several streams.
Logged: `embedding_share`, the embedding's weight in each mean after the first.
"""
from dataclasses import dataclass

import torch
import torch.nn as nn

import model
from configurator import Whole
from core.nn.numerics import wide

NEUTRAL = dict(attnres_size=0)
CLASHES = {other: 'it expects one residual stream where this has a list of sources'
           for other in ('mod', 'stt', 'sdt', 'surprise', 'noise_residual', 'x0', 'bigram')}


@dataclass
class GPTConfig(model.GPTConfig):
    attnres_size: Whole = 2             # sublayers that a source sums: 2, a layer's; 1: full; 0: the baseline


class DepthMean(nn.Module):
    """Reads a weighted mean of sources, a list of (B, T, C)."""

    def __init__(self, ndim):
        super().__init__()
        self.query = nn.Parameter(torch.zeros(ndim))
        # of the norm, whose epsilon the paper does not give
        self.weight = nn.Parameter(torch.ones(ndim))

    def forward(self, sources, step):
        scores = [self.score(wide(v)) for v in sources]
        weights = torch.stack(scores).softmax(0) # (sources, B, T)
        step.stat('embedding_share', weights[0])
        return sum(a[..., None] * v for a, v in zip(weights, sources, strict=True))

    def score(self, v):
        return (v * self.query * self.weight).sum(-1) * torch.rsqrt(v.square().mean(-1) + 1e-6)


class Block(model.Block):

    def __init__(self, config, classes, layer):
        super().__init__(config, classes, layer)
        self.size = config.attnres_size
        if self.size:
            # the first sublayer has one source
            self.attn_mean = DepthMean(config.n_embd) if layer else None
            self.mlp_mean = DepthMean(config.n_embd)

    # x: the sources
    def attn_residual(self, x, step):
        if not self.size:
            return super().attn_residual(x, step)
        h = self.attn_mean(x, step) if self.attn_mean else x[0]
        return self.add_source(x, self.attn_out(self.attn(self.ln_1(h), step), step), 2 * self.layer)

    def mlp_residual(self, x, step):
        if not self.size:
            return super().mlp_residual(x, step)
        h = self.mlp_mean(x, step)
        return self.add_source(x, self.mlp_out(self.mlp(self.ln_2(h), step), step), 2 * self.layer + 1)

    def add_source(self, sources, y, sublayer):
        """Returns the sources with y (B, T, C), as a new one or in the last one's sum."""
        if sublayer % self.size == 0:
            return [*sources, y]
        return [*sources[:-1], wide(sources[-1]) + y]


class GPT(model.GPT):

    def __init__(self, config, classes):
        super().__init__(config, classes)
        if config.attnres_size:
            self.final_mean = DepthMean(config.n_embd)

    def widen(self, x, step):
        return [x] if self.config.attnres_size else x

    def narrow(self, x, step):
        return self.final_mean(x, step) if self.config.attnres_size else x
