"""Tasks of a worker: train runs of one arm, check an arm, time all arms.

A task never raises: errors become its TaskResult, and the study goes on.
"""
import dataclasses
import gc
import hashlib
import os
import shutil
import sys
import time
import traceback
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import torch

import train
from core.data.dataset import Dataset
from core.device.cuda_graph import GraphPool
from core.device.machine import machine
from core.errors import BAD_INPUT, DISK_FULL, DIVERGED, FULL, Stop, out_of_memory
from core.rng import key
from core.run.checkpoint import model_tensors
from core.run.files import read_json, write_json
from core.run.folder import RunFolder
from core.training.signals import Signals
from lab import checks
from lab.study.arm import Arm
from lab.study.store import DONE, FAILED, STARTED, claim, logged_evaluations, read_run, run_name
from lab.timing import TimedModel, interleave

SAMPLE_TOKENS = 400
# of a price: the fewest rounds of steps; rounds of decoding, and tokens
STEP_ROUNDS, DECODE_ROUNDS, DECODE_TOKENS = 10, 3, 32


@dataclass
class TrainTask:
    """Train one arm with one seed."""
    arm: Arm
    seed: int
    folder: str                 # the run's
    first: bool = False         # the arm's first run: some text of its model is kept
    check: bool = False         # its trained model is checked
    keep_checkpoints: bool | str = False # log: spaced ones, too


@dataclass
class TaskGroup:
    """Train several runs of arms with the same code at once. The result is a list with a TaskResult for each run."""
    tasks: list[TrainTask]

    @property
    def arm(self):
        return self.tasks[0].arm

    @property
    def affinity(self):
        """The key of runs that share compiled code, so that one worker trains all of them."""
        return 'train', self.arm.code_key


@dataclass
class CheckTask:
    """Check one arm. The result's value: [(check, what it found, why it failed or '')]."""
    arm: Arm
    which: str = 'all'          # or leaks

    @property
    def affinity(self):
        return 'check', self.arm.name


@dataclass
class PriceTask:
    """Time all arms in turn, a step and decoding.

    The result's value: dict(results={arm: numbers of lab/timing.py}, device, dtype, compile).
    """
    arms: tuple
    seconds: float = 0.6        # an arm: after that no more rounds of steps, however wide the intervals
    affinity = ('price', '')


@dataclass
class TaskResult:
    """The outcome of a task, or of one run of a TaskGroup."""
    status: str                 # done, diverged, failed, or stopped (by a signal or a full disk)
    reason: str = ''            # why it is not done
    value: object = None        # for training, the final validation loss; of what was stopped, the exit code


def run_task(task, slot, worker_state):
    """Runs a task for pool.Pool and returns its result: a list for a TaskGroup, else a TaskResult.

    worker_state: a dict that this process keeps between tasks.
    """
    if slot.threads:
        torch.set_num_threads(slot.threads)
    # training prints into the runs' folders; the other tasks print nothing
    if isinstance(task, TaskGroup):
        with output_to(task.tasks[0].folder):
            try:
                return train_group(task, slot, worker_state)
            except Exception as error:
                return [failed_run(one, error, worker_state) for one in task.tasks]
    try:
        value = check_arm(task, slot) if isinstance(task, CheckTask) else time_arms(task, slot, worker_state)
        return TaskResult('done', value=value)
    except Exception as error:
        return result_of_error(error, worker_state)


def failed_run(task, error, worker_state):
    """Returns the TaskResult of a run that raised this error, and writes failed.json into its folder."""
    result = result_of_error(error, worker_state)
    # a stopped run will be resumed, so it has not failed
    if result.status != 'stopped':
        record_failure(task, result)
    return result


def result_of_error(error, worker_state):
    """Returns the TaskResult of a task that raised this error; unknown errors retire the worker."""
    if isinstance(error, OSError) and error.errno in FULL:
        error = Stop(f'{error.filename or "the system"}: {error.strerror}', DISK_FULL)
    if isinstance(error, Stop):
        # nor does a full disk say anything about the arm
        stopped = error.code > 128 or error.code == DISK_FULL
        status = 'diverged' if error.code == DIVERGED else 'stopped' if stopped else 'failed'
        return TaskResult(status, str(error), error.code if status == 'stopped' else None)
    # an error in a variant's code fails one arm, not the study, but may leave this process in any state
    worker_state['retire'] = True
    traceback.print_exception(error)
    first_line = (str(error).strip().splitlines() or [''])[0]
    return TaskResult('failed', f'{type(error).__name__}: {first_line[:300]}')


def record_failure(task, result):
    """Writes failed.json into the folder of a TrainTask."""
    folder = Path(task.folder)
    write_json(folder / FAILED, run_name(folder) | dict(status=result.status, reason=result.reason))


