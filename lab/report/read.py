"""Reads report.json (lab/study/schema.py) into one object: no field is missing, numbers are finite or None.

In a report of losses from a file, fields are missing or None; NaN and Infinity are strings.
"""
import re
from math import isfinite
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np

from lab.report.labels import COSTS, VERDICTS, format_number

# -----------------------------------------------------------------------------
# the parts of report.json that the page uses, and the default for each missing field

REPORT = dict(name='A/B report', command='', created='', config='', arms=[], comparisons=[], plan={},
              environment={}, recipe={}, paired={})
PAIRED = dict(batches_equal=True, init_equal=True, note='')
PLAN = dict(seeds=[], delta=0, alpha=0.05, looks=None, metric='final validation loss, nats', match='none',
            lr_sweep={})
ARM = dict(name='', variant='–', baseline=False, options={}, params=None, checks={}, price={}, runs=[],
           curve={}, stats={}, position_loss=[], loss_at_equal_time={}, loss_at_equal_flops={}, sample='')
CHECKS = dict(status='–', lines=[], why='')
RUN = dict(seed='–', status='–', reason='–', val_loss=None, best_val_loss=None, best_iter=None,
           train_loss=None, seconds=None, init_hash='–', batch_hash='–')
CURVE = dict(iters=[], val=[], train=[], seeds=[])
COMPARISON = dict(arm=None, baseline=None, verdict='no verdict', words='', n=None, wins=None, mean=None,
                  sd=None, rho=None, mde=None, p=None, holm_p=None, flip_p=None, p_improve=None,
                  step_equivalents=None, level=None, interval=None, text_interval=None)


class ArmVerdict(NamedTuple):
    """One line of the page's answers."""
    arm: SimpleNamespace
    comparison: SimpleNamespace
    title: str                  # the arm's name; with a matched baseline, that baseline's too
    verdict: str                # in the page's words


def read_report(report):
    """Returns report.json, a dict, as an object with REPORT's fields, base (an arm or None) and verdicts."""
    r = with_defaults(report, REPORT)
    r.paired = with_defaults(r.paired, PAIRED)
    r.comparisons = [read_comparison(c) for c in drop_nonfinite(r.comparisons)]
    r.arms = [read_arm(arm, index) for index, arm in enumerate(drop_nonfinite(r.arms))]
    r.base = next((arm for arm in r.arms if arm.baseline), None)
    for arm in r.arms:
        arm.costs = {field: cost_and_ratio(arm, r.base, field) for field in COSTS}

    r.plan = with_defaults(drop_nonfinite(r.plan), PLAN)
    # with several looks each tests at a level stricter than alpha, which only the comparisons know
    levels = [c.level for c in r.comparisons if c.level]
    r.plan.level = levels[0] if levels else None if r.plan.looks else r.plan.alpha
    r.plan.percent = f'{100 * (1 - r.plan.level):.3g} % ' if r.plan.level else ''
    r.verdicts = list(arm_verdicts(r))
    return r


def with_defaults(given, defaults):
    """Returns a dict's fields as attributes, with a default for each that is missing or None."""
    given = {field: x for field, x in (given or {}).items() if x is not None}
    return SimpleNamespace(**defaults | given)


def drop_nonfinite(x):
    """Returns a copy of x with None for numbers that are not finite, be they floats or words of JSON."""
    if isinstance(x, dict):
        # these hold users' texts, in which NaN is just a word
        texts = 'name', 'options', 'sample'
        return {field: v if field in texts else drop_nonfinite(v) for field, v in x.items()}
    if isinstance(x, list):
        return [drop_nonfinite(v) for v in x]
    if x in ('NaN', 'Infinity', '-Infinity') or isinstance(x, float) and not isfinite(x):
        return None
    return x


# -----------------------------------------------------------------------------
# comparisons

