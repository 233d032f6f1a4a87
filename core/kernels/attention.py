"""Causal attention with a bias, windows, moments and dropout, each optional: four Triton kernels; reference.py is the definition.

Forward, for each block of queries, going over blocks of keys with the online softmax of FlashAttention (arXiv 2205.14135):

    s_ij = scale q_i k_j        x_ij = s_ij + a_i (c_j - c_i)       p_ij = exp(x_ij) g_ij / sum_j exp(x_ij) g_ij
    y_i  = sum_j mask_ij p_ij v_j

and, with d = i - j, the moments D = sum_j p d, V = sum_j p (d - D)^2, S = sum_j p s. Saved: y, logsumexp_j(x + log g), moments.

Backward. Let dy, gD, gV, gS be the gradients of y, D, V, S. The gradient of p, less its mean over p, is

    z_ij    = mask_ij dy_i v_j + gD (d - D) + gV (d - D)^2 + gS s_ij - delta_i
    delta_i = dy_i y_i + gV V + gS S
    dx_ij   = p_ij z_ij                     ds_ij = dx_ij + gS p_ij
    dq_i    = scale sum_j ds_ij k_j         dk_j  = scale sum_i ds_ij q_i       dv_j = sum_i mask_ij p_ij dy_i
    da_i    = sum_j dx_ij (c_j - c_i)       dc_j  = sum_i dx_ij a_i             dw_i = sum_j p_ij z_ij (dg/dw) / g

sum_j dx_ij is 0, but only to the rounding of delta, that is of y. What would add it up (a and w over far keys, c over what it is
itself a sum of) takes it off again: r_i = sum_j dx_ij is spread over the row as p_ij r_i for da and dw, and charged to c_i for dc.

Nothing is T x T in memory and no sum is atomic: kernel `backward_q` owns a block of queries, `backward_kv` a block of keys, so two
runs are bit-equal. With windows each skips the blocks that none of its queries sees: the first key of a block of queries follows
from their windows. A block of keys inside all of them needs no exponential for each g = 1 - exp(-u): exp(-u) is one of the query
times one of the key's place in its block, the same in every block. Scores, bias, softmax, moments and every sum are float32;
products take the inputs' own precision.
"""
import functools
import math
from concurrent.futures import ThreadPoolExecutor, wait

import torch
import triton
import triton.language as tl
from torch._subclasses.fake_tensor import FakeTensor

from core.kernels.attention_reference import ROUNDS, threshold

# Inside, s is q k without its scale, and x and a are over the scale, which comes with the power: exp(scale x) = exp2(unit x) with
# unit = scale LOG2E is one multiply-add before the exp2 that the hardware has. Logsumexps are base 2.
LOG2E = tl.constexpr(1.4426950408889634)
PHILOX_ROUNDS = tl.constexpr(ROUNDS)
MOST = tl.constexpr(100.0) # of exponents that a factor of 0 follows
ENDS, INSIDE, OWN = (tl.constexpr(n) for n in range(3)) # blocks of keys: where a window ends, that all see, with queries' own
EDGE = tl.constexpr(1.2e-7) # of a window is not seen: there 1 - exp(-u) may round to 0, and a query could be left with nothing

# bytes of a row of q -> (queries, keys, warps, stages, registers) of a block in forward, backward_q and backward_kv. The inner
# block divides the outer: keys divide queries, but in backward_kv queries divide keys. For an H100: where the compiler, left alone,
# takes so many registers that only 8 warps fit on a multiprocessor, the bound makes it 12 or 16, with few spills or none.
TILES = {
    32: ((64, 64, 4, 3, 128), (64, 64, 4, 3, 168), (32, 64, 4, 3, 128)),
    64: ((64, 64, 4, 3, 128), (64, 64, 4, 3, 168), (32, 64, 4, 3, 128)),
    128: ((64, 64, 4, 3, 128), (64, 64, 4, 3, 168), (32, 64, 4, 3, 168)),
    256: ((128, 64, 8, 2, 255), (128, 32, 8, 2, 255), (32, 128, 8, 2, 255)),
    512: ((64, 32, 8, 2, 255), (64, 32, 8, 2, 255), (32, 64, 8, 2, 255)),
}
COLUMNS_FROM, BASE = 2048, 64 # tokens: shorter rows do not pay for the launch of key_columns; c is about one key of so many
TEST_EACH_BLOCK = True # in backward_kv with windows: leave out each block of queries that sees nothing, not only those at the end


def attention(q, k, v, a=None, c=None, w=None, ramp=None, scale=None, moments=False, dropout=0.0, seed=None):
    """reference.attention for head sizes to 128 in float32, float16 or bfloat16; a, c, w and the moments in float32."""
    scale = 1 / math.sqrt(q.size(-1)) if scale is None else scale
    a, c, w = (None if x is None else x.float() for x in (a, c, w))
    y, _, *stats = forward(q, k, v, a, c, w, seed, scale, ramp or 0.0, dropout, moments)
    return (y, *stats) if moments else y


# -----------------------------------------------------------------------------
# what the kernels share

@triton.jit
def load_rows(x, t, T, stride, HS: tl.constexpr, D: tl.constexpr, GUARD: tl.constexpr):
    """Rows t of x (T, HS), widened with zeros to (len(t), D). GUARD: some t may be T or more, and are zeros too."""
    n = tl.arange(0, D)
    x += t[:, None] * stride + n[None, :]
    if GUARD:
        return tl.load(x, mask=(t < T)[:, None] & (n < HS)[None, :], other=0.0)
    elif HS < D:
        return tl.load(x, mask=(n < HS)[None, :], other=0.0)
    else:
        return tl.load(x)


