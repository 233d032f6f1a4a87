"""From final losses to a verdict: better, worse, equivalent, or can't tell.

Losses are in nats, and lower is better; +inf is a run that diverged. compare_arms() judges a study of a fixed
number of seeds, lab/sequential.py one that grows; both give Comparisons of each arm with the baseline.

better, worse   p is below alpha after Holm's correction for all comparisons. With a fixed number of seeds that
                is the paired t test, and the exact sign-flip test, which does not assume a normal distribution,
                agrees: p <= alpha, or 1/16, the smallest p that five seeds have. Where an arm's seeds are not
                the baseline's, it is the unpaired test of lab/look.py.
equivalent      not better or worse, and the difference lies within +-delta by two one-sided t tests (TOST),
                after Holm; no run diverged.
can't tell      all else, fewer than MIN_SEEDS seeds too, with the runs that would probably settle it.

A bad run is one that diverged or lies far above the rest of its arm. Losses of the good runs are compared, and by a
share of the level the numbers of bad ones (Fisher's exact test). An arm of whose runs more are bad than of the
baseline's is never better.
"""
from bisect import bisect_left
from dataclasses import dataclass
from functools import cache
from math import ceil, inf, isinf, sqrt

import numpy as np

try:
    # scipy imports scipy.stats at its first use, so --help and workers do not wait for it
    import scipy
# ab.py says what to install
except ImportError:
    scipy = None

from core.errors import Stop
from lab.look import LOST, Look, look_paired, look_unpaired, mark_bad

MIN_SEEDS = 5           # of a fixed study; fewer: can't tell
MAX_SEEDS = 64          # that planning considers
POWER = 0.8             # that it asks for
PLAN_STUDIES = 400      # that it simulates
FLIP_FLOOR = 1 / 16     # the sign-flip test's smallest p with five seeds; of it no more is asked
EXACT_FLIPS = 40        # seeds up to which every assignment of signs is counted
FLIP_DRAWS = 99_999     # random assignments above that
ABSENT = object()       # the value of a field that report.json leaves out


@dataclass
class Comparison:
    """A variant compared with the baseline. Differences are variant - baseline; None: undefined.

    After an early stop, mean and interval are corrected for it (sequential.estimate).
    """
    n: int                              # the variant's runs that the verdict rests on; pairs if paired
    n_base: int                         # the baseline's
    diverged: dict                      # numbers of runs: base, var; both: seeds at which both diverged
    bad: dict                           # base, var: runs that diverged or lie far above their arm's others
    n_good: int                         # of n: runs that are not bad; paired: pairs of two good runs
    p_improve: float                    # chance that a variant's run beats a baseline's: all pairs, ties half
    test: str = 'paired t'              # the test behind p; or Welch
    wins: int | None = None             # paired: seeds at which the variant is lower
    p: float | None = None              # two-sided; of a study with looks, valid at whichever it stopped
    side: int = 0                       # what p speaks for: 1 worse, -1 better
    mean: float | None = None           # the estimated difference
    interval: list | None = None        # of the mean, level 1 - alpha
    raw_mean: float | None = None       # mean of the variant's losses - mean of the baseline's
    sd: float | None = None             # of the differences, if paired
    sd_base: float | None = None        # of the baseline's losses
    sd_var: float | None = None         # of the variant's
    rho: float | None = None            # paired: correlation of the arms over seeds
    flip_p: float | None = None         # of the sign-flip test, in a fixed paired study
    mde: float | None = None            # the difference that such a study had an 80 % chance to find
    tost_p: float | None = None         # of the two one-sided tests for equivalence
    # believe(): what data and prior say together
    shrunk: float | None = None         # the expected difference
    shrunk_interval: list | None = None # that holds it with 95 %
    p_better: float | None = None       # chance that the true difference is below 0
    p_within: float | None = None       # chance that it is within +-delta
    # for all comparisons that are judged together
    holm_p: float | None = None         # p after Holm's correction
    tost_holm_p: float | None = None    # tost_p after Holm's correction
    verdict: str = ''                   # better, worse, equivalent or can't tell
    decided_at: int | None = None       # runs of the variant at the look that decided
    next_look: int | None = None        # runs of the variant at the next look, if it is not decided
    # can't tell: runs of the variant that would settle it in 4 of 5 cases; None: not even MAX_SEEDS
    runs_to_settle: int | None = None
    settle_chance: float | None = None  # that they would, or MAX_SEEDS


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
    """Arms compared with one baseline."""
    baseline: str
    seeds: list         # of all arms
    delta: float        # differences below it count as equivalent
    alpha: float        # how often a study of ideas that do nothing may find something
    looks: list         # numbers of runs at which verdicts were planned; []: only at the end
    level: float        # of each test and interval: alpha, or less at several looks of a fixed study
    arms: dict[str, ArmLosses]              # the baseline's too
    comparisons: dict[str, Comparison]      # of the other arms
    design: str = 'fixed'                   # or welch, paired: lab.sequential.Design

    @property
    def n(self):
        return len(self.seeds)


