"""Files that are replaced in one step, JSON that anybody can read, full disks as one line for the user."""
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

from core.errors import DISK_FULL, Stop

FULL = errno.ENOSPC, errno.EDQUOT, errno.EFBIG


def write_atomic(path, data):
    """Replaces a file by these bytes in one step: readers see all of the old one or all of the new one."""
    tmp = path.with_name('.tmp-' + path.name)
    tmp.unlink(missing_ok=True)
    try:
        # x does not follow a link that somebody put there
        with open(tmp, 'xb') as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
        tmp.replace(path)
        fsync(path.parent)
    except BaseException:
        tmp.unlink(missing_ok=True)
        raise


def fsync(path):
    """Returns when a file, or a folder's list of names, is on the disk itself."""
    # Windows cannot open folders, and wants files open for writing
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
    """Turns a full disk, a quota, a file size limit and a vanished folder, met while writing, into a Stop.

    need: the bytes to be written, for the message. Other errors pass.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        code = error.errno if isinstance(error, OSError) else errno_in_text(error)
        if code == errno.ENOENT:
            raise Stop(f'{folder}: vanished while the run was writing there') from None
        if code not in FULL:
            raise
        free = shutil.disk_usage(folder).free
        raise Stop(f'{folder}: {os.strerror(code)}: {need:,} bytes needed, {free:,} free; '
                   'the checkpoints before this one are intact', DISK_FULL) from None


def errno_in_text(error):
    """Returns the errno that safetensors' errors have in their text alone, '(os error 28)'; 0 without one."""
    return int((re.findall(r'os error (\d+)', str(error)) or [0])[0])


# -----------------------------------------------------------------------------
# JSON

def to_json(x):
    """Returns x with NaN and the infinities, which JSON lacks, as words.

    As "NaN", "Infinity" and "-Infinity" both Python's float() and JavaScript's Number() read them.
    """
    if isinstance(x, dict):
        return {k: to_json(v) for k, v in x.items()}
    if isinstance(x, (list, tuple)):
        return [to_json(v) for v in x]
    return json.dumps(x) if isinstance(x, float) and not math.isfinite(x) else x


def from_json(record):
    """Returns a record of to_json() with floats again for the words among its own values.

    Deeper down may be a vocabulary with the word NaN in it.
    """
    return {k: float(v) if v in ('NaN', 'Infinity', '-Infinity') else v for k, v in record.items()}


def read_json(path):
    """Returns the record in a file, None where there is no file; Stop where it is not a record in JSON."""
    try:
        return from_json(json.loads(Path(path).read_text(encoding='utf-8')))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, AttributeError): # no JSON, or JSON that is not a dict
        raise Stop(f'{path}: is not a record in JSON; once deleted it is made anew') from None


def warn(message):
    print(f'warning: {message}', file=sys.stderr, flush=True)
