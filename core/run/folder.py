"""The run folder, which holds everything that is kept of a run.

    config.json, result.json    one JSON object each, replaced in one step
    log.jsonl                   a JSON object per line; what is not finite is "NaN", "Infinity" or "-Infinity"
    ckpt/, kept/                checkpoints, and spaced ones with --keep=log, see core/run/checkpoint.py
    aside/                      checkpoints later than the one that a run was resumed from
    previous/, previous.1/ ...  the runs before this one, the oldest first, moved there by archive_previous()
    .lock                       "pid host" of the process that writes here
"""
import json
import os
import re
import shutil
import socket
import stat
from contextlib import suppress
from pathlib import Path

from filelock import lock_descriptor

from core.errors import BAD_INPUT, BUSY, DISK_FULL, Stop
from core.run.checkpoint import MARGIN, Checkpoints, delete, is_readable, step_of
from core.run.files import FULL, disk_errors, free_name, from_json, read_json, seal, to_json, warn, write_atomic

# where the text of .lock begins: Windows lets no other process read the locked byte, the first
LOCK_TEXT = 1 if os.name == 'nt' else 0
# what archive_previous() moves; ckpt comes last, so that until then a resume finds it
OF_A_RUN = 'result.json', 'config.json', 'log.jsonl', 'aside', 'kept', 'ckpt'


