"""From final losses, one a seed and arm, to a verdict: arms x seeds -> better, worse, equivalent, can't tell, screen.

Lower is better; losses are in nats; +inf is a run that diverged. Arms are compared with the baseline seed by seed.

better, worse   Holm's p over all comparisons is below alpha, by the paired t test, and the exact sign-flip test, which
                does without the normal distribution, agrees: p <= alpha. With 5 seeds its smallest p is .0625, so there
                it must be at that floor: all five seeds on one side.
equivalent      not better or worse, and the difference lies within +-delta: both one-sided t tests (TOST), after Holm.
screen          fewer than MIN_SEEDS seeds: numbers, no verdict.
can't tell      all else, with the seeds that would settle it.

Diverged runs rank last and leave no mean, so there the exact rank-sum test of the two arms takes the place of the t and
sign-flip tests; such an arm is never equivalent, and not better if it diverged more often than the baseline.
"""
import csv
import io
import re
from bisect import bisect_left
from dataclasses import asdict, dataclass
from functools import cache
from math import ceil, inf, isfinite, sqrt
from pathlib import Path

import numpy as np
from scipy.stats import beta, chi2, nct, norm, rankdata, t as student, ttest_ind_from_stats

from core.errors import Stop

MIN_SEEDS = 5           # fewer: no verdict
MAX_SEEDS = 1000        # nobody plans a larger study
POWER = 0.8
EXACT_FLIPS = 40        # seeds up to which every assignment of signs is counted
FLIP_DRAWS = 99_999     # random assignments above that


@dataclass
class Comparison:
    """A variant against the baseline; differences are variant - baseline. None: undefined, as where a run diverged."""
    n: int
    diverged: dict                      # runs: base, var, and both, pairs in which both did
    wins: int                           # seeds at which the variant is lower
    wins_interval: list                 # exact (Clopper-Pearson), for the chance of a win at the same seed
    p_improve: float                    # chance that some variant run beats some baseline run: all n^2 pairs, ties half
    test: str = 'paired t'              # where p comes from; 'rank sum' if a run diverged
    p: float | None = None              # two-sided
    mean: float | None = None
    sd: float | None = None             # of the differences
    sd_base: float | None = None
    sd_var: float | None = None
    rho: float | None = None            # correlation of the arms over seeds
    pairing_gain: float | None = None   # (sd_base^2 + sd_var^2) / sd^2: how many times fewer seeds than unpaired
    interval: list | None = None        # of the mean, t, level 1 - alpha
    t: float | None = None
    welch_p: float | None = None        # as if unpaired: to read beside p where rho <= 0
    flip_p: float | None = None
    flip_floor: float | None = None     # the smallest p that n seeds allow
    flip_draws: int | None = None       # 0: every assignment of signs was counted
    mde: float | None = None            # the difference that this study had an 80 % chance to find
    seeds: int | None = None            # to find delta with power 80 %; None: more than MAX_SEEDS
    seeds_unpaired: int | None = None
    tost_p: float | None = None
    tost_interval: list | None = None   # level 1 - 2 alpha; TOST rejects when it lies inside +-delta
    equivalent: bool = False            # it does, before Holm


# -----------------------------------------------------------------------------
# one comparison

