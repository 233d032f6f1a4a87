"""Fast ways to what math_attention defines; arguments as for attend."""
import math
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec

import torch
import torch.nn.attention.flex_attention as flex
import torch.nn.functional as F

from core.errors import Stop
from core.kernels import attention_reference as reference

kernels = None
if torch.cuda.is_available() and torch.version.cuda and find_spec('triton'): # not needed elsewhere
    from core.kernels import attention_op as kernels


def attend(q, k, v, pos_q, pos_k, score_mod=None, form=None, impl='auto', from_zero=False, dropout=0.0):
    """softmax(q k^T / sqrt(hs), changed by score_mod) v over the keys with pos_k <= pos_q; returns y (B, nh, T, hs).

    q (B, nh, T, hs), k and v (B, nh, Tk, hs), pos_q (B, T), pos_k (B, Tk); from_zero: both positions are 0..T-1.
    score_mod(score, b, h, i, j) -> score, FlexAttention's signature, acts on the scaled scores.
    form: what score_mod amounts to, up to a constant for each query: dict(a=, c=), (B, nh, T) and (B, nh or 1, Tk), for
    score + a_i c_j; dict(w=) or dict(w=, ramp=) for a window of w (B, nh, T) tokens, as in core/kernels/attention_reference.py.
    impl: 'math' defines the result; 'kernel' needs a form where there is a score_mod, 'sdpa' one without a window; 'flex'
    needs a CUDA device and has no dropout; what an impl cannot express is a Stop, never another result. The kernel drops
    weights at a rate in 256ths.
    """
    impl = choose(impl, q, score_mod, form, from_zero, dropout)
    if impl == 'kernel':
        return kernel_attention(q, k, v, score_mod, form, dropout)
    if impl == 'sdpa':
        if score_mod is not None and not rank_one(form):
            raise Stop('attn=sdpa: cannot express what this variant does to the scores; allowed: auto, math, flex, kernel')
        return sdpa_attention(q, k, v, pos_q, pos_k, form, from_zero, dropout)
    if impl == 'flex':
        if dropout > 0 or not q.is_cuda:
            raise Stop(f'attn=flex: has no dropout, here attn_dropout={dropout}, and no gradient on {q.device.type}; '
                       'allowed: auto, math, sdpa')
        return flex_attention(q, k, v, pos_q, pos_k, score_mod, from_zero)
    return math_attention(q, k, v, pos_q, pos_k, score_mod, dropout)


def math_attention(q, k, v, pos_q, pos_k, score_mod, dropout):
    """The definition."""
    B, nh, T, hs = q.size()
    att = (q @ k.transpose(-2, -1)).to(torch.promote_types(q.dtype, torch.float32)) / math.sqrt(hs) # (B, nh, T, Tk)
    if score_mod is not None:
        b, h, i, j = (torch.arange(n, device=q.device) for n in att.size())
        att = score_mod(att, b.view(-1, 1, 1, 1), h.view(-1, 1, 1), i.view(-1, 1), j)
    att = att.masked_fill(pos_k[:, None, None, :] > pos_q[:, None, :, None], float('-inf'))
    att = F.dropout(F.softmax(att, dim=-1), dropout)
    return att.to(v.dtype) @ v # (B, nh, T, Tk) x (B, nh, Tk, hs) -> (B, nh, T, hs)


def distance_bias(slope, pos_q, pos_k):
    """(score_mod, form) for attend: score - slope * (pos_q - pos_k), with slope (B, nh, T) for each head and query."""
    return lambda s, b, h, i, j: s - slope[b, h, i] * (pos_q[b, i] - pos_k[b, j]), dict(a=slope, c=pos_k[:, None])


def choose(impl, q, score_mod, form, from_zero, dropout, moments=False):
    """The way to compute attention for attn=impl; arguments as for fastest()."""
    if chosen is not None:
        chosen.add(fastest(impl, q, score_mod, form, from_zero, training_dropout, moments))
    return fastest(impl, q, score_mod, form, from_zero, dropout, moments, training=torch.is_grad_enabled())


