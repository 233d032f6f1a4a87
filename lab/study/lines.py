"""Files of JSON lines, each with a seal: the ledger and the gate's stream, which processes append to."""
import os

from core.run.files import seal, unseal, warn


def unseal_line(line):
    """Returns the record in a line without its line break; None if it is none, or if a byte of it has changed.

    Older lines have no seal.
    """
    try:
        record = unseal(line + b'\n', indent=None, required=False)
    # a broken seal is a ValueError, too
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def read_lines(path):
    """Yields (number, record) of a file's lines, with None for a line that is damaged.

    A last line that a kill cut short is left out, with a warning: what it said was never acted upon.
    """
    *lines, tail = path.read_bytes().split(b'\n') if path.exists() else [b'']
    for n, line in enumerate(lines, 1):
        yield n, unseal_line(line)
    if is_cut(tail):
        warn(f'{path}:{len(lines) + 1}: was cut short, and is left out')
    elif tail:
        yield len(lines) + 1, unseal_line(tail)


def is_cut(tail):
    """Returns True if what follows a file's last line break is a part of a line.

    It is a whole one if that line's own break is all that is gone, or damaged.
    """
    return bool(tail) and unseal_line(tail) is None and unseal_line(tail[:-1]) is None


def append_line(path, record):
    """Appends a sealed line to a file and waits until it is on the disk."""
    with open(path, 'ab+') as f:
        f.seek(0)
        data = f.read()
        tail = data[data.rfind(b'\n') + 1:]
        if is_cut(tail):
            f.truncate(len(data) - len(tail))
        f.write((b'\n' if tail and not is_cut(tail) else b'') + seal(record, indent=None))
        f.flush()
        os.fsync(f.fileno())
