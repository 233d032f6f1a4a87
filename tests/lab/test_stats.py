"""The statistics behind a verdict: against scipy, brute force and hand-computed values, then by simulation.

In simulations the truth is known: how often studies of no effect find one, and how often effects are found.
"""
import json
from itertools import product
from math import inf, nan, sqrt

import numpy as np
import pytest
from scipy.stats import fisher_exact, nct, t as student, ttest_ind, ttest_rel

from core.errors import BAD_INPUT, Stop
from lab import stats
from lab.stats import (
    NOMINAL_LEVELS,
    compare,
    compare_arms,
    holm,
    nominal_level,
    read_csv,
    sign_flip_test,
    step_equivalents,
    text_interval,
    verdict,
)
from lab.study.schema import to_dict
from lab.study.words import text_table

DECIDED = 'holm_p', 'tost_holm_p', 'verdict' # by decide(), of several comparisons together
STUDIES = 4000          # simulated; the standard error of a rate of 5 % is then .34 %


def arms(seed, n, d=0.0, sd=0.003, rho=0.5, studies=STUDIES):
    """Returns base, var, (studies, n) losses each, with this true difference, spread in each arm, and correlation
    over seeds."""
    z = np.random.default_rng(seed).standard_normal((2, studies, n))
    return 1.47 + sd * z[0], 1.47 + d + sd * (rho * z[0] + sqrt(1 - rho * rho) * z[1])


def table(seed, n, **shifts):
    """Returns {arm: {seed: loss}}: base, and arms with these differences."""
    base = arms(seed, n, studies=1)[0][0]
    noise = np.random.default_rng(seed + 1).standard_normal((len(shifts), n)) * 0.002
    rows = {'base': base} | {arm: base + shift + e for (arm, shift), e in zip(shifts.items(), noise)}
    return {arm: dict(zip(range(1337, 1337 + n), map(float, x))) for arm, x in rows.items()}


# -----------------------------------------------------------------------------
# one comparison

@pytest.mark.parametrize('n', [2, 3, 5, 8, 20])
def test_difference_interval_and_p_are_scipys(n):
    for base, var in zip(*arms(n, n, d=0.002, studies=5)):
        c, ours = compare(base, var), ttest_rel(var, base)
        interval = ours.confidence_interval(0.95)
        np.testing.assert_allclose([c.mean, *c.interval, c.p], [(var - base).mean(), *interval, ours.pvalue],
                                   rtol=1e-11, atol=0)
        low, high = (ttest_rel(var - base, np.full(n, at), alternative=side).pvalue
                     for at, side in ((-0.005, 'greater'), (0.005, 'less')))
        assert c.tost_p == pytest.approx(max(low, high), rel=1e-9)


def test_the_other_numbers_by_hand():
    base, var = np.array([1.0, 2.0, 4.0, 5.0]), np.array([1.0, 1.0, 4.5, 3.0])
    c = compare(base, var, delta=1.0)                   # d = 0, -1, .5, -2
    assert (c.mean, c.wins, c.n) == (-0.625, 2, 4)
    assert c.sd ** 2 == pytest.approx((0.625 ** 2 + 0.375 ** 2 + 1.125 ** 2 + 1.375 ** 2) / 3)
    assert c.sd_base ** 2 == pytest.approx(10 / 3)
    assert c.rho == pytest.approx(np.corrcoef(base, var)[0, 1])
    pairs = [(v < b) + 0.5 * (v == b) for b in base for v in var]
    assert c.p_improve == sum(pairs) / 16 == 10 / 16
    assert c.mde == pytest.approx((student.ppf(0.975, 3) + student.ppf(0.8, 3)) * c.sd / 2)
    assert c.diverged == dict(base=0, var=0, both=0)


