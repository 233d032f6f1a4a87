"""Intervals of times and ratios, on a clock whose noise is known."""
import math
import time
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.stats import quantile_test

from core.device.cuda_graph import GraphPool
from core.device.machine import Machine, machine
from lab import timing
from lab.timing import TimedModel, holds_one, interleave, median_interval, milliseconds, ratio_text, time_and_ratio

CPU = Machine('cpu', 'cpu', 'float32', False)


@pytest.fixture
def models(monkeypatch):
    """A function that makes models whose steps take slowness(name, the last one, seconds so far, rng) ms."""
    def make(names, slowness, seed=0):
        now, last, rng = [0.0], [None], np.random.default_rng(seed)

        def step(name):
            now[0] += slowness(name, last[0], now[0], rng) / 1000
            last[0] = name

        monkeypatch.setattr(timing, 'clock_for', lambda machine: lambda: now[0])
        return [SimpleNamespace(machine=CPU, samples=dict(step=[]), step=lambda name=name: step(name))
                for name in names]
    return make


def busy(sd):
    """A machine that gets slower, by a third in a minute, and that another process uses now and then."""
    def slowness(name, last, now, rng):
        burst = 1.5 if int(now * 3) % 4 == 0 else 1.0
        return 30 * (1 + now / 180) * burst * math.exp(sd * rng.standard_t(4))
    return slowness


@pytest.mark.parametrize('n', [*range(6, 41), 100, 501])
def test_the_interval_of_a_median_is_scipys(n):
    x = np.random.default_rng(n).normal(size=n).tolist()
    assert median_interval(x) == list(quantile_test(x, q=0, p=0.5).confidence_interval(confidence_level=0.95))


def test_five_values_have_no_interval():
    assert median_interval([1.0] * 5) is None


def test_one_model_three_times_costs_the_same(models):
    """The interval of a ratio holds 1 in 95 % of studies, although rounds end where it is narrow."""
    covered = []
    for seed in range(200):
        arms = models('abc', busy(0.006), seed)
        interleave(arms, 'step', 0, 10, limit=math.inf)
        for arm in arms[1:]:
            low, high = time_and_ratio(arm.samples['step'], arms[0].samples['step'])['ratio_interval']
            covered.append(low <= 1 <= high)
    assert 0.93 <= np.mean(covered) <= 0.995


def test_rounds_go_on_until_the_ratios_are_known(models):
    def rounds(sd, limit):
        arms = models('abc', busy(sd))
        interleave(arms, 'step', 0, 10, limit)
        low, high = time_and_ratio(arms[1].samples['step'], arms[0].samples['step'])['ratio_interval']
        return len(arms[0].samples['step']), high / low - 1

    n, width = rounds(0.001, math.inf)
    assert n == 10 and width < 0.02
    n, width = rounds(0.03, math.inf)
    assert n > 20 and width <= 0.02
    # without time there are as many rounds as were asked for
    n, width = rounds(0.03, 0)
    assert n == 10 and width > 0.02


def test_no_model_pays_for_the_one_before_it(models):
    """One that leaves the machine slow for whoever is next leaves it so for all alike."""
    arms = models(['hot', 'a', 'b'], lambda name, last, now, rng: 30 * (1.2 if last == 'hot' else 1.0))
    interleave(arms, 'step', 0, 24)
    a, b = (np.array(arm.samples['step']) for arm in arms[1:])
    assert a.mean() / b.mean() == pytest.approx(1, abs=0.03)
    # and neither is always ahead of the other
    assert 0 < np.sum(a > b) < 24 and 0 < np.sum(b > a) < 24


def test_a_dearer_model_is_seen(models):
    def slowness(name, last, now, rng):
        return busy(0.012)(name, last, now, rng) * (1.09 if name == 'dear' else 1.0)

    base, dear = models(['base', 'dear'], slowness)
    interleave([base, dear], 'step', 0, 10, limit=math.inf)
    figures = time_and_ratio(dear.samples['step'], base.samples['step'])
    low, high = figures['ratio_interval']
    assert low < 1.09 < high and not holds_one([low, high]) and low <= figures['ratio'] <= high
    assert figures['ms_interval'][0] <= figures['ms'] <= figures['ms_interval'][1]


def test_what_other_processes_take_is_not_counted():
    # helpers.py sets one thread
    assert milliseconds(lambda: time.sleep(0.05), 1, CPU) < 25


@pytest.mark.parametrize('ratio, interval, text, equal', [
    (1.094, [1.084, 1.106], '1.09x [1.08, 1.11]', False),
    (0.94, [0.86, 1.02], '0.94x [0.86, 1.02]', True),
    # what two decimals do not show is not seen
    (1.003, [1.001, 1.008], '1.00x [1.00, 1.01]', True),
    (0.98, [0.97, 0.99], '0.98x [0.97, 0.99]', False),
    (1.2, None, '1.20x', False)])
def test_a_ratio_in_words(ratio, interval, text, equal):
    assert (ratio_text(ratio, interval), holds_one(interval)) == (text, equal)


@pytest.mark.gpu
@pytest.mark.parametrize('compile', [False, True])
def test_no_model_pays_for_being_the_first(compile):
    """Equal models show equal peak memory: what cuBLAS allocates at its first product is in neither."""
    m, pool = machine('cuda', compile=compile), GraphPool()
    size = dict(n_layer=2, n_head=2, n_embd=256, block_size=64, vocab_size=65)
    first, second = (TimedModel('base', m, size, 4, 8, pool=pool, calls=('step', 'decode')) for _ in range(2))
    assert first.peak_bytes == pytest.approx(second.peak_bytes, abs=2**20)
