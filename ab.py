"""Does an idea help, and what does it cost? Each arm against a baseline: one verdict, with its price.

    python ab.py config/ab_shakespeare_char.py --variants=soft_window,alibi
    python ab.py config/ab_shakespeare_char.py \
        --arms='base; soft: variant=soft_window; far: variant=soft_window window_init=128'
    python ab.py config/ab_shakespeare_char.py --variants=alibi --seeds=5     five seeds of both, in pairs
    python ab.py config/ab_text.py --variants=canon,rope \
        --over='dataset=code,prose,smiles,poems,abc; learning_rate=x0.5,x1,x2'    does it hold on other texts?
    python ab.py gate config/ab_shakespeare_char.py --variant=mine --json     keep it? for loops: docs/agents.md
    python ab.py --report out-ab/NAME         the report once more, from what is there
    python ab.py --from_csv=results.csv       the statistics of anybody's losses, from any sensible table
    python ab.py --ledger                     every study ever run here, nulls and failures included
    python ab.py --store                      the runs that all studies share

The loss that is judged is fixed beforehand: on the whole validation split, after the last iteration. So is
the test, and both are printed before the first run. Arms are trained until they are decided; runs are kept
in a store, so that a baseline serves every later study. Stopped anywhere, the same command goes on.

With --over all arms are trained in each cell, a combination of levels. A level is a value, or a factor, xF, on the
arm's own value; learning_rate takes min_lr with it, max_iters takes lr_decay_iters and warmup_iters. The verdict is
the mean over texts, with what to expect on another text. A cell has --seeds=N seeds, by default 1, or 2 where the
design leaves nothing else to tell noise by (lab/study/cells.py).
"""
if __name__ == '__main__':
    # before PyTorch, whose import takes seconds
    from core.errors import exit_on_interrupt
    exit_on_interrupt()

import dataclasses
import importlib.util
import re
import shlex
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from configurator import (
    COMMAND_LINE,
    Count,
    Given,
    Positive,
    Whole,
    arguments,
    configure,
    construct,
    expand_flags,
    options_of,
    parse_known,
)
from core.errors import BAD_INPUT, DIVERGED, Stop, printable, run_main
from core.run.environment import git, timestamp, versions
from core.run.files import read_json, write_json
from lab.read_losses import choose_baseline, read_losses
from lab.study.arm import null_arm, parse_arms
from lab.study.cells import default_seeds, first_of_each_shape, make_cells, parse_over
from lab.study.from_table import report_losses
from lab.study.gate import Idea, Rules, Stream, gate, print_decision
from lab.study.ledger import add_to_ledger, ledger_text
from lab.study.over import build_over_report
from lab.study.preparation import prepare, prepare_cells
from lab.study.results import (
    build_report,
    check_pairing,
    compare_on_common_seeds,
    final_losses,
    load_runs,
    time_ratio_of,
)
from lab.study.runner import Runner, format_duration, stopped_by_signals, worker_slots
from lab.study.schema import to_dict
from lab.study.store import RUNS, prune_store, store_text
from lab.study.study import Findings, Study, parse_numbers, read_options
from lab.study.waves import (
    MIN_BASELINE,
    describe_design,
    first_looks,
    next_goal,
    parse_budget,
    plan_looks,
    train_in_waves,
    train_to,
)

OUT = Path('out-ab')
# runs of the baseline that the gate's ideas are compared with: trained once, for the whole stream
GATE_BASELINE = 40
Level = Annotated[float, '(0, 0.5)']
Match = Literal['none', 'params', 'flops', 'time']


