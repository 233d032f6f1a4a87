"""Tells whether a file is the one that was there when a set was prepared."""
import hashlib
from functools import cache

from core.run.files import sha256

READ_WHOLE = 256 << 20  # bytes: up to here, a third of a second, a file is hashed whole
FORGET = 16 << 20       # bytes: up to here, a file is hashed each time, whatever its time stamp says
BLOCKS, BLOCK = 64, 64 << 10 # of a larger file, from its first bytes to its last


def identity(path):
    """Returns a record for JSON of a file's size, SHA-256, and SHA-256 of BLOCKS blocks spread over it."""
    return dict(bytes=path.stat().st_size, sha256=sha256(path), sample=sample_hash(path))


def is_the_same(path, record):
    """Returns True if a file is the one of this record of identity(), which may be anything."""
    about = path.stat()
    if not isinstance(record, dict) or about.st_size != record.get('bytes'):
        return False
    name = 'sha256' if about.st_size <= READ_WHOLE else 'sample'
    hash_file = known_hash.__wrapped__ if about.st_size <= FORGET else known_hash
    return hash_file(path, name, about.st_size, about.st_mtime_ns) == record.get(name)


# cached, because a study opens its data many times
@cache
def known_hash(path, name, size, mtime_ns):
    """Returns a hash of the file that had this size and time stamp."""
    return sha256(path) if name == 'sha256' else sample_hash(path)


def sample_hash(path):
    """Returns the SHA-256 of BLOCKS blocks, spread evenly over the file with its first and last bytes."""
    digest, last = hashlib.sha256(), max(path.stat().st_size - BLOCK, 0)
    with open(path, 'rb') as f:
        for n in range(BLOCKS):
            f.seek(last * n // (BLOCKS - 1))
            digest.update(f.read(BLOCK))
    return digest.hexdigest()
