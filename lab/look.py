"""One look at two arms: their difference, its standard error, and p values, for many studies at once.

Unpaired runs may have unequal variances. Welch's test finds too much where four runs meet forty (2.1 % at a level
of 1 %), Behrens and Fisher's too little where the baseline has five runs; their weighted mean keeps its level in
both, and in the tails. A diverged run (inf) is worse than all others.
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
NODES = 48              # of the integral over the share of two variances
TAIL_POINTS = 3000      # of a table of t's tail: relative error 1e-4 at most where p > 1e-9


# -----------------------------------------------------------------------------
# a look

@dataclass
class Look:
    """Differences, arm - baseline, of (S,) studies at one look, and squared standard errors of both means."""
    difference: np.ndarray
    square_var: np.ndarray          # paired: of the mean difference
    square_base: np.ndarray         # paired: 0
    n_var: int | np.ndarray         # paired: pairs that count, (S,)
    n_base: int | None              # paired: None

    def of(self, i):
        """Returns the Look of study i alone."""
        n_var = self.n_var[i:i + 1] if isinstance(self.n_var, np.ndarray) else self.n_var
        fields = self.difference, self.square_var, self.square_base
        return Look(*(x[i:i + 1] for x in fields), n_var, self.n_base)

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

    def p(self, against=0.0):
        """Returns the two-sided p values, (S,), of a true difference of `against`."""
        d = self.difference - against
        # no variance: infinitely far, or 0 for no difference
        return self.p_of_t(np.divide(abs(d), self.se, out=np.where(d == 0, 0.0, inf), where=self.se > 0))

    def score(self, against=0.0):
        """Returns the normal scores, (S,), of a true difference of `against`; above 0 where more was seen."""
        return np.sign(self.difference - against) * normal_score(self.p(against))

    def p_of_t(self, t):
        """Returns the two-sided p values of t >= 0."""
        if self.n_base is None:
            # one pair has no variance
            p = 2 * scipy.special.stdtr(np.maximum(self.n_var - 1, 1), -t)
            return np.where(self.n_var > 1, p, 1.0)
        square_var, square_base = (np.broadcast_to(x, t.shape) for x in (self.square_var, self.square_base))
        return welch_p(t, square_var, square_base, self.n_var, self.n_base)

    def difference_of_score(self, score):
        """Returns the true differences that have these scores, for one study; score: (...)."""
        if self.n_base is None:
            return self.difference - self.se * scipy.stats.t.ppf(scipy.special.ndtr(score), self.n_var - 1)
        t = np.sinh(np.linspace(0, 8, 400))
        scores = normal_score(self.p_of_t(t))
        # np.interp wants scores that grow
        grows = np.concatenate(([True], np.diff(scores) > 0))
        t = np.sign(score) * np.interp(abs(score), scores[grows], t[grows])
        return self.difference - self.se * t


def normal_score(p):
    """Returns the score z >= 0 with P(|Z| > z) = p, MAX_SCORE at most."""
    return (-scipy.special.ndtri(p / 2)).clip(0, MAX_SCORE)


def look_unpaired(base, var):
    """Returns the Look at losses base, (S, n_base), and var, (S, n_var); a diverged run is the worst of both arms."""
    finite = [np.where(np.isfinite(x), x, -inf).max(1, keepdims=True) for x in (base, var)]
    worst = np.maximum(*finite)
    # nothing finite: no difference is seen
    worst = np.where(np.isfinite(worst), worst, 0.0)
    base, var = (np.where(np.isfinite(x), x, worst) for x in (base, var))
    squares = [x.var(1, ddof=1) / x.shape[1] for x in (var, base)]
    return Look(var.mean(1) - base.mean(1), *squares, var.shape[1], base.shape[1])


def look_paired(base, var):
    """Returns the Look at pairs of losses, (S, n) each.

    Pairs with a diverged run cancel as far as both arms diverged equally often, and are left out. The excess of
    one arm counts as so many times the largest difference seen, to that arm's disadvantage.
    """
    ends = np.isfinite(base) & np.isfinite(var)
    excess = np.isfinite(base).sum(1) - np.isfinite(var).sum(1)
    d = np.where(ends, var, 0.0) - np.where(ends, base, 0.0)
    # where no pair ended, any number will do
    largest = np.where(ends.any(1), abs(d).max(1), 1.0)
    n = ends.sum(1) + abs(excess)
    mean = (d.sum(1) + excess * largest) / np.maximum(n, 1)
    squares = ((d - mean[:, None]) ** 2 * ends).sum(1) + abs(excess) * (np.sign(excess) * largest - mean) ** 2
    # rounding of equal differences is no variance
    squares = np.where(squares > 1e-24 * n * largest ** 2, squares, 0.0)
    return Look(mean, squares / np.maximum(n - 1, 1) / np.maximum(n, 1), np.zeros_like(mean), n, None)


# -----------------------------------------------------------------------------
# the unpaired test

def welch_p(t, square_var, square_base, n_var, n_base):
    """Returns the two-sided p of t = |difference| / standard error, arrays of one shape.

    square_var, square_base: squared standard errors of the two means. n_var, n_base: runs, ints.
    """
    df_var, df_base = n_var - 1, n_base - 1
    total = square_var + square_base
    # two groups of equal losses have no variance to share
    share = np.divide(square_var, total, out=np.full_like(total, 0.5), where=total > 0)
    # Satterthwaite's degrees of freedom
    df = 1 / (share ** 2 / df_var + (1 - share) ** 2 / df_base)
    # Welch's counts where few runs of the baseline make most of the variance; 10 and .9 were found by simulation
    weight = np.minimum(0.9, 10 / n_base * (1 - share))
    return (1 - weight) * fisher_p(t, share, df_var, df_base) + weight * 2 * scipy.special.stdtr(df, -t)


def fisher_p(t, share, df_var, df_base):
    """Returns Behrens and Fisher's two-sided p: P(|t_var cos a + t_base sin a| > t), cos^2 a = share.

    Given the share B of one of two chi squares in their sum, which has a beta distribution, that sum of two t is
    a t with df_var + df_base degrees of freedom, scaled; so p is an integral over B. t, share: (...).
    """
    b, rest, weights = shares(df_var, df_base)
    df = df_var + df_base
    spread = df_var * share[..., None] / b + df_base * (1 - share[..., None]) / rest # (..., NODES)
    return 2 * t_tail(t[..., None] * np.sqrt(df / spread), df) @ weights


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