def compare(base, var, delta=0.005, alpha=0.05):
    """Comparison of two arms, (n,) losses each in the same order of seeds, as a dict."""
    base, var = np.asarray(base, float), np.asarray(var, float)
    n, wins, ties = len(base), int((var < base).sum()), int((var == base).sum())
    lost = np.isinf(base), np.isinf(var)
    diverged = dict(zip(('base', 'var', 'both'), (int(x.sum()) for x in (*lost, lost[0] & lost[1]))))
    pairs = (var < base[:, None]).sum() + (var == base[:, None]).sum() / 2 # of (n, n), every run against every other
    c = Comparison(n, diverged, wins, clopper_pearson(wins, ties, n, alpha), float(pairs / n ** 2))
    if np.any(lost):
        c.test, c.p = 'rank sum', rank_sum(base, var)
        return asdict(c)

    d = var - base
    mean = float(d.mean())
    sd, c.sd_base, c.sd_var = (float(x.std(ddof=1)) for x in (d, base, var))
    se = sd / sqrt(n)
    c.mean, c.sd = mean, sd
    t = ratio(mean, se)
    c.t, c.p = t if isfinite(t) else None, float(2 * student.sf(abs(t), n - 1))
    c.interval = around(mean, student.ppf(1 - alpha / 2, n - 1) * se)
    if n > 2 and c.sd_base and c.sd_var:
        c.rho = float(np.corrcoef(base, var)[0, 1])
    if c.sd_base or c.sd_var:
        c.welch_p = float(ttest_ind_from_stats(base.mean(), c.sd_base, n, var.mean(), c.sd_var, n, equal_var=False).pvalue)
    if sd:
        c.pairing_gain = (c.sd_base ** 2 + c.sd_var ** 2) / sd ** 2
    c.flip_p, c.flip_draws = sign_flip(d)
    c.flip_floor = 2.0 ** (1 - n)
    c.mde = float(student.ppf(1 - alpha / 2, n - 1) + student.ppf(POWER, n - 1)) * se
    c.seeds = seeds_needed(lambda n: paired_power(n, delta, sd, alpha))
    c.seeds_unpaired = seeds_needed(lambda n: unpaired_power(n, delta, c.sd_base, c.sd_var, alpha))
    c.tost_p = float(student.sf(min(ratio(delta + mean, se), ratio(delta - mean, se)), n - 1))
    c.tost_interval = around(mean, student.ppf(1 - alpha, n - 1) * se)
    c.equivalent = -delta < c.tost_interval[0] and c.tost_interval[1] < delta
    return asdict(c)


def around(middle, half):
    return [float(middle - half), float(middle + half)]


def sign_flip(d):
    """Two-sided p of the mean of d (n,) if every sign were a coin's, and how many assignments were drawn; 0: all counted."""
    d = np.asarray(d, float)
    bar = abs(d.sum()) - 1e-12 * abs(d).sum() # sums that are equal on paper differ by rounding
    if bar <= 0:
        return 1.0, 0
    if len(d) > EXACT_FLIPS:
        signs = np.random.default_rng(0).integers(2, size=(FLIP_DRAWS, len(d)), dtype=np.int8) * 2.0 - 1
        return float(((abs(signs @ d) >= bar).sum() + 1) / (FLIP_DRAWS + 1)), FLIP_DRAWS # + 1: d itself
    half = len(d) // 2
    left, right = signed_sums(d[:half]), np.sort(signed_sums(d[half:]))
    reached = left.size * right.size - int(np.searchsorted(right, bar - left).sum()) # pairs with left + right >= bar
    return 2 * reached / 2 ** len(d), 0


def signed_sums(d):
    """The sum of +-d for all 2^n assignments of signs."""
    sums = np.zeros(1)
    for x in d:
        sums = np.concatenate((sums + x, sums - x))
    return sums


def rank_sum(base, var):
    """Exact two-sided p of the Wilcoxon rank-sum test, with midranks for ties, by counting all choices of n ranks of 2n."""
    n = len(var)
    ranks = (2 * rankdata(np.concatenate((base, var)))).astype(int) # doubled: a midrank is a half
    ways = np.zeros((n + 1, ranks.sum() + 1)) # ways[k, s]: choices of k ranks with sum s
    ways[0, 0] = 1
    for r in ranks:
        ways[1:, r:] += ways[:-1, :-r]
    off = abs(np.arange(ways.shape[1]) - n * (2 * n + 1)) # n (2n + 1): the mean sum
    return float(ways[n, off >= off[ranks[n:].sum()]].sum() / ways[n].sum())


def clopper_pearson(wins, ties, n, alpha):
    """Exact interval for a chance. A tie counts as a loss for the lower end and as a win for the upper one."""
    low = beta.ppf(alpha / 2, wins, n - wins + 1) if wins else 0.0
    high = beta.ppf(1 - alpha / 2, wins + ties + 1, n - wins - ties) if wins + ties < n else 1.0
    return [float(low), float(high)]


# -----------------------------------------------------------------------------
# planning

def paired_power(n, difference, sd, alpha):
    """The chance that a paired t test of n seeds finds a true difference; sd of the differences."""
    return t_power(n - 1, ratio(difference * sqrt(n), sd), alpha)


def unpaired_power(n, difference, sd_base, sd_var, alpha):
    return t_power(2 * n - 2, ratio(difference * sqrt(n), sqrt(sd_base ** 2 + sd_var ** 2)), alpha)