class RunFolder(Checkpoints):
    """A run's lock, log and records, besides its checkpoints. Reading needs no lock."""

    def __init__(self, out_dir):
        super().__init__(out_dir)
        self._lock = self._log = None

    def lock(self):
        """Makes the folder and locks it while this object lives; after kill -9 the kernel unlocks it at once.

        Stop if another process holds the lock, or if the folder cannot be written.
        """
        try:
            self.out_dir.mkdir(parents=True, exist_ok=True)
            # a folder made by others must not lead elsewhere
            for name in 'ckpt', 'kept', 'aside', 'previous', '.moving':
                place = self.out_dir / name
                if place.is_symlink():
                    raise Stop(f'{place} is a link; give the place itself as --out_dir')
                if place.exists() and not place.is_dir():
                    raise Stop(f'{place} is not a folder: choose another --out_dir')
            flags = os.O_RDWR | os.O_CREAT | getattr(os, 'O_NOFOLLOW', 0)
            fd = os.open(self.out_dir / '.lock', flags, 0o666)
            # somebody else's, perhaps under another name elsewhere
            if not stat.S_ISREG(os.fstat(fd).st_mode) or os.fstat(fd).st_nlink > 1:
                os.close(fd)
                raise self.not_our_lock()
            self._lock = open(fd, 'r+', encoding='utf-8', errors='replace')
        except OSError as error:
            code = DISK_FULL if error.errno in FULL else BAD_INPUT
            raise Stop(f'--out_dir={self.out_dir}: cannot write there: {error.strerror}', code) from None

        # lock the descriptor: up to 3.29, filelock's FileLock empties the file before it has the lock, and so
        # loses the name of the process that holds it
        try:
            locked = lock_descriptor(self._lock.fileno(), blocking=False)
        except OSError as error: # some cluster file systems have no locks
            warn(f'{self.out_dir} cannot be locked ({error.strerror}): let no second run write there')
            return
        self._lock.seek(LOCK_TEXT)
        text = self._lock.read(200)
        if not locked:
            pid, host = (ascii(text)[1:-1].replace('\\n', ' ').split() + ['?', '?'])[:2]
            raise Stop(f'--out_dir={self.out_dir}: process {pid} on {host} is writing there; wait for it, '
                       'or choose another', BUSY)
        if not re.fullmatch(r'(\d[^\n]*\n?)?', text):
            self._lock = None
            raise self.not_our_lock()
        self._lock.seek(LOCK_TEXT)
        with disk_errors(self.out_dir, MARGIN):
            self._lock.truncate(0)
            self._lock.write(f'{os.getpid()} {socket.gethostname()}\n')
            self._lock.flush()
        self.remove_unfinished()

    def not_our_lock(self):
        return Stop(f'{self.out_dir / ".lock"} is not the lock of a run: choose another --out_dir')

    def check_ours(self):
        """Raises Stop if there is anything where a run has its files that no run wrote: a new run would move it."""
        # os.path's takes a name that is too long for one that is not there; lock() says what is wrong with it
        present = [name for name in OF_A_RUN if os.path.exists(self.out_dir / name)]
        # interrupted, archive_previous() has moved the config.json
        ours = any(map(holds_run_config, (self.out_dir, self.out_dir / '.moving')))
        if present and not ours and not any(map(is_readable, self.checkpoints())):
            raise Stop(f'--out_dir={self.out_dir}: holds {", ".join(present)}, which no run of train.py wrote: '
                       'choose another --out_dir')

    # -- the log

    def log_open(self, step=0):
        """Opens the log to continue at `step`. Records from `step` on are removed, and a line cut short too.

        Later checkpoints move to aside/. In place, a later resume would jump to them, and prune() would count
        a damaged one as the newest. Later spaced ones are removed, because the run writes them again.
        """
        for folder in self.spaced():
            if step_of(folder) > step:
                delete(folder)
        for folder in self.checkpoints():
            if step_of(folder) > step:
                superseded = free_name(self.out_dir / 'aside' / folder.name)
                superseded.parent.mkdir(exist_ok=True)
                folder.rename(superseded)
                warn(f'{folder} is newer than step {step}, where this run goes on: moved to {superseded}')
        kept = b''.join(line for line, record in self._lines() if record.get('iter', -1) < step)
        with disk_errors(self.out_dir, len(kept)):
            write_atomic(self.log_path, kept)
            # readable as well, in case that its name is deleted
            self._log = open(self.log_path, 'a+', encoding='utf-8')

    def log(self, record):
        """Appends a record as one line, floats to the last bit; it has left this process on return.

        Stop if a checkpoint saved behind has failed meanwhile.
        """
        self.tell_failure()
        with disk_errors(self.out_dir, MARGIN):
            self.keep_log()
            self._log.write(json.dumps(to_json(record)) + '\n')
            self._log.flush()

    def keep_log(self):
        """Goes on in the file that has the log's name; writes it again if it has been deleted."""
        # a handle has no inode number on Windows, which deletes no open file
        if os.name == 'nt':
            return
        try:
            if os.path.samestat(os.stat(self.log_path), os.fstat(self._log.fileno())):
                return
        except FileNotFoundError:
            self._log.seek(0)
            write_atomic(self.log_path, self._log.read().encode())
            warn(f'{self.log_path} was deleted, and has been written again')
        self._log.close()
        self._log = open(self.log_path, 'a+', encoding='utf-8')

    def read_log(self):
        """Returns the records of the log; warns of lines that are not records."""
        return [record for _, record in self._lines()]

    def _lines(self):
        """Yields (line, record) for each complete line; a kill may have cut the last one short."""
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
        """Writes an object to config.json or result.json, in one step."""
        data = seal(obj)
        with disk_errors(self.out_dir, len(data)):
            write_atomic(self.out_dir / name, data)

    def archive_previous(self):
        """Moves the last run's files to previous/, or previous.1/ ...; returns that folder, None if there are none.

        A run without a checkpoint (a typo, an early Ctrl-C) is deleted instead if previous/ has a run.
        """
        present = [name for name in OF_A_RUN if (self.out_dir / name).exists()]
        previous, moving = self.out_dir / 'previous', self.out_dir / '.moving'
        # .moving exists if a kill interrupted the lines below, which then finish
        if not present and not moving.exists():
            return None
        moving.mkdir(exist_ok=True)
        for name in present:
            (self.out_dir / name).replace(moving / name)
        if not any(moving.glob('ckpt/[!.]*')) and previous.exists():
            shutil.rmtree(moving, ignore_errors=True)
            return None
        return moving.rename(free_name(previous))


def holds_run_config(folder):
    """Returns True if a folder has a config.json of train.py; a damaged one is none."""
    with suppress(Stop, OSError):
        return is_run_config(read_json(folder / 'config.json'))
    return False


def is_run_config(record):
    """Returns True if a record has what train.py writes into config.json."""
    names = 'options', 'model_args', 'origin'
    return record is not None and all(isinstance(record.get(name), dict) for name in names)


def last_iteration(out_dir):
    """Returns the iteration in the last complete line of a log that may be being written; 0 without one."""
    try:
        with open(Path(out_dir) / 'log.jsonl', 'rb') as f:
            f.seek(max(0, f.seek(0, os.SEEK_END) - 4096))
            return int(re.findall(rb'"iter": (\d+)[^\n]*\n', f.read())[-1])
    except (OSError, IndexError):
        return 0
