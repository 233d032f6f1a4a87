"""Means over seeds, with 95 % intervals; one seed has none."""
from typing import NamedTuple

import numpy as np
from scipy.special import ndtri
from scipy.stats import t as student

from lab.look import Look


class Mean(NamedTuple):
    """A mean over n seeds and half the width of its 95 % interval, arrays of one shape or numbers; NaN for one seed."""
    mean: float
    half: float
    n: int

    def text(self, digits=4, sign=''):
        """Returns '+.0123 ± .0045', or without an interval '+.0123'."""
        value = f'{float(self.mean):{sign}.{digits}f}'
        return value if np.isnan(self.half) else f'{value} ± {float(self.half):.{digits}f}'


def over_seeds(values, comparisons=1):
    """Returns the Mean of values (n, ...), one for each seed: t with n - 1 degrees of freedom.

    comparisons: how many such intervals hold together, as where the most striking is picked (Bonferroni).
    """
    values = np.asarray(values, float)
    n = len(values)
    mean = values.mean(0)
    if n == 1:
        return Mean(mean, np.full_like(mean, np.nan), n)
    half = student.ppf(1 - 0.025 / comparisons, n - 1) / np.sqrt(n) * values.std(0, ddof=1)
    return Mean(mean, half, n)


def difference(arm, base, paired, comparisons=1):
    """Returns the Mean of arm - base, values (n, ...) and (n_base, ...), one for each seed.

    paired: both are of the same seeds, in one order. Else variances may be unequal: lab/look.py. comparisons: how
    many such intervals hold together at 95 %, as where the most striking is picked (Bonferroni).
    """
    arm, base = np.asarray(arm, float), np.asarray(base, float)
    if paired:
        return over_seeds(arm - base, comparisons)
    mean, n, n_base = arm.mean(0) - base.mean(0), len(arm), len(base)
    if min(n, n_base) < 2:
        return Mean(mean, np.full_like(mean, np.nan), n)
    squares = (np.ravel(x.var(0, ddof=1) / len(x)) for x in (arm, base))
    looks = Look(np.zeros(np.size(mean)), *squares, np.full(np.size(mean), n), np.full(np.size(mean), n_base))
    half = [-looks.of(i).difference_of_score(ndtri(1 - 0.025 / comparisons)) for i in range(np.size(mean))]
    return Mean(mean, np.reshape(half, np.shape(mean)), n)


def paired_by_seed(runs, base):
    """Returns Runs of an arm and of the baseline, and whether they are pairs: those of the seeds that both have.

    Without two seeds in common, all of them.
    """
    seeds = {run.seed for run in runs} & {run.seed for run in base}
    if len(seeds) < 2 and (len(runs) > 1 or len(base) > 1 or not seeds):
        return runs, base, False
    runs, base = (sorted((run for run in both if run.seed in seeds), key=lambda run: run.seed) for both in (runs, base))
    return runs, base, True


def most_different(differences, scale):
    """Returns the column in which differences (n, m) are largest, their Mean with joint intervals, and if it is sure.

    It is the largest relative to scale (m,) of those whose interval excludes 0; without any, that whose interval
    comes nearest to it.
    """
    d = over_seeds(differences, np.shape(differences)[1])
    sure = np.abs(d.mean) > d.half
    ranks = np.where(sure, np.abs(d.mean / scale), -1) if sure.any() else np.abs(d.mean) / (d.half + 1e-12)
    return int(np.argmax(ranks)), d, bool(sure.any())


def by_arm(runs):
    """Returns {arm: [its Runs]}, in the order of the runs."""
    arms = {}
    for run in runs:
        arms.setdefault(run.arm, []).append(run)
    return arms
