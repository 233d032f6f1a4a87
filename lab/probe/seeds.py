"""Means over seeds, with 95 % intervals; one seed has none."""
from typing import NamedTuple

import numpy as np
from scipy.stats import t as student


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


def by_arm(runs):
    """Returns {arm: [its Runs]}, in the order of the runs."""
    arms = {}
    for run in runs:
        arms.setdefault(run.arm, []).append(run)
    return arms
