"""core/errors.py: how scripts end, by one line and an exit code, whatever goes wrong around them."""
import errno
import io
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import call

from core.errors import BAD_INPUT, DISK_FULL, OUT_OF_MEMORY, out_of_memory, printable

ROOT = Path(__file__).parents[2]
posix = pytest.mark.skipif(os.name == 'nt', reason='needs POSIX signals')


def fails_with(error):
    def main():
        raise error
    return main


def too_large(allocate):
    with pytest.raises((RuntimeError, MemoryError)) as raised:
        allocate()
    return raised.value


MEMORY = {'python': MemoryError(), 'numpy': too_large(lambda: np.empty(1 << 60, np.uint8)),
          'torch': too_large(lambda: torch.empty(1 << 50)),
          'device': torch.OutOfMemoryError('CUDA out of memory.\nTried to allocate'),
          'cublas': RuntimeError('CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`'),
          'thread': RuntimeError("can't start new thread"), 'system': OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))}


@pytest.mark.parametrize('error', MEMORY.values(), ids=MEMORY)
def test_memory_that_is_used_up(error):
    assert out_of_memory(error)
    line = call(fails_with(error)).line(OUT_OF_MEMORY)
    assert line.startswith('out of memory: ') and 'Halve --batch_size and double --gradient_acc' in line


@pytest.mark.parametrize('name', ['ENOSPC', 'EDQUOT', 'EFBIG'])
def test_a_disk_that_is_full(name):
    code = getattr(errno, name)
    line = call(fails_with(OSError(code, os.strerror(code), 'log.jsonl'))).line(DISK_FULL)
    assert line == f'log.jsonl: {os.strerror(code)}'


@pytest.mark.parametrize('name', ['ENOENT', 'ENOTDIR', 'EISDIR', 'EACCES', 'EPERM', 'EROFS', 'ENAMETOOLONG', 'ELOOP',
                                  'EMFILE', 'ENFILE'])
def test_a_path_or_a_limit_of_the_system(name):
    code = getattr(errno, name)
    assert call(fails_with(OSError(code, os.strerror(code), 'x/y'))).line(BAD_INPUT) == f'x/y: {os.strerror(code)}'
    assert call(fails_with(OSError(code, os.strerror(code)))).line(BAD_INPUT) == f'the system: {os.strerror(code)}'


@pytest.mark.parametrize('error', [OSError(errno.EINVAL, 'x'), OSError('no number'), RuntimeError(), ValueError()])
def test_a_bug_keeps_its_traceback(error):
    with pytest.raises(type(error)) as raised:
        call(fails_with(error))
    assert raised.value is error


def test_a_message_holds_nothing_that_a_terminal_obeys():
    assert printable('\x1b[31mred\x07 \x9b2J\x7f\r tab\t line\n é 漢 😀') == \
        r'\x1b[31mred\x07 \x9b2J\x7f\r' + ' tab\t line\n é 漢 😀'
    assert call(fails_with(FileNotFoundError(2, 'No such file', '\x1b]0;title\x07'))).line(BAD_INPUT) == \
        r'\x1b]0;title\x07: No such file'


@pytest.mark.parametrize('encoding', ['cp1252', 'ascii', 'utf-8'])
def test_a_stdout_that_lacks_a_character_shows_its_code(monkeypatch, encoding):
    raw = io.BytesIO()

    def main():
        print('naïve 漢', end='', flush=True)
    out = io.TextIOWrapper(raw, encoding=encoding)
    from core.errors import run_main
    monkeypatch.setattr(sys, 'stdout', out)
    run_main(main)
    assert raw.getvalue() == 'naïve 漢'.encode(encoding, 'backslashreplace')


# -- signals, in a process of their own, without PyTorch

def python(code):
    process = subprocess.Popen([sys.executable, '-c', code], cwd=ROOT, text=True, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE)
    assert process.stdout.readline() == 'ready\n'
    return process


SLEEP = 'print("ready", flush=True); time.sleep(60)'


# a script that says when it has cleaned up behind itself
CLEANS_UP = f'''
import time
from core.errors import run_main
def main():
    try:
        {SLEEP}
    finally:
        print('cleaned up', flush=True)
run_main(main)
'''


@posix
def test_control_c_during_the_imports_and_after_them():
    before = 'import time; from core.errors import exit_on_interrupt; exit_on_interrupt(); '
    for code, out in (SLEEP, ''), (CLEANS_UP, 'cleaned up\n'):
        process = python(before + code)
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=20) == (out, 'interrupted\n')
        assert process.returncode == 130


@posix
@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_that_nobody_catches_cleans_up(number):
    process = python(CLEANS_UP)
    process.send_signal(number)
    assert process.communicate(timeout=20) == ('cleaned up\n', f'stopped by {number.name}\n')
    assert process.returncode == 128 + number


def test_handlers_that_are_there_stay():
    seen = []
    before = signal.signal(signal.SIGTERM, lambda *args: seen.append(args))
    try:
        assert call(lambda: signal.raise_signal(signal.SIGTERM)).code == 0 and len(seen) == 1
    finally:
        signal.signal(signal.SIGTERM, before)
    assert call(lambda: signal.raise_signal(signal.SIGTERM)).line(143) == 'stopped by SIGTERM'
    assert signal.getsignal(signal.SIGTERM) == before


@posix
def test_scripts_are_ready_for_control_c_before_they_import_pytorch():
    """In each, nothing slow comes before exit_on_interrupt()."""
    for script in 'train.py', 'sample.py', 'ab.py', 'bench.py':
        code = (ROOT / script).read_text(encoding='utf-8')
        first = re.match(r"\s*if __name__ == '__main__':\n((    .*\n)+)", code.split('"""', 2)[2])
        assert first and 'exit_on_interrupt()' in first[1]
