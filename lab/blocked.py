"""Verdicts over texts, learning rates and sizes: cells are blocks, with runs of all arms in each.

A cell is a text with levels of other factors. The difference of an arm in cell c is modelled as

    d_c = mu + sum_f slope_f (log2 level_cf - centre_f) + u_text + e_c,   u_text ~ N(0, tau^2)

with the texts as a sample of texts, and the factors as fixed. The verdict is about mu, the mean over texts at
the centre of the design. Differences are arm - baseline, in the losses' unit, nats per token; lower losses
are better.

Arrays may have leading dimensions, (...): studies, so that what is tested by simulation is what judges. C:
cells, D: texts, n: runs in a cell, k: columns of the factors.
"""
from dataclasses import dataclass, field
from itertools import combinations, product
from math import inf, lcm, log2, prod

import numpy as np

try:
    # scipy imports scipy.stats at its first use
    import scipy
# ab.py says what to install
except ImportError:
    scipy = None

from core.errors import Stop
from lab.look import LOST, compare_lost
from lab.stats import believe, has_more_bad, holm, validate_levels, word

POINTS = 2000           # of a distribution of differences
EXPONENTS = 0.02, 5.0   # of a power law of losses: scaling laws have .05 to .5
NODES = 64              # of the distribution of tau
NEWTON = 12             # steps: errors that differ 1000 times need 8
HALVINGS = 30           # of a bisection: 9 digits
LARGE_DF = 1e9          # for inf, which scipy's F does not take
TINY = 1e-100           # a variance that keeps matrices of zeros regular
NO_GROUPS = 'needs runs of both arms at all values of {} with all else equal; a Latin square has none'


@dataclass
class Cell:
    """One block of the design; before it is trained, losses are empty."""
    text: str
    levels: dict = field(default_factory=dict)  # {factor: level}: {'learning_rate': 0.5, 'n_embd': 256}
    # {arm: [loss of each run]}, inf: diverged; a run that failed is left out
    losses: dict = field(default_factory=dict)


@dataclass
class CellDifference:
    """An arm in one cell. None: a run of either arm is missing, or all diverged."""
    text: str
    levels: dict
    n: int                          # runs of the arm that count
    n_base: int                     # and of the baseline
    bad: dict                       # base, var: runs that diverged
    difference: float | None = None # of the means
    se: float | None = None         # None: nothing to estimate it from


@dataclass
class TextDifference:
    """An arm on one text, at the centre of the other factors."""
    text: str
    cells: int                      # that it rests on
    difference: float
    se: float | None                # of the runs; None: nothing to estimate it from


@dataclass
class Slope:
    """How much the difference changes with each doubling of a factor."""
    slope: float
    interval: list
    p: float


@dataclass
class MeanOverTexts:
    """The mean of an arm's differences over texts; with one text, on that text."""
    n_texts: int
    mean: float
    se: float                       # Hartung and Knapp's
    df: int                         # of its t: texts - 1; with one text those of the error
    interval: list                  # level 1 - alpha
    p: float                        # two-sided, of no difference
    tost_p: float                   # of the two one-sided tests for equivalence
    # None with one text
    tau: float | None = None        # sd between texts, beyond the runs' noise where that is known
    tau_interval: list | None = None
    prediction: list | None = None  # of the difference on a new text
    p_new_better: float | None = None   # chance that a new text's difference is below 0


@dataclass
class Optimum:
    """An arm's best learning rate on one text, at fixed levels of the other factors."""
    arm: str
    text: str
    levels: dict                    # without the learning rate
    rate: float                     # 2^x at the minimum of the parabola, or the best rate of the grid
    loss: float                     # there
    edge: str | None = None         # lowest, highest: the best rate is the grid's edge, a better one may be beyond


@dataclass
class OwnBest:
    """The arm at its own best learning rate less the baseline at its own best."""
    over: MeanOverTexts | None      # None: one text, and one run in a cell
    texts: list[TextDifference]
    optima: list[Optimum]           # the arm's and the baseline's
    by_parabola: int                # pairs of optima that are minima of parabolas
    by_grid: int                    # pairs that are best rates of the grid, as one of the two is at its edge


@dataclass
class Speedup:
    """Baseline's size or length over what the arm needs for the same loss; below 1: the arm needs more."""
    factor: str
    method: str                     # power law, or interpolation
    factors: dict                   # {text: speedup}
    bounds: dict                    # {text: 'at least' or 'at most'}, where the curve does not reach so far
    mean: float | None              # geometric, over the texts without bounds
    interval: list | None           # over texts; None with fewer than 3
    floor: dict | None = None       # power law: {text: loss that no size or length gets below}
    alpha: dict | None = None       # power law: {text: exponent}


@dataclass
class AtLength:
    """The mean over texts at one length of training."""
    length: float
    over: MeanOverTexts
    holm_p: float                   # for all lengths
    change: float | None = None     # mean of (difference at the longest - difference here)
    change_p: float | None = None   # two-sided, after Holm's correction