def test_equal_to_the_bit_and_always_the_same_difference():
    same = compare(np.array([1.0, 2.0, 3.0, 4.0, 5.0]), np.array([1.0, 2.0, 3.0, 4.0, 5.0]))
    assert (same.mean, same.p, same.flip_p, same.p_improve, same.tost_p) == (0, 1, 1, 0.5, 0)
    assert (same.shrunk, verdict(same)) == (0, 'equivalent')
    shifted = compare(np.array([1.0, 2.0, 3.0, 4.0, 5.0]), np.array([1.5, 2.5, 3.5, 4.5, 5.5]))
    assert (shifted.p, shifted.tost_p, verdict(shifted)) == (0, 1, 'worse')
    flat = compare(np.ones(5), np.ones(5) + 1)
    assert (flat.rho, verdict(flat)) == (None, 'worse')
    for c in same, shifted, flat:
        json.dumps(to_dict(c), allow_nan=False)


@pytest.mark.parametrize('n', [1, 2, 3, 5, 6, 9])
def test_sign_flip_counts_every_assignment(n):
    rng = np.random.default_rng(n)
    # the last two: ties
    for d in (*rng.standard_normal((5, n)), rng.integers(-2, 3, n) * 0.1, np.full(n, -0.1)):
        sums = [abs(sum(s * x for s, x in zip(signs, d))) for signs in product((1, -1), repeat=n)]
        assert sign_flip_test(d) == (np.mean([s >= sums[0] - 1e-9 for s in sums]), 0)
    assert sign_flip_test(np.full(n, -0.1))[0] == 2.0 ** (1 - n) # its floor


def test_sign_flip_of_twenty_seeds_and_of_too_many():
    d = np.random.default_rng(2).standard_normal(20) + 0.4
    sums = np.zeros(1)
    for x in d:
        sums = np.add.outer(sums, (x, -x)).ravel()
    assert sign_flip_test(d) == (np.mean(abs(sums) >= abs(d.sum()) - 1e-9), 0)
    many = np.random.default_rng(0).standard_normal(60) + 0.3
    p, draws = sign_flip_test(many)
    assert draws == 99_999 and p == sign_flip_test(many)[0]
    assert p == pytest.approx(ttest_rel(many, 0 * many).pvalue, rel=0.2)
    assert sign_flip_test(many + 3)[0] == 1e-5 # the + 1: never 0


# -----------------------------------------------------------------------------
# planning

@pytest.mark.parametrize('d, spread', [(0.001, 0.01), (0.0, 0.3)])
def test_planned_seeds_are_what_new_studies_need(d, spread):
    # the truth of new studies is drawn from what this one left open
    rng = np.random.default_rng(3)
    base = 1.5 + 0.003 * rng.standard_normal(8)
    var = base + d + np.linspace(-1, 1, 8) * spread
    c = compare_arms(dict(base=dict(enumerate(base)), mine=dict(enumerate(var)))).comparisons['mine']
    assert c.verdict == "can't tell" and (c.settle_chance >= 0.8) == (c.runs_to_settle is not None)
    n = c.runs_to_settle or 20
    belief = stats.believe(stats.differences(stats.look_paired(base[None], var[None])), c.sd_base, 0.005)
    true = rng.choice(belief.differences, 200, p=belief.weights)
    said = [verdict(compare(np.zeros(n), x + c.sd * rng.standard_normal(n))) for x in true]
    share = sum(v != "can't tell" for v in said) / 200
    assert share == pytest.approx(c.settle_chance, abs=0.08) if c.runs_to_settle else share < c.settle_chance + 0.08


def tost(base, var, delta=0.005, level=0.9):
    interval = ttest_rel(var, base, axis=1).confidence_interval(level)
    return (interval.low > -delta) & (interval.high < delta)


@pytest.mark.parametrize('looks', [(4,), (2, 3)])
def test_the_level_of_looks_that_are_not_in_the_table(looks):
    assert nominal_level(looks) == 0.05 if len(looks) == 1 else 0.025 < nominal_level(looks) < 0.035


def test_the_table_of_looks_is_what_simulation_gives(monkeypatch):
    known = dict(NOMINAL_LEVELS)
    monkeypatch.setattr('lab.stats.NOMINAL_LEVELS', {})
    for looks in (5, 10), (4, 6, 8, 10, 12):
        nominal_level.cache_clear()
        assert nominal_level(looks) == pytest.approx(known[looks], rel=0.02)
    nominal_level.cache_clear()


