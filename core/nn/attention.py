"""Attention: its definition, faster ways to the same result, and the choice between them.

Shapes: B rows, nh heads, T queries, Tk keys, hs channels per head. The last T keys are the queries' own.
"""
import math
from contextlib import nullcontext
from functools import cache
from importlib.util import find_spec
from typing import NamedTuple

import torch
import torch.nn.attention.flex_attention as flex
import torch.nn.functional as F

from core.errors import Stop
from core.kernels import attention_reference as reference
from core.nn.numerics import masked_softmax, wide, wide_dtype

# importing Triton takes time, and only CUDA needs it
kernels = None
if torch.cuda.is_available() and torch.version.cuda and find_spec('triton'):
    from core.kernels import attention_op as kernels


# -----------------------------------------------------------------------------
# score_mod, a variant's change to the scores: None, a Bias, a Window, or else a function of scaled scores
# with FlexAttention's signature (pytorch.org/blog/flexattention), f(score, b, h, i, j) -> score, which only
# math and flex can compute

class Bias(NamedTuple):
    """score_ij + slope_i (key_j - key_i), where key_i is at the query's position, and cancels in softmax."""
    slope: torch.Tensor         # (B, nh, T)
    key: torch.Tensor           # (B, nh, Tk), or (B, 1, Tk) if all heads share it


class Window(NamedTuple):
    """score_ij + log g_ij, where g falls to 0 at the window's end: see log_window() of the reference."""
    width: torch.Tensor         # (B, nh, T), in tokens
    ramp: float | None = None   # tokens over which g falls, at the window's end; None: over all of it


def distance_bias(slope, pos_k):
    """Returns the Bias -slope * (pos_q - pos_k) for slope (B, nh, T) and pos_k (B, Tk)."""
    return Bias(slope, pos_k[:, None])


def score_function(score_mod, pos_q, pos_k):
    """Returns any score_mod as f(score, b, h, i, j), None for None. pos_q (B, T), pos_k (B, Tk)."""
    if isinstance(score_mod, Bias):
        slope, key = score_mod
        own = key[..., -slope.size(-1):] # (B, nh or 1, T)
        if key.size(1) > 1:
            return lambda s, b, h, i, j: s + slope[b, h, i] * (key[b, h, j] - own[b, h, i])
        # subtract first: positions are integers, which may be too large for float32
        key, own = key[:, 0], own[:, 0]
        return lambda s, b, h, i, j: s + slope[b, h, i] * (key[b, j] - own[b, i])
    if isinstance(score_mod, Window):
        width, ramp = score_mod
        return lambda s, b, h, i, j: s + reference.log_window(pos_q[b, i] - pos_k[b, j], width[b, h, i], ramp)
    return score_mod


# -----------------------------------------------------------------------------
# the definition

def math_attention(q, k, v, pos_q, pos_k, score_mod=None, dropout=0.0):
    """Returns y (B, nh, T, hs); arguments as for attend()."""
    _, att = attention_weights(q, k, pos_q, pos_k, score_mod)
    att = F.dropout(att, dropout)
    return att.to(v.dtype) @ v # (B, nh, T, Tk) x (B, nh, Tk, hs) -> (B, nh, T, hs)


def attention_weights(q, k, pos_q, pos_k, score_mod=None):
    """Returns the scaled scores, before score_mod, and the weights, (B, nh, T, Tk) each, at least float32."""
    # (B, nh, T, hs) x (B, nh, hs, Tk) -> (B, nh, T, Tk)
    score = wide(q @ k.transpose(-2, -1)) / math.sqrt(q.size(-1))
    att = score if score_mod is None else change_scores(score, pos_q, pos_k, score_mod)
    seen = pos_k[:, None, None, :] <= pos_q[:, None, :, None] # (B, 1, T, Tk)
    return score, masked_softmax(att, seen)


def change_scores(score, pos_q, pos_k, score_mod):
    """Returns the scores (B, nh, T, Tk) as score_mod changes them: what score_function() does, in whole tensors.

    Its indices would make backward add up by index, which compiled code does in any order.
    """
    if isinstance(score_mod, Bias):
        slope, key = score_mod
        own = key[..., -slope.size(-1):] # (B, nh or 1, T)
        # subtract first: positions are integers, which may be too large for float32
        return score + slope[..., None] * (key[..., None, :] - own[..., :, None])
    if isinstance(score_mod, Window):
        width, ramp = score_mod
        distance = (pos_q[:, :, None] - pos_k[:, None, :])[:, None] # (B, 1, T, Tk)
        return score + reference.log_window(distance, width[..., None], ramp)
    # a function indexes by b, h, i and j, a dimension each
    b, h, i, j = (torch.arange(n, device=score.device) for n in score.size())
    return score_mod(score, b.view(-1, 1, 1, 1), h.view(-1, 1, 1), i.view(-1, 1), j)


