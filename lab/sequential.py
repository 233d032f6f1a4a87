"""A study that grows: its arms are judged at planned numbers of runs, and stop once they are decided.

An arm's runs are compared with stored runs of the baseline (other seeds, so unpaired), or seed by seed with
the baseline's (paired). At each look the test's p becomes a normal score. The scores of all looks together are,
nearly, a random walk in the information 1 / (variance of the difference) (Jennison and Turnbull 2000, chapter
3), so the chance that any look passes a bar is a recursive integral (Armitage, McPherson and Rowe 1969): the
sequential p value of a score. The smallest of an arm's p values so far is valid whenever the arm stops.
"""
from dataclasses import dataclass
from functools import cache
from math import inf, log, pi, sqrt

import numpy as np

try:
    # scipy imports its parts at their first use
    import scipy
# ab.py says what to install
except ImportError:
    scipy = None

from core.errors import Stop
from lab import stats
from lab.look import MAX_SCORE, look_paired, look_unpaired, mark_bad, normal_score

LOOKS = (4, 5, 6, 8, 10, 12, 14, 16)        # runs of an arm at which it is judged against stored runs
PAIRED_LOOKS = (5, 6, 8, 10, 12, 14, 16)    # pairs of runs
LATER_LOOKS = (20, 24, 28, 32, 40, 48, 56, 64) # of a study that is extended: planned from the start
LATER_BAR = 1.25        # their bar is so much higher, so that they cost the earlier looks little
MAX_RATIO = 6.0         # of an arm's sd and the baseline's, and one over it
WALK_NODES = 72         # of the integral at each look
TESTS = 'welch', 'paired'
SETTLED = 0.8           # chance that planning asks for
PLAN_STUDIES = 400      # that it simulates


@dataclass(frozen=True)
class Design:
    """Test, looks and runs of the baseline, fixed before the first run."""
    test: str                       # welch: against stored runs of the baseline; paired: seed by seed
    looks: tuple = LOOKS            # numbers of an arm's runs
    baseline_runs: int | tuple = 0  # welch: the baseline's runs at all looks, or at each

    @property
    def plan(self):
        """All looks, (looks,), those of an extended study too."""
        return self.looks + tuple(n for n in LATER_LOOKS if n > self.looks[-1])

    @property
    def bars(self):
        """Factors on the bar at each look, (looks,)."""
        return tuple(1.0 if n <= self.looks[-1] else LATER_BAR for n in self.plan)

    @property
    def baseline_plan(self):
        """The baseline's runs at each look, (looks,); of paired differences inf, as they have one variance."""
        if self.test == 'paired':
            return (inf,) * len(self.plan)
        runs = self.baseline_runs if isinstance(self.baseline_runs, tuple) else (self.baseline_runs,)
        return (runs + runs[-1:] * len(self.plan))[:len(self.plan)]


# -----------------------------------------------------------------------------
# all looks together

def information(ratio, plan, baseline_plan):
    """Returns the information at each look, (..., looks), in units of 1 / (the baseline's variance).

    ratio: the arm's sd over the baseline's, (...). It grows by 2 % at least, which errs on the safe side: looks
    that are all but the same would need too fine an integral.
    """
    found = 1 / (np.asarray(ratio)[..., None] ** 2 / np.array(plan) + 1 / np.array(baseline_plan))
    for k in range(1, found.shape[-1]):
        found[..., k] = np.maximum(found[..., k], 1.02 * found[..., k - 1])
    return found


def walk(info, bars, drift=0.0):
    """Returns the chances to pass the upper and the lower bar first at each look, (..., looks) each.

    info: (..., looks). bars: (..., looks), of the score. drift: (..., 1), of the walk for a unit of information.
    """
    x, w = np.polynomial.legendre.leggauss(WALK_NODES)
    upper, lower = [], []
    # where the walk may be, (..., nodes), and the mass there of walks that passed no bar
    at, mass, before = np.zeros(bars.shape[:-1] + (1,)), np.ones(bars.shape[:-1] + (1,)), 0.0
    for k in range(bars.shape[-1]):
        now = info[..., k:k + 1]
        sd, bar = np.sqrt(now - before), bars[..., k:k + 1] * np.sqrt(now)
        at = at + drift * (now - before)
        upper.append((mass * scipy.special.ndtr((at - bar) / sd)).sum(-1))
        lower.append((mass * scipy.special.ndtr((-at - bar) / sd)).sum(-1))
        nodes = bar * x
        kernel = np.exp(-0.5 * ((nodes[..., None, :] - at[..., None]) / sd[..., None]) ** 2)
        mass = (mass[..., None, :] @ kernel)[..., 0, :] * bar * w / (sd * sqrt(2 * pi))
        at, before = nodes, now
    return np.stack(upper, -1), np.stack(lower, -1)


