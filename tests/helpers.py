"""Shared parts of the scripts' tests: tiny data, a tiny model, scripts run here or in another process."""
import contextlib
import gc
import hashlib
import io
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import torch

from core.data.prepare import prepare_chars
from core.errors import run_main
from core.run.checkpoint import TENSOR_FILES
from core.run.folder import RunFolder

ROOT = Path(__file__).parents[1]
TEXT = ROOT / 'data/shakespeare_char/input.txt'
ENV = os.environ | dict(OMP_NUM_THREADS='1')
TINY = dict(n_layer=2, n_head=2, n_embd=16, block_size=16, batch_size=4, gradient_accumulation_steps=1,
            learning_rate=1e-2, min_lr=1e-3, warmup_iters=2, lr_decay_iters=12, max_iters=12, eval_interval=4,
            device='cpu', dtype='float32', compile=False)
SIGNALS = [getattr(signal, name) for name in ('SIGINT', 'SIGTERM', 'SIGHUP', 'SIGUSR1') if hasattr(signal, name)]
CLOCK = 'ms', 'seconds'                 # what differs between two equal runs
torch.set_num_threads(1)                # sums in one order, here and in the children


def shakespeare(folder, characters=4000):
    """A data set of the first characters of the text: 52 different ones, 400 tokens to validate on."""
    prepare_chars(TEXT.read_text(encoding='utf-8')[:characters], folder)
    return folder


def shipped_variants():
    """Returns the names in variants/README.md: a file that a user drops into variants/ keeps to no rules of ours."""
    page = (ROOT / 'variants/README.md').read_text(encoding='utf-8')
    return re.findall(r'^\| \[`(\w+)`\]', page, re.MULTILINE)


def flags(**options):
    return [f'--{name}={value}' for name, value in options.items()]


class Ended(NamedTuple):
    code: int
    out: str
    err: str

    def line(self, code):
        """Returns the one line with which a script that ends with this code must end."""
        assert self.code == code, self
        # sample.py lists its options there
        line, *others = [line for line in self.err.splitlines() if not line.endswith(' (command line)')]
        assert not others, self.err
        return line


def call(main, *args, **options):
    """Calls main() with these arguments; returns what a shell sees, its exit code and what it wrote."""
    out, err, argv = io.StringIO(), io.StringIO(), sys.argv
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    sys.argv, code = [f'{main.__module__}.py', *map(str, args), *flags(**options)], 0
    gc.freeze() # what is there already is looked through for .3 s a call
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            run_main(main)
    except SystemExit as end:
        code = end.code
    finally:
        sys.argv = argv
        for number, handler in handlers.items():
            signal.signal(number, handler)
        gc.collect()                    # what ended the run may still hold its folder, and with it the lock
        gc.unfreeze()
    return Ended(code, out.getvalue(), err.getvalue())


def shell(script, *args, cwd=ROOT, **options):
    """Runs python script.py args in a process of its own; returns the same."""
    done = subprocess.run([sys.executable, str(script), *map(str, args), *flags(**options)], cwd=cwd, env=ENV,
                          capture_output=True, text=True, timeout=120)
    return Ended(done.returncode, done.stdout, done.stderr)


# -- processes that can be killed: forked from one that has torch imported, so that each starts at once

PRELOAD = ['torch', 'torch._dynamo', 'torch.utils.flop_counter', 'safetensors.torch']


def forks(preload=PRELOAD):
    """Returns a context of multiprocessing, one per session, whose processes have the slow imports done.

    The first call decides what they have imported.
    """
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload(preload)
    return context


def start(output, hook, *args, **options):
    """Returns a process that trains, after hook(); what it prints goes to the file `output`."""
    child = forks().Process(target=train_here, args=(output, hook, [*args, *flags(**options)]), daemon=True)
    child.start()
    return child


def train_here(output, hook, args):
    os.dup2(os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 1)
    os.dup2(1, 2)
    hook()
    import train
    sys.argv = ['train.py', *args]
    run_main(train.main)


def nothing(*args):
    """The hook that does nothing."""


def slow_saves(seconds=0.02):
    """Makes saves slow, as those of large models are, so that a kill can hit one."""
    import core.run.checkpoint
    real = core.run.checkpoint.save_file
    core.run.checkpoint.save_file = lambda *args: (time.sleep(seconds), real(*args))


def rank(number, port, hook):
    """One of two processes, as torchrun would start them."""
    os.environ |= dict(RANK=str(number), LOCAL_RANK=str(number), WORLD_SIZE='2', MASTER_ADDR='localhost',
                       MASTER_PORT=str(port))
    hook(number)


def overflow(number, at=3):
    """Makes a gradient of one iteration infinite in the second process, as a loss scale too high does."""
    from core.training.train_step import TrainStep
    real = TrainStep.__call__

    def update(self, it, *args):
        if it == at and number == 1:
            hook = self.params[0].register_hook(lambda g: g + torch.inf)
            real(self, it, *args)
            hook.remove()
        else:
            real(self, it, *args)
    TrainStep.__call__ = update


def stuck(at, marker):
    """An iteration that takes forever; the marker appears once it has begun."""
    from core.training.train_step import TrainStep
    real = TrainStep.__call__

    def call(self, it, *args):
        if it == at:
            marker.touch()
            time.sleep(1000)
        real(self, it, *args)
    TrainStep.__call__ = call


def wait_for(what, alive=lambda: True, seconds=60):
    """Waits until what() is true; AssertionError if alive() becomes false first."""
    until = time.monotonic() + seconds
    while not what():
        assert alive() and time.monotonic() < until, 'waited in vain'
        time.sleep(0.001)


def last_iter(out):
    """Returns the iteration of the last whole line of a log that is being written."""
    with contextlib.suppress(FileNotFoundError, IndexError):
        line = (Path(out) / 'log.jsonl').read_bytes().split(b'\n')[-2]
        return int(line.split(b'"iter": ')[1].split(b',')[0])
    return -1


# -- what a run left

def exact(x):
    return [exact(y) for y in x] if isinstance(x, list) else x.hex() if isinstance(x, float) else x


def log(out):
    """Returns every record of a run's log, floats to the last bit, without times."""
    return [{name: exact(x) for name, x in record.items() if name not in CLOCK} for record in RunFolder(out).read_log()]


def losses(out):
    """Returns {iteration: training loss}, as floats."""
    return {record['iter']: record['loss'] for record in RunFolder(out).read_log() if 'loss' in record}


def hashes(out, step):
    """Returns the SHA-256 of a checkpoint's weights and of its optimizer's state."""
    folder = Path(out) / f'ckpt/step_{step:08d}'
    return [hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in TENSOR_FILES]


def files(folder):
    """Returns {name: bytes} of all files in a folder, except the name of the process that locked it last."""
    there = (f for f in sorted(Path(folder).rglob('*')) if f.is_file() and f.name != '.lock')
    return {str(f.relative_to(folder)): f.read_bytes() for f in there}


def same_run(a, b, step):
    """Asserts that two runs are equal to the bit: losses, once and in order, weights, optimizer's state."""
    assert log(a) == log(b)
    assert hashes(a, step) == hashes(b, step)
