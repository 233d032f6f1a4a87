"""From final losses to a verdict: arms x seeds -> better, worse, equivalent, can't tell, screen.

Losses are in nats, and lower is better; +inf is a run that diverged. Arms are compared with the baseline seed
by seed.

better, worse   the paired t test has p below alpha after Holm's correction for all comparisons, and the exact
                sign-flip test, which does not assume a normal distribution, agrees: p <= alpha. With 5 seeds
                its smallest p is .0625, so there p must be at that floor: all five seeds on one side.
equivalent      not better or worse, and the difference lies within +-delta by two one-sided t tests (TOST),
                after Holm.
screen          fewer than MIN_SEEDS seeds: numbers, no verdict.
can't tell      all else, with the number of seeds that would settle it.

Diverged runs rank last and leave no mean. Where there are any, the exact rank-sum test of the two arms
replaces the t and sign-flip tests; such an arm is never equivalent, and not better if it diverged more often
than the baseline.
"""
import csv
import io
from bisect import bisect_left
from dataclasses import dataclass
from functools import cache
from math import ceil, inf, isfinite, sqrt
from pathlib import Path

import numpy as np

try:
    # scipy imports scipy.stats at its first use, so --help and workers do not wait for it
    import scipy
# ab.py says what to install
except ImportError:
    scipy = None

from core.errors import Stop

MIN_SEEDS = 5           # fewer: no verdict
MAX_SEEDS = 1000        # of the largest study considered
POWER = 0.8
EXACT_FLIPS = 40        # seeds up to which every assignment of signs is counted
FLIP_DRAWS = 99_999     # random assignments above that
ABSENT = object()       # the value of a field that report.json leaves out


@dataclass
class Comparison:
    """A variant compared with the baseline. Differences are variant - baseline; None: undefined."""
    n: int                              # seeds
    diverged: dict                      # numbers of runs: base, var; both: seeds at which both diverged
    wins: int                           # seeds at which the variant is lower
    wins_interval: list                 # exact (Clopper-Pearson), for the chance of a win at the same seed
    p_improve: float                    # chance that a variant's run beats a baseline's: n^2 pairs, ties half
    test: str = 'paired t'              # the test behind p; 'rank sum' if a run diverged
    p: float | None = None              # two-sided
    mean: float | None = None           # of the differences
    sd: float | None = None             # of the differences
    sd_base: float | None = None        # of the baseline's losses
    sd_var: float | None = None         # of the variant's
    rho: float | None = None            # correlation of the arms over seeds
    pairing_gain: float | None = None   # (sd_base^2 + sd_var^2) / sd^2: unpaired seeds that a pair is worth
    interval: list | None = None        # of the mean, t, level 1 - alpha
    t: float | None = None              # mean / its standard error
    welch_p: float | None = None        # of Welch's unpaired t test, to be read beside p where rho <= 0
    flip_p: float | None = None         # of the sign-flip test
    flip_floor: float | None = None     # the smallest flip_p that n seeds allow
    flip_draws: int | None = None       # 0: every assignment of signs was counted
    mde: float | None = None            # the difference that this study had an 80 % chance to find
    seeds: int | None = None            # that find delta with power 80 %; None: more than MAX_SEEDS
    seeds_unpaired: int | None = None   # the same, if the arms were not paired
    tost_p: float | None = None         # of the two one-sided tests for equivalence
    tost_interval: list | None = None   # level 1 - 2 alpha; inside +-delta, TOST shows equivalence
    equivalent: bool = False            # tost_interval is inside +-delta, before Holm
    # decide() fills in the rest, for all comparisons that are judged together
    holm_p: float | None = None         # p after Holm's correction
    bh_p: float | None = None           # p after Benjamini and Hochberg's, for ranking
    tost_holm_p: float | None = None    # tost_p after Holm's correction
    verdict: str = ''                   # better, worse, equivalent, can't tell or screen
    seeds_difference: int | None = ABSENT # can't tell: that show this difference; None: more than MAX_SEEDS
    seeds_equivalence: int | None = ABSENT # can't tell: that show equivalence, if this difference is true


@dataclass
class ArmLosses:
    """One arm's losses, and their mean, sd, min and max: None if a run diverged."""
    mean: float | None
    sd: float | None
    min: float | None
    max: float | None
    diverged: list      # seeds
    losses: dict        # {seed: loss}, None for a run that diverged


