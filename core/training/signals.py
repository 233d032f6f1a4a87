"""Requests from outside to stop: Ctrl-C, kill or a cluster's scheduler."""
import os
import signal

import torch
import torch.distributed as dist


class Signals:
    """Catches SIGINT, SIGTERM and SIGUSR1 (SLURM): the first asks for a stop, the second exits at once."""

    def __init__(self):
        self.received = None # signal.Signals
        # Windows has no SIGUSR1
        for name in ('SIGINT', 'SIGTERM', 'SIGUSR1'):
            if hasattr(signal, name):
                signal.signal(getattr(signal, name), self.handle)

    def handle(self, number, frame):
        if self.received:
            os._exit(128 + number)
        self.received = signal.Signals(number)

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