@pytest.mark.parametrize('looks', [(), (5, 5), (10, 5), (1, 5)])
def test_looks_that_are_no_plan(looks):
    with pytest.raises(Stop, match='looks='):
        nominal_level(looks)


# -----------------------------------------------------------------------------
# by simulation: the truth is known

@pytest.fixture
def no_belief(monkeypatch):
    """Drops from compare() what is to be believed, which takes most of its time and plays no part in a verdict."""
    belief = stats.believe(np.zeros(1), 0.0, 1.0)
    monkeypatch.setattr(stats, 'believe', lambda *args: belief)
    monkeypatch.setattr(stats, 'differences', lambda look: None)


def figure(what, *rates):
    """Prints the result of a simulation, for pytest -s."""
    print(f"\n{what}: {', '.join(f'{rate:.4f}' for rate in rates)}")


def share_of_verdicts(base, var, alpha=0.05):
    """Returns how often the verdict is better or worse; where the t test's p is not below alpha it never is."""
    p = ttest_rel(var, base, axis=1).pvalue
    said = lambda rows: [verdict(compare(base[i], var[i], alpha=alpha), alpha) in ('better', 'worse') for i in rows]
    assert not any(said(np.flatnonzero(p >= alpha)[:20]))
    return sum(said(np.flatnonzero(p < alpha))) / len(p)


@pytest.mark.parametrize('n', [5, 6, 8, 10, 20])
def test_studies_of_no_effect_find_one_in_five_percent(n, no_belief):
    base, var = arms(n, n)
    rate = (ttest_rel(var, base, axis=1).pvalue < 0.05).mean()
    assert 0.035 < rate < 0.065
    whole = share_of_verdicts(base[:1000], var[:1000])
    figure(f'A/A, n={n}: rate of a difference by t, and of a verdict', rate, whole)
    assert whole <= (ttest_rel(var[:1000], base[:1000], axis=1).pvalue < 0.05).mean()
    assert whole > 0.01 # it does not get there by saying nothing


@pytest.mark.parametrize('looks', NOMINAL_LEVELS)
def test_looking_again_keeps_five_percent(looks):
    base, var = arms(sum(looks), looks[-1])
    ps = [ttest_rel(var[:, :n], base[:, :n], axis=1).pvalue for n in looks]
    rate, uncorrected = (np.any([p < level for p in ps], axis=0).mean() for level in (nominal_level(looks), 0.05))
    figure(f'A/A, looks at {looks}: rate of a difference, and without correction', rate, uncorrected)
    assert 0.035 < rate < 0.065
    assert uncorrected > 0.068 # what looking costs otherwise


@pytest.mark.parametrize('looks', [(5, 10), (4, 8)])
def test_the_whole_verdict_with_looks(looks, no_belief):
    base, var = arms(7, looks[-1], studies=1000)
    level = nominal_level(looks)
    rates = [share_of_verdicts(base[:, :n], var[:, :n], level) for n in looks]
    figure(f'A/A, looks at {looks}: rate of a verdict at each', *rates)
    assert sum(rates) <= 0.065
    assert (rates[0] == 0) == (looks[0] < 5) # four seeds give no verdict


@pytest.mark.parametrize('n, effect', [(5, 2), (8, 1), (10, 1.5)])
def test_planted_effects_are_found_as_predicted(n, effect, no_belief):
    sd = 0.003 # of the differences too, at rho .5
    base, var = arms(n, n, d=-effect * sd)
    found = (ttest_rel(var, base, axis=1).pvalue < 0.05).mean()
    predicted = nct.sf(student.ppf(0.975, n - 1), n - 1, effect * sqrt(n))
    figure(f'effect of {effect} sd, n={n}: power found, and predicted', found, predicted)
    assert found == pytest.approx(predicted, abs=0.03)
    said = [verdict(compare(*pair)) for pair in zip(base[:200], var[:200])]
    assert 'worse' not in said and said.count('better') / 200 == pytest.approx(predicted, abs=0.12)


