"""Measures how far a query's attention looks and how widely it is spread, for variants that feed it back.

Source: github.com/tomhartke/transformer-modifications, attention_structure_alteration.
"""
import torch
import torch.nn as nn


def attend_and_measure(attn, q, k, v, x, pos_k, step):
    """Returns y (B, nh, T, hs), as attn.attend() does, and three statistics of the weights before dropout.

    These are the mean distance to the keys, in tokens, its variance, in tokens^2, and the mean score, scaled
    as for the softmax; (B, nh, T) each, in float32 or wider. detach=True: they have no gradient.
    """
    score_mod = attn.score_mod(x, pos_k, step)
    y, distance, variance, mean_score = attn.compute_attention(q, k, v, score_mod, pos_k, step, moments=True)
    step.stat('distance', distance)
    stats = distance, variance, mean_score
    return y, *(s.detach() if attn.config.detach else s for s in stats)


def deviation(variance):
    """Returns the standard deviation, in tokens, of at least 0.001."""
    # it is 0 where only one key is seen, and the root has no finite slope there
    return variance.clamp(min=1e-6).sqrt()


def source_units(distance, variance, block_size):
    """Returns (expected position - own position, deviation), divided by block_size as in the source."""
    return -distance / block_size, (variance / block_size ** 2 + 1e-12).sqrt()


def shuffle_stats(stats, layer, step):
    """Returns stats (B, T, n) with each position's from an earlier one, picked by a hash: a causal sham."""
    past, = step.extend(layer, stats=stats) # (B, Tk, n)
    n = torch.arange(past.size(1) - stats.size(1), past.size(1), device=stats.device)
    # Knuth's multiplicative hash (TAOCP, 6.4); xor keeps Inductor from 32-bit indices
    return past[:, (n ^ 0x5bd1e995) * 2654435761 % 2 ** 32 % (n + 1)]


class SmallMLP(nn.Module):
    """A perceptron n_in -> 4 n_in -> n_out whose output starts at 0."""

    def __init__(self, config, classes, n_in, n_out):
        super().__init__()
        self.c_fc = classes.Linear(config, n_in, 4 * n_in)
        self.gelu = nn.GELU()
        self.c_proj = classes.Linear(config, 4 * n_in, n_out)
        self.c_proj.weight.init = nn.init.zeros_

    def forward(self, x):
        return self.c_proj(self.gelu(self.c_fc(x)))
