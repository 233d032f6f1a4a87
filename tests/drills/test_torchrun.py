"""Two processes under torchrun: one is killed, or torchrun is; the others end soon, and a resumed run is the same."""
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

TWO = dict(gradient_accumulation_steps=2, variant='surprise', backend='gloo', checkpoint_minutes=0.02, lr_decay_iters=200,
           dropout=0.1)
SOON = 5            # seconds


def torchrun(run, **options):
    """Starts two processes, resumed if the run has begun."""
    with socket.socket() as free:
        free.bind(('localhost', 0))
        port = free.getsockname()[1]
    args = flags(**run.options | options, out_dir=run.out) + ['--init_from=resume'] * (run.started > 0)
    run.started += 1
    with open(run.folder / 'said', 'w') as said:
        return subprocess.Popen([sys.executable, '-m', 'torch.distributed.run', f'--master_port={port}', '--nproc_per_node=2',
                                 'train.py', *args], cwd=ROOT, env=ENV, stdout=said, stderr=said)


def ranks_of(agent):
    """Returns the process ids of its two ranks, rank 0 first."""
    def rank(pid):
        with open(f'/proc/{pid}/environ') as f:
            return int(next(word for word in f.read().split('\0') if word.startswith('RANK='))[5:])
    return sorted((pid for pid in descendants(agent.pid) if running(pid)), key=rank)


@pytest.mark.parametrize('victim', ['rank 0', 'rank 1', 'torchrun'])
def test_one_is_killed(data, tmp_path, record_property, victim):
    run = Run(tmp_path, data, **TWO | dict(max_iters=100_000))
    agent = torchrun(run)
    try:
        target = 20
        wait_for(lambda: last_iter(run.out) >= target, lambda: agent.poll() is None)
        ranks = ranks_of(agent)
        everyone = [agent.pid, *ranks]
        os.kill({'rank 0': ranks[0], 'rank 1': ranks[1], 'torchrun': agent.pid}[victim], signal.SIGKILL)
        killed = time.monotonic()
        wait_for(lambda: not any(map(running, ranks)) and agent.poll() is not None, seconds=40)
        seconds = time.monotonic() - killed
    finally:
        agent.kill()
        for pid in filter(running, everyone):
            os.kill(pid, signal.SIGKILL)
        agent.wait()
    last = last_iter(run.out) + 3
    run.options['max_iters'] = last
    assert RunFolder(run.out).load()[0]['step'] < last
    again = torchrun(run)
    assert again.wait(120) == 0, run.said()
    whole = Run(tmp_path, data, **run.options)
    whole.out = tmp_path / 'whole'
    assert torchrun(whole).wait(120) == 0, whole.said()
    same_run(run.out, whole.out, last)
    record_property(f'torchrun, {victim} killed', f'all ended after {seconds:.1f} s, the resumed run is the same')
    assert seconds < SOON
