"""Noise drawn inside a compiled graph: as eager PyTorch draws it, anew at every place."""
import pytest
import torch

from core.nn.noise import noise_like
from model import build


def test_noise_is_randn_without_a_gradient():
    x = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    torch.manual_seed(1)
    noise = noise_like(x)
    torch.manual_seed(1)
    assert torch.equal(noise, torch.randn(3, 5, dtype=torch.float64))
    assert not noise.requires_grad


@pytest.mark.parametrize('variant', ['noise_residual', 'noise_embedding', 'noise_mixup'])
def test_a_compiled_graph_draws_what_eager_code_draws(variant):
    """In the same order, so two places never share their noise; the gradient too."""
    options = dict(mix_std=0.1, mix='batch') if variant == 'noise_mixup' else {}
    net = build(variant, 1, block_size=16, vocab_size=65, n_layer=1, n_head=2, n_embd=16, **options).train()
    idx, targets = torch.randint(65, (2, 2, 16), generator=torch.Generator().manual_seed(2))
    objective = lambda: net(idx, targets)[1]
    results = []
    for f in objective, torch.compile(objective, fullgraph=True, backend='aot_eager'):
        torch.manual_seed(3)
        loss = f()
        results.append((loss, *torch.autograd.grad(loss, list(net.parameters()))))
    for eager, compiled in zip(*results, strict=True):
        torch.testing.assert_close(compiled, eager, rtol=1e-5, atol=1e-6)
