"""The run folder. Killed anywhere, it holds a valid checkpoint; damaged anywhere, it says so; nothing in it is run.

    config.json, result.json    one JSON object each, replaced in one step
    log.jsonl                   one JSON object a line; what is not finite is "NaN", "Infinity" or "-Infinity"
    ckpt/step_00000250/         model.safetensors, optim.safetensors, state.json: sizes, SHA-256 and the caller's state
    aside/                      checkpoints that a resume from an earlier one left behind
    previous/                   what fresh() moved out of the way
    .lock                       "pid host" of the process that writes here

A checkpoint appears under its name by one rename, after everything in it is on the disk: there are no half ones.
"""
import errno
import hashlib
import json
import math
import os
import re
import shutil
import socket
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from core.errors import BAD_INPUT, BUSY, DISK_FULL, NO_CHECKPOINT, Stop

MODEL, OPTIM = FILES = 'model.safetensors', 'optim.safetensors'
STATE_LIMIT = 16 << 20                      # bytes of state.json; a larger one is damaged or hostile
MARGIN = 1 << 20                            # bytes a checkpoint needs beside its tensors: headers, state.json, the log
FULL = errno.ENOSPC, errno.EDQUOT, errno.EFBIG


class RunFolder:
    def __init__(self, out_dir):
        self.out_dir = Path(out_dir)
        self.ckpt = self.out_dir / 'ckpt'
        self.log_path = self.out_dir / 'log.jsonl'
        self._lock = self._log = self._saving = None
        self._writer = ThreadPoolExecutor(1)

    # -- one writer

    def lock(self):
        """Makes the folder and holds it while this object lives; after kill -9 the kernel lets go at once."""
        try:
            self.out_dir.mkdir(parents=True, exist_ok=True)
            for name in 'ckpt', 'aside', 'previous', '.moving':     # a folder from somebody else must not lead outside
                if (self.out_dir / name).is_symlink():
                    raise Stop(f'{self.out_dir / name} is a link; give the place itself as --out_dir')
            flags = os.O_RDWR | os.O_CREAT | getattr(os, 'O_NOFOLLOW', 0)
            self._lock = open(os.open(self.out_dir / '.lock', flags, 0o666), 'r+', encoding='utf-8', errors='replace')
        except OSError as error:
            code = DISK_FULL if error.errno in FULL else BAD_INPUT
            raise Stop(f'--out_dir={self.out_dir}: cannot write there: {error.strerror}', code) from None
        try:
            hold(self._lock.fileno())
        except (BlockingIOError, PermissionError):      # the second is what Windows says
            pid, host = (self._lock.read(200).split() + ['?', '?'])[:2]
            raise Stop(f'--out_dir={self.out_dir}: process {pid} on {host} is writing there; wait for it, '
                       'or choose another', BUSY) from None
        except OSError as error:                        # some cluster file systems have no locks
            return warn(f'{self.out_dir} cannot be locked ({error.strerror}): let no second run write there')
        self._lock.truncate(0)
        self._lock.write(f'{os.getpid()} {socket.gethostname()}\n')
        self._lock.flush()
        for stale in self.ckpt.glob('.tmp-*'):          # whoever wrote these is dead
            shutil.rmtree(stale, ignore_errors=True)
        self._settle()

    # -- checkpoints

    def save(self, step, model, optim, state):
        """Writes ckpt/step_<step>/ from two dicts of tensors and a JSON-able dict; returns the folder."""
        tmp, final = self.ckpt / f'.tmp-{os.getpid()}', self.ckpt / f'step_{step:08d}'
        tensors = dict(zip(FILES, map(host, (model, optim)), strict=True))
        need = sum(t.nbytes for part in tensors.values() for t in part.values()) + MARGIN
        try:
            with writing(self.ckpt, need):
                self.ckpt.mkdir(exist_ok=True)
                if shutil.disk_usage(self.ckpt).free < need:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                if self._log:                           # whoever resumes here relies on the log up to here
                    os.fsync(self._log.fileno())
                shutil.rmtree(tmp, ignore_errors=True)
                tmp.mkdir()
                with ThreadPoolExecutor() as pool:      # writing and hashing leave the interpreter free
                    entries = pool.map(lambda name: write(tmp / name, tensors[name], pool), FILES)
                    files = dict(zip(FILES, entries, strict=True))
                put(tmp / 'state.json', seal({**state, 'step': step, 'files': files}))  # put() syncs the folder too
                if final.exists():                      # checkpoints() lists .old too: one is there at every moment
                    final.rename(final.with_suffix('.old'))
                tmp.rename(final)
                fsync(self.ckpt)
                fsync(self.out_dir)
        except BaseException:
            shutil.rmtree(tmp, ignore_errors=True)
            raise
        finally:
            self._settle()
        return final

    def save_behind(self, step, model, optim, state):
        """save() and prune() by a thread, of what the tensors are now. What goes wrong there is told by the next save or wait()."""
        self.wait()
        copies = [{name: t.detach().to('cpu', copy=True) for name, t in part.items()} for part in (model, optim)]
        self._saving = self._writer.submit(lambda: (self.save(step, *copies, state), self.prune()))

    def wait(self):
        """Returns when what save_behind() began is on the disk."""
        saving, self._saving = self._saving, None
        try:
            if saving:
                saving.result()
        finally:
            del saving                                  # else an exception and its traceback would hold it, and us, and the lock

    def _settle(self):
        """What save() replaced goes when the new one is in place, and comes back when that was not to be."""
        for old in self.ckpt.glob('step_*.old'):
            new = old.with_suffix('')
            discard(old) if new.exists() else old.rename(new)

    def checkpoints(self):
        """Step folders, newest first; whether they are intact is seen by reading them."""
        found = [f for f in self.ckpt.glob('step_*') if re.fullmatch(r'step_\d{8,}(\.old)?', f.name) and f.is_dir()]
        return sorted(found, key=lambda f: (step_of(f), f.suffix == ''), reverse=True)

    def load(self, which='latest', optim=True):
        """(state, model tensors, optimizer tensors or None) of 'latest', 'best' or a step, everything verified.

        'latest' and 'best' fall back, with a warning, to the next best; a step asked for by number does not.
        """
        folders = self.checkpoints()
        if which == 'best':                             # the unreadable come first, so that they are named
            folders.sort(key=lambda folder: val_loss(folder, unreadable=-math.inf))
        elif which != 'latest':
            if not re.fullmatch(r'(step_)?\d{1,18}', str(which)):
                raise Stop(f"checkpoint {which!r}: allowed are 'latest', 'best' and a step")
            folders = [f for f in folders if step_of(f) == int(str(which).removeprefix('step_'))]
        for folder in folders:
            try:
                state = read_state(folder)
                return state, read(folder, MODEL, state), read(folder, OPTIM, state) if optim else None
            except Broken as broken:
                warn(f'skipped {broken}')
        there = ', '.join(f.name for f in self.checkpoints()) or 'none'
        raise Stop(f'--out_dir={self.out_dir}: no usable checkpoint for {which!r} (found: {there})', NO_CHECKPOINT)

    def prune(self, keep=2):
        """Deletes checkpoints, except the `keep` newest and the one with the lowest val_loss."""
        folders = self.checkpoints()
        best = min(folders, key=val_loss, default=None)
        for folder in folders[keep:]:
            if folder != best:
                discard(folder)

    # -- the log and the other files

    def log_open(self, step=0):
        """Opens the log to go on at `step`. What is there from `step` on belongs to a future that the run has left.

        So those records go, as does a line that a kill cut short; and newer checkpoints are set aside: left in
        place, a later resume would jump to them, and prune() would count a damaged one as the newest.
        """
        for folder in self.checkpoints():
            if step_of(folder) > step:
                aside = self.out_dir / 'aside' / folder.name
                aside.parent.mkdir(exist_ok=True)
                shutil.rmtree(aside, ignore_errors=True)
                warn(f'{folder} is newer than step {step}, where this run goes on: moved to {folder.rename(aside)}')
        kept = b''.join(line for line, record in self._lines() if record.get('iter', -1) < step)
        with writing(self.out_dir, len(kept)):
            put(self.log_path, kept)
        self._log = open(self.log_path, 'a', encoding='utf-8')

    def log(self, record):
        """Appends a record: floats to the last bit, one line, out of this process before log() returns."""
        with writing(self.out_dir, MARGIN):
            self._log.write(json.dumps(plain(record)) + '\n')
            self._log.flush()

    def read_log(self):
        return [record for _, record in self._lines()]

    def _lines(self):
        """(line, record) of every whole line. A line that is cut short ends the log: a kill did that."""
        lines = self.log_path.read_bytes().splitlines(keepends=True) if self.log_path.is_file() else []
        for n, line in enumerate(lines, 1):
            try:
                if line.endswith(b'\n'):
                    record = revive(json.loads(line))
                    if not isinstance(record.get('iter', -1), (int, float)):
                        raise ValueError('iter')
                    yield line, record
            except (ValueError, TypeError, AttributeError, RecursionError):
                warn(f'skipped {self.log_path}, line {n}: not a record')

    def write_json(self, name, obj):
        data = json.dumps(plain(obj), indent=2).encode() + b'\n'
        with writing(self.out_dir, len(data)):
            put(self.out_dir / name, data)

    def fresh(self):
        """Moves the last run's files to previous/, so that a new run in a used folder destroys nothing. True if it did.

        A run without a checkpoint (a typo, an early Ctrl-C) does not push out one that has some; it is deleted.
        """
        names = [n for n in ('result.json', 'config.json', 'log.jsonl', 'aside', 'ckpt') if (self.out_dir / n).exists()]
        previous, moving = self.out_dir / 'previous', self.out_dir / '.moving'
        if not names and not moving.exists():           # if it exists, a kill interrupted us below: finish
            return False
        moving.mkdir(exist_ok=True)
        for name in names:                              # ckpt last: until then, a resume finds it
            (self.out_dir / name).replace(moving / name)
        keep = any(moving.glob('ckpt/step_*')) or not previous.exists()
        shutil.rmtree(previous if keep else moving, ignore_errors=True)
        if keep:
            moving.rename(previous)
        return keep


