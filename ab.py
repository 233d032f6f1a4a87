"""Does an idea help, and what does it cost? Arms x seeds, trained in pairs; one verdict each, with its price.

    python ab.py config/ab_shakespeare_char.py --variants=soft_window,alibi --seeds=5
    python ab.py config/ab_shakespeare_char.py \
        --arms='base; soft: variant=soft_window; far: variant=soft_window window_init=128'
    python ab.py --report out-ab/NAME         the report once more, from what is there
    python ab.py --from_csv=results.csv       the statistics of anybody's losses: columns arm, seed, loss
    python ab.py --ledger                     every study ever run here, nulls and failures included

The same batches and the same initial values for all arms of a seed. The loss that is judged is fixed
beforehand: on the whole validation split, after the last iteration. Stopped anywhere, the same command goes
on.
"""
import dataclasses
import datetime
import importlib.util
import re
import shlex
import sys
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Annotated, Literal

from configurator import (
    COMMAND_LINE,
    Count,
    Positive,
    Whole,
    arguments,
    configure,
    construct,
    expand_flags,
    options_of,
    parse_known,
)
from core.errors import Stop, run_main
from core.run.environment import git, versions
from core.run.files import read_json
from core.run.folder import RunFolder
from lab.study.arm import null_arm, parse_arms
from lab.study.ledger import add_to_ledger, ledger_text
from lab.study.preparation import prepare
from lab.study.results import build_report, check_pairing, compare_on_common_seeds, load_runs
from lab.study.runner import Runner, format_duration, worker_slots
from lab.study.schema import ArmResult, Plan, Report, ReportedComparison, RunSummary, to_dict
from lab.study.study import Findings, Study, parse_numbers, write_json
from lab.study.words import text_table, verdict_sentence

OUT = Path('out-ab')
Level = Annotated[float, '(0, 0.5)']
Match = Literal['none', 'params', 'flops', 'time']


@dataclass
class Options:
    # what is compared
    variants: str = ''              # arms beside the baseline, one for each of a,b,a+b
    arms: str = '' # or arms by name, with any options: 'base; soft: variant=soft_window window_init=16'
    seeds: Count = 5                # runs of each arm; fewer than 5 give no verdict
    first_seed: Whole = 1337        # seeds are this and the following numbers
    name: str = '' # of the study: its folder is out-ab/NAME; '': from the config file and the arms
    baseline: str = ''              # the arm that others are compared with; '': the first
    # how it is judged
    delta: Positive = 0.005         # differences smaller than this, in nats, count as equivalent
    alpha: Level = 0.05 # how often a study of ideas that do nothing may say that one does something
    looks: str = '' # verdicts at 5,10 seeds, at a level corrected for that; who is decided stops
    null: bool = False              # an arm that is the baseline with other seeds: the noise floor
    match: Match = 'none'           # also compare with a baseline as wide, or trained as long, as an arm
    lr_sweep: str = '' # factors 0.5,1,2 on the learning rate, each arm's best on a seed outside the study is used
    # where and how it runs
    jobs: Whole = 0                 # processes at once on each device; 0: one on a GPU, one a core on CPUs
    at_once: Whole = 0 # seeds of an arm that a process trains at once; 0: 8 of a small model on a GPU, else 1
    devices: str = ''               # GPUs to spread over: 0,1; '': the config's device
    # before training
    check: Literal['all', 'leaks', 'none', True, False] = 'all' # of each arm before training; True: all, False: none
    price: bool = True              # time the arms before training
    # what becomes of runs that are there
    retry: bool = False             # train again what failed
    redo: bool = False              # train again what was run with other code or options
    keep_checkpoints: bool = False  # leave the last weights of every run, for sample.py
    # instead of a study
    report: str = ''                # only write the report of the study in this folder
    from_csv: str = ''              # only the statistics of a file with columns arm, seed, loss
    ledger: bool = False            # only list all studies


# -----------------------------------------------------------------------------
# a study