@dataclass
class Options:
    # what is compared
    variants: str = ''              # arms beside the baseline, one for each of a,b,a+b
    arms: str = '' # or arms by name, with any options: 'base; soft: variant=soft_window window_init=16'
    seeds: Literal['auto'] | Count = 'auto' # auto: until each arm is decided; or a number, of all arms in pairs
    max_seeds: Count = 16           # with seeds=auto: runs of an arm at most; up to 64
    budget: str = '' # with seeds=auto: begins no more runs after 90s, 10m, 2h
    paired: bool = False            # with seeds=auto: compare seed by seed, for a change so small that runs pair
    first_seed: Whole = 1337        # seeds are this and the following numbers
    name: str = '' # of the study: its folder is out-ab/NAME; '': from the config file and the arms
    baseline: str = ''              # the arm that others are compared with; '': the first
    # over texts and options
    over: str = '' # cells, all arms in each: 'dataset=a,b,c,d,e; learning_rate=x0.5,x1,x2; n_embd=192,384'
    cells: Whole = 0                # with over: so many of the combinations, as in a Latin square; 0: all
    # how it is judged
    delta: Positive = 0.005         # differences smaller than this, in nats, count as equivalent
    alpha: Level = 0.05 # how often a study of ideas that do nothing may say that one does something
    looks: str = '' # instead of seeds: pairs judged at 5,10 seeds, at a corrected level; decided arms stop
    null: bool = False              # the baseline, its initial weights moved by a millionth: the noise floor
    match: Match = 'none'           # also compare with a baseline as wide, or trained as long, as an arm
    lr_sweep: str = '' # factors 0.5,1,2 on the learning rate, each arm's best on a seed outside the study is used
    # where and how it runs
    jobs: Whole = 0                 # processes on each device; 0: 1, 2 or 4 on a GPU, by size; one a core on CPUs
    at_once: Whole = 0 # seeds of an arm that a process trains at once; 0: 8 of a small model on a GPU, else 1
    devices: str = ''               # GPUs to spread over: 0,1; '': the config's device
    # before training
    check: Literal['all', 'leaks', 'none', True, False] = 'all' # of each arm before training; True: all, False: none
    price: bool = True              # time the arms before training
    # what becomes of runs that are there
    retry: bool = False             # train again what failed, and what lacks the checkpoints that are to be kept
    keep_checkpoints: Literal[True, False, 'log'] = False # leave each run's last weights; log: and spaced ones before
    # instead of a study
    report: str = ''                # only write the report of the study in this folder
    from_csv: str = ''              # only the statistics of a file: columns arm, seed, loss, or a wide table
    columns: str = '' # of that file, ARM,SEED,LOSS by their titles, where they have unusual names
    higher_is_better: bool = False  # its losses are accuracies or scores
    unit: str = ''                  # of its losses, printed in place of nats: accuracy
    ledger: bool = False            # only list all studies
    json: bool = False              # of the gate: its answer as JSON on the last line
    store: Literal['', 'list', 'prune'] = '' # only list the store of runs, or remove what nothing shows


# -----------------------------------------------------------------------------
# a study

def run_study(o, given):
    """Trains arms until they are decided, or have as many seeds as was asked for, and writes the report.

    o: ab.py's Options. given: the Givens of all other options that the user set. Raises Stop for bad options,
    for a leak that is not declared, and where too few runs ended for a verdict.
    """
    looks, factors = parse_plan(o)
    study, runner = begin_study(o, given)

    # leak checks, learning rates and prices come first: they may refuse an arm or change its options
    prepare(study, runner, factors)
    before = fix_design(study, looks)
    print(study.findings.design)
    if study.design:
        train_in_waves(study, runner)
    else:
        print_time_left(study, len(runner.slots))
        train_to_each_look(study, runner, looks)

    report = end_study(study, runner, before)
    none = study.judged_arms() and not report.comparisons
    exit_by_result(study, report, 'fewer than two runs of the baseline or of every arm ended' if none else '')


def exit_by_result(study, report, none):
    """Raises Stop if runs of a study were lost, or if it has no verdict, for the reason in `none`; '': it has one."""
    page, lost = f'{study.folder}/report.html', lost_runs(report)
    if none:
        raise Stop(f'no verdict: {none}; see {page}', DIVERGED if lost else BAD_INPUT)
    if lost:
        raise Stop(f'{lost}; the others are in {page}; --retry=True trains these again', DIVERGED)


def begin_study(o, given):
    """Returns the Study that the options ask for, its folder locked, and its Runner."""
    # options are checked in full before anything is written
    arms, cells = parse_cells(o, given) if o.over else (parse_arms(o, given), [])
    # what the largest arm allows, all others allow
    sizes = [next(iter(cell.arms.values())) for cell in first_of_each_shape(cells)]
    slots = worker_slots(o, max(sizes or arms[:1], key=lambda arm: arm.meta_model().get_num_params()))
    config = ', '.join(dict.fromkeys(g.origin.rsplit(':', 1)[0] for g in given if g.origin != COMMAND_LINE))
    folder = OUT / (o.name or default_name(config, arms, o))
    if o.null:
        arms.append(null_arm(arms[0]))
    findings = Findings(command_line(), config or None, timestamp(), dict(versions=versions(), git=git()))
    in_cells = [arm for cell in cells for arm in cell.arms.values()]
    study = Study(folder, in_cells or arms, o, {}, findings, cells=cells)
    hashes = study.data_hashes
    findings.environment['data'] = hashes if cells else hashes[study.baseline.options.dataset]
    study.lock()
    print_arms(study)
    return study, Runner(study, slots)


