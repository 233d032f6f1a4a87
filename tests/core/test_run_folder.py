"""Drills for the run folder: processes really die, writes really fail, bytes really change."""
import errno
import json
import math
import os
import pickle
import random
import shutil
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from helpers import forks
from safetensors.torch import save_file

import core.run.checkpoint
import core.run.folder
from core.errors import BAD_INPUT, BUSY, DISK_FULL, NO_CHECKPOINT, Stop
from core.run.checkpoint import MARGIN, MODEL_FILE as MODEL, OPTIM_FILE as OPTIM, STATE_FILE as STATE
from core.run.files import read_json, seal, sha256, write_json
from core.run.folder import RunFolder

CONFIG = dict(options={}, model_args={}, origin={})     # the least that is a config.json of train.py
BIG = 25_000                                # rows: 3 x 2 MB, twice, make a save long enough to be killed in
posix = pytest.mark.skipif(os.name == 'nt', reason='needs SIGKILL and a fork server')


def tensors(step, rows=50, part='model'):
    """Returns the tensors of a checkpoint, a function of the step alone."""
    g = torch.Generator().manual_seed(step * 2 + (part == 'optim'))
    return {f'{part}.{i}': torch.randn(rows, 20, generator=g) for i in range(3)}


def save(run, step, rows=50, **state):
    return run.save(step, tensors(step, rows), tensors(step, rows, 'optim'), {'val_loss': 1 / (step + 1), **state})


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in a)


def check(loaded, step, rows=50):
    state, model, optim = loaded
    assert state['step'] == step
    assert same(model, tensors(step, rows)) and same(optim, tensors(step, rows, 'optim'))


def stops(code, f, *args, **kwargs):
    """Checks that f(...) ends the script with this code and one line; returns the line."""
    with pytest.raises(Stop) as stop:
        f(*args, **kwargs)
    assert stop.value.code == code and '\n' not in str(stop.value)
    return str(stop.value)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def run(tmp_path):
    run = RunFolder(tmp_path / 'out')
    run.lock()
    yield run
    run._lock.close()


# -- kill -9: children of a process that has torch imported, so that each starts at once

@pytest.fixture
def spawn():
    context, children = forks(), []

    def start(target, *args):
        ours, theirs = context.Pipe(duplex=False)
        children.append(context.Process(target=target, args=(theirs, *args), daemon=True))
        children[-1].start()
        theirs.close()
        return children[-1], ours
    yield start
    for child in children:
        child.kill()
        child.join()


def train_on(pipe, out):
    torch.set_num_threads(1)
    run = RunFolder(out)
    run.lock()
    assert not list(run.ckpt.glob('.tmp-*'))            # the dead one's
    step = run.load()[0]['step'] if run.checkpoints() else 0
    run.log_open(step)
    while True:
        run.log({'iter': step})
        step += 1
        save(run, step, BIG)
        pipe.send(step)
        run.prune()


@posix
def test_killed_inside_a_save(tmp_path, spawn, capsys):
    rng, inside, last = random.Random(1), 0, 0
    for _ in range(20):
        child, pipe = spawn(train_on, tmp_path)
        reported = pipe.recv()
        temp = tmp_path / 'ckpt' / f'.tmp-{child.pid}'
        while not temp.exists():
            assert child.is_alive()
        time.sleep(rng.uniform(0, .03))
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        inside += temp.exists()                         # died before the rename
        state, *_ = loaded = RunFolder(tmp_path).load()
        check(loaded, state['step'], BIG)
        # nothing reported is lost; the child went on from `last`
        assert state['step'] >= reported > last
        log = RunFolder(tmp_path).read_log()
        assert [r['iter'] for r in log][:state['step']] == list(range(state['step']))
        last = state['step']
        if inside == 3:
            break
    assert inside == 3
    assert 'skipped' not in capsys.readouterr().err     # never half a checkpoint under its final name


def save_spaced(run, step, content=None):
    return run.save(step, tensors(content or step), None, {'val_loss': None})


def die_at(out, n, spaced):
    """Replaces checkpoint 7 and prunes 6, and dies by SIGKILL at the n-th call that touches the disk."""
    seen = 0

    def hook(event, args):
        nonlocal seen
        if event in ('open', 'os.rename', 'os.mkdir', 'os.remove', 'os.rmdir', 'os.chmod') and str(out) in str(args[0]):
            seen += 1
            if seen == n:
                os.kill(os.getpid(), signal.SIGKILL)
    run = RunFolder(out)
    run.lock()
    sys.addaudithook(hook)
    if spaced:
        save_spaced(run, 7, 70)
    else:
        run.save(7, tensors(70), tensors(70, part='optim'), {'val_loss': 0})
        run.prune(keep=1)


