"""The embedding as a GPU computes it, on the CPU: the arithmetic is the same."""
import pytest
import torch
import torch.nn.functional as F
from torch._inductor import config
from torch._inductor.utils import run_and_get_code

from core.nn.embedding import Embedding, lookup


@pytest.mark.parametrize('rows', [65, 1025]) # by either way
@pytest.mark.parametrize('shape', [(1, 1), (4, 9), (2, 3, 5)])
def test_lookup_is_an_embedding(shape, rows):
    torch.manual_seed(5)
    weight, idx = torch.randn(rows, 16, dtype=torch.float64, requires_grad=True), torch.randint(rows, shape)
    idx.flatten()[-1] = idx.flatten()[0] # twice the same row
    dy = torch.randn(*shape, 16, dtype=torch.float64)
    results = [(y, torch.autograd.grad(y, weight, dy)[0]) for y in (lookup(weight, idx), F.embedding(idx, weight))]
    for ours, theirs in zip(*results):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize('rows', [65, 1025])
def test_lookups_gradient_is_not_rounded_by_autocast(rows):
    torch.manual_seed(6)
    weight, idx, dy = torch.randn(rows, 16, requires_grad=True), torch.randint(65, (8, 32)), torch.randn(8, 32, 16)

    def loss(weight):
        with torch.autocast('cpu', torch.bfloat16):
            return (lookup(weight, idx) * dy).sum()

    exact, = torch.autograd.grad((F.embedding(idx, weight) * dy).sum(), weight)
    for f in loss, torch.compile(loss, fullgraph=True, backend='aot_eager'):
        torch.testing.assert_close(torch.autograd.grad(f(weight), weight)[0], exact, rtol=0, atol=1e-5)


@pytest.mark.slow # Inductor's code for a CPU takes a C++ compiler seconds
@pytest.mark.parametrize('kind, rows, in_any_order', [(Embedding, 65, False), (Embedding, 1025, False),
                                                      (torch.nn.Embedding, 65, True)])
@config.patch('cpp.threads', 2) # of one, nothing would need atomics
def test_a_compiled_embedding_adds_up_in_one_order(kind, rows, in_any_order):
    torch.manual_seed(7)
    embedding, idx, dy = kind(rows, 128), torch.randint(65, (64, 64)), torch.randn(64, 64, 128)
    f = torch.compile(lambda: (embedding(idx) * dy).sum(), fullgraph=True)
    (gradient,), code = run_and_get_code(lambda: torch.autograd.grad(f(), embedding.weight))
    exact, = torch.autograd.grad((F.embedding(idx, embedding.weight) * dy).sum(), embedding.weight)
    torch.testing.assert_close(gradient, exact, rtol=0, atol=1e-4)
    assert ('atomic_add' in ''.join(code)) == in_any_order
