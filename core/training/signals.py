"""A stop that was asked for from outside, by Ctrl-C, kill or a cluster's scheduler."""
import os
import signal

import torch
import torch.distributed as dist


class Signals:
    """SIGINT, SIGTERM and SIGUSR1 (SLURM) ask for a stop at the next iteration; the second one stops at once."""

    def __init__(self):
        self.received = None # signal.Signals
        for name in ('SIGINT', 'SIGTERM', 'SIGUSR1'):
            if hasattr(signal, name):
                signal.signal(getattr(signal, name), self.handle)

    def handle(self, number, frame):
        if self.received:
            os._exit(128 + number)
        self.received = signal.Signals(number)

    def stop_requested(self, device, talk):
        """True if a signal came. Under torch.distributed every process has to agree, which they do where talk is True."""
        if not dist.is_initialized():
            return self.received is not None
        if not talk:
            return False
        number = torch.tensor(int(self.received or 0), device=device if dist.get_backend() == 'nccl' else 'cpu')
        dist.all_reduce(number, dist.ReduceOp.MAX)
        if number and not self.received:
            self.received = signal.Signals(int(number))
        return self.received is not None
