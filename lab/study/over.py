"""The report of a study over texts and options (--over): cells are blocks, and texts a sample of texts."""
import dataclasses
import statistics

from lab import blocked, stats
from lab.study.cells import SIZES, is_number
from lab.study.results import METRIC, arm_result, done_runs, final_losses, mean_columns, summarize_run
from lab.study.schema import ABSENT, Checks, Plan, Report, ReportedCell, ReportedComparison, ReportedOver
from lab.study.words import over_sentence, over_sentences, over_table
from lab.suspicion import suspicions


def build_over_report(study, runs):
    """Returns the schema.Report of a study with cells from its RunResults."""
    findings, o, baseline = study.findings, study.options, study.baseline
    cells = [ReportedCell(cell.name, cell.text, cell.levels, losses_in(cell, runs)) for cell in study.cells]
    factors = factors_of(study.cells)
    over = blocked.judge(judged_cells(study, cells), next(iter(study.cells[0].arms)), o.delta, o.alpha,
                         rate='learning_rate' if 'learning_rate' in factors else None,
                         sizes=[name for name in SIZES if name in factors],
                         length='max_iters' if 'max_iters' in factors else None)
    return Report(
        name=study.folder.name, command=findings.command, config=findings.config, created=findings.created,
        plan=Plan(sorted({run.seed for run in runs}), o.delta, o.alpha, None, METRIC, design=findings.design),
        environment=findings.environment, recipe=dataclasses.asdict(baseline.options) | baseline.model_args,
        arms=[arm_over_cells(study, name, runs) for name in study.cells[0].arms],
        comparisons=[comparison_over_cells(study, over, name, runs) for name in over.arms],
        tables=[over_table(over, name, cells) for name in over.arms],
        over=ReportedOver(factors, cells, over, {name: over_sentences(over, name) for name in over.arms}))


def factors_of(cells):
    """Returns {factor: [level as typed]} of StudyCells, the texts first."""
    found = dict(dataset=list(dict.fromkeys(cell.text for cell in cells)))
    for cell in cells:
        for name, level in cell.levels.items():
            if level not in found.setdefault(name, []):
                found[name].append(level)
    return found


def losses_in(cell, runs):
    """Returns {arm: [loss of each run]} in a cell, inf if it diverged."""
    return {name: list(final_losses(runs, arm.name).values()) for name, arm in cell.arms.items()}


def judged_cells(study, cells):
    """Returns the cells as lab.blocked has them: x0.5 is 0.5, and a size is the baseline's number of parameters.

    That is on the first text, whose vocabulary stands for all, and where one size is a factor.
    """
    sizes = [name for name in study.cells[0].levels if name in SIZES]
    params = {}
    for cell in study.cells if len(sizes) == 1 else ():
        params.setdefault(cell.levels[sizes[0]], next(iter(cell.arms.values())).meta_model().get_num_params())
    numbers = {cell.name: {name: params[level] if name in sizes and params else number_of(level)
                           for name, level in cell.levels.items()} for cell in cells}
    return [blocked.Cell(cell.text, numbers[cell.name], cell.losses) for cell in cells]


def number_of(level):
    """Returns a level as typed as a number, x0.5 as 0.5, or as it is if it is none."""
    return float(level.removeprefix('x')) if is_number(level) else level


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


def comparison_over_cells(study, over, name, runs):
    """Returns the ReportedComparison of an arm with the baseline over all cells."""
    verdict = over.arms[name]
    known = [cell.difference for cell in verdict.cells if cell.difference is not None]
    n, n_base = (sum(getattr(cell, field) for cell in verdict.cells) for field in ('n', 'n_base'))
    wins = sum(d < 0 for d in known)
    mean = {} if verdict.over is None else dict(
        mean=verdict.over.mean, interval=verdict.over.interval, tost_p=verdict.over.tost_p)
    return ReportedComparison(
        n=n, n_base=n_base, diverged=verdict.bad | dict(both=0), bad=verdict.bad, n_good=n - verdict.bad['var'],
        p_improve=(wins + sum(d == 0 for d in known) / 2) / len(known) if known else 0.5,
        test='blocked', wins=wins, p=verdict.p, side=verdict.side, **mean,
        shrunk=verdict.shrunk, shrunk_interval=verdict.shrunk_interval, p_better=verdict.p_better,
        p_within=verdict.p_within, holm_p=verdict.holm_p, tost_holm_p=verdict.tost_holm_p, verdict=verdict.verdict,
        arm=name, baseline=over.baseline, words=over_sentence(over, name), level=over.alpha,
        suspicions=list(suspicions_in_cells(study, over.baseline, name, runs)))


def suspicions_in_cells(study, baseline, name, runs):
    """Yields a sentence for each oddity of an arm's effect in a cell, or of its trained model."""
    for cell in study.cells:
        base_runs, arm_runs = (done_runs(runs, cell.arms[one].name) for one in (baseline, name))
        for run in arm_runs:
            for check, _, why in run.checks or ():
                if why:
                    yield f'{cell.name}: its trained model: {check}: {why}'
        if base_runs and arm_runs:
            base_windows, arm_windows = (mean_columns([run.windows for run in both]) for both in (base_runs, arm_runs))
            differences = [a - b for a, b in zip(arm_windows, base_windows)]
            text = stats.text_interval(differences, alpha=study.options.alpha)
            loss, base_loss = (statistics.mean(run.val_loss for run in both) for both in (arm_runs, base_runs))
            positions = [mean_columns([run.positions for run in both]) for both in (base_runs, arm_runs)]
            for doubt in suspicions(loss - base_loss, base_loss, *positions, text and [text['low'], text['high']]):
                yield f'{cell.name}: {doubt}'