def run_study(o, given):
    """Trains every arm with every seed, or what is left of that, and writes the report.

    o: ab.py's Options. given: the Givens of all other options that the user set. Raises Stop for bad options,
    for a leak that is not declared, and where too few runs ended for a verdict.
    """
    # options are checked in full before anything is written
    arms = parse_arms(o, given)
    seeds, factors = parse_plan(o)
    slots = worker_slots(o, arms[0].options)
    config = ', '.join(dict.fromkeys(g.origin.rsplit(':', 1)[0] for g in given if g.origin != COMMAND_LINE))
    folder = OUT / (o.name or default_name(config, arms, o))
    findings = Findings(command_line(), config or None, timestamp(), dict(versions=versions(), git=git()))
    study = Study(folder, arms, o, seeds, findings)
    findings.environment['data'] = study.data_hashes[study.baseline.options.dataset]

    # the lock lasts as long as this process: a second ab.py in the same folder is refused
    holder = RunFolder(folder)
    holder.lock()
    if o.null:
        arms.append(null_arm(study.baseline))
    print_plan(study)

    # leak checks, learning rates and prices come first: they may refuse an arm or change its options
    runner = Runner(study, slots)
    prepare(study, runner, factors)
    train_to_each_look(study, runner)
    runner.pool.stop(5)

    # results are read from disk, so a study that was resumed reports all its runs
    runs = load_runs(study)
    findings.paired = dataclasses.asdict(check_pairing(study, runs))
    study.save()
    report = build_report(study, runs)
    publish(report, folder)
    add_to_ledger(report, OUT)
    if not report.comparisons:
        raise Stop(f'no verdict: fewer than two seeds have a run of every arm; see {folder}/report.html')


def parse_plan(o):
    """Returns the seeds of all looks, and the factors on the learning rate to try.

    Stop if either is invalid.
    """
    looks = parse_numbers(o.looks, 'looks', int) if o.looks else [o.seeds]
    if looks != sorted(set(looks)) or looks[0] < 2:
        if o.looks:
            raise Stop(f'looks={o.looks}: takes growing numbers of seeds, from 2')
        raise Stop(f'seeds={o.seeds}: takes 2 or more')
    factors = parse_numbers(o.lr_sweep, 'lr_sweep', float) if o.lr_sweep else []
    return list(range(o.first_seed, o.first_seed + looks[-1])), factors


def print_plan(study):
    """Prints the size of the study, and what sets each arm apart from the recipe."""
    iterations, looks = study.baseline.options.max_iters, study.options.looks
    print(f'study {study.folder}: {len(study.arms)} arms x {len(study.seeds)} seeds, '
          f'{iterations} iterations each' + (f', looks at {looks}' if looks else ''))
    for arm in study.arms:
        options = ' '.join(f'{name}={value}' for name, value in arm.given.items())
        print(f'arm {arm.name}: {options or "the baseline"}')


def train_to_each_look(study, runner):
    """Trains up to each look. An arm found better or worse there is decided, and trains no further."""
    print_time_left(study, len(runner.slots))
    active, looks = list(study.arms), study.looks or [len(study.seeds)]
    for look in looks:
        seeds = study.seeds[:look]
        runner.train([(arm, seed) for seed in seeds for arm in active], sample_seed=seeds[0])
        if look == looks[-1]:
            break
        # only undecided arms are compared, on the seeds trained so far
        undecided = [arm.name for arm in study.arms_without_matches() if arm in active]
        verdicts = compare_on_common_seeds(study, load_runs(study, seeds), undecided)
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
    prices = read_json(study.folder / 'price.json')
    if prices is None:
        return
    ms = 0.0
    for arm in study.arms:
        # price.json was written before matched baselines were made, so it lacks them
        if arm.name in prices['results']:
            o, left = arm.options, sum(not study.ended(arm, seed) for seed in study.seeds)
            ms += left * o.max_iters * o.gradient_accumulation_steps * prices['results'][arm.name]['step_ms']
    print(f'about {format_duration(ms / 1000 / workers)} of training are left, evaluations apart')


def default_name(config, arms, o):
    """Returns a folder name of at most 80 characters: ab_shakespeare_char-soft_window-alibi."""
    # a later config file overrides an earlier one, so the study is named after the last
    last_config = Path(config.split(', ')[-1]).stem
    words = [last_config, *(arm.folder for arm in arms[1:]), 'null' * o.null]
    return file_name('-'.join(filter(None, words)))[:80].strip('_.-') or 'study'