@cache
def crossing_table(plan, bars, baseline_plan):
    """Returns log P(any look passes its bar) as a function of (log ratio, score), a spline; .3 s to build."""
    scores = np.linspace(0.2, MAX_SCORE, 16)
    ratios = np.linspace(-log(MAX_RATIO), log(MAX_RATIO), 9)
    logs = []
    for ratio in np.exp(ratios):
        passed = sum(walk(information(ratio, plan, baseline_plan), scores[:, None] * np.array(bars)))
        logs.append(np.log(passed.sum(-1)))
    return scipy.interpolate.RectBivariateSpline(ratios, scores, np.array(logs))


def sequential_p(score, log_ratio, design):
    """Returns P(any planned look has a score above this one over its bar), two-sided; arrays of one shape.

    score: over the bar of its look. Scores of few runs are more alike in their middle than in their tails, where
    p is a little larger than the walk's; the correction was found by simulation, to p = 1e-4.
    """
    table = crossing_table(design.plan, design.bars, design.baseline_plan)
    limit = log(MAX_RATIO)
    p = np.exp(table.ev(np.clip(log_ratio, -limit, limit), np.clip(score, 0.2, MAX_SCORE)))
    # the baseline's few runs make the tests a little too careful by themselves
    spare = 1.1 if design.test == 'paired' else 1.18 - 0.55 / design.baseline_plan[0]
    return (spare * p * np.maximum(1, 0.05 / p) ** 0.1).clip(0, 1)


@dataclass
class Path:
    """Evidence of the looks of (S,) studies, one after the other; K: the looks that the runs reach."""
    looks: list                     # (K,) of Look
    p: np.ndarray                   # (S, K): the smallest sequential p so far, two-sided
    side: np.ndarray                # (S, K): 1 where that p says worse, -1 for better
    tost_p: np.ndarray              # (S, K): for |difference| < delta, the smallest so far


def follow(base, var, design, delta):
    """Returns the Path of losses base, (S, N), and var, (S, n), in the order of seeds."""
    looks = looks_at(base, var, design)
    return Path(looks, *difference_ps(looks, design), equivalence_ps(looks, design, delta))


def looks_at(base, var, design):
    """Returns the Looks that the runs reach; base: (S, N), var: (S, n)."""
    looks = []
    for n, n_base in zip(design.plan, design.baseline_plan):
        if n > var.shape[1] or n_base != inf and n_base > base.shape[1]:
            break
        look = look_paired(base[:, :n], var[:, :n]) if n_base == inf else look_unpaired(base[:, :n_base], var[:, :n])
        looks.append(look)
    return looks


def difference_ps(looks, design):
    """Returns Path.p and Path.side."""
    if not looks:
        return np.ones((1, 0)), np.ones((1, 0))
    ps, sides = zip(*(look.evidence() for look in looks))
    p = np.stack([sequential_p(normal_score(p) / bar, look.log_ratio, design)
                  for look, p, bar in zip(looks, ps, design.bars)], 1)
    smallest = np.minimum.accumulate(p, 1)
    # the look that the smallest p is from
    source = np.maximum.accumulate(np.where(p == smallest, np.arange(len(looks)), 0), 1)
    return smallest, np.take_along_axis(np.stack(sides, 1), source, 1)


def equivalence_ps(looks, design, delta):
    """Returns Path.tost_p: the larger p of two one-sided tests, each with half of a two-sided p."""
    if not looks:
        return np.ones((1, 0))
    sides = []
    for side in 1, -1:
        ps = []
        for look, bar in zip(looks, design.bars):
            inside = side * look.score(-side * delta)
            p = sequential_p(inside.clip(0) / bar, look.log_ratio, design) / 2
            ps.append(np.where(inside > 0, p, 1.0))
        sides.append(np.minimum.accumulate(np.stack(ps, 1), 1))
    return np.maximum(*sides)


# -----------------------------------------------------------------------------
# the difference after a stop

def bar_of_level(level, log_ratio, design):
    """Returns the scores, over the bars of their looks, whose sequential p is this level; log_ratio: (S,)."""
    low, high = np.full_like(log_ratio, 0.2), np.full_like(log_ratio, MAX_SCORE)
    # p falls with the score: 25 halvings
    for _ in range(25):
        middle = (low + high) / 2
        above = sequential_p(middle, log_ratio, design) > level
        low, high = np.where(above, middle, low), np.where(above, high, middle)
    return high


