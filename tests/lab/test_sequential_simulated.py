"""Studies with looks, simulated: the truth is known, so errors, power, runs and coverage can be counted.

Each cell is 20,000 studies judged by the functions that judge() calls. pytest -m slow -s prints the rates. A rate of
5 % has a standard error of .15 %.
"""
import csv
from collections import defaultdict
from math import sqrt
from pathlib import Path

import numpy as np
import pytest

from lab import stats
from lab.sequential import (
    LOOKS,
    PAIRED_LOOKS,
    Design,
    chance_of_more,
    difference_ps,
    equivalence_ps,
    estimate,
    interval_tail,
    judge,
    looks_at,
)

pytestmark = pytest.mark.slow
STUDIES = 20_000
RATIOS = 1 / 3, 1 / 2, 1, 2, 3      # of the arm's sd and the baseline's
DATA = Path(__file__).with_name('data')
CEILING, FLOOR = 0.055, 0.04        # errors allowed, and errors that a test should make where all is normal


def figure(what, **rates):
    """Prints the result of a simulation, for pytest -s."""
    print(f"\n| {what} | {' | '.join(f'{name} {rate:.4f}' for name, rate in rates.items())} |", flush=True)


def ps(base, var, design):
    """Returns the smallest sequential p so far at each look, (studies, looks)."""
    return difference_ps(looks_at(base, var, design), design)[0]


def error_rates(base, var, design, alpha=0.05):
    """Returns how often studies find a difference until the last ordinary look, and until 64 runs."""
    p = ps(base, var, design)
    return (p[:, len(design.looks) - 1] < alpha).mean(), (p[:, -1] < alpha).mean()


def normal(rng, *shape):
    return rng.standard_normal(shape)


def t3(rng, *shape):
    """Returns Student t noise with 3 degrees of freedom and sd 1."""
    return rng.standard_t(3, shape) / sqrt(3)


def lose(rng, losses, share):
    """Returns losses with this share of runs diverged."""
    return np.where(rng.random(losses.shape) < share, np.inf, losses)


# -----------------------------------------------------------------------------
# errors: no arm differs

@pytest.mark.parametrize('n_base', [5, 8, 16, 40, 64])
@pytest.mark.parametrize('ratio', RATIOS)
def test_errors_against_stored_runs(n_base, ratio):
    # arms have other seeds than the baseline, so seeds cannot pair and rho is 0 by construction
    rng = np.random.default_rng([1, n_base, int(10 * ratio)])
    design = Design('welch', LOOKS, n_base)
    rate, extended = error_rates(normal(rng, STUDIES, n_base), ratio * normal(rng, STUDIES, 64), design)
    figure(f'A/A, {n_base} stored, sd x {ratio:.2f}', sixteen=rate, extended=extended)
    assert extended <= CEILING
    assert rate >= FLOOR or ratio != 1


@pytest.mark.parametrize('n_base', [5, 40])
@pytest.mark.parametrize('kind', ['t3', '5 % diverged', 't3, 5 % diverged'])
def test_errors_against_stored_runs_that_misbehave(n_base, kind):
    rng = np.random.default_rng([2, n_base])
    draw = t3 if 't3' in kind else normal
    base, var = draw(rng, STUDIES, n_base), draw(rng, STUDIES, 64)
    if 'diverged' in kind:
        base, var = lose(rng, base, 0.05), lose(rng, var, 0.05)
    rate, extended = error_rates(base, var, Design('welch', LOOKS, n_base))
    figure(f'A/A, {n_base} stored, {kind}', sixteen=rate, extended=extended)
    assert extended <= CEILING


@pytest.mark.parametrize('n_base', [5, 40])
def test_arms_with_rare_bad_runs_are_not_called_better(n_base):
    # one run in ten is worse by 15 sd, in both arms
    rng, design = np.random.default_rng([2, n_base, 1]), Design('welch', LOOKS, n_base)
    base, var = (x + 15 * (rng.random(x.shape) < 0.1) for x in (normal(rng, STUDIES, n_base), normal(rng, STUDIES, 16)))
    p, side = (x[:, -1] for x in difference_ps(looks_at(base, var, design), design))
    better, worse = ((p < 0.05) & (side == sign) for sign in (-1, 1))
    figure(f'A/A, {n_base} stored, a bad run in ten', better=better.mean(), worse=worse.mean())
    assert better.mean() <= CEILING


