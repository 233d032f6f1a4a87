"""Dropout and Embedding as a GPU computes them, on the CPU: the arithmetic is the same."""
import math

import pytest
import torch
import torch.nn.functional as F

from lab.layers import Lookup, byte_dropout, random_bytes


@pytest.mark.parametrize('size', [(1_000_003,), (7, 11, 13)])
def test_bytes_are_even(size):
    torch.manual_seed(1)
    n = math.prod(size)
    counts = torch.bincount(random_bytes(size, torch.device('cpu')).flatten().long(), minlength=256).double()
    assert counts.sum() == n
    chi2 = ((counts - n / 256) ** 2 / (n / 256)).sum().item()
    assert abs(chi2 - 255) < 5 * math.sqrt(2 * 255)     # its mean and deviation, were the bytes even


@pytest.mark.parametrize('rate', [0.02, 0.2, 0.5, 0.9])
def test_dropout_drops_its_share_and_keeps_the_mean(rate):
    torch.manual_seed(2)
    x = torch.ones(400_000, requires_grad=True)
    y = byte_dropout(x, rate)
    share = round(256 * rate) / 256
    assert abs((y == 0).double().mean() - share) < 5 * math.sqrt(share * (1 - share) / x.numel())
    assert y[y != 0].unique().item() == pytest.approx(1 / (1 - share))
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())              # what was dropped gets no gradient


@pytest.mark.parametrize('compile', [False, True])
def test_dropout_follows_the_seed_and_no_two_masks_are_one(compile):
    def two(x):
        return byte_dropout(x, 0.5), byte_dropout(x, 0.5)

    two = torch.compile(two, fullgraph=True, backend='aot_eager') if compile else two
    x, masks = torch.ones(64, 64), []
    for seed in 3, 3, 4:
        torch.manual_seed(seed)
        masks += two(x)
    assert torch.equal(masks[0], masks[2]) and torch.equal(masks[1], masks[3])
    assert len({m.numpy().tobytes() for m in masks}) == 4


@pytest.mark.parametrize('shape', [(1, 1), (4, 9), (2, 3, 5)])
def test_lookup_is_an_embedding(shape):
    torch.manual_seed(5)
    weight, idx = torch.randn(65, 16, dtype=torch.float64, requires_grad=True), torch.randint(65, shape)
    dy = torch.randn(*shape, 16, dtype=torch.float64)
    results = [(y, torch.autograd.grad(y, weight, dy)[0]) for y in (Lookup.apply(weight, idx), F.embedding(idx, weight))]
    for ours, theirs in zip(*results):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


def test_lookups_gradient_is_not_rounded_by_autocast():
    torch.manual_seed(6)
    weight, idx, dy = torch.randn(65, 16, requires_grad=True), torch.randint(65, (8, 32)), torch.randn(8, 32, 16)

    def loss(weight):
        with torch.autocast('cpu', torch.bfloat16):
            return (Lookup.apply(weight, idx) * dy).sum()

    exact, = torch.autograd.grad((F.embedding(idx, weight) * dy).sum(), weight)
    for f in loss, torch.compile(loss, fullgraph=True, backend='aot_eager'):
        torch.testing.assert_close(torch.autograd.grad(f(weight), weight)[0], exact, rtol=0, atol=1e-5)