def die_everywhere(pipe, folder, spaced):
    """Dies at each call in turn, as a fork of this process, in folder/1, folder/2 and so on, until one survives."""
    torch.set_num_threads(1)
    for n in range(1, 99):
        out = folder / str(n)
        out.mkdir()
        for step in 6, 7:
            (save_spaced if spaced else save)(RunFolder(out), step)
        if (pid := os.fork()) == 0:
            die_at(out, n, spaced)
            os._exit(0)
        status = os.waitpid(pid, 0)[1]
        if status == 0:
            break
        assert os.WTERMSIG(status) == signal.SIGKILL
    pipe.send(n)


@posix
def test_killed_at_every_call_of_a_save_that_replaces(tmp_path, spawn):
    """After each kill a valid checkpoint 7 is there, old or new, and the next owner cleans up."""
    _, pipe = spawn(die_everywhere, tmp_path, False)
    survived = pipe.recv()
    assert survived > 15                                # the hook does see the calls
    for n in range(1, survived):
        out = tmp_path / str(n)
        for cleaned in False, True:
            if cleaned:
                RunFolder(out).lock()
                assert set(names(out / 'ckpt')) <= {'step_00000006', 'step_00000007'}
            state, model, optim = RunFolder(out).load()
            content = 7 if state['val_loss'] else 70
            assert state['step'] == 7
            assert same(model, tensors(content)) and same(optim, tensors(content, part='optim'))


@posix
def test_killed_at_every_call_of_a_spaced_save_that_replaces(tmp_path, spawn):
    _, pipe = spawn(die_everywhere, tmp_path, True)
    survived = pipe.recv()
    assert survived > 10
    for n in range(1, survived):
        out = tmp_path / str(n)
        for cleaned in False, True:
            if cleaned:
                RunFolder(out).lock()
                assert names(out / 'kept') == ['step_00000006', 'step_00000007']
            _, model, optim = RunFolder(out).load(7, optim=False)
            assert optim is None and (same(model, tensors(7)) or same(model, tensors(70)))


def test_what_is_saved_behind_is_what_the_tensors_were(run, monkeypatch):
    go, write = threading.Event(), core.run.checkpoint.write_tensors
    monkeypatch.setattr(core.run.checkpoint, 'write_tensors', lambda *args: go.wait(60) and write(*args))
    model, optim = tensors(1), tensors(1, part='optim')
    run.save_behind(1, model, optim, {'val_loss': 0.5})
    for t in (*model.values(), *optim.values()):
        t.zero_()
    assert not run.checkpoints()
    go.set()
    run.wait()
    check(run.load(), 1)
    for step in 2, 3, 4: # one after the other, and pruned
        run.save_behind(step, tensors(step), tensors(step, part='optim'), {'val_loss': step})
    run.wait()
    assert [int(f.name[5:]) for f in run.checkpoints()] == [4, 3, 1]


@pytest.mark.parametrize('told_by', ['wait', 'save_behind'])
def test_what_goes_wrong_behind_is_told_once(run, monkeypatch, told_by):
    save(run, 1)
    with monkeypatch.context() as patch:
        patch.setattr(core.run.checkpoint, 'save_file', full_disk)
        run.save_behind(2, tensors(2), {}, {})
        arguments = (3, tensors(3), {}, {}) if told_by == 'save_behind' else ()
        assert 'No space left on device' in stops(DISK_FULL, getattr(run, told_by), *arguments)
    run.wait()
    check(run.load(), 1)


def full_disk(*args):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


# -- one writer

def hold_lock(pipe, out):
    run = RunFolder(out)
    run.lock()
    pipe.send('held')
    time.sleep(60)


@posix
def test_lock(tmp_path, spawn):
    child, pipe = spawn(hold_lock, tmp_path)
    assert pipe.recv() == 'held'
    before = (tmp_path / '.lock').read_bytes()
    start = time.monotonic()
    line = stops(BUSY, RunFolder(tmp_path).lock)
    assert time.monotonic() - start < 1
    assert str(tmp_path) in line and f'process {child.pid} on {os.uname().nodename}' in line
    assert (tmp_path / '.lock').read_bytes() == before
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    run = RunFolder(tmp_path)
    run.lock()                                          # free at once
    assert (tmp_path / '.lock').read_text().split()[0] == str(os.getpid())


def test_lock_removes_what_the_dead_left(tmp_path):
    ckpt = tmp_path / 'ckpt'
    (ckpt / '.tmp-123').mkdir(parents=True)
    (ckpt / '.tmp-123' / MODEL).write_bytes(b'half')
    RunFolder(tmp_path).lock()
    assert names(ckpt) == []


def test_lock_where_nobody_can_write(tmp_path, monkeypatch):
    (tmp_path / 'file').write_text('')
    for out in tmp_path / 'file', tmp_path / 'file' / 'out':
        assert str(out) in stops(BAD_INPUT, RunFolder(out).lock)

    def read_only(*args, **kwargs):
        raise OSError(errno.EROFS, 'Read-only file system')
    monkeypatch.setattr(Path, 'mkdir', read_only)
    assert 'Read-only' in stops(BAD_INPUT, RunFolder(tmp_path).lock)


