"""Reads report.json (lab/study/schema.py) into one object: no field is missing, numbers are finite or None.

In a report of losses from a file, fields are missing or None; NaN and Infinity are strings. Reports of older
versions lack fields too.
"""
from math import isfinite
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np

from lab.report.labels import COSTS, format_number, verdict_rank

# -----------------------------------------------------------------------------
# the parts of report.json that the page uses, and the default for each missing field

REPORT = dict(name='A/B report', command='', created='', config='', arms=[], comparisons=[], plan={},
              environment={}, recipe={}, paired={}, noise_floor={}, over={})
PAIRED = dict(batches_equal=True, init_equal=True, note='')
PLAN = dict(seeds=[], delta=0, alpha=0.05, looks=None, metric='final validation loss, nats', match='none',
            lr_sweep={}, design='', stored={}, store='', unit='nats', higher_is_better=False)
ARM = dict(name='', variant='–', baseline=False, options={}, params=None, checks={}, price={}, runs=[],
           curve={}, stats={}, position_loss=[], loss_at_equal_time={}, loss_at_equal_flops={}, sample='', no_sample='')
CHECKS = dict(status='–', lines=[], why='', outcomes={})
RUN = dict(seed='–', status='–', reason='–', val_loss=None, best_val_loss=None, best_iter=None,
           train_loss=None, seconds=None, init_hash='–', batch_hash='–', bits_per_byte=None, cell='')
CURVE = dict(iters=[], val=[], train=[], seeds=[])
COMPARISON = dict(arm=None, baseline=None, verdict='no verdict', words='', test='paired t', n=None,
                  n_base=None, decided_at=None, wins=None, mean=None, raw_mean=None, shrunk=None, sd=None,
                  rho=None, mde=None, p=None, holm_p=None, flip_p=None, p_improve=None, p_better=None,
                  p_within=None, step_equivalents=None, level=None, interval=None, shrunk_interval=None,
                  text_interval=None, suspicions=[], equal_time={})
EQUAL_TIME = dict(words='', verdict='', mean=None, interval=None)
# of a study over texts and options (lab/blocked.py)
OVER = dict(factors={}, cells=[], verdicts={}, words={})
CELL = dict(name='', text='', levels={}, losses={}, differences={})
DIFFERENCE = dict(difference=None, se=None, n=0, n_base=0)
ARM_OVER = dict(over={}, texts=[], own_best={}, speedups={})
MEAN_OVER = dict(n_texts=0, mean=None, interval=None, tau=None, tau_interval=None, prediction=None, p_new_better=None)
MOST_DRAWN = 14     # arms in one chart: seven colors, solid and dashed


class ArmVerdict(NamedTuple):
    """One line of the page's answers."""
    arm: SimpleNamespace
    comparison: SimpleNamespace
    title: str                  # the arm's name; with a matched baseline, that baseline's too
    verdict: str


def read_report(report):
    """Returns report.json, a dict, as an object with REPORT's fields and these:

    base: the baseline, an arm or None. verdicts: sorted. drawn: the arms that charts of curves show.
    from_file: True for losses from a file, of which there is nothing but losses. over.arms: {arm: ARM_OVER's
    fields}, {} unless the study is one over texts and options; over.baseline: its name.
    """
    r = with_defaults(report, REPORT)
    r.paired = with_defaults(r.paired, PAIRED)
    r.noise_floor, r.over = drop_nonfinite(r.noise_floor), read_over(drop_nonfinite(r.over))
    r.comparisons = [read_comparison(c) for c in drop_nonfinite(r.comparisons)]
    r.arms = [read_arm(arm) for arm in drop_nonfinite(r.arms)]
    r.base = next((arm for arm in r.arms if arm.baseline), None)
    r.from_file = not r.recipe and not any(arm.iters for arm in r.arms)
    # an eager run compiles nothing
    eager = r.environment.get('compile') is False
    for arm in r.arms:
        arm.price = {field: x for field, x in arm.price.items() if not (eager and field == 'compile_seconds')}
        arm.costs = {field: cost_and_ratio(arm, r.base, field) for field in COSTS}

    r.plan = with_defaults(drop_nonfinite(r.plan), PLAN)
    # with several looks each tests at a level stricter than alpha, which only the comparisons know
    levels = [c.level for c in r.comparisons if c.level]
    r.plan.level = levels[0] if levels else None if r.plan.looks else r.plan.alpha
    r.plan.percent = f'{100 * (1 - r.plan.level):.3g} % ' if r.plan.level else ''
    r.verdicts = sorted_verdicts(r)

    # an arm's index decides its color: 0 the baseline, then by verdict, so that drawn arms differ
    others = list(dict.fromkeys(id(v.arm) for v in r.verdicts if v.arm is not r.base))
    for arm in r.arms:
        arm.index = others.index(id(arm)) + 1 if arm is not r.base else 0
    r.arms.sort(key=lambda arm: arm.index)
    most = MOST_DRAWN if len(others) <= MOST_DRAWN else MOST_DRAWN // 2
    r.drawn = [arm for arm in r.arms if arm.index <= most]
    return r


def with_defaults(given, defaults):
    """Returns a dict's fields as attributes, with a default for each that is missing or None."""
    given = {field: x for field, x in (given or {}).items() if x is not None}
    return SimpleNamespace(**defaults | given)