@pytest.mark.parametrize('n', [5, 8, 20])
def test_intervals_cover(n, no_belief):
    low, high = np.array([compare(b, v).interval for b, v in zip(*arms(n + 50, n, d=0.002, studies=300))]).T
    assert 0.915 < ((low < 0.002) & (0.002 < high)).mean() < 0.985 # compare() itself, few
    base, var = arms(n, n, d=0.002, studies=20_000)
    interval = ttest_rel(var, base, axis=1).confidence_interval()
    cover = ((interval.low < 0.002) & (0.002 < interval.high)).mean()
    figure(f'95 % interval, n={n}: covers', cover)
    assert 0.94 < cover < 0.96


@pytest.mark.parametrize('n', [5, 10])
@pytest.mark.parametrize('side', [-1, 1])
def test_a_difference_of_delta_is_called_equivalent_in_five_percent(n, side, no_belief):
    base, var = arms(n, n, d=side * 0.005, sd=0.002)
    rate = tost(base, var).mean()
    figure(f'TOST at a difference of {side:+} delta, n={n}: rate of equivalence', rate)
    assert 0.03 < rate < 0.06
    said = [verdict(compare(*pair)) for pair in zip(base[:200], var[:200])]
    assert said.count('equivalent') / 200 < 0.1


@pytest.mark.parametrize('looks', [(5, 10), (4, 6, 8, 10, 12)])
def test_looking_again_for_equivalence_keeps_five_percent(looks):
    base, var = arms(sum(looks), looks[-1], d=0.005, sd=0.002)
    level = 1 - 2 * nominal_level(looks)
    assert np.any([tost(base[:, :n], var[:, :n], level=level) for n in looks], axis=0).mean() < 0.06


def test_runs_that_diverge_by_chance_find_nothing(no_belief):
    base, var = arms(8, 6, studies=1000)
    lost = np.random.default_rng(8).random((2, 1000, 6)) < 0.15
    base, var = np.where(lost[0], inf, base), np.where(lost[1], inf, var)
    found = np.flatnonzero(stats.look_paired(base, var).evidence()[0] < 0.05)
    said = [verdict(compare(base[i], var[i])) for i in found]
    assert sum(v in ('better', 'worse') for v in said) / 1000 < 0.065


def test_three_variants_err_together_in_five_percent():
    rng = np.random.default_rng(5)
    base = rng.standard_normal((STUDIES, 6))
    variants = 0.5 * base + rng.standard_normal((3, STUDIES, 6)) # no effect, one baseline for all
    ps = np.array([ttest_rel(var, base - base * 0.5, axis=1).pvalue for var in variants]).T # (STUDIES, 3)
    rate, uncorrected = (np.array([holm(p) for p in ps]) < 0.05).any(1).mean(), (ps < 0.05).any(1).mean()
    figure('A/A, three variants: rate of any difference after Holm, and without', rate, uncorrected)
    assert rate < 0.055 and uncorrected > 0.1


# -----------------------------------------------------------------------------
# several comparisons

def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([0.04]) == [0.04]
    assert holm([]) == []


def said(d, base=None, **kwargs):
    base = np.linspace(1.4, 1.5, len(d)) if base is None else np.array(base)
    return verdict(compare(base, base + np.array(d), **kwargs))


def test_verdicts():
    clear = [-0.02, -0.021, -0.019, -0.022, -0.018]
    assert said(clear) == 'better'
    assert said([-x for x in clear]) == 'worse'
    assert said(clear[:4]) == "can't tell"
    assert said([0.001, -0.001, 0.0005, 0.0, -0.0004]) == 'equivalent'
    assert said([0.001, -0.001, 0.0005, 0.0, -0.0004], delta=0.0005) == "can't tell"
    assert said([0.02, -0.03, 0.01, 0.02, -0.01]) == "can't tell"