@dataclass
class Verdicts:
    """Arms compared with one baseline on the same seeds."""
    baseline: str
    seeds: list
    delta: float        # differences below it count as equivalent
    alpha: float        # how often a study of ideas that do nothing may find something
    looks: list         # numbers of seeds at which verdicts were planned; []: only at the end
    level: float        # of each test and interval: alpha, or less at several looks
    arms: dict[str, ArmLosses]              # the baseline's too
    comparisons: dict[str, Comparison]      # of the other arms

    @property
    def n(self):
        return len(self.seeds)


# -----------------------------------------------------------------------------
# one comparison

def compare(base, var, delta=0.005, alpha=0.05):
    """Returns the Comparison of two arms; base, var: (n,) losses each, in the same order of seeds."""
    base, var = np.asarray(base, float), np.asarray(var, float)
    n, wins, ties = len(base), int((var < base).sum()), int((var == base).sum())
    base_diverged, var_diverged = np.isinf(base), np.isinf(var)
    diverged = dict(base=int(base_diverged.sum()), var=int(var_diverged.sum()),
                    both=int((base_diverged & var_diverged).sum()))
    # (n, n): every run of one arm against every run of the other
    pairs = (var < base[:, None]).sum() + (var == base[:, None]).sum() / 2
    c = Comparison(n, diverged, wins, wins_interval(wins, ties, n, alpha), float(pairs / n ** 2))
    if np.any((base_diverged, var_diverged)):
        c.test, c.p = 'rank sum', rank_sum_test(base, var)
        return c

    # the paired t test
    d = var - base
    mean, sd = float(d.mean()), float(d.std(ddof=1))
    se = sd / sqrt(n)
    t = standardize(mean, se)
    c.mean, c.sd, c.sd_base, c.sd_var = mean, sd, float(base.std(ddof=1)), float(var.std(ddof=1))
    c.t, c.p = t if isfinite(t) else None, float(2 * scipy.stats.t.sf(abs(t), n - 1))
    c.interval = symmetric_interval(mean, scipy.stats.t.ppf(1 - alpha / 2, n - 1) * se)

    # does pairing pay? rho is undefined where an arm's losses are all equal
    if n > 2 and c.sd_base and c.sd_var:
        c.rho = float(np.corrcoef(base, var)[0, 1])
    if c.sd_base or c.sd_var:
        arms = base.mean(), c.sd_base, n, var.mean(), c.sd_var, n
        c.welch_p = float(scipy.stats.ttest_ind_from_stats(*arms, equal_var=False).pvalue)
    if sd:
        c.pairing_gain = (c.sd_base ** 2 + c.sd_var ** 2) / sd ** 2

    # a test that does not assume a normal distribution
    c.flip_p, c.flip_draws = sign_flip_test(d)
    c.flip_floor = 2.0 ** (1 - n)

    # the difference that this study could find, and the seeds that would find delta
    c.mde = float(scipy.stats.t.ppf(1 - alpha / 2, n - 1) + scipy.stats.t.ppf(POWER, n - 1)) * se
    c.seeds = seeds_needed(lambda n: paired_power(n, delta, sd, alpha))
    c.seeds_unpaired = seeds_needed(lambda n: unpaired_power(n, delta, c.sd_base, c.sd_var, alpha))

    # equivalence: of two one-sided tests the weaker one counts
    nearer = min(standardize(delta + mean, se), standardize(delta - mean, se))
    c.tost_p = float(scipy.stats.t.sf(nearer, n - 1))
    c.tost_interval = symmetric_interval(mean, scipy.stats.t.ppf(1 - alpha, n - 1) * se)
    c.equivalent = -delta < c.tost_interval[0] and c.tost_interval[1] < delta
    return c


def symmetric_interval(center, half_width):
    return [float(center - half_width), float(center + half_width)]


def standardize(x, spread):
    """Returns x / spread; if spread is 0, +-inf, or 0 for x = 0."""
    return x / spread if spread else inf * x if x else 0.0