def end_study(study, runner, before):
    """Writes the report of a study and returns it; before: how many of the baseline's runs were stored."""
    runner.pool.stop(5)
    # results are read from disk, so a study that was resumed reports all its runs
    study.findings.stored = dict(before=before, new=len(study.ended(study.baseline)) - before)
    runs = load_runs(study)
    if study.design is None or study.design.test == 'paired':
        study.findings.paired = dataclasses.asdict(check_pairing(study, runs))
    study.save()
    report = build_report(study, runs)
    publish(report, study.folder)
    add_to_ledger(report, OUT)
    return report


def lost_runs(report):
    """Returns how many runs of which arms diverged or failed: 'hot: 4 of 4 runs diverged or failed'; or ''."""
    lost = {arm.name: sum(run.status in ('diverged', 'failed') for run in arm.runs) for arm in report.arms}
    words = [f'{arm.name}: {lost[arm.name]} of {len(arm.runs)}' for arm in report.arms if lost[arm.name]]
    return f'{", ".join(words)} runs diverged or failed' if words else ''


def run_over(o, given):
    """Trains all arms in each cell of --over, and writes the report. o, given and Stops are those of run_study()."""
    # what has a meaning in another design alone
    other = dict(looks='', paired=False, null=False, match='none', lr_sweep='', budget='', max_seeds=Options.max_seeds)
    if wrong := next((name for name, value in other.items() if getattr(o, name) != value), None):
        raise Stop(f'{wrong}={getattr(o, wrong)}: not with --over, whose cells and seeds are fixed beforehand')
    study, runner = begin_study(o, given)
    prepare_cells(study, runner)
    fix_cells(study)
    print(study.findings.design)
    print_time_left(study, len(runner.slots))
    # the arms of a cell follow each other, so that a study that is stopped has whole cells
    runner.train([(arm, seed) for cell in study.cells for seed in cell.seeds(o) for arm in cell.arms.values()])

    runner.pool.stop(5)
    study.save()
    report = build_over_report(study, load_runs(study))
    publish(report, study.folder)
    add_to_ledger(report, OUT)
    compared = any(verdict.over for verdict in report.over.verdicts.arms.values())
    exit_by_result(study, report, '' if compared else 'no cell has runs of the baseline and of an arm')


def parse_cells(o, given):
    """Returns the arms of a study over texts and options, and its cells; sets o.seeds where the user did not."""
    factors = parse_over(o.over)
    # the recipe's own text may not be there
    first = [Given('dataset', name, COMMAND_LINE) for name in factors.get('dataset', [])[:1]]
    arms = parse_arms(o, given + first)
    cells = make_cells(arms, factors, o.cells)
    o.seeds = default_seeds(cells) if o.seeds == 'auto' else o.seeds
    return arms, cells


def fix_cells(study):
    """Fixes the seeds of all cells before the first run, and says what will be trained."""
    o, cells = study.options, study.cells
    if previous := study.archive_other():
        print(f'the study that was in {study.folder}, of other code or options, is now in its {previous.name}/')
    study.seeds = {arm.name: cell.seeds(o) for cell in cells for arm in cell.arms.values()}
    if o.retry:
        forget_failures(study)
    texts, runs = len({cell.text for cell in cells}), len(study.arms) * o.seeds
    study.findings.design = (
        f'the design, fixed beforehand: {len(cells)} cells over {texts} text{"s" * (texts != 1)}, all '
        f'{len(cells[0].arms)} arms in each with the same {o.seeds} seed{"s" * (o.seeds != 1)}, {runs} runs; judged '
        f'by the mean over texts{", of the longest runs" * ("max_iters" in cells[0].levels)}')
    study.save()
    print(f'{sum(len(study.ended(arm)) for arm in study.arms)} of {runs} runs are stored')