def test_lock_without_locks(tmp_path, monkeypatch, capsys):
    def no_locks(fd, blocking):
        raise OSError(errno.ENOLCK, 'No locks available')
    monkeypatch.setattr(core.run.folder, 'lock_descriptor', no_locks)
    RunFolder(tmp_path).lock()
    assert 'No locks available' in capsys.readouterr().err


@posix
def test_links_do_not_lead_outside(tmp_path):
    outside, out = tmp_path / 'outside', tmp_path / 'out'
    (outside / '.tmp-mine').mkdir(parents=True)
    (outside / 'notes').write_text('keep')
    for name in 'ckpt', 'aside', 'previous', '.moving', '.lock':
        out.mkdir()
        (out / name).symlink_to(outside / 'notes' if name == '.lock' else outside)
        stops(BAD_INPUT, RunFolder(out).lock)
        shutil.rmtree(out)
    out.mkdir()
    for name in '.tmp-log.jsonl', 'log.jsonl', '.tmp-config.json', 'config.json':
        (out / name).symlink_to(outside / 'notes')
    run = RunFolder(out)
    run.lock()
    run.log_open()
    run.log({'iter': 1})
    run.write_json('config.json', {'a': 1})
    assert (outside / 'notes').read_text() == 'keep' and names(outside) == ['.tmp-mine', 'notes']


# -- save and load

def test_round_trip(run):
    base = torch.arange(24.).view(4, 6)
    model = {'transposed': base.t(), 'slice': base[1:3], 'base': base, 'tied': base, 'scalar': torch.tensor(3.5),
             'empty': torch.zeros(0, 4), 'half': base.bfloat16(), 'count': torch.tensor([2 ** 40]),
             'parameter': torch.nn.Parameter(base)}
    state = {'val_loss': math.pi, 'best': math.inf, 'options': {'lr': 6e-4, 'a': 'é'}, 'vocab': ['NaN', '\n', '✓']}
    folder = run.save(250, model, {}, state)
    assert folder == run.ckpt / 'step_00000250' and names(run.ckpt) == [folder.name]
    loaded, tensors_, optim = run.load()
    assert same(tensors_, {k: v.detach() for k, v in model.items()}) and optim == {}
    assert {k: loaded[k] for k in state} == state and loaded['step'] == 250
    # JSON, without Python's NaN and Infinity
    json.loads((folder / STATE).read_bytes(), parse_constant=pytest.fail)
    assert loaded['files'][MODEL] == {'bytes': (folder / MODEL).stat().st_size, 'sha256': sha256(folder / MODEL)}
    assert {(folder / f).stat().st_mode for f in (MODEL, OPTIM, STATE)} == {(folder / STATE).stat().st_mode}
    # what is loaded is not a view of the file
    (folder / MODEL).write_bytes(bytes((folder / MODEL).stat().st_size))
    assert same(tensors_, {k: v.detach() for k, v in model.items()})
    # never a checkpoint that load() refuses
    with pytest.raises(ValueError, match='state.json'):
        run.save(500, {}, {}, {'vocab': 'x' * (16 << 20)})
    assert names(run.ckpt) == [folder.name]


@posix
def test_on_the_disk_before_it_has_its_name(run, monkeypatch):
    events, fsync, rename = [], os.fsync, Path.rename
    monkeypatch.setattr(os, 'fsync', lambda fd: events.append(os.fstat(fd).st_ino) or fsync(fd))
    monkeypatch.setattr(Path, 'rename', lambda self, target: events.append('rename') or rename(self, target))
    run.log_open()
    del events[:]
    folder = save(run, 1)
    before, after = events[:events.index('rename')], events[events.index('rename'):]
    for path in folder / MODEL, folder / OPTIM, folder / STATE, folder, run.log_path:
        assert path.stat().st_ino in before, path
    assert run.ckpt.stat().st_ino in after and run.out_dir.stat().st_ino in after


def test_which(run, capsys):
    line = stops(NO_CHECKPOINT, run.load)
    assert str(run.out_dir) in line and 'found: none' in line
    for step, val_loss in (100, 2.0), (200, 1.5), (300, math.nan), (400, 1.75), (500, None):
        save(run, step, val_loss=val_loss)
    (run.ckpt / 'step_backup').mkdir()
    assert [f.name for f in run.checkpoints()] == [f'step_00000{n}00' for n in (5, 4, 3, 2, 1)]
    for which, step in ('latest', 500), ('best', 200), (300, 300), ('300', 300), ('step_00000300', 300):
        check(run.load(which), step)
    line = stops(NO_CHECKPOINT, run.load, 150)
    assert '150' in line and 'step_00000500' in line
    assert 'last' in stops(BAD_INPUT, run.load, 'last')
    (run.ckpt / 'step_00000200' / STATE).write_text('{}')
    # as a save does for a moment
    shutil.copytree(run.ckpt / 'step_00000500', run.ckpt / 'step_00000500.old')
    assert [f.name for f in run.checkpoints()][:2] == ['step_00000500', 'step_00000500.old']
    assert not capsys.readouterr().err
    # the next best, and it says which one it had to pass over
    check(run.load('best'), 400)
    assert f'step_00000200{os.sep}state.json' in capsys.readouterr().err
    stops(NO_CHECKPOINT, run.load, 200)


