"""Checkpoints. A kill at any moment leaves a valid one, and damage anywhere is noticed.

    ckpt/step_00000250/         model.safetensors, optim.safetensors,
                                state.json: their sizes and SHA-256, and the caller's state
    ckpt/step_00000250.old/     one that a save is replacing
    ckpt/.tmp-<pid>/            one that is being written, and that nobody reads
    ckpt/.tmp-step_00000250/    one that is being deleted, and that nobody reads
    kept/step_00000256/         a spaced one, the same without optim.safetensors: to look at, not to resume from

A checkpoint gets its name by one rename after everything in it is on the disk, so none is incomplete. Nothing
in it is executed.
"""
import errno
import math
import os
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from core.errors import NO_CHECKPOINT, Stop
from core.run.files import BrokenSeal, disk_errors, from_json, fsync, seal, sha256, unseal, warn, write_atomic

MODEL_FILE, OPTIM_FILE = TENSOR_FILES = 'model.safetensors', 'optim.safetensors'
STATE_FILE = 'state.json'
STATE_LIMIT = 16 << 20  # bytes of state.json; a larger one is damaged or malicious
MARGIN = 1 << 20        # bytes that a checkpoint needs besides its tensors: headers, state.json, the log


class CheckpointError(Exception):
    """A checkpoint that cannot be used, and why. Never leaves this file."""


class Checkpoints:
    """The checkpoints of a run folder, in out_dir/ckpt."""

    def __init__(self, out_dir):
        self.out_dir = Path(out_dir).expanduser()
        self.ckpt, self.kept = self.out_dir / 'ckpt', self.out_dir / 'kept'
        self.log_path = self.out_dir / 'log.jsonl'
        self._saver, self._saving = ThreadPoolExecutor(1), None

    # -- saving

    def save(self, step, model, optim, state):
        """Writes ckpt/step_<step>/ from two dicts of tensors and a dict for JSON; returns the folder.

        Without an optimizer, optim=None, it is kept/step_<step>/. Stop if the disk is full.
        """
        place = self.kept if optim is None else self.ckpt
        tmp, final = place / f'.tmp-{os.getpid()}', place / f'step_{step:08d}'
        tensors = {MODEL_FILE: to_cpu(model)} | ({} if optim is None else {OPTIM_FILE: to_cpu(optim)})
        need = sum(t.nbytes for part in tensors.values() for t in part.values()) + MARGIN
        try:
            with disk_errors(place, need):
                # 1) room for all of it, before the first byte
                place.mkdir(exist_ok=True)
                if shutil.disk_usage(place).free < need:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                # 2) the log first: a run that resumes from this checkpoint relies on the records before it
                if self.log_path.exists():
                    fsync(self.log_path)
                # 3) the tensors, into a folder that nobody reads; in threads, because writing and hashing
                # release the GIL
                shutil.rmtree(tmp, ignore_errors=True)
                tmp.mkdir()
                with ThreadPoolExecutor() as pool:
                    write = lambda name: write_tensors(tmp / name, tensors[name], pool)
                    files = dict(zip(tensors, pool.map(write, tensors), strict=True))
                # 4) state.json last, with their sizes and checksums; write_atomic() syncs the folder too
                raw = seal({**state, 'step': step, 'files': files})
                if len(raw) > STATE_LIMIT:
                    raise ValueError(f'state.json would be {len(raw):,} bytes, '
                                     f'more than the {STATE_LIMIT:,} that load() accepts')
                write_atomic(tmp / STATE_FILE, raw)
                # 5) one that it replaces gets a name that checkpoints() lists too, so there is always one
                if final.exists():
                    final.rename(final.with_suffix('.old'))
                # 6) its name, by one rename; then the folders' lists of names go to the disk
                tmp.rename(final)
                fsync(place)
                fsync(self.out_dir)
        except BaseException:
            shutil.rmtree(tmp, ignore_errors=True)
            raise
        finally:
            self.finish_replace()
        return final

    def save_behind(self, step, model, optim, state):
        """Calls save() and prune() in a thread, with the tensors' present values.

        The next tell_failure(), save_behind() or wait() raises what goes wrong there.
        """
        self.wait()
        # the next training step changes the tensors in place
        copy = lambda tensors: {name: t.detach().to('cpu', copy=True) for name, t in tensors.items()}
        copies = copy(model), None if optim is None else copy(optim)
        self._saving = self._saver.submit(lambda: (self.save(step, *copies, state), self.prune()))

    def wait(self):
        """Waits until what save_behind() began is on the disk; raises what went wrong there."""
        saving, self._saving = self._saving, None
        try:
            if saving:
                saving.result()
        finally:
            # an exception refers to this frame by its traceback, the frame would refer to the future, and
            # that to the exception and to self: a cycle, which would keep the run folder locked
            del saving

    def tell_failure(self):
        """Raises what went wrong in a save_behind() that has ended; does not wait for one that has not."""
        if self._saving and self._saving.done():
            self.wait()

    def finish_replace(self):
        """Deletes a replaced checkpoint if the new one is in place; else gives it its name back."""
        for old in (*self.ckpt.glob('step_*.old'), *self.kept.glob('step_*.old')):
            new = old.with_suffix('')
            if new.exists():
                delete(old)
            else:
                old.rename(new)

    def remove_unfinished(self):
        """Cleans up after killed processes. Only the process that holds the lock may call it."""
        for stale in (*self.ckpt.glob('.tmp-*'), *self.kept.glob('.tmp-*')):
            # of a process, or of a checkpoint that is being deleted
            if re.fullmatch(r'\.tmp-(\d+|step_\d{8,}(\.old)?)', stale.name):
                shutil.rmtree(stale, ignore_errors=True)
        self.finish_replace()

    def prune(self, keep=2):
        """Deletes all checkpoints except the `keep` newest and the one with the lowest val_loss."""
        folders = self.checkpoints()
        losses = comparable_losses(folders)
        best = min(folders, key=losses.get, default=None)
        for folder in folders[keep:]:
            if folder != best:
                delete(folder)

    # -- loading

    def checkpoints(self):
        """Returns the step folders, newest first, which may turn out damaged when they are read."""
        return checkpoints_in(self.ckpt)

    def spaced(self):
        """Returns the step folders of spaced checkpoints, newest first; prune() and resuming leave them alone."""
        return checkpoints_in(self.kept)

    def holds_run(self):
        """Returns True if there is a checkpoint, or the config.json of a run that has none yet."""
        return bool(self.checkpoints()) or (self.out_dir / 'config.json').exists()

    def nanogpt_checkpoint(self):
        """Returns words for nanoGPT's checkpoint if one is there, else ''."""
        if not (self.out_dir / 'ckpt.pt').exists():
            return ''
        return (f'; {self.out_dir / "ckpt.pt"} is a checkpoint of nanoGPT, a pickle, which is not read here: '
                'train anew with --init_from=scratch and another --out_dir')

    def load(self, which='latest', optim=True):
        """Returns (state, model tensors, optimizer tensors or None) of 'latest', 'best' or a step, verified.

        A step without its optimizer may be a spaced one. If it is damaged, 'latest' and 'best' warn and take the
        next one. Stop if none is left, or if the step asked for is damaged or missing.
        """
        folders = self.checkpoints()
        if which == 'best':
            # unreadable ones come first, so that a warning names them
            folders.sort(key=comparable_losses(folders, unreadable=-math.inf).get)
        elif which != 'latest':
            if not re.fullmatch(r'(step_)?\d{1,18}', str(which)):
                raise Stop(f"checkpoint {which!r}: allowed are 'latest', 'best' and a step")
            folders += [] if optim else self.spaced()
            folders = [f for f in folders if step_of(f) == int(str(which).removeprefix('step_'))]
        # the first that is intact
        for folder in folders:
            try:
                state = read_state(folder)
                model = read_tensors(folder, MODEL_FILE, state)
                return state, model, read_tensors(folder, OPTIM_FILE, state) if optim else None
            except CheckpointError as error:
                warn(f'skipped {error}')
        present = ', '.join(f.name for f in self.checkpoints()) or 'none'
        if spaced := self.spaced():
            present += f'; spaced: {" ".join(str(step_of(f)) for f in reversed(spaced))}'
        raise Stop(f'--out_dir={self.out_dir}: no usable checkpoint for {which!r} (found: {present})',
                   NO_CHECKPOINT)