def run_gate(o, given):
    """Judges one idea of a stream, and exits with the decision's code: keep 0, drop 10, undecided 11.

    With o.json the last line is the decision in JSON (docs/agents.md).
    """
    # the recipe's variant is the baseline's, the one on the command line is the idea
    ideas = [g for g in given if g.name == 'variant' and g.origin == COMMAND_LINE]
    if not o.arms:
        o.variants = ideas[-1].value if ideas else o.variants
        given = [g for g in given if g not in ideas]
    fixed = dict(seeds='auto', looks='', paired=False, null=False, match='none', lr_sweep='', over='')
    if wrong := next((name for name, value in fixed.items() if getattr(o, name) != value), None):
        raise Stop(f'{wrong}={getattr(o, wrong)}: not for the gate, which has one design for all its ideas')
    if not o.arms and (not o.variants or ',' in o.variants):
        raise Stop('gate: judges one idea: --variant=NAME')
    parse_plan(o)
    study, runner = begin_study(o, given)
    if len(study.arms) != 2:
        raise Stop(f'arms={o.arms}: the gate judges one idea; name the baseline and one arm')
    decision = judge_idea(study, runner, Stream(OUT / 'gate.jsonl', o.alpha))
    if not o.json:
        print(f'{decision.name}: {decision.words}')
        sys.exit(decision.exit_code)
    sys.exit(print_decision(decision))


def judge_idea(study, runner, stream):
    """Returns the gate's Decision on the second of a study's arms; trains and reports only if it is new."""
    o, (baseline, arm) = study.options, study.arms
    idea = Idea(arm.name, f'{study.key(arm)} {study.key(baseline)}', study.findings.command,
                folder=str(study.folder))
    if earlier := stream.tried(idea):
        return earlier
    prepare(study, runner, [])
    before = fix_design(study, [], least=GATE_BASELINE)
    prices = study.findings.prices
    idea.stored = before
    idea.price = prices and time_ratio_of(prices[arm.name], prices[baseline.name])
    deadline = time.monotonic() + parse_budget(o.budget)

    def train_more(n):
        # as many at once as cost hardly more than one: the looks come one after the other all the same
        if len(study.ended(arm)) < n and time.monotonic() < deadline:
            goal = next_goal(study, arm, runner.width(arm))
            if train_to(study, runner, {baseline.name: GATE_BASELINE, arm.name: max(n, goal)}):
                raise Stop(f'{arm.name}: too many of its runs, or of the baseline\'s, failed; see {study.folder}')
        runs = load_runs(study)
        return {one.name: final_losses(runs, one.name) for one in study.arms}

    decision = gate(idea, stream, train_more, Rules(baseline.name, o.delta, o.alpha))
    end_study(study, runner, before)
    return decision


def parse_plan(o):
    """Returns the numbers of seeds at which there are verdicts, [] with seeds=auto, and factors for lr_sweep.

    Stop if any option of the plan is invalid, or contradicts another.
    """
    factors = parse_numbers(o.lr_sweep, 'lr_sweep', float) if o.lr_sweep else []
    parse_budget(o.budget)
    first_looks(o)
    if o.seeds == 'auto' and not o.looks:
        return [], factors
    if o.budget:
        raise Stop(f'budget={o.budget}: is for seeds=auto; this study has a number of seeds fixed beforehand')
    looks = parse_numbers(o.looks, 'looks', int) if o.looks else [o.seeds]
    if looks != sorted(set(looks)) or looks[0] < 2:
        if o.looks:
            raise Stop(f'looks={o.looks}: takes growing numbers of seeds, from 2')
        raise Stop(f'seeds={o.seeds}: takes auto, or 2 or more')
    return looks, factors


def fix_design(study, looks, least=MIN_BASELINE):
    """Fixes the test and the seeds of all arms, before the first run; looks: [] with seeds=auto.

    least: runs of the baseline, with seeds=auto. Returns how many the store held when this study began.
    """
    o, findings = study.options, study.findings
    if previous := study.archive_other():
        print(f'the study that was in {study.folder}, of other code or options, is now in its {previous.name}/')
    saved = read_json(study.folder / 'study.json') or {}
    if looks:
        fix_seeds(study, looks)
    else:
        plan_looks(study, least)
    # a study that goes on has trained some itself
    stored = saved.get('extra', {}).get('stored') or dict(before=len(study.ended(study.baseline)), new=0)
    if study.design:
        findings.design = describe_design(study, stored['before'])
    findings.stored = stored
    if o.retry:
        forget_failures(study)
    study.save()
    return stored['before']