@dataclass
class ArmOver:
    """The verdict on one arm."""
    over: MeanOverTexts | None      # None: no text has a cell with runs of both
    cells: list[CellDifference]
    texts: list[TextDifference]
    slopes: dict[str, Slope]        # {factor: slope}, of factors whose levels are numbers above 0
    error: str                      # what the cells' errors come from: seeds, residual, or none
    bad: dict                       # base, var: runs that diverged
    n_base: int                     # runs of the baseline, with those that diverged
    n: int                          # of the arm
    p: float | None = None          # of over.p and the numbers of diverged runs
    side: int = 0                   # what p speaks for: 1 worse, -1 better
    shrunk: float | None = None     # the expected mean, as most ideas do little
    shrunk_interval: list | None = None
    p_better: float | None = None   # chance that the true mean is below 0
    p_within: float | None = None   # chance that it is within +-delta
    holm_p: float | None = None     # p after Holm's correction for all arms
    tost_holm_p: float | None = None
    verdict: str = ''               # better, worse, equivalent or can't tell
    signs: dict = field(default_factory=dict)   # better, worse: numbers of texts whose difference lies there
    own_best: OwnBest | None = None
    speedups: dict[str, Speedup] = field(default_factory=dict)  # {size or length factor: speedup}
    lengths: list[AtLength] = field(default_factory=list)       # from the shortest to the longest
    early: AtLength | None = None   # a shorter length that is better or worse, which the longest turns round
    refused: dict = field(default_factory=dict) # {over, own_best or a factor: why it cannot be estimated}


@dataclass
class Over:
    """Arms compared with one baseline over texts and other factors."""
    baseline: str
    texts: list
    factors: dict                   # {factor: levels}
    delta: float
    alpha: float
    arms: dict[str, ArmOver]


# -----------------------------------------------------------------------------
# the design

def design(texts, factors, cells=None):
    """Returns the Cells of a design, without losses: in the order of texts, each with levels of all factors.

    factors: {factor: levels}. cells: by default all combinations; fewer form a Latin square or its like: each
    text sees each level of each factor equally often, and pairs of levels come as evenly as they can.
    Possible are multiples of (number of texts) x (least common multiple of the factors' numbers of levels);
    Stop for others. The same arguments give the same design.

    Cells fall into lines: (0, 0), (1, 1), (2, 2), (0, 1), (1, 2), (2, 0) and so on, counted round, in each of
    which each level is equally often. A text gets whole lines, the next one always that which keeps pairs of
    levels even and then slopes of different factors uncorrelated.
    """
    counts = [len(levels) for levels in factors.values()]
    step, most = len(texts) * lcm(*counts), len(texts) * prod(counts)
    cells = most if cells is None else cells
    if cells <= 0 or cells > most or cells % step:
        allowed = ', '.join(map(str, range(step, most + 1, step)))
        names = ' and '.join(factors) or 'nothing'
        must = f'{len(texts)} texts see each level of {names} equally often with {allowed}'
        raise Stop(f'cells={cells}: {must}')
    # all directions in which lines can run; the first factor always counts up
    directions = [(1, *signs) for signs in product((1, -1), repeat=len(counts) - 1)] if counts else [()]
    taken, per_text = [], cells // step
    for _ in texts:
        options = [pick_lines(counts, direction, per_text, taken) for direction in directions]
        taken.append(min(options, key=lambda rows: imbalance(taken + [rows], counts)))
    return [Cell(text, {f: levels[i] for (f, levels), i in zip(factors.items(), row)})
            for text, rows in zip(texts, taken) for row in sorted(rows)]


def pick_lines(counts, direction, number, taken):
    """Returns the cells, tuples of levels, of lines in one direction that best suit what other texts took."""
    lines = dict.fromkeys(tuple(sorted(tuple((a + s * i) % k for a, s, k in zip(start, direction, counts))
                                       for i in range(lcm(*counts))))
                          for start in product(*map(range, counts)))
    rows = []
    for _ in range(number):
        best = min(lines, key=lambda line: imbalance([*taken, rows + list(line)], counts))
        del lines[best]
        rows += best
    return rows


def imbalance(taken, counts):
    """Returns how unevenly pairs of levels occur, then how far factors' slopes go together; less is better."""
    rows = np.array([row for rows in taken for row in rows]) # (C, factors)
    uneven, correlated = 0, 0.0
    for i, j in combinations(range(len(counts)), 2):
        uneven += int((np.bincount(rows[:, i] * counts[j] + rows[:, j]) ** 2).sum())
        x, y = rows[:, i] - (counts[i] - 1) / 2, rows[:, j] - (counts[j] - 1) / 2
        correlated += abs(float(x @ y))
    return uneven, correlated


# -----------------------------------------------------------------------------
# from losses to a difference for each text

@dataclass
class Fit:
    """Differences of texts and slopes of factors, by least squares. D: texts, k: columns."""
    difference: np.ndarray      # (..., C) of each cell; NaN: none
    square: np.ndarray          # (..., C) its squared standard error
    by_seeds: np.ndarray        # (...) whether that is from runs of one cell; else from the residual
    df: np.ndarray              # (...) of that error; 0: nothing to estimate it from
    sd_base: np.ndarray         # (...) of the baseline's runs
    text: np.ndarray            # (..., D) of each text, at the centre
    text_squares: np.ndarray    # (..., D, D) their error's covariance
    slopes: np.ndarray          # (..., k)
    slope_se: np.ndarray        # (..., k) by how slopes differ between texts; by the errors if that is more


