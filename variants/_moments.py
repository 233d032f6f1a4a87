"""How a query's attention is spread, for the variants that feed it back. github.com/tomhartke/transformer-modifications."""
import math
from contextlib import nullcontext

import torch
import torch.nn as nn
import torch.nn.functional as F

from core.errors import Stop
from core.nn.attention import choose, kernel_attention


def attend_and_measure(attn, q, k, v, x, pos_k, step):
    """What attn.attend() returns, y (B, nh, T, hs), and (B, nh, T) each in float32 or wider, of the weights before dropout:

    the mean distance to the keys, in tokens; its variance, in tokens^2; the mean score, scaled as in the softmax.
    """
    impl, dropout = attn.config.attn, attn.attn_dropout if attn.training else 0.0
    if impl not in ('auto', 'math', 'kernel'):
        raise Stop(f'attn={impl}: gives no statistics of its weights, which this variant needs; allowed: auto, math, kernel')
    score_mod, form = attn.score_mod(x, pos_k, step)
    if choose(impl, q, score_mod, form, step.from_zero, dropout, moments=True) == 'kernel':
        y, distance, variance, mean_score = kernel_attention(q, k, v, score_mod, form, dropout, moments=True)
        step.stat('distance', distance)
        return y, distance, variance, mean_score
    wide = torch.promote_types(q.dtype, torch.float32)
    with uncast(q.device.type): # half precision would lose the deviation of a head that looks nearby
        score = q.to(wide) @ k.to(wide).transpose(-2, -1) / math.sqrt(q.size(-1)) # (B, nh, T, Tk)
        att = score
        if score_mod is not None:
            b, h, i, j = (torch.arange(n, device=q.device) for n in att.size())
            att = score_mod(att, b.view(-1, 1, 1, 1), h.view(-1, 1, 1), i.view(-1, 1), j)
        away = (step.pos[:, :, None] - pos_k[:, None, :])[:, None] # (B, 1, T, Tk), in tokens
        att = F.softmax(att.masked_fill(away < 0, float('-inf')), dim=-1)
        away = away.to(wide)
        distance = (att * away).sum(-1)
        variance = (att * (away - distance[..., None]) ** 2).sum(-1)
        mean_score = (att * score).sum(-1)
        y = F.dropout(att, dropout).to(v.dtype) @ v
    step.stat('distance', distance)
    return y, distance, variance, mean_score


def uncast(device_type):
    """Matrix products in the dtype of their factors, whatever autocast says; meta tensors, which have no autocast, always are."""
    return nullcontext() if device_type == 'meta' else torch.autocast(device_type, enabled=False)


def deviation(variance):
    """Tokens; a query that sees one key has 0, where the root has no slope: so at least a thousandth."""
    return variance.clamp(min=1e-6).sqrt()


def source_units(distance, variance, block_size):
    """The source's: (expected position - own, deviation), both over block_size, with 1e-12 under the root."""
    return -distance / block_size, (variance / block_size ** 2 + 1e-12).sqrt()


def shuffled(stats, layer, step):
    """A sham: each position's stats (B, T, n) are those of an earlier one, which its number picks. Sees no later position."""
    every, = step.extend(layer, stats=stats) # (B, Tk, n)
    n = torch.arange(every.size(1) - stats.size(1), every.size(1), device=stats.device)
    return every[:, (n ^ 0x5bd1e995) * 2654435761 % 2 ** 32 % (n + 1)] # Knuth's hash; xor keeps Inductor from 32-bit indices


class SmallMLP(nn.Module):
    """n_in -> 4 n_in -> n_out, which starts at 0."""

    def __init__(self, config, classes, n_in, n_out):
        super().__init__()
        self.c_fc = classes.Linear(config, n_in, 4 * n_in)
        self.gelu = nn.GELU()
        self.c_proj = classes.Linear(config, 4 * n_in, n_out)
        self.c_proj.weight.init = nn.init.zeros_

    def forward(self, x):
        return self.c_proj(self.gelu(self.c_fc(x)))
