"""A study: arms x seeds, one run folder each. What is to be trained, what is done, and what came out."""
import dataclasses
import gc
import hashlib
import json
import math
import os
import re
import shutil
import sys
import time
import traceback
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.nn.functional as F

import train
from configurator import options_of
from core.data.dataset import Dataset
from core.device.cuda_graph import GraphPool
from core.device.machine import machine
from core.errors import BUSY, DIVERGED, Stop, out_of_memory
from core.rng import key
from core.run.environment import ROOT
from core.run.folder import RunFolder, plain, put, read_json, sha256
from core.run.weights import weights
from lab import checks
from lab.timing import TimedModel, interleave
from model import GPTConfig, Step, build, load_classes

# Options that change where and how a run runs, not what it computes.
ELSEWHERE = ('out_dir', 'init_from', 'seed', 'wandb_log', 'wandb_project', 'wandb_run_name', 'device', 'eval_only', 'log_interval',
             'checkpoint_minutes', 'save_best', 'always_save_checkpoint', 'backend')
SAMPLE_TOKENS = 400


@dataclass
class Arm:
    """One way to train: a name, and all options."""
    name: str
    options: train.Options
    model_args: dict            # every field of the variant's GPTConfig
    given: dict                 # what sets it apart from the config, as text
    origin: dict = field(repr=False, default_factory=dict)
    seed_shift: int = 0         # added to each seed: not 0 for the arm that is only another seed

    @property
    def folder(self):
        return re.sub(r'[^\w.+=-]+', '_', self.name)

    @property
    def own_args(self):
        """The variant's own options among model_args."""
        known = options_of(GPTConfig)
        return {name: value for name, value in self.model_args.items() if name not in known}

    def build(self, seed):
        return build(self.options.variant, seed, **self.model_args)

    def model(self):
        """Uninitialised, for its shapes on the meta device."""
        classes = load_classes(self.options.variant)
        return classes.GPT(classes.GPTConfig(**self.model_args), classes)

    def identity(self, data_hash):
        """What a run of this arm depends on, seed apart: two runs with one identity are one run."""
        files = [ROOT / 'model.py', ROOT / 'train.py', ROOT / 'configurator.py', *sorted(ROOT.glob('core/**/*.py'))]
        files += [Path(f.__file__) for f in load_classes(self.options.variant).files]
        files += sorted(ROOT.glob('variants/_[!_]*.py')) # what variants share
        chosen = {name: value for name, value in dataclasses.asdict(self.options).items() if name not in ELSEWHERE}
        return dict(options=chosen, model_args=self.model_args, seed_shift=self.seed_shift, data=data_hash,
                    code={str(path.relative_to(ROOT)): sha256(path) for path in files})


@dataclass
class Task:
    """For a worker: train one arm with one seed ('train', in a Together), time all arms ('price'), or check one ('check')."""
    kind: str
    arm: Arm
    seed: int = 0
    folder: str = ''
    identity: dict = field(repr=False, default_factory=dict)
    shared: tuple = ()          # parameters that all arms have, for the hash of their initial values
    arms: tuple = ()            # price: all of them
    sample: bool = False
    keep_checkpoints: bool = False

    @property
    def like(self):
        return self.kind, self.arm.name


@dataclass
class Together:
    """Runs of one arm that a worker trains at once."""
    tasks: list[Task]
    kind = 'train'
    arm = property(lambda self: self.tasks[0].arm)
    folder = property(lambda self: self.tasks[0].folder)
    like = property(lambda self: self.tasks[0].like)