class Broken(Exception):
    """A checkpoint that cannot be used, and why. Never leaves this file."""


def read_state(folder):
    """state.json, verified: its bytes are exactly what seal() makes of what it says."""
    path = folder / 'state.json'
    try:
        if not path.is_file():                          # nor do we wait for a pipe
            raise Broken(f'{path}: missing')
        if path.stat().st_size > STATE_LIMIT:
            raise Broken(f'{path}: larger than {STATE_LIMIT:,} bytes')
        raw = path.read_bytes()
        state = json.loads(raw)
        state.pop('sha256')
        if seal(state) != raw:
            raise Broken(f'{path}: does not match its SHA-256')
        if state['step'] != step_of(folder):
            raise Broken(f'{path}: says step {state["step"]!r}')
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise Broken(f'{path}: unreadable ({type(error).__name__})') from None
    return revive(state)


def read(folder, name, state):
    """The tensors of one of the two FILES; no other name is ever opened, whatever state.json says."""
    path = folder / name
    try:
        entry = state['files'][name]
        if not path.is_file():
            raise Broken(f'{path}: missing')
        if path.stat().st_size != entry['bytes']:
            raise Broken(f'{path}: {path.stat().st_size:,} bytes, but state.json says {entry["bytes"]!r}')
        if sha256(path) != entry['sha256']:
            raise Broken(f'{path}: does not match its SHA-256')
        return {k: t.clone() for k, t in load_file(path).items()}   # load_file's own are windows into the file
    except (OSError, SafetensorError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise Broken(f'{path}: {type(error).__name__} {str(error)[:200]!r}') from None


def write(path, tensors, pool):
    """Writes the tensors and returns their entry in state.json, when they are on the disk itself; a thread of pool's hashes."""
    save_file(tensors, path)
    path.chmod(path.parent.stat().st_mode & 0o666)      # save_file makes it private; let the umask decide, as elsewhere
    digest = pool.submit(sha256, path)                  # of what is in memory, while it goes to the disk
    fsync(path)
    return {'bytes': path.stat().st_size, 'sha256': digest.result()}


def host(tensors):
    """On the CPU, contiguous and without shared memory, as safetensors wants them."""
    out, seen = {}, set()
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        memory = tensor.untyped_storage().data_ptr()
        out[name] = tensor.clone() if memory in seen else tensor
        seen.add(memory)
    return out


def val_loss(folder, unreadable=math.inf):
    try:
        value = read_state(folder).get('val_loss')
    except Broken:
        return unreadable
    return value if isinstance(value, (int, float)) and value == value else math.inf


def last_iteration(out_dir):
    """The iteration of the last whole line in a log that somebody may be writing; 0 if there is none."""
    try:
        with open(Path(out_dir) / 'log.jsonl', 'rb') as f:
            f.seek(max(0, f.seek(0, os.SEEK_END) - 4096))
            return int(re.findall(rb'"iter": (\d+)[^\n]*\n', f.read())[-1])
    except (OSError, IndexError):
        return 0


def step_of(folder):
    return int(folder.name.removeprefix('step_').removesuffix('.old'))


def discard(folder):
    """Deletes a checkpoint: out of sight by one rename first, so that no kill leaves half of it under its name."""
    hidden = folder.with_name('.tmp-' + folder.name)
    try:
        shutil.rmtree(hidden, ignore_errors=True)
        shutil.rmtree(folder.rename(hidden))
    except OSError as error:
        warn(f'could not delete {folder}: {error.strerror}')


def seal(obj):
    """The bytes of obj as JSON, closed with the SHA-256 of the JSON before it was closed."""
    body = json.dumps(plain(obj), indent=1)
    raw = f'{body[:-2]},\n "sha256": "{hashlib.sha256(body.encode()).hexdigest()}"\n}}\n'.encode()
    if len(raw) > STATE_LIMIT:
        raise ValueError(f'state.json would be {len(raw):,} bytes, more than the {STATE_LIMIT:,} that load() accepts')
    return raw


def plain(x):
    """JSON has no NaN and no infinities; as words, both Python's float() and JavaScript's Number() read them."""
    if isinstance(x, dict):
        return {k: plain(v) for k, v in x.items()}
    if isinstance(x, (list, tuple)):
        return [plain(v) for v in x]
    return json.dumps(x) if isinstance(x, float) and not math.isfinite(x) else x


def revive(record):
    """plain(), undone for the values of a record or a state; deeper down may be a vocabulary with the word NaN."""
    return {k: float(v) if v in ('NaN', 'Infinity', '-Infinity') else v for k, v in record.items()}


def read_json(path):
    """A record that plain() and JSON made, or None where there is no file."""
    try:
        return revive(json.loads(Path(path).read_text(encoding='utf-8')))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, AttributeError): # no JSON, or JSON that is not a dict
        raise Stop(f'{path}: is not a record in JSON; once deleted it is made anew') from None