def t_power(df, shift, alpha):
    bar, shift = student.ppf(1 - alpha / 2, df), min(abs(shift), 1e4) # beyond it scipy gives NaN
    return float(nct.sf(bar, df, shift) + nct.cdf(-bar, df, shift))


def tost_power(n, difference, sd, delta, alpha, points=400):
    """The chance that n seeds show equivalence, if the difference is truly this: a mean over the sd's they may come with."""
    if not sd:
        return float(abs(difference) < delta)
    s = np.sqrt(chi2.ppf((np.arange(points) + 0.5) / points, n - 1) / (n - 1))
    bar, scale = student.ppf(1 - alpha, n - 1) * s, sqrt(n) / sd
    inside = norm.cdf(scale * (delta - difference) - bar) - norm.cdf(bar - scale * (delta + difference))
    return float(inside.clip(0).mean())


def ratio(x, spread):
    """x / spread; without spread certain, or nothing."""
    return x / spread if spread else inf * x if x else 0.0


def seeds_needed(power):
    """The smallest n with power(n) >= 80 %, or None."""
    n = bisect_left(range(MAX_SEEDS + 1), POWER, lo=2, key=power)
    return n if n <= MAX_SEEDS else None


# What nominal_p() gives for the usual plans, from 4 million studies each, rounded down.
LOOKS = {
    (4, 8): 0.0276, (5, 8): 0.0294, (5, 10): 0.0279, (6, 12): 0.0281, (8, 16): 0.0285, (10, 20): 0.0286,
    (5, 7, 10): 0.0223, (5, 8, 12): 0.0212, (5, 10, 15): 0.0206, (5, 10, 20): 0.0195,
    (3, 6, 9, 12): 0.0161, (5, 6, 8, 10): 0.0199, (5, 10, 15, 20): 0.0169, (4, 6, 8, 10, 12): 0.0156,
}


@cache
def nominal_p(looks, alpha=0.05, studies=400_000):
    """The level at which each of several looks, a tuple of n, may test so that a study of no effect errs in alpha of cases."""
    if list(looks) != sorted(set(looks)) or not looks or looks[0] < 2:
        raise Stop(f'looks={",".join(map(str, looks))}: must be numbers of seeds that grow, the first at least 2')
    if len(looks) == 1:
        return alpha
    if alpha == 0.05 and looks in LOOKS:
        return LOOKS[looks]
    d = np.random.default_rng(0).standard_normal((looks[-1], studies), np.float32)
    smallest = np.ones(studies)
    for n in looks:
        t = d[:n].mean(0) * sqrt(n) / d[:n].std(0, ddof=1)
        smallest = np.minimum(smallest, 2 * student.sf(abs(t), n - 1))
    return float(np.quantile(smallest, alpha))


# -----------------------------------------------------------------------------
# many comparisons, and the verdict

def holm(ps):
    """Adjusted p values: rejecting those below alpha errs anywhere in the family in at most alpha of studies."""
    ps = np.asarray(ps, float)
    order = ps.argsort()
    adjusted = np.empty_like(ps)
    adjusted[order] = np.maximum.accumulate(ps[order] * np.arange(len(ps), 0, -1)).clip(max=1)
    return adjusted.tolist()


def benjamini_hochberg(ps):
    """Adjusted p values: of those below alpha, at most a share alpha is wrong on average. For ranking, not for claims."""
    ps = np.asarray(ps, float)
    order = ps.argsort()[::-1]
    adjusted = np.empty_like(ps)
    adjusted[order] = np.minimum.accumulate(ps[order] * len(ps) / np.arange(len(ps), 0, -1)).clip(max=1)
    return adjusted.tolist()


def verdict(c, alpha=0.05, p=None, tost_p=None):
    """The word for a Comparison; p and tost_p: adjusted ones, where it is one of several."""
    p = c['p'] if p is None else p
    tost_p = c['tost_p'] if tost_p is None else tost_p
    if c['n'] < MIN_SEEDS:
        return 'screen'
    if c['test'] == 'rank sum':
        if p < alpha and c['p_improve'] < 0.5:
            return 'worse'
        return 'better' if p < alpha and c['diverged']['var'] <= c['diverged']['base'] else "can't tell"
    if p < alpha and c['flip_p'] <= max(alpha, c['flip_floor']):
        return 'better' if c['mean'] < 0 else 'worse'
    return 'equivalent' if tost_p < alpha else "can't tell"