def damaged(raw, rng):
    for share in 0, .01, .1, .5, .99, .99999:
        yield f'cut at {share}', raw[:min(int(len(raw) * share), len(raw) - 1)]
    for _ in range(20):
        bit = rng.randrange(len(raw) * 8)
        yield f'bit {bit}', raw[:bit // 8] + bytes([raw[bit // 8] ^ 1 << bit % 8]) + raw[bit // 8 + 1:]


@pytest.mark.parametrize('name', [MODEL, OPTIM, STATE])
def test_damage_is_found(run, name, capsys):
    save(run, 1)
    file = save(run, 2) / name
    raw = file.read_bytes()
    for what, bad in [*damaged(raw, random.Random(name)), ('missing', None)]:
        file.unlink() if bad is None else file.write_bytes(bad)
        for which in 'latest', 'best':
            check(run.load(which), 1)
            warning = capsys.readouterr().err
            assert warning.count('\n') == 1 and str(file) in warning, what
            assert name == STATE or not what.startswith('cut') or f'{len(bad):,} bytes' in warning
    stops(NO_CHECKPOINT, run.load, 2)
    shutil.rmtree(run.ckpt / 'step_00000001')
    assert 'step_00000002' in stops(NO_CHECKPOINT, run.load)
    if name == OPTIM:                                   # to sample needs no optimizer
        state, model, optim = run.load(optim=False)
        assert state['step'] == 2 and same(model, tensors(2)) and optim is None


def test_every_byte_of_state_counts(run, capsys):
    file = save(run, 1, note='1e5 \u00e9 1E5', lr=1e-05) / STATE
    raw = file.read_bytes()
    for i in range(len(raw)):
        # bit 5: e and E
        file.write_bytes(raw[:i] + bytes([raw[i] ^ 1 << (5 if i % 2 else i % 8)]) + raw[i + 1:])
        stops(NO_CHECKPOINT, run.load)
    file.write_bytes(raw)
    check(run.load(), 1)


# -- hostile checkpoints: whoever makes one can also seal it

def sealed(folder, **change):
    """Writes a state.json whose checksums are right, with some keys changed."""
    files = {f: {'bytes': (folder / f).stat().st_size, 'sha256': sha256(folder / f)} for f in (MODEL, OPTIM)}
    (folder / STATE).write_bytes(seal({'step': 1, 'files': files, **change}))


class Payload:
    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return os.mkdir, (self.marker,)


def test_nothing_is_unpickled(run, tmp_path, capsys):
    marker = tmp_path / 'marker'
    folder = save(run, 1)
    good = (folder / MODEL).read_bytes()
    torch.save(Payload(marker), tmp_path / 'saved')
    header = json.dumps({'a': {'dtype': 'F32', 'shape': [1 << 60], 'data_offsets': [0, 1 << 62]}}).encode()
    for bad in (pickle.dumps(Payload(marker)), (tmp_path / 'saved').read_bytes(), b'\xff' * 8 + b'{}',
                len(header).to_bytes(8, 'little') + header, good.replace(b'"F32"', b'"F99"'), b'', bytes(100)):
        for name in MODEL, OPTIM:
            (folder / MODEL).write_bytes(good)
            (folder / OPTIM).write_bytes(good)
            (folder / name).write_bytes(bad)
            sealed(folder)
            stops(NO_CHECKPOINT, run.load)
    (folder / MODEL).write_bytes(good)
    for raw in pickle.dumps(Payload(marker)), b'[' * 100_000, b'[]', b'1', b'{"sha256": 1}', b' ' * (17 << 20):
        (folder / STATE).write_bytes(raw)
        stops(NO_CHECKPOINT, run.load)
    assert f'{STATE}: larger than' in capsys.readouterr().err.splitlines()[-1]          # and was not read
    assert not marker.exists()


def test_names_in_state_lead_nowhere(run, tmp_path, monkeypatch):
    folder = save(run, 1)
    honest = run.load()[0]['files']
    secret = tmp_path / 'x'
    save_file({'secret': torch.zeros(3)}, secret)
    entry = {'bytes': secret.stat().st_size, 'sha256': sha256(secret)}
    opened = []
    monkeypatch.setattr(core.run.checkpoint, 'sha256', lambda path: opened.append(path) or sha256(path))
    sealed(folder, files={**honest, '../../x': entry, str(secret): entry}, config='__import__("os").abort()')
    check(run.load(), 1)
    assert opened == [folder / MODEL, folder / OPTIM] and secret.exists()
    for files in ({'../../x': entry, OPTIM: honest[OPTIM]}, {MODEL: '../../x', OPTIM: honest[OPTIM]}, [], None,
                  {MODEL: {'bytes': -1, 'sha256': []}, OPTIM: {}}):
        sealed(folder, files=files)
        stops(NO_CHECKPOINT, run.load)
    for step in 2, '../../x', None:
        sealed(folder, step=step)
        stops(NO_CHECKPOINT, run.load)
    for val_loss in 'low', [1], {}, True, -10 ** 400:
        sealed(folder, val_loss=val_loss)
        check(run.load('best'), 1)


@posix
def test_a_pipe_is_not_waited_for(run):
    folder = save(run, 1)
    (folder / MODEL).unlink()
    os.mkfifo(folder / MODEL)
    (folder / STATE).write_bytes(seal({'step': 1, 'files': {MODEL: {'bytes': 0, 'sha256': ''}}}))
    stops(NO_CHECKPOINT, run.load)
    (folder / STATE).unlink()
    os.mkfifo(folder / STATE)
    stops(NO_CHECKPOINT, run.load)


# -- full disks

def fill_disk(pipe, out):
    import resource
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    try:
        save(RunFolder(out), 2, rows=5000)
    except Stop as stop:
        pipe.send((stop.code, str(stop)))


@posix
def test_file_size_limit(run, spawn):
    save(run, 1)
    _, pipe = spawn(fill_disk, run.out_dir)
    code, line = pipe.recv()
    assert code == DISK_FULL and str(run.ckpt) in line and 'File too large' in line
    assert names(run.ckpt) == ['step_00000001']
    check(run.load(), 1)


def test_full_before_saving(run, monkeypatch):
    save(run, 1)
    need = 6 * 5000 * 20 * 4
    usage = shutil.disk_usage(run.out_dir)
    monkeypatch.setattr(shutil, 'disk_usage', lambda path: usage._replace(free=need))
    monkeypatch.setattr(core.run.checkpoint, 'write_tensors', lambda *args: pytest.fail('tried all the same'))
    line = stops(DISK_FULL, save, run, 2, rows=5000)
    assert str(run.ckpt) in line and f'{need:,} free' in line and f'{need + MARGIN:,} bytes needed' in line
    assert names(run.ckpt) == ['step_00000001']


@pytest.mark.parametrize('write', [save, save_spaced])
@pytest.mark.parametrize('step', [1, 2])
def test_full_at_every_call_of_a_save(run, monkeypatch, step, write):
    """Also if the disk fills up while the only checkpoint is replaced."""
    save(run, 1)
    save_spaced(run, 1)
    fsync, calls = os.fsync, 0
    for n in range(1, 99):
        def full(fd, n=n):
            nonlocal calls
            calls += 1
            if calls == n:
                raise OSError(errno.ENOSPC, 'No space left on device')
            fsync(fd)
        calls = 0
        monkeypatch.setattr(os, 'fsync', full)
        try:
            write(run, step)
        except Stop as stop:
            assert stop.code == DISK_FULL and str(run.kept if write is save_spaced else run.ckpt) in str(stop)
        assert not list(run.out_dir.glob('*/.tmp-*'))
        check(run.load(1), 1)
        assert same(RunFolder(run.out_dir).load('1', optim=False)[1], tensors(1))
        if calls < n:
            break
    assert n > 5


def test_full_or_gone_while_logging(run, monkeypatch):
    def full(fd):
        raise OSError(errno.ENOSPC, 'No space left on device')
    run.log_open()
    run.log({'iter': 0})
    run.write_json('config.json', {'a': 1})
    with monkeypatch.context() as patch:
        patch.setattr(os, 'fsync', full)
        for f in run.log_open, lambda: run.write_json('config.json', {'a': 2}):
            assert str(run.out_dir) in stops(DISK_FULL, f)
    if os.path.exists('/dev/full'):
        run._log = open('/dev/full', 'w')
        monkeypatch.setattr(run, 'keep_log', lambda: None) # which would go on in log.jsonl
        assert str(run.out_dir) in stops(DISK_FULL, run.log, {'iter': 1})
    assert run.read_log() == [{'iter': 0}]
    assert read_json(run.out_dir / 'config.json') == {'a': 1}
    assert names(run.out_dir) == ['.lock', 'config.json', 'log.jsonl']
    shutil.rmtree(run.out_dir)
    for f in lambda: run.write_json('result.json', {}), lambda: save(run, 1):
        assert 'vanished' in stops(BAD_INPUT, f)


# -- the log

def test_floats_survive_the_log(run):
    rng = random.Random(3)
    floats = [rng.uniform(-1, 1) * 10 ** rng.randint(-300, 300) for _ in range(500)]
    floats += [.1 + .2, 5e-324, -0.0, math.inf, -math.inf, math.nan]
    run.log_open()
    for i, x in enumerate(floats):
        run.log({'iter': i, 'loss': x, 'note': 'é\n', 'stats': [x]})
    assert [r['loss'].hex() for r in run.read_log()] == [x.hex() for x in floats]
    assert [float(r['stats'][0]).hex() for r in run.read_log()] == [x.hex() for x in floats]
    for line in run.log_path.read_text().splitlines():
        json.loads(line, parse_constant=pytest.fail)


def test_torn_line(run, capsys):
    for cut in range(1, len(b'{"iter": 1, "loss": 2.5}\n')):
        run.log_open()
        run.log({'iter': 0, 'loss': 1.5})
        run.log({'iter': 1, 'loss': 2.5})
        run._log.close()
        run.log_path.write_bytes(run.log_path.read_bytes()[:-cut])
        assert run.read_log() == [{'iter': 0, 'loss': 1.5}]
        run.log_open(1)
        run.log({'iter': 1, 'loss': 2.5})
        assert run.read_log() == [{'iter': 0, 'loss': 1.5}, {'iter': 1, 'loss': 2.5}]
        assert names(run.out_dir) == ['.lock', 'log.jsonl']
    assert not capsys.readouterr().err
    run.log_path.write_bytes(b'\0\0\0\n[1]\n{"iter": "x"}\n\xff\n{"iter": 4}\n')
    assert run.read_log() == [{'iter': 4}]
    assert 'log.jsonl, line 1' in capsys.readouterr().err
    run.log_path.unlink()
    assert run.read_log() == []


def test_going_on_from_a_step(run, capsys):
    run.log_open()
    run.log({'seed': 1})
    for i in range(40):
        run.log({'iter': i, 'loss': i / 3})
        if i % 10 == 0:
            run.log({'iter': i, 'val_loss': i / 7})
            save(run, i)
    raw = run.log_path.read_bytes().splitlines(keepends=True)
    run.log_open(20)
    # the bytes of what stays are untouched
    assert run.log_path.read_bytes() == b''.join(raw[:1 + 20 + 2])
    assert [f.name for f in run.checkpoints()] == [f'step_000000{n}0' for n in (2, 1, 0)]
    # or the next resume would jump there
    assert names(run.out_dir / 'aside') == ['step_00000030']
    assert str(run.ckpt / 'step_00000030') in capsys.readouterr().err
    run.log({'iter': 20})
    assert len(run.read_log()) == 24


# -- housekeeping

def test_prune(run):
    for step, val_loss in enumerate([3, 1, 2, 1, None, 4, 5, math.nan]):
        save(run, step, val_loss=val_loss)
    run.prune()
    # of two equal ones, the one load() takes
    assert [int(f.name[5:]) for f in run.checkpoints()] == [7, 6, 3]
    check(run.load('best'), 3)
    run.prune(keep=1)
    assert names(run.ckpt) == ['step_00000003', 'step_00000007']


def test_spaced_checkpoints_are_there_to_look_at_alone(run):
    assert [step for step in range(50) if core.run.checkpoint.is_spaced(step)] == [
        *range(9), 10, 12, 14, 16, 20, 24, 28, 32, 40, 48]
    # thirteen a decade
    assert sum(map(core.run.checkpoint.is_spaced, range(1000, 10000))) == 13
    for step in 4, 5, 6, 7:
        save(run, step)
    for step in 1, 2, 8, 10:
        run.save_behind(step, tensors(step), None, {'val_loss': -step})
    run.wait()
    assert names(run.kept) == [f'step_000000{n}' for n in ('01', '02', '08', '10')]
    assert names(run.kept / 'step_00000008') == [MODEL, STATE]
    assert [int(f.name[5:]) for f in run.spaced()] == [10, 8, 2, 1]
    # what one resumes from, or is best, is another
    check(run.load(), 7)
    assert run.load('best')[0]['step'] == 7 and [int(f.name[5:]) for f in run.checkpoints()] == [7, 6]
    assert same(run.load(2, optim=False)[1], tensors(2))
    assert 'spaced: 1 2 8 10)' in stops(NO_CHECKPOINT, run.load, 2)
    stops(NO_CHECKPOINT, run.load, 3, optim=False)
    # a damaged one is not read
    (run.kept / 'step_00000001' / MODEL).write_bytes(b'')
    stops(NO_CHECKPOINT, run.load, 1, optim=False)
    # those after the step that a run goes on from are written again
    run.log_open(8)
    assert names(run.kept) == ['step_00000001', 'step_00000002', 'step_00000008']
    assert not (run.out_dir / 'aside').exists()
    run.write_json('config.json', CONFIG)
    previous = RunFolder(run.archive_previous())
    assert len(previous.spaced()) == 3 and not run.spaced()


def test_prune_goes_on_when_a_delete_fails(run, monkeypatch, capsys):
    for step in range(4):
        save(run, step)
    rmtree = shutil.rmtree

    def fail(path, ignore_errors=False):
        if 'step_00000000' in str(path) and not ignore_errors:
            raise OSError(errno.EBUSY, 'Device or resource busy')
        rmtree(path, ignore_errors)
    monkeypatch.setattr(shutil, 'rmtree', fail)
    run.prune()
    assert names(run.ckpt) == ['.tmp-step_00000000', 'step_00000002', 'step_00000003']
    assert 'step_00000000: Device or resource busy' in capsys.readouterr().err


def test_a_new_run_archives_the_previous_one(run, monkeypatch):
    def train(loss, saves=True):
        run.write_json('config.json', CONFIG)
        run.log_open()
        run.log({'iter': 0, 'loss': loss})
        if saves:
            save(run, loss)

    def archived(loss):
        """Checks that previous/ ... hold the runs 1 to loss, whole and alone."""
        for n in range(1, loss + 1):
            folder = RunFolder(run.out_dir / ('previous' if n == 1 else f'previous.{n - 1}'))
            assert names(folder.out_dir) == ['ckpt', 'config.json', 'log.jsonl', *(['result.json'] if n == 1 else [])]
            check(folder.load(), n)
        assert not (run.out_dir / f'previous.{loss}').exists()

    assert run.archive_previous() is None
    train(1)
    run.write_json('result.json', {'loss': 1})
    assert run.archive_previous() == run.out_dir / 'previous'
    assert names(run.out_dir) == ['.lock', 'previous']
    archived(1)
    train(2)
    # a trained model is never deleted
    assert run.archive_previous() == run.out_dir / 'previous.1'
    archived(2)
    # a false start leaves nothing
    train(3, saves=False)
    assert run.archive_previous() is None
    assert names(run.out_dir) == ['.lock', 'previous', 'previous.1']

    replace, rename = Path.replace, Path.rename
    for n in range(1, 5):                               # interrupted at each move, it finishes the next time
        train(2 + n)
        moves = 0

        def interrupted(self, target, move=replace, n=n):
            nonlocal moves
            moves += 1
            if moves == n:
                raise KeyboardInterrupt
            return move(self, target)
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(Path, 'replace', interrupted)
            patch.setattr(Path, 'rename', lambda self, target: interrupted(self, target, rename))
            run.archive_previous()
        if n < 4:
            # checkpoints are moved last, so that until then a resume finds them
            check(run.load(), 2 + n)
        run.check_ours()
        assert run.archive_previous() == run.out_dir / f'previous.{1 + n}'
        archived(2 + n)


@pytest.mark.parametrize('name', ['result.json', 'config.json', 'log.jsonl', 'aside', 'ckpt'])
def test_files_of_others_are_refused(run, name):
    """A folder with a config.json or ckpt/ of another program is none for a run."""
    theirs = run.out_dir / name
    if '.' in name:
        theirs.write_text('{"model": "llama"}\n')
    else:
        (theirs / 'step_00001000').mkdir(parents=True)
        (theirs / 'step_00001000/weights.bin').write_bytes(b'theirs')
    assert f'holds {name}, which no run of train.py wrote' in stops(BAD_INPUT, run.check_ours)
    # beside a run of ours they are moved with it, but never deleted
    run.write_json('config.json', CONFIG)
    run.check_ours()


def test_unfinished_files_of_others_stay(tmp_path):
    for name in '.tmp-notes', '.tmp-12', '.tmp-step_00000004':
        (tmp_path / 'ckpt' / name).mkdir(parents=True)
    RunFolder(tmp_path).lock()
    assert names(tmp_path / 'ckpt') == ['.tmp-notes']


@posix
def test_a_lock_that_is_somebody_elses_file(tmp_path):
    notes, lock = tmp_path / 'notes', tmp_path / 'out/.lock'
    lock.parent.mkdir()
    for text in '12 host\n', 'my notes\n':
        notes.write_text(text)
        if text == '12 host\n':
            os.link(notes, lock)
        else:
            lock.write_text(text)
        assert str(lock) in stops(BAD_INPUT, RunFolder(lock.parent).lock)
        assert notes.read_text() == lock.read_text() == text
        lock.unlink()
    os.mkfifo(lock)
    assert str(lock) in stops(BAD_INPUT, RunFolder(lock.parent).lock)


@posix
def test_a_log_deleted_under_a_run_is_written_again(run, capsys):
    run.log_open()
    run.log({'iter': 0})
    run.log_path.unlink()
    run.log({'iter': 1})
    assert [record['iter'] for record in run.read_log()] == [0, 1]
    assert 'was deleted' in capsys.readouterr().err
    # an editor puts a new file in its place
    edited = run.log_path.with_name('edited')
    edited.write_bytes(run.log_path.read_bytes().splitlines(keepends=True)[0])
    edited.replace(run.log_path)
    run.log({'iter': 2})
    assert [record['iter'] for record in run.read_log()] == [0, 2]


@posix
def test_a_folder_replaced_by_a_file_under_a_run(run):
    run.log_open()
    save(run, 1)
    run.out_dir.rename(run.out_dir.with_name('moved'))
    run.out_dir.write_text('theirs')
    for f in lambda: run.log({'iter': 1}), lambda: save(run, 2), lambda: run.write_json('result.json', {}):
        assert 'vanished or was replaced' in stops(BAD_INPUT, f)
    assert run.out_dir.read_text() == 'theirs'
    check(RunFolder(run.out_dir.with_name('moved')).load(), 1)


def test_a_checkpoint_put_aside_twice_is_there_twice(run):
    for note in 'one', 'two':
        save(run, 1)
        save(run, 2, note=note)
        run.log_open(1)
    assert names(run.out_dir / 'aside') == ['step_00000002', 'step_00000002.1']


def test_the_best_is_that_of_what_is_measured_now(run):
    """Losses on another text, or on another part of it, say nothing about the model's."""
    options = dict(eval_iters=2, curve_iters=0, batch_size=4)
    for step, (loss, data, more) in enumerate([
            (1, 'a', {}), (3, 'b', {}), (2, 'b', {}), (2.5, 'b', {}), (2.2, 'b', {}), (1.5, 'b', dict(eval_iters=9))]):
        save(run, step, val_loss=loss, data=data, options=options | more)
        assert run.load('best')[0]['step'] == [0, 1, 2, 2, 2, 5][step]
    run.prune()
    assert [int(f.name[5:]) for f in run.checkpoints()] == [5, 4]
    # batch_size counts where eval_iters limits what is read
    save(run, 6, val_loss=7, data='b', options=options | dict(eval_iters=9, batch_size=8))
    assert run.load('best')[0]['step'] == 6


def test_a_failed_save_is_told_at_the_next_log_line(run, monkeypatch):
    run.log_open()
    monkeypatch.setattr(core.run.checkpoint, 'save_file', full_disk)
    run.save_behind(2, tensors(2), {}, {})
    while not run._saving.done():
        time.sleep(.001)
    assert 'No space left on device' in stops(DISK_FULL, run.log, {'iter': 1})


def test_write_json(run):
    run.write_json('result.json', {'val_loss': 1.5, 'worst': math.inf})
    record = json.loads((run.out_dir / 'result.json').read_text(), parse_constant=pytest.fail)
    assert record.items() >= {'val_loss': 1.5, 'worst': 'Infinity'}.items()
    assert names(run.out_dir) == ['.lock', 'result.json']


# -----------------------------------------------------------------------------
# sealed records

RECORD = dict(loss=1.4375, seeds=[1337, 1338], worst=math.inf, name='soft é', more=dict(sha256='0' * 64))


def test_a_sealed_record_reads_back(tmp_path):
    for record in ({}, RECORD):
        write_json(tmp_path / 'a.json', record)
        assert read_json(tmp_path / 'a.json') == record


def test_every_flip_and_cut_of_a_sealed_record_is_noticed(tmp_path):
    path = tmp_path / 'a.json'
    write_json(path, RECORD)
    raw = path.read_bytes()
    flips = [raw[:n] + bytes([raw[n] ^ 1 << bit]) + raw[n + 1:] for n in range(len(raw)) for bit in range(8)]
    for damaged in (*flips, *(raw[:n] for n in range(len(raw)))):
        path.write_bytes(damaged)
        assert str(path) in stops(BAD_INPUT, read_json, path)


def test_a_field_with_the_name_of_the_seal_is_not_lost(tmp_path):
    with pytest.raises(ValueError, match='sha256'):
        write_json(tmp_path / 'a.json', dict(sha256={}))
    # read by another program and written again, a record is sealed anew
    write_json(tmp_path / 'a.json', dict(a=1))
    write_json(tmp_path / 'a.json', json.loads((tmp_path / 'a.json').read_text()) | dict(a=2))
    assert read_json(tmp_path / 'a.json') == dict(a=2)


def test_records_without_a_seal_are_read(tmp_path):
    path = tmp_path / 'a.json'
    # as in config.json of older versions
    path.write_text('{"options": {}, "sha256": {"model.py": "00"}}')
    assert read_json(path)['sha256'] == {'model.py': '00'}
    path.write_text('{"val_loss": 1.5, "worst": "Infinity"}')
    assert read_json(path) == dict(val_loss=1.5, worst=math.inf)