class Study:
    def __init__(self, folder, arms, keep_checkpoints=False):
        self.folder, self.arms, self.keep_checkpoints = Path(folder), arms, keep_checkpoints
        first = arms[0]
        self.data = Dataset(first.options.dataset, first.model_args['block_size'])
        self.hashes = {name: Dataset(name, 1).hash for name in {a.options.dataset for a in arms}}

    def shared(self):
        """Names of the parameters that all arms have, in one shape: they start equal, by (seed, name)."""
        with torch.device('meta'):
            every = [{n: p.shape for n, p in arm.model().named_parameters()} for arm in self.arms]
        return tuple(sorted(n for n, shape in every[0].items() if all(other.get(n) == shape for other in every)))

    def run_folder(self, arm, seed):
        return self.folder / arm.folder / f'seed_{seed}'

    def task(self, arm, seed, shared=(), sample=False):
        return Task('train', arm, seed, str(self.run_folder(arm, seed)), self.identity(arm), shared, sample=sample,
                    keep_checkpoints=self.keep_checkpoints)

    def identity(self, arm):
        return json.loads(json.dumps(arm.identity(self.hashes[arm.options.dataset])))

    def state(self, arm, seed):
        """('new' | 'partial' | 'done' | 'failed', the record or None); Stop where the folder holds a run of something else."""
        folder = self.run_folder(arm, seed)
        for name, said in ('ab.json', 'done'), ('failed.json', 'failed'), ('task.json', 'partial'):
            if (record := read_json(folder / name)) is not None:
                if what := difference(record['identity'], self.identity(arm)):
                    raise Stop(f'{folder} was run with another {what}; --redo=True trains it again, --name=NAME starts a new study')
                return said, record
        return 'new', None

    def ended(self, arm, seed):
        return any((self.run_folder(arm, seed) / name).exists() for name in ('ab.json', 'failed.json'))

    def forget(self, arm, seed):
        """Makes a run new again; train.py moves what it had trained to previous/."""
        for name in 'ab.json', 'failed.json', 'task.json':
            (self.run_folder(arm, seed) / name).unlink(missing_ok=True)


def difference(old, new, path=''):
    """The first thing in which two identities differ, in words; None if they are equal."""
    for name in sorted(old.keys() | new.keys()):
        a, b = old.get(name), new.get(name)
        if isinstance(a, dict) and isinstance(b, dict):
            if found := difference(a, b, f'{name}: ' if name == 'code' else ''):
                return found
        elif a != b:
            return f'{path}{name}' if path else f'{name} ({a} then, {b} now)'
    return None


def write_json(path, obj):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    put(Path(path), json.dumps(plain(obj)).encode() + b'\n')


# -- what a worker does

def perform(task, place, kept):
    """The result of a task, a dict with a status; never an exception. 'leave': this process is not to be used again. For a
    Together it is dict(results=[one for each of its tasks])."""
    if place.threads:
        torch.set_num_threads(place.threads)
    with output_to(task.folder):
        try:
            return dict(train=train_together, price=price, check=check)[task.kind](task, place, kept)
        except Exception as error:
            return dict(results=[as_result(t, error) for t in task.tasks]) if task.kind == 'train' else as_result(task, error)


def as_result(task, error):
    """What a task has come to that ended with this exception."""
    if isinstance(error, Stop):
        return failed(task, str(error), 'diverged' if error.code == DIVERGED else 'stopped' if error.code > 128 else 'failed')
    traceback.print_exception(error) # whatever a variant's code raises is one arm's failure, not the study's
    first = (str(error).strip().splitlines() or [''])[0]
    return failed(task, f'{type(error).__name__}: {first[:300]}', 'failed') | dict(leave=True)


def failed(task, reason, status):
    if task.kind == 'train' and status != 'stopped':
        write_json(f'{task.folder}/failed.json', dict(identity=task.identity, status=status, reason=reason))
    return dict(status=status, reason=reason)


def output_of(folder):
    """The file for what a run prints."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    return open(Path(folder) / 'output.txt', 'a', encoding='utf-8', buffering=1)


@contextmanager
def output_to(folder):
    """What the worker prints, and the libraries in it, goes to output.txt in the run's folder."""
    if not folder:
        yield
        return
    with output_of(folder) as f:
        kept = os.dup(1), os.dup(2)
        os.dup2(f.fileno(), 1)
        os.dup2(f.fileno(), 2)
        try:
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for fd, old in zip((1, 2), kept):
                os.dup2(old, fd)
                os.close(old)


def train_together(together, place, kept):
    """Trains runs of one arm in turn, an iteration each; on a GPU in a stream each, where their kernels overlap. Every run is what
    it would be alone. What does not fit into memory beside the others is trained after them, one by one."""
    arm, signals, waiting, width, results = together.arm, train.Signals(), together.tasks, len(together.tasks), {}
    device = place.device or arm.options.device
    on_gpu = machine(device).type == 'cuda'
    if kept.get('arm') != arm.name: # all that runs of one arm share is compiled code, of which Dynamo keeps eight versions
        torch._dynamo.reset()
        kept.update(arm=arm.name)
    while waiting:
        gc.collect() # what runs before these held on the device
        now, waiting = waiting[:width], waiting[width:]
        runs = {n: one_run(task, device, signals) for n, task in enumerate(now)}
        streams = [torch.cuda.Stream() if on_gpu and len(now) > 1 else None for _ in now]
        with ExitStack() as files:
            outputs = [files.enter_context(output_of(task.folder)) for task in now]
            while runs:
                for n in list(runs):
                    try:
                        with redirect_stdout(outputs[n]), redirect_stderr(outputs[n]), torch.cuda.stream(streams[n]):
                            next(runs[n])
                        continue
                    except StopIteration:
                        results[now[n].seed] = dict(status='done')
                    except Exception as error:
                        if len(now) > 1 and out_of_memory(error):
                            waiting, width = [*waiting, now[n]], 1
                        else:
                            results[now[n].seed] = as_result(now[n], error)
                    del runs[n]
    return dict(results=[results[task.seed] for task in together.tasks], leave=any(r.get('leave') for r in results.values()))


