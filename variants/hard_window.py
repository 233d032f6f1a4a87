"""Each query learns how many tokens its head sees: weights fade to exactly 0 at the end of its window.

Source: github.com/tomhartke/transformer-modifications, query_dependent_attention, hard window.

    w = min_window + window_init * exp(W x)     per query and head, in tokens; W starts at 0
    u = (w - distance - 1) / w,     distance = pos_q - pos_k
    weights = softmax(score) * (1 - exp(-relu(u))), then divided by their sum:
        score += log(1 - exp(-u)), -inf where u <= 0

The source has min_window = 1 and window_init = block_size / 2. It adds 1e-10 to weights and windows, which
nothing needs here: a token always sees itself. With dropout = 0 it does not run. block_loss, our addition,
shrinks the widest window of each 128 queries, because a kernel skips only what none of them looks at.

Claim: about the baseline's validation loss, early layers looking far back and late ones near; no number.
Expect: the baseline's loss. Windows as they start reach everything in 256 tokens; no work is saved without
block_loss.
Control: `adaptive_span`, static and dynamic; `sliding_window` at the mean window; static=True, one window per
head.
Logged: `window`, in tokens; `visited`, the share of 128 x 128 blocks with a key that some query sees.
"""
from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn as nn
import torch.nn.functional as F

import model
from configurator import Count, NonNegative, Positive
from core.nn.attention import Window
from core.nn.layers import in_every_nth
from core.nn.numerics import wide

NEUTRAL = dict(window_init=1e12)


@dataclass
class GPTConfig(model.GPTConfig):
    window_init: Positive = 64.0        # window at initialization beyond min_window, in tokens
    min_window: Annotated[float, '[1, inf)'] = 2.0 # shortest window, in tokens; the source's 1 sees nothing at all
    block_loss: NonNegative = 0.0       # weight of the widest window of 128 queries over block_size, in the mean
    static: bool = False                # sham: a window for each head, the same for every query
    every: Count = 1                    # variant in every n-th layer


class CausalSelfAttention(model.CausalSelfAttention):

    def __init__(self, config, classes, layer):
        super().__init__(config, classes, layer)
        self.window = None
        if in_every_nth(layer, config.every) and config.static:
            self.window = nn.Parameter(torch.zeros(config.n_head))
        elif in_every_nth(layer, config.every):
            self.window = classes.Linear(config, config.n_embd, config.n_head)
            self.window.weight.init = nn.init.zeros_

    def score_mod(self, x, pos_k, step):
        if self.window is None:
            return super().score_mod(x, pos_k, step)
        c = self.config
        if c.static:
            z = self.window[:, None].expand(x.size(0), -1, x.size(1)) # (B, nh, T)
        else:
            z = self.window(x).transpose(1, 2) # (B, nh, T)
        # e^20 times window_init is as good as no window, and beyond it exp would overflow
        w = c.min_window + c.window_init * torch.exp(wide(z).clamp(max=20))
        step.stat('window', w)
        if step.stats is not None:
            step.stat('visited', visited_share(w, step.pos))
        if c.block_loss:
            # a smooth maximum: more than one window of the block learns
            widest = blocks(w / c.block_size, float('-inf')).mul(16).logsumexp(-1) / 16
            step.loss('block', c.block_loss / c.n_layer * widest.mean())
        return Window(w)


def blocks(x, fill):
    """Returns x (..., T) as (..., T / 128, 128), the last block padded with `fill`."""
    return F.pad(x, (0, -x.size(-1) % 128), value=fill).unflatten(-1, (-1, 128))


def visited_share(w, pos_q):
    """Returns the share of 128 x 128 blocks up to the queries with a key in some query's window, a scalar."""
    last = pos_q[:, None, ::128] // 128 + 1 # blocks up to these 128 queries, (B, 1, T / 128)
    first = (pos_q[:, None] + 2 - w).floor().clamp(min=0) # the earliest key seen, (B, nh, T)
    seen = last - blocks(first, float('inf')).amin(-1) // 128
    return seen.sum() / last.expand_as(seen).sum()
