"""Replaces files in one step, writes sealed JSON that any program can read, reports a full disk in one line."""
import errno
import hashlib
import json
import math
import os
import re
import shutil
import sys
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from core.errors import DISK_FULL, FULL, Stop, printable

GONE = errno.ENOENT, errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ESTALE


def write_atomic(path, data):
    """Replaces a file by these bytes in one step: readers see all of the old file or all of the new one."""
    tmp = path.with_name('.tmp-' + path.name)
    tmp.unlink(missing_ok=True)
    try:
        # mode x does not follow a link that somebody has put there
        with open(tmp, 'xb') as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
        tmp.replace(path)
        fsync(path.parent)
    except BaseException:
        tmp.unlink(missing_ok=True)
        raise


def free_name(path):
    """Returns the path, or if there is something the first of path.1, path.2, ... where there is nothing."""
    free, n = path, 0
    while os.path.lexists(free):
        n += 1
        free = path.with_name(f'{path.name}.{n}')
    return free


def fsync(path):
    """Waits until a file, or a folder's list of names, is on the disk itself."""
    # Windows cannot open folders, and syncs only files that are open for writing
    if os.name == 'nt' and not path.is_file():
        return
    fd = os.open(path, os.O_RDWR if path.is_file() else os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sha256(path):
    """Returns the SHA-256 of a file's bytes, in hex."""
    with open(path, 'rb') as f:
        return hashlib.file_digest(f, 'sha256').hexdigest()


@contextmanager
def disk_errors(folder, need):
    """A context that turns a full disk, quota or file size limit and a missing or replaced folder into a Stop.

    need: the bytes to be written, for the message. Other errors are passed on.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        # safetensors has errors of its own, without errno
        code = error.errno if isinstance(error, OSError) else errno_in_text(error)
        if code in GONE:
            raise Stop(f'{folder}: vanished or was replaced while the run was writing there') from None
        if code not in FULL:
            raise
        free = shutil.disk_usage(folder).free
        raise Stop(f'{folder}: {os.strerror(code)}: {need:,} bytes needed, {free:,} free; '
                   'the checkpoints before this one are intact', DISK_FULL) from None


def errno_in_text(error):
    """Returns the errno in the text of an error of safetensors, as in '(os error 28)'; 0 without one."""
    return int((re.findall(r'os error (\d+)', str(error)) or [0])[0])


# -----------------------------------------------------------------------------
# JSON

def to_json(x):
    """Returns x with NaN and infinities, which JSON lacks, as "NaN", "Infinity" and "-Infinity".

    Both Python's float() and JavaScript's Number() read these words.
    """
    if isinstance(x, dict):
        return {k: to_json(v) for k, v in x.items()}
    if isinstance(x, (list, tuple)):
        return [to_json(v) for v in x]
    return json.dumps(x) if isinstance(x, float) and not math.isfinite(x) else x


def from_json(record):
    """Returns a record of to_json() with floats in place of the words among its own values.

    Nested values stay, because a vocabulary among them may contain the word NaN.
    """
    return {k: float(v) if v in ('NaN', 'Infinity', '-Infinity') else v for k, v in record.items()}


class BrokenSeal(ValueError):
    """A record whose bytes are not those that seal() made."""


def seal(record, indent=1):
    """Returns a record as JSON bytes, whose last field is the SHA-256 of the JSON without it.

    indent: None for a record on one line. ValueError if the record has a field of that name, sha256, which is
    not an earlier seal: it would be lost.
    """
    if not isinstance(record.get('sha256', ''), str):
        raise ValueError('sha256 is the name of the seal')
    record = to_json({name: value for name, value in record.items() if name != 'sha256'})
    digest = hashlib.sha256(json.dumps(record, indent=indent).encode()).hexdigest()
    return json.dumps(record | {'sha256': digest}, indent=indent).encode() + b'\n'


def unseal(raw, indent=1, required=True):
    """Returns the record in bytes made by seal(), its words for NaN and infinity as they are in JSON.

    BrokenSeal unless every byte is as it was; ValueError or RecursionError if that is not JSON. required:
    False also returns whatever has no seal, as records of earlier versions and those that people write.
    """
    record = json.loads(raw)
    if isinstance(record, dict) and is_sealed(record):
        # written again without its checksum, an intact one gives the same bytes
        record.popitem()
        if seal(record, indent) != raw:
            raise BrokenSeal('does not match its SHA-256')
    elif required:
        raise BrokenSeal('no seal')
    return record


def is_sealed(record):
    """Returns True if a record's last field is a seal, or was one before its name or value was damaged."""
    name, value = next(reversed(record.items()), ('', ''))
    # in config.json of older versions, sha256 was a dict
    return isinstance(value, str) and (name == 'sha256' or re.fullmatch('[0-9a-f]{64}', value) is not None)


def write_json(path, record):
    """Writes a sealed record atomically; creates the folder."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, seal(record))


def read_json(path):
    """Returns the record in a JSON file, None if there is no file.

    Stop if the file does not hold a record, or a sealed one whose bytes have changed. Records of earlier
    versions and those that people write have no seal.
    """
    try:
        return from_json(unseal(Path(path).read_bytes(), required=False))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except BrokenSeal:
        raise Stop(f'{path}: is damaged: it does not match its SHA-256; once deleted it is made anew') from None
    # not JSON, or JSON that is not a dict
    except (ValueError, AttributeError, RecursionError):
        raise Stop(f'{path}: is not a record in JSON; once deleted it is made anew') from None


def warn(message):
    print(f'warning: {printable(message)}', file=sys.stderr, flush=True)
