"""SIGKILL at random moments and inside saves: what is resumed equals what was never killed, to the bit."""
import random
import signal
import subprocess
import sys
from functools import partial

import pytest
from drill import Run, kill
from helpers import ENV, ROOT, call, flags, last_iter, losses, nothing, same_run, slow_saves, wait_for

import train
from core.run.checkpoint import step_of
from core.run.folder import RunFolder

# what a resume could get wrong; a checkpoint at every iteration
HARD = dict(dropout=0.1, gradient_accumulation_steps=2, checkpoint_minutes=0, lr_decay_iters=200)
CAMPAIGNS = {
    'adamw': dict(variant='surprise+soft_window'),
    'muon': dict(variant='rope+qk_norm', optimizer='muon'),
    'float16': dict(variant='rmsnorm+alibi', dtype='float16', learning_rate=1e-3),
}
KILLS, INSIDE = 21, 8


@pytest.mark.parametrize('name', CAMPAIGNS)
def test_killed_and_resumed_is_never_killed(data, tmp_path, record_property, name):
    run = Run(tmp_path, data, **HARD | CAMPAIGNS[name] | dict(max_iters=1000))
    dice, inside = random.Random(name), 0
    for n in range(KILLS):
        child = run.start(partial(slow_saves, 0.03))
        target = last_iter(run.out) + dice.randint(1, 3)
        wait_for(lambda target=target: last_iter(run.out) >= target, child.is_alive)
        saving = run.out / f'ckpt/.tmp-{child.pid}'
        if n % 2:
            # until a save has its temporary name
            wait_for(saving.exists, child.is_alive)
        else:
            child.join(dice.uniform(0, 0.05))
        kill(child)
        assert child.exitcode == -signal.SIGKILL, run.said()
        inside += saving.exists()
        # no more is lost than was asked for; the first checkpoint is that of step 0
        newest = max(map(step_of, RunFolder(run.out).checkpoints()), default=0)
        assert newest >= max(losses(run.out), default=0) - 1
    last = last_iter(run.out) + 3
    # it ends where nobody knew beforehand
    run.options['max_iters'] = last
    run.finish(nothing)
    whole = tmp_path / 'whole'
    assert call(train.main, **run.options | dict(out_dir=whole)).code == 0
    same_run(run.out, whole, last)
    assert sorted(losses(run.out)) == list(range(last))
    assert not list((run.out / 'ckpt').glob('.tmp-*'))
    record_property(f'kills, {name}', f'{KILLS}, of them inside a save {inside}, iterations {last}')
    assert inside >= INSIDE


def test_killed_by_the_command_line(data, tmp_path, record_property):
    """The same with processes that a user would start."""
    run, kills = Run(tmp_path, data, **HARD | CAMPAIGNS['adamw'] | dict(max_iters=1000)), 3
    for n in range(kills):
        args = flags(**run.options, out_dir=run.out) + ['--init_from=resume'] * (n > 0)
        with open(tmp_path / 'said', 'w') as said:
            one = subprocess.Popen([sys.executable, 'train.py', *args], cwd=ROOT, env=ENV, stdout=said, stderr=said)
        target = last_iter(run.out) + 5
        wait_for(lambda target=target: last_iter(run.out) >= target, lambda one=one: one.poll() is None)
        one.kill()
        one.wait()
    last = last_iter(run.out) + 3
    run.options['max_iters'], run.started = last, kills
    run.finish(nothing)
    whole = tmp_path / 'whole'
    assert call(train.main, **run.options | dict(out_dir=whole)).code == 0
    same_run(run.out, whole, last)
    record_property('kills, command line', kills)