def fix_seeds(study, looks):
    """Gives all arms the same seeds, as many as the last look has."""
    o, findings = study.options, study.findings
    study.seeds = {arm.name: list(range(o.first_seed, o.first_seed + looks[-1])) for arm in study.arms}
    numbers = f'{looks[0]} seeds' if len(looks) == 1 else f'{", ".join(map(str, looks))} seeds'
    findings.design = (f'the test, fixed beforehand: paired t at {numbers}, with which the sign-flip test must '
                       'agree; because the number of seeds is fixed')


def forget_failures(study):
    """Makes runs new again that failed, diverged, or lack checkpoints that are to be kept, for --retry."""
    for arm in study.arms:
        for seed in study.seeds_of(arm):
            if study.state(arm, seed) in ('failed', 'diverged') or study.lacks_checkpoints(arm, seed):
                study.forget(arm, seed)


def print_arms(study):
    """Prints what the study is about, and what sets each arm apart from the recipe."""
    arms = study.cells[0].arms if study.cells else {arm.name: arm for arm in study.arms}
    each = f', {study.baseline.options.max_iters} iterations each'
    if study.cells:
        each = f' in each of {len(study.cells)} cells'
    print(f'study {study.folder}: {len(arms)} arms{each}')
    for name, arm in arms.items():
        options = ' '.join(f'{option}={value}' for option, value in arm.given.items())
        same = arm is not study.baseline and study.key(arm) == study.key(study.baseline)
        warning = '; it computes what the baseline does: none of these options changes anything' if same else ''
        print(printable(f'arm {name}: {options or "the baseline"}{warning}'))


def train_to_each_look(study, runner, looks):
    """Trains up to each look. An arm found better or worse there is decided, and trains no further."""
    active = list(study.arms)
    for look in looks:
        seeds = study.seeds_of(study.baseline)[:look]
        runner.train([(arm, seed) for seed in seeds for arm in active])
        if look == looks[-1]:
            break
        # only undecided arms are compared, on the seeds trained so far
        undecided = [study.baseline.name, *(arm.name for arm in study.judged_arms() if arm in active)]
        verdicts = compare_on_common_seeds(study, load_runs(study), undecided, seeds)
        for name, c in verdicts.comparisons.items() if verdicts else ():
            if c.verdict in ('better', 'worse'):
                print(f'{name} is decided at {look} seeds: {c.verdict}')
                # the baseline made for this arm has nothing left to be compared with
                decided = {name, study.matches[name].name} if name in study.matches else {name}
                active = [arm for arm in active if arm.name not in decided]
        # only the baseline is left
        if len(active) == 1:
            break


def print_time_left(study, workers):
    """Prints how long training will take on this many workers, if the arms have been timed."""
    if not (prices := study.findings.prices):
        return
    ms = 0.0
    for arm in study.arms:
        # with --price=False matched baselines are not timed
        if arm.name in prices:
            o, left = arm.options, len(study.seeds_of(arm)) - len(study.ended(arm))
            ms += left * o.max_iters * o.gradient_accumulation_steps * prices[arm.name]['step_ms']
    print(f'about {format_duration(ms / 1000 / workers)} of training are left, without evaluations')


def default_name(config, arms, o):
    """Returns a folder name of at most 80 bytes: ab_shakespeare_char-soft_window-alibi."""
    # a later config file overrides an earlier one, so the study is named after the last
    last_config = Path(config.split(', ')[-1]).stem
    words = [last_config, *(arm.name for arm in arms[1:]), 'null' * o.null, 'over' * bool(o.over)]
    return folder_name('-'.join(filter(None, words)))


def folder_name(text):
    """Returns the name of a study's folder that is nearest to a text."""
    name = re.sub(r'[^\w.+=-]+', '_', text).encode()[:80].decode(errors='ignore').strip('_.-')
    return name if is_study_name(name) else f'study-{name}'.strip('-')


def is_study_name(name):
    """Returns True if a study's folder can have this name, in OUT, beside the store and the ledger."""
    ours = 'runs', 'ledger.jsonl', 'ledger.md', 'gate.jsonl'
    # Windows reserves these, whatever follows their first dot
    reserved = 'con', 'prn', 'aux', 'nul', 'com1', 'lpt1'
    folded, size = name.casefold(), len(name.encode(errors='replace'))
    return (0 < size <= 200 and Path(name).name == name and not name.startswith('.') and name.isprintable()
            and folded not in ours and folded.split('.')[0] not in reserved)