def study(table, baseline=None, delta=0.005, alpha=0.05, looks=None):
    """{arm: {seed: loss}} -> what report.json says: every number, and a verdict for each arm beside the baseline.

    baseline: None: the first arm. looks: the numbers of seeds at which the study is looked at, fixed before it began; each
    look then tests at nominal_p(looks). Intervals have the level of the tests, 1 - alpha for a single look."""
    baseline = next(iter(table), None) if baseline is None else baseline
    losses = checked(table, baseline) # {arm: (n,)}
    if not 0 < delta < inf:
        raise Stop(f'delta={delta}: must be above 0')
    if not 0 < alpha < 0.5:
        raise Stop(f'alpha={alpha}: must be above 0 and below 0.5')
    seeds = list(table[baseline])
    if looks and len(seeds) not in looks:
        raise Stop(f'looks={",".join(map(str, looks))}: {len(seeds)} seeds are none of the planned looks')
    level = nominal_p(tuple(looks), alpha) if looks else alpha
    arms = [arm for arm in losses if arm != baseline]
    found = [compare(losses[baseline], losses[arm], delta, level) for arm in arms]
    correct(found, delta, level)
    return dict(
        baseline=baseline, seeds=seeds, n=len(seeds), delta=delta, alpha=alpha, looks=list(looks or ()), level=level,
        arms={arm: describe(x, seeds) for arm, x in losses.items()},
        comparisons=dict(zip(arms, found)),
    )


def correct(family, delta, level):
    """Gives comparisons that are judged together their corrected p values, their verdicts, and what would settle them."""
    adjusted = zip(holm([c['p'] for c in family]), benjamini_hochberg([c['p'] for c in family]),
                   holm([1.0 if c['tost_p'] is None else c['tost_p'] for c in family]))
    for c, (holm_p, bh_p, tost_holm_p) in zip(family, adjusted):
        c |= dict(holm_p=holm_p, bh_p=bh_p, tost_holm_p=tost_holm_p, verdict=verdict(c, level, holm_p, tost_holm_p))
        if c['verdict'] == "can't tell" and c['mean'] is not None: # at the level that Holm asks of the smallest p
            ask = dict(sd=c['sd'], difference=c['mean'], alpha=level / len(family))
            c['seeds_difference'] = seeds_needed(lambda n, ask=ask: paired_power(n, **ask))
            c['seeds_equivalence'] = seeds_needed(lambda n, ask=ask: tost_power(n, delta=delta, **ask))


def describe(x, seeds):
    """One arm: its losses, None for a run that diverged, and what they amount to if none did."""
    whole = np.isfinite(x).all()
    moments = dict(mean=x.mean, sd=lambda: x.std(ddof=1), min=x.min, max=x.max)
    return {name: float(f()) if whole else None for name, f in moments.items()} | dict(
        diverged=[seed for seed, loss in zip(seeds, x) if loss == inf],
        losses={seed: float(loss) if loss < inf else None for seed, loss in zip(seeds, x)})


def checked(table, baseline, where=''):
    """{arm: losses in the baseline's order of seeds}, or a Stop that says what is missing."""
    if len(table) < 2:
        raise Stop(f'{where}arms: {", ".join(table) or "none"}: a comparison needs a baseline and a variant')
    if baseline not in table:
        raise Stop(f'{where}baseline={baseline}: no such arm; there are {", ".join(table)}')
    seeds = table[baseline]
    if len(seeds) < 2:
        raise Stop(f'{where}{baseline}: {len(seeds)} seed; must be at least 2')
    for arm, runs in table.items():
        for one, other in ((arm, baseline), (baseline, arm)):
            if missing := [seed for seed in table[other] if seed not in table[one]]:
                raise Stop(f'{where}{one}: no run with seed {missing[0]}, which {other} has')
        for seed, loss in runs.items():
            if not isinstance(loss, (int, float, np.number)) or not loss > -inf: # NaN too
                raise Stop(f'{where}{arm}, seed {seed}: loss={loss}: must be a number, inf for a diverged run')
    return {arm: np.array([float(runs[seed]) for seed in seeds]) for arm, runs in table.items()}


