"""Studies in processes that can be killed, forked from one with torch imported, with workers that are forked too."""
import os
import sys
from multiprocessing.context import ForkContext, ForkProcess
from pathlib import Path

from helpers import forks

from core.errors import run_main


class CleanFork(ForkProcess):
    """A forked process that keeps only the files it is given, as a spawned one does."""

    def run(self):
        kept = {0, 1, 2, *(arg.fileno() for arg in self._args if hasattr(arg, 'fileno'))}
        for fd in map(int, os.listdir('/proc/self/fd')):
            if fd not in kept:
                try:
                    os.close(fd)
                except OSError:
                    pass # the one that listed them
        super().run()


class CleanForks(ForkContext):
    Process = CleanFork


def play(folder, hook, args):
    import ab
    from lab.study import pool
    os.chdir(folder)
    os.dup2(os.open('said', os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 1)
    os.dup2(1, 2)
    pool.SPAWN, ab.write_page = CleanForks(), lambda report, folder: None
    hook()
    sys.argv = ['ab.py', *args]
    run_main(ab.main)


def start_study(hook, args):
    """Starts a study in the present folder, after hook(); what it prints goes to the file `said`."""
    study = forks().Process(target=play, args=(os.getcwd(), hook, args))
    study.start()
    return study


def descendants(pid):
    found, parents = [], {}
    for stat in Path('/proc').glob('[0-9]*/stat'):
        try:
            fields = stat.read_text().rsplit(')', 1)[1].split()
            parents[int(stat.parent.name)] = int(fields[1])
        except OSError:
            pass
    todo = [pid]
    while todo:
        one = todo.pop()
        children = [child for child, parent in parents.items() if parent == one]
        found, todo = found + children, todo + children
    return found


def running(pid):
    try:
        return Path(f'/proc/{pid}/stat').read_text().rsplit(')', 1)[1].split()[0] != 'Z'
    except OSError:
        return False


TIMES = 'seconds', 'created', 'command', 'environment', 'tables'


def without_times(x):
    if isinstance(x, dict):
        return {name: without_times(value) for name, value in x.items() if name not in TIMES and name != 'name'}
    return [without_times(value) for value in x] if isinstance(x, list) else x
