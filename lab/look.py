"""One look at two arms: their difference, its standard error, and p values, for many studies at once.

Unpaired runs may have unequal variances. Welch's test finds too much where four runs meet forty (2.1 % at a level
of 1 %), Behrens and Fisher's too little where the baseline has five runs; their weighted mean keeps its level in
both, and in the tails.
"""
from dataclasses import dataclass
from functools import cache
from math import inf, pi

import numpy as np

try:
    # scipy imports scipy.special at its first use
    import scipy
# ab.py says what to install
except ImportError:
    scipy = None

MAX_SCORE = 7.0         # normal scores are cut here, two-sided p 3e-12
FAR = 10                # a bad run lies this many robust sds above its arm's median
LOST = 0.2              # share of the level for the numbers of bad runs, where there are any
NODES = 48              # of the integral over the share of two variances
TAIL_POINTS = 3000      # of a table of t's tail: relative error 1e-4 at most where p > 1e-9


# -----------------------------------------------------------------------------
# a look

@dataclass
class Look:
    """Differences, arm - baseline, of (S,) studies at one look, and squared standard errors of both means.

    Only good runs count; numbers of bad ones (diverged, or far above the rest) are compared by themselves.
    """
    difference: np.ndarray
    square_var: np.ndarray          # paired: of the mean difference
    square_base: np.ndarray         # paired: 0
    n_var: np.ndarray               # good runs; paired: pairs
    n_base: np.ndarray | None       # paired: None
    lost_p: np.ndarray | None = None    # two-sided p of the numbers of bad runs; None if there are none
    lost_side: np.ndarray | None = None # 1 where more of the arm's did, -1 where fewer

    def of(self, i):
        """Returns the Look of study i alone."""
        return Look(*(x if x is None else x[i:i + 1] for x in vars(self).values()))

    @property
    def se(self):
        return np.sqrt(self.square_var + self.square_base)

    @property
    def log_ratio(self):
        """(S,): log of the arm's sd over the baseline's."""
        if self.n_base is None:
            return np.zeros_like(self.difference)
        tiny = 1e-300
        return 0.5 * np.log((self.square_var * self.n_var + tiny) / (self.square_base * self.n_base + tiny))

    def evidence(self):
        """Returns the two-sided p values, (S,), that the arms do not differ, and the sides that they speak for.

        Where runs are bad, a share LOST of the level is for their numbers, the rest for the losses of the others.
        """
        p, side = self.p(), np.sign(self.difference)
        if self.lost_p is None:
            return p, side
        any_lost = np.isfinite(self.lost_p)
        by_loss, by_number = np.where(any_lost, p / (1 - LOST), p), np.where(any_lost, self.lost_p / LOST, inf)
        p = np.minimum(by_loss, by_number).clip(max=1)
        return p, np.where(by_number < by_loss, self.lost_side, side)

    def p(self, against=0.0):
        """Returns the two-sided p values, (S,), of a true difference of `against`."""
        d = self.difference - against
        # no variance: infinitely far, or 0 for no difference
        return self.p_of_t(np.divide(abs(d), self.se, out=np.where(d == 0, 0.0, inf), where=self.se > 0))

    def score(self, against=0.0):
        """Returns the normal scores, (S,), of a true difference of `against`; above 0 where more was seen."""
        return np.sign(self.difference - against) * normal_score(self.p(against))

    def p_of_t(self, t):
        """Returns the two-sided p values of t >= 0, (S,)."""
        if self.n_base is None:
            p, enough = 2 * scipy.special.stdtr(np.maximum(self.n_var - 1, 1), -t), self.n_var > 1
        else:
            p, enough = welch_p(t, self), np.minimum(self.n_var, self.n_base) > 1
        # one run has no variance
        return np.where(enough, p, 1.0)

    def difference_of_score(self, score):
        """Returns the true differences that have these scores, for one study; score: (...)."""
        if self.n_base is None:
            return self.difference - self.se * scipy.stats.t.ppf(scipy.special.ndtr(score), self.n_var - 1)
        t = np.sinh(np.linspace(0, 8, 400))
        fields = self.difference, self.square_var, self.square_base, self.n_var, self.n_base
        scores = normal_score(Look(*(np.repeat(x, len(t)) for x in fields)).p_of_t(t))
        # np.interp wants scores that grow
        grows = np.concatenate(([True], np.diff(scores) > 0))
        t = np.sign(score) * np.interp(abs(score), scores[grows], t[grows])
        return self.difference - self.se * t


def normal_score(p):
    """Returns the score z >= 0 with P(|Z| > z) = p, MAX_SCORE at most."""
    return (-scipy.special.ndtri(p / 2)).clip(0, MAX_SCORE)


def look_unpaired(base, var):
    """Returns the Look at losses base, (S, n_base), and var, (S, n_var), inf for a diverged run."""
    base, var = mark_bad(base, var)
    (mean_base, square_base, n_base), (mean_var, square_var, n_var) = map(moments, (base, var))
    return Look(mean_var - mean_base, square_var, square_base, n_var, n_base, *compare_lost(base, var))


def look_paired(base, var):
    """Returns the Look at pairs of losses, (S, n) each; a pair counts if both runs are good."""
    base, var = mark_bad(base, var)
    ends = np.isfinite(base) & np.isfinite(var)
    d = np.where(ends, var, 0.0) - np.where(ends, base, 0.0)
    mean, square, n = moments(np.where(ends, d, inf))
    return Look(mean, square, np.zeros_like(mean), n, None, *compare_lost(base, var))


