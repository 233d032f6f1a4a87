"""The run folder: everything that is kept of a run.

    config.json, result.json    one JSON object each, replaced in one step
    log.jsonl                   one JSON object a line; what is not finite is "NaN", "Infinity" or "-Infinity"
    ckpt/                       checkpoints, see core/run/checkpoint.py
    aside/                      checkpoints that a resume from an earlier one left behind
    previous/                   the run before this one, moved there by archive_previous()
    .lock                       "pid host" of the process that writes here
"""
import json
import os
import re
import shutil
import socket
from pathlib import Path

from filelock import lock_descriptor

from core.errors import BAD_INPUT, BUSY, DISK_FULL, Stop
from core.run.checkpoint import MARGIN, Checkpoints, step_of
from core.run.files import FULL, disk_errors, from_json, to_json, warn, write_atomic

# where the text of .lock begins: Windows lets nobody else read the byte that is locked, the first
LOCK_TEXT = 1 if os.name == 'nt' else 0


class RunFolder(Checkpoints):
    """One run's lock, log and records beside its checkpoints. Reading needs no lock."""

    def __init__(self, out_dir):
        super().__init__(out_dir)
        self._lock = self._log = None

    def lock(self):
        """Makes the folder and locks it while this object lives; after kill -9 the kernel unlocks at once.

        Stop where another process holds it, and where nobody can write.
        """
        try:
            self.out_dir.mkdir(parents=True, exist_ok=True)
            # a folder that somebody else made must not lead outside
            for name in 'ckpt', 'aside', 'previous', '.moving':
                if (self.out_dir / name).is_symlink():
                    raise Stop(f'{self.out_dir / name} is a link; give the place itself as --out_dir')
            flags = os.O_RDWR | os.O_CREAT | getattr(os, 'O_NOFOLLOW', 0)
            fd = os.open(self.out_dir / '.lock', flags, 0o666)
            self._lock = open(fd, 'r+', encoding='utf-8', errors='replace')
        except OSError as error:
            code = DISK_FULL if error.errno in FULL else BAD_INPUT
            raise Stop(f'--out_dir={self.out_dir}: cannot write there: {error.strerror}', code) from None

        # a lock on the descriptor: filelock's FileLock, up to 3.29, empties the file before it has the lock,
        # and with it the name of the process that holds it
        try:
            locked = lock_descriptor(self._lock.fileno(), blocking=False)
        except OSError as error: # some cluster file systems have no locks
            warn(f'{self.out_dir} cannot be locked ({error.strerror}): let no second run write there')
            return
        self._lock.seek(LOCK_TEXT)
        if not locked:
            pid, host = (self._lock.read(200).split() + ['?', '?'])[:2]
            raise Stop(f'--out_dir={self.out_dir}: process {pid} on {host} is writing there; wait for it, '
                       'or choose another', BUSY)
        self._lock.truncate(0)
        self._lock.write(f'{os.getpid()} {socket.gethostname()}\n')
        self._lock.flush()
        self.remove_unfinished()

    # -- the log

    def log_open(self, step=0):
        """Opens the log to go on at `step`; what is there from `step` on is a future that the run has left.

        So those records go, as does a line that a kill cut short; and newer checkpoints move to aside/: left
        in place, a later resume would jump to them, and prune() would count a damaged one as the newest.
        """
        for folder in self.checkpoints():
            if step_of(folder) > step:
                superseded = self.out_dir / 'aside' / folder.name
                superseded.parent.mkdir(exist_ok=True)
                shutil.rmtree(superseded, ignore_errors=True)
                folder.rename(superseded)
                warn(f'{folder} is newer than step {step}, where this run goes on: moved to {superseded}')
        kept = b''.join(line for line, record in self._lines() if record.get('iter', -1) < step)
        with disk_errors(self.out_dir, len(kept)):
            write_atomic(self.log_path, kept)
        self._log = open(self.log_path, 'a', encoding='utf-8')

    def log(self, record):
        """Appends a record: floats to the last bit, one line, out of this process before log() returns."""
        with disk_errors(self.out_dir, MARGIN):
            self._log.write(json.dumps(to_json(record)) + '\n')
            self._log.flush()

    def read_log(self):
        """Returns the records of the log; a warning for a line that is none."""
        return [record for _, record in self._lines()]

    def _lines(self):
        """Yields (line, record) of each whole line; a last line without its end was cut short by a kill."""
        lines = self.log_path.read_bytes().splitlines(keepends=True) if self.log_path.is_file() else []
        for n, line in enumerate(lines, 1):
            try:
                if line.endswith(b'\n'):
                    record = from_json(json.loads(line))
                    if not isinstance(record.get('iter', -1), (int, float)):
                        raise ValueError('iter')
                    yield line, record
            except (ValueError, TypeError, AttributeError, RecursionError):
                warn(f'skipped {self.log_path}, line {n}: not a record')

    # -- records

    def write_json(self, name, obj):
        """Writes config.json or result.json, in one step."""
        data = json.dumps(to_json(obj), indent=2).encode() + b'\n'
        with disk_errors(self.out_dir, len(data)):
            write_atomic(self.out_dir / name, data)

    def archive_previous(self):
        """Moves the last run's files to previous/: a new run destroys nothing. Returns True if it moved some.

        A run without a checkpoint (a typo, an early Ctrl-C) does not replace one with some; it is deleted.
        """
        files = 'result.json', 'config.json', 'log.jsonl', 'aside', 'ckpt'
        present = [name for name in files if (self.out_dir / name).exists()]
        previous, moving = self.out_dir / 'previous', self.out_dir / '.moving'
        # .moving is there when a kill interrupted the lines below: then they are to be finished
        if not present and not moving.exists():
            return False
        moving.mkdir(exist_ok=True)
        # ckpt last: until then, a resume finds it
        for name in present:
            (self.out_dir / name).replace(moving / name)
        keep = any(moving.glob('ckpt/step_*')) or not previous.exists()
        shutil.rmtree(previous if keep else moving, ignore_errors=True)
        if keep:
            moving.rename(previous)
        return keep


def last_iteration(out_dir):
    """Returns the iteration of the last whole line of a log that somebody may be writing; 0 without one."""
    try:
        with open(Path(out_dir) / 'log.jsonl', 'rb') as f:
            f.seek(max(0, f.seek(0, os.SEEK_END) - 4096))
            return int(re.findall(rb'"iter": (\d+)[^\n]*\n', f.read())[-1])
    except (OSError, IndexError):
        return 0
