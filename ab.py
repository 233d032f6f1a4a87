"""Does an idea help, and what does it cost? Each arm against a baseline: one verdict, with its price.

    python ab.py config/ab_shakespeare_char.py --variants=soft_window,alibi
    python ab.py config/ab_shakespeare_char.py \
        --arms='base; soft: variant=soft_window; far: variant=soft_window window_init=128'
    python ab.py config/ab_shakespeare_char.py --variants=alibi --seeds=5     five seeds of both, in pairs
    python ab.py --report out-ab/NAME         the report once more, from what is there
    python ab.py --from_csv=results.csv       the statistics of anybody's losses, from any sensible table
    python ab.py --ledger                     every study ever run here, nulls and failures included
    python ab.py --store                      the runs that all studies share

The loss that is judged is fixed beforehand: on the whole validation split, after the last iteration. So is
the test, and both are printed before the first run. Arms are trained until they are decided; runs are kept
in a store, so that a baseline serves every later study. Stopped anywhere, the same command goes on.
"""
import dataclasses
import datetime
import importlib.util
import re
import shlex
import sys
from dataclasses import dataclass
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
from lab.read_losses import choose_baseline, read_losses
from lab.study.arm import null_arm, parse_arms
from lab.study.from_table import report_losses
from lab.study.ledger import add_to_ledger, ledger_text
from lab.study.preparation import prepare
from lab.study.results import build_report, check_pairing, compare_on_common_seeds, load_runs
from lab.study.runner import Runner, format_duration, worker_slots
from lab.study.schema import to_dict
from lab.study.store import RUNS, prune_store, store_text
from lab.study.study import Findings, Study, parse_numbers, read_options, write_json
from lab.study.waves import MAX_RUNS, describe_design, parse_budget, plan_looks, train_in_waves

OUT = Path('out-ab')
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
    # how it is judged
    delta: Positive = 0.005         # differences smaller than this, in nats, count as equivalent
    alpha: Level = 0.05 # how often a study of ideas that do nothing may say that one does something
    looks: str = '' # instead of seeds: pairs judged at 5,10 seeds, at a corrected level; decided arms stop
    null: bool = False              # the baseline, its initial weights moved by a millionth: the noise floor
    match: Match = 'none'           # also compare with a baseline as wide, or trained as long, as an arm
    lr_sweep: str = '' # factors 0.5,1,2 on the learning rate, each arm's best on a seed outside the study is used
    # where and how it runs
    jobs: Whole = 0                 # processes at once on each device; 0: two on a GPU, one a core on CPUs
    at_once: Whole = 0 # seeds of an arm that a process trains at once; 0: 8 of a small model on a GPU, else 1
    devices: str = ''               # GPUs to spread over: 0,1; '': the config's device
    # before training
    check: bool = True              # look for leaks before training
    price: bool = True              # time the arms before training
    # what becomes of runs that are there
    retry: bool = False             # train again what failed
    keep_checkpoints: bool = False  # leave the last weights of every run, for sample.py
    # instead of a study
    report: str = ''                # only write the report of the study in this folder
    from_csv: str = ''              # only the statistics of a file: columns arm, seed, loss, or a wide table
    columns: str = '' # of that file, ARM,SEED,LOSS by their titles, where they have unusual names
    higher_is_better: bool = False  # its losses are accuracies or scores
    unit: str = ''                  # of its losses, printed in place of nats: accuracy
    ledger: bool = False            # only list all studies
    store: Literal['', 'list', 'prune'] = '' # only list the store of runs, or remove what nothing shows


# -----------------------------------------------------------------------------
# a study

def run_study(o, given):
    """Trains arms until they are decided, or have as many seeds as was asked for, and writes the report.

    o: ab.py's Options. given: the Givens of all other options that the user set. Raises Stop for bad options,
    for a leak that is not declared, and where too few runs ended for a verdict. Returns the schema.Report.
    """
    # options are checked in full before anything is written
    arms = parse_arms(o, given)
    looks, factors = parse_plan(o)
    slots = worker_slots(o, arms[0])
    config = ', '.join(dict.fromkeys(g.origin.rsplit(':', 1)[0] for g in given if g.origin != COMMAND_LINE))
    folder = OUT / (o.name or default_name(config, arms, o))
    if o.null:
        arms.append(null_arm(arms[0]))
    findings = Findings(command_line(), config or None, timestamp(), dict(versions=versions(), git=git()))
    study = Study(folder, arms, o, {}, findings)
    findings.environment['data'] = study.data_hashes[study.baseline.options.dataset]

    # the lock lasts as long as this process: a second ab.py in the same folder is refused
    holder = RunFolder(folder)
    holder.lock()
    print_arms(study)

    # leak checks, learning rates and prices come first: they may refuse an arm or change its options
    runner = Runner(study, slots)
    prepare(study, runner, factors)
    if study.archive_other():
        print(f'the study that was in {folder}, of other code or options, is now in {folder}/previous')
    before = fix_design(study, looks)
    print(findings.design)
    if o.retry:
        forget_failures(study)
    study.save()
    if study.design:
        train_in_waves(study, runner)
    else:
        print_time_left(study, len(runner.slots))
        train_to_each_look(study, runner, looks)
    runner.pool.stop(5)

    # results are read from disk, so a study that was resumed reports all its runs
    ended = study.ended(study.baseline)
    findings.stored = dict(before=len(before), new=len(set(ended) - set(before)))
    runs = load_runs(study)
    if study.design is None or study.design.test == 'paired':
        findings.paired = dataclasses.asdict(check_pairing(study, runs))
    study.save()
    report = build_report(study, runs)
    publish(report, folder)
    add_to_ledger(report, OUT)
    if study.judged_arms() and not report.comparisons:
        raise Stop(f'no verdict: fewer than two runs of the baseline or of every arm ended; '
                   f'see {folder}/report.html')
    return report