def put(path, data):
    """Replaces a file in one step: readers see all of the old one or all of the new one."""
    tmp = path.with_name('.tmp-' + path.name)
    tmp.unlink(missing_ok=True)
    try:
        with open(tmp, 'xb') as f:                      # x: does not follow a link that somebody put there
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
        tmp.replace(path)
        fsync(path.parent)
    except BaseException:
        tmp.unlink(missing_ok=True)
        raise


@contextmanager
def writing(folder, need):
    """A full disk, a quota, a file size limit or a folder that vanished, met while writing: one line for the user."""
    try:
        yield
    except (OSError, SafetensorError) as error:         # safetensors has errno in its text only
        code = error.errno if isinstance(error, OSError) else int((re.findall(r'os error (\d+)', str(error)) or [0])[0])
        if code == errno.ENOENT:
            raise Stop(f'{folder}: vanished while the run was writing there') from None
        if code not in FULL:
            raise
        raise Stop(f'{folder}: {os.strerror(code)}: {need:,} bytes needed, {shutil.disk_usage(folder).free:,} free; '
                   'the checkpoints before this one are intact', DISK_FULL) from None


def fsync(path):
    """Returns when a file, or a folder's list of names, is on the disk itself."""
    if os.name != 'nt' or path.is_file():               # Windows cannot open folders, and wants files open for writing
        fd = os.open(path, os.O_RDWR if path.is_file() else os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def hold(fd):
    """An exclusive lock on an open file, or BlockingIOError (PermissionError on Windows) at once."""
    if os.name == 'nt':
        import msvcrt
        os.lseek(fd, 1 << 30, os.SEEK_SET)              # far beyond the text, which others may then read
        msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)
        os.lseek(fd, 0, os.SEEK_SET)
    else:
        import fcntl
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)


def sha256(path):
    with open(path, 'rb') as f:
        return hashlib.file_digest(f, 'sha256').hexdigest()


def warn(message):
    print(f'warning: {message}', file=sys.stderr, flush=True)