def test_the_sign_flip_test_has_a_say():
    four_of_five = [-0.02, -0.021, -0.019, -0.022, 0.0005]
    c = compare(np.zeros(5), np.array(four_of_five))
    assert c.p < 0.05 and c.flip_p == 0.125 and verdict(c) == "can't tell"
    c = compare(np.zeros(6), np.array([-0.02, -0.021, -0.019, -0.022, -0.02, -0.018]))
    assert c.flip_p == 1 / 32 and verdict(c) == 'better'
    assert verdict(c, alpha=0.01) == 'better' # 1 / 16 is the most that is asked of it
    base = np.linspace(1.4, 1.5, 6)
    five_of_six = compare(base, base + np.array([-0.02, -0.021, -0.019, -0.022, -0.02, 0.0005]))
    assert five_of_six.flip_p == 1 / 16 and verdict(five_of_six) == 'better' # six seeds say no less than five


def test_corrected_p_values_decide():
    c = compare(np.zeros(5), np.array([-0.02, -0.021, -0.019, -0.022, -0.018]))
    assert verdict(c, p=0.06) == "can't tell"
    same = compare(np.zeros(5), np.array([0.001, -0.001, 0.0005, 0.0, -0.0004]))
    assert verdict(same, tost_p=0.06) == "can't tell"
    one, many = ({f'v{i}': d for i in range(k)} for k, d in ((1, -0.003), (6, -0.003)))
    alone, among = (compare_arms(table(11, 6, **shifts)).comparisons for shifts in (one, many))
    assert alone['v0'].holm_p == alone['v0'].p
    assert [c.holm_p for c in among.values()] == holm([c.p for c in among.values()])
    assert [c.tost_holm_p for c in among.values()] == holm([c.tost_p for c in among.values()])


def test_runs_that_diverged():
    base = np.array([1.45, 1.46, 1.47, 1.48, 1.49, 1.45, 1.46, 1.47])
    lower = base - 0.05 + np.linspace(0, 0.01, 8)
    lose = lambda x, *lost: np.where(np.isin(np.arange(len(x)), lost), inf, x)
    # lower wherever it ends, but not every run does
    c = compare(base, lose(lower, 0))
    assert (c.diverged, c.p < 0.001, verdict(c)) == (dict(base=0, var=1, both=0), True, "can't tell")
    assert c.mean == pytest.approx((lower - base)[1:].mean()) # of the pairs that ended
    # one of each: pairing stays
    assert verdict(compare(lose(base, 1), lose(lower, 0))) == 'better'
    assert verdict(compare(lose(base, 1), lower)) == 'better'
    assert verdict(compare(lose(base, 1), base + 0.05 + np.linspace(0, 0.01, 8))) == 'worse'
    # by their numbers alone
    none = compare(base[:5], np.full(5, inf))
    by_number = fisher_exact([[0, 5], [5, 0]]).pvalue / 0.2
    assert (none.p, none.mean, verdict(none)) == (pytest.approx(by_number), None, 'worse')
    assert verdict(compare(np.full(5, inf), base[:5])) == 'better'
    assert verdict(compare(np.full(5, inf), np.full(5, inf))) == "can't tell"
    # never equivalent
    assert verdict(compare(base, base)) == 'equivalent'
    assert verdict(compare(lose(base, 0), lose(base, 0))) == "can't tell"


def test_an_arm_with_rare_bad_runs_is_not_better():
    rng = np.random.default_rng(4)
    base = 1.5 + 0.003 * rng.standard_normal(12)
    var = base - 0.02 + 0.001 * rng.standard_normal(12)
    assert verdict(compare(base, var)) == 'better'
    var[3] = 1.53
    c = compare(base, var)
    assert c.p < 0.05 and c.bad == dict(base=0, var=1) and verdict(c) == "can't tell"
    base[5] = 1.56 # the baseline has as many
    assert verdict(compare(base, var)) == 'better'
    losses = dict(base=dict(enumerate(np.delete(base, 5))), mine=dict(enumerate(np.delete(var, 5))))
    words = '1 of its 11 runs is far worse than the others, and not in the mean; with more bad runs than the baseline'
    assert words in text_table(compare_arms(losses))


# -----------------------------------------------------------------------------
# a study

