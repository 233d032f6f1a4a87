"""Requests from outside to stop: Ctrl-C, kill or a cluster's scheduler."""
import os
import signal
import threading

import torch
import torch.distributed as dist

from core.errors import Stop, leave_lost_terminal

# what asks for a stop: SIGHUP a terminal that closes, SIGUSR1 SLURM; Windows has the first two
CAUGHT = [getattr(signal, name) for name in ('SIGINT', 'SIGTERM', 'SIGHUP', 'SIGUSR1') if hasattr(signal, name)]


class Interrupted(Stop):
    """A signal has come in the middle of an evaluation or an iteration, which ends without a result."""


class Signals:
    """Catches the signals of CAUGHT: the first asks for a stop, the second exits at once.

    exits: False in a program that has more to do, where the second raises KeyboardInterrupt. Only the main
    thread can catch signals; elsewhere none comes.
    """

    def __init__(self, exits=True):
        self.received, self.exits, self.before = None, exits, {} # signal.Signals, bool, {signal: handler}
        if threading.current_thread() is threading.main_thread():
            # nohup has SIGHUP ignored; so is SIGINT in a script's `train.py &`, which should stop all the same
            self.before = {number: signal.signal(number, self.handle) for number in CAUGHT
                           if number == signal.SIGINT or signal.getsignal(number) is not signal.SIG_IGN}

    def __enter__(self):
        return self

    def __exit__(self, *error):
        """Gives the signals back to whoever had them."""
        # a generator may be closed in another thread
        if threading.current_thread() is threading.main_thread():
            for number, handler in self.before.items():
                signal.signal(number, handler or signal.SIG_DFL)

    def handle(self, number, frame):
        leave_lost_terminal()
        if self.received and self.exits:
            os._exit(128 + number)
        if self.received:
            raise KeyboardInterrupt
        self.received = signal.Signals(number)

    def check(self):
        """Raises Interrupted if a signal came. Several processes must stop together, so with them it does nothing."""
        if self.received and not dist.is_initialized():
            raise Interrupted(f'stopped by {self.received.name}', 128 + self.received)

    def stop_requested(self, device, talk):
        """Returns True if a signal came. Several processes agree on it if talk is True; else it is False."""
        if not dist.is_initialized():
            return self.received is not None
        if not talk:
            return False
        # a signal may reach only some of the processes, and all must stop at the same iteration
        number = torch.tensor(int(self.received or 0),
                              device=device if dist.get_backend() == 'nccl' else 'cpu')
        dist.all_reduce(number, dist.ReduceOp.MAX)
        if number and not self.received:
            self.received = signal.Signals(int(number))
        return self.received is not None
