"""Processes that do tasks one after another. They end with the process that started them, however that ends.

Why not concurrent.futures: its ProcessPoolExecutor has no way to tell a busy worker to save and leave, or to
retire one worker that a task has spoiled; a worker's death loses its exit code; and when the parent is killed
its workers stay.
"""
import gc
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


class Slot(NamedTuple):
    """A place for one worker."""
    device: str         # 'cuda:1'; '': what the task says
    threads: int        # CPU threads, 0: as many as torch likes


class WorkerDied(NamedTuple):
    """In place of a result: the process ended before it had one."""
    exitcode: int       # -9: by signal 9


class Worker:
    """A process in a slot, as its parent sees it."""

    def __init__(self, run_task, slot):
        self.slot = slot
        self.task = self.affinity = None    # the current task; the affinity of the last one
        self.conn, worker_conn = SPAWN.Pipe()
        # nothing is ever sent through the second pipe: it closes when this process ends
        self.lifeline, worker_lifeline = SPAWN.Pipe()
        args = worker_conn, worker_lifeline, run_task, slot
        self.process = SPAWN.Process(target=worker_main, args=args, daemon=True)
        self.process.start()
        worker_conn.close()
        worker_lifeline.close()

    def send(self, task):
        self.task, self.affinity = task, task.affinity
        self.conn.send(task)

    def receive(self):
        """Returns (result, whether the worker leaves); the result is there to be read, or WorkerDied."""
        self.task = None
        # its end of the pipe closes when it dies
        try:
            return self.conn.recv()
        except (EOFError, ConnectionResetError):
            self.process.join()
            return WorkerDied(self.process.exitcode), True


class Pool:
    """One worker a slot, started when there is work for it.

    run_task(task, slot, worker_state) -> result, in the worker; worker_state is a dict that the process keeps
    from task to task. A task that sets worker_state['retire'] is the worker's last.
    """

    def __init__(self, run_task, slots):
        self.run_task, self.free_slots, self.workers = run_task, list(slots), []
        os.environ.setdefault('PYTHONWARNINGS', QUIET)

    def run(self, tasks, tick=lambda running: None):
        """Yields (task, result) as they come; calls tick(tasks that are running) about twice a second.

        A worker goes on with tasks of the affinity of its last one while there are any.
        """
        waiting = list(tasks)
        while waiting or self.busy():
            # give each idle worker a task
            while waiting and (worker := self.idle_worker()):
                task = next((t for t in waiting if t.affinity == worker.affinity), waiting[0])
                waiting.remove(task)
                try:
                    worker.send(task)
                except (BrokenPipeError, ConnectionResetError): # it died between two tasks
                    waiting.append(task)
                    self.drop(worker)

            # take the results that are there
            busy = self.busy()
            ready = wait([worker.conn for worker in busy], timeout=0.5)
            for worker in busy:
                if worker.conn in ready:
                    task, (result, leaves) = worker.task, worker.receive()
                    if leaves:
                        self.drop(worker)
                    yield task, result
            tick([worker.task for worker in self.busy()])

    def busy(self):
        return [worker for worker in self.workers if worker.task]

    def idle_worker(self):
        worker = next((worker for worker in self.workers if worker.task is None), None)
        if worker is None and self.free_slots:
            worker = Worker(self.run_task, self.free_slots.pop(0))
            self.workers.append(worker)
        return worker

    def drop(self, worker):
        self.workers.remove(worker)
        self.free_slots.append(worker.slot)

    def stop(self, patience=60):
        """Asks busy workers to save and leave, and waits; ends what does not leave within so many seconds."""
        # SIGTERM, at which train.py writes a checkpoint
        for worker in self.workers:
            if worker.task and worker.process.is_alive():
                worker.process.terminate()
            worker.conn.close() # a worker that waits for a task leaves
        deadline = time.monotonic() + patience
        for worker in self.workers:
            worker.process.join(max(0.0, deadline - time.monotonic()))
            if worker.process.is_alive():
                worker.process.kill()
        self.workers = []


# -----------------------------------------------------------------------------
# in the worker

def worker_main(conn, lifeline, run_task, slot):
    # Ctrl-C in a terminal reaches the parent alone, which passes on one signal
    if hasattr(os, 'setsid'):
        os.setsid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=exit_with_parent, args=(lifeline,), daemon=True).start()
    # tasks collect garbage, which looks through all of torch's modules otherwise, .2 s each time
    gc.freeze()
    state, retire = {}, False
    # an error here means that nobody listens any more
    with suppress(EOFError, OSError):
        while not retire:
            result = run_task(conn.recv(), slot, state)
            retire = state.pop('retire', False)
            conn.send((result, retire))
    gc.unfreeze() # bindings complain at exit about what is left


def exit_with_parent(lifeline):
    try:
        lifeline.recv()
    except (EOFError, OSError):
        os._exit(1)
