"""Does an idea help, and what does it cost? Arms x seeds, trained in pairs; one verdict each, with its price.

    python ab.py config/ab_shakespeare_char.py --variants=soft_window,alibi --seeds=5
    python ab.py config/ab_shakespeare_char.py --arms='base; soft: variant=soft_window; far: variant=soft_window window_init=128'
    python ab.py --report out-ab/NAME         the report once more, from what is there
    python ab.py --from_csv=results.csv       the statistics of anybody's losses: columns arm, seed, loss
    python ab.py --ledger                     every study ever run here, nulls and failures included

The same batches and the same initial values for all arms of a seed. What is judged is fixed beforehand: the loss on the whole
validation split after the last iteration. Stopped anywhere, the same command goes on.
"""
import contextlib
import dataclasses
import datetime
import importlib.util
import os
import re
import shlex
import signal
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch

import train
from configurator import (
    COMMAND_LINE,
    Count,
    Given,
    Positive,
    Whole,
    arguments,
    configure,
    construct,
    did_you_mean,
    options_of,
    parse_option,
)
from core.device.flops import flops_per_token
from core.errors import Stop, run_main
from core.run.environment import git, versions
from core.run.files import read_json
from core.run.folder import RunFolder, last_iteration
from lab.study import ledger, pool, study as lab_study
from lab.study.study import Arm, Study, Task, Together, write_json
from model import load_classes

OUT = Path('out-ab')
METRIC = 'validation loss after the last iteration, whole split, nats per token'


@dataclass
class Options:
    variants: str = ''                  # arms beside the baseline, one for each of a,b,a+b
    arms: str = ''                      # or arms by name, with any options: 'base; soft: variant=soft_window window_init=16'
    seeds: Count = 5                    # runs of each arm; fewer than 5 give no verdict
    first_seed: Whole = 1337            # seeds are this and the following numbers
    name: str = ''                      # of the study: its folder is out-ab/NAME; '': from the config file and the arms
    baseline: str = ''                  # the arm that others are compared with; '': the first
    delta: Positive = 0.005             # differences smaller than this, in nats, count as equivalent
    alpha: Annotated[float, '(0, 0.5)'] = 0.05 # how often a study of ideas that do nothing may say that one does something
    looks: str = ''                     # verdicts at 5,10 seeds, at a level corrected for that; who is decided stops
    null: bool = False                  # an arm that is the baseline with other seeds: the noise floor
    match: Literal['none', 'params', 'flops', 'time'] = 'none' # also compare with a baseline as wide, or trained as long, as an arm
    lr_sweep: str = ''                  # factors 0.5,1,2 on the learning rate, each arm's best on a seed outside the study is used
    jobs: Whole = 0                     # processes at once on each device; 0: one on a GPU, one a core on CPUs
    at_once: Whole = 0                  # seeds of an arm that a process trains at once; 0: 8 of a small model on a GPU, else 1
    devices: str = ''                   # GPUs to spread over: 0,1; '': the config's device
    check: bool = True                  # look for leaks before training
    price: bool = True                  # time the arms before training
    retry: bool = False                 # train again what failed
    redo: bool = False                  # train again what was run with other code or options
    keep_checkpoints: bool = False      # leave the last weights of every run, for sample.py
    report: str = ''                    # only write the report of the study in this folder
    from_csv: str = ''                  # only the statistics of a file with columns arm, seed, loss
    ledger: bool = False                # only list all studies


# -- arms

def read_arms(o, given):
    """The arms from the options and all else that was given: train.py's options and the variants'."""
    common = next((g.value for g in reversed(given) if g.name == 'variant'), 'base')
    given = [g for g in given if g.name != 'variant']
    if o.arms and o.variants:
        raise Stop('arms and variants: give one of the two')
    if o.arms:
        wanted = [parse_arm(text) for text in o.arms.split(';') if text.strip()]
    else:
        on_top = lambda v: v if common == 'base' else f'{common}+{v}'
        wanted = [(common, {})] + [(on_top(v), dict(variant=on_top(v))) for v in o.variants.split(',') if v]
    names = [name for name, _ in wanted]
    if not names:
        raise Stop(f'arms={o.arms}: names no arm; write NAME: option=value; ...')
    if doubled := next((name for name in names if names.count(name) > 1), None):
        raise Stop(f'arms: {doubled} is there twice; every arm needs a name of its own')
    if o.baseline and o.baseline not in names:
        raise Stop(f'baseline={o.baseline}: no such arm; there are {", ".join(names)}')
    wanted.sort(key=lambda arm: arm[0] != (o.baseline or names[0]))
    known = [options_of(train.Options).keys() | options_of(load_classes(own.get('variant', common)).GPTConfig).keys()
             for _, own in wanted]
    for g in given:
        if not any(g.name in names for names in known):
            raise Stop(f'{g.name}={g.value}: no such option of any arm{did_you_mean(g.name, set().union(*known, options_of(Options)))}')
    if len(names) < 2 and not o.null:
        raise Stop('nothing to compare: name arms with --variants=a,b, or with --arms, or --null=True for the noise floor')
    return [make_arm(name, own, [Given('variant', common, COMMAND_LINE)] + [g for g in given if g.name in names])
            for (name, own), names in zip(wanted, known)]


