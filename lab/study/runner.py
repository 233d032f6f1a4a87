"""Runner: runs a study's tasks in worker processes, and shows their progress on a terminal."""
import contextlib
import os
import shutil
import signal
import sys
from collections import Counter

import torch
from tqdm import tqdm

from core.device.flops import flops_per_token
from core.errors import Signalled, Stop, leave_lost_terminal, printable, signals_handled
from core.run.folder import last_iteration
from core.training.signals import CAUGHT
from lab.study.pool import Pool, Slot, WorkerDied
from lab.study.worker import TaskGroup, TaskResult, TrainTask, record_failure, run_task
from model import load_classes

# FLOPs of an iteration: config/ab_shakespeare_cpu.py has 4e9, config/train_shakespeare_char.py 1.2e12
SMALL, LARGE = 1e11, 2e12


@contextlib.contextmanager
def stopped_by_signals():
    """A context in which SIGINT, SIGTERM, SIGHUP and SIGUSR1 raise Signalled, which leaves it as a Stop.

    The exit code of that is 128 + signal. In other threads than the main one signals are left as they are.
    """
    def interrupt(number, frame):
        # a second signal often follows, one to the process and one to its group; Ctrl-C may be pressed twice
        if number != signal.SIGINT:
            signal.signal(number, signal.SIG_IGN)
        raise Signalled(signal.Signals(number))

    # nohup ignores SIGHUP, and so does a study that it starts
    numbers = [number for number in CAUGHT
               if number.name != 'SIGHUP' or signal.getsignal(number) != signal.SIG_IGN]
    try:
        with signals_handled(numbers, interrupt):
            yield
    except Signalled as stop:
        raise stopped(stop, 'the same command goes on') from None


def stopped(interrupt, advice):
    """Returns the Stop for a Signalled, or for a plain KeyboardInterrupt."""
    number, = interrupt.args or (signal.SIGINT,)
    return Stop(f'stopped by {number.name}; {advice}', 128 + number)


