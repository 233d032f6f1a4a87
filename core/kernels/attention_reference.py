"""The definition of attention.py's kernels in plain PyTorch: T x T, on any device, in any precision."""
import math

import torch

# of Philox4x32; 7 pass all tests of BigCrush (Salmon et al., 2011, https://doi.org/10.1145/2063384.2063405)
ROUNDS = 7


def attention(q, k, v, a=None, c=None, w=None, ramp=None, scale=None, moments=False, dropout=0.0, seed=None):
    """Computes causal attention over positions 0..T-1; bias, window, moments and dropout are optional.

    q, k, v (B, nh, T, hs); returns y (B, nh, T, hs). scale, positive: 1 / sqrt(hs). With d = i - j, the
    distance from query i back to key j:

        score_ij  = scale q_i k_j
        logit_ij  = score_ij + a_i (c_j - c_i)
        weight_ij = exp(logit_ij) g_ij, 0 where d < 0, then divided by their sum over j
        y_i       = sum_j mask_ij weight_ij v_j

    a (B, nh, T), c (B, nh or 1, T): the bias. a = slope, c = position make it -slope d; softmax does not see
        c_i.
    w (B, nh, T): windows, in tokens. A key is seen while d + 1 < w, and a query always sees itself:
        g = 1 - exp(-u),    u = 1 - (d + 1) / w             without a ramp
        g = min(u, 1),      u = (w - 1 - d) / ramp          with one, in tokens
    moments: returns (y, sum_j weight d, sum_j weight (d - mean)^2, sum_j weight score), the three (B, nh, T)
        each and of the weights before dropout.
    dropout: share of weights, in 256ths, that is set to 0; seed (1,) int64 says which, see dropout_mask().
    """
    B, nh, T, hs = q.size()
    wide = torch.promote_types(q.dtype, torch.float32)
    q, k, v_wide = q.to(wide), k.to(wide), v.to(wide)
    i = torch.arange(T, device=q.device)
    d = i[:, None] - i # (T, T)

    # scores and logits, rounded as in math_attention(): (B, nh, T, hs) x (B, nh, hs, T) -> (B, nh, T, T)
    score = q @ k.mT / (math.sqrt(hs) if scale is None else 1 / scale)
    logit = score
    if a is not None:
        logit = logit + a[..., None] * (c[..., None, :] - c[..., :, None])

    # the window: log g is added, and where g is 0 a key is not seen
    seen = d >= 0
    if w is not None:
        w = w.clamp(min=2)[..., None] # at 2 a query sees itself alone, as below
        u = 1 - (d + 1) / w if ramp is None else (w - 1 - d) / ramp
        seen = seen & (u > 0)
        u = u.where(seen, 1)
        logit = logit + (torch.log(-torch.expm1(-u)) if ramp is None else u.clamp(max=1).log())
    weight = logit.masked_fill(~seen, -math.inf).softmax(dim=-1)

    dropped = weight * dropout_mask(seed, B, nh, T, dropout) if dropout else weight
    y = (dropped @ v_wide).to(v.dtype) # (B, nh, T, T) x (B, nh, T, hs) -> (B, nh, T, hs)
    if not moments:
        return y
    distance = (weight * d).sum(-1)
    variance = (weight * (d - distance[..., None]) ** 2).sum(-1)
    return y, distance, variance, (weight * score).sum(-1)


def dropout_mask(seed, B, nh, T, dropout):
    """Returns (B, nh, T, T) float32: 0 where a weight is dropped, elsewhere 1 / share kept.

    Each weight has a random byte: byte j % 16 of Philox4x32(counter=(i, j // 16, b nh + h, 0), key=seed).
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
    """Returns what a random byte is below where its weight is dropped."""
    return min(round(256 * dropout), 255)


def philox(seed, c0, c1, c2, c3, rounds=ROUNDS):
    """Returns four random 32-bit words by Philox4x32 from four counters and a 64-bit key; all are int64."""
    low = 0xFFFFFFFF
    k0, k1 = seed & low, (seed >> 32) & low
    for _ in range(rounds):
        # 64-bit products: int64 wraps, which loses nothing
        ab, cd = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = ((cd >> 32) & low) ^ c1 ^ k0, cd & low, ((ab >> 32) & low) ^ c3 ^ k1, ab & low
        k0, k1 = (k0 + 0x9E3779B9) & low, (k1 + 0xBB67AE85) & low
    return c0, c1, c2, c3
