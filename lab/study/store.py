"""The store of runs: each run that a study of this checkout asked for, kept for every later study.

    out-ab/runs/IDENTITY/identity.json  what the name stands for: options, code, data, kind of device
    out-ab/runs/IDENTITY/checks.json    what the checks before training found
    out-ab/runs/IDENTITY/SEED/          the run: train.py's files, and those of study.py
    out-ab/runs/IDENTITY/SEED.lock      held by the process that trains the run

Studies are views of the store. A baseline trained once serves them all, and an arm that is asked for again
costs nothing. Studies that run at the same time share runs: one trains, the others wait for it.
"""
import ast
import hashlib
import json
import re
import shutil
from functools import cache
from pathlib import Path

from filelock import FileLock, Timeout

from core.device.machine import machine
from core.errors import Stop
from core.run.files import read_json, warn, write_json
from core.run.folder import RunFolder
from lab.study.words import align

# a run's folder has one of these, which says how far the run is
STARTED, DONE, FAILED = 'task.json', 'ab.json', 'failed.json'
# of runs that have a folder
STATES = 'done', 'diverged', 'failed', 'partial'
RUNS = Path('out-ab/runs')


@cache
def code_hash(path):
    """Returns a hash of what a Python file computes: comments, docstrings and spaces do not change it.

    It is of the file as Python would write it, which is the same in all versions that can.
    """
    tree = ast.parse(Path(path).read_text(encoding='utf-8'))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return hashlib.sha256(ast.unparse(tree).encode()).hexdigest()[:16]


def device_kind(o):
    """Returns what train.py's options o compute on, without its number: 'NVIDIA H200, bfloat16'."""
    # a device that is not there is refused by whoever trains on it
    try:
        m = machine(o.device, o.dtype, compile=False)
    except Stop:
        return f'{o.device}, {o.dtype}'
    return f'{m.name}, {m.dtype}'


def store_key(name, identity):
    """Returns the folder's name of an identity: the variant's, and twelve digits of a hash of all of it."""
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    return f'{re.sub(r"[^a-z0-9_+]+", "_", name.lower())[:40]}-{digest[:12]}'


def write_identity(root, key, identity):
    """Writes what a key stands for into its folder, unless it is there."""
    path = root / key / 'identity.json'
    if read_or_warn(path) != identity:
        write_shared(path, identity)


def read_or_warn(path):
    """Returns the record in a JSON file; None if there is none, or after a warning if it is damaged.

    For records that can be made anew without training.
    """
    try:
        return read_json(path)
    except Stop as stop:
        warn(str(stop).replace('once deleted it is', 'it is'))


def read_run(path, *fields):
    """Returns ab.json or failed.json of a run, None if there is no such file.

    Stop if it is damaged, lacks one of the fields, or is the record of another run.
    """
    record = read_json(path)
    if record is None:
        return None
    # before the store, the folder was ARM/seed_N; older records do not name their identity
    seed, identity = path.parent.name.removeprefix('seed_'), path.parent.parent.name
    found = str(record.get('seed', seed)), record.get('identity', identity)
    if found != (seed, identity):
        raise Stop(f'{path}: is the record of another run, {found[1]} seed {found[0]}; once deleted it is made anew')
    if missing := next((field for field in fields if field not in record), None):
        raise Stop(f'{path}: has no {missing}; once deleted it is made anew')
    return record


def run_name(folder):
    """Returns what a record says of the run that it belongs to; folder: the run's."""
    return dict(identity=folder.parent.name, seed=int(folder.name))


def write_shared(path, obj):
    """Writes obj as JSON into a file that other studies may write at the same time; creates the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f'.{path.name}.lock')):
        write_json(path, obj)


def run_state(folder):
    """Returns new, partial, done, diverged or failed, for a run's folder."""
    # in this order, because a run that has ended still has its task.json
    if (folder / DONE).exists():
        return 'done'
    if failure := read_run(folder / FAILED, 'status'):
        return failure['status']
    return 'partial' if (folder / STARTED).exists() else 'new'


def logged_evaluations(folder):
    """Returns the evaluations in a run's log: [{iter, val_loss, train_loss, stats.NAME}]."""
    return [line for line in RunFolder(folder).read_log() if 'val_loss' in line]


def stored_seeds(root, key):
    """Returns the sorted seeds of an identity's runs that have ended with a loss, or diverged."""
    seeds = [int(path.name) for path in (root / key).glob('*/') if path.name.isdigit()]
    return sorted(seed for seed in seeds if run_state(root / key / str(seed)) in ('done', 'diverged'))


def claim(folder):
    """Returns the lock of a run, held until it is released or this process ends; None if another holds it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(f'{folder}.lock')
    try:
        lock.acquire(blocking=False)
        return lock
    except Timeout:
        return None


# -----------------------------------------------------------------------------
# python ab.py --store

def store_rows(root, out):
    """Returns a dict for each identity in the store: key, runs by state, bytes, last use, studies.

    out: the folder of the studies, whose study.json say which keys they show.
    """
    users = studies_by_key(out)
    rows = []
    for path in sorted(root.glob('*/')):
        states = [run_state(run) for run in path.glob('*/') if run.name.isdigit()]
        files = [file for file in path.rglob('*') if file.is_file()]
        rows.append(dict(
            key=path.name,
            **{state: states.count(state) for state in STATES},
            bytes=sum(file.stat().st_size for file in files),
            last=max((file.stat().st_mtime for file in files), default=0.0),
            studies=users.get(path.name, [])))
    return rows


def studies_by_key(out):
    """Returns {key: [names of studies that show its runs]}."""
    users = {}
    for file in sorted([*out.glob('*/study.json'), *out.glob('*/previous*/study.json')]):
        for arm in (read_json(file) or {}).get('arms', []):
            if key := arm.get('key'):
                users.setdefault(key, []).append(str(file.parent.relative_to(out)))
    return users


def store_text(root, out):
    """Returns the store as a table for a terminal."""
    from datetime import datetime
    # checks and names are kept of arms that were never trained
    rows = [row for row in store_rows(root, out) if any(row[state] for state in STATES)]
    if not rows:
        return f'{root}: no runs yet'
    lines = [('identity', *STATES, 'MiB', 'last', 'studies')]
    for row in rows:
        last = datetime.fromtimestamp(row['last']).strftime('%Y-%m-%d %H:%M')
        lines.append((row['key'], *(row[state] for state in STATES), f'{row["bytes"] / 2**20:.1f}', last,
                      ', '.join(row['studies']) or '-'))
    text = align([list(map(str, line)) for line in lines])
    runs, size = sum(row['done'] for row in rows), sum(row['bytes'] for row in rows)
    return '\n'.join([*text, f'{runs} runs of {len(rows)} identities, {size / 2**20:.1f} MiB; '
                             '--store=prune removes what no study shows and what did not end'])


def prune_store(root, out):
    """Removes runs that did not end, and identities that no study shows; returns (runs, bytes) removed.

    Runs that some process is training now are left alone.
    """
    removed = size = 0
    for row in store_rows(root, out):
        for run in (root / row['key']).glob('*/'):
            if not run.name.isdigit() or row['studies'] and run_state(run) in ('done', 'diverged'):
                continue
            # a run that is being trained is locked
            if lock := claim(run):
                size += sum(file.stat().st_size for file in run.rglob('*') if file.is_file())
                removed += 1
                shutil.rmtree(run)
                lock.release()
                Path(lock.lock_file).unlink(missing_ok=True)
        if not any(path.is_dir() for path in (root / row['key']).iterdir()):
            shutil.rmtree(root / row['key'])
    return removed, size
