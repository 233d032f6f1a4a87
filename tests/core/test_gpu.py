"""Tests that need a CUDA device; run by hand: python -m pytest tests -m gpu -n 10"""
import gc
import os
import subprocess
import sys

import pytest
import torch
from helpers import ROOT
from torch._inductor import config

from core.assemble import variant_names
from core.device.machine import machine
from core.nn.attention import Bias, attend, distance_bias
from core.training.train_step import TrainStep
from model import build

pytestmark = pytest.mark.gpu
SIZE = dict(block_size=256, vocab_size=65, n_layer=2, n_head=4, n_embd=256)
SMALL = SIZE | dict(block_size=64, n_embd=128) # whose products are core/kernels/matmul.py's
ALL = 'base', *variant_names()


def error(a, b):
    return ((a.double() - b).norm() / b.norm()).item()


def as_leaves(half_dtype, halves, wides):
    """Returns tensors that need gradients: the first in half_dtype, the others in at least float32."""
    wide = torch.promote_types(half_dtype, torch.float32) # windows are never kept in half precision
    tensors = [*(t.to(half_dtype) for t in halves), *(t.to(wide) for t in wides)]
    return [t.detach().requires_grad_() for t in tensors]


@pytest.mark.parametrize('impl', ['sdpa', 'flex'])
@pytest.mark.parametrize('T', [63, 128, 256, 1000])
@pytest.mark.parametrize('window', [2.0, 30.0, 3000.0])
def test_distance_bias_equals_float64_math(impl, T, window):
    torch.manual_seed(T)
    q, k, v, g = torch.randn(4, 2, 3, T, 64, device='cuda', dtype=torch.bfloat16) # (B, nh, T, hs) each
    w = 1 + window * torch.randn(2, 3, T, device='cuda').exp()
    pos = torch.arange(T, device='cuda').expand(2, T)

    def run(impl, dtype):
        leaves = as_leaves(dtype, (q, k, v), (w,))

        def f(q, k, v, w):
            return attend(q, k, v, pos, pos, distance_bias(1 / w, pos), impl, from_zero=True)

        y = (torch.compile(f, dynamic=False) if impl == 'flex' else f)(*leaves)
        return y, *torch.autograd.grad((y * g.to(y.dtype)).sum(), leaves)

    results = run(impl, torch.bfloat16), run('math', torch.float64)
    for name, fast, exact in zip(('y', 'q', 'k', 'v', 'window'), *results, strict=True):
        assert error(fast, exact) < (2e-2 if name == 'window' else 6e-3), name


@pytest.mark.parametrize('T', [128, 256, 1000])
@pytest.mark.parametrize('start', [0.0, 3.0])
def test_key_bias_equals_float64_math(T, start):
    """A bias that belongs to the key and adds up along the row, as in the variant forgetting."""
    torch.manual_seed(T)
    q, k, v, g = torch.randn(4, 2, 3, T, 64, device='cuda', dtype=torch.bfloat16) # (B, nh, T, hs) each
    z = torch.randn(2, 3, T, device='cuda') + start
    pos = torch.arange(T, device='cuda').expand(2, T)

    def run(impl, dtype):
        leaves = as_leaves(dtype, (q, k, v), (z,))
        c = torch.nn.functional.logsigmoid(leaves[3]).cumsum(-1)
        y = attend(*leaves[:3], pos, pos, Bias(torch.ones_like(c), -c), impl, from_zero=True)
        return y, *torch.autograd.grad((y * g.to(y.dtype)).sum(), leaves)

    results = run('sdpa', torch.bfloat16), run('math', torch.float64)
    for name, fast, exact in zip(('y', 'q', 'k', 'v', 'z'), *results, strict=True):
        assert error(fast, exact) < (5e-2 if name == 'z' else 6e-3), (name, error(fast, exact))


def make_step(variant, compile=True, dropout=0.2, seed=1, size=SIZE):
    """Returns the TrainStep of a new model."""
    m = machine('cuda', 'bfloat16', compile)
    model = build(variant, seed, dropout=dropout, **size).cuda().train()
    optimizer = model.configure_optimizers(0.1, 1e-3, (0.9, 0.99), 'cuda')
    return TrainStep(model, optimizer, m, (2, 8, size['block_size']), 1.0, seed)


def batch(it, size=SIZE):
    generator = torch.Generator().manual_seed(it)
    return torch.randint(65, (2, 16, size['block_size']), generator=generator).cuda()


@pytest.mark.parametrize('variant, size', [*((variant, SIZE) for variant in ALL), ('base', SMALL)])
@config.patch(fallback_random=True) # compiled noise is drawn as eager's
@torch._dynamo.config.patch(error_on_recompile=True) # one graph, whatever the iteration
def test_graphs_train_as_eager_does(variant, size):
    losses = {}
    for compile in False, True:
        torch._dynamo.reset()
        step = make_step(variant, compile, dropout=0.0, size=size)
        losses[compile], snapshots = [], []
        for it in range(8): # three plain calls, then replays
            step(it, *batch(it % 2, size), 1e-3)
            losses[compile].append(step.metrics()[0]['loss'])
            snapshots.append(step.snapshot())
        assert (step.graph is not None) == compile
        assert [step.metrics(snapshot)[0]['loss'] for snapshot in snapshots] == losses[compile]
    for it in 50, 3000: # schedules move on
        step(it, *batch(it, size), 1e-3)
        assert not step.metrics()[1]
    assert losses[True][-1] < losses[True][0]
    torch.testing.assert_close(torch.tensor(losses[True]), torch.tensor(losses[False]), rtol=0, atol=2e-2)