# -----------------------------------------------------------------------------
# one comparison

def compare(base, var, delta=0.005, alpha=0.05, paired=True):
    """Returns the Comparison of two arms' losses, (n_base,) and (n,); paired: in the same order of seeds."""
    base, var = np.asarray(base, float), np.asarray(var, float)
    c = describe(base, var, paired)
    look = (look_paired if paired else look_unpaired)(base[None], var[None])
    p, side = look.evidence()
    c.p, c.side = float(p[0]), int(side[0])
    # equivalence: of two one-sided tests the weaker one counts
    c.tost_p = max(one_sided_p(look, -delta, 1), one_sided_p(look, delta, -1))
    # too few good runs
    if c.raw_mean is None:
        return c
    c.mean = c.raw_mean
    c.interval = look.difference_of_score(scipy.special.ndtri([1 - alpha / 2, alpha / 2])).tolist()
    if paired:
        bars = scipy.stats.t.ppf([1 - alpha / 2, POWER], c.n - 1)
        c.mde = float(bars.sum() * look.se[0])
        # it has no say where the numbers of diverged runs decide
        if look.lost_p is None or look.lost_p[0] / LOST > look.p()[0] / (1 - LOST):
            base, var = (x[0] for x in mark_bad(base[None], var[None]))
            good = np.isfinite(base) & np.isfinite(var)
            c.flip_p = sign_flip_test(var[good] - base[good])[0]
    state(c, believe(differences(look), c.sd_base, delta))
    return c


def describe(base, var, paired):
    """Returns a Comparison with what the losses show by themselves: (n_base,) and (n,)."""
    n, n_base = len(var), len(base)
    lost = [np.isinf(base), np.isinf(var)]
    both = int((lost[0] & lost[1]).sum()) if paired else 0
    diverged = dict(base=int(lost[0].sum()), var=int(lost[1].sum()), both=both)
    # (n_base, n): every run of one arm against every run of the other
    beaten = (var < base[:, None]).mean() + (var == base[:, None]).mean() / 2 if n else 0.5
    c = Comparison(n, n_base, diverged, bad_runs(base, var), n, float(beaten), 'paired t' if paired else 'Welch')
    if paired:
        c.wins = int((var < base).sum())
    # of the good runs
    base, var = (x[0] for x in mark_bad(base[None], var[None]))
    good = [np.isfinite(base), np.isfinite(var)]
    if paired:
        good = [good[0] & good[1]] * 2
    base, var = base[good[0]], var[good[1]]
    c.n_good = len(var)
    if min(len(base), len(var)) < 2:
        return c
    c.raw_mean = float(var.mean() - base.mean())
    c.sd_base, c.sd_var = float(base.std(ddof=1)), float(var.std(ddof=1))
    if paired:
        c.raw_mean, c.sd = float((var - base).mean()), float((var - base).std(ddof=1))
        # undefined where an arm's losses are all equal
        if len(var) > 2 and c.sd_base and c.sd_var:
            c.rho = float(np.corrcoef(base, var)[0, 1])
    return c


def one_sided_p(look, against, side):
    """Returns the p of one study's difference being not above (side 1) or not below (-1) `against`."""
    p = float(look.p(against)[0]) / 2
    return p if side * (look.difference[0] - against) > 0 else 1 - p


def bad_runs(base, var):
    """Returns the numbers of bad runs, dict(base, var): diverged, or far above the rest of their arm."""
    base, var = mark_bad(base[None], var[None])
    return dict(base=int(np.isinf(base).sum()), var=int(np.isinf(var).sum()))


def has_more_bad(bad, n_base, n):
    """Returns whether more of an arm's n runs are bad than of the baseline's; bad: see bad_runs."""
    return bad['var'] * n_base > bad['base'] * n


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


# -----------------------------------------------------------------------------
# what is to be believed

@dataclass
class Belief:
    """A distribution of the true difference."""
    differences: np.ndarray     # (points,), from the largest to the smallest
    weights: np.ndarray         # (points,), their sum is 1
    mean: float
    interval: list              # holds 95 %
    p_better: float             # below 0
    p_within: float             # within +-delta