def math_moments(q, k, v, pos_q, pos_k, score_mod=None, dropout=0.0):
    """Returns what attend() returns with moments=True; arguments as for attend()."""
    away = (pos_q[:, :, None] - pos_k[:, None, :])[:, None].to(wide_dtype(q)) # (B, 1, T, Tk), in tokens
    # in half precision the variance of a head that looks nearby would be rounded away
    with without_autocast(q.device.type):
        score, att = attention_weights(wide(q), wide(k), pos_q, pos_k, score_mod)
        distance = (att * away).sum(-1)
        variance = (att * (away - distance[..., None]) ** 2).sum(-1)
        mean_score = (att * score).sum(-1)
        y = F.dropout(att, dropout).to(v.dtype) @ v
    return y, distance, variance, mean_score


def without_autocast(device_type):
    """Returns a context in which products have the dtype of their factors."""
    # meta tensors know no autocast
    return nullcontext() if device_type == 'meta' else torch.autocast(device_type, enabled=False)


# -----------------------------------------------------------------------------
# the choice

def attend(q, k, v, pos_q, pos_k, score_mod=None, impl='auto', from_zero=False, dropout=0.0, moments=False):
    """Returns y (B, nh, T, hs): softmax(q k^T / sqrt(hs), changed by score_mod) v, over pos_k <= pos_q.

    q (B, nh, T, hs); k (B, nh, Tk, hs); v (B, nh, Tk, hs), whose heads may have another width, which is then
    y's too; pos_q (B, T); pos_k (B, Tk). from_zero: both positions are 0..T-1.
    impl: 'math' defines the result; 'sdpa', 'flex', 'kernel' are faster; 'auto' takes the fastest that can.
    dropout: the share of weights set to 0; the kernel rounds it to 256ths.
    moments: returns (y, distance, variance, mean_score), where the last three are (B, nh, T), in float32 or
    wider, of the weights before dropout: the mean distance to the keys, in tokens, its variance, in tokens^2,
    and the mean scaled score.
    Stop if impl cannot compute this: no way approximates.
    """
    way, _ = choose_backend(impl, q, v, score_mod, from_zero, dropout, moments, training=torch.is_grad_enabled())
    if way == 'kernel':
        return kernel_attention(q, k, v, score_mod, dropout, moments)
    if way == 'sdpa':
        return sdpa_attention(q, k, v, pos_q, pos_k, score_mod, from_zero, dropout)
    if way == 'flex':
        return flex_attention(q, k, v, pos_q, pos_k, score_mod, from_zero)
    return (math_moments if moments else math_attention)(q, k, v, pos_q, pos_k, score_mod, dropout)


def choose_backend(impl, q, v, score_mod=None, from_zero=False, dropout=0.0, moments=False, training=True):
    """Returns (way, why): 'math', 'sdpa', 'flex' or 'kernel', whichever attn=impl means here, and the reason.

    Arguments as for attend(). training: a backward pass follows. Stop if impl names a way that cannot do it.
    """
    # the kernel only knows positions 0..T-1, so attn=kernel leaves decoding to others, as auto does
    if impl != 'auto' and not (impl == 'kernel' and not from_zero):
        if impl in REFUSALS and (line := REFUSALS[impl](q, v, score_mod, dropout, moments)):
            raise Stop(line)
        return impl, f'attn={impl}'
    if q.size(2) == 1:
        # one token at a time: on CUDA, cuDNN would plan anew for every length, at 50 ms, and save nothing
        plain = score_mod is None and not moments and not q.is_cuda
        return 'sdpa' if plain else 'math', 'one query'
    # the first of kernel, sdpa, flex that can; the reason is why the one before it could not
    if not (why := why_not_kernel(q, v, score_mod, from_zero, dropout, moments, training)):
        return 'kernel', f'fastest for {in_words(score_mod, moments)}'
    if not sdpa_refusal(q, v, score_mod, dropout, moments):
        return 'sdpa', why
    if not (why_math := why_not_flex(q, v, score_mod, from_zero, dropout, moments)):
        return 'flex', why
    return 'math', why_math


def in_words(score_mod, moments):
    """Returns words for what the kernel is fastest at here."""
    if moments:
        return 'statistics of the weights'
    if score_mod is None:
        return 'short rows'
    return 'a bias' if isinstance(score_mod, Bias) else 'windows'


def why_not_kernel(q, v, score_mod, from_zero, dropout, moments, training):
    """Returns the reason why attn=auto does not take the kernel, None if it does."""
    if not q.is_cuda:
        return 'no CUDA GPU'
    if not from_zero:
        return 'positions that do not start at 0'
    if line := kernel_refusal(q, v, score_mod, dropout, moments):
        return reason_of(line)
    size = working_dtype(q).itemsize
    if size != 2:
        return f'float{8 * size}'
    # rounding a smaller rate to 256ths may change it by more than a tenth
    if 0 < dropout < 0.02:
        return f'attn_dropout={dropout} is far from 256ths'
    # cuDNN is faster in these cases
    if score_mod is None and not moments and q.size(2) > 1024:
        return 'long rows'
    if score_mod is None and not moments and not training:
        return 'no gradients'
    return None


