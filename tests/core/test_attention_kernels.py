"""core/kernels/attention.py beside float64 math: interpreted on a CPU, and on a GPU by pytest -m gpu.

Without Triton, which a CPU does not need, only the reference is tested. On a GPU nothing is skipped.
"""
import gc
import math
from concurrent.futures import wait
from itertools import combinations
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from triton_interpreter import interpreted, triton

from core.kernels import attention_reference as reference
from core.nn.attention import kernel_attention, math_attention
from model import Step, build

CUDA = torch.cuda.is_available()
kernels = None
if triton:
    from core.kernels import attention_op as kernels

OUTPUTS = ('y', 'distance', 'variance', 'score')
LEAVES = 'qkvacw'


def seed(n=123456789012345):
    return torch.tensor([n])


def inputs(T, hs, dtype, bias=None, window=None, B=2, nh=2, device='cpu'):
    """Returns q, k, v, a, c, w as a model makes them: heads are views of one product."""
    g = torch.Generator().manual_seed(T * hs)
    normal = lambda *size: torch.randn(*size, generator=g)
    q, k, v = (z.transpose(1, 2) for z in normal(B, T, 3, nh, hs).to(device, dtype).unbind(2))
    a = c = w = None
    if bias == 'distance':
        a, c = normal(B, nh, T).sigmoid() / 4, torch.arange(T).float().repeat(B, 1, 1)
    elif bias == 'far': # what float32 alone would blur
        a, c = normal(B, nh, T).sigmoid() / 4, 1e5 + torch.arange(T).float().expand(B, 1, T)
    elif bias == 'forget':
        a, c = torch.ones(B, nh, T), -F.logsigmoid(normal(B, nh, T) + 2).cumsum(-1)
    if window is not None:
        w = 1 + window * normal(B, nh, T).exp()
        # some where the last key's weight is just 0, but none a rounding off that: w's gradient jumps there
        w[..., ::7] = w[..., ::7].round()
        w = torch.where((w - w.round()).abs() < 1e-6 * w, w.round(), w)
    return q, k, v, *(None if x is None else x.to(device) for x in (a, c, w))


def run(f, leaves, dtype=None, moments=False, fixed='', **options):
    """Returns {name: output, or gradient under a random cotangent}.

    dtype: in this instead of the leaves' own. fixed: names of leaves that need no gradient.
    """
    q, *_ = leaves
    T, g = q.size(2), torch.Generator().manual_seed(1)
    leaves = [None if x is None else x.to(dtype or x.dtype).detach() for x in leaves]
    given = {name: x for name, x in zip(LEAVES, leaves) if x is not None}
    learnt = {name: x.requires_grad_() for name, x in given.items() if name not in fixed}
    out = f(*leaves, moments=moments, **options)
    out = out if moments else (out,)
    loss = 0.0
    for y, scale in zip(out, (1, 1 / T, 1 / T ** 2, 1)):
        dy = scale * torch.randn(y.shape, generator=g).to(q.device)
        loss = loss + (y.double() * dy.to(q.dtype if y.ndim == 4 else y.dtype)).sum()
    return dict(zip(OUTPUTS, out)) | dict(zip(learnt, torch.autograd.grad(loss, list(learnt.values()))))


def errors(leaves, **options):
    """Returns the kernel's {name: norm of the difference over the norm} of outputs and gradients."""
    fast = run(kernels.attention, leaves, tf32=False, **options)
    exact = run(reference.attention, leaves, torch.float64, **options)
    for name, x in fast.items():
        assert x.isfinite().all(), name
    q, *_, w = leaves
    # with one key, gradients are differences of equal terms of about 1, which half precision has rounded
    one_key = q.dtype.itemsize == 2 and (q.size(2) == 1 or w is not None and (w < 2).all())
    # what should be 0 is small
    norm = lambda x: x.norm().clamp(min=(1.0 if one_key else 0.05) * x.numel() ** 0.5)
    return {name: ((fast[name].double() - x).norm() / norm(x)).item() for name, x in exact.items()}


def case_errors(T, hs, dtype, bias=None, window=None, device='cpu', B=2, nh=2, dropout=0.0, **options):
    return errors(inputs(T, hs, dtype, bias, window, B, nh, device), dropout=dropout,
                  seed=seed().to(device) if dropout else None, **options)


@pytest.fixture
def small_tiles(monkeypatch):
    """Blocks so small that short inputs have all kinds of blocks, and the interpreter time for them."""
    tiles = ((32, 16, 4, 1, 255), (32, 16, 4, 1, 255), (16, 32, 4, 1, 255))
    monkeypatch.setattr(kernels, 'tiles_of', lambda *_: tiles)