def file_name(text):
    """Returns text with an underscore for each run of characters that a file name should not have."""
    return re.sub(r'[^\w.+=-]+', '_', text)


def command_line():
    """Returns the command that started this process, quoted for a shell."""
    return ' '.join(map(shlex.quote, ['python', *sys.argv]))


def timestamp():
    """Returns the time in UTC: 2026-01-31T12:00:00Z."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds').replace('+00:00', 'Z')


# -----------------------------------------------------------------------------
# reports

def publish(report, folder):
    """Writes report.json, report.html and the plots of a schema.Report into the folder; prints its tables."""
    # report.json's format is lab/study/schema.py
    d = to_dict(report)
    write_json(folder / 'report.json', d)
    write_page(d, folder)
    for table in report.tables:
        print(f'\n{table}')
    print(f'\n{folder}/report.html')


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
        return publish(build_report(study, load_runs(study)), folder)
    if (saved := read_json(folder / 'losses.json')) is not None:
        # JSON turns keys into text, and has no number for infinity
        losses = {arm: {int(seed): float(loss) for seed, loss in runs.items()}
                  for arm, runs in saved['losses'].items()}
        return report_losses(losses, Options(**saved['options']), folder, saved['command'])
    raise Stop(f'--report={folder}: holds no study; it has to have been run to its end once')


def report_losses(losses, o, folder, command):
    """Writes the report of losses trained elsewhere, {arm: {seed: loss}}, and returns it."""
    from lab.stats import compare_arms
    looks = parse_numbers(o.looks, 'looks', int) if o.looks else None
    verdicts = compare_arms(losses, o.baseline or None, o.delta, o.alpha, looks)
    # there are losses but no runs: no curves, prices, checks or samples
    arms, comparisons = [], []
    for arm in verdicts.arms:
        runs = [RunSummary(seed, 'done' if isfinite(loss) else 'diverged', loss)
                for seed, loss in losses[arm].items()]
        arms.append(ArmResult(arm, variant=None, baseline=arm == verdicts.baseline, options={}, runs=runs))
    for arm, c in verdicts.comparisons.items():
        words = verdict_sentence(c, verdicts)
        comparisons.append(ReportedComparison(
            **vars(c), arm=arm, baseline=verdicts.baseline, words=words, level=verdicts.level))
    plan = Plan(verdicts.seeds, o.delta, o.alpha, o.looks or None, 'loss, as given')
    environment, tables = dict(versions=versions()), [text_table(verdicts)]
    report = Report(folder.name, command, None, timestamp(), plan, environment, arms, comparisons, tables)

    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / 'losses.json', dict(losses=losses, options=dataclasses.asdict(o), command=command))
    publish(report, folder)
    return report


def main():
    """Runs a study, or one of the modes that train nothing: --ledger, --report, --from_csv."""
    argv = expand_flags(sys.argv[1:], Options, valued=('report', 'from_csv', 'name'))
    if {'-h', '--help'} & set(argv):
        configure(Options, argv=argv)
    # options of this script; the rest belongs to train.py and the variants
    given, known = arguments(argv), options_of(Options)
    o = construct(Options, parse_known(known, given))
    # only now: workers and --help need no scipy
    if importlib.util.find_spec('scipy') is None:
        raise Stop('ab.py needs scipy for its statistics: pip install scipy')
    if o.name and Path(o.name).name != o.name or o.name == '..':
        raise Stop(f'name={o.name}: takes the name of a folder in {OUT}')
    # modes that train nothing
    if o.ledger:
        return print(ledger_text(OUT))
    if o.report:
        return report_again(Path(o.report))
    if o.from_csv:
        from lab.stats import read_csv
        folder = OUT / (o.name or file_name(Path(o.from_csv).stem))
        return add_to_ledger(report_losses(read_csv(o.from_csv), o, folder, command_line()), OUT)
    run_study(o, [g for g in given if g.name not in known])


if __name__ == '__main__':
    run_main(main)
