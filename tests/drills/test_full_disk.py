"""A disk that really is full: a line, exit code 6, all before it intact; with room again it goes on."""
import os
import subprocess
from functools import partial
from pathlib import Path

import pytest
from drill import Run
from helpers import call, nothing, same_run

import train
from core.errors import DISK_FULL
from core.run.folder import RunFolder

# a checkpoint takes 0.4 MB, and is written only where 1 MB is free besides
LARGE = dict(n_embd=32, max_iters=12, eval_interval=2, dropout=0.1)
DISK = 6 << 20


@pytest.fixture
def disk(tmp_path, record_property):
    """Gives a small disk of its own; None where mounting one is not allowed."""
    folder = tmp_path / 'disk'
    folder.mkdir()
    mount = ['mount', '-t', 'tmpfs', '-o', f'size={DISK}', 'drill', folder]
    if subprocess.run(mount, capture_output=True).returncode:
        record_property('full disk', 'no tmpfs can be mounted here: RLIMIT_FSIZE alone')
        pytest.skip('no tmpfs can be mounted here; test_file_size_limit is the drill then')
    yield folder
    subprocess.run(['umount', '-l', folder], check=True)


def fill(folder, leave=0):
    """Fills the disk up to `leave` bytes."""
    with open(Path(folder) / 'ballast', 'wb', buffering=0) as f:
        for size in 1 << 16, 1 << 12:
            try:
                while os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize > leave:
                    f.write(bytes(size))
            except OSError:
                pass


def full_at_save(folder, n):
    """Fills the disk in the n-th save, between its look at the room and its first byte."""
    import core.run.checkpoint
    real, saves = core.run.checkpoint.save_file, []

    def save(*args):
        saves.append(args)
        # two files each
        if len(saves) == 2 * n - 1:
            fill(folder, leave=1 << 16)
        real(*args)
    core.run.checkpoint.save_file = save


def full_at_step(folder, at):
    from core.training.train_step import TrainStep
    real = TrainStep.__call__

    def call(self, it, *args):
        if it == at:
            fill(folder)
        real(self, it, *args)
    TrainStep.__call__ = call


def full_from_the_start(folder):
    fill(folder)


def small_files(limit):
    import resource
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))


def ends_full(run, hook):
    """Starts the run, which must end with exit code 6, a line naming its folder, and nothing half done."""
    child = run.start(hook)
    child.join(120)
    said = run.said()
    assert child.exitcode == DISK_FULL, (child.exitcode, said)
    assert 'Traceback' not in said and str(run.out) in said.splitlines()[-1], said
    assert not [f.name for f in run.out.rglob('.tmp*')]


def goes_on(run, tmp_path):
    if RunFolder(run.out).checkpoints():
        RunFolder(run.out).load()
    # a run that could not even begin is begun
    run.started = (run.out / 'config.json').exists()
    run.finish(nothing)
    assert call(train.main, **run.options | dict(out_dir=tmp_path / 'whole')).code == 0
    same_run(run.out, tmp_path / 'whole', LARGE['max_iters'])


@pytest.mark.parametrize('when', ['start', 'first save', 'third save', 'step'])
def test_full_disk(disk, data, tmp_path, when, record_property):
    run = Run(tmp_path, data, **LARGE)
    run.out = disk / 'run'
    hook = {'start': partial(full_from_the_start, disk), 'first save': partial(full_at_save, disk, 1),
            'third save': partial(full_at_save, disk, 3), 'step': partial(full_at_step, disk, 7)}[when]
    ends_full(run, hook)
    (disk / 'ballast').unlink()
    goes_on(run, tmp_path)
    record_property(f'full disk, {when}', 'exit code 6, continued to the same run')


def test_file_size_limit(data, tmp_path, record_property):
    run = Run(tmp_path, data, **LARGE)
    ends_full(run, partial(small_files, 50_000))
    goes_on(run, tmp_path)
    record_property('file size limit', 'exit code 6, continued to the same run')


def test_preparing_on_a_full_disk(disk):
    import runpy

    from drill import outcome
    from helpers import ROOT, TEXT
    text, out = disk / 'text.txt', disk / 'set'
    text.write_bytes(TEXT.read_bytes()[:200_000])
    prepare = runpy.run_path(str(ROOT / 'data/text/prepare.py'))['main']
    fill(disk, leave=100_000)
    found = outcome(prepare, ['prepare.py', str(text), f'--out={out}'])
    assert found.code == DISK_FULL and not found.fault() and not list(out.glob('*')), found
    (disk / 'ballast').unlink()
    assert outcome(prepare, ['prepare.py', str(text), f'--out={out}']).code == 0