def read_csv(path):
    """{arm: {seed: loss}} from a file with columns arm, seed and loss among others."""
    table, came = {}, {}
    try:
        rows = csv.DictReader(io.StringIO(Path(path).read_text(encoding='utf-8-sig')), strict=True)
        rows.fieldnames = columns = [name.strip() for name in rows.fieldnames or ()]
        if any(columns.count(name) != 1 for name in ('arm', 'seed', 'loss')):
            raise Stop(f'{path}:1: columns {", ".join(columns) or "(none)"}: must have arm, seed and loss, once each')
        for row in rows:
            where = f'{path}:{rows.line_num}: '
            arm, seed, loss = ((row[name] or '').strip() for name in ('arm', 'seed', 'loss'))
            if not arm:
                raise Stop(f'{where}no arm')
            seed = number(seed, int, f'{where}seed={seed}: must be a whole number')
            if (arm, seed) in came:
                raise Stop(f'{where}{arm}, seed {seed} again; first on line {came[arm, seed]}')
            came[arm, seed] = rows.line_num
            table.setdefault(arm, {})[seed] = number(loss, float, f'{where}loss={loss}: must be a number, inf for a diverged run')
        checked(table, next(iter(table), None), f'{path}:{rows.line_num}: ')
    except OSError as error:
        raise Stop(f'{path}: {error.strerror}') from None
    except UnicodeDecodeError:
        raise Stop(f'{path}: is not UTF-8 text') from None
    except csv.Error as error:
        raise Stop(f'{path}:{rows.reader.line_num}: {error}') from None
    return table


def number(text, kind, otherwise):
    try:
        value = kind(text)
    except ValueError:
        raise Stop(otherwise) from None
    if not value > -inf: # NaN too
        raise Stop(otherwise)
    return value


# -----------------------------------------------------------------------------
# beside the verdict: other text, and steps