@pytest.mark.parametrize('rho', [-0.8, 0.0, 0.9])
@pytest.mark.parametrize('ratio', [1 / 3, 1, 3])
@pytest.mark.parametrize('draw', [normal, t3])
def test_errors_of_pairs(rho, ratio, draw):
    rng = np.random.default_rng([3, int(10 * rho + 10), int(10 * ratio)])
    base, own = draw(rng, 2, STUDIES, 64)
    rate, extended = error_rates(base, ratio * (rho * base + sqrt(1 - rho ** 2) * own), Design('paired', PAIRED_LOOKS))
    figure(f'A/A, paired, rho {rho}, sd x {ratio:.2f}, {draw.__name__}', sixteen=rate, extended=extended)
    assert extended <= CEILING
    assert rate >= FLOOR or ratio != 1 or draw is t3


@pytest.mark.parametrize('rho', [0.0, 0.9])
def test_errors_of_pairs_that_diverge(rho):
    rng = np.random.default_rng([4, int(10 * rho)])
    base, own = normal(rng, 2, STUDIES, 64)
    var = rho * base + sqrt(1 - rho ** 2) * own
    rate, extended = error_rates(lose(rng, base, 0.05), lose(rng, var, 0.05), Design('paired', PAIRED_LOOKS))
    figure(f'A/A, paired, rho {rho}, 5 % diverged', sixteen=rate, extended=extended)
    assert extended <= CEILING


@pytest.mark.parametrize('arms', [5, 20])
@pytest.mark.parametrize('ratio', [1, 3])
def test_errors_of_many_arms(arms, ratio):
    # 40 stored runs for all; Holm's first step is what counts where no arm differs
    rng, design = np.random.default_rng([5, arms]), Design('welch', LOOKS, 40)
    base, found = normal(rng, STUDIES, 40), np.zeros(STUDIES, bool)
    for _ in range(arms):
        found |= ps(base, ratio * normal(rng, STUDIES, 16), design)[:, -1] < 0.05 / arms
    figure(f'A/A, {arms} arms, sd x {ratio}', any=found.mean())
    assert found.mean() <= CEILING


def test_a_failed_run_is_replaced_by_the_next_seed():
    # judge() sees the seeds that ended, so a study with failures is one of the seeds that are left
    rng, design = np.random.default_rng(6), Design('welch', LOOKS, 8)
    for _ in range(40):
        base, var = rng.standard_normal(8), rng.standard_normal(20)
        ended = np.flatnonzero(rng.random(20) > 0.05)
        losses = dict(base=dict(enumerate(base)), var={100 + int(i): var[i] for i in ended})
        c, p = judge(losses, design, plan=False).comparisons['var'], ps(base[None], var[None, ended], design)[0]
        at = design.plan.index(c.decided_at) if c.decided_at else len(p) - 1
        assert c.p == p[at]


@pytest.mark.parametrize('level', [0.01, 0.001, 0.0001])
def test_errors_at_the_small_levels_of_a_stream(level):
    design, found, studies = Design('welch', LOOKS, 40), 0, 15
    for block in range(studies):
        rng = np.random.default_rng([7, block])
        found += (ps(normal(rng, STUDIES, 40), normal(rng, STUDIES, 16), design)[:, -1] < level).sum()
    rate = found / STUDIES / studies
    figure(f'A/A, 40 stored, level {level}', rate=rate, of_level=rate / level)
    assert rate < 1.25 * level + 2 * sqrt(level / STUDIES / studies)


# -----------------------------------------------------------------------------
# studies of a fixed number of seeds

@pytest.mark.parametrize('n', [5, 6, 8, 10, 20])
@pytest.mark.parametrize('rho, ratio, draw, lost', [
    (0.0, 1, normal, 0), (-0.8, 1, normal, 0), (0.9, 1, normal, 0), (0.0, 1 / 3, normal, 0), (0.9, 3, normal, 0),
    (0.0, 1, t3, 0), (0.0, 1, normal, 0.05), (0.9, 1, normal, 0.05),
])
def test_errors_of_fixed_studies(n, rho, ratio, draw, lost):
    rng = np.random.default_rng([8, n, int(10 * rho + 10), int(10 * ratio)])
    base, own = draw(rng, 2, STUDIES, n)
    base, var = lose(rng, base, lost), lose(rng, ratio * (rho * base + sqrt(1 - rho ** 2) * own), lost)
    rate = fixed_rate(base, var)
    figure(f'A/A, fixed n={n}, rho {rho}, sd x {ratio:.2f}, {draw.__name__}, {lost} diverged', rate=rate)
    assert rate <= CEILING