def parse_arm(text):
    """'soft: variant=soft_window window_init=128' -> (name, {option: text}); a name alone is a variant's, or base."""
    name, colon, rest = text.partition(':')
    name = name.strip()
    if not name or not name.isprintable():
        raise Stop(f'arms: {text.strip()!r} has no name; write NAME: option=value option=value')
    try:
        own, words = {}, shlex.split(rest)
    except ValueError as error:
        raise Stop(f'arms: {text.strip()}: {error}') from None
    for word in words:
        option, equals, value = word.removeprefix('--').partition('=')
        if not equals:
            raise Stop(f'arms: {name}: {word}: write option=value')
        own[option] = value
    if not colon and name not in ('base', 'baseline'):
        own['variant'] = name
    return name, own


def make_arm(name, own, given):
    if wrong := next((option for option in own if option in ('seed', 'out_dir', 'init_from')), None):
        raise Stop(f'arms: {name}: {wrong} is the same for all arms, and is set by ab.py')
    given = given + [Given(option, value, COMMAND_LINE) for option, value in own.items()]
    try:
        config = configure(train.Options, load_classes, argv=[], given=given, say=lambda text: None)
    except Stop as stop:
        raise Stop(f'arm {name}: {stop}') from None
    o = config.options
    data = lab_study.Dataset(o.dataset, 1)
    args = dataclasses.asdict(construct(config.GPTConfig, dict(vocab_size=data.vocab_size) | config.model_args))
    return Arm(name, o, args, own, config.origin)


def null_arm(base):
    return dataclasses.replace(base, name='null', given=base.given | dict(seeds='others'), seed_shift=100_000)


def matched(base, arm, how, prices):
    """The baseline with an arm's parameters (its MLP's width), or with as many iterations as its FLOPs or its time buy."""
    name, o = f'{base.name} ({how} of {arm.name})', base.options
    if how == 'params':
        with torch.device('meta'):
            count = [a.model().num_params() for a in (base, arm)]
        a = base.model_args
        ratio = 4.0 + (count[1] - count[0]) / (a['n_layer'] * a['n_embd'] * (2 * a['n_embd'] + a['bias']))
        variant = 'wide_mlp' if o.variant == 'base' else f'{o.variant}+wide_mlp'
        wide = dataclasses.asdict(construct(load_classes(variant).GPTConfig, a | dict(mlp_ratio=max(ratio, 1 / a['n_embd']))))
        return dataclasses.replace(base, name=name, options=dataclasses.replace(o, variant=variant), model_args=wide,
                                   given=dict(mlp_ratio=f'{ratio:.4f}'))
    cost = dict(flops='flops_per_token', time='step_ms')[how]
    ratio = prices[arm.name][cost] / prices[base.name][cost]
    longer = {n: round(getattr(o, n) * ratio) for n in ('max_iters', 'lr_decay_iters')}
    given = {n: str(v) for n, v in longer.items()}
    return dataclasses.replace(base, name=name, options=dataclasses.replace(o, **longer), given=given)


def with_lr(arm, factor):
    o = arm.options
    scaled = {n: getattr(o, n) * factor for n in ('learning_rate', 'min_lr')}
    return dataclasses.replace(arm, options=dataclasses.replace(o, **scaled), given=arm.given | dict(lr=f'x{factor:g}'))


# -- running

