"""What is too good to be true is named, and nothing that an honest idea has shown."""
import math
import random

import pytest

from lab.suspicion import suspicions


def positions(T=64, gains=None, seed=0, noise=0.02, drift=0.0):
    """Returns losses at each position of the baseline, and of an arm that gains as {position: nats} says."""
    rng, base = random.Random(seed), [1.5 + 2 / (1 + p / 4) for p in range(T)]
    gain = [drift * math.log1p(p) + (gains or {}).get(p, 0) + rng.gauss(0, noise) for p in range(T)]
    return base, [loss - g for loss, g in zip(base, gain)]


@pytest.mark.parametrize('difference, baseline', [
    (-0.1768, 2.1042), (-0.1085, 2.1042), (-0.15, 2.1857), (1.550 - 1.739, 1.739), (0.9, 1.5), (0.0, 1.45)])
def test_what_was_measured_here_is_believed(difference, baseline):
    assert suspicions(difference, baseline) == []


def test_a_leak_is_too_good():
    said, = suspicions(-0.71, 2.1857)
    assert '0.7100 nats is 32%' in said and '2.1857' in said


@pytest.mark.parametrize('seed', range(30))
def test_gains_that_grow_with_the_context_are_ordinary(seed):
    for drift in 0.0, 0.02, -0.05:
        assert suspicions(-0.01, 2.0, *positions(seed=seed, drift=drift)) == []


@pytest.mark.parametrize('T, gains', [(64, {48: 0.5}), (64, {63: 1.0}), (256, dict.fromkeys(range(47, 256, 48), 0.4))])
def test_positions_that_stand_out_are_named(T, gains):
    said, = suspicions(-0.01, 2.0, *positions(T, gains))
    assert all(str(p) in said for p in list(gains)[:5]) and 'those around' in said


def test_positions_without_targets_are_left_out():
    base, arm = positions(gains={30: 0.6})
    assert 'position 30 gains' in suspicions(-0.01, 2.0, [*base, None], [*arm, None])[0]
    assert suspicions(-0.01, 2.0, [2.0], [1.0]) == []


def test_a_mean_must_lie_in_its_own_interval_over_text():
    assert suspicions(-0.0352, 1.5, text_interval=[-0.04, -0.03], interval=[-0.05, -0.02]) == []
    outside, apart = suspicions(-0.0352, 1.5, text_interval=[-0.001, 0.001], interval=[-0.036, -0.034])
    assert '-0.0352 lies outside' in outside and 'nothing in common' in apart
