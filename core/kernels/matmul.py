"""The product of two small matrices, by blocks that leave room on a multiprocessor for other models.

cuBLAS chooses what is fastest alone. For (768, 128) x (128, 384) that is 96 blocks of 180 KB of shared
memory, one per multiprocessor, in clusters: the rest of an H200's 132 multiprocessors are idle, and the next
product waits, even one of another model. These blocks take 32 to 48 KB, and are as fast alone.
"""
import triton
import triton.language as tl


@triton.jit
def matmul_kernel(a, b, y, M, N, K, am, ak, bk, bn,
                  ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, GUARD: tl.constexpr):
    """Stores y (M, N) = a b for a (M, K) with strides am, ak and b (K, N) with strides bk, bn.

    A program makes ROWS x COLUMNS of y, and reads DEPTH of K at a time. GUARD: K is not a multiple of DEPTH.
    """
    # the rows and columns of y that this program makes, of which some may be beyond it
    m = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    n = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    rows, columns = (m < M)[:, None], (n < N)[None, :]
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(0, K, DEPTH):
        k = start + tl.arange(0, DEPTH)
        left_mask, right_mask = rows, columns
        if GUARD:
            left_mask, right_mask = rows & (k < K)[None, :], columns & (k < K)[:, None]
        left = tl.load(a + m[:, None] * am + k[None, :] * ak, mask=left_mask, other=0.0) # (ROWS, DEPTH)
        right = tl.load(b + k[:, None] * bk + n[None, :] * bn, mask=right_mask, other=0.0) # (DEPTH, COLUMNS)
        total = tl.dot(left, right, total)
    tl.store(y + m[:, None] * N + n[None, :], total.to(y.dtype.element_ty), mask=rows & columns)


def matmul(a, b):
    """Returns a @ b (M, N) for a (M, K), b (K, N) in bfloat16 or float16; sums are float32, in one order."""
    (M, K), N = a.shape, b.size(1)
    y = a.new_empty(M, N)
    # blocks of a and b take 32 or 48 KB of shared memory in two stages
    columns, depth = (64, 64) if N >= 256 else (32, 128)
    matmul_kernel[triton.cdiv(M, 64), triton.cdiv(N, columns)](
        a, b, y, M, N, K, *a.stride(), *b.stride(), 64, columns, depth, K % depth > 0,
        num_warps=4, num_stages=2)
    return y
