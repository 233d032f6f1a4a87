"""Worker processes that run tasks one after another, and end when the process that started them ends.

concurrent.futures will not do: its ProcessPoolExecutor cannot tell a busy worker to save and leave, cannot
retire a single worker that a task has spoiled, loses the exit code of a worker that dies, and leaves its
workers behind when the parent is killed.
"""
import gc
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
from contextlib import contextmanager, suppress
from multiprocessing.connection import wait
from types import ModuleType
from typing import NamedTuple

# a CUDA context does not survive a fork
SPAWN = multiprocessing.get_context('spawn')
# workers leave without waiting for torch.compile's helpers, and multiprocessing's resource tracker complains
QUIET = 'ignore:resource_tracker'


class Slot(NamedTuple):
    """A place for one worker."""
    device: str         # 'cuda:1'; '': the task's own
    threads: int        # CPU threads; 0: torch's default


class WorkerDied(NamedTuple):
    """Stands in for a result: the process ended before it had one."""
    exitcode: int       # -9: killed by signal 9


class Worker:
    """A worker process in a slot, as seen by its parent."""

    def __init__(self, run_task, slot):
        self.slot = slot
        self.task = self.affinity = None    # the current task; the affinity of the last one
        self.conn, worker_conn = SPAWN.Pipe()
        # nothing is ever sent through the second pipe: its end closes when this process ends, however it ends
        self.lifeline, worker_lifeline = SPAWN.Pipe()
        # pickled, so that what it imports, PyTorch above all, is imported by worker_main()
        args = worker_conn, worker_lifeline, pickle.dumps((run_task, slot))
        self.process = SPAWN.Process(target=worker_main, args=args, daemon=True)
        with no_main_module():
            self.process.start()
        # the child has its own copies; ours would keep the pipes open after its death
        worker_conn.close()
        worker_lifeline.close()

    def send(self, task):
        self.task, self.affinity = task, task.affinity
        self.conn.send(task)

    def receive(self):
        """Returns (result or WorkerDied, True if the worker leaves). Waits unless conn is ready."""
        self.task = None
        # a worker's death closes its end of the pipe
        try:
            return self.conn.recv()
        except (EOFError, ConnectionResetError):
            self.process.join()
            return WorkerDied(self.process.exitcode), True


@contextmanager
def no_main_module():
    """A context in which spawned processes do not import the script that this one runs, and all that it imports."""
    main = sys.modules['__main__']
    sys.modules['__main__'] = ModuleType('__main__')
    try:
        yield
    finally:
        sys.modules['__main__'] = main


class Pool:
    """Runs tasks in one worker per slot, started when there is work for it.

    run_task(task, slot, worker_state) returns the result and runs in the worker; worker_state is a dict that
    the process keeps from task to task. A task that sets worker_state['retire'] is the worker's last.
    """

    def __init__(self, run_task, slots):
        self.run_task, self.free_slots, self.workers = run_task, list(slots), []
        os.environ.setdefault('PYTHONWARNINGS', QUIET)

    def run(self, tasks, tick=lambda running: None):
        """Yields (task, result) in the order in which tasks end. A worker prefers its last task's affinity.

        Calls tick(running tasks) about twice a second.
        """
        waiting = list(tasks)
        while waiting or self.busy():
            # give each idle worker a task
            while waiting and (worker := self.idle_worker()):
                task = next((t for t in waiting if t.affinity == worker.affinity), waiting[0])
                waiting.remove(task)
                try:
                    worker.send(task)
                # the worker died between two tasks
                except (BrokenPipeError, ConnectionResetError):
                    waiting.append(task)
                    self.drop(worker)

            # take the results that are ready; half a second between two ticks
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
        """Returns a worker without a task, a new one if a slot is free; None if all are busy."""
        worker = next((worker for worker in self.workers if worker.task is None), None)
        if worker is None and self.free_slots:
            worker = Worker(self.run_task, self.free_slots.pop(0))
            self.workers.append(worker)
        return worker

    def drop(self, worker):
        self.workers.remove(worker)
        self.free_slots.append(worker.slot)

    def stop(self, patience=60):
        """Asks busy workers to save and leave, and after `patience` seconds kills those that remain."""
        # terminate() sends SIGTERM, at which train.py writes a checkpoint
        for worker in self.workers:
            if worker.task and worker.process.is_alive():
                worker.process.terminate()
            # a worker that waits for a task leaves when its pipe closes
            worker.conn.close()
        deadline = time.monotonic() + patience
        for worker in self.workers:
            worker.process.join(max(0.0, deadline - time.monotonic()))
            if worker.process.is_alive():
                worker.process.kill()
        self.workers = []


# -----------------------------------------------------------------------------
# in the worker

def worker_main(conn, lifeline, pickled):
    """Runs tasks from conn until it closes, the parent ends, or a task retires this worker.

    pickled: (run_task, slot).
    """
    # first of all: while PyTorch is imported, for seconds, no thread of Python's may run
    die_with_parent()
    # Ctrl-C in a terminal reaches only the parent, which passes on a single signal
    if hasattr(os, 'setsid'):
        os.setsid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=exit_with_parent, args=(lifeline,), daemon=True).start()
    run_task, slot = pickle.loads(pickled) # noqa: S301 from the process that started this one
    # tasks collect garbage, and without this each collection looks through all of torch's modules, 0.2 s
    gc.freeze()
    state, retire = {}, False
    # an error of the pipe means that nobody listens any more
    with suppress(EOFError, OSError):
        while not retire:
            result = run_task(conn.recv(), slot, state)
            retire = state.pop('retire', False)
            conn.send((result, retire))
    # bindings complain at exit about objects that were never freed
    gc.unfreeze()


def die_with_parent():
    """Asks Linux to kill this process as soon as its parent ends; elsewhere exit_with_parent() does it."""
    if sys.platform == 'linux':
        import ctypes
        PR_SET_PDEATHSIG = 1
        # if it has ended before, exit_with_parent() sees that at once
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def exit_with_parent(lifeline):
    """Ends this process, at once, when the parent's end of the pipe closes."""
    # nothing is ever received
    try:
        lifeline.recv()
    except (EOFError, OSError):
        os._exit(1)
