"""The Triton kernels against float64 math: under Triton's interpreter on a CPU, and on a GPU by hand with pytest -m gpu.

Without Triton (not needed on a CPU) only the reference is tested; with a GPU nothing of pytest -m gpu is ever skipped.
"""
import math
from concurrent.futures import wait
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch._inductor.utils import run_and_get_code
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from core.kernels import attention_reference as reference
from core.nn.attention import kernel_attention, math_attention
from model import Step, build

CUDA = torch.cuda.is_available()
try:
    from core.kernels import attention as kernels
except ImportError:
    if CUDA:
        raise
    kernels = None
old = kernels is None or [int(n) for n in kernels.triton.__version__.split('.')[:2]] < [3, 7] # its interpreter fails on NumPy 2.4
interpreted = pytest.mark.skipif(CUDA or old, reason="needs Triton 3.7's interpreter and no GPU")
OUTPUTS = ('y', 'distance', 'variance', 'score')
LEAVES = 'qkvacw'


def seed(n=123456789012345):
    return torch.tensor([n])


def inputs(T, hs, dtype, bias=None, window=None, B=2, nh=2, device='cpu'):
    """q, k, v, a, c, w as a model makes them: heads are views of one product."""
    g = torch.Generator().manual_seed(T * hs)
    normal = lambda *size: torch.randn(*size, generator=g)
    q, k, v = (z.transpose(1, 2) for z in normal(B, T, 3, nh, hs).to(device, dtype).unbind(2))
    a = c = w = None
    if bias == 'distance':
        a, c = normal(B, nh, T).sigmoid() / 4, torch.arange(T).float().expand(B, 1, T)
    elif bias == 'far': # what float32 alone would blur
        a, c = normal(B, nh, T).sigmoid() / 4, 1e5 + torch.arange(T).float().expand(B, 1, T)
    elif bias == 'forget':
        a, c = torch.ones(B, nh, T), -F.logsigmoid(normal(B, nh, T) + 2).cumsum(-1)
    if window is not None:
        w = 1 + window * normal(B, nh, T).exp()
        w[..., ::7] = w[..., ::7].round() # where the last key's weight is just 0
        w = torch.where((w - w.round()).abs() < 1e-6 * w, w.round(), w) # not a rounding off that: w's gradient jumps there
    return q, k, v, *(None if x is None else x.to(device) for x in (a, c, w))


def run(f, leaves, dtype=None, moments=False, **options):
    """{name: output or gradient under a random cotangent}; dtype: in this instead of the leaves' own."""
    q, *_ = leaves
    g = torch.Generator().manual_seed(1)
    leaves = [None if x is None else x.to(dtype or x.dtype).detach().requires_grad_() for x in leaves]
    out = f(*leaves, moments=moments, **options)
    out = out if moments else (out,)
    T = q.size(2)
    scales = (1, 1 / T, 1 / T ** 2, 1)
    loss = sum((y.double() * (s * torch.randn(y.shape, generator=g).to(q.device).to(q.dtype if y.ndim == 4 else y.dtype))).sum()
               for y, s in zip(out, scales))
    there = [n for n, x in zip(LEAVES, leaves) if x is not None]
    return dict(zip(OUTPUTS, out)) | dict(zip(there, torch.autograd.grad(loss, [x for x in leaves if x is not None])))


def errors(leaves, **options):
    """Of the kernel: norm of the difference over the norm, for each output and gradient."""
    fast, exact = run(kernels.attention, leaves, **options), run(reference.attention, leaves, torch.float64, **options)
    for name, x in fast.items():
        assert x.isfinite().all(), name
    q, *_, w = leaves
    alone = q.size(2) == 1 or w is not None and (w < 2).all() # with one key, gradients are differences of equal terms of about 1
    alone = alone and q.dtype.itemsize == 2 # which half precision has rounded
    norm = lambda x: x.norm().clamp(min=(1.0 if alone else 0.05) * x.numel() ** 0.5) # what should be 0 is small
    return {name: ((fast[name].double() - x).norm() / norm(x)).item() for name, x in exact.items()}


