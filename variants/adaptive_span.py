"""Each head learns how far back it looks, with a soft edge, and pays for its reach.

Source: Adaptive Attention Span, Sukhbaatar et al., arXiv 1905.07799; the dynamic form is the paper's too.

    m(distance) = clamp((ramp + z - distance) / ramp, 0, 1),    distance = pos_q - pos_k
    static   z = block_size * |p_h|                     per head; p starts at span_init
    dynamic  z = block_size * sigmoid(v x + b)          per query and head; v starts at 0
    weights = softmax(score) * m, then divided by their sum: score + log m, -inf where m = 0
    loss += span_loss * mean z, of each layer

The paper clamps p to [0, 1] after every step. Here p is reflected at 0, so that it can leave 0, and beyond 1
nothing changes. A dynamic span starts between 0.01 and 0.99 of block_size.

Claim: 1.02 bits per character on enwik8 with 12 layers and 38M parameters.
Expect: the baseline's loss with most heads short. At 256 tokens there is little to save.
Control: `sliding_window`, whose reach is fixed; `static_slope`, which fades without an edge.
Logged: `span`, in tokens.
"""
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn as nn

import model
from configurator import Count, NonNegative, Positive, Share
from core.nn.attention import Window
from core.nn.layers import in_every_nth
from core.nn.numerics import wide

NEUTRAL = dict(ramp=1e12, span_loss=0.0)


@dataclass
class GPTConfig(model.GPTConfig):
    span: Literal['static', 'dynamic'] = 'static' # one for each head, or one for each query and head
    ramp: Positive = 32.0               # width of the soft edge beyond the span, in tokens
    span_init: Share = 0.0              # span at initialization, of block_size
    span_loss: NonNegative = 2e-6       # weight of a layer's mean span in tokens; the paper's for 8 layers, 5e-7 for 12
    every: Count = 1                    # variant in every n-th layer


class CausalSelfAttention(model.CausalSelfAttention):

    def __init__(self, config, classes, layer):
        super().__init__(config, classes, layer)
        self.span, start = None, torch.full((config.n_head,), config.span_init)
        if in_every_nth(layer, config.every) and config.span == 'static':
            self.span = nn.Parameter(start)
        elif in_every_nth(layer, config.every):
            # with a bias whatever config.bias says, because the initial span is set by it
            self.span = nn.Linear(config.n_embd, config.n_head)
            self.span.weight.init = nn.init.zeros_
            self.span.bias.init = lambda b: b.copy_(start.logit(eps=0.01))

    def score_mod(self, x, pos_k, step):
        if self.span is None:
            return super().score_mod(x, pos_k, step)
        c = self.config
        if c.span == 'static':
            # |p|, but with a gradient at 0, where the span starts
            p = torch.where(self.span < 0, -self.span, self.span)
            share = p[:, None].expand(x.size(0), -1, x.size(1)) # (B, nh, T)
        else:
            share = self.span(x).sigmoid().transpose(1, 2) # (B, nh, T)
        z = c.block_size * wide(share)
        step.stat('span', z)
        step.loss('span', c.span_loss * z.mean())
        return Window(z + 1 + c.ramp, c.ramp)
