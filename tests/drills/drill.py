"""Parts that drills share: runs in processes that die, scripts called in process, damage, its outcomes."""
import contextlib
import io
import os
import re
import signal
import sys
import time
import traceback
from collections import Counter
from typing import NamedTuple

from helpers import TINY, start

from core.errors import run_main

DOCUMENTED = {0, 2, 3, 4, 5, 6, 7, 10, 11}
# characters with which a terminal can be told to do something: all controls but tab and line feed
CONTROLS = {*map(chr, range(0x20)), *map(chr, range(0x7F, 0xA0))} - set('\t\n')


# -----------------------------------------------------------------------------
# training in another process

class Run:
    """A run of the tiny model in one folder, which is trained by one process after another."""

    def __init__(self, folder, data, **options):
        self.folder, self.out, self.started = folder, folder / 'run', 0
        self.options = TINY | dict(dataset=data) | options

    def start(self, hook, *args, **options):
        """Starts a process that begins the run, or resumes it if one was started before."""
        resume = ['--init_from=resume'] if self.started else []
        self.started += 1
        options = self.options | dict(out_dir=self.out) | options
        return start(self.folder / 'said', hook, *resume, *args, **options)

    def said(self):
        return (self.folder / 'said').read_text()

    def finish(self, hook):
        """Resumes the run to its end."""
        child = self.start(hook)
        child.join(120)
        assert child.exitcode == 0, self.said()


def kill(child, number=signal.SIGKILL):
    os.kill(child.pid, number)
    child.join()


# -----------------------------------------------------------------------------
# scripts called in this process, as a shell would see them

class Outcome(NamedTuple):
    code: object        # the exit code; if the script ended by one, a traceback
    out: str
    err: str
    seconds: float

    def fault(self, codes=frozenset(DOCUMENTED)):
        """Returns what is wrong with this end of a script, '' if nothing is."""
        if isinstance(self.code, str):
            return self.code
        if self.code not in codes:
            return f'exit code {self.code}, {self.err[-300:]!r}'
        if raw := CONTROLS & set(self.out + self.err):
            return f'raw {sorted(raw)} in the output: {(self.out + self.err)[-300:]!r}'
        if self.code and not self.err.strip():
            return f'exit code {self.code} without a word'
        return ''


def kind_of(fault):
    """Returns the last line of a fault, without paths and outputs, the same for faults of one kind."""
    return re.sub(r'/\S+', 'PATH', fault.strip().splitlines()[-1].partition(' in the output: ')[0])[:160]


class TooLong(BaseException):
    """A call that did not end in its time; no script catches it."""


class Begins(BaseException):
    """Raised in place of the work that a script begins once it has accepted its options."""


def begins(*args, **kwargs):
    raise Begins


def alarm(number, frame):
    raise TooLong


def outcome(main, argv, limit=10):
    """Returns the Outcome of a script's main(), with output as strict as a terminal's in UTF-8.

    limit: seconds of CPU that it may take; it may wait six times as long, because other drills run beside it.
    """
    streams = [io.TextIOWrapper(io.BytesIO(), 'utf-8', errors) for errors in ('strict', 'backslashreplace')]
    kept, handlers = sys.argv, {n: signal.getsignal(n) for n in range(1, 32) if n not in (9, 19)}
    sys.argv, code, began = argv, 0, time.monotonic()
    signal.signal(signal.SIGALRM, alarm)
    signal.signal(signal.SIGPROF, alarm)
    signal.alarm(6 * limit)
    signal.setitimer(signal.ITIMER_PROF, limit)
    try:
        with contextlib.redirect_stdout(streams[0]), contextlib.redirect_stderr(streams[1]):
            run_main(main)
    except SystemExit as end:
        code = end.code or 0
    except Begins:
        pass
    except TooLong:
        code = f'hangs: {limit} s; ' + ''.join(traceback.format_exc().splitlines(keepends=True)[-5:-2])
    except BaseException:
        code = traceback.format_exc()
    finally:
        signal.alarm(0)
        signal.setitimer(signal.ITIMER_PROF, 0)
        sys.argv = kept
        for n, handler in handlers.items():
            signal.signal(n, handler)
    seconds = time.monotonic() - began
    texts = []
    for stream in streams:
        stream.flush()
        texts.append(stream.buffer.getvalue().decode())
    return Outcome(code, *texts, seconds)