def fit_cells(base, arm, text, x):
    """Returns the Fit of losses base, arm, (..., C, n): NaN where there is no run, or none that counts.

    text: (C,) numbers of texts, from 0. x: (C, k) columns of the factors, 0 at their centre.
    """
    (mean_base, n_base, s2_base, df_base), (mean_arm, n_arm, s2_arm, df_arm) = map(pooled, (base, arm))
    there = (n_base > 0) & (n_arm > 0)
    n_base, n_arm = np.maximum(n_base, 1), np.maximum(n_arm, 1)
    of_runs = s2_base[..., None] / n_base + s2_arm[..., None] / n_arm
    d = np.where(there, mean_arm - mean_base, np.nan)
    fit = fit_differences(d, 1 / n_base + 1 / n_arm, of_runs, np.minimum(df_base, df_arm), text, x)
    fit.sd_base = np.where(df_base > 0, np.sqrt(s2_base), fit.sd_base)
    return fit


def fit_differences(d, per_run, of_runs, df_seeds, text, x):
    """Returns the Fit of differences d (..., C), NaN where there is none.

    per_run: (..., C) their squared standard errors, were a run's variance 1. of_runs: (..., C) those errors
    by the variances that runs of one cell show, with df_seeds (...) degrees of freedom. They count if the
    residual has no more; else what the residual says. text, x: see fit_cells. A text with no cell at all gets
    the difference 0.
    """
    there = np.isfinite(d)
    weight, y = np.where(there, 1 / per_run, 0.0), np.where(there, d, 0.0)
    D = text.max() + 1
    # (C, D + k)
    columns = np.concatenate((text[:, None] == np.arange(D), x), 1).astype(float)
    weighted = np.swapaxes(columns * weight[..., None], -1, -2) # (..., D + k, C)
    normal = weighted @ columns
    # a slope that missing cells leave open is 0
    solve = np.linalg.pinv(normal, hermitian=True) @ weighted # (..., D + k, C)
    coefficients = (solve @ y[..., None])[..., 0]
    residual = np.where(there, y - coefficients @ columns.T, 0.0)
    df = there.sum(-1) - np.linalg.matrix_rank(normal, hermitian=True)
    # of a run
    variance = np.divide((weight * residual ** 2).sum(-1), df, out=np.zeros(df.shape), where=df > 0)
    by_seeds = (df_seeds >= df) & (df_seeds > 0)
    square = np.where(by_seeds[..., None], of_runs, variance[..., None] * per_run)
    covariance = (solve * square[..., None, :]) @ np.swapaxes(solve, -1, -2)
    # (..., k, D): each text's part of a slope's error
    parts = (solve[..., D:, :] * residual[..., None, :]) @ columns[:, :D]
    between = D / max(D - 1, 1) * (parts ** 2).sum(-1)
    within = np.diagonal(covariance, axis1=-2, axis2=-1)[..., D:]
    return Fit(d, square, by_seeds, np.where(by_seeds, df_seeds, df), np.sqrt(variance),
               coefficients[..., :D], covariance[..., :D, :D],
               coefficients[..., D:], np.sqrt(np.maximum(between, within)))


def pooled(losses):
    """Returns each cell's mean and number of runs, (..., C), and runs' pooled variance and its df, (...)."""
    there = np.isfinite(losses)
    n = there.sum(-1)
    mean = np.where(there, losses, 0.0).sum(-1) / np.maximum(n, 1)
    squares = (np.where(there, losses - mean[..., None], 0.0) ** 2).sum((-1, -2))
    df = np.maximum(n - 1, 0).sum(-1)
    return mean, n, np.divide(squares, df, out=np.zeros(df.shape), where=df > 0), df


# -----------------------------------------------------------------------------
# from texts to their mean

def mean_over_texts(y, squares, df=inf, delta=0.005, alpha=0.05):
    """Returns MeanOverTexts, its fields arrays (...), of differences y (..., D), D >= 2.

    squares: (..., D, D) covariance of their errors, estimated with df degrees of freedom. Zeros where nothing
    is known of them: tau then counts the runs' noise too.

    The mean and tau are hartung_knapp's. tau's interval has the values for which the sum of squares there is
    no unlikely one (Viechtbauer 2007), by F rather than chi square, as errors are estimates. All values, each
    as likely as its sum says, make the distribution of a new text's difference (Nagashima et al. 2019). The
    usual interval, mean +- t_{D - 2} sqrt(tau^2 + se^2) (Higgins et al. 2009), held 86 to 98 % of new texts
    in simulations, and fewer with D - 1: the one tau of few texts is often too near 0.
    """
    mean, se, tau2, weights, q = hartung_knapp(y, squares)
    D = y.shape[-1]
    over = t_mean(mean, se, D - 1, delta, alpha)
    tau2s = tau2_quantiles(q, df, (np.arange(NODES) + 0.5) / NODES)
    low, high = np.moveaxis(tau2_quantiles(q, df, np.array([alpha / 2, 1 - alpha / 2])), -1, 0)
    # of a new text: the errors' part of the mean's variance, that of tau, and the text's own
    of_errors = (weights * (squares @ weights[..., None])[..., 0]).sum(-1)[..., None]
    sds = np.sqrt(of_errors + (1 + (weights ** 2).sum(-1)[..., None]) * tau2s)
    half = half_width(sds, alpha)
    over.n_texts, over.tau, over.tau_interval = D, np.sqrt(tau2), np.sqrt([low, high])
    over.prediction = np.stack((mean - half, mean + half))
    over.p_new_better = normal_cdf(-mean[..., None], sds).mean(-1)
    return over


