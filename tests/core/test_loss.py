"""core/nn/loss.py and core/kernels/cross_entropy.py beside F.cross_entropy in float64.

Interpreted on a CPU, compiled on a GPU.
"""
from contextlib import suppress

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode
from triton_interpreter import interpreted

from core.nn import loss
from core.nn.loss import LARGE, cross_entropy, nll


def case(N, V, dtype, device='cpu'):
    """Returns logits (N, V) and targets (N,), the last token and -1 among them.

    Row 0 has one -inf, row 1 a whole block of them, row 3 the largest logit last.
    """
    g = torch.Generator().manual_seed(N + V)
    logits, targets = 3 * torch.randn(N, V, generator=g), torch.randint(V, (N,), generator=g)
    logits[0, 1] = logits[1, :min(V - 1, 4096)] = float('-inf')
    logits[3, -1] = 16
    targets[:2], targets[2] = V - 1, -1
    return logits.to(device, dtype).requires_grad_(), targets.to(device)


@interpreted
@pytest.mark.parametrize('V', [3, 104, 4096, 5000])
@pytest.mark.parametrize('dtype, bound', [(torch.float32, 1e-6), (torch.float16, 2 ** -11)])
def test_interpreted_losses_are_cross_entropy(V, dtype, bound):
    logits, targets = case(5, V, dtype)
    losses, _ = nll(logits, targets)
    exact = F.cross_entropy(logits.double(), targets, ignore_index=-1, reduction='none')
    dlosses = torch.randn(5, generator=torch.Generator().manual_seed(1))
    dlogits, = torch.autograd.grad(losses, logits, dlosses)
    dexact, = torch.autograd.grad(exact, logits, dlosses.double())
    assert losses.dtype == torch.float32 and losses[2] == 0 and not dlogits[2].any()
    assert (losses - exact).abs().max() < 3e-6 # of up to 20
    assert dlogits.dtype == dtype and (dlogits - dexact).abs().max() < bound * dlosses.abs().max()


@interpreted
def test_tensors_may_lie_in_any_way():
    logits, targets = case(5, 40, torch.float32)
    strided = logits.detach().t().contiguous().t().requires_grad_(), targets.repeat_interleave(2)[::2]
    results = []
    for x, y in (logits, targets), strided:
        losses, _ = nll(x, y)
        results.append((losses, *torch.autograd.grad(losses.sum(), x)))
    assert all(map(torch.equal, *results))


@interpreted
def test_a_target_that_is_no_token_is_nan():
    logits, targets = case(5, 100, torch.float32)
    targets[3:] = torch.tensor([100, -2])
    losses, _ = nll(logits, targets)
    assert losses.isnan().tolist() == [False, False, False, True, True]


@pytest.mark.parametrize('V, dtype, device, compiling, by_kernels', [
    (LARGE, torch.bfloat16, 'cuda', True, True), (LARGE, torch.float32, 'cuda', True, True),
    (LARGE, torch.bfloat16, 'cuda', False, False), (LARGE, torch.bfloat16, 'cpu', True, False),
    (LARGE, torch.float64, 'cuda', True, False), (LARGE + 1, torch.bfloat16, 'cuda', True, False),
    (LARGE - 8, torch.bfloat16, 'cuda', True, False)])
def test_which_losses_are_the_kernels(V, dtype, device, compiling, by_kernels, monkeypatch):
    calls = []
    monkeypatch.setattr(torch.compiler, 'is_compiling', lambda: compiling)
    monkeypatch.setattr(loss, 'nll', lambda *args: (calls.append('nll'), None))
    monkeypatch.setattr(F, 'cross_entropy', lambda *args, ignore_index: calls.append('cross_entropy'))
    with FakeTensorMode():
        logits = torch.empty(3, V, device=device, dtype=dtype)
        targets = torch.empty(3, device=device, dtype=torch.long)
        with suppress(AttributeError): # of the losses that nobody computed
            cross_entropy(logits, targets)
    assert calls == ['nll' if by_kernels else 'cross_entropy']


def test_without_a_gpu_it_is_pytorchs():
    logits, targets = case(6, LARGE, torch.float32)
    for f in cross_entropy, torch.compile(cross_entropy, backend='aot_eager', fullgraph=True):
        assert torch.equal(f(logits, targets), F.cross_entropy(logits, targets, ignore_index=-1))


@pytest.mark.gpu
@pytest.mark.parametrize('V, by_kernels', [(65, False), (LARGE, True), (50257, False), (50304, True)])
@pytest.mark.parametrize('dtype, bound', [
    (torch.float32, 1e-6), (torch.float16, 2 ** -11), (torch.bfloat16, 2 ** -8)])
def test_compiled_losses_are_cross_entropy(V, by_kernels, dtype, bound, monkeypatch):
    from core.kernels import cross_entropy as kernels  # Triton
    launch, launches = kernels.launch_nll_forward, []
    monkeypatch.setattr(kernels, 'launch_nll_forward', lambda *args: (launches.append(1), launch(*args))[1])
    logits, targets = case(200, V, dtype, 'cuda')

    @torch.compile(fullgraph=True)
    def mean():
        with torch.autocast('cuda', torch.bfloat16): # makes PyTorch's a float32 one
            return cross_entropy(logits.view(-1, V), targets)

    y = mean()
    dlogits, = torch.autograd.grad(200 * y, logits)
    exact = F.cross_entropy(logits.double(), targets, ignore_index=-1)
    dexact, = torch.autograd.grad(200 * exact, logits)
    assert dlogits.dtype == dtype and not dlogits[2].any()
    assert (y - exact).abs() < 1e-5 and (dlogits - dexact).abs().max() < 1.01 * bound
    y_again = mean()
    dlogits_again, = torch.autograd.grad(200 * y_again, logits)
    assert torch.equal(y, y_again) and torch.equal(dlogits, dlogits_again)
    assert len(launches) == 2 * by_kernels
