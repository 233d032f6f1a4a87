"""The judge: a loss computed from logits, the same for windows, positions and the whole split."""
import math
from types import SimpleNamespace

import pytest
import torch

from core.device.machine import machine
from core.training.evaluation import batch_rows, evaluate, token_losses

T, V = 8, 11


class Split:
    """What evaluation needs of a data set: some whole windows, and a last one of `left` targets."""
    vocab_size, block_size, bytes_per_token = V, T, 1.5

    def __init__(self, count=7, left=3):
        g = torch.Generator().manual_seed(0)
        self.x, self.y = torch.randint(V, (2, count, T), generator=g)
        self.n = torch.full((count,), T)
        self.n[-1] = left
        self.y[-1, left:] = -1

    def windows(self, split, size, limit):
        assert split == 'val' and not limit
        return zip(self.x.split(size), self.y.split(size), self.n.split(size), strict=True)


CPU = machine('cpu', 'float32', False)
TABLE = torch.randn(V, V, generator=torch.Generator().manual_seed(1))


def bigram(idx, stats):
    """Logits that depend on the token alone, and a statistic of two layers with one number a row."""
    stats['first'] = [idx[:, 0].float(), -idx[:, 0].float()]
    return TABLE[idx]


@pytest.mark.parametrize('rows', [1, 3, 7])
def test_all_means_are_of_the_same_losses(monkeypatch, rows):
    monkeypatch.setattr('core.training.evaluation.CPU_TOKENS', rows * T)
    split = Split()
    found = evaluate(bigram, split, CPU, 'val', 2)
    losses = -TABLE.double().log_softmax(-1)[split.x, split.y.clamp(min=0)] # (W, T)
    real = split.y >= 0
    assert found.loss == pytest.approx(losses[real].mean().item(), abs=1e-6)
    assert found.bits_per_byte == pytest.approx(found.loss / math.log(2) / 1.5)
    windows = [row[here].mean().item() for row, here in zip(losses, real, strict=True)]
    assert found.windows == pytest.approx(windows, abs=1e-6)
    positions = [column[here].mean().item() for column, here in zip(losses.T, real.T, strict=True)]
    assert found.positions == pytest.approx(positions, abs=1e-6)
    # not only to rounding
    for means, counts in (found.windows, real.sum(1)), (found.positions, real.sum(0)):
        total = math.fsum(mean * n for mean, n in zip(means, counts.tolist(), strict=True))
        assert total / real.sum().item() == pytest.approx(found.loss, rel=1e-14)
    # a statistic is a mean over rows, however they are cut into batches
    mean = split.x[:, 0].float().mean().item()
    assert found.stats == {'stats.first': pytest.approx([mean, -mean])}


def test_a_position_without_a_target_has_no_loss():
    found = evaluate(bigram, Split(count=1, left=3), CPU, 'val', 2)
    assert [loss is None for loss in found.positions] == [False] * 3 + [True] * 5
    assert found.windows == pytest.approx([found.loss])


def test_what_is_not_finite_is_not_left_out():
    """A model that gives NaN where it is at a loss is not judged by the rest; past the end nothing counts."""
    def broken(at):
        def forward(idx, stats):
            logits = TABLE[idx].clone()
            logits[-1, at] = torch.nan
            return logits
        return evaluate(forward, Split(), CPU, 'val', 2).loss
    assert math.isnan(broken(at=2)) and math.isfinite(broken(at=3))


def test_losses_are_float32_whatever_the_logits_are():
    g = torch.Generator().manual_seed(2)
    logits = (5 * torch.randn(4, 6, 50, generator=g)).bfloat16()
    targets = torch.randint(50, (4, 6), generator=g)
    targets[1, 2:] = -1
    found = token_losses(logits, targets)
    exact = -logits.double().log_softmax(-1).gather(-1, targets.clamp(min=0)[..., None])[..., 0]
    assert found.dtype == torch.float32 and found.shape == (4, 6) and (found[1, 2:] == 0).all()
    torch.testing.assert_close(found.double(), exact.where(targets >= 0, 0), rtol=0, atol=1e-5)


def test_batches_fill_the_machine():
    char, gpt2 = (SimpleNamespace(vocab_size=n, block_size=256) for n in (65, 50304))
    gpu = SimpleNamespace(type='cuda')
    assert batch_rows(gpu, char, 12) == 256 and batch_rows(gpu, char, 500) == 500
    # as many as it trains with, where the logits of one row are many already
    assert batch_rows(gpu, gpt2, 12) == 12
    assert batch_rows(CPU, char, 12) == 4 * torch.get_num_threads()


def test_only_what_is_judged_counts():
    split = Split(left=T)
    split.y[:, [0, 2, 3]] = -1
    found = evaluate(bigram, split, CPU, 'val', 2)
    losses = -TABLE.double().log_softmax(-1)[split.x, split.y.clamp(min=0)][:, [1, 4, 5, 6, 7]]
    assert found.loss == pytest.approx(losses.mean().item(), abs=1e-6)
    assert found.windows == pytest.approx(losses.mean(1).tolist(), abs=1e-6)
    assert [i for i, loss in enumerate(found.positions) if loss is None] == [0, 2, 3]
    assert [x for x in found.positions if x is not None] == pytest.approx(losses.mean(0).tolist(), abs=1e-6)