# -----------------------------------------------------------------------------
# damage

def flips(raw, dice, n):
    """Yields (what, bytes) with one bit flipped, or a digit replaced by another, in turn."""
    digits = [i for i, byte in enumerate(raw) if chr(byte).isdigit()]
    for k in range(n):
        bad = bytearray(raw)
        if k % 2 and digits:
            i = dice.choice(digits)
            bad[i] = ord(dice.choice([c for c in '0123456789' if ord(c) != raw[i]]))
            yield f'digit {i}: {chr(raw[i])} -> {chr(bad[i])}', bytes(bad)
        else:
            bit = dice.randrange(8 * len(raw))
            bad[bit // 8] ^= 1 << bit % 8
            yield f'bit {bit}', bytes(bad)


def cuts(raw, dice, n):
    """Yields (what, bytes) with the end missing, or zeros there or in the middle, as crashes leave them."""
    yield 'empty', b''
    for k in range(n - 1):
        i, j = sorted(dice.sample(range(len(raw)), 2))
        yield [(f'cut at {i}', raw[:i]), (f'zeros from {i}', raw[:i] + bytes(len(raw) - i)),
               (f'zeros from {i} to {j}', raw[:i] + bytes(j - i) + raw[j:])][k % 3]


def drill_file(path, read, dice, record_property, n=100, title='', grows=False):
    """Damages a file in 2 n ways, and reads it each time by read(), which returns what a user gets.

    Each time nothing differs, or it is noticed, by a line on stderr or a documented exit code; all else is a
    fault, and there must be none.
    """
    raw, clean = path.read_bytes(), read()
    assert clean.code == 0, clean
    counts, wrong = Counter(), []
    for kind, damages in (('flips', flips(raw, dice, n)), ('cuts', cuts(raw, dice, n))):
        for what, bad in damages:
            if bad == raw:
                continue
            # a file that grows by lines was once as it is when cut between two
            if grows and raw.startswith(bad) and (not bad or b'\n' in (bad[-1:], raw[len(bad):][:1])):
                counts['an earlier state'] += 1
                continue
            path.write_bytes(bad)
            found = read()
            counts[kind] += 1
            if isinstance(found.code, str) or found.code and found.fault():
                counts['tracebacks'] += 1
                wrong.append(f'{what}: {found.fault()}')
            elif found.code or len(found.err) > len(clean.err):
                counts['noticed'] += 1
            elif found.out == clean.out:
                counts['no difference'] += 1
            else:
                counts['silently other'] += 1
                wrong.append(f'{what}: silently other')
    path.write_bytes(raw)
    assert read() [:3] == clean[:3], 'reading has changed something'
    figures = 'flips', 'cuts', 'noticed', 'no difference', 'an earlier state', 'silently other', 'tracebacks'
    record_property(title or path.name, ', '.join(f'{name} {counts[name]}' for name in figures))
    assert not wrong, f'{len(wrong)} of {counts["flips"] + counts["cuts"]}:\n' + '\n'.join(wrong[:12])


# -----------------------------------------------------------------------------
# many calls in processes of their own, with a limit on memory

def in_process(play, *args, seconds=300):
    """Returns what play(*args) returns, computed in a forked process that may have 6 GB of memory."""
    from helpers import forks
    ours, theirs = forks().Pipe(duplex=False)
    child = forks().Process(target=send_result, args=(theirs, play, args), daemon=True)
    child.start()
    theirs.close()
    try:
        assert ours.poll(seconds), f'{play.__name__}{args[:1]}: no result in {seconds} s'
        return ours.recv()
    except EOFError:
        child.join()
        raise AssertionError(f'{play.__name__}{args[:1]}: its process ended with {child.exitcode}') from None
    finally:
        child.kill()
        child.join()


def send_result(pipe, play, args):
    import resource
    resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 1)
    try:
        pipe.send(play(*args))
    except BaseException:
        traceback.print_exc()
        raise