# -- the reference

def test_philox_is_philox():
    """Known answers of Random123 for ten rounds of Philox4x32."""
    zero, ones = torch.zeros((), dtype=torch.int64), torch.full((), 0xFFFFFFFF, dtype=torch.int64)
    pi = [torch.tensor(x) for x in (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344)]
    for key, counter, words in (
            (0, [zero] * 4, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
            (-1, [ones] * 4, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
            ((0x299F31D0 << 32) | 0xA4093822, pi, (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1))):
        assert tuple(int(x) for x in reference.philox(torch.tensor(key), *counter, rounds=10)) == words


def test_dropout_mask_drops_its_share_and_no_pattern():
    mask = reference.dropout_mask(seed(), 4, 4, 128, 0.2)
    kept, n = mask > 0, mask.numel()
    share = 1 - round(256 * 0.2) / 256
    assert mask[kept].unique() == 1 / share
    assert abs(kept.double().mean() - share) < 5 * math.sqrt(share * (1 - share) / n)
    x = (kept.double() - share).flatten(0, 1)
    for other in (x.roll(1, 0), x.roll(1, 1), x.roll(1, 2), x.roll(4, 2), x.roll(16, 2), x.mT):
        sigma = share * (1 - share) / math.sqrt(n)
        assert abs((x * other).mean()) < 5 * sigma + x.diagonal(dim1=1, dim2=2).numel() / n
    assert not torch.equal(mask, reference.dropout_mask(seed(5), 4, 4, 128, 0.2))


@pytest.mark.parametrize('bias', [None, 'distance', 'forget'])
def test_the_reference_is_models_math(bias):
    q, k, v, a, c, _ = inputs(33, 8, torch.float64, bias)
    pos = torch.arange(33).expand(2, 33)
    c_all = None if c is None else c.expand(-1, 2, -1)
    mod = None if a is None else lambda s, b, h, i, j: s + a[b, h, i] * c_all[b, h, j]
    y = math_attention(q, k, v, pos, pos, mod, 0.0)
    assert torch.allclose(reference.attention(q, k, v, a, c), y, rtol=0, atol=1e-6)


@pytest.mark.parametrize('variant, options, name', [
    ('hard_window', {}, 'window'), ('hard_window', dict(min_window=1.0), 'window'),
    ('adaptive_span', dict(span='dynamic', span_init=0.2, ramp=7.0), 'span')])
def test_the_references_windows_are_the_variants(variant, options, name):
    sizes = dict(block_size=32, vocab_size=65, n_layer=1, n_head=3, n_embd=24)
    net = build(variant, 1, **sizes, **options).double()
    attn, step = net.transformer.h[0].attn, Step(stats={})
    torch.manual_seed(0)
    getattr(attn, name).weight.data.normal_()
    x, step.pos = torch.randn(2, 32, 24).double() * 2, torch.arange(32).expand(2, 32)
    q, k, v = attn.qkv(x)
    y = attn.attend(q, k, v, x, step.pos, step)
    w = step.stats[name][0] + (1 + options['ramp'] if variant == 'adaptive_span' else 0)
    assert torch.allclose(reference.attention(q, k, v, w=w, ramp=options.get('ramp')), y, rtol=0, atol=1e-9)


# -- the kernels, interpreted

FLAGS = 'bias', 'window', 'ramp', 'moments', 'dropout'
CASES = [dict(), dict(bias='far'), dict(bias='distance', fixed='c'), dict(bias='forget', fixed='a'),
         dict(window=4), dict(window=300), dict(window=1e9), dict(window=1e-3), dict(window=8, ramp=5.0),
         dict(moments=True), dict(dropout=0.2), dict(bias='distance', window=100),
         dict(bias='distance', moments=True), dict(bias='forget', dropout=0.2),
         dict(window=6, moments=True, dropout=0.2),
         dict(bias='distance', window=12, ramp=3.0, moments=True, dropout=0.5)]


def test_each_flag_and_pair_of_flags_has_a_case():
    flags = [[flag for flag in FLAGS if flag in case] for case in CASES]
    assert {pair for case in flags for pair in combinations(case, 2)} == set(combinations(FLAGS, 2))
    for case in [], ['bias'], ['window'], ['window', 'ramp'], ['moments'], ['dropout']:
        assert case in flags


@interpreted
@pytest.mark.parametrize('case', CASES, ids=str)
def test_interpreted_kernels_as_a_gpu_rounds(case, small_tiles, multiply_adds):
    for name, e in case_errors(79, 16, torch.float32, B=1, nh=1, **case).items():
        assert e < 5e-6, (name, e)


@interpreted
@pytest.mark.parametrize('T, hs, B, nh, bias', [
    (1, 16, 2, 2, 'forget'), (31, 24, 2, 2, 'distance'), (33, 8, 1, 3, 'forget'), (64, 128, 2, 1, 'distance'),
    (111, 40, 1, 1, 'forget')])
def test_interpreted_kernels_of_any_size(T, hs, B, nh, bias, small_tiles):
    """With a bias, windows, moments and dropout at once."""
    flags = dict(bias=bias, window=20, moments=True, dropout=0.2)
    for name, e in case_errors(T, hs, torch.float32, B=B, nh=nh, **flags).items():
        assert e < 5e-6, (name, e)


@interpreted
@pytest.mark.parametrize('dtype, columns, bound', [
    (torch.float16, False, 3e-3), (torch.bfloat16, False, 2e-2), (torch.bfloat16, True, 2e-2)])
def test_interpreted_kernels_in_half_precision(
        dtype, columns, bound, small_tiles, bfloat16_products, monkeypatch):
    """Sums over keys in float32, and as products with the keys' columns."""
    monkeypatch.setattr(kernels, 'COLUMNS_FROM', 0 if columns else 2048)
    cases = [dict(bias='far', moments=True), dict(bias='distance', window=9, dropout=0.2)]
    cases += [dict(bias='forget', fixed='a'), dict(bias='far', fixed='c')] * columns
    for case in cases:
        for name, e in case_errors(79, 16, dtype, B=1, nh=1, **case).items():
            assert e < bound, (case, name, e)


@interpreted
@pytest.mark.slow
def test_interpreted_kernels_with_the_tiles_of_a_gpu():
    for name, e in case_errors(150, 64, torch.float32, B=1, nh=1, window=30, moments=True).items():
        assert e < 5e-6, (name, e)


@interpreted
def test_nothing_beyond_a_window_is_read(small_tiles):
    """Keys that no query of the last block sees may be NaN, in forward and backward."""
    q, k, v, *_ = inputs(128, 16, torch.float32, B=1, nh=1)
    w = torch.full((1, 1, 128), 20.0)
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
def test_a_key_beyond_a_window_may_be_as_large_as_it_likes(small_tiles):
    q, k, v = (x.clone() for x in inputs(64, 16, torch.float32, B=1, nh=1)[:3])
    q[:, :, 50:, 0], k[:, :, 40, 0] = 20.0, 30.0 # scores of about 150, whose exp is beyond float32
    w = torch.full((1, 1, 64), 5.0)
    for name, e in errors((q, k, v, None, None, w)).items():
        assert e < 5e-6, (name, e)


@interpreted
def test_windows_of_one_long_query_among_short_ones(small_tiles):
    q, k, v, *_ = inputs(208, 16, torch.float32, B=1)
    w = torch.full((1, 2, 208), 2.1) # 2^(208 / 2.1 / ln 2) is beyond float32
    w[0, 0, 70] = w[0, 1, 207] = 500.0
    for name, e in errors((q, k, v, None, None, w)).items():
        assert e < 5e-6, (name, e)


@interpreted
def test_moments_where_attention_is_far_and_narrow(small_tiles):
    """Mean and deviation of two keys at the other end: sums of squared distances would lose the deviation."""
    T, hs = 256, 16
    q, k, v = (torch.zeros(1, 1, T, hs) for _ in range(3))
    q[..., 0], k[..., 3:5, 0] = 200.0, 1.0 # scores of 50 for keys 3 and 4, else 0
    _, distance, variance, score = kernels.attention(q, k, v, moments=True)
    assert abs(distance[0, 0, -1] - (T - 1 - 3.5)) < 1e-3
    assert abs(variance[0, 0, -1] - 0.25) < 2e-4
    assert abs(score[0, 0, -1] - 50) < 1e-4


# -- PyTorch's operators

@interpreted
def test_kernels_are_operators(small_tiles):
    """Schemas, shapes, strides and autograd are what they are declared to be."""
    leaves = [x.detach().requires_grad_() for x in inputs(5, 8, torch.float32, 'forget', 3, B=1)]
    torch.library.opcheck(torch.ops.core.attention, (*leaves, seed(), 0.25, 0.0, 0.2, True, False))


@interpreted
def test_a_whole_graph_keeps_the_operator(small_tiles):
    leaves = [x.detach().requires_grad_() for x in inputs(20, 16, torch.float32, 'forget', 9, B=1)]
    f = lambda *leaves: kernels.attention(*leaves)
    whole = torch.compile(f, fullgraph=True, backend='aot_eager')
    eager, compiled = (torch.autograd.grad(g(*leaves).square().sum(), leaves) for g in (f, whole))
    assert all(torch.equal(x, y) for x, y in zip(eager, compiled))


@pytest.fixture
def precision(monkeypatch):
    """precision('tf32') sets PyTorch's precision of float32 products on CUDA until the test ends."""
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    yield lambda value: setattr(matmul, 'fp32_precision', value)
    matmul.fp32_precision = before


@interpreted
@pytest.mark.parametrize('compiled', [False, True])
def test_precision_is_the_callers(compiled, small_tiles, precision, monkeypatch):
    """Backward has forward's, whatever PyTorch is set to then; an argument counts more than the setting."""
    found, launch = [], kernels.launch

    def record(kernel, *grid):
        run = launch(kernel, *grid)
        return lambda *args, **options: (found.append(options['PRECISION']), run(*args, **options))

    monkeypatch.setattr(kernels, 'launch', record)
    q, k, v, *_ = inputs(5, 16, torch.float32, B=1, nh=1)
    q.requires_grad_()
    f = lambda q, tf32=None: kernels.attention(q, k, v, tf32=tf32)
    torch._dynamo.reset()
    f = torch.compile(f, fullgraph=True, backend='aot_eager') if compiled else f
    for setting, tf32, expected in (('tf32', None, 'tf32'), ('ieee', None, 'ieee'), ('tf32', False, 'ieee'),
                                    ('ieee', True, 'tf32'), ('tf32', None, 'tf32')):
        found.clear()
        precision(setting)
        y = f(q, tf32)
        precision('ieee' if setting == 'tf32' else 'tf32')
        y.sum().backward()
        assert found == [expected] * 3


def forward_and_backward(*tensors):
    """Calls both operators on q, k, v, a, c, w and a seed, with all that they can compute."""
    options = 0.25, 0.0, 0.2, True, False
    y, lse, *stats = kernels.attention_forward(*tensors, *options)
    return kernels.attention_backward(y, stats, *tensors, y, lse, stats, *options, True, True)


def without_memory(x):
    """Returns x, in a FakeTensorMode, as torch.compile traces it on CUDA."""
    return torch.empty_strided(x.size(), x.stride(), dtype=x.dtype, device='cuda')


@interpreted
def test_kernels_begin_to_compile_while_torch_compile_traces(small_tiles, monkeypatch):
    """Those that will run, with the dtypes, strides and constants they run with; of unknown sizes none."""
    traced, ran = [], []

    def record(kernel, *grid):
        def run(*args, **options):
            dtypes = tuple(x.dtype if isinstance(x, torch.Tensor) else x for x in args)
            ran.append((kernel.fn.__name__, dtypes, tuple(options.items())))
            launch(kernel, *grid)(*args, **options)
        return run

    tensors = *inputs(40, 16, torch.bfloat16, 'forget', 9, B=1), seed()
    monkeypatch.setattr(kernels, 'COLUMNS_FROM', 32)
    with monkeypatch.context() as patch, FakeTensorMode():
        patch.setattr(torch.cuda, 'is_available', lambda: True)
        patch.setattr(kernels, 'start_compiling',
                      lambda kernel, device, *rest: traced.append((kernel.fn.__name__, *rest)))
        forward_and_backward(*map(without_memory, tensors))
        unknown = SimpleNamespace(is_cuda=True, shape=(2, 2, ShapeEnv().create_unbacked_symint(), 16))
        kernels.compile_ahead(pytest.fail, unknown)
    launch = kernels.launch
    monkeypatch.setattr(kernels, 'launch', record)
    forward_and_backward(*tensors)
    assert len(ran) == 4 and traced == ran


@interpreted
def test_gradients_of_queries_keys_and_values_are_not_copied(small_tiles):
    """They lie in one tensor, side by side, as backward of the product that they are parts of reads them."""
    x = torch.randn(2, 20, 3 * 2 * 16, requires_grad=True)
    q, k, v = (z.transpose(1, 2) for z in x.view(2, 20, 6, 16).split(2, dim=2))
    dq, dk, dv = torch.autograd.grad(kernels.attention(q, k, v).square().sum(), (q, k, v))
    width = 2 * 16
    for n, (z, dz) in enumerate(zip((q, k, v), (dq, dk, dv))):
        assert dz.stride() == z.stride()
        assert dz.data_ptr() == dq.data_ptr() + n * width * dq.element_size()


# -- the kernels, on a GPU

@pytest.mark.gpu
def test_kernels_that_were_traced_are_compiled_when_they_run(monkeypatch):
    """Head size 40: a kernel that nothing else compiles."""
    tensors = *inputs(160, 40, torch.bfloat16, 'forget', 50, device='cuda'), seed().cuda()
    with FakeTensorMode():
        forward_and_backward(*map(without_memory, tensors))
    assert not wait(kernels.compilations, timeout=300).not_done
    for kernel in kernels.attention_forward_kernel, kernels.backward_q_kernel, kernels.backward_kv_kernel:
        monkeypatch.setattr(kernel, 'compile', pytest.fail)
    forward_and_backward(*tensors)


@pytest.mark.gpu
@pytest.mark.parametrize('T, hs', [*((T, 64) for T in (1, 63, 111, 128, 129, 1000, 2048)),
                                   *((1000, hs) for hs in (16, 24, 32, 96, 128))])
@pytest.mark.parametrize('dtype, bound', [
    (torch.float32, 2e-5), (torch.float16, 3e-3), (torch.bfloat16, 2e-2)])
def test_kernels_equal_float64_math(T, hs, dtype, bound):
    for case in (*CASES, dict(window=100), dict(window=3000, moments=True)):
        for name, e in case_errors(T, hs, dtype, device='cuda', **case).items():
            assert e < bound, (case, name, e)


@pytest.mark.gpu
def test_tf32_is_forwards_in_backward(precision):
    leaves = inputs(256, 64, torch.float32, B=1, device='cuda')[:3]
    leaves = [x.detach().requires_grad_() for x in leaves]
    exact = run(reference.attention, (*leaves, None, None, None), torch.float64)
    results = {}
    for forward in 'tf32', 'ieee':
        for backward in 'tf32', 'ieee':
            precision(forward)
            y = kernels.attention(*leaves)
            precision(backward)
            results[forward, backward] = y, *torch.autograd.grad(y.square().sum(), leaves)
    for forward in 'tf32', 'ieee':
        assert all(map(torch.equal, results[forward, 'tf32'], results[forward, 'ieee']))
        error = (results[forward, forward][0].double() - exact['y']).norm() / exact['y'].norm()
        assert (error > 2e-5) == (forward == 'tf32')


@pytest.mark.gpu
def test_two_runs_are_equal():
    leaves = inputs(1000, 64, torch.bfloat16, 'forget', 50, device='cuda')
    options = dict(moments=True, dropout=0.2, seed=seed().cuda())
    one, two = (run(kernels.attention, leaves, **options) for _ in range(2))
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.gpu
def test_a_compiled_graph_keeps_the_kernels():
    leaves = inputs(256, 64, torch.bfloat16, 'forget', 50, device='cuda')
    leaves = [x.detach().requires_grad_() for x in leaves]
    f = lambda *leaves: kernels.attention(*leaves, moments=True)
    results = []
    for g in (f, torch.compile(f, fullgraph=True)):
        y, *stats = g(*leaves)
        results.append(torch.autograd.grad(y.float().square().sum() + sum(s.sum() for s in stats), leaves))
    assert all(torch.equal(x, y) for x, y in zip(*results))


@pytest.mark.parametrize('device, backend', [
    ('cpu', 'aot_eager'), pytest.param('cpu', 'inductor', marks=pytest.mark.slow),
    pytest.param('cuda', 'inductor', marks=pytest.mark.gpu)])
def test_compiled_dropout_is_new_at_every_place_and_call(device, backend):
    """Seeds are drawn in the graph, where torch 2.11 makes one fixed number of draws of more than 32 bits."""
    q, k, v = inputs(40, 16, torch.float32, device=device)[:3]
    f = lambda: torch.stack([kernel_attention(q, k, v, None, 0.2) for _ in range(3)])
    f = torch.compile(f, fullgraph=True, backend=backend)
    runs = []
    for n in 1, 1, 2:
        torch.manual_seed(n)
        runs.append(f())
    assert torch.equal(runs[0], runs[1])
    ys = [*runs[0], *runs[2]]
    assert not any(torch.equal(one, two) for one, two in combinations(ys, 2))


@pytest.mark.gpu
def test_memory_is_linear_in_length():
    peaks = []
    for T in (8192, 65536):
        q, k, v = (x.detach().requires_grad_() for x in inputs(T, 64, torch.bfloat16, B=1, device='cuda')[:3])
        w = torch.full((1, 2, T), 128.0, device='cuda', requires_grad=True)
        gc.collect() # nothing that is there before is to be freed meanwhile
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        y, *stats = kernels.attention(q, k, v, w=w, moments=True)
        (y.float().sum() + sum(s.sum() for s in stats)).backward()
        peaks.append(torch.cuda.max_memory_allocated() - before)
    assert peaks[1] < 8.5 * peaks[0]