def differences(look, points=2000):
    """Returns the differences, (points,), at equal steps of one study's confidence distribution."""
    return look.difference_of_score(scipy.special.ndtri((np.arange(points) + 0.5) / points))


def believe(differences, scale, delta):
    """Returns the Belief in differences that the data hold equally likely, weighed by a prior.

    The prior is a Student t with 3 degrees of freedom around 0, its scale the sd of the baseline's runs. Half of
    all ideas then differ by less than .76 of that sd, and one in twenty by more than 3.2: published variants
    trained here moved the loss by 1 to 2 of it (rope, forgetting, value_residual), some by far more (canon), and
    heavy tails leave those be. Claims picked because they look good shrink by as much as they overstate on
    average, if ideas are as the prior says; when an arm stopped plays no part.
    """
    # (1 + t^2 / 3)^-2 by its logarithm: far from 0 all of them would be 0
    logs = -4 * np.log(np.hypot(1, differences / scale / sqrt(3))) if scale else np.zeros_like(differences)
    weights = np.exp(logs - logs.max())
    weights = weights / weights.sum()
    low, high = np.interp([0.025, 0.975], weights[::-1].cumsum(), differences[::-1])
    within = weights[abs(differences) < delta].sum()
    return Belief(differences, weights, float(weights @ differences), [float(low), float(high)],
                  float(weights[differences < 0].sum()), float(within))


def state(c, belief):
    """Sets the fields of a Comparison that say what is to be believed."""
    c.shrunk, c.shrunk_interval = belief.mean, belief.interval
    c.p_better, c.p_within = belief.p_better, belief.p_within


# -----------------------------------------------------------------------------
# planning of a fixed study

@cache
def seeds_to_settle(look, scale, delta, alpha):
    """Returns how many runs of an arm a new study needs to settle it in 4 of 5 cases, and how often they do.

    (None, how often MAX_SEEDS do) if no number does.

    look: what was seen, the first five fields of a Look of one study. Studies are simulated with the true
    difference drawn from what is to be believed (scale: see believe) and the sds seen, and judged as compare()
    and verdict() do.
    """
    mean, square_var, square_base, n_var, n_base = look
    seen = Look(*(x if x is None else np.array([x]) for x in look))
    belief = believe(differences(seen), scale, delta)
    rng = np.random.default_rng(0)
    true = rng.choice(belief.differences, (PLAN_STUDIES, 1), p=belief.weights)
    noise = rng.standard_normal((PLAN_STUDIES, MAX_SEEDS))
    sd = sqrt(square_var * n_var)

    def power(n):
        return settled(true + sd * noise[:, :n], seen, delta, alpha).mean()

    # power grows with n, so a binary search finds it
    n = bisect_left(range(MAX_SEEDS + 1), POWER, lo=MIN_SEEDS, key=power)
    return (n, float(power(n))) if n <= MAX_SEEDS else (None, float(power(MAX_SEEDS)))


def settled(d, seen, delta, alpha):
    """Returns which studies, (S,), get a verdict; d: (S, n) differences, or losses less the baseline's mean."""
    S, n = d.shape
    n_base = seen.n_base if seen.n_base is None else np.repeat(seen.n_base, S)
    look = Look(d.mean(1), d.var(1, ddof=1) / n, np.repeat(seen.square_base, S), np.full(S, n), n_base)
    differs = look.p() < alpha
    # the sign-flip test disagrees with few seeds only
    if seen.n_base is None and n <= 12:
        differs[differs] = [sign_flip_test(row)[0] <= max(alpha, FLIP_FLOOR) for row in d[differs]]
    inside = delta - abs(look.difference) > 0
    # the weaker of the two one-sided tests is that of the nearer end
    nearer = look.p(np.where(look.difference > 0, delta, -delta)) / 2
    return differs | inside & (nearer < alpha)


# -----------------------------------------------------------------------------
# looks at a fixed study

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


def word(side, differs, equivalent, more_bad, diverged):
    """Returns the verdict of tests that found a difference to this side, or equivalence.

    more_bad: see has_more_bad. diverged: whether any run did.
    """
    if differs and side > 0:
        return 'worse'
    if differs and not more_bad:
        return 'better'
    return 'equivalent' if equivalent and not more_bad and not diverged else "can't tell"


def verdict(c, alpha=0.05, p=None, tost_p=None):
    """Returns the verdict on a fixed study's Comparison; p, tost_p: corrected, by default the plain ones."""
    p = c.p if p is None else p
    tost_p = c.tost_p if tost_p is None else tost_p
    if min(c.n, c.n_base) < MIN_SEEDS:
        return "can't tell"
    differs = p < alpha and (c.flip_p is None or c.flip_p <= max(alpha, FLIP_FLOOR))
    return word(c.side, differs, tost_p < alpha, has_more_bad(c.bad, c.n_base, c.n), any(c.diverged.values()))


