"""Muon beside AdamW: torch.optim's arithmetic, in batches, and what the training loop needs of it."""
import pytest
import torch

from core.rng import generator
from core.training.muon import MuonAdamW, orthogonal
from model import build

SHAPES = (24, 8), (8, 8), (24, 8), (8, 32), (8, 32), (7, 5), (4, 6)
VECTORS = (8,), (3, 4)


def normal(shape, *seed):
    return torch.randn(shape, generator=generator(*seed))


def both(lr=0.02):
    """Returns [(parameter, its copy)], a MuonAdamW of the former, torch's Muon and AdamW of the latter."""
    shapes = *SHAPES, *VECTORS
    pairs = [[normal(shape, i).requires_grad_() for _ in range(2)] for i, shape in enumerate(shapes)]
    (matrices, torch_matrices), (rest, torch_rest) = zip(*pairs[:len(SHAPES)]), zip(*pairs[len(SHAPES):])
    lr_of = lambda: lr.clone() if isinstance(lr, torch.Tensor) else lr
    groups = [dict(params=matrices, muon=True, weight_decay=0.1, lr=lr_of()),
              dict(params=rest, muon=False, weight_decay=0.0, lr=lr_of())]
    muon_adamw = MuonAdamW(groups, betas=(0.9, 0.95), fused=True)
    muon = torch.optim.Muon(torch_matrices, lr=float(lr), weight_decay=0.1, adjust_lr_fn='match_rms_adamw')
    adamw = torch.optim.AdamW(torch_rest, lr=float(lr), weight_decay=0.0, betas=(0.9, 0.95), fused=True)
    return pairs, muon_adamw, [muon, adamw]


def take_steps(pairs, optimizers, n, seed=0):
    for it in range(n):
        for i, pair in enumerate(pairs):
            for p in pair:
                p.grad = normal(p.shape, seed, it, i)
        for optimizer in optimizers:
            optimizer.step()


@pytest.mark.parametrize('lr', [0.02, torch.tensor(0.02)], ids=['number', 'tensor'])
def test_the_arithmetic_is_torchs(lr):
    pairs, muon_adamw, (muon, adamw) = both(lr)
    before = [p.detach().clone() for p, _ in pairs]
    take_steps(pairs, [muon_adamw, muon, adamw], 6)
    for (p, expected), start in zip(pairs, before, strict=True):
        assert (p - start).abs().max() > 0.01
        assert torch.allclose(p, expected, rtol=0, atol=2e-6) # of numbers up to 3: float32's last places
    for p, expected in pairs[:len(SHAPES)]:
        momentum, expected = (o.state[x]['momentum_buffer'] for o, x in ((muon_adamw, p), (muon, expected)))
        assert torch.allclose(momentum, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize('shape', [(3, 12, 5), (2, 5, 12), (4, 9, 9)])
def test_a_step_has_singular_values_near_one(shape):
    x = normal(shape, 'x')
    y = orthogonal(x).float()
    u, _, v = torch.linalg.svd(x, full_matrices=False)
    inside = u.mT @ y @ v.mT
    values = inside.diagonal(dim1=1, dim2=2)
    assert ((0.5 < values) & (values < 1.3)).all()
    assert (inside - torch.diag_embed(values)).abs().max() < 0.06 # bfloat16


def test_a_bad_step_moves_nothing():
    pairs, optimizer, _ = both()
    take_steps(pairs, [optimizer], 2)

    def copies():
        tensors = [p.detach() for p, _ in pairs] + [t for p, _ in pairs for t in optimizer.state[p].values()]
        return [t.clone() for t in tensors]

    before = copies()
    for p, _ in pairs:
        p.grad = torch.full_like(p, torch.nan)
    optimizer.grad_scale, optimizer.found_inf = None, torch.ones(())
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(copies(), before, strict=True))
    optimizer.found_inf = torch.zeros(())
    take_steps(pairs, [optimizer], 1)
    assert not any(torch.equal(a, b) for a, b in zip(copies(), before, strict=True))


def test_it_is_for_the_matrices_of_the_blocks():
    sizes = dict(block_size=16, vocab_size=65, n_layer=2, n_head=2, n_embd=16)
    model = build('surprise', 1, bias=True, **sizes)
    groups = model.configure_optimizers(0.1, 1e-3, (0.9, 0.99), 'cpu', 'muon').param_groups
    by_muon = {id(p) for group in groups if group['muon'] for p in group['params']}
    for name, p in model.named_parameters():
        assert (id(p) in by_muon) == (name.startswith('transformer.h.') and p.ndim == 2), name
    # a tag keeps one out
    kept = model.transformer.h[1].mlp.c_fc.weight
    kept.muon = False
    groups = model.configure_optimizers(0.1, 1e-3, (0.9, 0.99), 'cpu', 'muon').param_groups
    now = {id(p) for group in groups if group['muon'] for p in group['params']}
    assert by_muon - now == {id(kept)} and now < by_muon
    assert sum(len(group['params']) for group in groups) == len(list(model.parameters()))