def one_run(task, device, signals):
    """Trains one run and writes what is to be kept of it; a generator that yields after each iteration."""
    arm, folder, seed = task.arm, Path(task.folder), task.seed + task.arm.seed_shift
    resume = (folder / 'task.json').exists() and (folder / 'config.json').exists()
    write_json(folder / 'task.json', dict(identity=task.identity))
    o = dataclasses.replace(arm.options, seed=seed, out_dir=str(folder), init_from='resume' if resume else 'scratch', device=device)
    origin = {name: 'ab.py' if arm.origin.get(name, 'default') == 'default' else arm.origin[name] for name in arm.model_args}
    origin = arm.origin | origin | dict(out_dir='command line', seed='ab.py') # what is no default, a resumed run compares
    config = SimpleNamespace(options=o, model_args=arm.model_args, origin=origin)
    for attempt in range(100):
        try:
            m, data, model = yield from train.train(config, signals)
            break
        except Stop as stop: # who held the folder is being killed
            if stop.code != BUSY or attempt == 99:
                raise
            time.sleep(0.1)
    windows, positions = token_losses(m, data, model, o)
    shift, result = arm.seed_shift, read_json(folder / 'result.json')
    record = dict(identity=task.identity, seed=task.seed, result=result, windows=windows, positions=positions,
                  init=None if shift else hash_of_init(arm.build(seed), task.shared),
                  batches=None if shift else hash_of_batches(data, o),
                  sample=sample(m, data, model, o) if task.sample else None)
    write_json(folder / 'ab.json', record)
    if not task.keep_checkpoints:
        shutil.rmtree(RunFolder(folder).ckpt, ignore_errors=True)


@torch.no_grad()
def token_losses(m, data, model, o):
    """Mean losses in nats: of each validation window, in order, and at each position of the context."""
    model.eval()
    it, windows, total, count = torch.tensor(float(o.max_iters), device=m.device), [], 0.0, 0
    for x, y, _ in data.windows('val', o.batch_size, o.eval_iters * o.batch_size):
        with m.autocast():
            logits, _ = model(x, y, Step(it=it))
        losses = F.cross_entropy(logits.float().flatten(0, 1), y.flatten(), reduction='none', ignore_index=-1).view(y.shape)
        there = y >= 0
        windows.append(losses.sum(1) / there.sum(1))
        total, count = total + losses.double().sum(0), count + there.sum(0)
    model.train()
    return torch.cat(windows).tolist(), (total / count.clamp(min=1)).tolist()


