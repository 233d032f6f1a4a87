"""The report of losses trained elsewhere: verdicts on them, without curves, prices, checks or samples."""
import dataclasses
from dataclasses import fields, replace
from math import isfinite

from core.run.environment import versions
from core.run.files import write_json
from lab.stats import compare_arms
from lab.study.schema import ArmResult, Plan, Report, ReportedComparison, RunSummary
from lab.study.study import parse_numbers
from lab.study.words import text_table, verdict_sentence

# fields of a Comparison that change their sign where higher is better
SIGNED = 'mean', 'raw_mean', 'shrunk', 'interval', 'shrunk_interval'


def report_losses(losses, baseline, o, folder, command, created, metric=''):
    """Returns the schema.Report of losses {arm: {seed: loss}}, and writes them to losses.json in the folder.

    o: ab.py's Options. metric: the title of the losses' column. inf: a run that diverged, the worst result
    even where higher is better.
    """
    looks = parse_numbers(o.looks, 'looks', int) if o.looks else None
    # lower is better in all of lab.stats, so losses are turned around for it, and its findings back
    judged = {arm: {seed: turned(x, o) for seed, x in runs.items()} for arm, runs in losses.items()}
    found = compare_arms(judged, baseline, o.delta, o.alpha, looks)
    verdicts = shown(found, o)
    unit = o.unit or ('' if o.higher_is_better else 'nats')
    # sentences say better and worse in place of signs, so they are those of the turned losses
    words = {arm: verdict_sentence(c, found) for arm, c in found.comparisons.items()}

    arms, comparisons = [], []
    for arm in verdicts.arms:
        runs = [RunSummary(seed, 'done' if isfinite(x) else 'diverged', x) for seed, x in losses[arm].items()]
        arms.append(ArmResult(arm, variant=None, baseline=arm == verdicts.baseline, options={}, runs=runs))
    for arm, c in verdicts.comparisons.items():
        comparisons.append(ReportedComparison(
            **vars(c), arm=arm, baseline=verdicts.baseline, words=words[arm], level=verdicts.level))
    plan = Plan(verdicts.seeds, o.delta, o.alpha, o.looks or None, f'{metric or "loss"}, as given',
                     unit=unit, higher_is_better=o.higher_is_better)
    table = text_table(verdicts, unit=unit, sentences=words)
    report = Report(folder.name, command, None, created, plan, dict(versions=versions()), arms, comparisons, [table])

    folder.mkdir(parents=True, exist_ok=True)
    saved = dict(losses=losses, baseline=baseline, metric=metric, command=command)
    write_json(folder / 'losses.json', saved | dict(options=dataclasses.asdict(o)))
    return report


def turned(x, o):
    """Returns a loss so that lower is better; inf, a run that diverged, stays inf."""
    return 0.0 - x if o.higher_is_better and isfinite(x) else x


def shown(verdicts, o):
    """Returns Verdicts on turned losses with the signs of the losses as given; the words stay."""
    if not o.higher_is_better:
        return verdicts

    def back(x):
        if isinstance(x, list):
            return [back(end) for end in reversed(x)]
        return None if x is None else 0.0 - x

    def signed(c):
        return replace(c, **{f.name: back(getattr(c, f.name)) for f in fields(c) if f.name in SIGNED})

    def arm_signed(arm):
        losses = {seed: back(x) for seed, x in arm.losses.items()}
        return replace(arm, mean=back(arm.mean), min=back(arm.max), max=back(arm.min), losses=losses)

    return replace(verdicts, arms={name: arm_signed(arm) for name, arm in verdicts.arms.items()},
                   comparisons={name: signed(c) for name, c in verdicts.comparisons.items()})
