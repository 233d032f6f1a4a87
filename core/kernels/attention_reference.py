"""The definition of the kernels in attention.py, in plain PyTorch: T x T, on any device, in any precision."""
import math

import torch

from core.nn.numerics import masked_softmax, wide

# rounds of Philox4x32; with 7 it passes all tests of BigCrush (Salmon et al., 2011,
# https://doi.org/10.1145/2063384.2063405)
ROUNDS = 7


def attention(q, k, v, a=None, c=None, w=None, ramp=None, scale=None, moments=False, dropout=0.0, seed=None):
    """Computes causal attention over positions 0..T-1; bias, window, moments and dropout are optional.

    q, k, v (B, nh, T, hs); returns y (B, nh, T, hs). scale is positive, by default 1 / sqrt(hs). d = i - j is
    the distance from query i back to key j:

        score_ij  = scale q_i k_j
        logit_ij  = score_ij + a_i (c_j - c_i)
        weight_ij = exp(logit_ij) g_ij, 0 where d < 0, then divided by their sum over j
        y_i       = sum_j mask_ij weight_ij v_j

    a (B, nh, T), c (B, nh or 1, T): the bias. a = slope, c = position make it -slope d; softmax does not see
        c_i.
    w (B, nh, T): windows, in tokens; log g = log_window(d, w, ramp). Without windows g is 1.
    moments: returns (y, sum_j weight d, sum_j weight (d - mean)^2, sum_j weight score), where the last three
        are (B, nh, T), with the weights before dropout.
    dropout: the share of weights set to 0, in 256ths; seed (1,) int64 determines which, see dropout_mask().
    """
    B, nh, T, hs = q.size()
    q, k, v_wide = wide(q), wide(k), wide(v)
    i = torch.arange(T, device=q.device)
    d = i[:, None] - i # (T, T)

    # scores and logits, rounded as math_attention() does: (B, nh, T, hs) x (B, nh, hs, T) -> (B, nh, T, T)
    score = q @ k.mT / (math.sqrt(hs) if scale is None else 1 / scale)
    logit = score
    if a is not None:
        logit = logit + a[..., None] * (c[..., None, :] - c[..., :, None])
    if w is not None:
        logit = logit + log_window(d, w[..., None], ramp)
    weight = masked_softmax(logit, d >= 0)

    dropped = weight * dropout_mask(seed, B, nh, T, dropout) if dropout else weight
    y = (dropped @ v_wide).to(v.dtype) # (B, nh, T, T) x (B, nh, T, hs) -> (B, nh, T, hs)
    if not moments:
        return y
    distance = (weight * d).sum(-1)
    variance = (weight * (d - distance[..., None]) ** 2).sum(-1)
    return y, distance, variance, (weight * score).sum(-1)


def log_window(d, w, ramp=None):
    """Returns log g for the key d tokens before a query whose window is w tokens: -inf where it is not seen.

        g = 1 - exp(-u),    u = 1 - (d + 1) / w             without a ramp
        g = min(u, 1),      u = (w - 1 - d) / ramp          with one, in tokens

    A key is seen if d + 1 < w, and a query always sees itself. d and w broadcast; d may be negative.
    """
    u = 1 - (d + 1) / w if ramp is None else (w - 1 - d) / ramp
    seen = (u > 0) | (d == 0)
    # where no key is seen, log and its gradient must stay finite
    u = u.clamp(min=1e-12)
    log_g = torch.log(-torch.expm1(-u)) if ramp is None else torch.log(u.clamp(max=1))
    return torch.where(seen, log_g, -math.inf)


def dropout_mask(seed, B, nh, T, dropout):
    """Returns (B, nh, T, T) float32: 0 where a weight is dropped, elsewhere 1 / the share kept.

    Each weight has a random byte, byte j % 16 of Philox4x32(counter=(i, j // 16, b nh + h, 0), key=seed).
    """
    row = torch.arange(B * nh, device=seed.device)[:, None, None]
    i = torch.arange(T, device=seed.device)[:, None]
    block = torch.arange((T + 15) // 16, device=seed.device)
    counters = torch.broadcast_tensors(i, block, row, torch.zeros_like(row)) # (B nh, T, T / 16) each
    words = torch.stack(philox(seed, *counters), dim=-1)
    shifts = torch.tensor([0, 8, 16, 24], device=seed.device)
    bytes_ = (words[..., None] >> shifts) & 255 # (B nh, T, T / 16, 4, 4)
    cut = threshold(dropout)
    return (bytes_.flatten(2)[..., :T] >= cut).view(B, nh, T, T) * (256 / (256 - cut))


def threshold(dropout):
    """Returns the number below which a random byte drops its weight."""
    return min(round(256 * dropout), 255)


def philox(seed, c0, c1, c2, c3, rounds=ROUNDS):
    """Returns Philox4x32's four random 32-bit words for four counters and a 64-bit key; all are int64."""
    low = 0xFFFFFFFF
    k0, k1 = seed & low, (seed >> 32) & low
    for _ in range(rounds):
        # 64-bit products; int64 wraps, which keeps all bits
        ab, cd = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = ((cd >> 32) & low) ^ c1 ^ k0, cd & low, ((ab >> 32) & low) ^ c3 ^ k1, ab & low
        k0, k1 = (k0 + 0x9E3779B9) & low, (k1 + 0xBB67AE85) & low
    return c0, c1, c2, c3