def estimate(look, k, level, design, alpha=0.05):
    """Returns the difference, and its interval [low, high], of one study that ended at look k, from 0.

    By stagewise ordering (Tsiatis, Rosner and Mehta 1984): a study that stopped earlier saw more. The estimate is
    the difference under which half of all studies would see less, the interval's ends those under which alpha / 2
    would see less, or more. level: of the tests by which earlier looks could have stopped it.
    """
    seen, tail = float(look.score()[0]), interval_tail(design, alpha)
    targets = scipy.special.ndtri([tail, 0.5, 1 - tail])
    # (drifts,): of the score at look k, wide enough for all targets
    drifts = np.linspace(min(seen, 0) - 3.5, max(seen, 0) + 3.5, 57)
    log_ratio = np.repeat(look.log_ratio, len(drifts))
    chance = chance_of_more(np.full(len(drifts), seen), drifts, k, level, log_ratio, design)
    found = np.interp(targets, scipy.special.ndtri(chance.clip(1e-12, 1 - 1e-12)), drifts)
    low, middle, high = look.difference_of_score(seen - found)
    return float(middle), [float(low), float(high)]


def interval_tail(design, alpha=0.05):
    """Returns the chance beyond each end of an interval; less than alpha / 2 for pairs, whose p has a spare, too."""
    return alpha / 2 / (1.1 if design.test == 'paired' else 1.0)


def chance_of_more(seen, drifts, k, level, log_ratio, design):
    """Returns the chances, (S,), to stop with a positive difference before look k or to be above `seen` there.

    seen: scores at look k, (S,). drifts: the scores to be expected there, (S,). log_ratio: (S,).
    """
    if k == 0:
        return scipy.special.ndtr(drifts - seen)
    ratio = np.exp(np.clip(log_ratio, -log(MAX_RATIO), log(MAX_RATIO)))
    info = information(ratio, design.plan, design.baseline_plan)[:, :k + 1]
    bars = bar_of_level(level, log_ratio, design)[:, None] * np.array(design.bars[:k + 1])
    # the last bar is what was seen there
    bars[:, -1] = seen
    drift = drifts / np.sqrt(info[:, -1])
    return walk(info, bars, drift[:, None])[0].sum(-1)


# -----------------------------------------------------------------------------
# planning

def runs_needed(base, var, design, delta, level, belief, p):
    """Returns the planned number of runs by which 4 of 5 studies that go on from here are decided, and their share.

    (None, the share at the last look) if there is none. base: (n_base,), var: (n,), runs so far; further ones are
    drawn with each arm's sd around differences drawn from the belief. level: of the tests. p: the smallest so far.
    """
    rng, n, last = np.random.default_rng(0), len(var), design.plan[-1]
    difference = rng.choice(belief.differences, (PLAN_STUDIES, 1), p=belief.weights)
    base, var = (x[0] for x in mark_bad(base[None], var[None]))
    if design.test == 'paired':
        # a pair with a bad run is none
        known = np.where(np.isfinite(base) & np.isfinite(var), var, inf) - np.where(np.isfinite(base), base, 0.0)
        base, center = np.zeros((PLAN_STUDIES, last)), 0.0
    else:
        good = base[np.isfinite(base)]
        known, center = var, good.mean()
        # later looks may ask for more runs of the baseline, too
        more = max(design.baseline_plan) - len(base)
        further = center + good.std(ddof=1) * rng.standard_normal((PLAN_STUDIES, max(more, 0)))
        base = np.concatenate((np.broadcast_to(base, (PLAN_STUDIES, len(base))), further), 1)
    noise = known[np.isfinite(known)].std(ddof=1) * rng.standard_normal((PLAN_STUDIES, last - n))
    runs = np.concatenate((np.broadcast_to(known, (PLAN_STUDIES, n)), center + difference + noise), 1)
    path = follow(base, runs, design, delta)
    share = ((np.minimum(path.p, p) < level) | (path.tost_p < level)).mean(0)
    found = [(m, float(x)) for m, x in zip(design.plan, share) if m > n and x >= SETTLED]
    return found[0] if found else (None, float(share[-1]))


# -----------------------------------------------------------------------------
# verdicts

