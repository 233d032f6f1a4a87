"""Looks at a study that grows: each part against scipy, integration or simulation; verdicts of small studies.

Rates over many studies are in test_sequential_simulated.py.
"""
import json
from math import inf, sqrt

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import t as student

from core.errors import Stop
from lab import stats
from lab.look import fisher_p, look_unpaired, t_tail
from lab.sequential import LOOKS, PAIRED_LOOKS, Design, follow, information, judge, sequential_p, walk
from lab.study.schema import to_dict
from lab.study.words import text_table


def study(seed, n_base=40, **arms):
    """Returns {arm: {seed: loss}} with sd .005: a baseline, and arms (difference, runs) with other seeds."""
    rng = np.random.default_rng(seed)
    losses = dict(base=dict(enumerate(1.5 + 0.005 * rng.standard_normal(n_base))))
    for arm, (difference, n) in arms.items():
        losses[arm] = dict(enumerate(1.5 + difference + 0.005 * rng.standard_normal(n), 100))
    return losses


STORED = Design('welch', LOOKS, 40)


# -----------------------------------------------------------------------------
# the parts

@pytest.mark.parametrize('df_var, df_base', [(3, 4), (3, 39), (15, 39), (63, 63)])
@pytest.mark.parametrize('t', [1.0, 3.0, 8.0])
def test_behrens_and_fishers_p_is_its_integral(df_var, df_base, t):
    for share in 0.02, 0.5, 0.95:
        def above(x, share=share):
            return student.pdf(x, df_base) * student.sf((t - x * sqrt(1 - share)) / sqrt(share), df_var)
        expected = 2 * sum(quad(above, *ends, limit=500, epsabs=0, epsrel=1e-7)[0]
                           for ends in ((-inf, 0), (0, t / sqrt(1 - share)), (t / sqrt(1 - share), inf)))
        found = fisher_p(np.array([t]), np.array([share]), df_var, df_base)[0]
        assert found == pytest.approx(expected, rel=2e-3)


def test_the_tail_of_t():
    t = np.array([0.0, 1.3, 4.0, 30.0])
    np.testing.assert_allclose(t_tail(t, 43), student.sf(t, 43), rtol=1e-3)
    np.testing.assert_allclose(t_tail(t, 7), student.sf(t, 7), rtol=1e-4)


def test_the_walk_passes_bars_as_often_as_simulated_ones():
    info = information(0.8, STORED.plan, STORED.baseline_plan)
    steps = np.random.default_rng(0).standard_normal((40_000, len(info))) * np.sqrt(np.diff(info, prepend=0))
    scores = (steps.cumsum(1) + 0.4 * info) / np.sqrt(info)
    bars = 2.2 * np.array(STORED.bars)
    first = np.where((abs(scores) > bars).any(1), (abs(scores) > bars).argmax(1), -1)
    upper, lower = walk(info[None], bars[None], np.array([[0.4]]))
    for k in range(len(info)):
        at = first == k
        for side, chance in (1, upper[0, k]), (-1, lower[0, k]):
            assert (at & (side * scores[:, k] > 0)).mean() == pytest.approx(chance, abs=0.006)


def test_one_look_has_the_p_of_its_test():
    # two looks ask for more than one, and no more than twice as much
    one, two = Design('welch', (64,), 40), Design('welch', (32, 64), 40)
    score, ratio = np.array([1.5, 2.5, 3.5]), np.zeros(3)
    p = [sequential_p(score, ratio, design) for design in (one, two)]
    assert (p[0] < p[1]).all() and (p[1] < 2 * p[0]).all()


def test_p_falls_from_look_to_look():
    rng = np.random.default_rng(1)
    path = follow(rng.standard_normal((50, 40)), rng.standard_normal((50, 16)), STORED, 0.5)
    for p in path.p, path.tost_p:
        assert p.shape == (50, 8) and (np.diff(p, axis=1) <= 0).all()


# -----------------------------------------------------------------------------
# verdicts

def test_four_words():
    losses = study(0, good=(-0.02, 16), bad=(0.02, 16), same=(0.0, 64), small=(-0.003, 8))
    found = judge(losses, STORED)
    assert {arm: c.verdict for arm, c in found.comparisons.items()} == dict(
        good='better', bad='worse', same='equivalent', small="can't tell")
    good, small = found.comparisons['good'], found.comparisons['small']
    # decided early; later runs play no part
    assert good.decided_at < 16 and good.n == good.decided_at and good.next_look is None
    assert (small.decided_at, small.next_look, small.n) == (None, 10, 8)
    fewer = losses | {'good': dict(list(losses['good'].items())[:good.n])}
    assert to_dict(judge(fewer, STORED).comparisons['good']) == to_dict(good)
    json.dumps(to_dict(found), allow_nan=False)


def test_estimates_after_an_early_stop():
    # the same difference seen by one look, and by a fourth look that the study had to survive
    rng = np.random.default_rng(5)
    for c in judge(study(3, **{f'a{i}': (-0.006, 16) for i in range(8)}), STORED, plan=False).comparisons.values():
        assert c.interval[0] < c.mean < c.interval[1]
        if c.verdict == 'better':
            assert c.raw_mean - 1e-5 <= c.mean < 0      # towards 0, as the smallest estimates did not stop
        assert abs(c.shrunk) < abs(c.raw_mean) and c.p_better > 0.5
    base, far = rng.standard_normal(40), rng.standard_normal(4) - 9
    first = judge(dict(base=dict(enumerate(base)), a=dict(enumerate(far, 50))), STORED).comparisons['a']
    assert first.decided_at == 4 and first.mean == pytest.approx(first.raw_mean, abs=1e-6)