# -----------------------------------------------------------------------------
# a model

def model_tensors(model):
    """Returns {name: tensor} for a checkpoint: the parameters, tied ones once, and the persistent buffers."""
    # named_parameters() has a tied parameter only under its first name
    first_names = {name for name, _ in model.named_parameters()}
    tied = {name for name, _ in model.named_parameters(remove_duplicate=False)} - first_names
    return {name: t for name, t in model.state_dict().items() if name not in tied}


def load_model_tensors(model, tensors):
    """Copies a checkpoint's tensors into the model; Stop if names, shapes or dtypes differ."""
    check_tensors(model_tensors(model), tensors)
    # not strict, because tied parameters are there once
    model.load_state_dict(tensors, strict=False)


def check_tensors(present, tensors):
    """Raises Stop unless a checkpoint's tensors have the names, shapes and dtypes of those that are present."""
    if name := first_misfit(present, tensors):
        raise Stop('the checkpoint does not fit the model, whose code or options have changed: '
                   f'{ascii(name)[1:-1]}', NO_CHECKPOINT)


def first_misfit(present, tensors):
    """Returns the first name that only one of two dicts of tensors has, or with another shape or dtype; else None."""
    names = sorted(present.keys() ^ tensors.keys())
    names = names or [name for name, t in present.items()
                      if (t.shape, t.dtype) != (tensors[name].shape, tensors[name].dtype)]
    return names[0] if names else None


# -----------------------------------------------------------------------------
# the files of a checkpoint