def why_not_flex(q, v, score_mod, from_zero, dropout, moments):
    """Returns the reason why attn=auto does not take FlexAttention, None if it does."""
    if not q.is_cuda:
        return 'no CUDA GPU'
    if line := flex_refusal(q, v, score_mod, dropout, moments):
        return reason_of(line)
    if not from_zero:
        return 'positions that do not start at 0'
    # the smallest head that FlexAttention takes on CUDA
    if q.size(-1) < 16:
        return 'heads of fewer than 16 channels'
    return None


def reason_of(line):
    """Returns the first part of a refusal, without the list of what is allowed."""
    return line.partition(';')[0]


# refusals: the line with which a way stops, None if it can compute this; math can compute everything

def sdpa_refusal(q, v, score_mod, dropout, moments):
    if moments:
        return no_moments('sdpa')
    if not isinstance(score_mod, (type(None), Bias)):
        return 'attn=sdpa: cannot express what this variant does to the scores; allowed: auto, math, flex, kernel'
    return None


def flex_refusal(q, v, score_mod, dropout, moments):
    if moments:
        return no_moments('flex')
    if dropout > 0 or not q.is_cuda:
        no_gradient = '' if q.is_cuda else f', and no gradient on {q.device.type}'
        return f'attn=flex: has no dropout, here attn_dropout={dropout}{no_gradient}; allowed: auto, math, sdpa'
    return None


def kernel_refusal(q, v, score_mod, dropout, moments):
    what = None
    if not isinstance(score_mod, (type(None), Bias, Window)):
        what = 'what this variant does to the scores'
    elif q.size(-1) > 128:
        what = f'heads of {q.size(-1)} channels, at most 128'
    elif v.size(-1) != q.size(-1):
        what = f'values of {v.size(-1)} channels and queries of {q.size(-1)}'
    elif q.is_cuda and not kernels:
        what = 'anything without Triton and an NVIDIA GPU'
    elif q.is_cuda and q.dtype == torch.float64:
        what = 'float64 on a GPU'
    if what:
        return f'attn=kernel: cannot compute {what}; allowed: auto, math'
    if 0 < dropout < 1 / 512:
        return f'attn_dropout={dropout}: attn=kernel drops in 256ths; allowed: 0, or 0.002 and more'
    return None


def no_moments(impl):
    return f'attn={impl}: gives no statistics of its weights, which this variant needs; allowed: auto, math, kernel'


REFUSALS = dict(sdpa=sdpa_refusal, flex=flex_refusal, kernel=kernel_refusal)


def working_dtype(q):
    """Returns the dtype of matrix products: autocast's if it is on, else q's."""
    kind = q.device.type
    return torch.get_autocast_dtype(kind) if kind != 'meta' and torch.is_autocast_enabled(kind) else q.dtype


# -----------------------------------------------------------------------------
# the fast ways

def kernel_attention(q, k, v, score_mod=None, dropout=0.0, moments=False):
    """Computes attend() at positions 0..T-1, by the Triton kernel on CUDA, else by its T x T reference."""
    change = {}
    if isinstance(score_mod, Bias):
        change = dict(a=score_mod.slope, c=score_mod.key)
    elif isinstance(score_mod, Window):
        change = dict(w=score_mod.width, ramp=score_mod.ramp)
    # torch 2.11 cannot draw from a range beyond 32 bits
    seed = torch.randint(2 ** 31 - 1, (1,), device=q.device) if dropout else None
    dtype = working_dtype(q)
    attention = kernels.attention if q.is_cuda else reference.attention
    return attention(q.to(dtype), k.to(dtype), v.to(dtype), **change,
                     moments=moments, dropout=dropout, seed=seed)


def sdpa_attention(q, k, v, pos_q, pos_k, score_mod=None, from_zero=False, dropout=0.0):
    """Computes attend() by PyTorch's fused attention, with a Bias as extra columns of q and k."""
    hs, hs_v = q.size(-1), v.size(-1)
    if score_mod is not None:
        q, k, v = append_columns(q, k, v, *score_mod)
    mask = None if from_zero else pos_k[:, None, None, :] <= pos_q[:, None, :, None] # (B, 1, T, Tk)
    y = fused_attention(q, k, v, mask, dropout, is_causal=from_zero, scale=1.0 / math.sqrt(hs))
    # append_columns() widened v by zeros
    return y[..., :hs_v]


