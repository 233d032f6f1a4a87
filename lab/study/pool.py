"""Processes that do tasks one after another. They end with the process that started them, however that ends."""
import multiprocessing
import os
import signal
import threading
import time
from contextlib import suppress
from multiprocessing.connection import wait
from typing import NamedTuple

SPAWN = multiprocessing.get_context('spawn')    # a forked CUDA context is unusable
# Workers that are told to leave do not wait for the helpers of torch.compile, whose tracker then complains.
QUIET = 'ignore:resource_tracker'


class Place(NamedTuple):
    device: str         # 'cuda:1'; '': what the task says
    threads: int        # CPU threads, 0: as many as torch likes


class Died(NamedTuple):
    """In place of a result: the process ended before it had one."""
    exitcode: int       # -9: by signal 9


class Worker:
    def __init__(self, perform, place):
        self.conn, theirs = SPAWN.Pipe()
        self.alive, death = SPAWN.Pipe()        # nothing is ever sent: it closes when this process ends
        self.process = SPAWN.Process(target=serve, args=(theirs, death, perform, place), daemon=True)
        self.process.start()
        theirs.close()
        death.close()
        self.place, self.task, self.last = place, None, None

    def give(self, task):
        self.task = task
        self.conn.send(task)

    def take(self):
        """The result, which is there to be read, or Died."""
        self.last, self.task = self.task, None
        try:
            return self.conn.recv()
        except (EOFError, ConnectionResetError):
            self.process.join()
            return Died(self.process.exitcode)


class Pool:
    """perform(task, place, kept) -> result, in one process for each place; kept is a dict that the process keeps."""

    def __init__(self, perform, places):
        self.perform, self.free, self.workers = perform, list(places), []
        os.environ.setdefault('PYTHONWARNINGS', QUIET)

    def run(self, tasks, tick=lambda running: None):
        """Yields (task, result) as they come. A worker goes on with tasks like its last one (task.like) while there are any."""
        waiting = list(tasks)
        while waiting or any(w.task for w in self.workers):
            while waiting and (worker := self.idle()):
                task = min(waiting, key=lambda t: not (worker.last and t.like == worker.last.like))
                waiting.remove(task)
                try:
                    worker.give(task)
                except (BrokenPipeError, ConnectionResetError): # it died between two tasks
                    waiting.append(task)
                    self.drop(worker)
            busy = [w for w in self.workers if w.task]
            ready = wait([w.conn for w in busy], timeout=0.5)
            for worker in busy:
                if worker.conn in ready:
                    task, result = worker.task, worker.take()
                    if isinstance(result, Died) or result.get('leave'):
                        self.drop(worker)
                    yield task, result
            tick([w.task for w in self.workers if w.task])

    def idle(self):
        worker = next((w for w in self.workers if w.task is None), None)
        if worker is None and self.free:
            worker = Worker(self.perform, self.free.pop(0))
            self.workers.append(worker)
        return worker

    def drop(self, worker):
        self.workers.remove(worker)
        self.free.append(worker.place)

    def stop(self, patience=60):
        """Asks whoever is busy to save and leave, and waits; what does not leave in time is ended."""
        for worker in self.workers:
            if worker.task and worker.process.is_alive():
                worker.process.terminate()
            worker.conn.close() # who waits for a task leaves
        until = time.monotonic() + patience
        for worker in self.workers:
            worker.process.join(max(0.0, until - time.monotonic()))
            if worker.process.is_alive():
                worker.process.kill()
        self.workers = []


def serve(conn, death, perform, place):
    """A worker's life."""
    if hasattr(os, 'setsid'):
        os.setsid() # Ctrl-C in a terminal reaches the parent alone, which passes on one signal
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=die_with, args=(death,), daemon=True).start()
    kept = {}
    with suppress(EOFError, OSError): # nobody listens any more
        while not kept.pop('leave', False):
            result = perform(conn.recv(), place, kept)
            conn.send(result)
            kept.update(leave=result.get('leave', False))


def die_with(death):
    try:
        death.recv()
    except (EOFError, OSError):
        os._exit(1)