def test_a_study():
    result = compare_arms(table(2, 8, good=-0.02, same=0.0, bad=0.02))
    assert json.loads(json.dumps(to_dict(result), allow_nan=False))['seeds'] == list(range(1337, 1345))
    verdicts = {arm: c.verdict for arm, c in result.comparisons.items()}
    assert verdicts == dict(good='better', same='equivalent', bad='worse')
    assert result.arms['base'].losses == table(2, 8)['base']
    base, good = (np.array(list(table(2, 8, good=-0.02, same=0.0, bad=0.02)[arm].values())) for arm in ('base', 'good'))
    alone = {name: value for name, value in to_dict(compare(base, good)).items() if name not in DECIDED}
    assert to_dict(result.comparisons['good']).items() >= alone.items()
    assert (result.arms['good'].mean, result.arms['good'].sd) == (good.mean(), good.std(ddof=1))
    turned = compare_arms(table(2, 8, good=-0.02, same=0.0), baseline='good')
    assert turned.comparisons['base'].verdict == 'worse'
    assert list(turned.comparisons) == ['base', 'same']


def test_other_seeds_are_not_paired():
    t = table(2, 8, good=-0.02)
    t['good'] = {seed + 100: loss for seed, loss in list(t['good'].items())[:6]}
    c = compare_arms(t).comparisons['good']
    base, good = ([*t[arm].values()] for arm in ('base', 'good'))
    assert (c.test, c.n, c.n_base, c.rho, c.verdict) == ('Welch', 6, 8, None, 'better')
    # Behrens and Fisher's p is the larger one
    assert ttest_ind(good, base, equal_var=False).pvalue < c.p < 0.001
    assert 'better by' in text_table(compare_arms(t)) and '6 runs against 8, unpaired' in text_table(compare_arms(t))


def test_seeds_are_paired_by_name_not_by_place():
    shuffled = table(2, 8, good=-0.02)
    shuffled['good'] = dict(reversed(shuffled['good'].items()))
    assert compare_arms(shuffled).comparisons == compare_arms(table(2, 8, good=-0.02)).comparisons


def test_looks_lower_the_level():
    result = compare_arms(table(2, 5, good=-0.02), looks=[5, 10])
    assert (result.level, result.looks) == (0.0279, [5, 10])
    base, good = (np.array(list(x.values())) for x in table(2, 5, good=-0.02).values())
    interval = ttest_rel(good, base).confidence_interval(1 - 0.0279)
    assert result.comparisons['good'].interval == pytest.approx(list(interval))
    assert 'looks at 5, 10 runs' in text_table(result)


def test_a_failed_run_leaves_the_level_of_looks():
    assert compare_arms(table(2, 7, good=-0.02), looks=[5, 10]).level == nominal_level((5, 10))


BROKEN = [
    (dict(base={1: 1.0, 2: 1.1}), {}, 'needs a baseline and a variant'),
    (dict(), {}, 'needs a baseline and a variant'),
    (dict(base={1: 1.0, 2: 1.1}, mine={1: 1.0}), {}, 'mine: 1 seed; must be at least 2'),
    (dict(base={1: 1.0, 2: 1.1}, mine={1: 1.0, 2: nan}), {}, 'mine, seed 2: loss=nan: must be'),
    (dict(base={1: -inf, 2: 1.1}, mine={1: 1.0, 2: 1.0}), {}, 'base, seed 1: loss=-inf: must be'),
    (dict(base={1: 1.0, 2: 1.1}, mine={1: 1.0, 2: None}), {}, 'mine, seed 2: loss=None: must be'),
    (dict(base={1: 1.0}, mine={1: 1.0}), {}, 'base: 1 seed; must be at least 2'),
    (table(1, 5, mine=0.0), dict(baseline='bass'), 'baseline=bass: no such arm; there are base, mine'),
    (table(1, 5, mine=0.0), dict(delta=0.0), 'delta=0.0: must be above 0'),
    (table(1, 5, mine=0.0), dict(delta=nan), 'delta=nan: must be above 0'),
    (table(1, 5, mine=0.0), dict(alpha=0.5), 'alpha=0.5: must be above 0 and below 0.5'),
]