def judge(losses, design, delta=0.005, alpha=0.05, baseline=None, plan=True):
    """Returns the stats.Verdicts on {arm: {seed: loss}}, by replaying the looks as far as each arm's runs reach.

    Runs count in the order in which they are given, inf for one that diverged; a run that failed is absent.
    baseline: by default the first arm. An arm that is decided at a look keeps its verdict, whatever runs follow. Holm's
    correction covers all arms. plan: also simulate how many runs would settle what is open, .1 s an arm. Raises
    Stop for losses or settings that make no sense.
    """
    baseline = next(iter(losses), None) if baseline is None else baseline
    stats.validate_losses(losses, baseline, least=0)
    stats.validate_levels(delta, alpha)
    if design.test not in TESTS:
        raise Stop(f'test={design.test}: must be {" or ".join(TESTS)}')
    pairs = {arm: runs_of(losses[baseline], runs, design) for arm, runs in losses.items() if arm != baseline}
    paths = {arm: follow(base[None], var[None], design, delta) for arm, (base, var) in pairs.items()}

    # {arm: the look at which it stands, from 0}; -1: not even the first was reached
    at, verdicts, decided = dict.fromkeys(paths, -1), dict.fromkeys(paths, "can't tell"), {}
    for k in range(len(design.plan)):
        for arm, path in paths.items():
            if arm not in decided and k < len(path.looks):
                at[arm] = k
        corrected = corrected_ps(paths, at)
        for arm, (holm_p, tost_holm_p) in corrected.items():
            if arm not in decided and at[arm] >= 0:
                found = word_at(pairs[arm], paths[arm], at[arm], design, holm_p < alpha, tost_holm_p < alpha)
                if found != "can't tell":
                    verdicts[arm], decided[arm] = found, design.plan[at[arm]]

    comparisons = {}
    for arm, path in paths.items():
        c = comparison_at(pairs[arm], path, at[arm], design, delta, alpha, alpha / len(paths), plan)
        c.holm_p, c.tost_holm_p = corrected[arm]
        c.verdict, c.decided_at = verdicts[arm], decided.get(arm)
        if not c.decided_at:
            c.next_look = next((n for n in design.plan if n > len(pairs[arm][1])), None)
        comparisons[arm] = c
    arms = {arm: stats.summarize(runs) for arm, runs in losses.items()}
    seeds = sorted(set().union(*losses.values()))
    return stats.Verdicts(baseline, seeds, delta, alpha, list(design.looks), alpha, arms, comparisons, design.test)


def runs_of(base, var, design):
    """Returns the losses of the baseline and of an arm, (n_base,) and (n,): of common seeds if they are paired."""
    if design.test == 'paired':
        common = [seed for seed in var if seed in base]
        base, var = ({seed: runs[seed] for seed in common} for runs in (base, var))
    return np.array(list(base.values()), float), np.array(list(var.values()), float)


def runs_at(pair, design, k):
    """Returns the runs of the baseline and of an arm that look k, from 0, sees."""
    base, var = pair
    n = design.plan[k]
    return base[:n if design.test == 'paired' else design.baseline_plan[k]], var[:n]


def word_at(pair, path, k, design, differs, equivalent):
    """Returns the verdict on an arm at look k, from 0."""
    base, var = runs_at(pair, design, k)
    more_bad = stats.has_more_bad(stats.bad_runs(base, var), len(base), len(var))
    return stats.word(path.side[0, k], differs, equivalent, more_bad, np.isinf(base).any() or np.isinf(var).any())


def corrected_ps(paths, at):
    """Returns {arm: (p, tost_p) after Holm} of arms at their looks; 1 before the first."""
    ps = [[float(x[0, at[arm]]) if at[arm] >= 0 else 1.0 for arm, path in paths.items()
           for x in [getattr(path, name)]] for name in ('p', 'tost_p')]
    return dict(zip(paths, zip(*map(stats.holm, ps))))


def comparison_at(pair, path, k, design, delta, alpha, level, plan):
    """Returns the stats.Comparison of an arm at look k, -1 for none, without what depends on other arms."""
    base, var = runs_at(pair, design, k) if k >= 0 else pair
    paired = design.test == 'paired'
    c = stats.describe(base[:len(var)] if paired else base, var, paired)
    if k < 0:
        return c
    look = path.looks[k]
    c.p, c.tost_p, c.side = float(path.p[0, k]), float(path.tost_p[0, k]), int(path.side[0, k])
    # too few good runs
    if c.raw_mean is None:
        return c
    c.mean, c.interval = estimate(look, k, level, design, alpha)
    belief = stats.believe(stats.differences(look), c.sd_base, delta)
    stats.state(c, belief)
    if plan and c.p >= level and c.tost_p >= level:
        c.runs_to_settle, c.settle_chance = runs_needed(base, var, design, delta, level, belief, c.p)
    return c