def fastest(impl, q, score_mod, form, from_zero, dropout, moments=False, training=True):
    """'auto' made one of the ways to compute attention: of those that can express these arguments of attend the one that
    LOG.md has measured to be fastest. 'kernel' where positions are not from_zero is chosen again: it knows 0..T-1 only."""
    if impl != 'auto' and not (impl == 'kernel' and not from_zero):
        return impl
    able = q.is_cuda and from_zero and beyond_kernel(q, score_mod, form) is None and working_dtype(q).itemsize == 2
    able = able and not 0 < dropout < 0.02 # which 256ths would be far from
    if q.size(2) == 1: # decoding: on CUDA cuDNN would plan anew for every length, 50 ms each, to save nothing
        return 'math' if q.is_cuda or score_mod is not None or moments else 'sdpa'
    if able and (moments or form is not None or q.size(2) <= 1024 and training):
        return 'kernel' # without a form cuDNN is faster on longer rows and without a backward
    if not moments and (score_mod is None or rank_one(form)):
        return 'sdpa'
    flex_can = q.is_cuda and from_zero and dropout == 0 and q.size(-1) >= 16 and not moments # 16: its smallest head on CUDA
    return 'flex' if flex_can else 'math'


chosen, training_dropout = None, 0.0 # while record_backends(): the ways a training pass takes


@contextmanager
def record_backends(dropout):
    """A set that fills with the ways in which training with this dropout would compute what attention is computed meanwhile."""
    global chosen, training_dropout
    chosen, training_dropout = set(), dropout
    try:
        yield chosen
    finally:
        chosen = None


def working_dtype(q):
    """What matrix products are computed in: autocast's dtype, if it is on."""
    kind = q.device.type
    return torch.get_autocast_dtype(kind) if kind != 'meta' and torch.is_autocast_enabled(kind) else q.dtype


def rank_one(form):
    return form is not None and form.keys() == {'a', 'c'}


def beyond_kernel(q, score_mod, form):
    """What the kernel cannot do of these arguments of attend, positions apart, or None."""
    if score_mod is not None and form is None:
        return 'what this variant does to the scores'
    if q.size(-1) > 128:
        return f'heads of {q.size(-1)} channels, at most 128'
    if q.is_cuda and (kernels is None or q.dtype == torch.float64):
        return 'float64 on a GPU' if kernels else 'anything without Triton and an NVIDIA GPU'
    return None


def kernel_attention(q, k, v, score_mod, form, dropout, moments=False):
    """core/kernels: the Triton kernel on a CUDA device, else its T x T reference; positions are from_zero."""
    if why := beyond_kernel(q, score_mod, form):
        raise Stop(f'attn=kernel: cannot compute {why}; allowed: auto, math')
    if 0 < dropout < 1 / 512:
        raise Stop(f'attn_dropout={dropout}: attn=kernel drops in 256ths; allowed: 0, or 0.002 and more')
    dtype = working_dtype(q)
    seed = torch.randint(2 ** 31 - 1, (1,), device=q.device) if dropout else None # beyond 32 bits torch 2.11 draws nothing
    attention = kernels.attention if q.is_cuda else reference.attention
    return attention(q.to(dtype), k.to(dtype), v.to(dtype), **form or {}, moments=moments, dropout=dropout, seed=seed)


def sdpa_attention(q, k, v, pos_q, pos_k, form, from_zero, dropout):
    """PyTorch's fused attention; a_i c_j enters as extra columns of q and k."""
    hs = q.size(-1)
    if form is not None:
        q, k, v = with_columns(q, k, v, **form)
    mask = None if from_zero else pos_k[:, None, None, :] <= pos_q[:, None, :, None] # (B, 1, T, Tk)
    return fused(q, k, v, mask, dropout, is_causal=from_zero, scale=1.0 / math.sqrt(hs))[..., :hs]