def hartung_knapp(y, squares):
    """Returns the mean of y (..., D), its standard error, tau^2, weights (..., D), and Heterogeneity.

    tau is Paule and Mandel's: the value for which the weighted sum of squares around the mean is D - 1. The
    standard error is the usual one times the square root of that sum over D - 1 (Hartung and Knapp 2001;
    Sidik and Jonkman 2002); if all errors are equal, it is Student's, of the D differences. Where errors
    differ much, that sum is not let below D - 1 by some (Roever et al. 2015): here intervals hold the mean in
    94.4 % or more without, and it would make errors of 5 % less than 2 % where tau is 0.
    """
    D = y.shape[-1]
    q = heterogeneity(y, squares)
    tau2 = q.solve(np.array([D - 1])) # (..., 1)
    weights = np.linalg.solve(squares + (tau2[..., None] + TINY) * np.eye(D), np.ones((D, 1)))[..., 0]
    total = weights.sum(-1)
    weights = weights / total[..., None]
    return (weights * y).sum(-1), np.sqrt(q(tau2)[..., 0] / (D - 1) / total), tau2[..., 0], weights, q


def tau2_quantiles(q, df, ps):
    """Returns quantiles (..., K), at ps (K,), of tau^2's confidence distribution; df (...): of the errors."""
    D = q.squares.shape[-1] + 1
    # a large tau^2 makes the sum small
    return q.solve((D - 1) * scipy.special.fdtri(D - 1, np.minimum(df, LARGE_DF)[..., None], 1 - ps))


def half_width(sds, alpha):
    """Returns the h, (...), that mixed normal numbers, sds (..., NODES), exceed with chance alpha."""
    low, high = np.zeros(sds.shape[:-1]), -scipy.special.ndtri(alpha / 2) * sds.max(-1)
    for _ in range(HALVINGS):
        h = (low + high) / 2
        more = 2 * normal_cdf(-h[..., None], sds).mean(-1) > alpha
        low, high = np.where(more, h, low), np.where(more, high, h)
    return high


def t_mean(mean, se, df, delta, alpha):
    """Returns MeanOverTexts of one text, with what follows from a mean, its standard error and a t, (...)."""
    half = scipy.stats.t.ppf(1 - alpha / 2, df) * se
    tost_p = np.maximum(t_cdf(-delta - mean, se, df), t_cdf(mean - delta, se, df))
    interval = np.stack((mean - half, mean + half))
    return MeanOverTexts(1, mean, se, df, interval, 2 * t_cdf(-abs(mean), se, df), tost_p)


def t_cdf(x, scale, df):
    """Returns P(T < x / scale); with scale 0 that is 0, 1/2 or 1."""
    return scipy.special.stdtr(df, over_scale(x, scale))


def normal_cdf(x, scale):
    """Returns P(Z < x / scale); with scale 0 that is 0, 1/2 or 1."""
    return scipy.special.ndtr(over_scale(x, scale))


def over_scale(x, scale):
    x, scale = np.broadcast_arrays(x, scale)
    certain = np.where(x > 0, inf, np.where(x < 0, -inf, 0.0))
    return np.divide(x, scale, out=certain, where=scale > 0)


@dataclass
class Heterogeneity:
    """The weighted sum of squares of D differences around their weighted mean, as a function of tau^2.

    That is sum_i z_i^2 / (error_i + tau^2), with z the principal components of D - 1 contrasts.
    """
    squares: np.ndarray     # (..., D - 1) z^2
    errors: np.ndarray      # (..., D - 1) variances of z

    def __call__(self, tau2):
        """Returns the sums, (..., K), at tau2, (..., K)."""
        return self.powers(tau2)[0]

    def powers(self, tau2):
        """Returns the sums of squares / variance and of squares / variance^2, (..., K) each."""
        inverse = 1 / (self.errors[..., None, :] + tau2[..., None] + TINY) # (..., K, D - 1)
        first = self.squares[..., None, :] * inverse
        return first.sum(-1), (first * inverse).sum(-1)

    def solve(self, sums):
        """Returns the tau^2, (..., K), with these sums, (..., K) or (K,); 0 where even that gives less.

        One over the sum is a concave function of tau^2, and linear if all errors are equal: Newton's steps
        from 0 never go too far.
        """
        tau2 = np.zeros(np.broadcast_shapes(self.squares.shape[:-1] + (1,), sums.shape))
        for _ in range(NEWTON):
            first, second = self.powers(tau2)
            # differences that are all equal have no tau
            step = np.divide((first / sums - 1) * first, second, out=np.zeros_like(first), where=second > 0)
            tau2 = np.maximum(tau2 + step, 0.0)
        return tau2


def heterogeneity(y, squares):
    """Returns the Heterogeneity of differences y (..., D); squares: their errors' covariance, (..., D, D)."""
    contrasts = scipy.linalg.helmert(y.shape[-1]) # (D - 1, D), orthonormal
    errors, vectors = np.linalg.eigh(contrasts @ squares @ contrasts.T)
    z = (np.swapaxes(vectors, -1, -2) @ (contrasts @ y[..., None]))[..., 0]
    return Heterogeneity(z ** 2, errors.clip(min=0))


# -----------------------------------------------------------------------------
# each arm at its own best learning rate

