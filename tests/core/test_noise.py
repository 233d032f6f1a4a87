"""Noise drawn inside a compiled graph: as eager PyTorch draws it, anew at every place."""
import pytest
import torch
import torch.nn.functional as F

from core.errors import Stop
from core.nn.noise import noise_like
from model import Step, build


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


@pytest.mark.parametrize('variant, std', [('noise_embedding', 'noise_std'), ('noise_residual', 'residual_std')])
def test_relative_noise_grows_with_what_it_is_added_to(variant, std):
    options = dict(block_size=64, vocab_size=65, n_layer=1, n_head=2, n_embd=64, relative=True) | {std: 0.5}
    net = build(variant, 1, **options).train()
    net.transformer.wpe.weight.data.zero_()
    net.transformer.wte.weight.data *= torch.arange(1, 66)[:, None] # token n is n + 1 times as large
    idx = torch.arange(64)[None]
    plain = net.tok_emb(idx)
    if variant == 'noise_embedding':
        noise = net.embed(idx, Step(torch.arange(64)[None])) - plain
    else:
        noise = net.transformer.h[0].add(plain, 0) - plain
    share = noise.norm(dim=-1) / plain.norm(dim=-1)
    assert (share - 0.5).abs().max() < 0.5 * 5 / 128 ** 0.5 # five standard errors of 64 channels


def test_mixup_mixes_targets_as_it_mixes_rows():
    net = build('noise_mixup', 1, block_size=16, vocab_size=65, n_layer=1, n_head=2, n_embd=16,
                mix='batch', targets='mixed', mix_prob=1.0).double().train()
    rows = torch.tensor([1, 2, 0])[:, None]
    net.draw = lambda x: (rows, torch.arange(16), torch.tensor(True).view(1, 1, 1), torch.full((1, 1, 1), 0.75))
    idx, targets = torch.randint(65, (2, 3, 16), generator=torch.Generator().manual_seed(2))
    logits, loss = net(idx, targets)
    own, partner = (F.cross_entropy(logits.flatten(0, 1), t.flatten()) for t in (targets, targets[rows[:, 0]]))
    torch.testing.assert_close(loss, 0.75 * own + 0.25 * partner)
    with pytest.raises(Stop, match='targets=mixed'):
        build('noise_mixup', targets='mixed')
