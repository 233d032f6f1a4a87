"""Triton kernels of causal attention with a bias, windows, moments and dropout, each optional.

attention_reference.py defines the result; attention_op.py makes PyTorch operators of the kernels.

Forward: for each block of queries, loop over blocks of keys with the online softmax of FlashAttention
(arXiv 2205.14135):

    s_ij = scale q_i k_j
    x_ij = s_ij + a_i (c_j - c_i)
    p_ij = exp(x_ij) g_ij / sum_j exp(x_ij) g_ij
    y_i  = sum_j mask_ij p_ij v_j

and, with d = i - j, the moments D = sum_j p d, V = sum_j p (d - D)^2, S = sum_j p s. Saved for backward: y,
logsumexp_j(x + log g) and the moments.

Backward: let dy, gD, gV, gS be the gradients of y, D, V, S. The gradient of p, minus its mean over p, is

    z_ij    = mask_ij dy_i v_j + gD (d - D) + gV (d - D)^2 + gS s_ij - delta_i
    delta_i = dy_i y_i + gV V + gS S
    dx_ij   = p_ij z_ij                     ds_ij = dx_ij + gS p_ij
    dq_i    = scale sum_j ds_ij k_j         dk_j  = scale sum_i ds_ij q_i       dv_j = sum_i mask_ij p_ij dy_i
    da_i    = sum_j dx_ij (c_j - c_i)       dc_j  = sum_i dx_ij a_i
    dw_i    = sum_j p_ij z_ij (dg/dw) / g

r_i = sum_j dx_ij would be 0 if delta, and that means y, were not rounded. Gradients that would add up this
error (those of a and w over distant keys, that of c over its own sum) subtract it: r_i is spread over the row
as p_ij r_i for da and dw, and charged to c_i for dc.

Nothing is T x T in memory, and no sum is atomic: backward_q_kernel owns a block of queries,
backward_kv_kernel a block of keys, so two runs are equal to the bit. With windows, each skips the blocks that
none of its queries sees: the windows of a block of queries give the first key that it sees. A block of keys
inside all of these windows needs no exponential for each g = 1 - exp(-u), because exp(-u) is a factor of the
query times one of the key's place in its block, which is the same in every block. Scores, bias, softmax,
moments and all sums are float32; products have the inputs' precision.

Arguments of the kernels:

    Q, K, V         (B, nh, T, HS), C (B, nh or 1, T); q_strides ... c_strides: of all but the last dimension
    A, W, LSE       (B, nh, T), like the moments; contiguous, like all tensors below
    Y, DY           (B, T, nh, HS): heads side by side
    DQ, DK, DV      parts of one (B, T, 3 nh, HS)
    nh              heads; a kernel's row is one of B nh
    cut             weights whose random byte is below it are dropped

Flags; a kernel is compiled for each combination:

    HS, D           channels of a head; the power of 2, at least 16, that holds them: rows end in D - HS zeros
    BQ, BK          queries and keys in a block
    EVEN            T is a multiple of all kernels' blocks: no row needs a guard
    BIAS            A and C are given
    WINDOW          W is given
    RAMP            g = min(u, 1), u = (w - 1 - d) / ramp; without it g = 1 - exp(-u), u = 1 - (d + 1) / w
    MOMENTS         D, V and S are computed, and have gradients
    DROPOUT         SEED is given
    PRECISION       'tf32' or 'ieee', for products of float32
    NEED_A, NEED_C  A and C need a gradient
    COLUMN_SUMS     backward_q_kernel sums over keys by products with the output of key_columns_kernel
    BN              for backward_q_kernel: the BQ of backward_kv_kernel
    BLOCKS          for backward_kv_kernel with windows: a power of 2, at least the number of query blocks
"""
import triton
import triton.language as tl

from core.kernels.attention_reference import ROUNDS

# In the kernels, s is q k without the scale, and x and a are divided by it. The power brings it in:
# exp(scale x) = exp2(unit x) with unit = scale LOG2E takes one multiply-add before exp2, which the hardware
# has. Logsumexps are in base 2.
LOG2E = tl.constexpr(1.4426950408889634)
PHILOX_ROUNDS = tl.constexpr(ROUNDS)

# the three parts of a row of keys: where windows end; inside all windows; the block's own positions
ENDS, INSIDE, OWN = (tl.constexpr(n) for n in range(3))

# share of a window: keys this close to its end are not seen. There 1 - exp(-u) may round to 0, and all keys
# of a query could have weight 0
EDGE = tl.constexpr(1.2e-7)

# largest exponent where a factor of 0 may follow: an infinity times 0 would be NaN
MAX_EXPONENT = tl.constexpr(100.0)


# -----------------------------------------------------------------------------
# loads and stores

