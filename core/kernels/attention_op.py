"""PyTorch operators of the kernels in attention.py: sizes, tiles, gradients, compilation while Dynamo traces.

On CUDA, attention() computes what attention_reference.attention() defines. torch.compile leaves it whole.
"""
import functools
import math
from concurrent.futures import ThreadPoolExecutor, wait

import torch
import triton
from torch._subclasses.fake_tensor import FakeTensor

from core.kernels.attention import (
    attention_forward_kernel,
    backward_kv_kernel,
    backward_q_kernel,
    key_columns_kernel,
)
from core.kernels.attention_reference import threshold

# bytes of a row of q -> (BQ, BK, warps, stages, registers) of the forward, backward_q and backward_kv kernel.
# The size of the inner block divides that of the outer: keys divide queries, in backward_kv queries divide
# keys. Without a limit the compiler may take so many registers that only 8 warps fit on a multiprocessor of
# an H100; with it 12 or 16 fit, and few registers spill or none.
TILES = {
    32: ((64, 64, 4, 3, 128), (64, 64, 4, 3, 168), (32, 64, 4, 3, 128)),
    64: ((64, 64, 4, 3, 128), (64, 64, 4, 3, 168), (32, 64, 4, 3, 128)),
    128: ((64, 64, 4, 3, 128), (64, 64, 4, 3, 168), (32, 64, 4, 3, 168)),
    256: ((128, 64, 8, 2, 255), (128, 32, 8, 2, 255), (32, 128, 8, 2, 255)),
    512: ((64, 32, 8, 2, 255), (64, 32, 8, 2, 255), (32, 64, 8, 2, 255)),
}

# tokens: shorter rows do not pay for the launch of key_columns_kernel
COLUMNS_FROM = 2048
# keys that key_columns_kernel measures c from one base in
BASE = 64


def attention(q, k, v, a=None, c=None, w=None, ramp=None, scale=None, moments=False, dropout=0.0, seed=None,
              tf32=None):
    """Computes attention_reference.attention(), which explains the arguments, on CUDA for head sizes to 128.

    q, k, v are float32, float16 or bfloat16; a, c, w are converted to float32, which the moments have.
    tf32: products round float32 to tf32, forward and backward; None: if PyTorch's setting says so now.
    """
    scale = 1 / math.sqrt(q.size(-1)) if scale is None else scale
    tf32 = tf32_allowed() if tf32 is None else tf32
    a, c, w = (None if x is None else x.float() for x in (a, c, w))
    y, _, *stats = attention_forward(q, k, v, a, c, w, seed, scale, ramp or 0.0, dropout, moments, tf32)
    return (y, *stats) if moments else y


def tf32_allowed():
    """Returns PyTorch's setting for products of float32 matrices on CUDA."""
    return torch.backends.cuda.matmul.fp32_precision == 'tf32'


# Dynamo, which cannot look inside, calls it while tracing, and traces again when the setting changes.
# torch.compiler.assume_constant_result() does the same, but takes seconds to import Dynamo.
tf32_allowed._dynamo_marked_constant = True


# -----------------------------------------------------------------------------
# sizes

def tiles_of(row, T, bias, window, moments, dropout):
    """Returns TILES[row], or tiles that are faster for these flags, with 64 channels in half precision."""
    forward, q, kv = TILES[row]
    # measured: what is summed besides takes registers, long rows pay for larger blocks
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


def tile_options(tile):
    """Returns a tile as arguments of a launch."""
    return dict(zip(('BQ', 'BK', 'num_warps', 'num_stages', 'maxnreg'), tile, strict=True))


def kernel_options(q, a, w, ramp, dropout, moments, tf32):
    """Returns the three kernels' tiles, and the flags that the kernels share."""
    HS, T = q.size(-1), q.size(2)
    # tl.dot needs 16 at least
    D = max(16, triton.next_power_of_2(HS))
    row = max(32, D * q.element_size())
    tiles = tiles_of(row, T, a is not None, w is not None, moments, dropout > 0)
    flags = dict(
        HS=HS, D=D, EVEN=all(T % max(tile[:2]) == 0 for tile in tiles),
        BIAS=a is not None, WINDOW=w is not None, RAMP=ramp > 0, MOMENTS=moments, DROPOUT=dropout > 0,
        PRECISION='tf32' if tf32 and q.dtype == torch.float32 else 'ieee')
    return tiles, flags


def strides_of(q, k, v, c):
    """Returns the kernels' q_strides, k_strides, v_strides and c_strides; 0 for heads that share c."""
    c_strides = (0, 0) if c is None else (c.stride(0), c.stride(1) if c.size(1) > 1 else 0)
    return *(x.stride()[:3] for x in (q, k, v)), c_strides