@triton.jit
def store_rows(x, value, t, T, stride, HS: tl.constexpr, D: tl.constexpr):
    n = tl.arange(0, D)
    tl.store(x + t[:, None] * stride + n[None, :], value, mask=(t < T)[:, None] & (n < HS)[None, :])


@triton.jit
def load_each(x, t, T, other, GUARD: tl.constexpr):
    """x[t] (len(t),). GUARD: some t may be T or more, and are `other`."""
    if GUARD:
        return tl.load(x + t, mask=t < T, other=other)
    else:
        return tl.load(x + t)


@triton.jit
def load_quad(x, t):
    """x[t] of x (T, 4), as four tensors: read one by one, each would take as many instructions as all four."""
    ac, bd = tl.split(tl.load(x + t[:, None] * 4 + tl.arange(0, 4)[None, :]).reshape(t.shape[0], 2, 2))
    a, c = tl.split(ac)
    b, d = tl.split(bd)
    return a, b, c, d


@triton.jit
def store_quad(x, t, T, a, b, c, d):
    """Four tensors as x[t] of x (T, 4), where t < T."""
    rows = tl.join(tl.join(a, c), tl.join(b, d)).reshape(t.shape[0], 4)
    tl.store(x + t[:, None] * 4 + tl.arange(0, 4)[None, :], rows, mask=(t < T)[:, None])


@triton.jit
def load_window(w, t, T):
    """From 2 on, where a query sees itself alone, as below; and no infinity, which times 0 would be NaN."""
    return tl.minimum(tl.maximum(load_each(w, t, T, 2.0, True), 2.0), 1e30)


@triton.jit
def fade_rate(w, ramp, RAMP: tl.constexpr):
    """For fade(), of each query."""
    if RAMP:
        return tl.full(w.shape, 1.0, tl.float32) / ramp
    else:
        return tl.full(w.shape, 1.0, tl.float32) / w * -LOG2E


@triton.jit
def fade(left, rate, ramp, RAMP: tl.constexpr):
    """1 - g and dg/du; left = w - 1 - d, what of the window is beyond this key; g is 0 where there is nothing."""
    if RAMP:
        return 1.0 - tl.minimum(tl.maximum(left, 0.0) * rate, 1.0), tl.where(left <= ramp, 1.0, 0.0)
    else:
        e = tl.exp2(tl.maximum(left, 0.0) * rate) # beyond the window it would be infinite
        return e, e