@triton.jit
def head_of(X, strides, b, h):
    """Returns a pointer to X[b, h] of X (B, nh, T, ...)."""
    return X + b * strides[0] + h * strides[1]


@triton.jit
def load_rows(x, t, T, stride, HS: tl.constexpr, D: tl.constexpr, GUARD: tl.constexpr):
    """Returns rows t of x (T, HS), padded with zeros to (len(t), D). GUARD: rows with t >= T are zeros."""
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
    """Stores value (len(t), D) as rows t of x (T, HS), where t < T."""
    n = tl.arange(0, D)
    tl.store(x + t[:, None] * stride + n[None, :], value, mask=(t < T)[:, None] & (n < HS)[None, :])


@triton.jit
def load_each(x, t, T, other, GUARD: tl.constexpr):
    """Returns x[t] (len(t),). GUARD: `other` where t >= T."""
    if GUARD:
        return tl.load(x + t, mask=t < T, other=other)
    else:
        return tl.load(x + t)


@triton.jit
def load_quad(x, t):
    """Returns x[t] of x (T, 4) as four tensors (len(t),)."""
    # read one by one, each would take as many instructions as all four together
    ac, bd = tl.split(tl.load(x + t[:, None] * 4 + tl.arange(0, 4)[None, :]).reshape(t.shape[0], 2, 2))
    a, c = tl.split(ac)
    b, d = tl.split(bd)
    return a, b, c, d


@triton.jit
def store_quad(x, t, T, a, b, c, d):
    """Stores four tensors (len(t),) as x[t] of x (T, 4), where t < T."""
    rows = tl.join(tl.join(a, c), tl.join(b, d)).reshape(t.shape[0], 4)
    tl.store(x + t[:, None] * 4 + tl.arange(0, 4)[None, :], rows, mask=(t < T)[:, None])


# -----------------------------------------------------------------------------
# sums over keys: four threads hold a row of a product, and each keeps its own sum until the last block

