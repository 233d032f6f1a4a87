"""Studies with seeds=auto: arms are trained in waves until each is decided.

The test and its looks are fixed before the first run, by what is asked for and by how many runs of the
baseline the store holds, never by an outcome (lab/sequential.py). An arm is better, worse or equivalent at
the first look that shows it, and can't be told after the last one, or when the budget is spent. What is
trained in a wave depends on how many runs the machine trains at once; what is concluded does not, because
every look is judged from the runs that it was planned for.
"""
import math
import re
import time

from core.errors import Stop
from core.run.files import read_json
from lab import sequential
from lab.study.results import baseline_runs, judge_study, load_runs, match_design
from lab.study.store import RUNS, stored_seeds
from lab.study.study import ARM_SEEDS, SPARE_SEEDS, is_null

# runs of the baseline: at least so many; what a study adds to those that are stored; at most so many
MIN_BASELINE, ADDED, MAX_BASELINE = 8, 2, 64
NULL_SEEDS = 5
# of an arm, whatever max_seeds says
MAX_RUNS = sequential.LATER_LOOKS[-1]


# -----------------------------------------------------------------------------
# what is fixed beforehand

def first_looks(o):
    """Returns the numbers of runs at which an arm is judged, up to 16. Stop if max_seeds allows none of them."""
    looks = sequential.PAIRED_LOOKS if o.paired else sequential.LOOKS
    if not looks[0] <= o.max_seeds <= MAX_RUNS:
        raise Stop(f'max_seeds={o.max_seeds}: takes {looks[0]}, the runs of the first look, to {MAX_RUNS}')
    return looks


def plan_looks(study, least=MIN_BASELINE):
    """Fixes the study's design and the seeds of its arms. A study that goes on keeps those that it began with.

    least: runs of the baseline.
    """
    o, arms = study.options, study.judged_arms()
    test = 'paired' if o.paired else 'welch'
    design = sequential.Design(test, first_looks(o))
    arm_seeds = [o.first_seed + ARM_SEEDS + i for i in range(o.max_seeds + SPARE_SEEDS)]

    # all runs of the baseline that are stored, and some more; other studies may have had it as an arm
    stored = [seed for seed in stored_seeds(RUNS, study.key(study.baseline)) if seed not in arm_seeds]
    stored = seeds = stored[:MAX_BASELINE]
    least = max(least, min(len(stored) + ADDED, MAX_BASELINE))
    # the best number for a test of each of k arms against it grows with sqrt(k) (Dunnett 1955)
    best = math.sqrt(max(1, len(arms)))
    counts = [min(max(least, math.ceil(best * n)), MAX_BASELINE) for n in design.plan]
    if saved := saved_plan(study):
        counts = saved['design']['baseline_runs']
        seeds = saved['seeds'][study.baseline.name]
        seeds += [seed for seed in stored if seed not in seeds]
    if o.paired:
        counts = list(design.plan)
    # a study of fewer seeds needs fewer of the baseline
    wanted = max(count for n, count in zip(design.plan, counts) if n <= max(o.max_seeds, design.looks[0]))
    used = {*seeds, *arm_seeds}
    new = (seed for i in range(len(used) + wanted + SPARE_SEEDS) if (seed := o.first_seed + i) not in used)
    seeds = seeds + [next(new) for _ in range(wanted + SPARE_SEEDS - len(seeds))]

    study.design = sequential.Design(test, design.looks, tuple(counts))
    baselines = [study.baseline, *study.matches.values(), *(arm for arm in study.arms if is_null(arm))]
    study.seeds = {arm.name: seeds if o.paired or arm in baselines else arm_seeds for arm in study.arms}


def saved_plan(study):
    """Returns study.json of an earlier start of this very study; None if it is another, or there is none."""
    saved = read_json(study.folder / 'study.json')
    keys = lambda arms: {arm['name']: arm['key'] for arm in arms}
    test = 'paired' if study.options.paired else 'welch'
    if saved and saved.get('design') and saved['design']['test'] == test:
        mine = {arm.name: study.key(arm) for arm in study.arms}
        return saved if keys(saved['arms']) == mine else None
    return None


def looks_of(study):
    """Returns the numbers of runs at which this study judges an arm: those of the plan up to max_seeds."""
    return [n for n in study.design.plan if n <= study.options.max_seeds]