def parse_plan(o):
    """Returns the numbers of seeds at which there are verdicts, [] with seeds=auto, and factors for lr_sweep.

    Stop if any option of the plan is invalid, or contradicts another.
    """
    factors = parse_numbers(o.lr_sweep, 'lr_sweep', float) if o.lr_sweep else []
    parse_budget(o.budget)
    if o.max_seeds > MAX_RUNS:
        raise Stop(f'max_seeds={o.max_seeds}: takes {MAX_RUNS} at most')
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


def fix_design(study, looks):
    """Fixes the test and the seeds of all arms, before the first run; looks: [] with seeds=auto.

    Returns the seeds of the baseline's runs that the store holds already.
    """
    o, findings = study.options, study.findings
    if not looks:
        plan_looks(study)
        before = study.ended(study.baseline)
        findings.design = describe_design(study, len(before))
        return before
    study.seeds = {arm.name: list(range(o.first_seed, o.first_seed + looks[-1])) for arm in study.arms}
    numbers = f'{looks[0]} seeds' if len(looks) == 1 else f'{", ".join(map(str, looks))} seeds'
    findings.design = (f'the test, fixed beforehand: paired t at {numbers}, with which the sign-flip test must '
                       'agree; because the number of seeds is fixed')
    return study.ended(study.baseline)


def forget_failures(study):
    """Makes runs that failed or diverged new again, for --retry."""
    for arm in study.arms:
        for seed in study.seeds_of(arm):
            if study.state(arm, seed) in ('failed', 'diverged'):
                study.forget(arm, seed)


def print_arms(study):
    """Prints what the study is about, and what sets each arm apart from the recipe."""
    print(f'study {study.folder}: {len(study.arms)} arms, {study.baseline.options.max_iters} iterations each')
    for arm in study.arms:
        options = ' '.join(f'{name}={value}' for name, value in arm.given.items())
        print(f'arm {arm.name}: {options or "the baseline"}')


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
    prices = read_json(study.folder / 'price.json')
    if prices is None:
        return
    ms = 0.0
    for arm in study.arms:
        # price.json was written before matched baselines were made, so it lacks them
        if arm.name in prices['results']:
            o, left = arm.options, len(study.seeds_of(arm)) - len(study.ended(arm))
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


def show_store(what):
    """Lists the store of runs; what='prune' removes what nothing shows first."""
    if what == 'prune':
        runs, size = prune_store(RUNS, OUT)
        print(f'{runs} runs removed, {size / 2**20:.1f} MiB')
    print(store_text(RUNS, OUT))


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
        # files of older versions name no baseline
        baseline = saved.get('baseline') or choose_baseline(losses, saved['options']['baseline'])[0]
        options, command, metric = read_options(saved['options'], Options), saved['command'], saved.get('metric', '')
        report = report_losses(losses, baseline, options, folder, command, timestamp(), metric)
        return publish(report, folder)
    raise Stop(f'--report={folder}: holds no study; it has to have been run to its end once')


def report_file(o):
    """Writes the report of the losses in a file, and says how the file was read."""
    folder = OUT / (o.name or file_name(Path(o.from_csv).stem))
    losses, metric, said = read_losses(o.from_csv, o.columns)
    baseline, why = choose_baseline(losses, o.baseline)
    print(f'{said}\nbaseline: {baseline} ({why})')
    report = report_losses(losses, baseline, o, folder, command_line(), timestamp(), metric)
    publish(report, folder)
    add_to_ledger(report, OUT)


def main():
    """Runs a study, or one of the modes that train nothing: --ledger, --report, --from_csv."""
    argv = expand_flags(sys.argv[1:], Options, valued=('report', 'from_csv', 'name'))
    argv = ['--store=list' if arg == '--store' else arg for arg in argv]
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
    if o.store:
        return show_store(o.store)
    if o.report:
        return report_again(Path(o.report))
    if o.from_csv:
        return report_file(o)
    run_study(o, [g for g in given if g.name not in known])


if __name__ == '__main__':
    run_main(main)