def fixed_rate(base, var):
    """Returns how often compare() and verdict() find a difference; they need p < .05, so others are passed over."""
    p = stats.look_paired(base, var).evidence()[0]
    said = [stats.verdict(stats.compare(base[i], var[i])) for i in np.flatnonzero(p < 0.05)]
    return sum(v in ('better', 'worse') for v in said) / len(p)


def test_six_seeds_find_more_than_five():
    rng = np.random.default_rng(9)
    base, var = normal(rng, STUDIES, 8), normal(rng, STUDIES, 8) - 1.5
    found = [fixed_rate(base[:, :n], var[:, :n]) for n in (5, 6, 8)]
    figure('power at 1.5 sd, fixed, rho 0', **{f'n{n}': rate for n, rate in zip((5, 6, 8), found)})
    assert found[0] + 0.03 < found[1] < found[2]


@pytest.mark.parametrize('n', [8, 10])
def test_power_of_pairs_that_diverge(n):
    # the arm is better by .7 sd, twice the sd of a difference
    rng = np.random.default_rng(10)
    base, own = normal(rng, 2, 4000, n)
    var = 0.9 * base + sqrt(0.19) * own - 0.7
    whole, one_each = fixed_rate(base, var), fixed_rate(*(one_lost(rng, x) for x in (base, var)))
    base_alone = fixed_rate(one_lost(rng, base), var)
    figure(f'power, rho .9, n={n}', none_diverged=whole, one_of_each=one_each, one_of_the_baseline=base_alone)
    assert one_each > whole - 0.1 and base_alone > whole - 0.1


def one_lost(rng, losses):
    """Returns losses in which one run of each study has diverged."""
    lost = losses.copy()
    lost[np.arange(len(lost)), rng.integers(lost.shape[1], size=len(lost))] = np.inf
    return lost


# -----------------------------------------------------------------------------
# power, and runs until a verdict

def power(base, var, design):
    """Returns the share of studies that find a difference by 16 runs, and the mean number of runs of the arm."""
    found = ps(base, var, design) < 0.05
    runs = np.where(found.any(1), np.array(design.looks)[found.argmax(1)], design.looks[-1])
    return found.any(1).mean(), runs.mean()


@pytest.mark.parametrize('effect, least, most', [(1, 0.75, 11), (1.5, 0.95, 8), (2, 0.99, 6)])
def test_power_against_forty_stored_runs(effect, least, most):
    rng = np.random.default_rng(11)
    share, runs = power(normal(rng, STUDIES, 40), normal(rng, STUDIES, 16) - effect, Design('welch', LOOKS, 40))
    figure(f'power, 40 stored, {effect} sd', share=share, runs=runs)
    assert share >= least and runs <= most


@pytest.mark.parametrize('effect', [1, 2])
@pytest.mark.parametrize('rho', [0.0, 0.75])
def test_power_of_pairs(effect, rho):
    rng = np.random.default_rng(12)
    base, own = normal(rng, 2, STUDIES, 16)
    share, runs = power(base, rho * base + sqrt(1 - rho ** 2) * own - effect, Design('paired', PAIRED_LOOKS))
    figure(f'power, paired, rho {rho}, {effect} sd of a loss', share=share, pairs=runs)
    assert share > (0.4 if effect == 1 else 0.9)


# -----------------------------------------------------------------------------
# real losses, drawn again

def real_losses(name):
    """Returns {arm: (runs,) losses less their mean}, scaled so that their variance is unbiased."""
    found = defaultdict(list)
    with open(DATA / name, encoding='utf-8') as f:
        for row in csv.DictReader(f):
            found[row['arm']].append(float(row['loss']))
    return {arm: (np.array(x) - np.mean(x)) * sqrt(len(x) / (len(x) - 1)) for arm, x in found.items()}


def contest():
    """Returns the losses of the contest's sets with eight runs of one setting and more, one array."""
    return np.concatenate([x for arm, x in real_losses('track3.csv').items() if len(x) >= 8 and 'sweep' not in arm])


@pytest.mark.parametrize('name', ['contest', 'base', 'alibi'])
def test_real_losses_against_forty_stored_runs(name):
    rng, recipe = np.random.default_rng(13), real_losses('small_recipe.csv')
    stored = contest() if name == 'contest' else recipe['base']
    arm = stored if name == 'contest' else recipe[name]
    design, unit = Design('welch', LOOKS, 40), stored.std()
    base, var = rng.choice(stored, (STUDIES, 40)), rng.choice(arm, (STUDIES, 64))
    rate, extended = error_rates(base, var, design)
    figure(f'A/A, real losses, {name}', sixteen=rate, extended=extended)
    assert extended <= CEILING
    for effect, least, most in (1, 0.75, 11), (2, 0.99, 6):
        share, runs = power(base, var[:, :16] - effect * unit, design)
        figure(f'power, real losses, {name}, {effect} sd', share=share, runs=runs)
        assert share >= least and runs <= most