def describe_design(study, stored):
    """Returns the sentence that says which test was fixed, and why; stored: baseline runs that were there."""
    design, looks = study.design, ', '.join(map(str, looks_of(study)))
    level = f'overall level {study.options.alpha:g}'
    if design.test == 'paired':
        return (f'the test, fixed beforehand: paired t at {looks} seeds, {level}, because --paired says that '
                'runs of one seed go together')
    first, last = (baseline_runs(design, n) for n in (looks_of(study)[0], looks_of(study)[-1]))
    runs = f'{first}' if first == last else f'{first} to {last}'
    return (f'the test, fixed beforehand: an arm of {looks} runs against {runs} of the baseline ({stored} '
            f'stored), unpaired, without equal variances, {level}; because seeds hardly pair, and every stored '
            'run counts')


def parse_budget(text):
    """Returns the seconds of a budget such as 90s, 10m or 2h; infinity for ''. Stop for anything else."""
    if not text:
        return math.inf
    match = re.fullmatch(r'(\d+(?:\.\d+)?)([smh])', text)
    if not match or not float(match[1]):
        raise Stop(f'budget={text}: takes a time such as 90s, 10m or 2h')
    return float(match[1]) * dict(s=1, m=60, h=3600)[match[2]]


# -----------------------------------------------------------------------------
# training

def train_in_waves(study, runner):
    """Trains until every arm is decided, has had all its looks, or the budget is spent."""
    deadline = time.monotonic() + parse_budget(study.options.budget)
    active, spent = study.judged_arms(), 0.0
    # without an arm to judge there is the noise floor alone
    if not active:
        train_to(study, runner, {arm.name: NULL_SEEDS for arm in study.arms})
    while active:
        started = time.monotonic()
        # a wave that would take as long as the last one must fit into the budget
        if started + spent > deadline:
            names = ', '.join(arm.name for arm in active)
            print(f'budget={study.options.budget} is spent, and {names} undecided; '
                  'the same command with a larger one goes on')
            return
        goals = {arm.name: next_goal(study, arm, runner.width(arm) // len(active)) for arm in active}
        goals |= baseline_goals(study, goals)
        failed = train_to(study, runner, goals)
        verdicts = judge_study(study, load_runs(study))
        undecided = []
        for arm in active:
            c, n = verdicts.get(arm.name), len(study.ended(arm))
            if arm.name in failed:
                print(f'{arm.name} is given up: too many of its runs failed')
            elif c and c.verdict != "can't tell":
                print(f'{arm.name} is decided at {c.decided_at or n} runs: {c.verdict}')
            elif n < looks_of(study)[-1]:
                undecided.append(arm)
        active, spent = undecided, time.monotonic() - started


def next_goal(study, arm, width):
    """Returns the number of runs at the arm's next look, or at a later one if `width` runs train at once."""
    n, looks = len(study.ended(arm)), looks_of(study)
    return next((look for look in looks if look > n and look >= n + width), looks[-1])


def baseline_goals(study, goals):
    """Returns the number of runs that baselines need for arms with these goals, and the null arm's."""
    design, matched = study.design, match_design(study.design)
    found = {study.baseline.name: max(baseline_runs(design, n) for n in goals.values())}
    found |= {match.name: baseline_runs(matched, goals[name])
              for name, match in study.matches.items() if name in goals}
    return found | {arm.name: NULL_SEEDS for arm in study.arms if is_null(arm)}


def train_to(study, runner, goals):
    """Trains each arm to its number of runs, {arm's name: runs}; returns the names of arms that cannot get there.

    Runs that fail are replaced by the next seeds.
    """
    arms = [arm for arm in study.arms if arm.name in goals]
    failed = set()
    while True:
        wave = []
        for arm in arms:
            seeds = study.seeds_of(arm)
            missing = goals[arm.name] - len(study.ended(arm))
            waiting = [seed for seed in seeds if study.state(arm, seed) in ('new', 'partial')]
            if missing > len(waiting):
                failed.add(arm.name)
            elif missing > 0:
                wave.append([(arm, seed) for seed in waiting[:missing]])
        if not wave:
            return failed
        # the first run of each arm, the second of each, and so on: all arms are judged at about the same time
        longest = max(map(len, wave))
        runner.train([runs[i] for i in range(longest) for runs in wave if i < len(runs)])