def fused_attention(q, k, v, *args, **options):
    """Returns F.scaled_dot_product_attention(q, k, v), computed in float32 where that is faster."""
    dtype = working_dtype(q)
    # on a CPU, backward over short rows takes up to four times as long in half precision as in float32
    slow = q.device.type == 'cpu' and dtype.itemsize == 2 and q.size(-2) < 256 and torch.is_grad_enabled()
    if not slow:
        return F.scaled_dot_product_attention(q, k, v, *args, **options)
    with torch.autocast('cpu', enabled=False):
        return F.scaled_dot_product_attention(q.float(), k.float(), v.float(), *args, **options).to(dtype)


def append_columns(q, k, v, slope, key):
    """Returns q and k with more columns, whose product is sqrt(hs) slope_i key_j, and v widened by zeros.

    slope (B, nh, T), key (B, nh or 1, Tk).
    """
    a = slope * math.sqrt(q.size(-1))
    c = key.to(wide_dtype(a)).expand(-1, k.size(1), -1)
    # in half precision each is a rounded column and one for the rest, four products in all: bfloat16 alone
    # cannot tell positions beyond 256 apart
    parts_a, parts_c = rounded_and_rest(a, q.dtype), rounded_and_rest(c, k.dtype)
    # The fused backward rounds the gradient of each score, and these errors times a large c_j would drown a's
    # gradient. So one more column, 0 in q and 1 in k, collects the sum of the errors, and subtracts it at
    # c_j = c_i, where the query is. Without rounding that sum is 0, because a constant cancels in softmax.
    own = a * c[..., -a.size(-1):]
    zero = (own.detach() - own).to(q.dtype)
    q_columns = torch.stack([x for x in parts_a for _ in parts_c] + [zero], dim=-1) # (B, nh, T, 2 or 5)
    k_columns = torch.stack([x for _ in parts_a for x in parts_c] + [torch.ones_like(parts_c[0])], dim=-1)
    # fused kernels want widths that are multiples of 8
    pad = -(q.size(-1) + q_columns.size(-1)) % 8
    q = F.pad(torch.cat((q, q_columns), dim=-1), (0, pad))
    k = F.pad(torch.cat((k, k_columns), dim=-1), (0, pad))
    return q, k, F.pad(v, (0, max(0, q.size(-1) - v.size(-1))))


def rounded_and_rest(x, dtype):
    """Returns tensors of this dtype in a list, whose sum is x: two in half precision, else one."""
    rounded = x.to(dtype)
    return [rounded, (x - rounded).to(dtype)] if dtype.itemsize < 4 else [rounded]


def local_attention(q, k, v, window, dropout):
    """Returns attention to the last `window` positions, the query's own included, at positions 0..T-1.

    Each chunk of `window` queries looks at its own chunk of keys and the one before it, so nothing is T x T.
    """
    B, nh, T, _ = q.size()
    if window >= T:
        return fused_attention(q, k, v, None, dropout, is_causal=True)
    # n chunks, the last one padded: (B * nh, n, window, hs)
    q, k, v = (F.pad(z, (0, 0, 0, -T % window)).flatten(0, 1).unflatten(1, (-1, window)) for z in (q, k, v))
    # each chunk of keys with the one before it: (B * nh, n, 2 * window, hs)
    k, v = (torch.cat((F.pad(z, (0, 0, 0, 0, 1, -1)), z), dim=2) for z in (k, v))
    i = torch.arange(window, device=q.device)[:, None]
    j = torch.arange(-window, window, device=q.device)
    # the first chunk has none before it
    first = torch.arange(q.size(1), device=q.device).view(-1, 1, 1) == 0
    mask = (j <= i) & (j > i - window) & ~(first & (j < 0)) # (n, window, 2 * window)
    y = fused_attention(q, k, v, mask[None], dropout)
    return y.flatten(1, 2).unflatten(0, (B, nh))[:, :, :T]


@cache
def compiled_flex():
    """Returns FlexAttention compiled on its own, for models that are not."""
    # uncompiled, it would write the T x T scores
    return torch.compile(flex.flex_attention, dynamic=False)


def flex_attention(q, k, v, pos_q, pos_k, score_mod=None, from_zero=False):
    """Computes attend() by FlexAttention, with a causal BlockMask that all rows share if from_zero."""
    size = dict(H=None, Q_LEN=q.size(2), KV_LEN=k.size(2), device=q.device)
    if from_zero:
        mask = flex.create_block_mask(lambda b, h, i, j: j <= i, B=None, **size)
    else:
        mask = flex.create_block_mask(lambda b, h, i, j: pos_k[b, j] <= pos_q[b, i], B=q.size(0), **size)
    attention = flex.flex_attention if torch.compiler.is_compiling() else compiled_flex()
    return attention(q, k, v, score_mod=score_function(score_mod, pos_q, pos_k), block_mask=mask)