@triton.jit
def kept(seed, row, i, start_j, cut, BI: tl.constexpr, BJ: tl.constexpr):
    """(BI, BJ) of reference.dropout_mask, for queries i and keys from start_j on: one call of Philox serves 16 keys."""
    block = (start_j // 16 + tl.arange(0, BJ // 16)).to(tl.uint32)
    zero = tl.zeros((BI, BJ // 16), tl.uint32)
    r0, r1, r2, r3 = tl.philox(seed, zero + i[:, None].to(tl.uint32), zero + block[None, :], zero + row.to(tl.uint32), zero,
                               n_rounds=PHILOX_ROUNDS)
    words = tl.join(tl.join(r0, r2), tl.join(r1, r3)).reshape(BI, BJ // 4, 1) # r0 r1 r2 r3 side by side
    return ((words >> (8 * tl.arange(0, 4))[None, None, :]) & 255).reshape(BI, BJ) >= cut


@triton.jit
def thirds(x):
    """x as a sum of three numbers in bfloat16, to float32's precision; in float32."""
    one = x.to(tl.bfloat16).to(tl.float32)
    two = (x - one).to(tl.bfloat16).to(tl.float32)
    return one, two, (x - one - two).to(tl.bfloat16).to(tl.float32)


@triton.jit
def inverse(x):
    """1 / x of a sum of weights, within a few roundings, by three instructions; a division of numbers of any size takes eight."""
    root = tl.rsqrt(tl.maximum(x, 1e-30))
    return root * root


@triton.jit
def by_threads(x):
    """x (BQ, BK) as (BQ, 4, BK / 4): of eight neighbours in a row of a product four threads hold two each."""
    x = x.reshape(x.shape[0], x.shape[1] // 8, 4, 2).permute(0, 2, 1, 3)
    return x.reshape(x.shape[0], 4, x.shape[2] * 2)


@triton.jit
def in_threads(x):
    """(BQ, 4), whose sum is that of x (BQ, BK) over keys, without an exchange between threads."""
    return tl.sum(by_threads(x), 2)


@triton.jit
def to_threads(x):
    """x (BQ,) as (BQ, 4), each number where in_threads() puts its sums."""
    return tl.max(by_threads(tl.broadcast_to(x[:, None], x.shape[0], 8)), 2)


@triton.jit
def first_keys(w, i, BN: tl.constexpr):
    """For each BN of the queries i the first key that one of them sees, or the one before it."""
    return tl.min(tl.maximum(i + 1.0 - w, 0.0).reshape(i.shape[0] // BN, BN), 1).to(tl.int32)


@triton.jit
def first_inside(w, i, T):
    """A key two to four tokens inside the windows of all the queries i; later keys are further inside."""
    return tl.max(tl.where(i < T, tl.maximum(i + 1.0 - w, -3.0), -3.0)).to(tl.int32) + 3


# -----------------------------------------------------------------------------
# forward

@triton.jit
def forward_kernel(Q, K, V, A, C, W, SEED, Y, LSE, DISTANCE, VARIANCE, SCORE,
                   q_b, q_h, q_t, k_b, k_h, k_t, v_b, v_h, v_t, c_b, c_h, c_n, T, nh, scale, ramp, cut,
                   HS: tl.constexpr, D: tl.constexpr, BQ: tl.constexpr, BK: tl.constexpr, EVEN: tl.constexpr,
                   BIAS: tl.constexpr, WINDOW: tl.constexpr, RAMP: tl.constexpr, MOMENTS: tl.constexpr, DROPOUT: tl.constexpr,
                   PRECISION: tl.constexpr):
    start_i = (tl.num_programs(0) - 1 - tl.program_id(0)) * BQ # the longest rows start first
    row = tl.program_id(1).to(tl.int64) # of B nh
    b, h = row // nh, row % nh
    Q, K, V = Q + b * q_b + h * q_h, K + b * k_b + h * k_h, V + b * v_b + h * v_h
    Y += b * T * nh * HS + h * HS # (B, T, nh, hs)
    i = start_i + tl.arange(0, BQ)
    at = row * T + i
    q = load_rows(Q, i, T, q_t, HS, D, not EVEN) # (BQ, D)
    first, inside = 0, 0
    if BIAS: # about the block's first position, which is as good as about each query
        C += b * c_b + h * c_h
        c_0 = tl.load(C + start_i)
        a = tl.load(A + at, mask=i < T, other=0.0) / scale
        c_i = tl.load(C + i, mask=i < T, other=0.0) - c_0
    fi, columns = (i - start_i).to(tl.float32), tl.arange(0, BK).to(tl.float32) # positions from start_i, keys' from start_j
    if WINDOW:
        w = load_window(W + row * T, i, T)
        first = tl.min(first_keys(w, i, BQ)) // BK * BK
        inside = tl.minimum(tl.cdiv(first_inside(w, i, T), BK) * BK, start_i)
        rate = fade_rate(w, ramp, RAMP)
        in_block = tl.exp2(rate[:, None] * (columns - (BK - 1))[None, :]) # exp(-u) over the block's last key's, in every block
    if DROPOUT:
        seed = tl.load(SEED)

    unit = scale * LOG2E
    top = tl.full((BQ,), -1e30, tl.float32) # the largest x so far; finite, for a block may hold nothing that its row sees
    total = tl.zeros((BQ, 4), tl.float32) # of weights, as long as they are exp2(x - top) g; for each of a row's four threads
    y = tl.zeros((BQ, D), tl.float32)
    if MOMENTS:
        mean = tl.zeros((BQ, 4), tl.float32) # of j - i
        spread = tl.zeros((BQ, 4), tl.float32) # sum of weight (j - i - mean)^2
        score = tl.zeros((BQ, 4), tl.float32)
    for part in tl.static_range(ENDS if WINDOW else INSIDE, OWN + 1):
        for start_j in tl.range(first if part == ENDS else inside if part == INSIDE else start_i,
                                inside if part == ENDS else start_i if part == INSIDE else tl.minimum(start_i + BQ, T), BK):
            j = start_j + tl.arange(0, BK)
            at_i = fi - (start_j - start_i) # queries' positions from start_j, as the columns
            k = load_rows(K, j, T, k_t, HS, D, part == OWN and not EVEN) # (BK, D)
            s = tl.dot(q, k.T, input_precision=PRECISION) # (BQ, BK)
            x = s
            if BIAS:
                c = load_each(C, j, T, 0.0, part == OWN and not EVEN) - c_0
                x += a[:, None] * c[None, :]
            if part == OWN:
                x = tl.where(j[None, :] <= i[:, None], x, float('-inf'))
            if WINDOW:
                left = (w - 1.0)[:, None] - (at_i[:, None] - columns[None, :])
                if part == INSIDE and not RAMP: # an exponential for a query, not one for a score
                    lost = in_block * tl.exp2((w - 1.0 - (at_i - (BK - 1))) * rate)[:, None]
                else:
                    lost, _ = fade(left, rate[:, None], ramp, RAMP)
                    x = tl.where(left > (w * EDGE)[:, None], x, float('-inf'))
            new_top = tl.maximum(top, tl.max(x, 1))
            shrink = tl.exp2((top - new_top) * unit)
            p = tl.exp2(x * unit - (new_top * unit)[:, None])
            if WINDOW:
                p -= p * lost
            here, fewer = in_threads(p), to_threads(shrink)
            before = total * fewer
            total = before + here
            if MOMENTS: # the block's about its key next to the query, then merged (Chan, Golub and LeVeque): squares stay small
                near = tl.minimum(at_i, BK - 1.0)
                off = columns[None, :] - near[:, None] if part == OWN else (columns - (BK - 1))[None, :]
                moment = in_threads(p * off)
                block_mean = moment * inverse(here)
                step = to_threads(near - at_i) + block_mean - mean
                move = step * (here * inverse(total))
                spread = spread * fewer + (in_threads(p * (off * off)) - moment * block_mean) + step * move * before
                mean += move
                score = score * fewer + in_threads(p * s)
            if DROPOUT:
                p = tl.where(kept(seed, row, i, start_j, cut, BQ, BK), p, 0.0)
            v = load_rows(V, j, T, v_t, HS, D, part == OWN and not EVEN) # (BK, D)
            y = tl.dot(p.to(v.dtype), v, y * shrink[:, None], input_precision=PRECISION)
            top = new_top
    each, total = total, tl.sum(total, 1)
    if MOMENTS: # the four threads' merged
        distance = -tl.sum(each / total[:, None] * mean, 1)
        off = mean + distance[:, None]
        spread, score = tl.sum(spread + each * (off * off), 1), tl.sum(score, 1)
    if DROPOUT:
        y *= 256.0 / (256.0 - cut)
    store_rows(Y, (y / total[:, None]).to(Y.dtype.element_ty), i, T, nh * HS, HS, D)
    lse = top * unit + tl.log2(total)
    if BIAS:
        lse -= a * c_i * unit # about each query
    tl.store(LSE + at, lse, mask=i < T)
    if MOMENTS:
        tl.store(DISTANCE + at, distance, mask=i < T)
        tl.store(VARIANCE + at, tl.maximum(spread / total, 0.0), mask=i < T)
        tl.store(SCORE + at, score / total * scale, mask=i < T)


# -----------------------------------------------------------------------------
# backward

@triton.jit
def key_columns(C, COLUMNS, c_b, c_h, T, BASE: tl.constexpr):
    """(T, 16) for each of C's heads: 1, c in thirds about the first of its BASE keys, and that one's c about the row's first."""
    start = tl.program_id(0) * BASE
    row, b, h = tl.program_id(1).to(tl.int64) * tl.num_programs(2) + tl.program_id(2), tl.program_id(1), tl.program_id(2)
    C += b * c_b + h * c_h
    j = start + tl.arange(0, BASE)
    base = tl.load(C + start)
    c_1, c_2, c_3 = thirds(load_each(C, j, T, 0.0, True) - base)
    b_1, b_2, b_3 = thirds(base - tl.load(C) + tl.zeros((BASE,), tl.float32))
    n = tl.arange(0, 16)[None, :]
    x = tl.where(n == 0, 1.0, tl.where(n == 1, c_1[:, None], tl.where(n == 2, c_2[:, None], tl.where(n == 3, c_3[:, None], 0.0))))
    x += tl.where(n == 4, b_1[:, None], tl.where(n == 5, b_2[:, None], tl.where(n == 6, b_3[:, None], 0.0)))
    store_rows(COLUMNS + row * T * 16, x.to(tl.bfloat16), j, T, 16, 16, 16)


@triton.jit
def backward_q(Q, K, V, A, C, W, SEED, Y, DY, LSE, COLUMNS, DISTANCE, VARIANCE, SCORE, DDISTANCE, DVARIANCE, DSCORE, DQ, DA, DC, DW,
               FIRST, NEAR, NEAR_MOMENTS,
               q_b, q_h, q_t, k_b, k_h, k_t, v_b, v_h, v_t, c_b, c_h, c_n, T, nh, scale, ramp, cut,
               HS: tl.constexpr, D: tl.constexpr, BQ: tl.constexpr, BK: tl.constexpr, BN: tl.constexpr, EVEN: tl.constexpr,
               BIAS: tl.constexpr, WINDOW: tl.constexpr, RAMP: tl.constexpr, MOMENTS: tl.constexpr, DROPOUT: tl.constexpr,
               NEED_A: tl.constexpr, NEED_C: tl.constexpr, COLUMN_SUMS: tl.constexpr, PRECISION: tl.constexpr):
    """Also what backward_kv, which comes next, reads of its blocks of BN queries: FIRST, the first key that one of them sees, and
    side by side for each query NEAR, its logsumexp about the block's first position, delta, a window's reach and what it fades by
    per token, or else a, and NEAR_MOMENTS, from the keys' mean position about the block's first one on."""
    start_i = (tl.num_programs(0) - 1 - tl.program_id(0)) * BQ
    row = tl.program_id(1).to(tl.int64)
    b, h = row // nh, row % nh
    Q, K, V = Q + b * q_b + h * q_h, K + b * k_b + h * k_h, V + b * v_b + h * v_h
    own, own_d = b * T * nh * HS + h * HS, b * T * 3 * nh * HS + h * HS
    i = start_i + tl.arange(0, BQ)
    at = row * T + i
    q = load_rows(Q, i, T, q_t, HS, D, not EVEN) # (BQ, D)
    y = load_rows(Y + own, i, T, nh * HS, HS, D, not EVEN) # (BQ, D)
    dy = load_rows(DY + own, i, T, nh * HS, HS, D, not EVEN) # (BQ, D)
    delta = tl.sum(y.to(tl.float32) * dy.to(tl.float32), 1)
    lse = tl.load(LSE + at, mask=i < T, other=float('inf')) # so that weights of queries that do not exist are 0
    unit = scale * LOG2E
    first, inside = 0, 0
    blocks, near = tl.cdiv(T, BN), i // BN * BN # of queries, and the first of each query's
    near_lse, third, fourth = lse, tl.zeros((BQ,), tl.float32), tl.zeros((BQ,), tl.float32)
    if BIAS:
        C += b * c_b + h * c_h
        c_0, c_i = tl.load(C + start_i), tl.load(C + i, mask=i < T, other=0.0)
        third = tl.load(A + at, mask=i < T, other=0.0)
        near_lse += third * LOG2E * (c_i - tl.load(C + near, mask=near < T, other=0.0))
        a = third / scale
        lse += a * unit * (c_i - c_0)
    fi, columns = (i - start_i).to(tl.float32), tl.arange(0, BK).to(tl.float32) # positions from start_i, keys' from start_j
    if WINDOW:
        w = load_window(W + row * T, i, T)
        first = tl.min(first_keys(w, i, BQ)) // BK * BK
        inside = tl.minimum(tl.cdiv(first_inside(w, i, T), BK) * BK, start_i)
        rate = fade_rate(w, ramp, RAMP)
        in_block = tl.exp2(rate[:, None] * (columns - (BK - 1))[None, :]) # exp(-u) over the block's last key's, in every block
        third, fourth = w - 1.0, rate
        n = start_i // BN + tl.arange(0, BQ // BN)
        tl.store(FIRST + row * blocks + n, first_keys(w, i, BN), mask=n < blocks)
    if MOMENTS:
        mean = fi - tl.load(DISTANCE + at, mask=i < T, other=0.0) # of the keys' positions
        ddistance = tl.load(DDISTANCE + at, mask=i < T, other=0.0)
        dvariance = tl.load(DVARIANCE + at, mask=i < T, other=0.0)
        dscore = tl.load(DSCORE + at, mask=i < T, other=0.0)
        delta += dvariance * tl.load(VARIANCE + at, mask=i < T, other=0.0)
        delta += dscore * tl.load(SCORE + at, mask=i < T, other=0.0)
        if not (BIAS or WINDOW): # nobody asks for dx without gS
            delta -= dscore
        store_quad(NEAR_MOMENTS + row * blocks * BN * 4, i, blocks * BN,
                   mean - (near - start_i), ddistance, dvariance, dscore * scale)
    NEAR += row * blocks * BN * 4
    store_quad(NEAR, i, blocks * BN, near_lse, delta, third, fourth)
    if MOMENTS: # a sum stays in its threads, and what the loop adds to it would be handed over each time; a load may be anywhere
        tl.debug_barrier()
        delta = tl.load(NEAR + i * 4 + 1, mask=i < T, other=0.0)
    if DROPOUT:
        seed = tl.load(SEED)

    dq = tl.zeros((BQ, D), tl.float32)
    rest = tl.zeros((BQ, 4), tl.float32) # sum of dx, what rounding makes of 0
    da, a_share = tl.zeros((BQ, 4), tl.float32), tl.zeros((BQ, 4), tl.float32)
    if COLUMN_SUMS: # rest, da and a_share are products with the keys' columns, for which tensor cores have time
        COLUMNS += (b * c_n + h % c_n) * T * 16
        sums, shares = tl.zeros((BQ, 16), tl.float32), tl.zeros((BQ, 16), tl.float32)
    dw, w_share = tl.zeros((BQ, 4), tl.float32), tl.zeros((BQ, 4), tl.float32)
    for part in tl.static_range(ENDS if WINDOW else INSIDE, OWN + 1):
        for start_j in tl.range(first if part == ENDS else inside if part == INSIDE else start_i,
                                inside if part == ENDS else start_i if part == INSIDE else tl.minimum(start_i + BQ, T), BK):
            j = start_j + tl.arange(0, BK)
            k = load_rows(K, j, T, k_t, HS, D, part == OWN and not EVEN) # (BK, D)
            v = load_rows(V, j, T, v_t, HS, D, part == OWN and not EVEN) # (BK, D)
            at_i = fi - (start_j - start_i) # queries' positions from start_j, as the columns
            s = tl.dot(q, k.T, input_precision=PRECISION) # (BQ, BK)
            x = s
            if BIAS:
                c = load_each(C, j, T, 0.0, part == OWN and not EVEN) - c_0
                x += a[:, None] * c[None, :]
            if part == OWN:
                x = tl.where(j[None, :] <= i[:, None], x, float('-inf'))
            if WINDOW:
                left = (w - 1.0)[:, None] - (at_i[:, None] - columns[None, :])
                if part == INSIDE and not RAMP: # an exponential for a query, not one for a score
                    lost = in_block * tl.exp2((w - 1.0 - (at_i - (BK - 1))) * rate)[:, None]
                    slope = lost
                else:
                    lost, slope = fade(left, rate[:, None], ramp, RAMP)
                    x = tl.where(left > (w * EDGE)[:, None], x, float('-inf'))
            p = tl.exp2(x * unit - lse[:, None])
            if WINDOW:
                dp_dw = p * slope # but for what belongs to the row
                if not RAMP:
                    dp_dw *= (at_i + 1.0)[:, None] - columns[None, :]
                p -= p * lost
            dp = tl.dot(dy, v.T, input_precision=PRECISION) # (BQ, BK)
            if DROPOUT:
                dp = tl.where(kept(seed, row, i, start_j, cut, BQ, BK), dp * (256.0 / (256.0 - cut)), 0.0)
            if MOMENTS: # as a polynomial of the column; in this order the product adds dp to the others, for nothing
                off = mean + (at_i - fi) # d - D of the first column
                z_0, z_1 = off * (ddistance + dvariance * off) - delta, -(ddistance + 2.0 * dvariance * off)
                others = z_0[:, None] + columns[None, :] * (z_1[:, None] + dvariance[:, None] * columns[None, :])
                z = dp + ((dscore * scale)[:, None] * s + others)
            else:
                z = dp - delta[:, None]
            ds = p * z
            if COLUMN_SUMS:
                keys = load_rows(COLUMNS, j, T, 16, 16, 16, part == OWN and not EVEN) # (BK, 16)
                sums = tl.dot(ds.to(tl.bfloat16), keys, sums)
                if NEED_A:
                    shares = tl.dot(p.to(tl.bfloat16), keys, shares)
            else:
                if NEED_A or NEED_C or WINDOW:
                    rest += in_threads(ds)
                if NEED_A:
                    da += in_threads(ds * c[None, :])
                    a_share += in_threads(p * c[None, :])
            if WINDOW:
                dw += in_threads(dp_dw * z)
                w_share += in_threads(dp_dw)
            if MOMENTS and (BIAS or WINDOW):
                ds += p * dscore[:, None]
            dq = tl.dot(ds.to(k.dtype), k, dq, input_precision=PRECISION)
    if COLUMN_SUMS:
        ones = (tl.arange(0, 16) == 0)[None, :]
        rest, da = tl.sum(tl.where(ones, sums, 0.0), 1), tl.sum(tl.where(ones, 0.0, sums), 1)
        a_share = tl.sum(tl.where(ones, 0.0, shares), 1)
    else:
        rest, da, a_share = tl.sum(rest, 1), tl.sum(da, 1), tl.sum(a_share, 1)
    store_rows(DQ + own_d, (dq * scale).to(DQ.dtype.element_ty), i, T, 3 * nh * HS, HS, D)
    if NEED_A:
        tl.store(DA + at, da - rest * a_share, mask=i < T)
    if NEED_C:
        tl.store(DC + at, -a * scale * rest, mask=i < T) # backward_kv adds its own
    if WINDOW:
        du_dw = 1.0 / ramp if RAMP else 1.0 / (w * w)
        dw = tl.sum(dw, 1) - rest * tl.sum(w_share, 1)
        tl.store(DW + at, tl.where(w > 2.0, dw * du_dw, 0.0), mask=i < T)


@triton.jit
def backward_kv(Q, K, V, A, C, SEED, DY, FIRST, NEAR, NEAR_MOMENTS, DK, DV, DC,
                q_b, q_h, q_t, k_b, k_h, k_t, v_b, v_h, v_t, c_b, c_h, c_n, T, nh, scale, ramp, cut,
                HS: tl.constexpr, D: tl.constexpr, BQ: tl.constexpr, BK: tl.constexpr, EVEN: tl.constexpr,
                BIAS: tl.constexpr, WINDOW: tl.constexpr, RAMP: tl.constexpr, MOMENTS: tl.constexpr, DROPOUT: tl.constexpr,
                NEED_C: tl.constexpr, BLOCKS: tl.constexpr, EACH: tl.constexpr, PRECISION: tl.constexpr):
    """Blocks are transposed here, (BK, BQ), so that p and ds come out as their products with dy and q want them."""
    start_j = tl.program_id(0) * BK # the first keys have the most queries
    row = tl.program_id(1).to(tl.int64)
    b, h = row // nh, row % nh
    Q, K, V = Q + b * q_b + h * q_h, K + b * k_b + h * k_h, V + b * v_b + h * v_h
    own, own_d = b * T * nh * HS + h * HS, b * T * 3 * nh * HS + h * HS
    DY += own
    near = row * tl.cdiv(T, BQ) * BQ * 4
    NEAR, NEAR_MOMENTS = NEAR + near, NEAR_MOMENTS + near
    j = start_j + tl.arange(0, BK)
    k = load_rows(K, j, T, k_t, HS, D, not EVEN) # (BK, D)
    v = load_rows(V, j, T, v_t, HS, D, not EVEN) # (BK, D)
    stop = T
    if BIAS:
        A += row * T
        C += b * c_b + h * c_h
        c_0 = tl.load(C + start_j)
        c = (tl.load(C + j, mask=j < T, other=0.0) - c_0) / scale
    fj = (j - start_j).to(tl.float32)
    if WINDOW:
        blocks = tl.cdiv(T, BQ)
        FIRST += row * blocks
        n = tl.arange(0, BLOCKS)
        first = tl.load(FIRST + n, mask=n < blocks, other=T)
        stop = tl.minimum((tl.max(tl.where(first < start_j + BK, n, 0)) + 1) * BQ, T) # after the last queries that see a key
    if DROPOUT:
        seed = tl.load(SEED)

    unit = scale * LOG2E
    dk, dv = tl.zeros((BK, D), tl.float32), tl.zeros((BK, D), tl.float32)
    dc = tl.zeros((BK,), tl.float32)
    for diagonal in tl.static_range(1, -1, -1):
        for start_i in tl.range(start_j if diagonal else start_j + BK, tl.minimum(start_j + BK, T) if diagonal else stop, BQ):
            visit = True
            if WINDOW and EACH and not diagonal:
                visit = tl.load(FIRST + start_i // BQ) < start_j + BK
            if visit:
                i = start_i + tl.arange(0, BQ)
                q = load_rows(Q, i, T, q_t, HS, D, not EVEN) # (BQ, D)
                dy = load_rows(DY, i, T, nh * HS, HS, D, not EVEN) # (BQ, D)
                lse, delta, third, rate = load_quad(NEAR, i)
                if MOMENTS:
                    mean, ddistance, dvariance, s_factor = load_quad(NEAR_MOMENTS, i)
                    mean += start_i - start_j
                s = tl.dot(k, q.T, input_precision=PRECISION) # (BK, BQ)
                x = s
                if BIAS:
                    a = load_each(A, i, T, 0.0, not EVEN) if WINDOW else third
                    lse += a * (LOG2E * (tl.load(C + start_i) - c_0))
                    x += a[None, :] * c[:, None]
                if diagonal:
                    x = tl.where(j[:, None] <= i[None, :], x, float('-inf'))
                if WINDOW:
                    at_j = fj - (start_i - start_j) # keys' positions from start_i
                    d = tl.arange(0, BQ).to(tl.float32)[None, :] - at_j[:, None]
                    lost, _ = fade(third[None, :] - d, rate[None, :], ramp, RAMP)
                    p = tl.exp2(tl.minimum(x * unit - lse[None, :], MOST)) # of an infinity nothing could be left out
                    p -= p * lost
                else:
                    p = tl.exp2(x * unit - lse[None, :])
                dp = tl.dot(v, dy.T, input_precision=PRECISION) # (BK, BQ)
                used = p
                if DROPOUT:
                    keep = kept(seed, row, i, start_j, cut, BQ, BK).T
                    used = tl.where(keep, p, 0.0)
                    dp = tl.where(keep, dp * (256.0 / (256.0 - cut)), 0.0)
                dv = tl.dot(used.to(dy.dtype), dy, dv, input_precision=PRECISION)
                z = dp - delta[None, :]
                if MOMENTS: # not in the order above, in which these loads leave the pipeline
                    off = mean[None, :] - fj[:, None]
                    z += s_factor[None, :] * s
                    z += off * (ddistance[None, :] + dvariance[None, :] * off)
                ds = p * z
                if NEED_C:
                    dc += tl.sum(ds * a[None, :], 1)
                if MOMENTS and (BIAS or WINDOW):
                    ds += p * (s_factor / scale)[None, :]
                dk = tl.dot(ds.to(q.dtype), q, dk, input_precision=PRECISION)
    if DROPOUT:
        dv *= 256.0 / (256.0 - cut)
    store_rows(DK + own_d, (dk * scale).to(DK.dtype.element_ty), j, T, 3 * nh * HS, HS, D)
    store_rows(DV + own_d, dv.to(DV.dtype.element_ty), j, T, 3 * nh * HS, HS, D)
    if NEED_C:
        tl.store(DC + row * T + j, dc + tl.load(DC + row * T + j, mask=j < T, other=0.0), mask=j < T)


# -----------------------------------------------------------------------------
# as PyTorch operators, which torch.compile leaves whole

def tiles_of(row, T, bias, window, moments, dropout):
    """TILES, and at head size 64 in half precision what measured faster for what there is to do and for long rows (LOG.md)."""
    forward, q, kv = TILES[row]
    if row == 128:
        if window or moments or dropout or not bias:
            forward = (64, 64, 4, 3, 168)
        if moments and not window and T >= 4096:
            q = (64, 64, 4, 3, 255)
        elif window or moments and dropout:
            q = (64, 32, 4, 3, 168)
        elif moments or dropout or T <= 512:
            q = (64, 32, 4, 3, 128)
        if moments and dropout:
            kv = (32, 64, 4, 3, 255)
        elif not window and T >= (8192 if bias and not moments else 4096):
            kv = (64, 64, 4, 2 if bias and not (moments or dropout) else 3, 255)
    return forward, q, kv


def per_head(q):
    """An empty (B, nh, T, hs) that lies in memory as (B, T, nh, hs), so that heads are side by side again for free."""
    B, nh, T, hs = q.size()
    return q.new_empty(B, T, nh, hs).transpose(1, 2)


def side_by_side(q):
    """An empty (B, T, 3 nh, hs) for the gradients of q, k and v: in memory, that of the product whose parts they are."""
    B, nh, T, hs = q.size()
    return q.new_empty(B, T, 3 * nh, hs)


def per_query(q, there=True):
    return q.new_empty(q.shape[:3] if there else (0,), dtype=torch.float32)


def settings(q, k, v, a, c, w, ramp, dropout, moments):
    """The kernels' common arguments: strides and sizes, constants."""
    HS, T = q.size(-1), q.size(2)
    D = max(16, triton.next_power_of_2(HS))
    row = max(32, D * q.element_size())
    tiles = tiles_of(row, T, a is not None, w is not None, moments, dropout > 0)
    strides = [n for x in (q, k, v) for n in x.stride()[:3]]
    strides += [0, 0, 1] if c is None else [c.stride(0), c.stride(1) if c.size(1) > 1 else 0, c.size(1)]
    fast = q.dtype == torch.float32 and torch.backends.cuda.matmul.fp32_precision == 'tf32'
    options = dict(HS=HS, D=D, EVEN=all(T % max(tile[:2]) == 0 for tile in tiles), BIAS=a is not None, WINDOW=w is not None,
                   RAMP=ramp > 0, DROPOUT=dropout > 0, PRECISION='tf32' if fast else 'ieee')
    return tiles, strides, options


def block(tile):
    return dict(zip(('BQ', 'BK', 'num_warps', 'num_stages', 'maxnreg'), tile, strict=True))


def canonical(*tensors):
    """Rows of a head and everything per query side by side in memory, as the kernels read them."""
    return (x if x is None or x.stride(-1) == 1 and x.ndim == 4 else x.contiguous() for x in tensors)


threads, begun = ThreadPoolExecutor(4), []


@functools.cache
def begin(kernel, device, args, options):
    """Compiles a kernel for tensors of these dtypes and these other arguments, while torch.compile goes on with its own."""
    def warm_up():
        with torch.cuda.device(device):
            kernel.warmup(*args, grid=(1,), **dict(options))

    begun.append(threads.submit(warm_up))


def launch(kernel, *grid):
    """kernel[grid]; for tensors that have no memory, as torch.compile's tracing has them, only its compilation begins."""
    def run(*args, **options):
        if isinstance(args[0], FakeTensor):
            dtypes = tuple(x.dtype if isinstance(x, torch.Tensor) else x for x in args)
            return begin(kernel, args[0].device, dtypes, tuple(options.items()))
        if begun:
            wait(begun) # what went wrong in there goes wrong here again, and is told
            begun.clear()
        kernel[grid](*args, **options)
    return run


def begin_launches(launches, *inputs):
    """Lets its kernels compile early, where sizes are known; outputs that come with it are dropped."""
    if torch.cuda.is_available() and inputs[0].is_cuda and all(isinstance(n, int) for n in inputs[0].shape):
        launches(*inputs)


def forward_launches(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, a: torch.Tensor | None, c: torch.Tensor | None,
                     w: torch.Tensor | None, seed: torch.Tensor | None, scale: float, ramp: float, dropout: float, moments: bool,
                     ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """y, the logsumexp in base 2, and three moments, which are empty unless asked for."""
    q, k, v, a, c, w = canonical(q, k, v, a, c, w)
    B, nh, T, _ = q.size()
    y, lse, stats = per_head(q), per_query(q), [per_query(q, moments) for _ in range(3)]
    (tile, _, _), strides, options = settings(q, k, v, a, c, w, ramp, dropout, moments)
    launch(forward_kernel, triton.cdiv(T, tile[0]), B * nh)(
        q, k, v, a, c, w, seed, y, lse, *stats, *strides, T, nh, scale, ramp, threshold(dropout),
        MOMENTS=moments, **options, **block(tile))
    return y, lse, *stats


forward = torch.library.custom_op('core::attention', forward_launches, mutates_args=())


@forward.register_fake
def _(q, k, v, a, c, w, seed, scale, ramp, dropout, moments):
    begin_launches(forward_launches, q, k, v, a, c, w, seed, scale, ramp, dropout, moments)
    return per_head(q), per_query(q), *(per_query(q, moments) for _ in range(3))


def backward_launches(dy: torch.Tensor, dstats: list[torch.Tensor], q: torch.Tensor, k: torch.Tensor, v: torch.Tensor,
                      a: torch.Tensor | None, c: torch.Tensor | None, w: torch.Tensor | None, seed: torch.Tensor | None,
                      y: torch.Tensor, lse: torch.Tensor, stats: list[torch.Tensor], scale: float, ramp: float, dropout: float,
                      moments: bool, need_a: bool, need_c: bool,
                      ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The gradients of q, k and v, side by side in one (B, T, 3 nh, hs), a, c (for every head) and w; empty where there is none."""
    q, k, v, a, c, w, *dstats = canonical(q, k, v, a, c, w, *dstats)
    dy = dy.transpose(1, 2).contiguous() # (B, T, nh, hs), as y is
    B, nh, T, _ = q.size()
    dqkv = side_by_side(q)
    dq, dk, dv = dqkv.split(nh, dim=2)
    da, dc, dw = (per_query(q, there) for there in (need_a, need_c, w is not None))
    (_, tile_q, tile_kv), strides, options = settings(q, k, v, a, c, w, ramp, dropout, moments)
    blocks = triton.cdiv(T, tile_kv[0])
    first = q.new_empty(B, nh, blocks, dtype=torch.int32)
    near, near_moments = (q.new_empty(B, nh, n * tile_kv[0], 4, dtype=torch.float32) for n in (blocks, blocks * moments))
    columns = None
    if (need_a or need_c) and q.dtype == torch.bfloat16 and T >= COLUMNS_FROM:
        columns = torch.empty(B, c.size(1), T, 16, dtype=torch.bfloat16, device=q.device)
        launch(key_columns, triton.cdiv(T, BASE), B, c.size(1))(c, columns, *strides[-3:-1], T, BASE=BASE)
    sizes = (*strides, T, nh, scale, ramp, threshold(dropout))
    launch(backward_q, triton.cdiv(T, tile_q[0]), B * nh)(
        q, k, v, a, c, w, seed, y, dy, lse, columns, *stats, *dstats, dq, da, dc, dw, first, near, near_moments, *sizes,
        BN=tile_kv[0], MOMENTS=moments, NEED_A=need_a, NEED_C=need_c, COLUMN_SUMS=columns is not None, **options, **block(tile_q))
    launch(backward_kv, triton.cdiv(T, tile_kv[1]), B * nh)(
        q, k, v, a, c, seed, dy, first, near, near_moments, dk, dv, dc, *sizes,
        BLOCKS=1 if w is None else triton.next_power_of_2(blocks), EACH=TEST_EACH_BLOCK, # without windows one kernel for every T
        MOMENTS=moments, NEED_C=need_c, **options, **block(tile_kv))
    return dqkv, da, dc, dw


backward = torch.library.custom_op('core::attention_backward', backward_launches, mutates_args=())


@backward.register_fake
def _(dy, dstats, q, k, v, a, c, w, seed, y, lse, stats, scale, ramp, dropout, moments, need_a, need_c):
    begin_launches(backward_launches, dy, dstats, q, k, v, a, c, w, seed, y, lse, stats, scale, ramp, dropout, moments,
                   need_a, need_c)
    return side_by_side(q), *(per_query(q, there) for there in (need_a, need_c, w is not None))


def save(ctx, inputs, output):
    *tensors, ctx.scale, ctx.ramp, ctx.dropout, ctx.moments = inputs
    ctx.save_for_backward(*tensors, *output)


def gradients(ctx, dy, dlse, *dstats): # lse stays inside
    q, k, v, a, c, w, seed, y, lse, *stats = ctx.saved_tensors
    need_a, need_c, need_w = ctx.needs_input_grad[3:6]
    dqkv, da, dc, dw = backward(dy, dstats, q, k, v, a, c, w, seed, y, lse, stats,
                                ctx.scale, ctx.ramp, ctx.dropout, ctx.moments, need_a, need_c)
    dq, dk, dv = (z.transpose(1, 2) for z in dqkv.split(3 * [q.size(1)], dim=2)) # as model.py does, so torch.compile moves nothing
    if need_c:
        dc = dc.sum_to_size(c.size())
    return dq, dk, dv, da if need_a else None, dc if need_c else None, dw if need_w else None, *[None] * 5


forward.register_autograd(gradients, setup_context=save)