class Runner:
    """Workers for a study, a line that says how far it is, and an orderly end."""

    def __init__(self, study, o, where, say):
        self.study, self.o, self.say, self.places = study, o, say, len(where)
        self.pool = pool.Pool(lab_study.perform, where)
        self.live = sys.stdout.isatty()
        signal.signal(signal.SIGTERM, self.interrupted)

    def interrupted(self, number, frame):
        signal.signal(number, signal.SIG_IGN) # who sends one often sends two, to a process and to its group
        raise KeyboardInterrupt

    def run(self, tasks):
        """Yields (task, result). Ctrl-C: the workers save, and the study can go on."""
        try:
            yield from self.pool.run(tasks, self.tick)
        except KeyboardInterrupt:
            with contextlib.suppress(KeyboardInterrupt):
                self.say('stopping: each run saves where it is; a second Ctrl-C does not wait')
                self.pool.stop()
            raise Stop(f'stopped; the same command goes on with {self.study.folder}', 130) from None
        finally:
            if sys.exc_info()[0] is not None:
                self.pool.stop(0)

    def train(self, tasks):
        """Trains what is not done yet, and says what becomes of it."""
        self.total, self.done, self.failed, self.begun = len(tasks), 0, 0, time.time()
        self.iterations = {t.folder: t.arm.options.max_iters for t in tasks}
        todo = []
        for t in tasks:
            state, record = self.state(t)
            if state == 'failed' and self.o.retry:
                self.study.forget(t.arm, t.seed)
                state = 'new'
            if state in ('new', 'partial'):
                todo.append(t)
            else:
                self.done, self.failed = self.done + (state == 'done'), self.failed + (state == 'failed')
                self.iterations.pop(t.folder)
        if len(todo) < len(tasks):
            again = f', {self.failed} failed; --retry=True trains them again' if self.failed else ''
            self.say(f'{self.done} of {self.total} runs are done already{again}')
        self.before = {t.folder: last_iteration(t.folder) for t in todo}
        for t, result in self.results(todo):
            self.iterations[t.folder] = self.before.get(t.folder, 0) if result['status'] != 'done' else self.iterations[t.folder]
            if result['status'] == 'done':
                self.done += 1
                loss = read_json(f'{t.folder}/ab.json')['result']['val_loss']
                self.line(f'{t.arm.name}, seed {t.seed}: {loss:.4f}')
            elif result['status'] == 'stopped':
                raise Stop(f'{t.arm.name}, seed {t.seed}: {result["reason"]}', 130)
            else:
                self.failed += 1
                self.line(f"{t.arm.name}, seed {t.seed}: {result['status']}: {result['reason']}")
        self.line('')

    def results(self, todo):
        """Yields (task, result). A worker is given several runs of an arm at once, see at_once()."""
        width = {name: at_once(self.o, arm) for name, arm in {t.arm.name: t.arm for t in todo}.items()}
        groups, before = {}, Counter()
        for t in todo:
            groups.setdefault((t.arm.name, before[t.arm.name] // width[t.arm.name]), []).append(t)
            before[t.arm.name] += 1
        for together, result in self.run([Together(tasks) for tasks in groups.values()]):
            if isinstance(result, pool.Died):
                said = f'its process ended with {result.exitcode}'
                result = dict(results=[lab_study.failed(t, said, 'failed') for t in together.tasks])
            yield from zip(together.tasks, result['results'])

    def state(self, t):
        try:
            return self.study.state(t.arm, t.seed)
        except Stop:
            if not self.o.redo:
                raise
            self.study.forget(t.arm, t.seed)
            return 'new', None

    def line(self, text):
        if text:
            print(f'\r\x1b[K{text}' if self.live else text, flush=True)
        elif self.live:
            print('\r\x1b[K', end='', flush=True)

    def tick(self, running):
        """12 of 15 runs done, soft_window seed 1340 at 220 of 500, 3:20 left: on a terminal only."""
        if not self.live or not running or running[0].kind != 'train':
            return
        now = {folder: last_iteration(folder) for folder in self.before}
        trained = sum(max(0, now[f] - self.before[f]) for f in now)
        left = sum(max(0, self.iterations.get(f, 0) - now[f]) for f in now)
        seconds = (time.time() - self.begun) * left / trained if trained else None
        at = ', '.join(f'{t.arm.name} {t.seed} at {now[t.folder]}' for together in running for t in together.tasks)
        print(f'\r\x1b[K{self.done} of {self.total} runs done{f", {self.failed} failed" if self.failed else ""}; {at}'
              + (f'; {duration(seconds)} left' if seconds else ''), end='', flush=True)


def at_once(o, arm):
    """How many seeds of an arm one process trains at once. On an H200 eight of a small model take 2.4 times as long as one, eight
    of config/train_shakespeare_char.py 7.4 times (LOG.md); with larger ones nothing is gained, and memory lost."""
    if o.at_once or not on_gpu(arm.options):
        return o.at_once or 1
    classes, options = load_classes(arm.options.variant), arm.options
    tokens = options.batch_size * options.gradient_accumulation_steps * arm.model_args['block_size']
    return 8 if tokens * flops_per_token(classes, classes.GPTConfig(**arm.model_args))[1] < 2e12 else 1


def on_gpu(options):
    return options.device.startswith('cuda') or options.device == 'auto' and torch.cuda.is_available()


def places(o, options):
    """Where workers run: `jobs` on each device."""
    count = torch.cuda.device_count()
    if o.devices:
        names = [d if d.startswith('cuda:') else f'cuda:{d}' for d in o.devices.split(',')]
        if wrong := [name for name in names if name not in [f'cuda:{i}' for i in range(count)]]:
            raise Stop(f'devices={o.devices}: {wrong[0]} is not on this machine, which has {count} CUDA devices')
        return [pool.Place(name, 0) for _ in range(o.jobs or 1) for name in names]
    if on_gpu(options):
        return [pool.Place('', 0) for _ in range(o.jobs or 1)]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
    return [pool.Place('', 1) for _ in range(o.jobs or cores)] # one thread each: sums in one order, however many there are


def duration(seconds):
    minutes, seconds = divmod(round(seconds), 60)
    return f'{minutes // 60}:{minutes % 60:02}:{seconds:02}' if minutes >= 60 else f'{minutes}:{seconds:02}'


# -- before training

def check_arms(study, runner, say):
    """{arm: dict(status, lines, why)} of the leak suite's fast part; Stop if an arm leaks and does not say so."""
    found = {}
    tasks = [Task('check', arm) for arm in study.arms]
    for task, result in runner.run(tasks):
        if isinstance(result, pool.Died) or result['status'] != 'done':
            raise Stop(f'arm {task.arm.name}: its variant cannot be checked: {getattr(result, "exitcode", "") or result["reason"]}')
        outcomes = result['outcomes']
        if bad := [(name, why) for name, _, why in outcomes if why]:
            raise Stop(f'arm {task.arm.name}: {bad[0][0]}: {bad[0][1]}; --check=False trains it all the same')
        declared = [name for name, said, _ in outcomes if 'declared' in said]
        why = lab_study.checks.leak_reason(task.arm.options.variant, task.arm.own_args)
        found[task.arm.name] = dict(status='declared leak' if why else 'ok', why=why, lines=[f'{n}: {s}' for n, s, _ in outcomes])
        say(f'leak suite, {task.arm.name}: ' + (f'declares a leak in training: {why}' if why else f'{len(outcomes)} checks ok'
            + (f', {len(declared)} declared leaks of other options seen' if declared else '')))
    return {arm.name: found[arm.name] for arm in study.arms}


def price_arms(study, runner, say, file='price.json'):
    """{arm: numbers of bench.py}, from the file if it is about these arms: iterations matched to it must not move."""
    path, identity = study.folder / file, {arm.name: study.identity(arm) for arm in study.arms}
    kept = read_json(path)
    if kept is None or kept['identity'] != identity:
        (_, result), = runner.run([Task('price', study.arms[0], arms=tuple(study.arms))])
        if isinstance(result, pool.Died) or result['status'] != 'done':
            raise Stop(f'timing the arms: {getattr(result, "exitcode", "") or result["reason"]}')
        kept = dict(identity=identity, **result)
        write_json(path, kept)
    prices, base = kept['results'], kept['results'][study.arms[0].name]
    for name, p in prices.items():
        memory = f", {p['peak_bytes'] / 2**20:,.0f} MiB" if p['peak_bytes'] else ''
        say(f"price, {name}: {p['params'] / 1e6:.2f}M parameters, {p['flops_per_token'] / 1e6:.1f} MFLOPs a token, "
            f"{p['step_ms']:.2f} ms a step ({p['step_ms'] / base['step_ms']:.2f}x){memory}")
    return prices


def sweep(study, runner, o, factors, say):
    """Each arm with the best of the learning rates on a seed that the study does not use; and the grid."""
    seed, grid, chosen = o.first_seed + 10_000, {}, []
    tried = {(arm.name, f): dataclasses.replace(with_lr(arm, f), name=f'{arm.name} lr x{f:g}')
             for arm in study.arms for f in factors}
    runner.train([study.task(arm, seed) for arm in tried.values()])
    for arm in study.arms:
        losses = {f: (read_json(study.run_folder(tried[arm.name, f], seed) / 'ab.json') or {}).get('result', {}).get('val_loss')
                  for f in factors}
        grid[arm.name] = {f'{f:g}': loss for f, loss in losses.items()}
        there = {f: loss for f, loss in losses.items() if loss is not None}
        if not there:
            raise Stop(f'lr_sweep: no learning rate works for {arm.name}')
        best = min(there, key=there.get)
        chosen.append(with_lr(arm, best) if best != 1 else arm)
        say(f'lr_sweep, {arm.name}: ' + ', '.join(f'x{f:g} {loss:.4f}' for f, loss in there.items()) + f'; x{best:g} is used')
    study.arms[:] = chosen
    return dict(seed=seed, losses=grid)


def say_pairing(study, seeds, say):
    """Whether all arms of a seed had the same batches and the same initial values; says so, and returns it for the report."""
    batches_equal = init_equal = True
    shared = len(study.shared())
    for seed in seeds:
        records = [lab_study.finished(study, arm, [seed]).get(seed) for arm in study.arms if not arm.seed_shift]
        records = [r for r in records if r]
        sets = [{r[what] for r in records} for what in ('batches', 'init')]
        batches_equal, init_equal = batches_equal and len(sets[0]) <= 1, init_equal and len(sets[1]) <= 1
        if records:
            words = ['equal' if len(s) == 1 else 'NOT EQUAL' for s in sets]
            say(f'seed {seed}: batches {words[0]} in {len(records)} arms ({min(sets[0])}), initial values of {shared} shared '
                f'parameters {words[1]} ({min(sets[1])})')
    note = f'{shared} parameters that all arms share start equal' if init_equal else 'initial values differ'
    return dict(batches_equal=batches_equal, init_equal=init_equal, note=note)


# -- the verdict

def judge(study, arms, seeds, o):
    """lab.stats.study() of arms on the seeds that all of them have a run of, +inf for one that diverged; None below two."""
    from lab import stats
    table = {arm.name: losses(study, arm, seeds) for arm in arms}
    there = [seed for seed in seeds if all(seed in runs for runs in table.values())]
    if len(there) < 2:
        return None
    looks = numbers(o.looks, 'looks', int) if o.looks else []
    return stats.study({name: {seed: runs[seed] for seed in there} for name, runs in table.items()}, delta=o.delta, alpha=o.alpha,
                       looks=looks if len(there) in looks else None)


def losses(study, arm, seeds):
    """{seed: final loss}, inf where it diverged; runs that failed otherwise are left out."""
    return {line['seed']: line['val_loss'] if line['status'] == 'done' else float('inf')
            for line in lab_study.runs_of(study, arm, seeds) if line['status'] in ('done', 'diverged')}


def judged(study, seeds, o, pairs):
    """[(result of lab.stats, its arms, baseline first)]: with the baseline, then of each arm with its match. Arms that have other
    seeds, because runs failed or an early look decided, have a result of their own; Holm's correction is over all the same."""
    from lab import stats
    matches, base = {m.name for m in pairs.values()}, study.arms[0]
    groups = {}
    for arm in study.arms[1:]:
        if arm.name not in matches:
            groups.setdefault(tuple(losses(study, arm, seeds)), []).append(arm)
    with_base = [(judge(study, [base, *arms], seeds, o), [base, *arms]) for arms in groups.values()]
    with_match = [(judge(study, [match, arm], seeds, o), [match, arm]) for arm in study.arms for name, match in pairs.items()
                  if arm.name == name]
    for family in with_base, with_match:
        found = [result for result, _ in family if result]
        if len(found) > 1:
            stats.correct([c for result in found for c in result['comparisons'].values()], o.delta,
                          min(result['level'] for result in found))
    return [(result, arms) for result, arms in with_base + with_match if result]


def numbers(text, name, kind):
    with contextlib.suppress(ValueError):
        found = [kind(x) for x in text.split(',')]
        if all(0 < x < float('inf') for x in found):
            return found
    raise Stop(f'{name}={text}: takes positive numbers with commas between them')


# -- the report

def build_report(study, o, extra, seeds, pairs):
    """report.json: lab/report/report.py says what is in it."""
    from lab import stats
    base, prices = study.arms[0], extra.get('prices') or {}
    results = judged(study, seeds, o, pairs)
    records = {arm.name: lab_study.finished(study, arm, seeds) for arm in study.arms}
    arms, curves = [], {}
    for arm in study.arms:
        curve, stat = lab_study.curves_of(study, arm, seeds)
        curves[arm.name] = curve
        price, theirs = prices.get(arm.name), prices.get(base.name)
        ratio = {what: price[what] / theirs[what] for what in ('step_ms', 'flops_per_token')} if price else {}
        sampled = next((r['sample'] for r in records[arm.name].values() if r['sample']), None)
        arms.append(dict(
            name=arm.name, variant=arm.options.variant, baseline=arm is base, options=arm.given,
            params=price['params'] if price else None,
            checks=(extra.get('checks') or {}).get(arm.name, dict(status='skipped', lines=[], why=None)),
            price=price and dict(step_ms=price['step_ms'], step_ratio=ratio['step_ms'], flops_ratio=ratio['flops_per_token'],
                                 forward_flops_per_token=price['forward_flops_per_token'], flops_per_token=price['flops_per_token'],
                                 peak_bytes=price['peak_bytes'], decode_tokens_per_s=price['decode_tokens_per_s'],
                                 compile_seconds=price['first_step_seconds']),
            runs=lab_study.runs_of(study, arm, seeds), curve=curve, stats=stat,
            position_loss=lab_study.means([r['positions'] for r in records[arm.name].values()]) if records[arm.name] else None,
            loss_at_equal_time=lab_study.at_ratio(curve, ratio['step_ms']) if ratio else None,
            loss_at_equal_flops=lab_study.at_ratio(curve, ratio['flops_per_token']) if ratio else None, sample=sampled))
    comparisons = [compared(result, base, arm, records, curves[base.name], o)
                   for result, (base, *others) in results for arm in others]
    options = base.options
    return dict(
        name=study.folder.name, command=extra['command'], config=extra['config'], created=extra['created'],
        plan=dict(seeds=seeds, delta=o.delta, alpha=o.alpha, looks=o.looks or None, metric=METRIC, match=o.match,
                  lr_sweep=extra.get('sweep')),
        environment=extra['environment'], recipe=dataclasses.asdict(options) | base.model_args, arms=arms, comparisons=comparisons,
        paired=extra.get('paired'), tables=[stats.text_table(result, columns(result, prices)) for result, _ in results])


def compared(result, base, arm, records, base_curve, o):
    """lab.stats' comparison of an arm, with what other text and more steps would have made of it."""
    from lab import stats
    c, both = result['comparisons'][arm.name], [records[a.name] for a in (base, arm)]
    common = [seed for seed in both[0] if seed in both[1]]
    text = step = None
    if common:
        windows = (lab_study.means([r[seed]['windows'] for seed in common]) for r in both)
        text = stats.text_interval([theirs - its for its, theirs in zip(*windows)], alpha=o.alpha)
    if c['mean'] is not None:
        step = stats.step_equivalents(c['mean'], base_curve['iters'], lab_study.means(base_curve['val']))
    return dict(arm=arm.name, baseline=base.name, **c, words=stats.in_words(c, result), level=result['level'],
                text_interval=text and [text['low'], text['high']], step_equivalents=step)


def columns(result, prices):
    """What the arms cost, for the table in the terminal."""
    base = prices.get(result['baseline'])
    if not base:
        return {}
    return {title: {arm: f'{prices[arm][what] / base[what]:.2f}' for arm in result['arms'] if arm in prices}
            for title, what in {'ms x': 'step_ms', 'FLOP x': 'flops_per_token'}.items()}


def publish(report, folder, say):
    """report.json, report.html and the plots; the table is said."""
    from lab import report as lab_report
    write_json(folder / 'report.json', report)
    lab_report.write_html(report, folder / 'report.html')
    try:
        lab_report.write_plots(report, folder)
    except ImportError:
        say('no PNGs of the plots: they need matplotlib, pip install matplotlib')
    for table in report.get('tables') or []:
        print(f'\n{table}')
    print(f'\n{folder}/report.html')


# -- the whole

def planned(o):
    """(looks, seeds, factors): numbers of seeds at which there is a verdict, all seeds, and factors on the learning rate."""
    looks = numbers(o.looks, 'looks', int) if o.looks else [o.seeds]
    if looks != sorted(set(looks)) or looks[0] < 2:
        what = f'looks={o.looks}: takes growing numbers of seeds, from 2' if o.looks else f'seeds={o.seeds}: takes 2 or more'
        raise Stop(what)
    factors = numbers(o.lr_sweep, 'lr_sweep', float) if o.lr_sweep else []
    return looks, list(range(o.first_seed, o.first_seed + looks[-1])), factors


def run_study(o, given, say=print):
    """From the options to the report."""
    arms, (looks, seeds, factors) = read_arms(o, given), planned(o)
    where = places(o, arms[0].options)
    config = ', '.join(dict.fromkeys(g.origin.rsplit(':', 1)[0] for g in given if g.origin != COMMAND_LINE))
    study = Study(OUT / (o.name or default_name(config, arms, o)), arms, o.keep_checkpoints)
    holder = RunFolder(study.folder) # held as long as we live
    holder.lock()
    if o.null:
        arms.append(null_arm(arms[0]))
    say(f'study {study.folder}: {len(arms)} arms x {len(seeds)} seeds, {arms[0].options.max_iters} iterations each'
        + (f', looks at {o.looks}' if o.looks else ''))
    for arm in arms:
        say(f'arm {arm.name}: ' + (' '.join(f'{n}={v}' for n, v in arm.given.items()) or 'the baseline'))
    runner = Runner(study, o, where, say)
    extra = dict(command=' '.join(map(shlex.quote, ['python', *sys.argv])), config=config or None, created=now(),
                 environment=dict(versions=versions(), git=git(), data=study.hashes[arms[0].options.dataset]))
    pairs = prepare(study, runner, o, factors, extra, say)
    train_looks(study, runner, o, looks, seeds, pairs, say)
    runner.pool.stop(5)
    extra['paired'] = say_pairing(study, seeds, say)
    write_json(study.folder / 'study.json', dict(options=dataclasses.asdict(o), extra=extra, seeds=seeds,
                                                  arms=[as_json(a) for a in arms], pairs={n: as_json(m) for n, m in pairs.items()}))
    report = build_report(study, o, extra, seeds, pairs)
    publish(report, study.folder, say)
    ledger.add(report, OUT)
    if not report['comparisons']:
        raise Stop(f'no verdict: fewer than two seeds have a run of every arm; see {study.folder}/report.html')


def prepare(study, runner, o, factors, extra, say):
    """Checks, learning rates, prices and matched baselines, as asked for: into extra and study.arms. Returns {arm: its match}."""
    arms, pairs = study.arms, {}
    if o.check:
        extra['checks'] = check_arms(study, runner, say)
    if factors:
        extra['sweep'] = sweep(study, runner, o, factors, say)
    if o.price or o.match in ('flops', 'time'):
        extra['prices'] = price_arms(study, runner, say)
    if o.match != 'none':
        pairs = {arm.name: matched(arms[0], arm, o.match, extra.get('prices')) for arm in arms[1:] if not arm.seed_shift}
        arms += pairs.values()
        if o.price:
            extra['prices'] = price_arms(study, runner, say, 'price_matched.json')
    kept = read_json(study.folder / 'price.json') or {}
    extra['environment'] |= {n: kept[n] for n in ('device', 'dtype', 'compile') if n in kept}
    return pairs


def train_looks(study, runner, o, looks, seeds, pairs, say):
    """Trains up to each look; an arm that is better or worse there, and its match, train no further."""
    if prices := read_json(study.folder / 'price.json'):
        left = sum(prices['results'][a.name]['step_ms'] / 1000 * a.options.gradient_accumulation_steps * a.options.max_iters
                   for a in study.arms if a.name in prices['results'] for seed in seeds if not study.ended(a, seed))
        say(f'about {duration(left / runner.places)} of training are left, evaluations apart')
    active, shared, matches = list(study.arms), study.shared(), {m.name for m in pairs.values()}
    for look in looks:
        runner.train([study.task(arm, seed, shared, sample=seed == seeds[0]) for seed in seeds[:look] for arm in active])
        if look == looks[-1]:
            break
        result = judge(study, [a for a in active if a.name not in matches], seeds[:look], o)
        for name, c in (result['comparisons'] if result else {}).items():
            if c['verdict'] in ('better', 'worse'):
                say(f'{name} is decided at {look} seeds: {c["verdict"]}')
                gone = {name, pairs[name].name} if name in pairs else {name}
                active = [a for a in active if a.name not in gone]
        if len(active) == 1:
            break


def as_json(arm):
    return dict(name=arm.name, options=dataclasses.asdict(arm.options), model_args=arm.model_args, given=arm.given,
                seed_shift=arm.seed_shift)


def from_json(saved):
    return Arm(saved['name'], train.Options(**saved['options']), saved['model_args'], saved['given'], {}, saved['seed_shift'])


def again(folder, say=print):
    """The report of a study that is there, from its run folders."""
    folder = Path(folder)
    saved = read_json(folder / 'study.json')
    if saved is None:
        if (table := read_json(folder / 'losses.json')) is not None:
            return from_table({arm: {int(s): x for s, x in runs.items()} for arm, runs in table['losses'].items()},
                              Options(**table['options']), folder, table['command'])
        raise Stop(f'--report={folder}: holds no study; it has to have been run to its end once')
    try:
        study, o = Study(folder, [from_json(a) for a in saved['arms']]), Options(**saved['options'])
        pairs = {name: next(a for a in study.arms if a.name == m['name']) for name, m in saved['pairs'].items()}
        extra, seeds = saved['extra'], saved['seeds']
    except (IndexError, KeyError, TypeError): # edited, or of a version with other options
        raise Stop(f'{folder}/study.json: is not what this ab.py writes; the command that made the study writes it anew') from None
    publish(build_report(study, o, extra, seeds, pairs), folder, say)


def from_table(table, o, folder, command):
    """Statistics of losses that somebody brings."""
    from lab import stats
    result = stats.study(table, o.baseline or None, o.delta, o.alpha, numbers(o.looks, 'looks', int) if o.looks else None)
    comparisons = [dict(arm=arm, baseline=result['baseline'], **c, words=stats.in_words(c, result), level=result['level'])
                   for arm, c in result['comparisons'].items()]
    arms = [dict(name=arm, variant=None, baseline=arm == result['baseline'], options={},
                 runs=[dict(seed=s, status='done' if x < float('inf') else 'diverged', val_loss=x) for s, x in table[arm].items()])
            for arm in result['arms']]
    report = dict(name=folder.name, command=command, config=None, created=now(), environment=dict(versions=versions()),
                  plan=dict(seeds=result['seeds'], delta=o.delta, alpha=o.alpha, looks=o.looks or None, metric='loss, as given'),
                  arms=arms, comparisons=comparisons, tables=[stats.text_table(result)])
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / 'losses.json', dict(losses=table, options=dataclasses.asdict(o), command=command))
    publish(report, folder, print)
    return report


def default_name(config, arms, o):
    """ab_shakespeare_char-soft_window-alibi, of bearable length."""
    words = [Path(config.split(', ')[-1]).stem] * bool(config) + [arm.folder for arm in arms[1:]] + ['null'] * o.null
    return re.sub(r'[^\w.+=-]+', '_', '-'.join(words))[:80].strip('_.-') or 'study'


def now():
    return datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds').replace('+00:00', 'Z')


def plain_switches(argv):
    """--ledger is --ledger=True, --report DIR is --report=DIR: what people type."""
    kinds, out, argv = options_of(Options), [], list(argv)
    while argv:
        arg = argv.pop(0)
        name = arg.removeprefix('--')
        if arg.startswith('--') and name in kinds and kinds[name].kind is bool:
            arg += '=True'
        elif arg in ('--report', '--from_csv', '--name') and argv and not argv[0].startswith('-'):
            arg += '=' + argv.pop(0)
        out.append(arg)
    return out


def main():
    argv = plain_switches(sys.argv[1:])
    if {'-h', '--help'} & set(argv):
        configure(Options, argv=argv)
    given = arguments(argv)
    known = options_of(Options)
    o = construct(Options, {g.name: parse_option(known[g.name], g.value, g.origin) for g in given if g.name in known})
    if importlib.util.find_spec('scipy') is None:
        raise Stop('ab.py needs scipy for its statistics: pip install scipy')
    if o.name and Path(o.name).name != o.name or o.name == '..':
        raise Stop(f'name={o.name}: takes the name of a folder in {OUT}')
    rest = [g for g in given if g.name not in known]
    if o.ledger:
        return print(ledger.text(OUT))
    if o.report:
        return again(o.report)
    if o.from_csv:
        from lab.stats import read_csv
        folder = OUT / (o.name or re.sub(r'[^\w.+=-]+', '_', Path(o.from_csv).stem))
        report = from_table(read_csv(o.from_csv), o, folder, ' '.join(map(shlex.quote, ['python', *sys.argv])))
        return ledger.add(report, OUT)
    run_study(o, rest)


if __name__ == '__main__':
    run_main(main)