def command_line():
    """Returns the command that started this process, quoted for a shell."""
    return ' '.join(map(shlex.quote, ['python', *sys.argv]))


def show_store(what):
    """Lists the store of runs; what='prune' removes what nothing shows first."""
    if what == 'prune':
        runs, size = prune_store(RUNS, OUT)
        print(f'{runs} runs removed, {size / 2**20:.1f} MiB')
    print(printable(store_text(RUNS, OUT)))


# -----------------------------------------------------------------------------
# reports

def publish(report, folder):
    """Writes report.json, report.html and the plots of a schema.Report into the folder; prints its tables."""
    # report.json's format is lab/study/schema.py
    d = to_dict(report)
    write_json(folder / 'report.json', d)
    write_page(d, folder)
    for table in report.tables:
        print(printable(f'\n{table}'))
    for c in d['comparisons']:
        for doubt in c.get('suspicions', ()):
            print(printable(f'\nsuspicious, {c["arm"]}: {doubt}'))
    print(printable(f'\n{folder}/report.html'))


def write_page(report, folder):
    """Writes report.html and the plots; report: the contents of report.json, a dict."""
    from lab import report as lab_report
    lab_report.write_html(report, folder / 'report.html')
    try:
        lab_report.write_plots(report, folder)
    except ImportError:
        print('no PNGs of the plots: they need matplotlib, pip install matplotlib')


def report_again(folder):
    """Writes the report of an existing study again, from its run folders. Stop if there is none."""
    if (saved := read_json(folder / 'study.json')) is not None:
        study = Study.from_dict(folder, saved, Options)
        build = build_over_report if study.cells else build_report
        return publish(build(study, load_runs(study)), folder)
    if (saved := read_json(folder / 'losses.json')) is not None:
        # JSON turns keys into text, and has no number for infinity
        losses = {arm: {int(seed): float(loss) for seed, loss in runs.items()}
                  for arm, runs in saved['losses'].items()}
        # files of older versions name no baseline
        baseline = saved.get('baseline') or choose_baseline(losses, saved['options']['baseline'])[0]
        options, command, metric = read_options(saved['options'], Options), saved['command'], saved.get('metric', '')
        report = report_losses(losses, baseline, options, folder, command, timestamp(), metric)
        return publish(report, folder)
    raise Stop(f'--report={folder}: holds no study; it has to have been run to its end once')


def report_file(o):
    """Writes the report of the losses in a file, and says how the file was read."""
    folder = OUT / (o.name or folder_name(Path(o.from_csv).stem))
    losses, metric, said = read_losses(o.from_csv, o.columns)
    baseline, why = choose_baseline(losses, o.baseline)
    print(printable(f'{said}\nbaseline: {baseline} ({why})'))
    report = report_losses(losses, baseline, o, folder, command_line(), timestamp(), metric)
    publish(report, folder)
    add_to_ledger(report, OUT)


def main():
    """Runs a study, or one of the modes that train nothing: --ledger, --report, --from_csv."""
    argv = expand_flags(sys.argv[1:], Options, valued=('report', 'from_csv', 'name'))
    argv = ['--store=list' if arg == '--store' else arg for arg in argv]
    gating = argv[:1] == ['gate']
    if {'-h', '--help'} & set(argv):
        configure(Options, argv=argv)
    # options of this script; the rest belongs to train.py and the variants
    given, known = arguments(argv[gating:]), options_of(Options)
    o = construct(Options, parse_known(known, given))
    # only now: workers and --help need no scipy
    if importlib.util.find_spec('scipy') is None:
        raise Stop('ab.py needs scipy for its statistics: pip install scipy')
    if o.name and not is_study_name(o.name):
        raise Stop(f'name={o.name}: takes the name of a folder in {OUT}, other than its store, ledger and stream')
    # modes that train nothing
    if o.ledger:
        return print(printable(ledger_text(OUT)))
    if o.store:
        return show_store(o.store)
    if o.report:
        return report_again(Path(o.report))
    if o.from_csv:
        return report_file(o)
    if o.over and any(g.name == 'seeds' and g.value == 'auto' for g in given):
        raise Stop('seeds=auto: not with --over, whose cells and seeds are fixed beforehand')
    if o.cells and not o.over:
        raise Stop(f'cells={o.cells}: are those of --over')
    run = run_gate if gating else run_over if o.over else run_study
    with stopped_by_signals():
        run(o, [g for g in given if g.name not in known])


if __name__ == '__main__':
    run_main(main)