def fused(q, k, v, *args, **options):
    """F.scaled_dot_product_attention. A CPU's backward in half precision takes up to four times as long as in float32 where
    rows are short: there they are made float32 (LOG.md has both)."""
    dtype = working_dtype(q)
    if q.device.type != 'cpu' or dtype.itemsize != 2 or q.size(-2) >= 256 or not torch.is_grad_enabled():
        return F.scaled_dot_product_attention(q, k, v, *args, **options)
    with torch.autocast('cpu', enabled=False):
        return F.scaled_dot_product_attention(q.float(), k.float(), v.float(), *args, **options).to(dtype)


def local_attention(q, k, v, window, dropout):
    """Attention to the last `window` positions, a query's own included, where positions are from_zero; no T x T anywhere.

    Chunks of `window` queries look at their own chunk of keys and the one before it.
    """
    B, nh, T, _ = q.size()
    if window >= T:
        return fused(q, k, v, None, dropout, is_causal=True)
    q, k, v = (F.pad(z, (0, 0, 0, -T % window)).flatten(0, 1).unflatten(1, (-1, window)) for z in (q, k, v)) # n chunks as dim 1
    k, v = (torch.cat((F.pad(z, (0, 0, 0, 0, 1, -1)), z), dim=2) for z in (k, v)) # (B * nh, n, 2 * window, hs)
    i, j = torch.arange(window, device=q.device)[:, None], torch.arange(-window, window, device=q.device)
    first = torch.arange(q.size(1), device=q.device).view(-1, 1, 1) == 0 # has no chunk before it
    mask = (j <= i) & (j > i - window) & ~(first & (j < 0)) # (n, window, 2 * window)
    y = fused(q, k, v, mask[None], dropout)
    return y.flatten(1, 2).unflatten(0, (B, nh))[:, :, :T]


def with_columns(q, k, v, a, c):
    """q, k with columns appended whose product is sqrt(hs) a_i c_j, and v padded with zeros to the same width.

    In half precision a and c go in as a rounded and a rest column each, four products in all: bfloat16 alone would blur a
    position beyond 256. The fused backward rounds each score's gradient, and a rounding error times a large c_j would drown
    a's gradient; so one more column, 0 in q and 1 in k, collects the sum of those errors (without rounding it is 0, for softmax
    does not see a constant) and takes it off at c_j = c_i, where the query is. Fused kernels want widths that are multiples of 8.
    """
    a, c = a * math.sqrt(q.size(-1)), c.to(torch.promote_types(a.dtype, torch.float32)).expand(-1, k.size(1), -1)
    parts_a, parts_c = split(a, q.dtype), split(c, k.dtype)
    own = a * c[..., -a.size(-1):]
    zero = (own.detach() - own).to(q.dtype)
    qc = torch.stack([x for x in parts_a for _ in parts_c] + [zero], dim=-1)
    kc = torch.stack([x for _ in parts_a for x in parts_c] + [torch.ones_like(parts_c[0])], dim=-1)
    pad = -(q.size(-1) + qc.size(-1)) % 8
    q, k = (F.pad(torch.cat(pair, dim=-1), (0, pad)) for pair in ((q, qc), (k, kc)))
    return q, k, F.pad(v, (0, q.size(-1) - v.size(-1)))


def split(x, dtype):
    """x as a sum of tensors of this dtype, to about float32's precision."""
    rounded = x.to(dtype)
    return [rounded, (x - rounded).to(dtype)] if dtype.itemsize < 4 else [rounded]


@cache
def compiled_flex():
    return torch.compile(flex.flex_attention, dynamic=False) # uncompiled it would write the T x T scores


def flex_attention(q, k, v, pos_q, pos_k, score_mod, from_zero):
    """FlexAttention, with a causal BlockMask that all rows share where positions are from_zero."""
    size = dict(H=None, Q_LEN=q.size(2), KV_LEN=k.size(2), device=q.device)
    if from_zero:
        mask = flex.create_block_mask(lambda b, h, i, j: j <= i, B=None, **size)
    else:
        mask = flex.create_block_mask(lambda b, h, i, j: pos_k[b, j] <= pos_q[b, i], B=q.size(0), **size)
    attention = flex.flex_attention if torch.compiler.is_compiling() else compiled_flex()
    return attention(q, k, v, score_mod=score_mod, block_mask=mask)
