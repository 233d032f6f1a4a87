"""The report of a study over texts and options (--over): cells are blocks, and texts a sample of texts."""
import dataclasses
import math
import statistics

from lab import blocked, stats
from lab.study.cells import SIZES, is_number
from lab.study.results import METRIC, arm_result, done_runs, final_losses, mean_columns, summarize_run
from lab.study.schema import ABSENT, Checks, Plan, Report, ReportedCell, ReportedComparison, ReportedOver
from lab.study.words import over_sentence, over_sentences, over_table
from lab.suspicion import suspicions

# the factor that stands for a single size
PARAMETERS = 'parameters'


def build_over_report(study, runs):
    """Returns the schema.Report of a study with cells from its RunResults."""
    findings, o, baseline = study.findings, study.options, study.baseline
    factors, judged = factors_of(study.cells), judged_cells(study, runs)
    present = judged[0].levels
    over = blocked.judge(judged, next(iter(study.cells[0].arms)), o.delta, o.alpha,
                         rate='learning_rate' if 'learning_rate' in present else None,
                         sizes=[name for name in (*SIZES, PARAMETERS) if name in present],
                         length='max_iters' if 'max_iters' in present else None)
    cells = [ReportedCell(cell.name, cell.text, cell.levels, one.losses, differences_in(one, over))
             for cell, one in zip(study.cells, judged)]
    return Report(
        name=study.folder.name, command=findings.command, config=findings.config, created=findings.created,
        plan=Plan(sorted({run.seed for run in runs}), o.delta, o.alpha, None, METRIC, design=findings.design),
        environment=findings.environment, recipe=dataclasses.asdict(baseline.options) | baseline.model_args,
        arms=[arm_over_cells(study, name, runs) for name in study.cells[0].arms],
        comparisons=[comparison_over_cells(study, over, name, runs, factors) for name in over.arms],
        tables=[over_table(over, name, cells, factors) for name in over.arms],
        over=ReportedOver(factors, cells, over, {name: over_sentences(over, name, factors) for name in over.arms}))


def factors_of(cells):
    """Returns {factor: [level as typed]} of StudyCells, the texts first."""
    found = dict(dataset=list(dict.fromkeys(cell.text for cell in cells)))
    for cell in cells:
        for name, level in cell.levels.items():
            if level not in found.setdefault(name, []):
                found[name].append(level)
    return found


def judged_cells(study, runs):
    """Returns the cells as lab.blocked has them: x0.5 is 0.5, and a single size is the baseline's PARAMETERS.

    Those are on the first text, whose vocabulary stands for all.
    """
    sizes, params = [name for name in study.cells[0].levels if name in SIZES], {}
    for cell in study.cells if len(sizes) == 1 else ():
        if (level := cell.levels[sizes[0]]) not in params:
            params[level] = next(iter(cell.arms.values())).meta_model().get_num_params()

    def number(name, level):
        if name in sizes and params:
            return PARAMETERS, params[level]
        return name, float(level.removeprefix('x')) if is_number(level) else level
    return [blocked.Cell(cell.text, dict(number(name, level) for name, level in cell.levels.items()),
                         {name: list(final_losses(runs, arm.name).values()) for name, arm in cell.arms.items()})
            for cell in study.cells]


def differences_in(cell, over):
    """Returns {arm: its CellDifference} in one of the judged cells; the verdict leaves out shorter lengths."""
    found = {}
    for name, verdict in over.arms.items():
        here = [one for one in verdict.cells if (one.text, one.levels) == (cell.text, cell.levels)]
        found[name] = here[0] if here else plain_difference(cell, over.baseline, name)
    return found


def plain_difference(cell, baseline, name):
    """Returns the CellDifference of an arm in a judged cell, without a standard error."""
    losses = {key: cell.losses[arm] for key, arm in (('base', baseline), ('var', name))}
    ended = {key: [x for x in runs if math.isfinite(x)] for key, runs in losses.items()}
    difference = statistics.mean(ended['var']) - statistics.mean(ended['base']) if all(ended.values()) else None
    bad = {key: len(losses[key]) - len(ended[key]) for key in losses}
    return blocked.CellDifference(cell.text, cell.levels, len(ended['var']), len(ended['base']), bad, difference)