def open_output(folder):
    """Opens output.txt in a run's folder, to append what the run prints."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    return open(Path(folder) / 'output.txt', 'a', encoding='utf-8', buffering=1)


@contextmanager
def output_to(folder):
    """Redirects all output of this process, that of C libraries too, to output.txt in the run's folder."""
    # file descriptors 1 and 2, because C libraries do not go through sys.stdout
    with open_output(folder) as f:
        saved = os.dup(1), os.dup(2)
        os.dup2(f.fileno(), 1)
        os.dup2(f.fileno(), 2)
        try:
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for fd, old in zip((1, 2), saved):
                os.dup2(old, fd)
                os.close(old)


# -----------------------------------------------------------------------------
# training

def train_group(group, slot, worker_state):
    """Trains runs of arms with the same code in turn, one iteration each, and returns a list of TaskResults.

    On a GPU each run has a stream, so that their kernels overlap. Every run is equal, to the bit, to one
    trained alone. Runs that do not fit into memory beside the others are trained after them, one by one.
    """
    arm, signals = group.arm, Signals()
    device = slot.device or arm.options.device
    on_gpu = machine(device).type == 'cuda'
    # Dynamo keeps eight versions of a function, so the code of the last arm is dropped
    if worker_state.get('code') != arm.code_key:
        torch._dynamo.reset()
        worker_state['code'] = arm.code_key

    # by folder, because cells have runs of one seed
    waiting, width, results = group.tasks, len(group.tasks), {}
    while waiting:
        # frees the device memory of earlier runs
        gc.collect()
        current, waiting = waiting[:width], waiting[width:]
        runs = {n: train_run(task, device, signals) for n, task in enumerate(current)}
        streams = [torch.cuda.Stream() if on_gpu and len(current) > 1 else None for _ in current]
        with ExitStack() as files:
            outputs = [files.enter_context(open_output(task.folder)) for task in current]
            # one iteration of each, until all have ended
            while runs:
                for n in list(runs):
                    task, output = current[n], outputs[n]
                    try:
                        with redirect_stdout(output), redirect_stderr(output), torch.cuda.stream(streams[n]):
                            next(runs[n])
                        continue
                    except StopIteration as end:
                        results[task.folder] = TaskResult('done', value=end.value)
                    except Exception as error:
                        # a run that is out of memory here may fit alone
                        if len(current) > 1 and out_of_memory(error):
                            waiting, width = [*waiting, task], 1
                        else:
                            results[task.folder] = failed_run(task, error, worker_state)
                    del runs[n]
    return [results[task.folder] for task in group.tasks]


def train_run(task, device, signals):
    """Trains one run, unless another study does so now. A generator that yields after each iteration.

    Returns the final validation loss. Raises what train.train() raises.
    """
    folder = Path(task.folder)
    # another study may be training this very run: then its result is taken
    while (lock := claim(folder)) is None:
        if signals.received:
            raise Stop(f'stopped by {signals.received.name}', 128 + signals.received)
        time.sleep(0.05)
        yield
    try:
        if record := read_run(folder / DONE, 'result'):
            return record['result']['val_loss']
        if failure := read_run(folder / FAILED, 'status', 'reason'):
            raise Stop(failure['reason'], DIVERGED if failure['status'] == 'diverged' else BAD_INPUT)
        return (yield from train_claimed_run(task, device, signals))
    finally:
        lock.release()


def train_claimed_run(task, device, signals):
    """Trains one run, whose lock this process holds, and writes its ab.json; otherwise as train_run()."""
    arm, folder, seed = task.arm, Path(task.folder), task.seed
    # a run that was killed resumes from its newest checkpoint
    resume = (folder / STARTED).exists() and (folder / 'config.json').exists()
    write_json(folder / STARTED, dict(arm=arm.name, seed=seed))
    o = dataclasses.replace(arm.options, seed=seed, out_dir=str(folder), device=device,
                            init_from='resume' if resume else 'scratch',
                            keep='log' if task.keep_checkpoints == 'log' else 'none')
    # all model options count as given, because a resumed run compares only given ones with its config.json
    origin = arm.origin | dict(out_dir='command line', seed='ab.py', keep='ab.py')
    origin |= {name: 'ab.py' for name in arm.model_args if origin.get(name, 'default') == 'default'}
    config = SimpleNamespace(options=o, model_args=arm.model_args, origin=origin)
    m, data, model, val = yield from train.train(config, signals)

    # all that the report needs of the model, before its weights are deleted
    result = read_json(folder / 'result.json')
    sample, no_sample = try_sample(m, data, model, o) if task.first else (None, None)
    write_json(folder / DONE, run_name(folder) | dict(
        arm=arm.name, result=result, windows=val.windows, positions=val.positions,
        evaluations=logged_evaluations(folder),
        init=hash_initial_values(arm.build(seed)), batches=hash_batches(data, o),
        sample=sample, no_sample=no_sample,
        checks=checked(checks.check_trained(model, m, o, data)) if task.check else None))
    if not task.keep_checkpoints:
        for place in RunFolder(folder).ckpt, RunFolder(folder).kept:
            shutil.rmtree(place, ignore_errors=True)
    return result['val_loss']


