"""Endings. Every script leaves with one of these codes; ab.py decides by them.

0 done · 1 bug · 2 bad option, config or data · 3 diverged · 4 no usable checkpoint · 5 out of memory ·
6 disk full · 7 out_dir busy · 128+signal stopped, resumable
"""
import errno
import os
import sys

BAD_INPUT, DIVERGED, NO_CHECKPOINT, OUT_OF_MEMORY, DISK_FULL, BUSY = 2, 3, 4, 5, 6, 7


class Stop(Exception):
    """Ends the script with one line for its user: the thing, the value, what is allowed. Never a traceback."""

    def __init__(self, message, code=BAD_INPUT):
        super().__init__(message)
        self.code = code


def run(main):
    """Calls main() and exits: Stop, a full disk, a full GPU and Ctrl-C become one line and their code."""
    try:
        main()
    except Stop as stop:
        leave(stop, stop.code)
    except KeyboardInterrupt:
        leave('interrupted', 130)
    except BrokenPipeError:                 # `python sample.py | head`: the reader has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
            raise
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        leave(f'{error.filename or "writing"}: {error.strerror}', DISK_FULL if full else BAD_INPUT)
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        first = str(error).splitlines()[0]
        leave(f'out of memory: {first} Halve --batch_size and double --gradient_accumulation_steps, '
              'which leaves the global batch as it is, or shorten --block_size', OUT_OF_MEMORY)


def out_of_memory(error):
    """Whether a RuntimeError is torch.OutOfMemoryError or the CPU allocator's plain one."""
    return type(error).__name__ == 'OutOfMemoryError' or "can't allocate memory" in str(error)


def leave(message, code):
    sys.stdout.flush()
    print(f'\r\x1b[K{message}' if sys.stderr.isatty() else message, file=sys.stderr, flush=True) # over a progress bar
    sys.exit(code)