@triton.jit
def split_by_thread(x):
    """Returns x (BQ, BK) as (BQ, 4, BK / 4)."""
    # of eight neighbours in a row of a product, each of four threads holds two
    x = x.reshape(x.shape[0], x.shape[1] // 8, 4, 2).permute(0, 2, 1, 3)
    return x.reshape(x.shape[0], 4, x.shape[2] * 2)


@triton.jit
def thread_sums(x):
    """Returns (BQ, 4), whose row sums are those of x (BQ, BK), without exchange between threads."""
    return tl.sum(split_by_thread(x), 2)


@triton.jit
def to_threads(x):
    """Returns x (BQ,) as (BQ, 4), each number in the threads in which thread_sums() has its row's sums."""
    return tl.max(split_by_thread(tl.broadcast_to(x[:, None], x.shape[0], 8)), 2)


@triton.jit
def inverse(x):
    """Returns 1 / x for a sum of weights x, to within a few roundings."""
    # three instructions, where a general division takes eight
    root = tl.rsqrt(tl.maximum(x, 1e-30))
    return root * root


# -----------------------------------------------------------------------------
# dropout

@triton.jit
def dropout_keep(seed, row, i, start_j, cut, BI: tl.constexpr, BJ: tl.constexpr):
    """Returns (BI, BJ), True where the reference's dropout_mask() keeps weights; keys begin at start_j."""
    # one call of Philox serves 16 keys
    block = (start_j // 16 + tl.arange(0, BJ // 16)).to(tl.uint32)
    zero = tl.zeros((BI, BJ // 16), tl.uint32)
    r0, r1, r2, r3 = tl.philox(seed, zero + i[:, None].to(tl.uint32), zero + block[None, :],
                               zero + row.to(tl.uint32), zero, n_rounds=PHILOX_ROUNDS)
    # r0 r1 r2 r3 side by side, one word for four keys
    words = tl.join(tl.join(r0, r2), tl.join(r1, r3)).reshape(BI, BJ // 4, 1)
    return ((words >> (8 * tl.arange(0, 4))[None, None, :]) & 255).reshape(BI, BJ) >= cut


# -----------------------------------------------------------------------------
# windows

@triton.jit
def load_window(w, t, T):
    """Returns w[t], at least 2 and at most 1e30."""
    # at 2 a query sees itself alone; an infinity times 0 would be NaN
    return tl.minimum(tl.maximum(load_each(w, t, T, 2.0, True), 2.0), 1e30)


@triton.jit
def fade_rate(w, ramp, RAMP: tl.constexpr):
    """Returns the rate that fade() takes, for windows w (BQ,)."""
    if RAMP:
        return tl.full(w.shape, 1.0, tl.float32) / ramp
    else:
        return tl.full(w.shape, 1.0, tl.float32) / w * -LOG2E


@triton.jit
def fade(left, rate, ramp, RAMP: tl.constexpr):
    """Returns 1 - g and dg/du for left = w - 1 - d, the tokens left of the window; 1 - g is 1 below 0."""
    if RAMP:
        return 1.0 - tl.minimum(tl.maximum(left, 0.0) * rate, 1.0), tl.where(left <= ramp, 1.0, 0.0)
    else:
        # without the maximum this would be infinite far beyond a window
        e = tl.exp2(tl.maximum(left, 0.0) * rate)
        return e, e


@triton.jit
def first_keys(w, i, BN: tl.constexpr):
    """Returns for each BN of the queries i the first key that one of them sees, or the one before it."""
    # query i sees keys beyond i + 1 - w
    return tl.min(tl.maximum(i + 1.0 - w, 0.0).reshape(i.shape[0] // BN, BN), 1).to(tl.int32)


@triton.jit
def first_inside(w, i, T):
    """Returns a key 2 to 4 tokens inside the windows of all queries i, as later keys are."""
    return tl.max(tl.where(i < T, tl.maximum(i + 1.0 - w, -3.0), -3.0)).to(tl.int32) + 3


@triton.jit
def load_windows(W, i, start_i, columns, T, ramp, BQ: tl.constexpr, BK: tl.constexpr, RAMP: tl.constexpr):
    """Returns (w, rate, first, inside, in_block) for the queries i, which begin at start_i.

    w, rate (BQ,): the windows, and their rates for fade().
    first, inside: where the blocks of keys begin that any of the queries sees, and those that all see.
    in_block (BQ, BK): exp(-u) relative to that of the block's last key, the same in every block.
    """
    # both rounded to blocks of keys, and inside not after the queries' own
    w = load_window(W, i, T)
    first = tl.min(first_keys(w, i, BQ)) // BK * BK
    inside = tl.minimum(tl.cdiv(first_inside(w, i, T), BK) * BK, start_i)
    rate = fade_rate(w, ramp, RAMP)
    in_block = tl.exp2(rate[:, None] * (columns - (BK - 1))[None, :])
    return w, rate, first, inside, in_block


# -----------------------------------------------------------------------------
# a block of queries and keys

@triton.jit
def key_range(PART: tl.constexpr, first, inside, start_i, stop):
    """Returns the first key and the stop of a part of the row of keys."""
    if PART == ENDS:
        return first, inside
    elif PART == INSIDE:
        return inside, start_i
    else:
        return start_i, stop


@triton.jit
def block_logits(s, i, j, a, c, w, rate, in_block, at_i, columns, ramp,
                 PART: tl.constexpr, BIAS: tl.constexpr, WINDOW: tl.constexpr, RAMP: tl.constexpr):
    """Returns logits x of scores s (BQ, BK), -inf where query i does not see key j; and 1 - g and dg/du.

    a, w, rate (BQ,), c (BK,), in_block (BQ, BK): 0 without a bias or windows.
    at_i (BQ,), columns (BK,): positions of queries and keys, from the block's first key on.
    """
    x = s
    if BIAS:
        x += a[:, None] * c[None, :]
    if PART == OWN:
        x = tl.where(j[None, :] <= i[:, None], x, float('-inf'))
    lost, slope = 0.0, 0.0
    if WINDOW:
        left = (w - 1.0)[:, None] - (at_i[:, None] - columns[None, :])
        if PART == INSIDE and not RAMP:
            # one exponential per query instead of one per score
            lost = in_block * tl.exp2((w - 1.0 - (at_i - (in_block.shape[1] - 1))) * rate)[:, None]
            slope = lost
        else:
            lost, slope = fade(left, rate[:, None], ramp, RAMP)
            x = tl.where(left > (w * EDGE)[:, None], x, float('-inf'))
    return x, lost, slope


# -----------------------------------------------------------------------------
# forward

@triton.jit
def attention_forward_kernel(
        Q, K, V, A, C, W, SEED, Y, LSE, DISTANCE, VARIANCE, SCORE,
        q_strides, k_strides, v_strides, c_strides, T, nh, scale, ramp, cut,
        HS: tl.constexpr, D: tl.constexpr, BQ: tl.constexpr, BK: tl.constexpr, EVEN: tl.constexpr,
        BIAS: tl.constexpr, WINDOW: tl.constexpr, RAMP: tl.constexpr, MOMENTS: tl.constexpr,
        DROPOUT: tl.constexpr, PRECISION: tl.constexpr):
    """Stores Y, LSE and, with MOMENTS, DISTANCE, VARIANCE, SCORE (D, V, S) of a head's block of queries."""
    # the longest rows start first, so that the last to finish are short
    start_i = (tl.num_programs(0) - 1 - tl.program_id(0)) * BQ
    row = tl.program_id(1).to(tl.int64)
    b, h = row // nh, row % nh
    Q = head_of(Q, q_strides, b, h)
    K = head_of(K, k_strides, b, h)
    V = head_of(V, v_strides, b, h)
    Y += b * T * nh * HS + h * HS
    i = start_i + tl.arange(0, BQ)
    at = row * T + i
    q = load_rows(Q, i, T, q_strides[2], HS, D, not EVEN) # (BQ, D)
    a, w, rate, in_block, first, inside = 0.0, 0.0, 0.0, 0.0, 0, 0
    if BIAS:
        # c relative to the block's first position: softmax cannot tell that from c_j - c_i
        C = head_of(C, c_strides, b, h)
        c_0 = tl.load(C + start_i)
        a = tl.load(A + at, mask=i < T, other=0.0) / scale
        c_i = tl.load(C + i, mask=i < T, other=0.0) - c_0
    # positions of queries relative to start_i, and of keys relative to their block's first
    fi, columns = (i - start_i).to(tl.float32), tl.arange(0, BK).to(tl.float32)
    if WINDOW:
        w, rate, first, inside, in_block = load_windows(
            W + row * T, i, start_i, columns, T, ramp, BQ, BK, RAMP)
    if DROPOUT:
        seed = tl.load(SEED)

    unit = scale * LOG2E
    # the largest x so far; finite, because a row may see nothing of a block
    top = tl.full((BQ,), -1e30, tl.float32)
    # sums over keys, with weights exp2(x - top) g, which the total divides at the end
    total = tl.zeros((BQ, 4), tl.float32)
    y = tl.zeros((BQ, D), tl.float32)
    if MOMENTS:
        mean = tl.zeros((BQ, 4), tl.float32) # of j - i
        spread = tl.zeros((BQ, 4), tl.float32) # sum of weight (j - i - mean)^2
        score = tl.zeros((BQ, 4), tl.float32)
    for part in tl.static_range(ENDS if WINDOW else INSIDE, OWN + 1):
        first_j, stop_j = key_range(part, first, inside, start_i, tl.minimum(start_i + BQ, T))
        for start_j in tl.range(first_j, stop_j, BK):
            j = start_j + tl.arange(0, BK)
            at_i = fi - (start_j - start_i) # queries' positions from start_j on
            k = load_rows(K, j, T, k_strides[2], HS, D, part == OWN and not EVEN) # (BK, D)
            s = tl.dot(q, k.T, input_precision=PRECISION) # (BQ, BK)
            c = load_each(C, j, T, 0.0, part == OWN and not EVEN) - c_0 if BIAS else 0.0
            x, lost, _ = block_logits(
                s, i, j, a, c, w, rate, in_block, at_i, columns, ramp, part, BIAS, WINDOW, RAMP)

            # the online softmax: a larger x scales down what is summed so far
            new_top = tl.maximum(top, tl.max(x, 1))
            shrink = tl.exp2((top - new_top) * unit)
            p = tl.exp2(x * unit - (new_top * unit)[:, None])
            if WINDOW:
                p -= p * lost
            here, fewer = thread_sums(p), to_threads(shrink)
            before = total * fewer
            total = before + here
            if MOMENTS:
                # the block's moments about its key nearest to the query, so that squares stay small, merged
                # with those before it (Chan, Golub and LeVeque, 1979)
                near = tl.minimum(at_i, BK - 1.0)
                off = columns[None, :] - near[:, None] if part == OWN else (columns - (BK - 1))[None, :]
                moment = thread_sums(p * off)
                block_mean = moment * inverse(here)
                step = to_threads(near - at_i) + block_mean - mean
                move = step * (here * inverse(total))
                spread = (spread * fewer + (thread_sums(p * (off * off)) - moment * block_mean)
                          + step * move * before)
                mean += move
                score = score * fewer + thread_sums(p * s)
            # after the total: what is left is not divided by its own sum
            if DROPOUT:
                p = tl.where(dropout_keep(seed, row, i, start_j, cut, BQ, BK), p, 0.0)
            v = load_rows(V, j, T, v_strides[2], HS, D, part == OWN and not EVEN) # (BK, D)
            # (BQ, BK) x (BK, D) -> (BQ, D)
            y = tl.dot(p.to(v.dtype), v, y * shrink[:, None], input_precision=PRECISION)
            top = new_top

    # merge what the four threads of a row have, and divide by the sum of weights
    thread_total, total = total, tl.sum(total, 1)
    if MOMENTS:
        distance = -tl.sum(thread_total / total[:, None] * mean, 1)
        off = mean + distance[:, None]
        spread = tl.sum(spread + thread_total * (off * off), 1)
        score = tl.sum(score, 1)
    if DROPOUT:
        y *= 256.0 / (256.0 - cut)
    store_rows(Y, (y / total[:, None]).to(Y.dtype.element_ty), i, T, nh * HS, HS, D)
    lse = top * unit + tl.log2(total)
    if BIAS:
        # relative to each query's own position instead of the block's first
        lse -= a * c_i * unit
    tl.store(LSE + at, lse, mask=i < T)
    if MOMENTS:
        tl.store(DISTANCE + at, distance, mask=i < T)
        tl.store(VARIANCE + at, tl.maximum(spread / total, 0.0), mask=i < T)
        tl.store(SCORE + at, score / total * scale, mask=i < T)


# -----------------------------------------------------------------------------
# backward

@triton.jit
def split_in_thirds(x):
    """Returns x (float32) as a sum of three numbers that bfloat16 can hold."""
    one = x.to(tl.bfloat16).to(tl.float32)
    two = (x - one).to(tl.bfloat16).to(tl.float32)
    return one, two, (x - one - two).to(tl.bfloat16).to(tl.float32)


@triton.jit
def key_columns_kernel(C, COLUMNS, c_strides, T, BASE: tl.constexpr):
    """Stores COLUMNS (T, 16), bfloat16, for each head of C; products with them are sums over keys.

    Column 0 is 1. Columns 1 to 3 are c minus that of the first of each BASE keys, split in thirds; 4 to 6 are
    that key's c minus the row's first, split likewise. The rest are 0.
    """
    start = tl.program_id(0) * BASE
    row = tl.program_id(1).to(tl.int64) * tl.num_programs(2) + tl.program_id(2)
    b, h = tl.program_id(1), tl.program_id(2)
    C += b * c_strides[0] + h * c_strides[1]
    j = start + tl.arange(0, BASE)
    # a bfloat16 has 8 bits, three have float32's 24
    base = tl.load(C + start)
    c_1, c_2, c_3 = split_in_thirds(load_each(C, j, T, 0.0, True) - base)
    b_1, b_2, b_3 = split_in_thirds(base - tl.load(C) + tl.zeros((BASE,), tl.float32))
    n = tl.arange(0, 16)[None, :]
    x = tl.where(n == 0, 1.0, tl.where(n == 1, c_1[:, None],
        tl.where(n == 2, c_2[:, None], tl.where(n == 3, c_3[:, None], 0.0))))
    x += tl.where(n == 4, b_1[:, None], tl.where(n == 5, b_2[:, None], tl.where(n == 6, b_3[:, None], 0.0)))
    store_rows(COLUMNS + row * T * 16, x.to(tl.bfloat16), j, T, 16, 16, 16)


@triton.jit
def backward_q_kernel(
        Q, K, V, A, C, W, SEED, Y, DY, LSE, COLUMNS, DISTANCE, VARIANCE, SCORE, DDISTANCE, DVARIANCE, DSCORE,
        DQ, DA, DC, DW, FIRST_KEY, PER_QUERY, PER_QUERY_MOMENTS,
        q_strides, k_strides, v_strides, c_strides, c_heads, T, nh, scale, ramp, cut,
        HS: tl.constexpr, D: tl.constexpr, BQ: tl.constexpr, BK: tl.constexpr, EVEN: tl.constexpr,
        BIAS: tl.constexpr, WINDOW: tl.constexpr, RAMP: tl.constexpr, MOMENTS: tl.constexpr,
        DROPOUT: tl.constexpr, PRECISION: tl.constexpr,
        BN: tl.constexpr, NEED_A: tl.constexpr, NEED_C: tl.constexpr, COLUMN_SUMS: tl.constexpr):
    """Stores DQ, DA, DW and the queries' share of DC for a head's block of queries.

    It also stores what backward_kv_kernel, which runs next, reads about its blocks of BN queries:
    FIRST_KEY (B, nh, blocks): the first key that any of a block's queries sees.
    PER_QUERY (B, nh, blocks BN, 4): logsumexp relative to the block's first position, delta, and for windows
    w - 1 and fade()'s rate; without windows a and 0.
    PER_QUERY_MOMENTS (B, nh, blocks BN, 4): the keys' mean position relative to the block's first, gD, gV,
    scale gS.
    """
    start_i = (tl.num_programs(0) - 1 - tl.program_id(0)) * BQ
    row = tl.program_id(1).to(tl.int64)
    b, h = row // nh, row % nh
    Q = head_of(Q, q_strides, b, h)
    K = head_of(K, k_strides, b, h)
    V = head_of(V, v_strides, b, h)
    own = b * T * nh * HS + h * HS
    own_d = b * T * 3 * nh * HS + h * HS
    i = start_i + tl.arange(0, BQ)
    at = row * T + i
    q = load_rows(Q, i, T, q_strides[2], HS, D, not EVEN) # (BQ, D)
    y = load_rows(Y + own, i, T, nh * HS, HS, D, not EVEN) # (BQ, D)
    dy = load_rows(DY + own, i, T, nh * HS, HS, D, not EVEN) # (BQ, D)
    delta = tl.sum(y.to(tl.float32) * dy.to(tl.float32), 1)
    # infinite for queries beyond T, which makes their weights 0
    lse = tl.load(LSE + at, mask=i < T, other=float('inf'))
    unit = scale * LOG2E
    a, w, rate, in_block, first, inside = 0.0, 0.0, 0.0, 0.0, 0, 0
    # the number of blocks of BN queries, and the first query of each query's block
    blocks, near = tl.cdiv(T, BN), i // BN * BN
    near_lse, third, fourth = lse, tl.zeros((BQ,), tl.float32), tl.zeros((BQ,), tl.float32)
    if BIAS:
        C = head_of(C, c_strides, b, h)
        c_0, c_i = tl.load(C + start_i), tl.load(C + i, mask=i < T, other=0.0)
        third = tl.load(A + at, mask=i < T, other=0.0)
        near_lse += third * LOG2E * (c_i - tl.load(C + near, mask=near < T, other=0.0))
        a = third / scale
        lse += a * unit * (c_i - c_0)
    # positions of queries relative to start_i, and of keys relative to their block's first
    fi, columns = (i - start_i).to(tl.float32), tl.arange(0, BK).to(tl.float32)
    if WINDOW:
        w, rate, first, inside, in_block = load_windows(
            W + row * T, i, start_i, columns, T, ramp, BQ, BK, RAMP)
        third, fourth = w - 1.0, rate
        n = start_i // BN + tl.arange(0, BQ // BN)
        tl.store(FIRST_KEY + row * blocks + n, first_keys(w, i, BN), mask=n < blocks)
    if MOMENTS:
        # delta and, for the polynomial in the loop, gD, gV and gS
        mean = fi - tl.load(DISTANCE + at, mask=i < T, other=0.0) # of the keys' positions
        ddistance = tl.load(DDISTANCE + at, mask=i < T, other=0.0)
        dvariance = tl.load(DVARIANCE + at, mask=i < T, other=0.0)
        dscore = tl.load(DSCORE + at, mask=i < T, other=0.0)
        delta += dvariance * tl.load(VARIANCE + at, mask=i < T, other=0.0)
        delta += dscore * tl.load(SCORE + at, mask=i < T, other=0.0)
        if not (BIAS or WINDOW):
            # nothing needs dx without gS, so delta includes it
            delta -= dscore
        store_quad(PER_QUERY_MOMENTS + row * blocks * BN * 4, i, blocks * BN,
                   mean - (near - start_i), ddistance, dvariance, dscore * scale)
    PER_QUERY += row * blocks * BN * 4
    store_quad(PER_QUERY, i, blocks * BN, near_lse, delta, third, fourth)
    if MOMENTS:
        # a computed sum stays in its threads, which would have to pass it on in every turn of the loop; a
        # loaded number is wherever it is needed
        tl.debug_barrier()
        delta = tl.load(PER_QUERY + i * 4 + 1, mask=i < T, other=0.0)
    if DROPOUT:
        seed = tl.load(SEED)

    dq = tl.zeros((BQ, D), tl.float32)
    # r of the docstring above; for da and dw, the plain sum and the part that a unit of r is to subtract
    dx_sum = tl.zeros((BQ, 4), tl.float32)
    da, a_share = tl.zeros((BQ, 4), tl.float32), tl.zeros((BQ, 4), tl.float32)
    if COLUMN_SUMS:
        # dx_sum, da and a_share come from products with the keys' columns: tensor cores have time for them
        COLUMNS += (b * c_heads + h % c_heads) * T * 16
        sums, shares = tl.zeros((BQ, 16), tl.float32), tl.zeros((BQ, 16), tl.float32)
    dw, w_share = tl.zeros((BQ, 4), tl.float32), tl.zeros((BQ, 4), tl.float32)
    for part in tl.static_range(ENDS if WINDOW else INSIDE, OWN + 1):
        first_j, stop_j = key_range(part, first, inside, start_i, tl.minimum(start_i + BQ, T))
        for start_j in tl.range(first_j, stop_j, BK):
            j = start_j + tl.arange(0, BK)
            k = load_rows(K, j, T, k_strides[2], HS, D, part == OWN and not EVEN) # (BK, D)
            v = load_rows(V, j, T, v_strides[2], HS, D, part == OWN and not EVEN) # (BK, D)
            at_i = fi - (start_j - start_i) # queries' positions from start_j on
            s = tl.dot(q, k.T, input_precision=PRECISION) # (BQ, BK)
            c = load_each(C, j, T, 0.0, part == OWN and not EVEN) - c_0 if BIAS else 0.0
            x, lost, slope = block_logits(
                s, i, j, a, c, w, rate, in_block, at_i, columns, ramp, part, BIAS, WINDOW, RAMP)
            p = tl.exp2(x * unit - lse[:, None])
            if WINDOW:
                # p / g times dg/dw, without the factor that all keys share, du_dw below
                dp_dw = p * slope
                if not RAMP:
                    dp_dw *= (at_i + 1.0)[:, None] - columns[None, :]
                p -= p * lost

            # z, then dx from it, then ds by adding gS
            dp = tl.dot(dy, v.T, input_precision=PRECISION) # (BQ, BK)
            if DROPOUT:
                keep = dropout_keep(seed, row, i, start_j, cut, BQ, BK)
                dp = tl.where(keep, dp * (256.0 / (256.0 - cut)), 0.0)
            if MOMENTS:
                # a polynomial of the column; in this order the product that makes dp adds the other terms
                off = mean + (at_i - fi) # d - D of the first column
                z_0 = off * (ddistance + dvariance * off) - delta
                z_1 = -(ddistance + 2.0 * dvariance * off)
                z_12 = z_1[:, None] + dvariance[:, None] * columns[None, :]
                others = z_0[:, None] + columns[None, :] * z_12
                z = dp + ((dscore * scale)[:, None] * s + others)
            else:
                z = dp - delta[:, None]
            ds = p * z # dx, until gS is added
            if COLUMN_SUMS:
                keys = load_rows(COLUMNS, j, T, 16, 16, 16, part == OWN and not EVEN) # (BK, 16)
                sums = tl.dot(ds.to(tl.bfloat16), keys, sums)
                if NEED_A:
                    shares = tl.dot(p.to(tl.bfloat16), keys, shares)
            else:
                if NEED_A or NEED_C or WINDOW:
                    dx_sum += thread_sums(ds)
                if NEED_A:
                    da += thread_sums(ds * c[None, :])
                    a_share += thread_sums(p * c[None, :])
            if WINDOW:
                dw += thread_sums(dp_dw * z)
                w_share += thread_sums(dp_dw)
            if MOMENTS and (BIAS or WINDOW):
                ds += p * dscore[:, None]
            # (BQ, BK) x (BK, D) -> (BQ, D)
            dq = tl.dot(ds.to(k.dtype), k, dq, input_precision=PRECISION)

    if COLUMN_SUMS:
        # the first column holds ones, the others add up to c
        ones = (tl.arange(0, 16) == 0)[None, :]
        dx_sum, da = tl.sum(tl.where(ones, sums, 0.0), 1), tl.sum(tl.where(ones, 0.0, sums), 1)
        a_share = tl.sum(tl.where(ones, 0.0, shares), 1)
    else:
        dx_sum, da, a_share = tl.sum(dx_sum, 1), tl.sum(da, 1), tl.sum(a_share, 1)
    store_rows(DQ + own_d, (dq * scale).to(DQ.dtype.element_ty), i, T, 3 * nh * HS, HS, D)
    if NEED_A:
        tl.store(DA + at, da - dx_sum * a_share, mask=i < T)
    if NEED_C:
        # the share of c_i; backward_kv_kernel adds that of c_j
        tl.store(DC + at, -a * scale * dx_sum, mask=i < T)
    if WINDOW:
        # a window that is raised to 2 has no gradient
        du_dw = 1.0 / ramp if RAMP else 1.0 / (w * w)
        dw = tl.sum(dw, 1) - dx_sum * tl.sum(w_share, 1)
        tl.store(DW + at, tl.where(w > 2.0, dw * du_dw, 0.0), mask=i < T)


@triton.jit
def backward_kv_kernel(
        Q, K, V, A, C, SEED, DY, FIRST_KEY, PER_QUERY, PER_QUERY_MOMENTS, DK, DV, DC,
        q_strides, k_strides, v_strides, c_strides, T, nh, scale, ramp, cut,
        HS: tl.constexpr, D: tl.constexpr, BQ: tl.constexpr, BK: tl.constexpr, EVEN: tl.constexpr,
        BIAS: tl.constexpr, WINDOW: tl.constexpr, RAMP: tl.constexpr, MOMENTS: tl.constexpr,
        DROPOUT: tl.constexpr, PRECISION: tl.constexpr,
        BLOCKS: tl.constexpr, NEED_C: tl.constexpr):
    """Stores DK, DV and DC for a head's block of keys.

    Blocks are transposed here, (BK, BQ), because p and ds are left factors of products with dy and q.
    """
    # the first keys have the most queries, and start first
    start_j = tl.program_id(0) * BK
    row = tl.program_id(1).to(tl.int64)
    b, h = row // nh, row % nh
    Q = head_of(Q, q_strides, b, h)
    K = head_of(K, k_strides, b, h)
    V = head_of(V, v_strides, b, h)
    own = b * T * nh * HS + h * HS
    own_d = b * T * 3 * nh * HS + h * HS
    DY += own
    near = row * tl.cdiv(T, BQ) * BQ * 4
    PER_QUERY, PER_QUERY_MOMENTS = PER_QUERY + near, PER_QUERY_MOMENTS + near
    j = start_j + tl.arange(0, BK)
    k = load_rows(K, j, T, k_strides[2], HS, D, not EVEN) # (BK, D)
    v = load_rows(V, j, T, v_strides[2], HS, D, not EVEN) # (BK, D)
    stop = T
    if BIAS:
        A += row * T
        C = head_of(C, c_strides, b, h)
        c_0 = tl.load(C + start_j)
        c = (tl.load(C + j, mask=j < T, other=0.0) - c_0) / scale
    fj = (j - start_j).to(tl.float32)
    if WINDOW:
        # stop after the last block of queries that sees any of these keys
        blocks = tl.cdiv(T, BQ)
        FIRST_KEY += row * blocks
        n = tl.arange(0, BLOCKS)
        first_key = tl.load(FIRST_KEY + n, mask=n < blocks, other=T)
        stop = tl.minimum((tl.max(tl.where(first_key < start_j + BK, n, 0)) + 1) * BQ, T)
    if DROPOUT:
        seed = tl.load(SEED)

    unit = scale * LOG2E
    dk, dv = tl.zeros((BK, D), tl.float32), tl.zeros((BK, D), tl.float32)
    dc = tl.zeros((BK,), tl.float32)
    # first the queries of the same positions, then later ones
    for diagonal in tl.static_range(1, -1, -1):
        first_i = start_j if diagonal else start_j + BK
        stop_i = tl.minimum(start_j + BK, T) if diagonal else stop
        for start_i in tl.range(first_i, stop_i, BQ):
            visit = True
            if WINDOW and not diagonal:
                visit = tl.load(FIRST_KEY + start_i // BQ) < start_j + BK
            if visit:
                i = start_i + tl.arange(0, BQ)
                q = load_rows(Q, i, T, q_strides[2], HS, D, not EVEN) # (BQ, D)
                dy = load_rows(DY, i, T, nh * HS, HS, D, not EVEN) # (BQ, D)
                lse, delta, third, rate = load_quad(PER_QUERY, i)
                if MOMENTS:
                    mean, ddistance, dvariance, s_factor = load_quad(PER_QUERY_MOMENTS, i)
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
                    # beyond a window 1 - g = 1 makes the weight 0
                    at_j = fj - (start_i - start_j) # keys' positions from start_i on
                    d = tl.arange(0, BQ).to(tl.float32)[None, :] - at_j[:, None]
                    lost, _ = fade(third[None, :] - d, rate[None, :], ramp, RAMP)
                    p = tl.exp2(tl.minimum(x * unit - lse[None, :], MAX_EXPONENT))
                    p -= p * lost
                else:
                    p = tl.exp2(x * unit - lse[None, :])
                dp = tl.dot(v, dy.T, input_precision=PRECISION) # (BK, BQ)
                # dropout masks p in y = p v: so in dv the weights, in z the gradient
                used = p
                if DROPOUT:
                    keep = dropout_keep(seed, row, i, start_j, cut, BQ, BK).T
                    used = tl.where(keep, p, 0.0)
                    dp = tl.where(keep, dp * (256.0 / (256.0 - cut)), 0.0)
                # (BK, BQ) x (BQ, D) -> (BK, D)
                dv = tl.dot(used.to(dy.dtype), dy, dv, input_precision=PRECISION)
                z = dp - delta[None, :]
                if MOMENTS:
                    # in backward_q_kernel's order the compiler would not prefetch these loads
                    off = mean[None, :] - fj[:, None]
                    z += s_factor[None, :] * s
                    z += off * (ddistance[None, :] + dvariance[None, :] * off)
                ds = p * z # dx, until gS is added
                if NEED_C:
                    dc += tl.sum(ds * a[None, :], 1)
                if MOMENTS and (BIAS or WINDOW):
                    ds += p * (s_factor / scale)[None, :]
                # (BK, BQ) x (BQ, D) -> (BK, D)
                dk = tl.dot(ds.to(q.dtype), q, dk, input_precision=PRECISION)
    if DROPOUT:
        dv *= 256.0 / (256.0 - cut)
    store_rows(DK + own_d, (dk * scale).to(DK.dtype.element_ty), j, T, 3 * nh * HS, HS, D)
    store_rows(DV + own_d, dv.to(DV.dtype.element_ty), j, T, 3 * nh * HS, HS, D)
    if NEED_C:
        DC += row * T
        tl.store(DC + j, dc + tl.load(DC + j, mask=j < T, other=0.0), mask=j < T)