class Runner:
    """Runs the tasks of a study in the pool's workers, and stops them when a signal or an error ends it."""

    def __init__(self, study, slots):
        self.study, self.slots, self.pool = study, slots, Pool(run_task, slots)

    def run(self, tasks, tick=lambda running: None):
        """Yields (task, result) as Pool.run() does. At a Signalled the workers save, and Stop is raised."""
        try:
            yield from self.pool.run(tasks, tick)
        except KeyboardInterrupt as interrupt:
            with contextlib.suppress(KeyboardInterrupt):
                leave_lost_terminal()
                print_above('stopping: each run saves where it is; a second Ctrl-C does not wait')
                self.pool.stop()
            raise stopped(interrupt, f'the same command goes on with {self.study.folder}') from None
        finally:
            # an error, or a caller that stops early: the workers end at once and save nothing
            if sys.exc_info()[0] is not None:
                self.pool.stop(0)

    def train(self, arm_seeds):
        """Trains those of [(arm, seed)] that have not ended, and prints the result of each.

        Raises Stop if a worker is stopped by a signal.
        """
        # runs that ended earlier, in whichever study, are counted, not trained
        total, todo, counts = len(arm_seeds), [], Counter()
        for arm, seed in arm_seeds:
            state = self.study.state(arm, seed)
            if state in ('new', 'partial'):
                todo.append((arm, seed))
            else:
                counts['done' if state == 'done' else 'failed'] += 1
        if len(todo) < total:
            failed = f', {counts["failed"]} failed; --retry=True trains them again' * (counts['failed'] > 0)
            print(f'{counts["done"]} of {total} runs are done already{failed}')

        if lacking := sum(self.study.lacks_checkpoints(arm, seed) for arm, seed in arm_seeds):
            print(f'{lacking} of these have no checkpoints, because they were trained without '
                  f'--keep_checkpoints={self.study.options.keep_checkpoints}; --retry=True trains them again')

        tasks = [self.train_task(arm, seed) for arm, seed in todo]
        with contextlib.closing(ProgressLine(tasks, total, counts)) as progress:
            for task, result in self.train_tasks(tasks, progress.update):
                run = f'{task.arm.name}, seed {task.seed}'
                # a signal to a single worker ends the whole study
                if result.status == 'stopped':
                    raise Stop(f'{run}: {result.reason}', result.value)
                progress.ended(task, result.status)
                if result.status == 'done':
                    print_above(f'{run}: {result.value:.4f}')
                else:
                    print_above(f'{run}: {result.status}: {result.reason}')

    def train_task(self, arm, seed):
        """Returns the TrainTask of a run. The first run of each arm, or shape of it, is looked at more closely."""
        study, o = self.study, self.study.options
        first = seed == next(iter(study.seeds.get(arm.name, [])), None) and study.is_first_of_shape(arm)
        check = first and o.check not in ('none', False)
        return TrainTask(arm, seed, str(study.run_folder(arm, seed)), first, check, o.keep_checkpoints)

    def width(self, arm):
        """Returns how many runs of an arm the machine trains at once for hardly more than the price of one."""
        return len(self.slots) * (group_size(arm, self.study.options.at_once) if is_small(arm) else 1)

    def train_tasks(self, tasks, tick):
        """Yields (task, TaskResult). Workers get runs of arms with the same code in groups of group_size()."""
        arms = {task.arm.code_key: task.arm for task in tasks}
        sizes = {key: group_size(arm, self.study.options.at_once) for key, arm in arms.items()}
        # groups in the order of their first tasks: (code, number of its group) -> tasks
        groups, count = {}, Counter()
        for task in tasks:
            key = task.arm.code_key
            groups.setdefault((key, count[key] // sizes[key]), []).append(task)
            count[key] += 1
        for group, results in self.run([TaskGroup(tasks) for tasks in groups.values()], tick):
            # a process that dies takes all its runs with it
            if isinstance(results, WorkerDied):
                died = TaskResult('failed', f'its process ended with {results.exitcode}')
                results = [died] * len(group.tasks)
                for task in group.tasks:
                    record_failure(task, died)
            yield from zip(group.tasks, results)


def print_above(text):
    """Prints a line above the progress line, if there is one."""
    with tqdm.external_write_mode(sys.stdout):
        print(printable(text), flush=True)


class ProgressLine:
    """Progress line of a terminal: 12 of 15 runs done, 1 failed; soft_window 1340 at 220; 03:20 left."""

    def __init__(self, tasks, total_runs, counts):
        # counts: a Counter of done and failed runs
        self.total_runs, self.counts = total_runs, counts
        self.first = {task.folder: last_iteration(task.folder) for task in tasks}
        self.goal = {task.folder: task.arm.options.max_iters for task in tasks}
        # smoothing=0: the time left follows the mean speed, because fast and slow arms alternate
        # delay: no line before the first update
        self.bar = tqdm(bar_format='{desc}; {remaining} left', smoothing=0, delay=1e-9, leave=False,
                        file=sys.stdout, disable=not sys.stdout.isatty())

    def ended(self, task, status):
        self.counts['done' if status == 'done' else 'failed'] += 1
        # a failed run has no iterations left
        if status != 'done':
            self.goal[task.folder] = self.first[task.folder]

    def update(self, running):
        if self.bar.disable or not running:
            return
        # iterations so far, from the logs that the workers write
        now = {folder: last_iteration(folder) for folder in self.first}
        trained = sum(max(0, now[folder] - self.first[folder]) for folder in now)
        left = sum(max(0, self.goal[folder] - now[folder]) for folder in now)
        done, failed = f'{self.counts["done"]} of {self.total_runs} runs done', self.counts['failed']
        tasks = [task for group in running for task in group.tasks]
        current = ', '.join(f'{task.arm.name} {task.seed} at {now[task.folder]}' for task in tasks)
        # tqdm computes the time left from these
        self.bar.total, self.bar.n = trained + left, trained
        line = f'{done}{f", {failed} failed" if failed else ""}; {current}'
        # a line that wraps cannot be cleared
        room = shutil.get_terminal_size().columns - len('; 00:00:00 left ')
        self.bar.set_description_str(line[:room])

    def close(self):
        self.bar.close()


# -----------------------------------------------------------------------------
# how much at once

def worker_slots(o, arm):
    """Returns the Slots of a study's workers, o.jobs on each device.

    By default two on a GPU, where one arm compiles while another trains, four where runs are so small that
    the host is what they wait for, and one for each core of a CPU.
    o: ab.py's Options. Raises Stop for a device that is not there.
    """
    count = torch.cuda.device_count()
    # one of a large model may need all of the memory
    jobs = o.jobs or (4 if is_small(arm) else 2 if flops_per_iteration(arm) < LARGE else 1)
    if o.devices:
        names = [d if d.startswith('cuda:') else f'cuda:{d}' for d in o.devices.split(',')]
        if wrong := [name for name in names if name not in [f'cuda:{i}' for i in range(count)]]:
            has = f'which has {count} CUDA devices'
            raise Stop(f'devices={o.devices}: {wrong[0]} is not on this machine, {has}')
        return [Slot(name, 1) for _ in range(jobs) for name in names]
    # what a CPU does for a GPU is small, and threads that wait for work take its time from other workers
    if on_gpu(arm.options):
        return [Slot('', 1) for _ in range(jobs)]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
    # one thread each: a sum has the same order however many workers there are
    return [Slot('', 1) for _ in range(o.jobs or cores)]


def group_size(arm, at_once=0):
    """Returns the number of seeds of an arm that one process trains at once; at_once: the user's, or 0.

    On a GPU, eight seeds of a small model take 2.4 times as long as one, eight of
    config/train_shakespeare_char.py 7.3 times (docs/measurements.md); larger models gain nothing and need
    the memory.
    """
    if at_once or not on_gpu(arm.options):
        return at_once or 1
    return 8 if flops_per_iteration(arm) < LARGE else 1


def is_small(arm):
    """Returns True if eight runs of an arm at once take a GPU little longer than one."""
    return flops_per_iteration(arm) < SMALL


def flops_per_iteration(arm):
    """Returns the FLOPs of one training iteration of an arm."""
    classes, o = load_classes(arm.options.variant), arm.options
    tokens = o.batch_size * o.gradient_accumulation_steps * arm.model_args['block_size']
    _, train_flops = flops_per_token(classes, classes.GPTConfig(**arm.model_args))
    return tokens * train_flops


def on_gpu(options):
    """Returns True if a run with these options trains on a GPU."""
    return options.device.startswith('cuda') or options.device == 'auto' and torch.cuda.is_available()


def format_duration(seconds):
    """Returns 3:05 for 185 seconds, 1:00:00 for an hour."""
    minutes, seconds = divmod(round(seconds), 60)
    return f'{minutes // 60}:{minutes % 60:02}:{seconds:02}' if minutes >= 60 else f'{minutes}:{seconds:02}'