def wins_interval(wins, ties, n, alpha):
    """Returns the exact (Clopper-Pearson) interval of the chance of a win, [low, high], from n trials."""
    # a tie counts as a loss for the lower end, and as a win for the upper one
    low, high = (scipy.stats.binomtest(k, n).proportion_ci(1 - alpha, 'exact') for k in (wins, wins + ties))
    return [float(low.low), float(high.high)]


def sign_flip_test(d):
    """Returns the two-sided p of the mean of differences d (n,), and the number of sign assignments drawn.

    Under the null hypothesis every sign is a coin flip. 0 draws: all 2^n assignments were counted, as pairs
    of halves with sqrt(2^n) each; scipy's permutation_test would list them all, 1e12 for 40 seeds.
    """
    d = np.asarray(d, float)
    # a tolerance, because sums that are equal on paper differ by rounding
    bar = abs(d.sum()) - 1e-12 * abs(d).sum()
    if bar <= 0:
        return 1.0, 0
    if len(d) > EXACT_FLIPS:
        signs = np.random.default_rng(0).integers(2, size=(FLIP_DRAWS, len(d)), dtype=np.int8) * 2.0 - 1
        # + 1: d itself is one of the assignments, so p is never 0
        return float(((abs(signs @ d) >= bar).sum() + 1) / (FLIP_DRAWS + 1)), FLIP_DRAWS
    # every sum of signed values is one of the left half plus one of the right half
    half = len(d) // 2
    left, right = signed_sums(d[:half]), np.sort(signed_sums(d[half:]))
    # pairs with left + right >= bar
    reached = left.size * right.size - int(np.searchsorted(right, bar - left).sum())
    return 2 * reached / 2 ** len(d), 0


def signed_sums(d):
    """Returns the sums of +-d (n,) for all assignments of signs, (2^n,)."""
    sums = np.zeros(1)
    for x in d:
        sums = np.concatenate((sums + x, sums - x))
    return sums


def rank_sum_test(base, var):
    """Returns the exact two-sided p of the Wilcoxon rank-sum test, with midranks for ties.

    Counts, for each possible sum, the choices of n of the 2n ranks that have it. scipy's mannwhitneyu has no
    exact p with ties, and its permutation_test would list the choices, 1e23 for 40 seeds.
    """
    n = len(var)
    # doubled, because a midrank may be a half
    ranks = (2 * scipy.stats.rankdata(np.concatenate((base, var)))).astype(int)
    # counts[k, s]: the number of choices of k ranks whose sum is s
    counts = np.zeros((n + 1, ranks.sum() + 1))
    counts[0, 0] = 1
    for r in ranks:
        counts[1:, r:] += counts[:-1, :-r]
    # n (2n + 1) is the mean of the doubled sum
    distance = abs(np.arange(counts.shape[1]) - n * (2 * n + 1))
    return float(counts[n, distance >= distance[ranks[n:].sum()]].sum() / counts[n].sum())


# -----------------------------------------------------------------------------
# planning

def paired_power(n, difference, sd, alpha):
    """Returns the chance that a paired t test of n seeds finds a true difference; sd: of the differences."""
    return t_power(n - 1, standardize(difference * sqrt(n), sd), alpha)


def unpaired_power(n, difference, sd_base, sd_var, alpha):
    """Returns the same chance for an unpaired t test of n seeds in each arm; sds of the losses."""
    return t_power(2 * n - 2, standardize(difference * sqrt(n), sqrt(sd_base ** 2 + sd_var ** 2)), alpha)


def t_power(df, shift, alpha):
    """Returns the power of a two-sided t test with df degrees of freedom; shift: the noncentrality."""
    bar = scipy.stats.t.ppf(1 - alpha / 2, df)
    # above this scipy gives NaN
    shift = min(abs(shift), 1e4)
    return float(scipy.stats.nct.sf(bar, df, shift) + scipy.stats.nct.cdf(-bar, df, shift))


def tost_power(n, difference, sd, delta, alpha, points=400):
    """Returns the chance that n seeds show equivalence, if this is the true difference.

    sd: true one of the differences. The chance is a mean over `points` quantiles of the sd that n seeds show.
    """
    if not sd:
        return float(abs(difference) < delta)
    # (points,): quantiles of the sample's standard deviation over the true one
    s = np.sqrt(scipy.stats.chi2.ppf((np.arange(points) + 0.5) / points, n - 1) / (n - 1))
    bar, scale = scipy.stats.t.ppf(1 - alpha, n - 1) * s, sqrt(n) / sd
    upper, lower = scale * (delta - difference) - bar, bar - scale * (delta + difference)
    inside = scipy.stats.norm.cdf(upper) - scipy.stats.norm.cdf(lower)
    return float(inside.clip(0).mean())