# -----------------------------------------------------------------------------
# what is said after an early stop

def stops(base, var, design):
    """Returns the Looks of studies, and the number of the look at which each stopped, from 0, (studies,)."""
    looks = looks_at(base, var, design)
    found = difference_ps(looks, design)[0] < 0.05
    return looks, np.where(found.any(1), found.argmax(1), len(looks) - 1)


@pytest.mark.parametrize('effect', [0, 0.5, 1, 2])
@pytest.mark.parametrize('test', ['welch', 'paired'])
def test_coverage_after_early_stops(effect, test):
    rng = np.random.default_rng(14)
    design = Design('welch', LOOKS, 40) if test == 'welch' else Design('paired', PAIRED_LOOKS)
    base, var = normal(rng, STUDIES, 40), normal(rng, STUDIES, 16) - effect
    looks, at = stops(base, var, design)
    chances = np.empty(STUDIES)
    for k, look in enumerate(looks):
        # the interval holds the truth where the chance of more under it is in neither tail
        seen, drifts, ratios = look.score(), look.score() - look.score(-effect), look.log_ratio
        ended = np.flatnonzero(at == k)
        for i in np.array_split(ended, len(ended) // 500 + 1):
            chances[i] = chance_of_more(seen[i], drifts[i], k, 0.05, ratios[i], design)
    tail = interval_tail(design)
    covered, above = ((chances > tail) & (chances < 1 - tail)).mean(), (chances < 0.5).mean()
    figure(f'interval after looks, {test}, {effect} sd', covers=covered, estimate_too_high=above)
    assert 0.94 <= covered <= 0.96


def test_the_interval_is_what_its_coverage_was_counted_for():
    rng, design = np.random.default_rng(15), Design('welch', LOOKS, 40)
    looks, at = stops(normal(rng, 100, 40), normal(rng, 100, 16) - 1, design)
    for i, k in enumerate(at):
        look = looks[k].of(i)
        for end, chance in zip(estimate(look, k, 0.05, design)[1], (0.025, 0.975)):
            found = chance_of_more(look.score(), look.score() - look.score(end), k, 0.05, look.log_ratio, design)
            assert found[0] == pytest.approx(chance, abs=0.004)


def test_shrunken_claims_do_not_overstate():
    rng, design, n = np.random.default_rng(16), Design('welch', LOOKS, 40), 3000
    true = rng.standard_t(3, n)
    base, var = normal(rng, n, 40), normal(rng, n, 16) + true[:, None]
    looks, at = stops(base, var, design)
    claimed = np.flatnonzero(difference_ps(looks, design)[0][:, -1] < 0.05)
    rows = []
    for i in range(n):
        look = looks[at[i]].of(i)
        belief = stats.believe(stats.differences(look), sqrt(40 * look.square_base[0]), 0.5)
        rows.append((float(look.difference[0]), belief.mean, belief.p_better, belief.p_within))
    raw, shrunk, p_better, p_within = np.array(rows).T
    small = np.array([i for i in claimed if abs(raw[i]) < 2])
    side = np.sign(raw[small])
    over = {name: ((x[small] - true[small]) * side).mean() for name, x in (('raw', raw), ('shrunk', shrunk))}
    figure('claims below 2 sd: overstated, in sd', **over)
    assert over['raw'] > 0.1 > 0.03 > abs(over['shrunk'])
    # chances are chances
    for name, said, came in ('better', p_better, true < 0), ('within', p_within, abs(true) < 0.5):
        unsure = (said > 0.2) & (said < 0.8)
        figure(f'P({name}) between .2 and .8: said, and came true', said=said[unsure].mean(), came=came[unsure].mean())
        assert said[unsure].mean() == pytest.approx(came[unsure].mean(), abs=0.04)


@pytest.mark.parametrize('side', [-1, 1])
def test_a_difference_of_delta_is_called_equivalent_in_five_percent(side):
    rng, design = np.random.default_rng(17), Design('welch', LOOKS, 40)
    base, var = normal(rng, STUDIES, 40), normal(rng, STUDIES, 16) + side
    looks = looks_at(base, var, design)
    rate = (equivalence_ps(looks, design, 1.0)[:, -1] < 0.05).mean()
    figure(f'equivalence at a difference of {side:+} delta, delta 1 sd', rate=rate)
    assert rate <= CEILING