def hash_initial_values(model):
    """Returns {parameter's name: a hash, 8 hex digits, of its values}."""
    return {name: hashlib.sha256(p.detach().cpu().contiguous().numpy().tobytes()).hexdigest()[:8]
            for name, p in model_tensors(model).items()}


def hash_batches(data, o):
    """Returns a hash, 16 hex digits, of where the rows of batches begin, for up to about 1,000 batches."""
    digest, rows = hashlib.sha256(), o.batch_size * o.gradient_accumulation_steps
    for it in range(0, o.max_iters, max(1, o.max_iters // 1000)):
        digest.update(data.starts('train', it, rows, o.seed).numpy().tobytes())
    return digest.hexdigest()[:16]


def try_sample(m, data, model, o):
    """Returns (text, None), or (None, why there is none): a run counts by its loss, with or without a text."""
    try:
        return sample_text(m, data, model, o), None
    # decoding is the variant's own code, and what it raises may be anything
    except Exception as error:
        first_line = (str(error).strip().splitlines() or [''])[0][:300]
        return None, first_line if isinstance(error, Stop) else f'{type(error).__name__}: {first_line}'


def sample_text(m, data, model, o):
    """Returns text that the model writes after data.tokenizer.start(), at temperature 0.8 from its top 200 tokens."""
    model.eval()
    idx = torch.tensor([data.tokenizer.start()], device=m.device)
    generator = torch.Generator(m.device).manual_seed(key(o.seed, 'sample'))
    it = torch.tensor(float(o.max_iters), device=m.device)
    with m.precision():
        tokens = list(model.stream(idx, SAMPLE_TOKENS, 0.8, 200, generator=generator, it=it,
                                   known=data.tokenizer.known))
    model.train()
    return data.tokenizer.decode(torch.cat(tokens, dim=1)[0].tolist())


# -----------------------------------------------------------------------------
# checking and timing

def check_arm(task, slot):
    """Runs the checks of an arm, those for leaks first; returns [(check, what it found, why it failed or '')].

    First its own model, on the device and in the circumstances in which it is judged, then small ones, in
    more settings and in float64.
    """
    arm, o = task.arm, task.arm.options
    m = machine(slot.device or o.device, o.dtype, False)
    data = Dataset(o.dataset, arm.model_args['block_size'], m.device)
    outcomes = []
    for leaks in (True, False) if task.which == 'all' else (True,):
        outcomes += checks.run_fresh(lambda: arm.build(o.seed), m, o, data, leaks)
        outcomes += checks.run_suite(o.variant, fast=True, leaks=leaks, **arm.variant_args)
    return checked(outcomes)


def checked(results):
    """Returns [(check, what it found, why it failed or '')] of CheckResults."""
    return [(c.name, c.status, c.why) for c in results]


def time_arms(task, slot, worker_state):
    """Builds all arms, then times them in turn, because machines drift; returns PriceTask's value."""
    worker_state.clear()
    timed, pool = {}, None
    for arm in task.arms:
        o = arm.options
        m = machine(slot.device or o.device, o.dtype, o.compile)
        if m.compile:
            # each arm compiles the same functions, of which Dynamo keeps 8 versions by default
            torch._dynamo.config.recompile_limit = 8 * len(task.arms)
        pool = pool or (GraphPool() if m.type == 'cuda' else None)
        decode_tokens = min(DECODE_TOKENS, arm.model_args['block_size'] - 1)
        try:
            timed[arm.name] = TimedModel(o.variant, m, arm.model_args, o.batch_size, decode_tokens, o.optimizer,
                                         o.seed, pool=pool, calls=('step', 'decode'))
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            where = f'the memory of {m.name}'
            raise Stop(f'arm {arm.name} does not fit into {where}: lower --batch_size') from None
    models = list(timed.values())
    interleave(models, 'step', 0.02, STEP_ROUNDS, limit=task.seconds * len(models))
    # a rough figure will do for decoding, so one call is one sample
    interleave(models, 'decode', 0, DECODE_ROUNDS)
    # price.json keeps medians and intervals, not the samples
    results = {name: one.result(None, models[0]) for name, one in timed.items()}
    for result in results.values():
        del result['samples_ms']
    return dict(results=results, device=m.name, dtype=m.dtype, compile=m.compile)