def seeds_needed(power):
    """Returns the smallest n, 2 at least, with power(n) >= 80 %; None if it is above MAX_SEEDS."""
    # power grows with n, so a binary search finds it
    n = bisect_left(range(MAX_SEEDS + 1), POWER, lo=2, key=power)
    return n if n <= MAX_SEEDS else None


# nominal_level() of common plans, from 4 million studies each, rounded down
NOMINAL_LEVELS = {
    (4, 8): 0.0276, (5, 8): 0.0294, (5, 10): 0.0279, (6, 12): 0.0281, (8, 16): 0.0285, (10, 20): 0.0286,
    (5, 7, 10): 0.0223, (5, 8, 12): 0.0212, (5, 10, 15): 0.0206, (5, 10, 20): 0.0195,
    (3, 6, 9, 12): 0.0161, (5, 6, 8, 10): 0.0199, (5, 10, 15, 20): 0.0169, (4, 6, 8, 10, 12): 0.0156,
}


@cache
def nominal_level(looks, alpha=0.05, studies=400_000):
    """Returns the level at which each look tests, so that studies of no effect err in a share alpha of cases.

    looks: a tuple of growing numbers of seeds. Computed from simulated studies of no effect.
    """
    if list(looks) != sorted(set(looks)) or not looks or looks[0] < 2:
        text = ','.join(map(str, looks))
        raise Stop(f'looks={text}: must be numbers of seeds that grow, the first at least 2')
    if len(looks) == 1:
        return alpha
    if alpha == 0.05 and looks in NOMINAL_LEVELS:
        return NOMINAL_LEVELS[looks]
    # Pocock's rule, one level for all looks: the alpha quantile of each study's smallest p
    d = np.random.default_rng(0).standard_normal((looks[-1], studies), np.float32)
    smallest = np.ones(studies)
    for n in looks:
        t = d[:n].mean(0) * sqrt(n) / d[:n].std(0, ddof=1)
        smallest = np.minimum(smallest, 2 * scipy.stats.t.sf(abs(t), n - 1))
    return float(np.quantile(smallest, alpha))


# -----------------------------------------------------------------------------
# many comparisons, and the verdict

def holm(ps):
    """Returns p values with Holm's correction: studies that reject those below alpha err in at most alpha."""
    ps = np.asarray(ps, float)
    order = ps.argsort()
    adjusted = np.empty_like(ps)
    adjusted[order] = np.maximum.accumulate(ps[order] * np.arange(len(ps), 0, -1)).clip(max=1)
    return adjusted.tolist()


def verdict(c, alpha=0.05, p=None, tost_p=None):
    """Returns the verdict on a Comparison; p, tost_p: its corrected p values, by default the plain ones."""
    p = c.p if p is None else p
    tost_p = c.tost_p if tost_p is None else tost_p
    if c.n < MIN_SEEDS:
        return 'screen'
    # the side comes from p_improve, because a diverged run leaves no mean
    if c.test == 'rank sum':
        if p < alpha and c.p_improve < 0.5:
            return 'worse'
        return 'better' if p < alpha and c.diverged['var'] <= c.diverged['base'] else "can't tell"
    if p < alpha and c.flip_p <= max(alpha, c.flip_floor):
        return 'better' if c.mean < 0 else 'worse'
    return 'equivalent' if tost_p < alpha else "can't tell"