def text_interval(diff_per_window, block=None, resamples=10_000, seed=0, alpha=0.05):
    """How far the difference could move on other text: an interval for the mean of the seed-averaged loss differences of
    contiguous validation windows (W,), by a circular block bootstrap. None below 10 windows.

    Neighbouring windows are alike, so blocks of them are drawn. Block length: W^(1/3), times (6 r^2 / (1 - r^2)^2)^(1/3)
    where that is longer, the best for an AR(1) of the windows' lag-1 correlation r (Carlstein 1986); at most W / 3.
    It says nothing of other seeds: the windows of one split are not independent runs.
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
    ends = np.concatenate((x, x[:block])).cumsum()
    means = (ends[block:] - ends[:-block]) / block # (W,): of the block after each window
    picked = np.random.default_rng(seed).integers(W, size=(resamples, W // block))
    drawn = means[picked].mean(1)
    low, high = np.quantile(drawn, [alpha / 2, 1 - alpha / 2])
    return dict(mean=float(x.mean()), low=float(low), high=float(high), se=float(drawn.std()), block=block, windows=W,
                resamples=resamples)


def step_equivalents(d, iters, base_curve, last=5):
    """The baseline's iterations that a difference d is worth, positive where d saves them: d over the slope of the
    baseline's last evaluations, by least squares. None where that curve does not fall: more steps would buy nothing.
    With a decaying learning rate the curve flattens towards its end, so this is the price at the end, not a forecast."""
    x, y = np.asarray(iters, float)[-last:], np.asarray(base_curve, float)[-last:]
    if len(x) < 2 or not np.isfinite(y).all():
        return None
    x = x - x.mean()
    slope = float(x @ y / (x @ x))
    return d / slope if slope < 0 else None


# -----------------------------------------------------------------------------
# in words

def text_table(result, extra=None):
    """study()'s result for a terminal: a row an arm, a line an arm that says what follows, and what the words mean.
    extra: {title: {arm: text}}, further columns."""
    extra = extra or {}
    rows = [['variant', 'n', 'loss', f'd vs {result["baseline"]} [{100 * (1 - result["level"]):.3g}% t]', 'sd_d', 'rho', 'p',
             'Holm', 'flip p', 'wins', 'P(imp)', 'MDE80', *extra, 'verdict']]
    for arm, a in result['arms'].items():
        c = result['comparisons'].get(arm)
        loss = f'diverged {len(a["diverged"])}/{result["n"]}' if a['diverged'] else f'{a["mean"]:.4f}±{short(a["sd"])}'
        cells = [''] * 9 if c is None else [
            f'{short(c["mean"], sign="+")} [{span(c["interval"])}]' if c['interval'] else '-', short(c['sd']), short(c['rho'], 2),
            p_text(c['p']), p_text(c['holm_p']), p_text(c['flip_p']), f'{c["wins"]}/{c["n"]}', short(c['p_improve'], 2),
            short(c['mde'])]
        rows.append([arm, str(result['n']), loss, *cells, *(column.get(arm, '') for column in extra.values()),
                     'baseline' if c is None else c['verdict']])
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = ['  '.join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
    words = [f'{arm}: {in_words(c, result)}' for arm, c in result['comparisons'].items()]
    return '\n'.join([*lines, '', *words, '', *legend(result)])


def in_words(c, result):
    """What follows from a comparison, and what is missing."""
    delta, n, gone = result['delta'], c['n'], c['diverged']
    said = [c['verdict']]
    if c['verdict'] == 'screen':
        said += [f'{n} seeds give no verdict, {MIN_SEEDS} do']
    said += [f'{who} diverged in {gone[arm]} of {n} runs' for arm, who in (('var', 'it'), ('base', 'the baseline')) if gone[arm]]
    if c['test'] == 'rank sum' and c['verdict'] != 'screen':
        said += [f'by ranks, p {p_text(c["holm_p"])}']
    elif c['verdict'] in ('better', 'worse'):
        said[0] += f' by {short(abs(c["mean"]))}, at {c["wins"] if c["mean"] < 0 else n - c["wins"]} of {n} seeds'
        said += [f'so little that it also counts as equivalent, within ±{delta:g}'] * c['equivalent']
    elif c['verdict'] == 'equivalent':
        said += [f'the difference is within ±{delta:g}' if c['sd'] or c['mean'] else 'equal to the bit']
    elif c['verdict'] == "can't tell":
        said += what_is_missing(c, result['level'], delta)
    if c['rho'] is not None and c['rho'] <= 0 and c['verdict'] != 'screen':
        said += [f'seeds do not pair, rho {short(c["rho"], 2)}: unpaired p {p_text(c["welch_p"])}']
    return '; '.join(said)


def what_is_missing(c, level, delta):
    if c['holm_p'] < level:
        yield f'the sign-flip test does not agree, p {p_text(c["flip_p"])}'
    elif c['p'] < level:
        yield f'p {p_text(c["p"])} is {p_text(c["holm_p"])} after Holm'
    difference, equal = (n and max(n - c['n'], 1) for n in (c['seeds_difference'], c['seeds_equivalence']))
    seeds = f'about {difference or equal} more seed{"s" * ((difference or equal) != 1)} would'
    if difference:
        sooner = f', {equal} that it is within ±{delta:g}' if equal and equal < difference else ''
        yield f'{seeds} settle a difference of {short(c["mean"], sign="+")}{sooner}'
    elif equal:
        yield f'{seeds} show that it is within ±{delta:g}'
    else:
        yield f'not even {MAX_SEEDS} seeds would settle a difference of {short(c["mean"], sign="+")}'


def legend(result):
    level, delta, n = f'{result["level"]:.3g}', result['delta'], result['n']
    several = ' after Holm' if len(result['comparisons']) > 1 else ''
    meaning = {
        'better, worse': f'p below {level}{several}, and the sign-flip test agrees{": all seeds on one side" if n == 5 else ""}',
        'equivalent': f'shown to be within ±{delta:g}, by one-sided tests at {level}{several}',
        "can't tell": f'neither a difference nor equivalence within ±{delta:g} is shown; this is not "no effect"',
        'screen': 'too few seeds; not even the sign is to be trusted',
    }
    yield "d: variant - baseline, in nats; P(imp): a variant's run beats a baseline's; MDE80: what 4 of 5 such studies would find"
    yield from (f'{word}: {text}' for word, text in meaning.items()
                if any(c['verdict'] in word for c in result['comparisons'].values()))
    if following := [look for look in result['looks'] if look > n]:
        yield f'looks at {", ".join(map(str, result["looks"]))} seeds, each at {level}: the next is at {following[0]}'


def short(x, digits=4, sign=''):
    """.0024; a number too small for that as 1e-07."""
    if x is None:
        return '-'
    text = f'{x:{sign}.{digits}f}' if not x or abs(x) >= 0.5 * 10 ** -digits else f'{x:{sign}.0e}'
    return re.sub(r'^([+-]?)0\.', r'\1.', text)


def span(interval):
    return ', '.join(short(x, sign='+') for x in interval)


def p_text(p):
    return '-' if p is None else '<.001' if p < 0.001 else short(p, 3)
