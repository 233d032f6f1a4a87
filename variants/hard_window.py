"""Each query learns how many tokens its head sees: attention weights fade to exactly 0 at the end of its window.

Source: github.com/tomhartke/transformer-modifications, query_dependent_attention, hard window.

    w = min_window + window_init * exp(W x)     per query and head, in tokens; W starts at 0
    u = (w - distance - 1) / w,     distance = pos_q - pos_k
    weights = softmax(score) * (1 - exp(-relu(u))), then divided by their sum: score + log(1 - exp(-u)), -inf where u <= 0

The source has min_window = 1 and window_init = block_size / 2. It adds 1e-10 to weights and windows, which here nothing needs: a
token always sees itself. With dropout = 0 it does not run. block_loss, our addition, draws down the widest window of each 128
queries, for a kernel saves only what none of them looks at.

Claim: about the baseline's validation loss, early layers looking far back and late ones near; no number.
Expect: the baseline's loss. Windows as they start reach everything in 256 tokens; no work is saved without block_loss.
Control: `adaptive_span`, static and dynamic; `sliding_window` at the mean window; static=True, a window per head.
Logged: `window`, in tokens; `visited`, the share of 128 x 128 blocks with a key that somebody sees.
"""
import math
from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn as nn
import torch.nn.functional as F

import model
from configurator import Count, NonNegative, Positive

NEUTRAL = dict(window_init=1e12)


@dataclass
class GPTConfig(model.GPTConfig):
    window_init: Positive = 64.0        # window at initialization beyond min_window, in tokens
    min_window: Annotated[float, '[1, inf)'] = 2.0 # the shortest window, in tokens; the source's 1 sees nothing at all
    block_loss: NonNegative = 0.0       # weight of the widest window of 128 queries, over block_size, mean over blocks and layers
    static: bool = False                # sham: a window for each head, the same for every query
    every: Count = 1                    # variant in every n-th layer


class CausalSelfAttention(model.CausalSelfAttention):

    def __init__(self, config, classes, layer):
        super().__init__(config, classes, layer)
        self.window = None
        if (layer + 1) % config.every == 0 and config.static:
            self.window = nn.Parameter(torch.zeros(config.n_head))
        elif (layer + 1) % config.every == 0:
            self.window = classes.Linear(config, config.n_embd, config.n_head)
            self.window.weight.init = nn.init.zeros_

    def score_mod(self, x, pos_k, step):
        if self.window is None:
            return super().score_mod(x, pos_k, step)
        c, pos_q = self.config, step.pos
        z = self.window[:, None].expand(x.size(0), -1, x.size(1)) if c.static else self.window(x).transpose(1, 2) # (B, nh, T)
        z = z.to(torch.promote_types(z.dtype, torch.float32)) + math.log(c.window_init / c.min_window)
        inverse = torch.sigmoid(-z) / c.min_window # 1 / w, with a gradient where exp would overflow
        step.stat('window', 1 / inverse)
        if step.stats is not None:
            step.stat('visited', visited(1 / inverse, pos_q))
        if c.block_loss:
            widest = blocks(1 / inverse / c.block_size, float('-inf')).mul(16).logsumexp(-1) / 16 # smooth: more than one learns
            step.loss('block', c.block_loss / c.n_layer * widest.mean())

        def f(s, b, h, i, j):
            distance = pos_q[b, i] - pos_k[b, j]
            u = 1 - (distance + 1) * inverse[b, h, i]
            return torch.where((u > 0) | (distance == 0), s + torch.log(-torch.expm1(-u.clamp(min=1e-12))), float('-inf'))
        return f, dict(w=1 / inverse)


def blocks(x, fill):
    """(..., T) -> (..., T / 128, 128), the last block filled up."""
    return F.pad(x, (0, -x.size(-1) % 128), value=fill).unflatten(-1, (-1, 128))


def visited(w, pos_q):
    """Of the 128 x 128 blocks up to the queries, the share with a key in some query's window."""
    last = pos_q[:, None, ::128] // 128 + 1 # blocks up to these 128 queries, (B, 1, T / 128)
    first = (pos_q[:, None] + 2 - w).floor().clamp(min=0) # the earliest key seen, (B, nh, T)
    seen = last - blocks(first, float('inf')).amin(-1) // 128
    return seen.sum() / last.expand_as(seen).sum()