def compare_arms(losses, baseline=None, delta=0.005, alpha=0.05, looks=None):
    """Returns the Verdicts on {arm: {seed: loss}}.

    baseline: by default the first arm. looks: the numbers of seeds at which the study is looked at, fixed
    before it began; each look tests at nominal_level(looks). Intervals have the level of the tests, 1 - alpha
    for a single look. Raises Stop for losses or settings that make no sense.
    """
    baseline = next(iter(losses), None) if baseline is None else baseline
    rows = validate_losses(losses, baseline) # {arm: (n,)}
    if not 0 < delta < inf:
        raise Stop(f'delta={delta}: must be above 0')
    if not 0 < alpha < 0.5:
        raise Stop(f'alpha={alpha}: must be above 0 and below 0.5')
    seeds = list(losses[baseline])
    if looks and len(seeds) not in looks:
        raise Stop(f'looks={",".join(map(str, looks))}: {len(seeds)} seeds are none of the planned looks')
    level = nominal_level(tuple(looks), alpha) if looks else alpha
    others = {arm: row for arm, row in rows.items() if arm != baseline}
    comparisons = {arm: compare(rows[baseline], row, delta, level) for arm, row in others.items()}
    decide(comparisons.values(), delta, level)
    arms = {arm: summarize(row, seeds) for arm, row in rows.items()}
    return Verdicts(baseline, seeds, delta, alpha, list(looks or ()), level, arms, comparisons)


def decide(comparisons, delta, level):
    """Sets corrected p values, verdicts, and the seeds that would settle them, for one family."""
    family = list(comparisons)
    ps, tost_ps = [c.p for c in family], [1.0 if c.tost_p is None else c.tost_p for c in family]
    bh_ps = scipy.stats.false_discovery_control(ps).tolist() # Benjamini-Hochberg
    for c, holm_p, bh_p, tost_holm_p in zip(family, holm(ps), bh_ps, holm(tost_ps)):
        c.holm_p, c.bh_p, c.tost_holm_p = holm_p, bh_p, tost_holm_p
        c.verdict = verdict(c, level, holm_p, tost_holm_p)
        if c.verdict == "can't tell" and c.mean is not None:
            # at the level that Holm's correction asks of the smallest p
            at = dict(difference=c.mean, sd=c.sd, alpha=level / len(family))
            c.seeds_difference = seeds_needed(lambda n, at=at: paired_power(n, **at))
            c.seeds_equivalence = seeds_needed(lambda n, at=at: tost_power(n, delta=delta, **at))


def summarize(row, seeds):
    """Returns the ArmLosses of one arm; row: (n,) losses, inf for a run that diverged."""
    diverged = [seed for seed, loss in zip(seeds, row) if loss == inf]
    losses = {seed: float(loss) if loss < inf else None for seed, loss in zip(seeds, row)}
    if diverged:
        return ArmLosses(None, None, None, None, diverged, losses)
    moments = map(float, (row.mean(), row.std(ddof=1), row.min(), row.max()))
    return ArmLosses(*moments, diverged, losses)


# -----------------------------------------------------------------------------
# losses from elsewhere

def validate_losses(losses, baseline, where=''):
    """Returns {arm: (n,) losses, in the baseline's order of seeds}. Stop names what is missing or wrong.

    where: the start of its message.
    """
    if len(losses) < 2:
        raise Stop(f'{where}arms: {", ".join(losses) or "none"}: a comparison needs a baseline and a variant')
    if baseline not in losses:
        raise Stop(f'{where}baseline={baseline}: no such arm; there are {", ".join(losses)}')
    seeds = losses[baseline]
    if len(seeds) < 2:
        raise Stop(f'{where}{baseline}: {len(seeds)} seed; must be at least 2')
    for arm, runs in losses.items():
        # every arm needs exactly the baseline's seeds
        for one, other in ((arm, baseline), (baseline, arm)):
            if missing := [seed for seed in losses[other] if seed not in losses[one]]:
                raise Stop(f'{where}{one}: no run with seed {missing[0]}, which {other} has')
        for seed, loss in runs.items():
            if not isinstance(loss, (int, float, np.number)) or not loss > -inf: # NaN too
                must = 'must be a number, inf for a diverged run'
                raise Stop(f'{where}{arm}, seed {seed}: loss={loss}: {must}')
    return {arm: np.array([float(runs[seed]) for seed in seeds]) for arm, runs in losses.items()}