def test_gradients_of_weights_are_not_rounded():
    m, linear = machine(), torch.nn.Linear(64, 32, bias=False).cuda()
    x, dy = torch.randn(1000, 64, device='cuda').bfloat16(), torch.randn(1000, 32, device='cuda').bfloat16()
    with m.autocast():
        y = torch.compile(linear)(x)
    gradient, = torch.autograd.grad(y, linear.weight, dy)
    assert error(gradient, dy.double().t() @ x.double()) < 1e-5 # 2e-3 if it was


def test_no_garbage_is_collected_while_a_step_compiles():
    step = make_step('base')
    seen, run = [], step.run
    step.run = lambda: (run(), seen.append(gc.isenabled()))
    for it in range(5):
        step(it, *batch(0), 1e-3)
        assert gc.isenabled()
    assert seen == [False] * 4 # three calls and the capture


def test_dropout_is_keyed_by_iteration_under_graphs():
    step = make_step('base')
    losses = []
    for it in (0, 1, 2, 3, 4, 3, 4): # the learning rate is 0: only dropout can change the loss
        step(it, *batch(0), 0.0)
        losses.append(step.metrics()[0]['loss'])
    assert losses[3:5] == losses[5:7]
    assert len(set(losses[:5])) == 5


REPEATED = ('base', 'soft_window', 'head_scaling', 'forgetting', 'mod', 'stt', 'sdt', 'sliding_window',
            'strided_heads', 'noise_mixup')


@pytest.mark.parametrize('variant, size', [*((variant, SIZE) for variant in REPEATED), ('base', SMALL)])
def test_runs_repeat_to_the_bit_alone_and_beside_others(variant, size):
    """Twice alone, and in turn with two other seeds, each in a stream."""
    def train(*seeds):
        steps = [make_step(variant, seed=seed, size=size) for seed in seeds]
        streams = [torch.cuda.Stream() for _ in seeds]
        torch.cuda.synchronize()
        for it in range(12):
            for step, stream in zip(steps, streams):
                with torch.cuda.stream(stream):
                    step(it, *batch(it, size), 1e-3)
        torch.cuda.synchronize()
        results = [(step.metrics()[0], [p.clone() for p in step.params]) for step in steps]
        return dict(zip(seeds, results))

    alone, again, together = train(1), train(1), train(2, 1, 3)
    metrics, params = alone[1]
    for other_metrics, other_params in again[1], together[1]:
        assert other_metrics == metrics
        assert all(map(torch.equal, other_params, params))
    assert together[2][0] != together[3][0]


TRAIN = """
import hashlib, sys
import torch
from model import build
from core.device.machine import machine
from core.training.train_step import TrainStep
m = machine(compile=True)
variant, vocab_size, B = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
size = dict(block_size=64, vocab_size=vocab_size, n_layer=4, n_head=4, n_embd=128)
model = build(variant, 1, dropout=0.0, **size).to(m.device).train()
step = TrainStep(model, model.configure_optimizers(0.1, 1e-3, (0.9, 0.99), m.type), m, (1, B, 64), 1.0, 1)
for it in range(30):
    step(it, *torch.randint(65, (2, B, 64), generator=torch.Generator().manual_seed(it)).to(m.device), 1e-3)
print(hashlib.sha256(b''.join(p.detach().cpu().numpy().tobytes() for p in model.parameters())).hexdigest())
"""


@pytest.mark.parametrize('variant, vocab_size, B', [
    ('base', 65, 12), ('base', 50304, 12), ('base', 50304, 64), ('mod', 65, 12)])
def test_every_process_has_the_same_bits(variant, vocab_size, B, tmp_path):
    """With one compile cache; from an empty one Inductor may split sums otherwise.

    The model is so small that several ways to split are about as fast. A large vocabulary's embedding adds up
    768 rows in one way and 4,096 in another.
    """
    cache = dict(TORCHINDUCTOR_CACHE_DIR=str(tmp_path), TRITON_CACHE_DIR=str(tmp_path / 'triton'))
    command = [sys.executable, '-c', TRAIN, variant, str(vocab_size), str(B)]
    start = lambda: subprocess.Popen(command, cwd=ROOT, env=os.environ | cache, stdout=subprocess.PIPE)
    first = start()
    bits = {first.communicate()[0]}
    runs = [start(), start()]
    bits |= {run.communicate()[0] for run in runs}
    assert [run.returncode for run in (first, *runs)] == [0, 0, 0] and len(bits) == 1


def test_not_finite_leaves_the_weights_under_graphs():
    step = make_step('base')
    for it in range(5):
        step(it, *batch(it), 1e-3)
    weight = step.model.transformer.h[0].ln_1.weight.data
    before, finite = [p.clone() for p in step.params], weight.clone()
    weight.fill_(float('inf'))
    step(5, *batch(5), 1e-3)
    step(6, *batch(6), 1e-3)
    _, bad, bad_it = step.metrics()
    assert bad and bad_it == 5
    weight.copy_(finite)
    for (name, p), p_before in zip(step.model.named_parameters(), before, strict=True):
        assert torch.equal(p, p_before), name