def compare_arms(losses, baseline=None, delta=0.005, alpha=0.05, looks=None):
    """Returns the Verdicts on {arm: {seed: loss}} of a fixed study.

    An arm with the baseline's seeds is paired with it, any other is not. baseline: by default the first arm.
    looks: the numbers of seeds at which the study is looked at, fixed before it began; each look tests at
    nominal_level(looks), at whatever number of seeds failed runs leave. Intervals have the level of the tests.
    Raises Stop for losses or settings that make no sense.
    """
    baseline = next(iter(losses), None) if baseline is None else baseline
    validate_losses(losses, baseline)
    validate_levels(delta, alpha)
    level = nominal_level(tuple(looks), alpha) if looks else alpha
    comparisons = {arm: compare_runs(losses[baseline], runs, delta, level)
                   for arm, runs in losses.items() if arm != baseline}
    decide(comparisons.values(), delta, level)
    arms = {arm: summarize(runs) for arm, runs in losses.items()}
    seeds = list(dict.fromkeys(seed for runs in losses.values() for seed in runs))
    return Verdicts(baseline, seeds, delta, alpha, list(looks or ()), level, arms, comparisons)


def compare_runs(base, var, delta, level):
    """Returns the Comparison of {seed: loss} of the baseline and an arm, paired if their seeds are the same."""
    paired = base.keys() == var.keys()
    if paired:
        var = {seed: var[seed] for seed in base}
    return compare(list(base.values()), list(var.values()), delta, level, paired)


def decide(comparisons, delta, level):
    """Sets corrected p values, verdicts, and the runs that would settle them, for one family."""
    family = list(comparisons)
    for c, holm_p, tost_holm_p in zip(family, holm([c.p for c in family]), holm([c.tost_p for c in family])):
        c.holm_p, c.tost_holm_p = holm_p, tost_holm_p
        c.verdict = verdict(c, level, holm_p, tost_holm_p)
        settled_but_for_bad_runs = holm_p < level and has_more_bad(c.bad, c.n_base, c.n)
        if c.verdict == "can't tell" and c.mean is not None and not settled_but_for_bad_runs:
            paired = c.test == 'paired t'
            n, n_base = c.n_good, c.n_base - c.bad['base']
            squares = (c.sd ** 2 / n, 0.0) if paired else (c.sd_var ** 2 / n, c.sd_base ** 2 / n_base)
            look = c.mean, *squares, n, None if paired else n_base
            # at the level that Holm's correction asks of the smallest p
            c.runs_to_settle, c.settle_chance = seeds_to_settle(look, c.sd_base, delta, level / len(family))


def summarize(runs):
    """Returns the ArmLosses of one arm; runs: {seed: loss}, inf for a run that diverged."""
    diverged = [seed for seed, loss in runs.items() if isinf(loss)]
    losses = {seed: None if isinf(loss) else float(loss) for seed, loss in runs.items()}
    row = np.array(list(runs.values()), float)
    if diverged or len(row) < 2:
        return ArmLosses(None, None, None, None, diverged, losses)
    moments = map(float, (row.mean(), row.std(ddof=1), row.min(), row.max()))
    return ArmLosses(*moments, diverged, losses)


# -----------------------------------------------------------------------------
# losses from elsewhere

def validate_losses(losses, baseline, least=2):
    """Raises a Stop that names what is missing or wrong. least: runs that each arm needs."""
    if len(losses) < 2:
        raise Stop(f'arms: {", ".join(losses) or "none"}: a comparison needs a baseline and a variant')
    if baseline not in losses:
        raise Stop(f'baseline={baseline}: no such arm; there are {", ".join(losses)}')
    for arm, runs in losses.items():
        needed = 2 if arm == baseline else least
        if len(runs) < needed:
            raise Stop(f'{arm}: {len(runs)} seed{"s" * (len(runs) != 1)}; must be at least {needed}')
        for seed, loss in runs.items():
            if not isinstance(loss, (int, float, np.number)) or not loss > -inf: # NaN too
                must = 'must be a number, inf for a diverged run'
                raise Stop(f'{arm}, seed {seed}: loss={loss}: {must}')


def validate_levels(delta, alpha):
    """Raises Stop if a verdict cannot be reached with these."""
    if not 0 < delta < inf:
        raise Stop(f'delta={delta}: must be above 0')
    if not 0 < alpha < 0.5:
        raise Stop(f'alpha={alpha}: must be above 0 and below 0.5')


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