def make_contiguous(*tensors):
    """Returns the tensors laid out as the kernels read them: rows of heads contiguous, others altogether."""
    return (x if x is None or x.stride(-1) == 1 and x.ndim == 4 else x.contiguous() for x in tensors)


def empty_heads(q):
    """Returns an empty tensor (B, nh, T, hs), stored as (B, T, nh, hs), with heads side by side."""
    B, nh, T, hs = q.size()
    return q.new_empty(B, T, nh, hs).transpose(1, 2)


def empty_dqkv(q):
    """Returns an empty tensor (B, T, 3 nh, hs) for the gradients of q, k and v, the parts of one product."""
    B, nh, T, hs = q.size()
    return q.new_empty(B, T, 3 * nh, hs)


def empty_per_query(q, needed=True):
    """Returns an empty float32 tensor (B, nh, T), or (0,) if it is not needed."""
    return q.new_empty(q.shape[:3] if needed else (0,), dtype=torch.float32)


# -----------------------------------------------------------------------------
# launches, and compilation ahead of them

compile_pool = ThreadPoolExecutor(4)
compilations = [] # futures


@functools.cache
def start_compiling(kernel, device, args, options):
    """Compiles a kernel in a thread, while torch.compile goes on; args has dtypes in place of tensors."""
    def warm_up():
        with torch.cuda.device(device):
            kernel.warmup(*args, grid=(1,), **dict(options))

    compilations.append(compile_pool.submit(warm_up))


def launch(kernel, *grid):
    """Returns kernel[grid]; called with FakeTensors, as Dynamo traces with, it only compiles."""
    def run(*args, **options):
        if isinstance(args[0], FakeTensor):
            dtypes = tuple(x.dtype if isinstance(x, torch.Tensor) else x for x in args)
            start_compiling(kernel, args[0].device, dtypes, tuple(options.items()))
            return
        if compilations:
            # an error in a thread comes up again here
            wait(compilations)
            compilations.clear()
        kernel[grid](*args, **options)
    return run


def compile_ahead(launches, *inputs):
    """Starts to compile an operator's kernels if all sizes are known; its outputs are thrown away."""
    q = inputs[0]
    if torch.cuda.is_available() and q.is_cuda and all(isinstance(n, int) for n in q.shape):
        launches(*inputs)


# -----------------------------------------------------------------------------
# the operators