def mark_bad(base, var):
    """Returns losses (S, n_base) and (S, n) in which bad runs are inf too: FAR robust sds above their arm's median.

    The sd is 1.48 times the median distance from the median; that of the other arm if it is larger, and of as many
    runs. Means of arms with rare bad runs have no useful standard error: 12 % of studies of no effect found one.
    """
    arms = base, var
    distances = [x - row_median(x) for x in arms]
    sds = [1.4826 * row_median(abs(d)) for d in distances]
    marked = []
    for x, d, sd, other, other_sd in zip(arms, distances, sds, arms[::-1], sds[::-1]):
        if other.shape[1] >= x.shape[1]:
            sd = np.maximum(sd, other_sd)
        marked.append(np.where((d > FAR * sd) & (sd > 0), inf, x))
    return marked


def row_median(x):
    """Returns the median of what is finite in each row of x, (S, 1); 0 where nothing is."""
    ordered, n = np.sort(x, 1), np.isfinite(x).sum(1, keepdims=True)
    if not x.shape[1]:
        return np.zeros((len(x), 1))
    places = np.maximum(n - 1, 0) // 2, np.minimum(n // 2, x.shape[1] - 1)
    middle = [np.take_along_axis(ordered, at, 1) for at in places]
    return np.where(n > 0, np.where(n > 0, middle, 0.0).mean(0), 0.0)


def moments(x):
    """Returns the mean of what is finite in each row of x, its squared standard error, and its number."""
    ends = np.isfinite(x)
    n = ends.sum(1)
    mean = np.where(ends, x, 0.0).sum(1) / np.maximum(n, 1)
    squares = (np.where(ends, x - mean[:, None], 0.0) ** 2).sum(1)
    # equal losses differ by rounding
    squares = np.where(squares > n * (1e-15 * mean) ** 2, squares, 0.0)
    return mean, squares / np.maximum(n - 1, 1) / np.maximum(n, 1), n


def compare_lost(base, var):
    """Returns Look.lost_p and lost_side: Fisher's exact test, twice its smaller tail; NaN without bad runs."""
    in_base, in_var = (np.isinf(x).sum(1) for x in (base, var))
    lost, n_base, n_var = in_base + in_var, base.shape[1], var.shape[1]
    if not lost.any():
        return None, None
    runs = n_base + n_var, lost, n_var
    fewer, more = scipy.stats.hypergeom.cdf(in_var, *runs), scipy.stats.hypergeom.sf(in_var - 1, *runs)
    p = 2 * np.minimum(fewer, more).clip(max=0.5)
    return np.where(lost, p, np.nan), np.sign(in_var * n_base - in_base * n_var)


# -----------------------------------------------------------------------------
# the unpaired test

def welch_p(t, look):
    """Returns the two-sided p of t = |difference| / standard error, (S,), for an unpaired Look."""
    df_var, df_base = (np.maximum(n - 1, 1) for n in (look.n_var, look.n_base))
    total = look.square_var + look.square_base
    # two groups of equal losses have no variance to share
    share = np.divide(look.square_var, total, out=np.full_like(total, 0.5), where=total > 0)
    # Satterthwaite's degrees of freedom
    df = 1 / (share ** 2 / df_var + (1 - share) ** 2 / df_base)
    # Welch's counts where few runs of the baseline make most of the variance; 10 and .9 were found by simulation
    weight = np.minimum(0.9, 10 / (df_base + 1) * (1 - share))
    by_fisher = np.empty_like(t)
    # all studies of a kind have equal numbers of runs, but for those that diverged
    for pair in set(zip(df_var.tolist(), df_base.tolist())):
        at = (df_var == pair[0]) & (df_base == pair[1])
        by_fisher[at] = fisher_p(t[at], share[at], *pair)
    return (1 - weight) * by_fisher + weight * 2 * scipy.special.stdtr(df, -t)


def fisher_p(t, share, df_var, df_base):
    """Returns Behrens and Fisher's two-sided p: P(|t_var cos a + t_base sin a| > t), cos^2 a = share.

    Given the share B of one of two chi squares in their sum, which has a beta distribution, that sum of two t is
    a t with df_var + df_base degrees of freedom, scaled; so p is an integral over B. t, share: (S,).
    """
    b, rest, weights = shares(df_var, df_base)
    df = df_var + df_base
    spread = df_var * share[:, None] / b + df_base * (1 - share[:, None]) / rest # (S, NODES)
    return 2 * t_tail(t[:, None] * np.sqrt(df / spread), df) @ weights


@cache
def shares(df_var, df_base):
    """Returns nodes B, 1 - B and weights, (NODES,) each, of a mean over B from Beta(df_var / 2, df_base / 2)."""
    x, w = np.polynomial.legendre.leggauss(NODES)
    # B = sin^2 of an angle whose nodes crowd at both ends, where small p values come from
    u = (x + 1) / 2
    angle = pi / 2 * u ** 2 * (3 - 2 * u)
    logs = np.log(w * u * (1 - u)) + (df_var - 1) * np.log(np.sin(angle)) + (df_base - 1) * np.log(np.cos(angle))
    weights = np.exp(logs - logs.max())
    return np.sin(angle) ** 2, np.cos(angle) ** 2, weights / weights.sum()


def t_tail(t, df):
    """Returns P(T > t) for t >= 0, an array, from a table: a tenth of scipy's time."""
    return np.exp(np.interp(np.arcsinh(t), *t_tail_table(df)))


@cache
def t_tail_table(df):
    """Returns asinh(t) and log P(T > t), (TAIL_POINTS,) each."""
    grid = np.linspace(0, 9, TAIL_POINTS)
    return grid, np.log(scipy.special.stdtr(df, -np.sinh(grid)).clip(1e-300))
