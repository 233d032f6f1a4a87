"""Muon beside AdamW: torch.optim's arithmetic, in batches, and what the training loop needs of it."""
import pytest
import torch

from core.rng import generator
from core.training.muon import MuonAdamW, orthogonal
from lab.checks import small

SHAPES = (24, 8), (8, 8), (24, 8), (8, 32), (8, 32), (7, 5), (4, 6)
VECTORS = (8,), (3, 4)


def normal(shape, *seed):
    return torch.randn(shape, generator=generator(*seed))


def both(lr=0.02):
    """Ours, and torch's two optimizers, on copies of the same parameters: [(parameter, its copy), ...] and three optimizers."""
    pairs = [[normal(shape, i).requires_grad_() for _ in range(2)] for i, shape in enumerate((*SHAPES, *VECTORS))]
    (ours, matrices), (rest, others) = zip(*pairs[:len(SHAPES)]), zip(*pairs[len(SHAPES):])
    lr_of = lambda: lr.clone() if isinstance(lr, torch.Tensor) else lr
    mine = MuonAdamW([dict(params=ours, muon=True, weight_decay=0.1, lr=lr_of()),
                      dict(params=rest, muon=False, weight_decay=0.0, lr=lr_of())], betas=(0.9, 0.95), fused=True)
    return pairs, mine, [torch.optim.Muon(matrices, lr=float(lr), weight_decay=0.1, adjust_lr_fn='match_rms_adamw'),
                         torch.optim.AdamW(others, lr=float(lr), weight_decay=0.0, betas=(0.9, 0.95), fused=True)]


def steps(pairs, optimizers, n, seed=0):
    for it in range(n):
        for i, pair in enumerate(pairs):
            for p in pair:
                p.grad = normal(p.shape, seed, it, i)
        for optimizer in optimizers:
            optimizer.step()


@pytest.mark.parametrize('lr', [0.02, torch.tensor(0.02)], ids=['number', 'tensor'])
def test_the_arithmetic_is_torchs(lr):
    pairs, mine, torchs = both(lr)
    before = [p.detach().clone() for p, _ in pairs]
    steps(pairs, [mine, *torchs], 6)
    for (ours, theirs), start in zip(pairs, before, strict=True):
        assert (ours - start).abs().max() > 0.01
        assert torch.allclose(ours, theirs, rtol=0, atol=2e-6)     # of numbers up to 3: float32's last places
    buffers = [torchs[0].state[theirs]['momentum_buffer'] for _, theirs in pairs[:len(SHAPES)]]
    assert all(torch.allclose(mine.state[p]['momentum_buffer'], b, rtol=0, atol=1e-6) for (p, _), b in zip(pairs, buffers))


@pytest.mark.parametrize('shape', [(3, 12, 5), (2, 5, 12), (4, 9, 9)])
def test_a_step_has_singular_values_near_one(shape):
    x = normal(shape, 'x')
    y = orthogonal(x).float()
    u, _, v = torch.linalg.svd(x, full_matrices=False)
    inside = u.mT @ y @ v.mT
    assert ((0.5 < inside.diagonal(dim1=1, dim2=2)) & (inside.diagonal(dim1=1, dim2=2) < 1.3)).all()
    assert (inside - torch.diag_embed(inside.diagonal(dim1=1, dim2=2))).abs().max() < 0.06 # bfloat16


def test_a_bad_step_moves_nothing():
    pairs, mine, _ = both()
    steps(pairs, [mine], 2)
    keep = lambda: [p.detach().clone() for p, _ in pairs] + [t.clone() for p, _ in pairs for t in mine.state[p].values()]
    before = keep()
    for p, _ in pairs:
        p.grad = torch.full_like(p, torch.nan)
    mine.grad_scale, mine.found_inf = None, torch.ones(())
    mine.step()
    assert all(torch.equal(a, b) for a, b in zip(keep(), before, strict=True))
    mine.found_inf = torch.zeros(())
    steps(pairs, [mine], 1)
    assert not any(torch.equal(a, b) for a, b in zip(keep(), before, strict=True))


def test_it_is_for_the_matrices_of_the_blocks():
    model = small('surprise', bias=True)
    groups = model.configure_optimizers(0.1, 1e-3, (0.9, 0.99), 'cpu', 'muon').param_groups
    chosen = {id(p) for group in groups if group['muon'] for p in group['params']}
    for name, p in model.named_parameters():
        assert (id(p) in chosen) == (name.startswith('transformer.h.') and p.ndim == 2), name
    assert sum(len(group['params']) for group in groups) == len(list(model.parameters()))