def test_runs_count_in_the_order_in_which_they_are_given():
    """That is the order of the plan; whichever numbers the seeds have says nothing."""
    losses = study(4, good=(-0.006, 12))
    other_numbers = {arm: dict(zip(range(9000, 8000, -1), runs.values())) for arm, runs in losses.items()}
    assert to_dict(judge(other_numbers, STORED).comparisons) == to_dict(judge(losses, STORED).comparisons)
    backwards = losses | dict(good=dict(reversed(losses['good'].items())))
    assert to_dict(judge(backwards, STORED).comparisons) != to_dict(judge(losses, STORED).comparisons)


def test_runs_that_diverged():
    losses = study(6, good=(-0.02, 16), lost=(0.0, 16), twice=(-0.02, 16))
    losses['lost'] = dict.fromkeys(losses['lost'], inf)
    losses['twice'] |= {100: inf, 103: inf}
    losses['base'][3] = inf
    found = judge(losses, STORED)
    assert {arm: c.verdict for arm, c in found.comparisons.items()} == dict(
        good='better', lost='worse', twice="can't tell")
    text = text_table(found)
    assert 'lost: worse; decided at 4 runs against 40 of the baseline; it diverged in 4 of 4 runs' in text
    assert 'the baseline diverged in 1 of 40 runs' in text
    assert 'it diverged in 2 of 16 runs; ' in text and 'not called better' in text


def test_pairs():
    rng = np.random.default_rng(7)
    base = dict(enumerate(1.5 + 0.005 * rng.standard_normal(16)))
    losses = dict(base=base, good={seed: x - 0.001 + 0.0005 * rng.standard_normal() for seed, x in base.items()})
    found = judge(losses, Design('paired', PAIRED_LOOKS), delta=0.0005)
    c = found.comparisons['good']
    assert (c.test, c.verdict, c.n) == ('paired t', 'better', c.decided_at) and c.rho > 0.9
    # against the store the same runs say nothing yet
    moved = dict(base=base, good={seed + 50: x for seed, x in losses['good'].items()})
    apart = judge(moved, Design('welch', LOOKS, 16), delta=0.002)
    assert apart.comparisons['good'].verdict == "can't tell"
    del losses['good'][2]
    assert judge(losses, Design('paired', PAIRED_LOOKS), delta=0.0005).comparisons['good'].verdict == 'better'


def test_before_the_first_look():
    c = judge(study(8, few=(0.0, 2), none=(0.0, 0)), STORED)
    assert [(x.verdict, x.next_look, x.holm_p) for x in c.comparisons.values()] == [("can't tell", 4, 1.0)] * 2
    assert 'too few runs: the first look is at 4' in text_table(c)


def test_a_study_goes_on_beyond_its_looks():
    found = judge(study(32, small=(-0.0035, 64)), STORED, delta=0.001).comparisons['small']
    assert found.verdict == 'better' and found.decided_at > 16
    assert judge(study(32, small=(-0.0035, 16)), STORED, delta=0.001).comparisons['small'].next_look == 20


def test_more_arms_ask_for_more():
    alone, among = (judge(study(10, **{f'a{i}': (-0.006, 8) for i in range(m)}), STORED, plan=False) for m in (1, 12))
    assert alone.comparisons['a0'].holm_p == alone.comparisons['a0'].p
    assert among.comparisons['a0'].holm_p > among.comparisons['a0'].p


def test_planned_runs_settle_it():
    losses, design = study(11, mine=(0.0, 8)), STORED
    c = judge(losses, design).comparisons['mine']
    assert c.verdict == "can't tell" and c.runs_to_settle > 8 and c.settle_chance >= 0.8
    assert f'about {c.runs_to_settle - 8} more runs would settle it, 4 times in 5' in \
        text_table(judge(losses, design))


def test_what_is_believed():
    rng = np.random.default_rng(12)
    base, var = 1.5 + 0.005 * rng.standard_normal((1, 40)), 1.5 + 0.005 * rng.standard_normal((1, 4)) - 0.006
    look = look_unpaired(base, var)
    points = stats.differences(look)
    wide, narrow = (stats.believe(points, scale, 0.005) for scale in (10.0, 1e-4))
    assert wide.mean == pytest.approx(look.difference[0], abs=2e-5)  # the prior says nothing
    assert abs(narrow.mean) < 0.1 * abs(wide.mean) and narrow.p_within > 0.9
    assert wide.weights.sum() == pytest.approx(1) and wide.interval[0] < wide.mean < wide.interval[1]


@pytest.mark.parametrize('change, message', [
    (dict(design=Design('welsh', LOOKS, 40)), 'test=welsh: must be welch or paired'),
    (dict(delta=0.0), 'delta=0.0: must be above 0'),
    (dict(alpha=0.6), 'alpha=0.6: must be above 0 and below 0.5'),
    (dict(baseline='none'), 'baseline=none: no such arm'),
])
def test_a_study_that_cannot_be_judged(change, message):
    with pytest.raises(Stop, match=message):
        judge(study(13, mine=(0.0, 4)), **dict(design=STORED) | change)
