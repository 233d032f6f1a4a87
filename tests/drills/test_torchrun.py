"""Two processes under torchrun: one is killed, or torchrun; the others end soon, a resumed run is equal."""
import os
import signal
import socket
import subprocess
import sys
import time

import pytest
from drill import Run
from helpers import ENV, ROOT, flags, last_iter, same_run, wait_for
from studies import descendants, running

from core.run.folder import RunFolder

TWO = dict(gradient_accumulation_steps=2, variant='surprise', backend='gloo', checkpoint_minutes=0.005,
           max_iters=200, lr_decay_iters=200, eval_interval=50, dropout=0.1)
SOON = 5            # seconds


def torchrun(run, **options):
    """Starts two processes, resumed if the run has begun."""
    with socket.socket() as free:
        free.bind(('localhost', 0))
        port = free.getsockname()[1]
    args = flags(**run.options | options, out_dir=run.out) + ['--init_from=resume'] * (run.started > 0)
    run.started += 1
    with open(run.folder / 'said', 'w') as said:
        launch = ['-m', 'torch.distributed.run', f'--master_port={port}', '--nproc_per_node=2', 'train.py']
        return subprocess.Popen([sys.executable, *launch, *args], cwd=ROOT, env=ENV, stdout=said, stderr=said)


def ranks_of(agent):
    """Returns the process ids of its two ranks, rank 0 first."""
    def rank(pid):
        with open(f'/proc/{pid}/environ') as f:
            return int(next(word for word in f.read().split('\0') if word.startswith('RANK='))[5:])
    return sorted((pid for pid in descendants(agent.pid) if running(pid)), key=rank)


@pytest.fixture(scope='module')
def whole(data, tmp_path_factory):
    """The folder of the run when nobody is killed."""
    run = Run(tmp_path_factory.mktemp('whole'), data, **TWO)
    assert torchrun(run).wait(120) == 0, run.said()
    return run.out


@pytest.mark.parametrize('victim', ['rank 0', 'rank 1', 'torchrun'])
def test_one_is_killed(data, whole, tmp_path, record_property, victim):
    run = Run(tmp_path, data, **TWO)
    agent = torchrun(run)
    try:
        wait_for(lambda: last_iter(run.out) >= 20, lambda: agent.poll() is None)
        ranks = ranks_of(agent)
        everyone = [agent.pid, *ranks]
        os.kill({'rank 0': ranks[0], 'rank 1': ranks[1], 'torchrun': agent.pid}[victim], signal.SIGKILL)
        killed = time.monotonic()
        wait_for(lambda: not any(map(running, ranks)), seconds=40)
        seconds = time.monotonic() - killed
        # torchrun itself takes its time to say what happened
        agent.wait(40)
    finally:
        agent.kill()
        for pid in filter(running, everyone):
            os.kill(pid, signal.SIGKILL)
        agent.wait()
    assert RunFolder(run.out).load()[0]['step'] < TWO['max_iters'] and not (run.out / 'result.json').exists()
    assert torchrun(run).wait(120) == 0, run.said()
    same_run(run.out, whole, TWO['max_iters'])
    record_property(f'torchrun, {victim} killed', f'the others ended after {seconds:.1f} s, the resumed run is equal')
    assert seconds < SOON