def drop_nonfinite(x):
    """Returns a copy of x with None for numbers that are not finite, be they floats or words of JSON."""
    if isinstance(x, dict):
        # these hold users' texts, in which NaN is just a word
        texts = 'name', 'options', 'sample', 'no_sample'
        return {field: v if field in texts else drop_nonfinite(v) for field, v in x.items()}
    if isinstance(x, list):
        return [drop_nonfinite(v) for v in x]
    if x in ('NaN', 'Infinity', '-Infinity') or isinstance(x, float) and not isfinite(x):
        return None
    return x


def read_over(given):
    """Returns report['over'] with its cells, their differences, and what is known of each arm."""
    over = with_defaults(given, OVER)
    over.baseline, arms = over.verdicts.get('baseline', ''), over.verdicts.get('arms') or {}
    over.cells = [with_defaults(cell, CELL) for cell in over.cells]
    for cell in over.cells:
        cell.losses = {arm: losses or [] for arm, losses in cell.losses.items()}
        cell.differences = {arm: with_defaults(cell.differences.get(arm), DIFFERENCE) for arm in arms}
    over.arms = {arm: read_arm_over(a) for arm, a in arms.items()}
    return over


def read_arm_over(given):
    """Returns what is known of an arm over texts."""
    a = with_defaults(given, ARM_OVER)
    a.own_best, a.over = with_defaults(a.own_best.get('over'), MEAN_OVER), with_defaults(a.over, MEAN_OVER)
    a.texts = {text.get('text'): with_defaults(text, DIFFERENCE) for text in a.texts}
    for mean in a.own_best, a.over:
        drop_open_intervals(mean, 'interval', 'prediction', 'tau_interval')
    return a


# -----------------------------------------------------------------------------
# comparisons

def sorted_verdicts(r):
    """Returns the ArmVerdicts: the baseline, then the arms by verdict, those with the largest gain first.

    Suspicious arms come after the others of their verdict. What has no verdict comes last, as a baseline that
    was made for one arm.
    """
    up = 1 if r.plan.higher_is_better else -1

    def place(v):
        c = v.comparison
        gain = None if c.mean is None else up * c.mean
        return v.arm is not r.base, verdict_rank(c.verdict), bool(c.suspicions), gain is None, -(gain or 0)
    return sorted(arm_verdicts(r), key=place)


def arm_verdicts(r):
    """Yields each ArmVerdict in the order of the arms.

    An arm with a matched baseline has two verdicts; an arm without a comparison has a blank one.
    """
    # matched baselines: arms that something is compared with, other than the study's baseline
    own_baselines = {c.baseline for c in r.comparisons} - {None, r.base.name if r.base else None}
    for arm in r.arms:
        for c in [c for c in r.comparisons if c.arm == arm.name] or [read_comparison({})]:
            title = f'{arm.name} against {c.baseline}' if c.baseline in own_baselines else arm.name
            verdict = c.verdict
            if arm is r.base:
                verdict = 'baseline'
            elif arm.name in own_baselines:
                verdict = 'matched baseline'
            yield ArmVerdict(arm, c, title, verdict)


def read_comparison(given):
    """Returns one of report['comparisons']; paired: True if runs are compared seed by seed."""
    c = with_defaults(given, COMPARISON)
    c.equal_time = with_defaults(c.equal_time, EQUAL_TIME)
    drop_open_intervals(c, 'interval', 'text_interval', 'shrunk_interval')
    drop_open_intervals(c.equal_time, 'interval')
    # the runs of a cell have one seed
    c.paired = c.test.startswith('paired') or c.test == 'blocked'
    return c


def drop_open_intervals(part, *fields):
    """Replaces those intervals among an object's fields that have an end that is not finite by None."""
    for field in fields:
        if None in (getattr(part, field) or []):
            setattr(part, field, None)


# -----------------------------------------------------------------------------
# arms

def read_arm(given):
    """Returns one of report['arms'], with its final losses and its curves."""
    arm = with_defaults(given, ARM)
    arm.checks = with_defaults(arm.checks, CHECKS)
    arm.runs = [with_defaults(run, RUN) for run in arm.runs]

    # the arm that --null=True adds
    arm.null = arm.name == 'null' and 'perturb' in str(arm.variant).split('+')

    # {seed: final loss} of the runs that are done, with cells {(cell, seed): final loss}
    arm.losses = {(run.cell, run.seed) if run.cell else run.seed: run.val_loss for run in arm.runs
                  if run.status == 'done' and run.val_loss is not None}
    losses = list(arm.losses.values())
    # losses on several texts have no mean worth reading
    in_cells = any(run.cell for run in arm.runs)
    arm.mean = float(np.mean(losses)) if losses and not in_cells else None
    arm.sd_text = f'± {format_number(np.std(losses, ddof=1))}' if len(losses) > 1 and not in_cells else ''
    arm.mean_text = f'{format_number(arm.mean)} {arm.sd_text}'.strip()
    arm.finished = f'{len(losses)}/{len(arm.runs)}'
    bits = [run.bits_per_byte for run in arm.runs if run.bits_per_byte is not None and not in_cells]
    arm.bits_per_byte = float(np.mean(bits)) if bits else None

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
