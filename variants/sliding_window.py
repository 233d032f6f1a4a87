"""Most layers see only a fixed number of the last tokens.

Source: local attention, Child et al., arXiv 1904.10509; three windowed layers and a full one, as in
github.com/karpathy/nanochat.

    pos_q - pos_k < window      in each layer but every full_every-th and the last

With full_every = 0 every layer has the window. nanochat's window is a quarter of the context, rounded to a
multiple of 128 tokens.

Claim: none with a number for the window alone; nanochat has it as its default.
Expect: the baseline's loss, while the cost of attention grows with T * window instead of T^2. On a GPU that
pays off from about 4096 tokens on; below that, full attention is faster.
Control: none; it is itself the control, at equal work, for `hard_window`, `adaptive_span`, `strided_heads`.
"""
from dataclasses import dataclass

import torch

import model
from configurator import Count, Whole
from core.nn.attention import attend, local_attention
from core.nn.layers import in_every_nth

NEUTRAL = dict(window=10 ** 9)


@dataclass
class GPTConfig(model.GPTConfig):
    window: Count = 32                  # tokens that a query sees, itself included
    full_every: Whole = 4               # every n-th layer, and the last, sees everything; 0: none does


class CausalSelfAttention(model.CausalSelfAttention):

    def __init__(self, config, classes, layer):
        super().__init__(config, classes, layer)
        full = in_every_nth(layer, config.full_every) or config.full_every > 0 and layer + 1 == config.n_layer
        self.windowed = not full and config.window < config.block_size

    def score_mod(self, x, pos_k, step):
        if not self.windowed:
            return super().score_mod(x, pos_k, step)
        pos_q, window = step.pos, self.config.window
        return lambda s, b, h, i, j: torch.where(pos_q[b, i] - pos_k[b, j] < window, s, float('-inf'))

    def attend(self, q, k, v, x, pos_k, step):
        impl = self.config.attn
        if not self.windowed or impl in ('math', 'flex'):
            return super().attend(q, k, v, x, pos_k, step)
        dropout = self.attn_dropout if self.training else 0.0
        if step.from_zero:
            return local_attention(q, k, v, self.config.window, dropout)
        return attend(q, k, v, step.pos, pos_k, self.score_mod(x, pos_k, step), dropout=dropout)
