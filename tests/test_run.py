"""Drills for the run folder: processes really die, writes really fail, bytes really change."""
import errno
import json
import math
import multiprocessing
import os
import pickle
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).parents[1]))      # from a checkout, and in the children too
import lab.run  # noqa: E402
from lab.errors import BAD_INPUT, BUSY, DISK_FULL, NO_CHECKPOINT, Stop  # noqa: E402
from lab.run import MODEL, OPTIM, Run, seal, sha256  # noqa: E402

STATE = 'state.json'
BIG = 40_000                                # rows: 3 x 3.2 MB, twice, make a save long enough to be killed in
posix = pytest.mark.skipif(os.name == 'nt', reason='needs SIGKILL and a fork server')


def tensors(step, rows=50, part='model'):
    """What a checkpoint of this step holds, a function of the step alone."""
    g = torch.Generator().manual_seed(step * 2 + (part == 'optim'))
    return {f'{part}.{i}': torch.randn(rows, 20, generator=g) for i in range(3)}


def save(run, step, rows=50, **state):
    return run.save(step, tensors(step, rows), tensors(step, rows, 'optim'), {'val_loss': 1 / (step + 1), **state})


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in a)


def check(loaded, step, rows=50):
    state, model, optim = loaded
    assert state['step'] == step
    assert same(model, tensors(step, rows)) and same(optim, tensors(step, rows, 'optim'))


def stops(code, f, *args, **kwargs):
    """f(...) ends the script with this code and one line; returns the line."""
    with pytest.raises(Stop) as stop:
        f(*args, **kwargs)
    assert stop.value.code == code and '\n' not in str(stop.value)
    return str(stop.value)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def run(tmp_path):
    run = Run(tmp_path / 'out')
    run.lock()
    yield run
    run._lock.close()


# -- kill -9: children of a process that has torch imported, so that each starts at once

@pytest.fixture
def spawn():
    context, children = multiprocessing.get_context('forkserver'), []
    context.set_forkserver_preload(['torch', 'safetensors.torch'])

    def start(target, *args):
        ours, theirs = context.Pipe(duplex=False)
        children.append(context.Process(target=target, args=(theirs, *args), daemon=True))
        children[-1].start()
        theirs.close()
        return children[-1], ours
    yield start
    for child in children:
        child.kill()
        child.join()


def train_on(pipe, out):
    torch.set_num_threads(1)
    run = Run(out)
    run.lock()
    assert not list(run.ckpt.glob('.tmp-*'))            # the dead one's
    step = run.load()[0]['step'] if run.checkpoints() else 0
    run.log_open(step)
    while True:
        run.log({'iter': step})
        step += 1
        save(run, step, BIG)
        pipe.send(step)
        run.prune()


@posix
def test_killed_inside_a_save(tmp_path, spawn, capsys):
    rng, inside, last = random.Random(1), 0, 0
    for _ in range(40):
        child, pipe = spawn(train_on, tmp_path)
        reported = pipe.recv()
        temp = tmp_path / 'ckpt' / f'.tmp-{child.pid}'
        while not temp.exists():
            assert child.is_alive()
        time.sleep(rng.uniform(0, .03))
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        inside += temp.exists()                         # died before the rename
        state, *_ = loaded = Run(tmp_path).load()
        check(loaded, state['step'], BIG)
        assert state['step'] >= reported > last         # nothing reported was lost, and the child had gone on from `last`
        log = Run(tmp_path).read_log()
        assert [r['iter'] for r in log][:state['step']] == list(range(state['step']))
        last = state['step']
        if inside == 8:
            break
    assert inside == 8
    assert 'skipped' not in capsys.readouterr().err     # never half a checkpoint under its final name


def die_at(pipe, out, n):
    """Replaces checkpoint 7 and prunes 6, and dies by SIGKILL at the n-th call that touches the disk."""
    seen = 0

    def hook(event, args):
        nonlocal seen
        if event in ('open', 'os.rename', 'os.mkdir', 'os.remove', 'os.rmdir', 'os.chmod') and str(out) in str(args[0]):
            seen += 1
            if seen == n:
                os.kill(os.getpid(), signal.SIGKILL)
    run = Run(out)
    run.lock()
    sys.addaudithook(hook)
    run.save(7, tensors(70), tensors(70, part='optim'), {'val_loss': 0})
    run.prune(keep=1)
    pipe.send('survived')


@posix
def test_killed_at_every_call_of_a_save_that_replaces(tmp_path, spawn):
    """At every one, a valid checkpoint 7 is there, old or new; and the next owner cleans up."""
    for n in range(1, 99):
        out = tmp_path / str(n)
        for step in 6, 7:
            Run(out).lock()
            save(Run(out), step)
        child, _ = spawn(die_at, out, n)
        child.join()
        if child.exitcode == 0:
            break
        assert child.exitcode == -signal.SIGKILL
        for cleaned in False, True:
            if cleaned:
                Run(out).lock()
                assert set(names(out / 'ckpt')) <= {'step_00000006', 'step_00000007'}
            state, model, optim = Run(out).load()
            content = 7 if state['val_loss'] else 70
            assert state['step'] == 7
            assert same(model, tensors(content)) and same(optim, tensors(content, part='optim'))
    assert n > 15                                       # the hook does see the calls


# -- one writer

def hold_lock(pipe, out):
    Run(out).lock()
    pipe.send('held')