# -----------------------------------------------------------------------------
# arms and their comparisons, over all cells

def arm_over_cells(study, name, runs):
    """Returns the ArmResult of an arm with its runs in all cells. Its price is that in the first cell's shape."""
    first = study.cells[0].arms[name]
    summaries = [dataclasses.replace(summarize_run(run), cell=cell.name)
                 for cell in study.cells for run in runs if run.arm == cell.arms[name].name]
    done = [run for cell in study.cells for run in done_runs(runs, cell.arms[name].name)]
    return dataclasses.replace(
        arm_result(study, first, runs), name=name, runs=summaries, checks=checks_over_cells(study, name),
        # means over texts would be of nothing
        curve=ABSENT, stats=ABSENT, position_loss=ABSENT, loss_at_equal_time=ABSENT, loss_at_equal_flops=ABSENT,
        sample=next((run.sample for run in done if run.sample), None),
        no_sample=next((run.no_sample for run in done if run.no_sample), None))


def checks_over_cells(study, name):
    """Returns the Checks of an arm in all shapes that were checked; lines that they share are there once."""
    checks = study.findings.checks or {}
    found = [checks[cell.arms[name].name] for cell in study.cells if cell.arms[name].name in checks]
    if not found:
        return Checks('skipped', [], None)
    leak = next((one for one in found if one['why']), found[0])
    lines = list(dict.fromkeys(line for one in found for line in one['lines']))
    return Checks(leak['status'], lines, leak['why'])


def comparison_over_cells(study, over, name, runs, factors):
    """Returns the ReportedComparison of an arm with the baseline over all cells."""
    verdict = over.arms[name]
    known = [cell.difference for cell in verdict.cells if cell.difference is not None]
    mean = {} if verdict.over is None else dict(
        mean=verdict.over.mean, interval=verdict.over.interval, tost_p=verdict.over.tost_p)
    return ReportedComparison(
        n=verdict.n, n_base=verdict.n_base, diverged=verdict.bad | dict(both=0), bad=verdict.bad,
        n_good=verdict.n - verdict.bad['var'],
        p_improve=(sum(d < 0 for d in known) + sum(d == 0 for d in known) / 2) / len(known) if known else 0.5,
        test='blocked', p=verdict.p, side=verdict.side, **mean,
        shrunk=verdict.shrunk, shrunk_interval=verdict.shrunk_interval, p_better=verdict.p_better,
        p_within=verdict.p_within, holm_p=verdict.holm_p, tost_holm_p=verdict.tost_holm_p, verdict=verdict.verdict,
        arm=name, baseline=over.baseline, words=over_sentence(over, name, factors), level=over.alpha,
        suspicions=suspicions_over_cells(study, over.baseline, name, runs))


def suspicions_over_cells(study, baseline, name, runs):
    """Returns sentences on what is odd of an arm in the first cell where something is, and in which others."""
    found = {cell.name: doubts for cell in study.cells if (doubts := suspicions_in(study, cell, baseline, name, runs))}
    if not found:
        return []
    (first, doubts), *others = found.items()
    names = [cell for cell, _ in others[:3]] + [f'{len(others) - 3} more'] * (len(others) > 3)
    return [f'in {first}: {doubt}' for doubt in doubts] + [f'and likewise in {"; ".join(names)}'] * bool(others)


def suspicions_in(study, cell, baseline, name, runs):
    """Returns a sentence for each oddity of an arm's effect in a cell, or of its trained model."""
    base_runs, arm_runs = (done_runs(runs, cell.arms[one].name) for one in (baseline, name))
    doubts = [f'its trained model: {check}: {why}' for run in arm_runs for check, _, why in run.checks or () if why]
    if not base_runs or not arm_runs:
        return doubts
    base_windows, arm_windows = (mean_columns([run.windows for run in both]) for both in (base_runs, arm_runs))
    text = stats.text_interval([a - b for a, b in zip(arm_windows, base_windows)], alpha=study.options.alpha)
    loss, base_loss = (statistics.mean(run.val_loss for run in both) for both in (arm_runs, base_runs))
    positions = [mean_columns([run.positions for run in both]) for both in (base_runs, arm_runs)]
    return doubts + suspicions(loss - base_loss, base_loss, *positions, text and [text['low'], text['high']])
