"""Before attention and the MLP, each token adds a learned mixture of itself and the few tokens before it.

Source: Canon layers, Allen-Zhu, "Physics of Language Models: Part 4.1",
github.com/facebookresearch/PhysicsLM4, sites A and C.

    x = x + sum_n W_n * x of n positions before,   n = 0 .. kernel - 1      channel by channel, no activation

x is what the block's norm passes to attention (A) or to the MLP (C). W starts at 0, like the baseline.

Claim: twice the reasoning depth on its synthetic tasks; no position embeddings with Canon layers as good as
RoPE.
Measured: 0.087 nats worse [0.075, 0.099] on Shakespeare's characters after 2,000 iterations, 5 runs: it has
the lowest training loss, and overfits most. 2 * kernel * n_embd parameters per layer.
Control: `relative_location`, whose claim it tests: if this is as good, a cue to position was enough. `rope`.
"""
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F

import model
from configurator import Count

NEUTRAL = {}


@dataclass
class GPTConfig(model.GPTConfig):
    kernel: Count = 4                   # tokens that are mixed, the token itself included


class Canon(nn.Module):
    """Adds to x (B, T, C) a causal convolution of it, channel by channel."""

    def __init__(self, config, layer, name):
        super().__init__()
        self.layer, self.name = layer, name
        self.weight = nn.Parameter(torch.zeros(config.kernel, config.n_embd))

    def forward(self, x, step):
        past, = step.extend(self.layer, **{self.name: x}) # (B, Tk, C)
        T, kernel = x.size(1), len(self.weight)
        # (B, kernel - 1 + T, C), with zeros before the first token
        past = F.pad(past, (0, 0, kernel - 1, 0))[:, -(T + kernel - 1):]
        return x + sum(w * past[:, kernel - 1 - n:kernel - 1 - n + T] for n, w in enumerate(self.weight))


class CausalSelfAttention(model.CausalSelfAttention):

    def __init__(self, config, classes, layer):
        super().__init__(config, classes, layer)
        self.canon = Canon(config, layer, 'canon_attn')

    def forward(self, x, step):
        return super().forward(self.canon(x, step), step)


class MLP(model.MLP):

    def __init__(self, config, classes, layer):
        super().__init__(config, classes, layer)
        self.canon = Canon(config, layer, 'canon_mlp')

    def hidden(self, x, step):
        return super().hidden(self.canon(x, step), step)