@pytest.mark.parametrize('broken, options, message', BROKEN)
def test_a_study_that_cannot_be_judged(broken, options, message):
    with pytest.raises(Stop) as stop:
        compare_arms(broken, **options)
    assert message in str(stop.value) and '\n' not in str(stop.value) and stop.value.code == BAD_INPUT


def test_the_table():
    t = table(3, 6, soft_window=-0.0024, alibi=-0.02, same=0.0)
    t['mine'] = {seed: inf if seed == 1337 else 1.47 for seed in t['base']}
    result = compare_arms(t)
    text = text_table(result, extra={'ms x': {'alibi': '1.31'}})
    lines = text.splitlines()
    assert [line.split()[0] for line in lines[:6]] == ['arm', 'base', 'soft_window', 'alibi', 'same', 'mine']
    assert max(map(len, lines[:6])) <= 100
    ends = {line.split()[0]: line for line in lines[1:6]}
    assert ends['base'].endswith('baseline') and ends['mine'].endswith("can't tell")
    assert ends['alibi'].endswith('1.31  better')
    c = result.comparisons['alibi']
    for number in c.mean, c.shrunk:
        assert f'{number:+.4f}'.replace('0.', '.') in ends['alibi']
    start = lines[0].index('verdict')
    assert all(line[start - 1] == ' ' != line[start] for line in lines[1:6]) # aligned
    words = {line.split(':')[0]: line for line in lines[7:]}
    by = f'{abs(c.mean):.4f} (shrunk {abs(c.shrunk):.4f})'.replace('0.', '.')
    assert words['alibi'] == f'alibi: better by {by}; P(better) >.99; at 6 of 6 seeds'
    assert 'it diverged in 1 of 6 runs' in words['mine']
    for word in 'better, worse', "can't tell", 'difference':
        assert word in words


def test_words_for_the_rest():
    assert "can't tell; 3 seeds give no verdict, 5 do" in text_table(compare_arms(table(3, 3, mine=0.0)))
    t = table(3, 5, mine=0.0)
    assert 'equal to the bit' in text_table(compare_arms(t | dict(mine=t['base'])))
    four = dict(enumerate([-0.02, -0.021, -0.019, -0.022, 0.0005]))
    mixed = compare_arms(dict(base=dict.fromkeys(four, 0.0), mine=four))
    assert 'the sign-flip test does not agree, p .125' in text_table(mixed)
    hopeless = compare_arms(dict(base={s: 1.5 for s in range(6)}, mine={s: 1.5 + 10 * (-1) ** s for s in range(6)}))
    assert 'even 64 seeds would settle it only' in text_table(hopeless)
    c = hopeless.comparisons['mine']
    assert f'at most {-c.interval[0]:.4f} better or {c.interval[1]:.4f} worse' in text_table(hopeless)


# -----------------------------------------------------------------------------
# a file of losses

def test_read_csv(tmp_path):
    path = tmp_path / 'ab.csv'
    text = '\ufeffloss, note,seed ,arm\n1.5,x,1,base\n1.6,,2,base\n\n1.4,"a\nb",2,mine\ninf,,1,mine\n'
    path.write_text(text, encoding='utf-8')
    assert read_csv(path) == dict(base={1: 1.5, 2: 1.6}, mine={2: 1.4, 1: inf})


GOOD = 'arm,seed,loss\nbase,1,1.5\nbase,2,1.6\nmine,1,1.5\nmine,2,1.6\n'