def own_best(cells, baseline, arm, rate, delta, alpha):
    """Returns the OwnBest of cells that differ in the rate alone, or a sentence on why there is none.

    Near its minimum the loss is a parabola in log2(rate). It is drawn through the best rate of the grid and
    the two beside it, because far above the best rate losses rise faster than below. Where the best rate of
    either arm is an edge of the grid, both arms get their best rate of the grid instead: nothing is
    extrapolated.
    """
    rates = levels_of(cells)[rate]
    if len(rates) < 3:
        return f'needs three values of {rate}; there are {len(rates)}'
    # an arm that always diverges has no best rate
    groups = [row for row in group_cells(cells, rate, (arm, baseline))
              if all(min(mean_loss(cell, name) for cell in row) < inf for name in (arm, baseline))]
    if not groups:
        return NO_GROUPS.format(rate)
    # (groups, 2, rates): the arm, the baseline
    both = arm, baseline
    losses = np.array([[[mean_loss(cell, name) for cell in row] for name in both] for row in groups])
    runs = np.array([[[len(cell.losses[name]) for cell in row] for name in both] for row in groups])
    at, weights = minima(np.log2(rates), losses)
    # (groups, 2); inf has no weight
    values = (weights * np.where(weights == 0, 0.0, losses)).sum(-1)
    edges = {0: 'lowest', len(rates) - 1: 'highest'}
    optima = [Optimum(name, row[0].text, without(row[0].levels, rate), float(2 ** at[i, j]),
                      float(values[i, j]), edges.get(int(losses[i, j].argmin())))
              for i, row in enumerate(groups) for j, name in enumerate(both)]
    # the slope at a minimum is 0, so where it lies adds nothing to its loss's error
    per_run = (weights ** 2 / runs).sum(-1) # (groups, 2)
    (*_, s2_arm, df_arm), (*_, s2_base, df_base) = (pooled(runs_of(cells, name)) for name in both)
    texts = list(dict.fromkeys(row[0].text for row in groups))
    number = np.array([texts.index(row[0].text) for row in groups])
    _, x = factor_columns([Cell(row[0].text, without(row[0].levels, rate)) for row in groups])
    fit = fit_differences(values[:, 0] - values[:, 1], per_run.sum(1), per_run @ [s2_arm, s2_base],
                          np.minimum(df_arm, df_base), number, x)
    by_parabola = int((np.count_nonzero(weights, axis=-1) > 1).all(1).sum())
    return OwnBest(summarize(fit, delta, alpha), text_differences(fit, texts, number), optima,
                   by_parabola, len(groups) - by_parabola)


def minima(x, losses):
    """Returns where losses (..., 2, R) of two arms at x (R,) are least, (..., 2), and weights (..., 2, R).

    The weights' sum of losses is the least loss. It is that of a parabola through the smallest loss and its
    neighbours where that exists for both arms; else of the smallest loss.
    """
    best = losses.argmin(-1)[..., None] # (..., 2, 1)
    at = best.clip(1, len(x) - 2) + [-1, 0, 1] # (..., 2, 3)
    y, nodes = np.take_along_axis(losses, at, -1), x[at]
    inside = (best[..., 0] == at[..., 1]) & np.isfinite(y).all(-1)
    x0, x1, x2 = np.moveaxis(nodes, -1, 0)
    y0, y1, y2 = np.moveaxis(np.where(np.isfinite(y), y, 0.0), -1, 0)
    # slopes of the two chords; between their middles the parabola's slope goes through 0
    left, right = (y1 - y0) / (x1 - x0), (y2 - y1) / (x2 - x1)
    inside &= right > left
    share = np.divide(-left, right - left, out=np.zeros_like(left), where=inside)
    vertex = (x0 + x1) / 2 + share * (x2 - x0) / 2
    lagrange = np.stack([(vertex - x1) * (vertex - x2) / ((x0 - x1) * (x0 - x2)),
                         (vertex - x0) * (vertex - x2) / ((x1 - x0) * (x1 - x2)),
                         (vertex - x0) * (vertex - x1) / ((x2 - x0) * (x2 - x1))], -1)
    both = inside.all(-1)[..., None]
    weights = np.zeros_like(losses)
    np.put_along_axis(weights, at, lagrange, -1)
    grid = (np.arange(len(x)) == best).astype(float)
    return np.where(both, vertex, x[best[..., 0]]), np.where(both[..., None], weights, grid)


# -----------------------------------------------------------------------------
# what a difference is worth in size or length

