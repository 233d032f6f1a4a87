"""The ways a script ends. Its exit code is one of these, by which ab.py decides what to do next.

0 done · 1 bug · 2 bad option, config or data · 3 diverged · 4 no usable checkpoint · 5 out of memory ·
6 disk full · 7 out_dir busy · 10 drop and 11 undecided, of ab.py's gate · 128+signal stopped, resumable
"""
import errno
import os
import signal
import sys
import threading
from contextlib import contextmanager, suppress

BAD_INPUT, DIVERGED, NO_CHECKPOINT, OUT_OF_MEMORY, DISK_FULL, BUSY = 2, 3, 4, 5, 6, 7
KEEP, DROP, UNDECIDED = 0, 10, 11

# errors of the operating system that say something about the disk, or about what the user named
FULL = errno.ENOSPC, errno.EDQUOT, errno.EFBIG
BAD_PATH = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG,
            errno.ELOOP, errno.EMFILE, errno.ENFILE)


class Stop(Exception):
    """Ends the script with one line for its user and no traceback: the thing, its value, what is allowed."""

    def __init__(self, message, code=BAD_INPUT):
        super().__init__(message)
        self.code = code


class Signalled(KeyboardInterrupt):
    """A signal that ends the script. SystemExit would be taken for a user's file that calls exit()."""


def run_main(main):
    """Calls main(). A Stop, a full disk, a full GPU or a signal ends the process by one line and an exit code.

    Any other exception is a bug, and is passed on with its traceback.
    """
    # what a stream's encoding lacks is shown as \\xe9, rather than end the script
    for stream in sys.stdout, sys.stderr:
        # not what a notebook puts there, nor a stream whose file has been replaced
        with suppress(AttributeError, OSError):
            stream.reconfigure(errors='backslashreplace')
    # the imports are done
    if signal.getsignal(signal.SIGINT) is exit_now:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with signals_that_exit():
            main()
    except Stop as stop:
        exit_with(stop, stop.code)
    except Signalled as stop:
        number, = stop.args
        exit_with(f'stopped by {number.name}', 128 + number)
    except KeyboardInterrupt:
        exit_with('interrupted', 130)
    except BrokenPipeError:
        # `python sample.py | head`: the reader has left. Python flushes stdout once more at its exit, which
        # would fail again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, MemoryError, RuntimeError) as error:
        if out_of_memory(error):
            first = (str(error).splitlines() or ['none is left'])[0].removesuffix('.')
            exit_with(f'out of memory: {first}. Halve --batch_size and double --gradient_accumulation_steps, '
                      'which leaves the global batch as it is, or shorten --block_size', OUT_OF_MEMORY)
        code = getattr(error, 'errno', None)
        if code not in FULL + BAD_PATH:
            raise
        exit_with(f'{error.filename or "the system"}: {error.strerror}', DISK_FULL if code in FULL else BAD_INPUT)


@contextmanager
def signals_handled(numbers, handler):
    """A context in which signals have this handler; then each has the one from before it.

    Only a main thread may handle signals, so elsewhere they are left as they are.
    """
    if threading.current_thread() is not threading.main_thread():
        numbers = []
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        for number in numbers:
            signal.signal(number, handler)
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def signals_that_exit():
    """Returns a context in which SIGTERM and SIGHUP end the script as Ctrl-C does, so that it cleans up behind itself.

    A signal that somebody handles or ignores already stays as it is; nohup ignores SIGHUP.
    """
    def handle(number, frame):
        leave_lost_terminal()
        raise Signalled(signal.Signals(number))
    numbers = [getattr(signal, name) for name in ('SIGTERM', 'SIGHUP') if hasattr(signal, name)]
    return signals_handled([number for number in numbers if signal.getsignal(number) is signal.SIG_DFL], handle)


@contextmanager
def terminal_may_close():
    """A context for output, which nobody sees once its terminal is gone; the shell's SIGHUP comes a little later."""
    try:
        yield
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        leave_lost_terminal()


def leave_lost_terminal():
    """Sends output nowhere if its terminal is gone, where writing would be an error."""
    for fd in 1, 2:
        try:
            os.write(fd, b'')
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), fd)


def exit_on_interrupt():
    """Makes Ctrl-C end the process by one line until run_main(): importing PyTorch takes seconds."""
    # a script in the background ignores it
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, exit_now)


def exit_now(number, frame):
    os.write(2, b'interrupted\n')
    os._exit(128 + number)


def out_of_memory(error):
    """Returns True for an error of PyTorch, NumPy, Python or the system that says that memory is used up."""
    # torch.OutOfMemoryError, without importing torch; the CPU allocator's is a plain RuntimeError
    used_up = ("can't allocate memory", "can't start new thread", 'Cannot allocate memory', 'ALLOC_FAILED',
               # a tensor of more bytes than an int64 can count
               'Storage size calculation overflowed')
    return (isinstance(error, MemoryError) or type(error).__name__ == 'OutOfMemoryError'
            or isinstance(error, RuntimeError | OSError) and any(words in str(error) for words in used_up))


def printable(text):
    """Returns a text with control characters as Python writes them, which a terminal would obey, except \\n and \\t."""
    return ''.join(c if c >= ' ' and c not in '\x7f' and not '\x80' <= c <= '\x9f' or c in '\n\t'
                   else repr(c)[1:-1] for c in text)


def exit_with(message, code):
    """Prints the message to stderr and exits."""
    with terminal_may_close():
        sys.stdout.flush()
        # on a terminal this line may hold a progress bar
        clear_line = '\r\x1b[K' if sys.stderr.isatty() else ''
        print(f'{clear_line}{printable(str(message))}', file=sys.stderr, flush=True)
    sys.exit(code)