@pytest.fixture
def small_tiles(monkeypatch):
    """Blocks so small that short inputs have every kind of block, and the interpreter time for them."""
    if not CUDA:
        tiles = ((32, 16, 4, 1, 255), (32, 16, 4, 1, 255), (16, 32, 4, 1, 255))
        monkeypatch.setattr(kernels, 'tiles_of', lambda *_: tiles)


# -- the reference

def test_philox_is_philox():
    """Known answers of Random123 for ten rounds of Philox4x32."""
    zero, ones = torch.zeros((), dtype=torch.int64), torch.full((), 0xFFFFFFFF, dtype=torch.int64)
    pi = [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344]
    for key, counter, words in (
            (0, [zero] * 4, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
            (-1, [ones] * 4, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
            ((0x299F31D0 << 32) | 0xA4093822, [torch.tensor(x) for x in pi], (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1))):
        assert tuple(int(x) for x in reference.philox(torch.tensor(key), *counter, rounds=10)) == words


def test_dropout_mask_drops_its_share_and_no_pattern():
    mask = reference.dropout_mask(seed(), 4, 4, 128, 0.2)
    kept, n = mask > 0, mask.numel()
    share = 1 - round(256 * 0.2) / 256
    assert mask[kept].unique() == 1 / share
    assert abs(kept.double().mean() - share) < 5 * math.sqrt(share * (1 - share) / n)
    x = (kept.double() - share).flatten(0, 1)
    for other in (x.roll(1, 0), x.roll(1, 1), x.roll(1, 2), x.roll(4, 2), x.roll(16, 2), x.mT):
        assert abs((x * other).mean()) < 5 * share * (1 - share) / math.sqrt(n) + (x.diagonal(dim1=1, dim2=2).numel() / n)
    assert not torch.equal(mask, reference.dropout_mask(seed(5), 4, 4, 128, 0.2))


@pytest.mark.parametrize('bias', [None, 'distance', 'forget'])
def test_the_reference_is_models_math(bias):
    q, k, v, a, c, _ = inputs(33, 8, torch.float64, bias)
    pos = torch.arange(33).expand(2, 33)
    c_all = None if c is None else c.expand(-1, 2, -1)
    mod = None if a is None else lambda s, b, h, i, j: s + a[b, h, i] * c_all[b, h, j]
    assert torch.allclose(reference.attention(q, k, v, a, c), math_attention(q, k, v, pos, pos, mod, 0.0), rtol=0, atol=1e-6)


@pytest.mark.parametrize('variant, options, name', [('hard_window', {}, 'window'), ('hard_window', dict(min_window=1.0), 'window'),
                                                    ('adaptive_span', dict(span='dynamic', span_init=0.2, ramp=7.0), 'span')])
def test_the_references_windows_are_the_variants(variant, options, name):
    net = build(variant, 1, block_size=32, vocab_size=65, n_layer=1, n_head=3, n_embd=24, **options).double()
    attn, step = net.transformer.h[0].attn, Step(stats={})
    torch.manual_seed(0)
    getattr(attn, name).weight.data.normal_()
    x, step.pos = torch.randn(2, 32, 24).double() * 2, torch.arange(32).expand(2, 32)
    q, k, v = attn.qkv(x)
    y = attn.attend(q, k, v, x, step.pos, step)
    w = step.stats[name][0] + (1 + options['ramp'] if variant == 'adaptive_span' else 0)
    assert torch.allclose(reference.attention(q, k, v, w=w, ramp=options.get('ramp')), y, rtol=0, atol=1e-9)


# -- the kernels, interpreted

CASES = [dict(), dict(bias='distance'), dict(bias='far'), dict(bias='forget'), dict(window=4), dict(window=30), dict(window=300),
         dict(window=1e9), dict(window=1e-3), dict(window=8, ramp=5.0), dict(bias='distance', window=9), dict(moments=True),
         dict(dropout=0.2), dict(bias='distance', moments=True), dict(bias='forget', dropout=0.2),
         dict(window=6, moments=True, dropout=0.2), dict(bias='distance', window=12, ramp=3.0, moments=True, dropout=0.5)]


def case_errors(T, hs, dtype, bias=None, window=None, device='cpu', B=2, nh=2, dropout=0.0, **options):
    return errors(inputs(T, hs, dtype, bias, window, B, nh, device), dropout=dropout,
                  seed=seed().to(device) if dropout else None, **options)


@pytest.fixture
def multiply_adds(monkeypatch):
    """The interpreter rounds products; a GPU does not where a sum follows, and x * y - (x * y) need not be 0."""
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    def matmul(self, one, two):
        handle = TensorHandle(one.data * two.data, one.dtype.scalar)
        handle.exact = one.data.astype('float64') * two.data
        return handle

    def fused(f):
        def sum_or_difference(self, one, two):
            free = next((x for x in (one, two) if hasattr(x, 'exact')), None) # one product is not rounded
            if free is None or one.data.dtype != 'float32':
                return f(self, one, two)
            wide = (TensorHandle(x.exact if x is free else x.data.astype('float64'), float64) for x in (one, two))
            return TensorHandle(f(self, *wide).data.astype('float32'), one.dtype.scalar)
        return sum_or_difference

    float64 = kernels.tl.float64
    monkeypatch.setattr(InterpreterBuilder, 'create_fmul', product)
    for name in ('create_fadd', 'create_fsub'):
        monkeypatch.setattr(InterpreterBuilder, name, fused(getattr(InterpreterBuilder, name)))


@interpreted
@pytest.mark.parametrize('case', CASES, ids=str)
def test_interpreted_kernels_equal_float64_math(case, small_tiles):
    for name, e in case_errors(79, 16, torch.float32, B=1, **case).items():
        assert e < 5e-6, (name, e)


@interpreted
@pytest.mark.parametrize('case', CASES, ids=str)
def test_interpreted_kernels_as_a_gpu_rounds(case, small_tiles, multiply_adds):
    for name, e in case_errors(79, 16, torch.float32, nh=1, **case).items():
        assert e < 5e-6, (name, e)


@interpreted
@pytest.mark.parametrize('T, hs', [(1, 16), (2, 8), (31, 24), (32, 32), (33, 64), (63, 128), (111, 16), (128, 40), (129, 16)])
def test_interpreted_kernels_of_any_size(T, hs, small_tiles):
    for name, e in case_errors(T, hs, torch.float32, bias='distance', window=20, moments=True, dropout=0.2).items():
        assert e < 5e-6, (name, e)


@pytest.fixture
def bfloat16_products(monkeypatch):
    """The interpreter keeps bfloat16 as the bits it is and multiplies those."""
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle, tl

    dot = InterpreterBuilder.create_dot
    wide = lambda x: TensorHandle((x.data.astype('uint32') << 16).view('float32'), tl.float32) if x.dtype == tl.bfloat16 else x
    monkeypatch.setattr(InterpreterBuilder, 'create_dot', lambda self, a, b, *args: dot(self, wide(a), wide(b), *args))


@interpreted
@pytest.mark.parametrize('dtype, columns_from', [(torch.float16, 2048), (torch.bfloat16, 2048), (torch.bfloat16, 0)])
def test_interpreted_kernels_in_half_precision(dtype, columns_from, small_tiles, bfloat16_products, monkeypatch):
    """Sums over keys in float32, and as products with the keys' columns."""
    monkeypatch.setattr(kernels, 'COLUMNS_FROM', columns_from)
    for case in (dict(bias='distance', moments=True), dict(window=8, dropout=0.2), dict(bias='forget'), dict(bias='far'),
                 dict(bias='distance', window=9, dropout=0.2)):
        for name, e in case_errors(79, 16, dtype, nh=1, **case).items():
            assert e < (2e-2 if dtype == torch.bfloat16 else 3e-3), (name, e)


@interpreted
def test_interpreted_kernels_with_the_tiles_of_a_gpu():
    for name, e in case_errors(150, 64, torch.float32, B=1, nh=1, window=30, moments=True).items():
        assert e < 5e-6, (name, e)


@interpreted
def test_nothing_beyond_a_window_is_read(small_tiles):
    """Keys that no query of the last block sees may be NaN, in forward and backward."""
    q, k, v, *_ = inputs(128, 16, torch.float32)
    w = torch.full((2, 2, 128), 20.0)
    q, k, v = (x.detach().clone() for x in (q, k, v))
    k[:, :, :64], v[:, :, :64] = math.nan, math.nan
    q.requires_grad_(), w.requires_grad_()
    y = kernels.attention(q, k, v, w=w)
    dq, dw = torch.autograd.grad(y[:, :, 96:].sum(), (q, w)) # these queries see keys from 77 on
    for x in (y, dq, dw):
        assert x[:, :, 96:].isfinite().all()
    q2 = q.detach().clone()
    q2[:, :, 64:] = math.nan # queries that see key 12 no more do not touch its gradient
    k2, v2 = (torch.ones_like(k).requires_grad_() for _ in range(2))
    dk, dv = torch.autograd.grad(kernels.attention(q2, k2, v2, w=w).sum(), (k2, v2))
    for x in (dk, dv):
        assert x[:, :, :32].isfinite().all()


@interpreted
@pytest.mark.parametrize('each', [True, False])
def test_windows_of_one_long_query_among_short_ones(each, small_tiles, monkeypatch):
    monkeypatch.setattr(kernels, 'TEST_EACH_BLOCK', each)
    q, k, v, *_ = inputs(208, 16, torch.float32)
    w = torch.full((2, 2, 208), 2.1) # 2^(208 / 2.1 / ln 2) is beyond float32
    w[0, 1, 70] = w[1, 0, 207] = 500.0
    for name, e in errors((q, k, v, None, None, w)).items():
        assert e < 5e-6, (name, e)


@interpreted
def test_two_interpreted_runs_are_equal(small_tiles, bfloat16_products):
    leaves = inputs(70, 16, torch.bfloat16, 'forget', 9)
    one, two = (run(kernels.attention, leaves, moments=True, dropout=0.2, seed=seed()) for _ in range(2))
    assert all(torch.equal(one[name], two[name]) for name in one)


@interpreted
def test_moments_where_attention_is_far_and_narrow(small_tiles):
    """Mean and deviation of one or two keys at the other end: sums of squared distances would lose the deviation."""
    T, hs = 512, 16
    q, k, v = (torch.zeros(1, 1, T, hs) for _ in range(3))
    q[..., 0], k[..., 3:5, 0] = 200.0, 1.0 # scores of 50 for keys 3 and 4, else 0
    _, distance, variance, score = kernels.attention(q, k, v, moments=True)
    assert abs(distance[0, 0, -1] - (T - 1 - 3.5)) < 1e-3
    assert abs(variance[0, 0, -1] - 0.25) < 2e-4
    assert abs(score[0, 0, -1] - 50) < 1e-4


@interpreted
def test_kernels_are_operators(small_tiles):
    """Schemas, shapes, strides and autograd are what they are declared to be; a whole graph keeps the operator."""
    q, k, v, a, c, w = (x.detach().requires_grad_() for x in inputs(40, 16, torch.float32, 'forget', 9, B=1))
    torch.library.opcheck(torch.ops.variants.attention, (q, k, v, a, c, w, seed(), 0.25, 0.0, 0.2, True))
    torch.library.opcheck(torch.ops.variants.attention, (q, k, v, None, None, None, None, 0.25, 0.0, 0.0, False))
    f = lambda q, k, v, a, c, w: kernels.attention(q, k, v, a, c, w)
    whole = torch.compile(f, fullgraph=True, backend='aot_eager')
    eager, compiled = (torch.autograd.grad(g(q, k, v, a, c, w).square().sum(), (q, k, v, a, c, w)) for g in (f, whole))
    assert all(torch.equal(x, y) for x, y in zip(eager, compiled))


def forward_and_backward(*tensors):
    """Both operators on q, k, v, a, c, w and a seed, with everything there is."""
    options = 0.25, 0.0, 0.2, True
    y, lse, *stats = kernels.forward(*tensors, *options)
    return kernels.backward(y, stats, *tensors, y, lse, stats, *options, True, True)


def without_memory(x):
    """In a FakeTensorMode, x as torch.compile traces it on CUDA."""
    return torch.empty_strided(x.size(), x.stride(), dtype=x.dtype, device='cuda')


@interpreted
def test_kernels_begin_to_compile_while_torch_compile_traces(small_tiles, monkeypatch):
    """Those that will run, with the dtypes, strides and constants that they will run with; with unknown sizes none."""
    traced, ran = [], []

    def record(kernel, *grid):
        def run(*args, **options):
            dtypes = tuple(x.dtype if isinstance(x, torch.Tensor) else x for x in args)
            ran.append((kernel.fn.__name__, dtypes, tuple(options.items())))
            launch(kernel, *grid)(*args, **options)
        return run

    tensors = *inputs(40, 16, torch.bfloat16, 'forget', 9), seed()
    monkeypatch.setattr(kernels, 'COLUMNS_FROM', 32)
    with monkeypatch.context() as patch, FakeTensorMode():
        patch.setattr(torch.cuda, 'is_available', lambda: True)
        patch.setattr(kernels, 'begin', lambda kernel, device, *rest: traced.append((kernel.fn.__name__, *rest)))
        forward_and_backward(*map(without_memory, tensors))
        unknown = SimpleNamespace(is_cuda=True, shape=(2, 2, ShapeEnv().create_unbacked_symint(), 16))
        kernels.begin_launches(pytest.fail, unknown)
    launch = kernels.launch
    monkeypatch.setattr(kernels, 'launch', record)
    forward_and_backward(*tensors)
    assert [name for name, *_ in ran] == ['forward_kernel', 'key_columns', 'backward_q', 'backward_kv']
    assert traced == ran


@interpreted
def test_gradients_of_queries_keys_and_values_are_not_copied(small_tiles):
    """Compiled, c_attn's backward products read what the kernels wrote; nothing lays them side by side first."""
    attn = build('base', 1, block_size=32, vocab_size=65, n_layer=1, n_head=2, n_embd=32).transformer.h[0].attn
    x = torch.randn(2, 32, 32, requires_grad=True)
    f = lambda x: kernels.attention(*attn.qkv(x))
    compiled = torch.compile(f, fullgraph=True)
    gradient = lambda f: torch.autograd.grad(f(x).square().sum(), (x, attn.c_attn.weight))
    got, codes = run_and_get_code(lambda: gradient(compiled))
    assert 'cat' not in codes[-1]
    for one, two in zip(got, gradient(f), strict=True):
        assert torch.allclose(one, two, rtol=1e-5, atol=1e-5)


def product_error(M, K, N, dtype, device='cpu'):
    """Of core/kernels/matmul.py, over the norm of what float64 says: the larger for a weight in a forward pass and in a backward one."""
    from core.kernels.matmul import matmul  # Triton
    g = torch.Generator().manual_seed(M * N + K)
    a, forward, backward = (torch.randn(size, generator=g).to(device, dtype) for size in ((M, K), (N, K), (K, N)))
    found = []
    for b in forward.t(), backward:
        y, exact = matmul(a, b), a.double() @ b.double()
        assert y.dtype == dtype and y.is_contiguous() and torch.equal(y, matmul(a, b))
        found.append(((y.double() - exact).norm() / exact.norm()).item())
    return max(found)


@interpreted
@pytest.mark.parametrize('M, K, N', [(1, 1, 1), (65, 65, 33), (64, 320, 32), (130, 128, 256), (40, 72, 300)])
@pytest.mark.parametrize('dtype, bound', [(torch.float16, 2 ** -10), (torch.bfloat16, 2 ** -7)])
def test_interpreted_products_equal_float64(M, K, N, dtype, bound, bfloat16_products):
    assert product_error(M, K, N, dtype) < bound


# -- the kernels, on a GPU

@pytest.mark.gpu
@pytest.mark.parametrize('M, K, N', [(1, 1, 1), (65, 65, 33), (768, 128, 384), (768, 128, 65), (768, 65, 128), (768, 512, 128),
                                     (2048, 300, 99)])
@pytest.mark.parametrize('dtype, bound', [(torch.float16, 2 ** -10), (torch.bfloat16, 2 ** -7)])
def test_products_equal_float64(M, K, N, dtype, bound):
    assert product_error(M, K, N, dtype, 'cuda') < bound


@pytest.mark.gpu
def test_kernels_that_were_traced_are_compiled_when_they_run(monkeypatch):
    """Head size 40: a kernel that nothing else compiles."""
    tensors = *inputs(160, 40, torch.bfloat16, 'forget', 50, device='cuda'), seed().cuda()
    with FakeTensorMode():
        forward_and_backward(*map(without_memory, tensors))
    assert not wait(kernels.begun, timeout=120).not_done
    for kernel in kernels.forward_kernel, kernels.backward_q, kernels.backward_kv:
        monkeypatch.setattr(kernel, 'compile', pytest.fail)
    forward_and_backward(*tensors)


@pytest.mark.gpu
@pytest.mark.parametrize('T, hs', [*((T, 64) for T in (1, 63, 111, 128, 129, 1000, 2048)),
                                   *((1000, hs) for hs in (16, 24, 32, 96, 128))])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.bfloat16])
