"""The ways a script ends. Its exit code is one of these, by which ab.py decides what to do next.

0 done · 1 bug · 2 bad option, config or data · 3 diverged · 4 no usable checkpoint · 5 out of memory ·
6 disk full · 7 out_dir busy · 10 drop and 11 undecided, of ab.py's gate · 128+signal stopped, resumable
"""
import errno
import os
import sys

BAD_INPUT, DIVERGED, NO_CHECKPOINT, OUT_OF_MEMORY, DISK_FULL, BUSY = 2, 3, 4, 5, 6, 7
KEEP, DROP, UNDECIDED = 0, 10, 11


class Stop(Exception):
    """Ends the script with one line for its user and no traceback: the thing, its value, what is allowed."""

    def __init__(self, message, code=BAD_INPUT):
        super().__init__(message)
        self.code = code


def run_main(main):
    """Calls main(). A Stop, a full disk, a full GPU or Ctrl-C ends the process by one line and an exit code.

    Any other exception is a bug, and is passed on with its traceback.
    """
    try:
        main()
    except Stop as stop:
        exit_with(stop, stop.code)
    except KeyboardInterrupt:
        exit_with('interrupted', 130)
    except BrokenPipeError:
        # `python sample.py | head`: the reader has left. Python flushes stdout once more at its exit, which
        # would fail again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
            raise
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        exit_with(f'{error.filename or "writing"}: {error.strerror}', DISK_FULL if full else BAD_INPUT)
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        first = str(error).splitlines()[0]
        exit_with(f'out of memory: {first} Halve --batch_size and double --gradient_accumulation_steps, '
                  'which leaves the global batch as it is, or shorten --block_size', OUT_OF_MEMORY)


def out_of_memory(error):
    """Returns True for torch.OutOfMemoryError and for the plain RuntimeError of the CPU allocator."""
    return type(error).__name__ == 'OutOfMemoryError' or "can't allocate memory" in str(error)


def exit_with(message, code):
    """Prints the message to stderr and exits."""
    sys.stdout.flush()
    # on a terminal this line may hold a progress bar
    clear_line = '\r\x1b[K' if sys.stderr.isatty() else ''
    print(f'{clear_line}{message}', file=sys.stderr, flush=True)
    sys.exit(code)