def speedup(cells, baseline, arm, factor, alpha):
    """Returns the Speedup in a factor, from losses at its largest level, or a sentence on why there is none.

    With four levels or more: ((L_worse - floor) / (L_better - floor))^(1 / exponent), with the floor and the
    exponent of a power law through the baseline's losses; three levels leave nothing to tell its error. With
    fewer, or where a text's losses show no floor: the better arm's losses, linear in log2(level) between
    levels, tell where it has the worse one's last loss. As losses flatten, this is rather too near 1.
    """
    levels = levels_of(cells)[factor]
    if len(levels) < 2:
        return f'needs two values of {factor}; there is 1'
    curves, both = {}, (baseline, arm)
    for row in group_cells(cells, factor, both):
        curves.setdefault(row[0].text, []).append([[mean_loss(cell, name) for cell in row] for name in both])
    # (2, levels) for each text: the baseline, the arm
    curves = {text: np.mean(rows, 0) for text, rows in curves.items()}
    curves = {text: rows for text, rows in curves.items() if np.isfinite(rows).all()}
    if not curves:
        return NO_GROUPS.format(factor)
    falling = {text: rows for text, rows in curves.items() if rows[0, -1] < rows[0, -2]}
    if not falling:
        return f"the baseline's loss does not fall from {factor}={levels[-2]:g} to {levels[-1]:g}"
    laws = {text: fit_power_law(levels, rows[0]) for text, rows in falling.items()} if len(levels) > 3 else {}
    if laws and all(law and law[0] < falling[text][:, -1].min() for text, law in laws.items()):
        found = {text: (by_power_law(*rows[:, -1], *laws[text]), None) for text, rows in falling.items()}
        floors, exponents = ({text: law[i] for text, law in laws.items()} for i in (0, 1))
        method = 'power law'
    else:
        found = {text: by_interpolation(np.log2(levels), *rows) for text, rows in falling.items()}
        method, floors, exponents = 'interpolation', None, None
    bounds = {text: bound for text, (_, bound) in found.items() if bound}
    mean = interval = None
    if not bounds:
        logs = np.array([log for log, _ in found.values()])
        mean = float(2 ** logs.mean())
        if len(logs) > 2:
            over = mean_over_texts(logs, np.zeros((len(logs), len(logs))), alpha=alpha)
            interval = (2 ** over.interval).tolist()
    factors = {text: float(2 ** log) for text, (log, _) in found.items()}
    return Speedup(factor, method, factors, bounds, mean, interval, floors, exponents)


def fit_power_law(levels, losses):
    """Returns floor and exponent of losses = floor + scale level^-exponent, (L,); None if there is no floor."""
    x = np.log(levels) - np.log(levels).mean()

    def fit(log_exponent):
        columns = np.stack((np.ones_like(x), np.exp(-np.exp(log_exponent) * x)), 1)
        coefficients = np.linalg.lstsq(columns, losses, rcond=None)[0]
        return coefficients, ((losses - columns @ coefficients) ** 2).sum()

    low, high = np.log(EXPONENTS)
    best = scipy.optimize.minimize_scalar(lambda e: fit(e)[1], bounds=(low, high), method='bounded').x
    (floor, scale), _ = fit(best)
    # an exponent at an end of its range is a straight line, or a step
    if scale <= 0 or not low + 0.05 < best < high - 0.05:
        return None
    return float(floor), float(np.exp(best))


def by_power_law(base, arm, floor, exponent):
    """Returns log2 of the speedup of an arm's loss over the baseline's; above 0 where the arm's is lower."""
    return log2((base - floor) / (arm - floor)) / exponent


def by_interpolation(x, base, arm):
    """Returns log2 of the speedup between losses (L,) at x = log2(level).

    And None; or 'at least' or 'at most' where the better arm has that loss at the lowest level already.
    """
    better, target = (arm, base[-1]) if arm[-1] < base[-1] else (base, arm[-1])
    sign = 1 if arm[-1] < base[-1] else -1
    above = np.flatnonzero(better[:-1] >= target)
    if not len(above):
        return sign * (x[-1] - x[0]), 'at least' if sign > 0 else 'at most'
    i = above[-1]
    share = (better[i] - target) / (better[i] - better[i + 1]) if better[i] > better[i + 1] else 1.0
    return sign * (x[-1] - x[i] - share * (x[i + 1] - x[i])), None


# -----------------------------------------------------------------------------
# at several lengths of training

def judge_lengths(cells, baseline, arm, length, delta, alpha):
    """Returns an AtLength for each length, from the shortest, at which runs of both arms give a mean."""
    found, differences = [], []
    for level in levels_of(cells)[length]:
        here = [cell for cell in cells if cell.levels[length] == level]
        over, _, texts, _ = judge_cells(here, baseline, arm, delta, alpha)
        if over:
            found.append(AtLength(level, over, 1.0))
            differences.append({text.text: text.difference for text in texts})
    for at, holm_p in zip(found, holm([at.over.p for at in found])):
        at.holm_p = holm_p
    for at, here in zip(found[:-1], differences):
        changes = np.array([last - here[text] for text, last in differences[-1].items() if text in here])
        if len(changes) > 1:
            change = mean_over_texts(changes, np.zeros((len(changes), len(changes))), alpha=alpha)
            at.change, at.change_p = float(change.mean), float(change.p)
    changed = [at for at in found if at.change_p is not None]
    for at, p in zip(changed, holm([at.change_p for at in changed])):
        at.change_p = p
    return found


def find_early(lengths, alpha):
    """Returns the shortest length whose verdict turns: better or worse there, the opposite at the longest."""
    for at in lengths[:-1]:
        turned = at.over.mean * lengths[-1].over.mean <= 0
        if turned and at.holm_p < alpha and at.change_p is not None and at.change_p < alpha:
            return at
    return None


# -----------------------------------------------------------------------------
# the verdict

