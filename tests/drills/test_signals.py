"""Real signals at random moments: a line, a checkpoint, 128 + signal; resumed, it is as if nothing had been."""
import random
import re
import signal
import time
from functools import partial

import pytest
from drill import Run, kill
from helpers import call, last_iter, losses, nothing, same_run, slow_saves, wait_for

import train
from core.data.dataset import Dataset
from core.run.folder import RunFolder

HARD = dict(variant='surprise+soft_window', dropout=0.1, gradient_accumulation_steps=2, lr_decay_iters=200)
SIGNALS = signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1
MOMENTS = 'between', 'evaluation', 'save', 'start'
ROUNDS = 2


def slow_evaluation(marker):
    """Makes evaluations slow, as those of large models are; the marker says that one has begun."""
    real = Dataset.windows

    def windows(self, *args):
        for batch in real(self, *args):
            marker.touch()
            time.sleep(0.5)
            yield batch
    Dataset.windows = windows


def send(run, moment, number, dice):
    """Starts the run and sends it a signal; returns (its exit code, seconds from the signal to its end)."""
    marker = run.folder / 'marker'
    marker.unlink(missing_ok=True)
    hook = {'evaluation': partial(slow_evaluation, marker), 'save': partial(slow_saves, 0.2)}.get(moment, nothing)
    child = run.start(hook, checkpoint_minutes=0 if moment == 'save' else 5)
    if moment == 'start':
        child.join(dice.uniform(0, 0.8))
    elif moment == 'evaluation':
        wait_for(marker.exists, child.is_alive)
    else:
        target = last_iter(run.out) + dice.randint(1, 4)
        wait_for(lambda: last_iter(run.out) >= target, child.is_alive)
        if moment == 'save':
            wait_for((run.out / f'ckpt/.tmp-{child.pid}').exists, child.is_alive)
    sent = time.monotonic()
    kill(child, number)
    return child.exitcode, time.monotonic() - sent


@pytest.mark.parametrize('number', SIGNALS, ids=[number.name for number in SIGNALS])
def test_signals_at_any_moment(data, tmp_path, record_property, number):
    run = Run(tmp_path, data, **HARD | dict(max_iters=1000))
    dice, slowest = random.Random(number.name), 0
    sent = dict.fromkeys(MOMENTS, 0)
    for moment in [*MOMENTS * ROUNDS]:
        before = run.out.exists() and (run.out / 'log.jsonl').exists() and last_iter(run.out)
        code, seconds = send(run, moment, number, dice)
        said = run.said()
        assert 'Traceback' not in said, said
        slowest = max(slowest, seconds)
        if stopped := re.search(rf'^stopped by {number.name} at iteration (\d+), checkpoint in', said, re.M):
            assert code == 128 + number, (moment, said)
            assert RunFolder(run.out).load()[0]['step'] == int(stopped[1])
            assert max(losses(run.out), default=-1) == int(stopped[1]) - 1
        else:
            # only before training begins, and then no iteration was made
            assert moment == 'start' and code in (128 + number, -number), (moment, code, said)
            assert last_iter(run.out) == (-1 if before is False else before)
            # a folder without a run is begun, not resumed
            run.started = (run.out / 'config.json').exists()
        sent[moment] += 1
    last = last_iter(run.out) + 3
    run.options['max_iters'] = last
    run.finish(nothing)
    assert call(train.main, **run.options | dict(out_dir=tmp_path / 'whole')).code == 0
    same_run(run.out, tmp_path / 'whole', last)
    record_property(f'signals, {number.name}', f'{sent}, the slowest end after {slowest:.1f} s')
    assert slowest < 5
