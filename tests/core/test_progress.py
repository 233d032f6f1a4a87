"""Progress of a script: one moving line on a terminal, plain lines elsewhere."""
import io
import sys
import time

import pytest

from core.run.progress import Progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def show(stream, monkeypatch):
    monkeypatch.setattr(sys, 'stdout', stream)
    progress = Progress(40, 10)
    progress.update(20, 'loss 3.9, 12 ms')
    progress.line('step 20: train loss 4.1, val loss 4.2')
    progress.close()
    return stream.getvalue()


def test_a_pipe_gets_plain_lines(monkeypatch):
    monkeypatch.setitem(sys.modules, 'tqdm', None) # importing it would fail
    text = show(io.StringIO(), monkeypatch)
    assert text == 'iter 20: loss 3.9, 12 ms\nstep 20: train loss 4.1, val loss 4.2\n'


def test_without_a_terminal_the_time_left_is_told_now_and_then(monkeypatch, capsys):
    """Every half minute at most, by the mean speed since the start, evaluations included."""
    clock = iter([0, 10, 29, 31, 60, 61, 3661])
    monkeypatch.setattr(time, 'monotonic', lambda: next(clock))
    progress = Progress(1010, 10)
    for it in 20, 30, 41, 60, 70, 71:
        progress.update(it, 'loss 3.9')
    # 31 s for 31 iterations leave 969; 61 s for 60 leave 940
    assert capsys.readouterr().out.splitlines() == [
        'iter 20: loss 3.9', 'iter 30: loss 3.9', 'iter 41: loss 3.9, 0:16:09 left', 'iter 60: loss 3.9',
        'iter 70: loss 3.9, 0:15:56 left', 'iter 71: loss 3.9, 15:39:15 left']


@pytest.mark.parametrize('columns', [80, 0])
def test_a_terminal_gets_a_moving_line(monkeypatch, columns):
    monkeypatch.setenv('COLUMNS', str(columns)) # 0: a terminal that does not know
    frames = show(Terminal(), monkeypatch).replace('\n', '\r').split('\r')
    line, bar = 'step 20: train loss 4.1, val loss 4.2', '10/40 [======                  ], ? left'
    assert frames.index(line) > frames.index(bar)
    bar = '20/40 [============            ], loss 3.9, 12 ms, '
    assert frames[-3].startswith(bar) and frames[-3].endswith(' left')
    assert frames[-1] == '' and frames[-2].strip() == ''     # nothing stays of the bar