def test_kernels_equal_float64_math(T, hs, dtype):
    assert CUDA
    bounds = {torch.float32: 2e-5, torch.float16: 3e-3, torch.bfloat16: 2e-2}
    for case in (*CASES, dict(window=100), dict(window=3000, moments=True)):
        for name, e in case_errors(T, hs, dtype, device='cuda', **case).items():
            assert e < bounds[dtype], (case, name, e)


@pytest.mark.gpu
def test_two_runs_are_equal():
    leaves = inputs(1000, 64, torch.bfloat16, 'forget', 50, device='cuda')
    one, two = (run(kernels.attention, leaves, moments=True, dropout=0.2, seed=seed().cuda()) for _ in range(2))
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.gpu
def test_a_compiled_graph_keeps_the_kernels():
    leaves = [x.detach().requires_grad_() for x in inputs(256, 64, torch.bfloat16, 'forget', 50, device='cuda')]
    f = lambda *leaves: kernels.attention(*leaves, moments=True)
    results = []
    for g in (f, torch.compile(f, fullgraph=True)):
        y, *stats = g(*leaves)
        results.append(torch.autograd.grad(y.float().square().sum() + sum(s.sum() for s in stats), leaves))
    assert all(torch.equal(x, y) for x, y in zip(*results))


@pytest.mark.parametrize('device', ['cpu', pytest.param('cuda', marks=pytest.mark.gpu)])
def test_compiled_dropout_is_new_at_every_place_and_call(device):
    """Seeds are drawn in the graph: torch 2.11 compiled a draw of more than 32 bits to one undefined number for all."""
    q, k, v = inputs(40, 16, torch.float32, device=device)[:3]
    f = torch.compile(lambda: torch.stack([kernel_attention(q, k, v, None, 0.2) for _ in range(3)]), fullgraph=True)
    runs = []
    for n in 1, 1, 2:
        torch.manual_seed(n)
        runs.append(f())
    assert torch.equal(runs[0], runs[1])
    ys = [*runs[0], *runs[2]]
    assert not any(torch.equal(one, two) for i, one in enumerate(ys) for two in ys[:i])


@pytest.mark.gpu
def test_memory_is_linear_in_length():
    peaks = []
    for T in (8192, 65536):
        q, k, v = (x.detach().requires_grad_() for x in inputs(T, 64, torch.bfloat16, B=1, device='cuda')[:3])
        w = torch.full((1, 2, T), 128.0, device='cuda', requires_grad=True)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        y, *stats = kernels.attention(q, k, v, w=w, moments=True)
        (y.float().sum() + sum(s.sum() for s in stats)).backward()
        peaks.append(torch.cuda.max_memory_allocated() - before)
    assert peaks[1] < 8.5 * peaks[0]