def forward_launches(
        q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, a: torch.Tensor | None, c: torch.Tensor | None,
        w: torch.Tensor | None, seed: torch.Tensor | None, scale: float, ramp: float, dropout: float,
        moments: bool, tf32: bool,
        ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns y, the logsumexp in base 2, and the three moments, which are empty unless asked for."""
    q, k, v, a, c, w = make_contiguous(q, k, v, a, c, w)
    B, nh, T, _ = q.size()
    y = empty_heads(q)
    lse = empty_per_query(q)
    stats = [empty_per_query(q, moments) for _ in range(3)]
    (tile, _, _), flags = kernel_options(q, a, w, ramp, dropout, moments, tf32)
    launch(attention_forward_kernel, triton.cdiv(T, tile[0]), B * nh)(
        q, k, v, a, c, w, seed, y, lse, *stats, *strides_of(q, k, v, c),
        T, nh, scale, ramp, threshold(dropout), **flags, **tile_options(tile))
    return y, lse, *stats


attention_forward = torch.library.custom_op('core::attention', forward_launches, mutates_args=())


@attention_forward.register_fake
def _(q, k, v, a, c, w, seed, scale, ramp, dropout, moments, tf32):
    compile_ahead(forward_launches, q, k, v, a, c, w, seed, scale, ramp, dropout, moments, tf32)
    return empty_heads(q), empty_per_query(q), *(empty_per_query(q, moments) for _ in range(3))


def backward_launches(
        dy: torch.Tensor, dstats: list[torch.Tensor], q: torch.Tensor, k: torch.Tensor, v: torch.Tensor,
        a: torch.Tensor | None, c: torch.Tensor | None, w: torch.Tensor | None, seed: torch.Tensor | None,
        y: torch.Tensor, lse: torch.Tensor, stats: list[torch.Tensor], scale: float, ramp: float,
        dropout: float, moments: bool, tf32: bool, need_a: bool, need_c: bool,
        ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns the gradients of q, k and v side by side (B, T, 3 nh, hs), and those of a, c and w (B, nh, T).

    c's gradient is for each head, even where heads share c. Those not needed are empty.
    """
    q, k, v, a, c, w, *dstats = make_contiguous(q, k, v, a, c, w, *dstats)
    dy = dy.transpose(1, 2).contiguous() # (B, T, nh, hs), as y lies in memory
    B, nh, T, _ = q.size()
    dqkv = empty_dqkv(q)
    dq, dk, dv = dqkv.split(nh, dim=2)
    da, dc, dw = (empty_per_query(q, needed) for needed in (need_a, need_c, w is not None))
    # the same tiles and flags as forward's
    (_, tile_q, tile_kv), flags = kernel_options(q, a, w, ramp, dropout, moments, tf32)
    strides = strides_of(q, k, v, c)
    sizes = T, nh, scale, ramp, threshold(dropout)

    # what backward_q_kernel stores for backward_kv_kernel
    blocks = triton.cdiv(T, tile_kv[0])
    first_key = q.new_empty(B, nh, blocks, dtype=torch.int32)
    per_query = q.new_empty(B, nh, blocks * tile_kv[0], 4, dtype=torch.float32)
    per_query_moments = q.new_empty(B, nh, blocks * tile_kv[0] * moments, 4, dtype=torch.float32)

    # sums over keys by tensor cores, where ds is rounded to bfloat16 as for dq
    columns = None
    if (need_a or need_c) and q.dtype == torch.bfloat16 and T >= COLUMNS_FROM:
        columns = torch.empty(B, c.size(1), T, 16, dtype=torch.bfloat16, device=q.device)
        launch(key_columns_kernel, triton.cdiv(T, BASE), B, c.size(1))(c, columns, strides[-1], T, BASE=BASE)
    launch(backward_q_kernel, triton.cdiv(T, tile_q[0]), B * nh)(
        q, k, v, a, c, w, seed, y, dy, lse, columns, *stats, *dstats, dq, da, dc, dw, first_key, per_query,
        per_query_moments, *strides, 1 if c is None else c.size(1), *sizes,
        BN=tile_kv[0], NEED_A=need_a, NEED_C=need_c, COLUMN_SUMS=columns is not None,
        **flags, **tile_options(tile_q))
    launch(backward_kv_kernel, triton.cdiv(T, tile_kv[1]), B * nh)(
        q, k, v, a, c, seed, dy, first_key, per_query, per_query_moments, dk, dv, dc, *strides, *sizes,
        # without windows one kernel serves all T
        BLOCKS=1 if w is None else triton.next_power_of_2(blocks), NEED_C=need_c,
        **flags, **tile_options(tile_kv))
    return dqkv, da, dc, dw


attention_backward = torch.library.custom_op('core::attention_backward', backward_launches, mutates_args=())


@attention_backward.register_fake
def _(dy, dstats, q, k, v, a, c, w, seed, y, lse, stats, scale, ramp, dropout, moments, tf32, need_a, need_c):
    compile_ahead(backward_launches, dy, dstats, q, k, v, a, c, w, seed, y, lse, stats, scale, ramp, dropout,
                  moments, tf32, need_a, need_c)
    return empty_dqkv(q), *(empty_per_query(q, needed) for needed in (need_a, need_c, w is not None))


def save_for_backward(ctx, inputs, output):
    # in the order of forward_launches
    *tensors, ctx.scale, ctx.ramp, ctx.dropout, ctx.moments, ctx.tf32 = inputs
    ctx.save_for_backward(*tensors, *output)


def attention_gradients(ctx, dy, dlse, *dstats):
    """Returns a gradient for each argument of attention_forward. Nothing outside uses lse, so dlse is 0."""
    q, k, v, a, c, w, seed, y, lse, *stats = ctx.saved_tensors
    need_a, need_c, need_w = ctx.needs_input_grad[3:6]
    dqkv, da, dc, dw = attention_backward(
        dy, dstats, q, k, v, a, c, w, seed, y, lse, stats,
        ctx.scale, ctx.ramp, ctx.dropout, ctx.moments, ctx.tf32, need_a, need_c)
    # in the layout of the projection that made q, k and v, so that torch.compile copies nothing
    dq, dk, dv = (z.transpose(1, 2) for z in dqkv.split(3 * [q.size(1)], dim=2)) # (B, nh, T, hs) each
    if need_c:
        # heads may share c
        dc = dc.sum_to_size(c.size())
    return dq, dk, dv, da if need_a else None, dc if need_c else None, dw if need_w else None, *[None] * 6


attention_forward.register_autograd(attention_gradients, setup_context=save_for_backward)