def hash_of_init(model, names):
    """Of the initial values of these parameters."""
    digest, tensors = hashlib.sha256(), weights(model)
    for name in names:
        digest.update(name.encode() + tensors[name].detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def hash_of_batches(data, o):
    """Of where the rows of (up to a thousand of) the batches begin."""
    digest, rows = hashlib.sha256(), o.batch_size * o.gradient_accumulation_steps
    for it in range(0, o.max_iters, max(1, o.max_iters // 1000)):
        digest.update(data.starts('train', it, rows, o.seed).numpy().tobytes())
    return digest.hexdigest()[:16]


def sample(m, data, model, o):
    """Text after a line break, temperature 0.8."""
    model.eval()
    idx = torch.tensor([data.tokenizer.encode('\n')], device=m.device)
    generator = torch.Generator(m.device).manual_seed(key(o.seed, 'sample'))
    it = torch.tensor(float(o.max_iters), device=m.device)
    with m.autocast():
        tokens = list(model.stream(idx, SAMPLE_TOKENS, 0.8, 200, generator=generator, it=it))
    model.train()
    return data.tokenizer.decode(torch.cat(tokens, dim=1)[0].tolist())


def price(task, place, kept):
    """What each arm costs, timed in turn in this process: {arm: numbers of bench.py}."""
    kept.clear()
    timed, pool = {}, None
    for arm in task.arms:
        o = arm.options
        m = machine(place.device or o.device, o.dtype, o.compile)
        pool = pool or (GraphPool() if m.type == 'cuda' else None)
        torch._dynamo.config.recompile_limit = 8 * len(task.arms) # every arm compiles the same function anew
        decode_tokens = min(64, arm.model_args['block_size'] - 1)
        try:
            timed[arm.name] = TimedModel(o.variant, m, arm.model_args, o.batch_size, decode_tokens, o.optimizer, o.seed, pool=pool)
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            raise Stop(f'arm {arm.name} does not fit into the memory of {m.name}: lower --batch_size') from None
    interleave(list(timed.values()), 5, 0.05)
    results = {name: one.result(None) for name, one in timed.items()}
    for result in results.values():
        del result['samples_ms']
    return dict(status='done', results=results, device=m.name, dtype=m.dtype, compile=m.compile)


def check(task, place, kept):
    """The fast part of the leak suite: [(check, what it said, why it failed or '')]."""
    found = checks.run_suite(task.arm.options.variant, fast=True, **task.arm.own_args)
    return dict(status='done', outcomes=[(c.name, c.status, c.why or '') for c in found])


# -- what came out

def finished(study, arm, seeds):
    """{seed: the record of a finished run}."""
    records = {seed: read_json(study.run_folder(arm, seed) / 'ab.json') for seed in seeds}
    return {seed: record for seed, record in records.items() if record}


def evaluations(folder):
    return [line for line in RunFolder(folder).read_log() if 'val_loss' in line]


def runs_of(study, arm, seeds):
    """A line for the report for each seed, whatever became of it."""
    lines = []
    for seed in seeds:
        folder = study.run_folder(arm, seed)
        record, failure = read_json(folder / 'ab.json'), read_json(folder / 'failed.json')
        line = dict(seed=seed, status='missing', reason=None, val_loss=None, best_val_loss=None, best_iter=None, train_loss=None,
                    seconds=None, init_hash=None, batch_hash=None)
        if record:
            r, evaluated = record['result'], evaluations(folder)
            best = min(evaluated, key=lambda e: e['val_loss'])
            line |= dict(status='done', val_loss=r['val_loss'], best_val_loss=best['val_loss'], best_iter=best['iter'],
                         train_loss=r['train_loss'], seconds=r['seconds'], init_hash=record['init'], batch_hash=record['batches'])
        elif failure:
            line |= dict(status=failure['status'], reason=failure['reason'])
        lines.append(line)
    return lines


def curves_of(study, arm, seeds):
    """(losses over the iterations for each finished seed, the variant's own statistics as means over seeds)."""
    curve, stats = dict(iters=[], val=[], train=[], seeds=[]), {}
    for seed in finished(study, arm, seeds):
        evaluated = evaluations(study.run_folder(arm, seed))
        curve['iters'] = [e['iter'] for e in evaluated]
        curve['seeds'].append(seed)
        for split in 'val', 'train':
            curve[split].append([e[f'{split}_loss'] for e in evaluated])
        for name in {n for e in evaluated for n in e if n.startswith('stats.')}:
            stats.setdefault(name.removeprefix('stats.'), []).append([e[name] for e in evaluated])
    means = {name: dict(iters=curve['iters'], layers=torch.tensor(values, dtype=torch.float64).mean(0).tolist())
             for name, values in sorted(stats.items())}
    return curve, means


def at_ratio(curve, ratio):
    """The mean loss an arm has read off its curve where it has cost what the baseline costs in all, ratio being its cost of a
    step over the baseline's; None where it is the cheaper. Its schedule was not made to end there: too high a loss."""
    iters = curve['iters']
    if not curve['val'] or ratio <= 1:
        return None
    mean, at = means(curve['val']), iters[-1] / ratio
    i = max(n for n, it in enumerate(iters) if it <= at)
    j = min(i + 1, len(iters) - 1)
    share = (at - iters[i]) / (iters[j] - iters[i]) if j > i else 0.0
    return dict(loss=mean[i] + share * (mean[j] - mean[i]), iters=math.floor(at))


def means(rows):
    """Of numbers at the same place in several lists."""
    return [sum(column) / len(column) for column in zip(*rows)]