def read_csv(path):
    """Returns {arm: {seed: loss}} from a CSV file with columns arm, seed and loss; others are ignored.

    Raises Stop with path and line where the file is wrong.
    """
    # lines: where each (arm, seed) stands
    losses, lines = {}, {}
    try:
        # utf-8-sig: spreadsheets write a byte order mark
        rows = csv.DictReader(io.StringIO(Path(path).read_text(encoding='utf-8-sig')), strict=True)
        rows.fieldnames = columns = [name.strip() for name in rows.fieldnames or ()]
        if any(columns.count(name) != 1 for name in ('arm', 'seed', 'loss')):
            found = ', '.join(columns) or '(none)'
            raise Stop(f'{path}:1: columns {found}: must have arm, seed and loss, once each')
        for row in rows:
            where = f'{path}:{rows.line_num}: '
            arm, seed, loss = ((row[name] or '').strip() for name in ('arm', 'seed', 'loss'))
            if not arm:
                raise Stop(f'{where}no arm')
            seed = parse_number(seed, int, f'{where}seed={seed}: must be a whole number')
            if (arm, seed) in lines:
                raise Stop(f'{where}{arm}, seed {seed} again; first on line {lines[arm, seed]}')
            lines[arm, seed] = rows.line_num
            loss = parse_number(loss, float, f'{where}loss={loss}: must be a number, inf for a diverged run')
            losses.setdefault(arm, {})[seed] = loss
        validate_losses(losses, next(iter(losses), None), f'{path}:{rows.line_num}: ')
    except OSError as error:
        raise Stop(f'{path}: {error.strerror}') from None
    except UnicodeDecodeError:
        raise Stop(f'{path}: is not UTF-8 text') from None
    except csv.Error as error:
        raise Stop(f'{path}:{rows.reader.line_num}: {error}') from None
    return losses


def parse_number(text, kind, message):
    """Returns kind(text). Raises Stop with this message if that is not a number, or is NaN or -inf."""
    try:
        value = kind(text)
    except ValueError:
        raise Stop(message) from None
    if not value > -inf: # NaN too
        raise Stop(message)
    return value


# -----------------------------------------------------------------------------
# beside the verdict: other text, and steps

def text_interval(diff_per_window, block=None, resamples=10_000, seed=0, alpha=0.05):
    """Returns how far a difference could move on other text.

    That is dict(mean, low, high, se, block, windows, resamples), losses in nats.

    diff_per_window: (W,) loss differences of contiguous validation windows, means over seeds. The interval of
    their mean is from a circular block bootstrap; returns None below 10 windows. It says nothing about other
    seeds, because the windows of one split are not independent runs.

    Neighbouring windows are alike, so blocks of them are drawn. A block has W^(1/3) windows, or that times
    (6 r^2 / (1 - r^2)^2)^(1/3) if longer, the optimum for an AR(1) process with the windows' lag-1
    correlation r (Carlstein 1986), but at most W / 3.
    """
    x = np.asarray(diff_per_window, float)
    W = len(x)
    if W < 10:
        return None
    if block is None:
        e = x - x.mean()
        r = min(max(float(e[1:] @ e[:-1] / (e @ e)), 0.0), 0.97) if e.any() else 0.0
        block = ceil(W ** (1 / 3) * max(1.0, (6 * r * r / (1 - r * r) ** 2) ** (1 / 3)))
    block = min(block, W // 3)
    # sums of blocks are differences of running sums; the end wraps around to the beginning
    ends = np.concatenate((x, x[:block])).cumsum()
    # (W,): the mean of the block that begins at each window
    block_means = (ends[block:] - ends[:-block]) / block
    picked = np.random.default_rng(seed).integers(W, size=(resamples, W // block))
    means = block_means[picked].mean(1) # (resamples,)
    low, high = np.quantile(means, [alpha / 2, 1 - alpha / 2])
    return dict(mean=float(x.mean()), low=float(low), high=float(high), se=float(means.std()), block=block,
                windows=W, resamples=resamples)


def step_equivalents(d, iters, base_curve, last=5):
    """Returns the baseline iterations that a difference d, in nats, is worth; positive if d saves them.

    That is d over the slope of the baseline's last evaluations, by least squares; None if that curve does not
    fall, because more steps would then buy nothing. A decaying learning rate flattens the curve towards its
    end, so this is the price at the end, not a forecast.
    """
    x, y = np.asarray(iters, float)[-last:], np.asarray(base_curve, float)[-last:]
    if len(x) < 2 or not np.isfinite(y).all():
        return None
    x = x - x.mean()
    slope = float(x @ y / (x @ x))
    return d / slope if slope < 0 else None