def judge(cells, baseline, delta=0.005, alpha=0.05, rate=None, sizes=(), length=None):
    """Returns the verdicts of Cells with losses, as Over.

    rate, sizes, length: the names of factors that are a learning rate, a size and a length of training. With
    a length, the verdict is about the longest; shorter ones tell whether it is early. Levels may be what they
    are in an option (n_embd) or what a speedup should be in (numbers of parameters). Raises Stop where cells
    make no sense.
    """
    validate_levels(delta, alpha)
    names = validate_cells(cells, baseline, [f for f in (rate, *sizes, length) if f])
    factors = levels_of(cells)
    longest = cells if length is None else [c for c in cells if c.levels[length] == factors[length][-1]]
    arms = {name: judge_arm(longest, baseline, name, delta, alpha) for name in names if name != baseline}
    for name, a in arms.items():
        if rate:
            keep(a, 'own_best', own_best(longest, baseline, name, rate, delta, alpha))
        for factor in sizes:
            keep(a, factor, speedup(longest, baseline, name, factor, alpha))
        if length:
            keep(a, length, speedup(cells, baseline, name, length, alpha))
            a.lengths = judge_lengths(cells, baseline, name, length, delta, alpha)
            a.early = find_early(a.lengths, alpha)
    decide(arms.values(), alpha)
    return Over(baseline, list(dict.fromkeys(c.text for c in cells)), factors, delta, alpha, arms)


def keep(a, what, found):
    """Puts an OwnBest or a Speedup into an ArmOver, or the sentence on why there is none."""
    if isinstance(found, str):
        a.refused[what] = found
    elif what == 'own_best':
        a.own_best = found
    else:
        a.speedups[what] = found


def judge_arm(cells, baseline, arm, delta, alpha):
    """Returns the ArmOver of one arm, without a verdict and what needs several rates, sizes or lengths."""
    over, fit, texts, names = judge_cells(cells, baseline, arm, delta, alpha)
    base, var = runs_of(cells, baseline), runs_of(cells, arm)
    bad = dict(base=int(np.isinf(base).sum()), var=int(np.isinf(var).sum()))
    a = ArmOver(over, cell_differences(cells, base, var, fit), texts, {}, 'none', bad,
                int((~np.isnan(base)).sum()), int((~np.isnan(var)).sum()))
    a.p, a.side = 1.0, 0
    if over:
        a.error = ('seeds' if fit.by_seeds else 'residual') if fit.df > 0 else 'none'
        a.p, a.side = over.p, int(np.sign(over.mean))
        differences = [text.difference for text in texts]
        a.signs = dict(better=sum(d < 0 for d in differences), worse=sum(d > 0 for d in differences))
        a.slopes = slopes_of(fit, names, over.df, alpha)
        # from the largest to the smallest
        steps = over.mean - over.se * scipy.stats.t.ppf((np.arange(POINTS) + 0.5) / POINTS, over.df)
        # an idea whose effects vary by tau between texts has effects of that size
        belief = believe(steps, float(np.hypot(fit.sd_base, over.tau or 0.0)), delta)
        a.shrunk, a.shrunk_interval = belief.mean, belief.interval
        a.p_better, a.p_within = belief.p_better, belief.p_within
    else:
        a.refused['over'] = ('one text, and one run of each arm in a cell: nothing tells the error'
                             if texts else 'no cell has a run of both arms that ended')
    # numbers of diverged runs have a share of the level, where there are any
    lost_p, lost_side = compare_lost(base[~np.isnan(base)][None], var[~np.isnan(var)][None])
    if lost_p is not None:
        by_loss, by_number = a.p / (1 - LOST), float(lost_p[0]) / LOST
        a.p, a.side = min(by_loss, by_number, 1.0), a.side if by_loss <= by_number else int(lost_side[0])
    return a


def decide(arms, alpha):
    """Sets p values corrected for all arms, and the verdicts."""
    arms = list(arms)
    tost_ps = [a.over.tost_p if a.over else 1.0 for a in arms]
    for a, holm_p, tost_holm_p in zip(arms, holm([a.p for a in arms]), holm(tost_ps)):
        a.holm_p, a.tost_holm_p = holm_p, tost_holm_p
        a.verdict = word(a.side, holm_p < alpha, tost_holm_p < alpha, has_more_bad(a.bad, a.n_base, a.n),
                         any(a.bad.values()))


def judge_cells(cells, baseline, arm, delta, alpha):
    """Returns MeanOverTexts, Fit, TextDifferences and names of the Fit's slopes, of one arm.

    None for the mean: nothing to estimate its error from; for the Fit too: no cell has runs of both.
    """
    base, var = (np.where(np.isinf(x), np.nan, x) for x in (runs_of(cells, baseline), runs_of(cells, arm)))
    there = np.isfinite(base).any(1) & np.isfinite(var).any(1)
    texts = list(dict.fromkeys(cell.text for cell, both in zip(cells, there) if both))
    if not texts:
        return None, None, [], []
    names, x = factor_columns(cells)
    # cells of a text that has no runs are as good as any other's
    number = np.array([texts.index(cell.text) if cell.text in texts else 0 for cell in cells])
    fit = fit_cells(base, var, number, x)
    return summarize(fit, delta, alpha), fit, text_differences(fit, texts, number), names


def summarize(fit, delta, alpha):
    """Returns the MeanOverTexts of one study's Fit; None where nothing tells the error."""
    if len(fit.text) > 1:
        over = mean_over_texts(fit.text, fit.text_squares, fit.df if fit.df else inf, delta, alpha)
    elif fit.df > 0:
        over = t_mean(fit.text[0], np.sqrt(fit.text_squares[0, 0]), int(fit.df), delta, alpha)
    else:
        return None
    return MeanOverTexts(*(x if x is None else np.asarray(x).tolist() for x in vars(over).values()))