@pytest.mark.parametrize('old, new, message', [
    ('mine,2,1.6', 'mine,2,1,6x', ''), # more columns than the header: ignored, and the loss is 1
    ('mine,2,1.6', 'mine,2,1.6x', ':5: loss=1.6x: must be a number'),
    ('mine,2,1.6', 'mine,2', ':5: loss=: must be a number'),
    ('mine,2,1.6', 'mine,2,nan', ':5: loss=nan: must be a number'),
    ('mine,2,1.6', 'mine,2,-inf', ':5: loss=-inf: must be a number'),
    ('base,2', 'base,two', ':3: seed=two: must be a whole number'),
    ('base,2', ',2', ':3: no arm'),
    ('mine,2', 'mine,1', ':5: mine, seed 1 again; first on line 4'),
    ('mine,2,1.6\n', '', ':4: mine: 1 seed; must be at least 2'),
    ('mine', 'base', ':4: base, seed 1 again; first on line 2'),
    ('mine,1,1.5\nmine,2,1.6\n', '', ':3: arms: base: a comparison needs'),
    ('arm,seed,loss', 'arm,seed,val', ':1: columns arm, seed, val: must have arm, seed and loss'),
    ('arm,seed,loss', 'arm,seed,loss,loss', ':1: columns'),
    ('mine,2,1.6', 'mine,2,"1.6', ':5: unexpected end of data'),
    (GOOD, '', ':1: columns (none)'),
    ('mine,2,1.6', 'm\udcffne,2,1.6', ': is not UTF-8 text'),
])
def test_a_file_that_cannot_be_read(tmp_path, old, new, message):
    path = tmp_path / 'ab.csv'
    path.write_text(GOOD.replace(old, new), encoding='utf-8', errors='surrogateescape')
    if not message:
        assert read_csv(path)['mine'][2] == 1
        return
    with pytest.raises(Stop) as stop:
        read_csv(path)
    assert str(stop.value).startswith(f'{path}{message}') and '\n' not in str(stop.value)
    assert stop.value.code == BAD_INPUT


def test_no_such_file(tmp_path):
    with pytest.raises(Stop, match='no.csv: No such file'):
        read_csv(tmp_path / 'no.csv')


# -----------------------------------------------------------------------------
# other text, and steps

def windows(seed, W, r):
    """Returns loss differences of windows whose neighbours correlate by r; their true mean is 0."""
    rng = np.random.default_rng(seed)
    x = np.empty(W)
    x[0] = rng.standard_normal()
    for i, e in enumerate(rng.standard_normal(W - 1) * sqrt(1 - r * r)):
        x[i + 1] = r * x[i] + e
    return x


@pytest.mark.parametrize('r', [0.0, 0.3, 0.6])
def test_the_text_interval_covers(r):
    covers = lambda block: np.mean([i['low'] < 0 < i['high'] for i in
                                    (text_interval(windows(seed, 435, r), block, 400, seed) for seed in range(400))])
    blocks, single = covers(None), covers(1)
    figure(f'95 % text interval, neighbours alike by {r}: covers, and with windows as if independent', blocks, single)
    assert blocks > 0.89
    if r:
        assert single < blocks - 0.03 and single < 0.88


def test_blocks_of_the_text_interval():
    x = windows(1, 435, 0.0)
    one, two = text_interval(x), text_interval(x)
    assert one == two and one['block'] == 8 and one['mean'] == x.mean()
    assert one['low'] < one['mean'] < one['high']
    errors = [text_interval(windows(seed, 435, 0.0))['se'] for seed in range(20)]
    assert np.mean(errors) == pytest.approx(1 / sqrt(435), rel=0.07)
    assert text_interval(windows(1, 435, 0.8))['block'] > 15
    even = text_interval(np.tile([1.0, -1.0], 50), block=2)
    assert (even['low'], even['high'], even['se']) == (0, 0, 0) # every block of two is 0
    assert text_interval(np.full(20, 0.5))['low'] == 0.5
    assert text_interval(np.arange(9.0)) is None
    json.dumps(one, allow_nan=False)


def test_steps_that_a_difference_is_worth():
    iters = np.arange(0, 2000, 250)
    curve = np.where(iters < 1000, 3.0, 2.0 - 1e-4 * (iters - 1000))
    assert step_equivalents(-0.01, iters[-4:], curve[-4:]) == pytest.approx(100)
    assert step_equivalents(0.01, iters, curve, last=4) == pytest.approx(-100)
    assert step_equivalents(-0.01, iters, 2 + 1e-4 * iters) is None
    assert step_equivalents(-0.01, iters, np.full(8, 2.0)) is None
    assert step_equivalents(-0.01, [250], [2.0]) is None
    assert step_equivalents(-0.01, [250, 500], [2.0, inf]) is None
