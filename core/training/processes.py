"""The processes that torchrun starts: which of them this is, and its end when torchrun's comes."""
import os
import re
import signal
import threading
import time

from core.errors import Stop


def torchrun_ranks(environ=os.environ):
    """Returns (RANK, LOCAL_RANK, WORLD_SIZE) as torchrun sets them, (0, 0, 1) without it; Stop if they cannot be."""
    if not {'RANK', 'WORLD_SIZE'} & environ.keys():
        return 0, 0, 1
    given = {name: environ.get(name, '') for name in ('RANK', 'LOCAL_RANK', 'WORLD_SIZE')}
    # one process alone needs no others' address
    if (given['RANK'], given['WORLD_SIZE']) == ('0', '1'):
        return 0, 0, 1
    given['MASTER_PORT'] = environ.get('MASTER_PORT', '')
    said = ', '.join(f'{name}={value!r}' for name, value in given.items())
    if all(re.fullmatch('[0-9]{1,6}', value) for value in given.values()) and environ.get('MASTER_ADDR'):
        rank, local_rank, world_size, _ = map(int, given.values())
        if local_rank <= rank < world_size:
            return rank, local_rank, world_size
    raise Stop(f'environment variables {said}: torchrun sets them and MASTER_ADDR together, '
               'with 0 <= LOCAL_RANK <= RANK < WORLD_SIZE; unset them all to train in one process')


def end_with_torchrun():
    """Makes this process end soon after torchrun, if that started it."""
    # torchrun says so in the environment; no other parent is known to stay for as long as its child
    if 'TORCHELASTIC_RUN_ID' in os.environ and os.name != 'nt':
        threading.Thread(target=stop_with_torchrun, args=(os.getppid(),), daemon=True).start()


def stop_with_torchrun(torchrun):
    """Waits until the parent, torchrun, has ended, then ends this process by SIGTERM, or in any way after 4 seconds.

    A killed torchrun stops nobody: its processes would train on unseen, and keep the run folder locked.
    """
    while os.getppid() == torchrun:
        time.sleep(0.2)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(4)
    os._exit(128 + signal.SIGTERM)
