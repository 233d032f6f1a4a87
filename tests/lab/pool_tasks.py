"""Tasks for the workers of test_study.py, which start quickly because this imports no torch."""
import os
import signal


class Word(str):
    affinity = property(lambda self: self[0])


def run_word(task, slot, state):
    """Dies, is the last task of its process, or counts them."""
    if task == 'die':
        os.kill(os.getpid(), signal.SIGKILL)
    state['retire'] = task == 'last'
    state['tasks'] = state.get('tasks', 0) + 1
    return f'{task} {state["tasks"]}'
