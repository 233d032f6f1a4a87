"""Dropout by a hash, as torch.compile makes it; without torch.compile it is PyTorch's."""
import math

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F

from core.nn.dropout import Dropout, keep_mask

# Inductor's code for a CPU takes a C++ compiler seconds
compiled_on = pytest.mark.parametrize('device, backend', [
    ('cpu', 'aot_eager'), pytest.param('cpu', 'inductor', marks=pytest.mark.slow),
    pytest.param('cuda', 'inductor', marks=pytest.mark.gpu)])


@compiled_on
def test_the_hash_is_triple32(device, backend):
    """Equals triple32 without its last step, defined in Python's integers, for seeds of 0; compiled too."""
    def triple32(x):
        for shift, factor in (17, 0xed5ad4bb), (11, 0xac4c1b51), (15, 0x31848bab):
            x = (x ^ x >> shift) * factor % 2 ** 32
        return x

    n, p = 50_000, 0.3
    # the threshold is on the signed number
    signed = torch.tensor([(triple32(i) + 2 ** 31) % 2 ** 32 for i in range(n)])
    for f in keep_mask, torch.compile(keep_mask, fullgraph=True, backend=backend):
        mask = f(torch.Size([n]), p, torch.zeros(2, dtype=torch.int32, device=device))
        assert torch.equal(mask.cpu(), signed >= p * 2 ** 32)


@pytest.mark.parametrize('p', [0.1, 0.2, 0.5])
def test_the_mask_drops_its_share_and_no_pattern(p):
    """Correlations with itself at many lags, and with masks of other seeds, are below five standard errors."""
    size, sigma = torch.Size([64, 128, 96]), math.sqrt(p * (1 - p))
    # standardized: mean 0, deviation 1
    mask = lambda *seeds: (
        keep_mask(size, p, torch.tensor(seeds, dtype=torch.int32)).double().flatten() - (1 - p)) / sigma
    x = mask(5, 7)
    z = {'share': x.sum() / math.sqrt(len(x))}
    products = torch.fft.irfft(torch.fft.rfft(x, 2 * len(x)).abs() ** 2) # at lag n the sum of x[n:] * x[:-n]
    for lag in (*range(1, 130), *(96 * t for t in range(2, 128)), *(96 * 128 * b for b in range(1, 64))):
        z[lag] = products[lag] / math.sqrt(len(x) - lag)
    for one, two in torch.randint(-2 ** 31, 2 ** 31, (30, 2), generator=torch.Generator().manual_seed(1)).tolist():
        for other in (one, two), (5, two), (one, 7):
            z[other] = (x * mask(*other)).sum() / math.sqrt(len(x))
    assert max(map(abs, z.values())) < 5, max(z.items(), key=lambda item: abs(item[1]))


@compiled_on
def test_a_compiled_mask_is_new_at_every_place_and_call_and_in_backward_the_same(device, backend):
    places = nn.ModuleList([Dropout(0.25) for _ in range(3)])

    def f(x):
        ys = [place(x) for place in places]
        return ys, sum((y * (n + 1)).sum() for n, y in enumerate(ys))

    compiled = torch.compile(f, fullgraph=True, backend=backend)
    x = torch.full((64, 96), 3.0, device=device, requires_grad=True)
    runs = []
    for seed in 1, 1, 2:
        torch.manual_seed(seed)
        ys, loss = compiled(x)
        assert torch.allclose(torch.autograd.grad(loss, x)[0], sum(y * (n + 1) for n, y in enumerate(ys)) / 3)
        runs.append(torch.stack(ys))
    assert torch.equal(runs[0], runs[1])
    assert runs[0].unique().tolist() == [0, 4]
    dropped = torch.cat([runs[0], runs[2]]).flatten(1) == 0
    both = dropped.double() @ dropped.double().T / dropped.size(1) # 1/4 on the diagonal, else 1/16
    assert (both - torch.full((6, 6), 1 / 16).fill_diagonal_(1 / 4).to(both)).abs().max() < 0.02
    assert torch.equal(places[0].eval()(x), x)


def test_eager_dropout_is_pytorchs():
    x, place = torch.randn(50, 50), Dropout(0.3)
    results = []
    for f in place, lambda x: F.dropout(x, 0.3):
        torch.manual_seed(1)
        results.append(f(x))
    assert torch.equal(*results)