def arm_verdicts(r):
    """Yields each ArmVerdict in the order of the arms.

    An arm with a matched baseline has two verdicts; an arm without a comparison has a blank one.
    """
    # matched baselines: arms that something is compared with, other than the study's baseline
    own_baselines = {c.baseline for c in r.comparisons} - {None, r.base.name if r.base else None}
    for arm in r.arms:
        for c in [c for c in r.comparisons if c.arm == arm.name] or [read_comparison({})]:
            title = f'{arm.name} against {c.baseline}' if c.baseline in own_baselines else arm.name
            verdict = VERDICTS.get(c.verdict, c.verdict)
            if arm is r.base:
                verdict = 'baseline'
            elif arm.name in own_baselines:
                verdict = 'matched baseline'
            yield ArmVerdict(arm, c, title, verdict)


def read_comparison(given):
    """Returns one of report['comparisons']; `why`: its words without the verdict and the difference."""
    c = with_defaults(given, COMPARISON)
    # an interval with an end that is not finite is none
    for field in 'interval', 'text_interval':
        if None in (getattr(c, field) or []):
            setattr(c, field, None)
    # .0024 in a terminal, 0.0024 here
    words = re.sub(r'(?<!\d)\.(?=\d)', '0.', c.words)
    # 'better by .0024, at 5 of 5 seeds; ...' -> 'at 5 of 5 seeds; ...'
    first, *rest = words.split('; ')
    if first.startswith(c.verdict):
        first = first.partition(', ')[2]
    c.why = '; '.join(part for part in (first, *rest) if part)
    return c


# -----------------------------------------------------------------------------
# arms

def read_arm(given, index):
    """Returns one of report['arms']; index: its place among them, which decides its color."""
    arm = with_defaults(given, ARM)
    arm.index = index
    arm.checks = with_defaults(arm.checks, CHECKS)
    arm.runs = [with_defaults(run, RUN) for run in arm.runs]

    # {seed: final loss} of the runs that are done
    arm.losses = {run.seed: run.val_loss for run in arm.runs
                  if run.status == 'done' and run.val_loss is not None}
    losses = list(arm.losses.values())
    arm.mean = float(np.mean(losses)) if losses else None
    arm.mean_text = format_number(arm.mean)
    if len(losses) > 1:
        arm.mean_text += f' ± {format_number(np.std(losses, ddof=1))}'
    arm.finished = f'{len(losses)}/{len(arm.runs)}'

    # curves and diagnostics that are incomplete are left out
    curve = with_defaults(arm.curve, CURVE)
    arm.iters = curve.iters
    arm.curves = {split: whole_curves(curve, split) for split in ('val', 'train')}
    diagnostics = {name: read_diagnostic(**given or {}) for name, given in arm.stats.items()}
    arm.diagnostics = {name: diagnostic for name, diagnostic in diagnostics.items() if diagnostic}
    return arm


def whole_curves(curve, split):
    """Returns {seed: losses (iters,)} of the runs that have one at every evaluation; split: val or train."""
    rows = getattr(curve, split)
    return {seed: np.array(row) for seed, row in zip(curve.seeds or range(len(rows)), rows)
            if len(row) == len(curve.iters) > 0 and None not in row}


def read_diagnostic(iters=None, layers=None):
    """Returns (iters, values (layers, iters)) of a variant's statistic, NaN for a missing number; or None."""
    # one row per evaluation; a model may have one number for all layers
    rows = [row if isinstance(row, list) else [row] for row in layers or []]
    if len(iters or []) != len(rows) or len(set(map(len, rows))) != 1:
        return None
    values = np.array(rows, float).T
    return (iters, values) if np.isfinite(values).any() else None


def cost_and_ratio(arm, base, field):
    """Returns (value, its ratio to the baseline's) of one of COSTS; each None if unknown."""
    def value_of(a):
        return a.params if field == 'params' else a.price.get(field)
    value, ratio = value_of(arm), arm.price.get(COSTS[field].ratio_field)
    # costs without a ratio in report.json are divided here
    base_value = value_of(base) if base else None
    if ratio is None and value is not None and base_value:
        ratio = value / base_value
    return value, ratio