def text_differences(fit, texts, number):
    """Returns the TextDifferences of one study's Fit; number: (C,) of each cell's text."""
    ses = np.sqrt(np.diagonal(fit.text_squares)).tolist() if fit.df > 0 else [None] * len(texts)
    cells = np.bincount(number[np.isfinite(fit.difference)], minlength=len(texts)).tolist()
    return [TextDifference(*row) for row in zip(texts, cells, fit.text.tolist(), ses)]


def cell_differences(cells, base, var, fit):
    """Returns the CellDifferences of one arm; base, var: (C, n) losses. fit: of one study, or None."""
    found = []
    for i, (cell, of_base, of_arm) in enumerate(zip(cells, base, var)):
        bad = dict(base=int(np.isinf(of_base).sum()), var=int(np.isinf(of_arm).sum()))
        n, n_base = int(np.isfinite(of_arm).sum()), int(np.isfinite(of_base).sum())
        c = CellDifference(cell.text, cell.levels, n, n_base, bad)
        if n and n_base:
            c.difference = float(fit.difference[i])
            c.se = float(np.sqrt(fit.square[i])) if fit.df > 0 else None
        found.append(c)
    return found


def slopes_of(fit, names, df, alpha):
    """Returns {factor: Slope} of one study's Fit; names: of its columns, None where levels are no numbers."""
    found = {}
    for name, slope, se in zip(names, fit.slopes.tolist(), fit.slope_se.tolist()):
        if name and se > 0:
            half = float(scipy.stats.t.ppf(1 - alpha / 2, df)) * se
            found[name] = Slope(slope, [slope - half, slope + half], float(2 * t_cdf(-abs(slope), se, df)))
    return found


# -----------------------------------------------------------------------------
# cells

def levels_of(cells):
    """Returns {factor: its levels}; numbers in their order, others as they first come."""
    found = {}
    for cell in cells:
        for factor, level in cell.levels.items():
            found.setdefault(factor, {})[level] = None
    return {f: sorted(levels) if all(map(is_number, levels)) else list(levels) for f, levels in found.items()}


def is_number(level):
    return isinstance(level, int | float) and not isinstance(level, bool)


def factor_columns(cells):
    """Returns the columns of all factors that vary: names, and (C, k) values, whose mean over levels is 0.

    Numbers above 0 have one column, log2. Others have one for each level but the last, named None.
    """
    names, columns = [], []
    for factor, levels in levels_of(cells).items():
        at = [levels.index(cell.levels[factor]) for cell in cells]
        if len(levels) < 2:
            continue
        if all(is_number(level) and level > 0 for level in levels):
            x = np.log2(np.array(levels, float))
            names.append(factor)
            columns.append((x - x.mean())[at])
        else:
            names += [None] * (len(levels) - 1)
            columns += list((np.eye(len(levels)) - 1 / len(levels))[:-1, at])
    return names, np.array(columns).reshape(len(names), len(cells)).T


def group_cells(cells, factor, arms):
    """Returns lists of cells that differ in one factor alone, by its level, where all have runs of all arms."""
    levels, groups = levels_of(cells)[factor], {}
    for cell in cells:
        if all(cell.losses.get(name) for name in arms):
            key = cell.text, tuple(sorted(without(cell.levels, factor).items()))
            groups.setdefault(key, {})[cell.levels[factor]] = cell
    return [[group[level] for level in levels] for group in groups.values() if len(group) == len(levels)]


def without(levels, factor):
    return {f: level for f, level in levels.items() if f != factor}


def runs_of(cells, arm):
    """Returns an arm's losses, (C, n): inf for a run that diverged, NaN where a cell has fewer than others."""
    runs = [cell.losses.get(arm, []) for cell in cells]
    losses = np.full((len(cells), max(1, *map(len, runs))), np.nan)
    for row, values in zip(losses, runs):
        row[:len(values)] = values
    return losses


def mean_loss(cell, arm):
    """Returns the mean loss of an arm's runs in a cell; inf if one diverged."""
    return sum(cell.losses[arm]) / len(cell.losses[arm])


def validate_cells(cells, baseline, roles):
    """Returns the names of all arms; raises a Stop that names what is missing or wrong."""
    names = list(dict.fromkeys(name for cell in cells for name in cell.losses))
    if baseline not in names or len(names) < 2:
        raise Stop(f'arms: {", ".join(names) or "none"}: must be the baseline, {baseline}, and others')
    factors, seen = cells[0].levels.keys(), set()
    for cell in cells:
        at = f'{cell.text}, {", ".join(f"{f}={level}" for f, level in cell.levels.items())}'
        if cell.levels.keys() != factors:
            raise Stop(f'{at}: must have the factors {", ".join(factors)}')
        key = cell.text, tuple(cell.levels.items())
        if key in seen:
            raise Stop(f'{at}: there are two such cells')
        seen.add(key)
        for name, runs in cell.losses.items():
            for loss in runs:
                if not loss > -inf: # NaN too
                    raise Stop(f'{at}: {name}: loss={loss}: must be a number, inf for a diverged run')
    for factor, levels in levels_of(cells).items():
        if factor in roles and not all(is_number(level) and level > 0 for level in levels):
            raise Stop(f'{factor}={",".join(map(str, levels))}: must be numbers above 0')
    for factor in roles:
        if factor not in factors:
            raise Stop(f'{factor}: no such factor; there are {", ".join(factors) or "none"}')
    return names
