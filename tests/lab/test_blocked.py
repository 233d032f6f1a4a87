"""Designs, and verdicts over texts, on losses whose truth is known. Rates: test_blocked_simulated.py."""
from collections import Counter
from itertools import product

import numpy as np
import pytest
import scipy
from numpy.testing import assert_allclose

from core.errors import Stop
from lab import blocked
from lab.blocked import Cell, design, judge, mean_over_texts
from lab.stats import holm

TEXTS = 'python', 'prose', 'poems', 'molecules', 'tunes'
RATES, SIZES = [0.5, 1, 2], [256, 384, 512]


# -----------------------------------------------------------------------------
# designs

@pytest.mark.parametrize('texts, counts, cells', [
    (5, (3, 3), 15), (5, (3, 3), 30), (4, (3, 3), 12), (3, (2, 3), 18), (4, (2, 4), 16), (6, (3, 3, 3), 18),
    (5, (4,), 20),
])
def test_each_text_sees_each_level_equally_often(texts, counts, cells):
    factors = {f: list(range(k)) for f, k in zip('abc', counts)}
    found = design(range(texts), factors, cells)
    assert len(found) == cells
    for text in range(texts):
        here = [cell.levels for cell in found if cell.text == text]
        assert len({tuple(levels.values()) for levels in here}) == len(here) == cells // texts
        for f, levels in factors.items():
            assert set(Counter(row[f] for row in here).values()) == {cells // texts // len(levels)}
    # pairs of levels differ by one cell at most where that can be
    pairs = Counter((cell.levels['a'], cell.levels.get('b')) for cell in found)
    assert max(pairs.values()) - min(pairs.values()) <= 1
    assert found == design(range(texts), factors, cells)


def test_slopes_of_a_latin_square_hardly_go_together():
    cells = design(TEXTS, {'rate': [-1, 0, 1], 'size': [-1, 0, 1]}, 15)
    x, y = np.array([list(cell.levels.values()) for cell in cells]).T
    # five squares cannot do better; one square five times has 1 or .5
    assert abs(np.corrcoef(x, y)[0, 1]) <= 0.21


def test_a_design_is_full_by_default():
    cells = design(TEXTS, {'learning_rate': RATES, 'n_embd': SIZES[:2]})
    assert [(cell.text, *cell.levels.values()) for cell in cells] == list(product(TEXTS, RATES, SIZES[:2]))
    assert design(TEXTS, {}) == [Cell(text) for text in TEXTS]


@pytest.mark.parametrize('cells', [-15, 0, 5, 14, 16, 20, 60])
def test_cells_that_cannot_be_balanced_are_refused(cells):
    with pytest.raises(Stop, match=f'^cells={cells}: 5 texts .* equally often with 15, 30, 45$'):
        design(TEXTS, {'learning_rate': RATES, 'n_embd': SIZES}, cells)


# -----------------------------------------------------------------------------
# the mean over texts

# 13 trials of the BCG vaccine (Colditz et al. 1994): with and without disease, treated and not
BCG = np.array([
    (4, 119, 11, 128), (6, 300, 29, 274), (3, 228, 11, 209), (62, 13536, 248, 12619), (33, 5036, 47, 5761),
    (180, 1361, 372, 1079), (8, 2537, 10, 619), (505, 87886, 499, 87892), (29, 7470, 45, 7232),
    (17, 1699, 65, 1600), (186, 50448, 141, 27197), (5, 2493, 3, 2338), (27, 16886, 29, 17825)], float)


def test_a_published_meta_analysis():
    treated, healthy, untreated, spared = BCG.T
    y, v = np.log(treated * spared / healthy / untreated), (1 / BCG).sum(1)
    over = mean_over_texts(y, np.diag(v))
    # tau^2 by Q-profile, as metafor gives it (van Houwelingen et al. 2002, on metafor-project.org)
    assert_allclose(over.tau_interval ** 2, [0.1302, 1.1812], atol=1e-4)

    # the rest by the formulas for independent errors, and a root finder
    def q(tau2):
        w = 1 / (v + tau2)
        return w @ (y - w @ y / w.sum()) ** 2

    tau2 = scipy.optimize.brentq(lambda t: q(t) - 12, 0, 10)
    w = 1 / (v + tau2)
    mean, se = w @ y / w.sum(), np.sqrt(q(tau2) / 12 / w.sum())
    assert_allclose([over.tau ** 2, over.mean, over.se], [tau2, mean, se], rtol=1e-9)
    assert_allclose(over.interval, scipy.stats.t(12, mean, se).interval(0.95), rtol=1e-9)


def test_with_equal_errors_the_mean_is_students():
    y = np.array([-0.021, -0.004, 0.003, -0.012, -0.017])
    t = scipy.stats.ttest_1samp(y, 0)
    for v in 0, 1e-5, 1:
        over = mean_over_texts(y, v * np.eye(5), delta=0.03)
        assert_allclose(over.p, t.pvalue, rtol=1e-9)
        assert_allclose(over.interval, t.confidence_interval(), rtol=1e-9)
        tost = scipy.stats.ttest_1samp(y, -0.03, alternative='greater')
        assert_allclose(over.tost_p, tost.pvalue, rtol=1e-9)
    # without errors a new text is one more of the same normal sample
    over = mean_over_texts(y, np.zeros((5, 5)))
    new = scipy.stats.t(4, y.mean(), y.std(ddof=1) * 1.2 ** 0.5)
    assert_allclose(over.prediction, new.interval(0.95), rtol=0.01)
    assert_allclose(over.p_new_better, new.cdf(0), rtol=0.01)
    assert_allclose(over.tau, y.std(ddof=1), rtol=1e-9)


def test_errors_that_go_together_and_leading_dimensions():
    rng = np.random.default_rng(0)
    y, a = rng.standard_normal((2, 3, 4)), rng.standard_normal((2, 3, 4, 6))
    squares = a @ np.swapaxes(a, -1, -2) / 20
    over = mean_over_texts(y, squares)
    one = mean_over_texts(y[1, 2], squares[1, 2])
    for name in 'mean', 'se', 'tau', 'p', 'p_new_better':
        assert_allclose(getattr(over, name)[1, 2], getattr(one, name))
    for name in 'interval', 'prediction', 'tau_interval':
        assert_allclose(getattr(over, name)[:, 1, 2], getattr(one, name))
    # generalised least squares
    w = np.linalg.inv(squares[1, 2] + one.tau ** 2 * np.eye(4))
    assert_allclose(one.mean, w.sum(0) @ y[1, 2] / w.sum())
    residual = y[1, 2] - one.mean
    assert_allclose(one.se ** 2, residual @ w @ residual / 3 / w.sum())


def test_texts_that_are_all_alike():
    over = mean_over_texts(np.full(4, -0.01), np.zeros((4, 4)))
    assert over.p < 1e-40 and over.tau < 1e-15 and over.p_new_better == 1
    assert mean_over_texts(np.zeros(4), np.zeros((4, 4))).p == 1


# -----------------------------------------------------------------------------
# verdicts

def fill(cells, loss, seeds=2, noise=0.002, arms=('base', 'arm'), seed=0):
    """Returns the cells with losses: loss(arm, cell), and normal noise."""
    rng = np.random.default_rng(seed)
    for cell in cells:
        cell.losses = {arm: (loss(arm, cell) + noise * rng.standard_normal(seeds)).tolist() for arm in arms}
    return cells


def shifts(**by):
    """Returns a loss that is that of the cell, and these differences of arms."""
    return lambda arm, cell: 1.5 + 0.1 * TEXTS.index(cell.text) + by.get(arm, 0.0)


LATIN = {'learning_rate': RATES, 'n_embd': SIZES}


def test_the_four_verdicts():
    cells = fill(design(TEXTS, LATIN, 15), shifts(good=-0.02, bad=0.02, same=0.0005, noisy=0),
                 arms=('base', 'good', 'bad', 'same', 'noisy'))
    rng = np.random.default_rng(1)
    for cell in cells:
        cell.losses['noisy'] = (np.array(cell.losses['noisy']) + 0.05 * rng.standard_normal(2)).tolist()
    over = judge(cells, 'base')
    assert {name: a.verdict for name, a in over.arms.items()} == dict(
        good='better', bad='worse', same='equivalent', noisy="can't tell")
    assert over.factors == LATIN and over.texts == list(TEXTS)
    good = over.arms['good']
    assert good.signs == dict(better=5, worse=0) and good.side == -1
    assert good.over.interval[0] < -0.02 < good.over.interval[1] and good.p_better > 0.99
    assert [a.holm_p for a in over.arms.values()] == holm([a.p for a in over.arms.values()])


def test_the_mean_is_that_at_the_centre_whatever_is_missing():
    def loss(arm, cell):
        rate, size = np.log2(cell.levels['learning_rate']), np.log2(cell.levels['n_embd'] / 256)
        effect = -0.02 + 0.01 * rate - 0.03 * (size - np.mean(np.log2([1, 1.5, 2])))
        return 2 - 0.3 * size + (arm == 'arm') * effect

    cells = fill(design(TEXTS, LATIN, 15), loss, noise=0)
    cells[0].losses['arm'], cells[7].losses['base'], cells[8].losses['arm'] = [], [], []
    a = judge(cells, 'base').arms['arm']
    assert a.over.mean == pytest.approx(-0.02)
    slopes = {factor: slope.slope for factor, slope in a.slopes.items()}
    assert slopes == pytest.approx({'learning_rate': 0.01, 'n_embd': -0.03})
    assert [c.difference is None for c in a.cells] == [i in (0, 7, 8) for i in range(15)]
    assert [t.cells for t in a.texts] == [2, 3, 1, 3, 3]
    # a text without any cell is left out
    for cell in cells[:3]:
        cell.losses['arm'] = []
    a = judge(cells, 'base').arms['arm']
    assert a.over.n_texts == 4 and a.over.mean == pytest.approx(-0.02)


def test_where_errors_come_from():
    two, one = (fill(design(TEXTS, LATIN, 15), shifts(), seeds, 0.004) for seeds in (2, 1))
    a = judge(two, 'base').arms['arm']
    # pooled over cells for each arm, and two runs in each mean
    variances = [np.mean([np.var(cell.losses[arm], ddof=1) for cell in two]) for arm in ('base', 'arm')]
    assert a.error == 'seeds' and a.cells[0].se == pytest.approx((sum(variances) / 2) ** 0.5)
    assert a.texts[0].se == pytest.approx(a.cells[0].se / 3 ** 0.5)
    a = judge(one, 'base').arms['arm']
    d = np.array([cell.losses['arm'][0] - cell.losses['base'][0] for cell in one])
    columns = np.array([[cell.text == text for text in TEXTS] + np.log2([*cell.levels.values()]).tolist()
                        for cell in one], float)
    residual = np.linalg.lstsq(columns, d, rcond=None)[1]
    assert a.error == 'residual' and a.cells[0].se == pytest.approx((residual[0] / (15 - 7)) ** 0.5)
    none = judge(fill(design(TEXTS, {}), shifts(), 1), 'base').arms['arm']
    assert none.error == 'none' and none.cells[0].se is None and none.over.df == 4


def test_one_text():
    cells = fill(design(TEXTS[:1], {'learning_rate': RATES}), shifts(arm=-0.02), 3)
    a = judge(cells, 'base').arms['arm']
    assert a.verdict == 'better' and a.over.n_texts == 1 and a.over.tau is None and a.over.prediction is None
    a = judge(fill(design(TEXTS[:1], {}), shifts(arm=-0.02), 1), 'base').arms['arm']
    assert a.verdict == "can't tell" and 'nothing tells the error' in a.refused['over']


def test_runs_that_diverge():
    cells = fill(design(TEXTS, LATIN, 15), shifts(arm=-0.02))
    cells[2].losses['arm'][0] = np.inf
    a = judge(cells, 'base').arms['arm']
    # its other runs are better, but more of them diverge
    assert a.verdict == "can't tell" and a.side == -1 and a.bad == dict(base=0, var=1)
    assert a.cells[2].n == 1 and a.cells[2].bad == dict(base=0, var=1)
    for cell in cells:
        cell.losses['arm'] = [np.inf, np.inf]
    a = judge(cells, 'base').arms['arm']
    assert a.verdict == 'worse' and a.over is None and 'no cell' in a.refused['over']


def test_a_study_is_judged_as_it_is_simulated():
    cells = fill(design(TEXTS, LATIN, 15), shifts(), noise=0.01)
    a = judge(cells, 'base').arms['arm']
    base, arm = (np.array([cell.losses[name] for cell in cells]) for name in ('base', 'arm'))
    _, x = blocked.factor_columns(cells)
    fit = blocked.fit_cells(*(np.stack((np.zeros_like(y), y)) for y in (base, arm)), np.arange(15) // 3, x)
    over = mean_over_texts(fit.text[1], fit.text_squares[1], fit.df[1])
    assert_allclose([a.over.mean, a.over.se, a.over.tau, *a.over.prediction],
                    [over.mean, over.se, over.tau, *over.prediction])


# -----------------------------------------------------------------------------
# each arm's own best rate

def bowl(optimum, depth=0.0, curvature=0.1):
    """Returns a loss with a minimum at `optimum` of each arm, in log2(rate)."""
    def loss(arm, cell):
        x = np.log2(cell.levels['learning_rate'])
        return 1.5 + curvature / 2 * (x - optimum[arm]) ** 2 + (arm == 'arm') * depth
    return loss


def test_own_best_rates_take_out_what_a_shared_rate_puts_in():
    cells = fill(design(TEXTS, {'learning_rate': RATES}), bowl(dict(base=-0.2, arm=0.4), -0.02), noise=1e-4)
    a = judge(cells, 'base', rate='learning_rate').arms['arm']
    # kappa / 2 (the mean over rates of (x - .4)^2 - (x + .2)^2)
    assert a.over.mean == pytest.approx(-0.02 + 0.05 * (0.16 - 0.04), abs=2e-4)
    best = a.own_best
    assert best.over.mean == pytest.approx(-0.02, abs=2e-4) and (best.by_parabola, best.by_grid) == (5, 0)
    rates = {o.arm: o.rate for o in best.optima}
    assert rates == pytest.approx(dict(arm=2 ** 0.4, base=2 ** -0.2), abs=0.02)
    # the parabola's values at .4 and -.2 are these sums of the means of two runs
    weights = dict(arm=np.array([-0.12, 0.84, 0.28]), base=np.array([0.12, 0.96, -0.08]))
    variances = {arm: np.mean([np.var(cell.losses[arm], ddof=1) for cell in cells]) for arm in weights}
    square = sum(variances[arm] * w @ w / 2 for arm, w in weights.items())
    assert best.texts[0].se == pytest.approx(square ** 0.5, rel=0.01)


@pytest.mark.parametrize('optimum, edge', [(1.4, 'highest'), (-2.0, 'lowest')])
def test_an_optimum_at_the_edge_is_said_and_nothing_is_extrapolated(optimum, edge):
    cells = design(TEXTS, {'learning_rate': RATES})
    fill(cells, bowl(dict(base=0.1, arm=optimum), -0.02), noise=1e-4)
    best = judge(cells, 'base', rate='learning_rate').arms['arm'].own_best
    assert {o.edge for o in best.optima if o.arm == 'arm'} == {edge}
    assert {(o.edge, o.rate) for o in best.optima if o.arm == 'base'} == {(None, 1.0)}
    assert (best.by_parabola, best.by_grid) == (0, 5)
    at = -1.0 if edge == 'lowest' else 1.0
    assert best.over.mean == pytest.approx(-0.02 + 0.05 * ((at - optimum) ** 2 - 0.01), abs=3e-4)


def test_a_rate_at_which_an_arm_diverges_is_not_its_best():
    cells = fill(design(TEXTS, {'learning_rate': RATES}), bowl(dict(base=0, arm=0.2)), noise=1e-4)
    for cell in cells:
        if cell.levels['learning_rate'] == 2:
            cell.losses['arm'][0] = np.inf
    best = judge(cells, 'base', rate='learning_rate').arms['arm'].own_best
    # no parabola goes through inf, and the best rate is no edge of the grid
    assert {(o.rate, o.edge) for o in best.optima} == {(1.0, None)} and best.by_grid == 5


@pytest.mark.parametrize('factors, cells, why', [
    ({'learning_rate': RATES[:2]}, None, 'needs three values of learning_rate; there are 2'),
    (LATIN, 15, 'a Latin square has none'),
])
def test_own_best_rates_are_refused(factors, cells, why):
    a = judge(fill(design(TEXTS, factors, cells), shifts()), 'base', rate='learning_rate').arms['arm']
    assert a.own_best is None and why in a.refused['own_best']


def test_minima_are_parabolas_through_the_best_rate_and_its_neighbours():
    x = np.array([-2.0, -1, 0, 1.5, 2])
    # far from the minimum the losses are no parabola
    losses = np.array([[9, 1.25, 0.05, 1.3, 50], [4, 1, 0, 2.25, 4]])
    at, weights = blocked.minima(x, losses)
    coefficients = np.polyfit(x[1:4], losses[0, 1:4], 2)
    lowest = -coefficients[1] / 2 / coefficients[0]
    assert_allclose(at, [lowest, 0], atol=1e-12)
    assert_allclose((weights * losses).sum(1), [np.polyval(coefficients, lowest), 0], atol=1e-12)


# -----------------------------------------------------------------------------
# speedups and lengths

def law(level, gain=1.0, floor=1.2, exponent=0.4):
    return floor + 3 * (level * gain) ** -exponent


def test_speedup_by_a_power_law():
    gains = dict(zip(TEXTS, (1.2, 1.3, 1.5, 1.4, 1.25)))
    cells = fill(design(TEXTS, {'n': [1, 2, 4, 8]}),
                 lambda arm, cell: law(cell.levels['n'], gains[cell.text] if arm == 'arm' else 1), noise=1e-5)
    s = judge(cells, 'base', sizes=['n']).arms['arm'].speedups['n']
    assert s.method == 'power law' and s.factors == pytest.approx(gains, rel=0.01)
    assert s.interval[0] < s.mean < s.interval[1] and s.mean == pytest.approx(1.32, abs=0.02)
    assert (s.floor['prose'], s.alpha['prose']) == pytest.approx((1.2, 0.4), abs=0.02)


@pytest.mark.parametrize('gain', [1.4, 1 / 1.4])
def test_speedup_by_interpolation_is_rather_too_near_1(gain):
    cells = fill(design(TEXTS, {'n': [1, 2, 4]}),
                 lambda arm, cell: law(cell.levels['n'], gain if arm == 'arm' else 1.0), noise=0)
    s = judge(cells, 'base', sizes=['n']).arms['arm'].speedups['n']
    assert s.method == 'interpolation' and abs(np.log(s.mean / gain)) < 0.06
    assert abs(np.log(s.mean)) <= abs(np.log(gain))


def test_speedup_beyond_what_was_trained_is_a_bound():
    cells = fill(design(TEXTS, {'n': [1, 2]}),
                 lambda arm, cell: law(cell.levels['n'], 3 if arm == 'arm' else 1), noise=0)
    s = judge(cells, 'base', sizes=['n']).arms['arm'].speedups['n']
    assert set(s.bounds.values()) == {'at least'} and set(s.factors.values()) == {2.0} and s.mean is None
    for cell in cells:
        cell.losses['base'], cell.losses['arm'] = cell.losses['arm'], cell.losses['base']
    s = judge(cells, 'base', sizes=['n']).arms['arm'].speedups['n']
    assert set(s.bounds.values()) == {'at most'} and set(s.factors.values()) == {0.5}


@pytest.mark.parametrize('factors, cells, loss, why', [
    ({'n': [1]}, None, shifts(), 'needs two values of n'),
    ({'n': [1, 2]}, None, lambda arm, cell: cell.levels['n'], 'does not fall from n=1 to 2'),
    ({'n': [1, 2, 3], 'learning_rate': RATES}, 15, shifts(), 'a Latin square has none'),
])
def test_speedups_are_refused(factors, cells, loss, why):
    a = judge(fill(design(TEXTS, factors, cells), loss), 'base', sizes=['n']).arms['arm']
    assert not a.speedups and why in a.refused['n']


def test_straight_lines_show_no_floor():
    assert blocked.fit_power_law([1, 2, 4, 8], np.array([4.0, 3, 2, 1])) is None
    found = blocked.fit_power_law([1, 2, 4, 8], law(np.array([1.0, 2, 4, 8])))
    assert found == pytest.approx((1.2, 0.4), rel=1e-3)


@pytest.mark.parametrize('last, early', [(0.02, True), (-0.004, False)])
def test_a_verdict_that_turns_with_length_is_early(last, early):
    effects = {500: -0.14, 1000: -0.03, 2000: last}

    def loss(arm, cell):
        length = cell.levels['max_iters']
        return 2 - length / 1e4 + (arm == 'arm') * effects[length]

    cells = fill(design(TEXTS, {'max_iters': [2000, 500, 1000]}), loss)
    a = judge(cells, 'base', length='max_iters').arms['arm']
    # the verdict is about the longest
    assert a.over.mean == pytest.approx(last, abs=0.003) and len(a.cells) == 5
    assert [at.length for at in a.lengths] == [500, 1000, 2000]
    assert [at.over.mean for at in a.lengths] == pytest.approx(list(effects.values()), abs=0.003)
    assert (a.early is not None) == early
    assert a.early is None or a.early.length == 500


def test_noise_is_not_early():
    cells = fill(design(TEXTS, {'max_iters': [500, 2000]}), shifts(), noise=0.01)
    assert judge(cells, 'base', length='max_iters').arms['arm'].early is None


# -----------------------------------------------------------------------------
# what makes no sense

@pytest.mark.parametrize('change, settings, message', [
    (lambda cells: cells[0].losses.update(arm=[np.nan]), {}, 'python, x=1: arm: loss=nan: must be a number'),
    (lambda cells: cells.append(cells[0]), {}, 'python, x=1: there are two such cells'),
    (lambda cells: cells.append(Cell('prose', {'y': 2})), {}, 'prose, y=2: must have the factors x'),
    (lambda cells: None, dict(baseline='bass'), 'arms: base, arm: must be the baseline, bass, and others'),
    (lambda cells: None, dict(rate='lr'), 'lr: no such factor; there are x'),
    (lambda cells: None, dict(delta=0), 'delta=0: must be above 0'),
])
def test_cells_that_make_no_sense(change, settings, message):
    cells = fill(design(TEXTS[:2], {'x': [1, 2]}), shifts())
    change(cells)
    with pytest.raises(Stop, match=message):
        judge(cells, **dict(baseline='base') | settings)


def test_levels_that_are_no_numbers_have_no_slope():
    effects = {'layer': 0.01, 'rms': 0.02, 'none': 0.06}
    cells = fill(design(TEXTS, {'norm': list(effects), 'dropout': [0.0, 0.1]}),
                 lambda arm, cell: 1 + (arm == 'arm') * effects[cell.levels['norm']])
    cells[0].losses['arm'] = []
    a = judge(cells, 'base').arms['arm']
    assert a.over.mean == pytest.approx(0.03, abs=0.002) and a.slopes == {}