def to_cpu(tensors):
    """Returns the tensors as safetensors needs them: on the CPU, contiguous, no two in the same memory."""
    out, seen = {}, set()
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        memory = tensor.untyped_storage().data_ptr()
        out[name] = tensor.clone() if memory in seen else tensor
        seen.add(memory)
    return out


def write_tensors(path, tensors, pool):
    """Writes a file of tensors to the disk itself; returns its entry in state.json, {bytes, sha256}."""
    save_file(tensors, path)
    # save_file makes it private; give it the folder's permissions, which the umask decided
    path.chmod(path.parent.stat().st_mode & 0o666)
    # a thread hashes the file, still in memory, while it goes to the disk
    digest = pool.submit(sha256, path)
    fsync(path)
    return {'bytes': path.stat().st_size, 'sha256': digest.result()}


def read_tensors(folder, name, state):
    """Returns {name: tensor} of one of TENSOR_FILES, verified; CheckpointError if it is not intact."""
    path = folder / name
    try:
        verify(path, state['files'][name])
        # load_file's tensors are mapped from the file, which may be deleted
        return {k: t.clone() for k, t in load_file(path).items()}
    except (OSError, SafetensorError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(f'{path}: {type(error).__name__} {str(error)[:200]!r}') from None


def verify(path, entry):
    """Raises CheckpointError unless the file has the size and SHA-256 of its entry in state.json."""
    # a pipe is not a file: reading one would wait for a writer
    if not path.is_file():
        raise CheckpointError(f'{path}: missing')
    if path.stat().st_size != entry['bytes']:
        raise CheckpointError(f'{path}: {path.stat().st_size:,} bytes, '
                              f'but state.json says {entry["bytes"]!r}')
    if sha256(path) != entry['sha256']:
        raise CheckpointError(f'{path}: does not match its SHA-256')


def read_state(folder):
    """Returns the content of state.json; CheckpointError unless its bytes are those of seal()."""
    path = folder / STATE_FILE
    try:
        if not path.is_file():
            raise CheckpointError(f'{path}: missing')
        if path.stat().st_size > STATE_LIMIT:
            raise CheckpointError(f'{path}: larger than {STATE_LIMIT:,} bytes')
        try:
            state = unseal(path.read_bytes())
        except BrokenSeal:
            raise CheckpointError(f'{path}: does not match its SHA-256') from None
        if state['step'] != step_of(folder):
            raise CheckpointError(f'{path}: says step {state["step"]!r}')
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise CheckpointError(f'{path}: unreadable ({type(error).__name__})') from None
    return from_json(state)


def is_readable(folder):
    """Returns True if a checkpoint's state.json is intact."""
    with suppress(CheckpointError):
        return bool(read_state(folder))
    return False


def comparable_losses(folders, unreadable=math.inf):
    """Returns {folder: validation loss} of checkpoints, newest first; `unreadable` for those that cannot be read.

    It is infinity for those that have none, or one measured on something else than the newest one's.
    """
    losses, current = {}, None
    for folder in folders:
        try:
            state = read_state(folder)
        except CheckpointError:
            losses[folder] = unreadable
            continue
        current = current or measured_on(state)
        value = state.get('val_loss')
        # NaN, which differs from itself, would sort anywhere
        is_number = isinstance(value, (int, float)) and value == value
        losses[folder] = value if is_number and measured_on(state) == current else math.inf
    return losses


def measured_on(state):
    """Returns what a checkpoint's validation loss is measured on: losses of other text, or parts, do not compare.

    It is the hash of the data, and the numbers of windows of the evaluations before the last and of the last.
    """
    options = state.get('options')
    options = options if isinstance(options, dict) else {}
    eval_iters, curve_iters, rows = (value if type(value := options.get(name)) is int else 0
                                     for name in ('eval_iters', 'curve_iters', 'batch_size'))
    return str(state.get('data')), (curve_iters or eval_iters) * rows, eval_iters * rows


def is_spaced(step):
    """Returns True for 0 to 8, 10, 12, 14, 16, 20, 24, 28, 32, 40 ...: four an octave, 13 a decade."""
    # numbers of three binary digits, and zeros after them
    zeros = max(step.bit_length() - 3, 0)
    return step >> zeros << zeros == step


def checkpoints_in(place):
    """Returns the step folders in a folder, newest first."""
    is_checkpoint = lambda f: re.fullmatch(r'step_\d{8,}(\.old)?', f.name) and f.is_dir()
    found = filter(is_checkpoint, place.glob('step_*'))
    # a replaced one comes after the one that replaces it
    return sorted(found, key=lambda f: (step_of(f), f.suffix == ''), reverse=True)


def step_of(folder):
    """Returns the step in a checkpoint folder's name."""
    return int(folder.name.removeprefix('step_').removesuffix('.old'))


def delete(folder):
    """Deletes a checkpoint; warns if that fails."""
    # renamed first, so that a kill leaves no half of it under its name
    hidden = folder.with_name('.tmp-' + folder.name)
    try:
        shutil.rmtree(hidden, ignore_errors=True)
        shutil.rmtree(folder.rename(hidden))
    except OSError as error:
        warn(f'could not delete {folder}: {error.strerror}')
