"""Studies killed anywhere, and everything at once; continued, their report is that of an undisturbed study."""
import json
import os
import random
import shutil
import signal
import time
from functools import partial
from pathlib import Path

import pytest
from helpers import TINY, flags, log, wait_for
from studies import descendants, running, start_study, without_times
from test_full_disk import disk, fill  # noqa: F401

from core.run.folder import last_iteration

STORE = Path('out-ab/runs')
SMALL = TINY | dict(max_iters=200, lr_decay_iters=200, eval_interval=100, log_interval=1, save_best=False,
                    always_save_checkpoint=False, checkpoint_minutes=0.005, dropout=0.1)
STUDY = dict(variants='alibi', seeds=2, jobs=2, name='k', check=False)
DOCUMENTED = {0, 2, 3, 4, 5, 6, 7, 130}


@pytest.fixture(autouse=True)
def somewhere_else(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope='module')
def undisturbed(data, tmp_path_factory):
    """Gives the report, the logs and the ledger of the study when nothing happens to it."""
    here = os.getcwd()
    os.chdir(tmp_path_factory.mktemp('undisturbed'))
    try:
        finish(start(data))
        return results()
    finally:
        os.chdir(here)


def start(data, hook=int, **more):
    return start_study(hook, flags(**SMALL | STUDY | dict(dataset=data) | more))


def finish(study, codes=(0,)):
    study.join(180)
    assert study.exitcode in codes, (study.exitcode, said())
    assert 'Traceback' not in said(), said()


def said():
    return Path('said').read_text()


def training():
    """Returns the folders of runs in the store that have a log."""
    return sorted(file.parent for file in STORE.glob('*/*/log.jsonl'))


def results():
    report = json.loads(Path('out-ab/k/report.json').read_text())
    del report['sha256']
    report = without_times(report)
    for arm in report['arms']:
        # timed anew
        del arm['price'], arm['loss_at_equal_time']
    for comparison in report['comparisons']:
        for name in [name for name in comparison if 'time' in name or 'price' in name or 'cost' in name]:
            del comparison[name]
    entries = [json.loads(line) for line in Path('out-ab/ledger.jsonl').read_text().splitlines()]
    return report, {str(folder): log(folder) for folder in training()}, [entry['comparisons'] for entry in entries]


def differences(a, b, where=''):
    """Yields what differs between two results."""
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        for name in a:
            yield from differences(a[name], b[name], f'{where}.{name}')
    elif isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)) and len(a) == len(b):
        for n, pair in enumerate(zip(a, b)):
            yield from differences(*pair, f'{where}[{n}]')
    elif a != b:
        yield where, str(a)[:200], str(b)[:200]


def kill(study, number=signal.SIGKILL):
    """Kills a study, whose workers must not outlive it by more than five seconds."""
    children = descendants(study.pid)
    os.kill(study.pid, number)
    study.join()
    killed = time.monotonic()
    wait_for(lambda: not any(map(running, children)), seconds=20)
    return time.monotonic() - killed


def slow_report(marker, where):
    """Makes the report, or what follows it, take long; the marker says that it has begun."""
    import ab
    real = getattr(ab, where)

    def slow(*args):
        marker.touch()
        time.sleep(3)
        return real(*args)
    setattr(ab, where, slow)


def killed_at(moment, data, dice):
    """Starts the study and kills it at this moment; returns how long its workers lived on."""
    marker = Path('marker').absolute()
    marker.unlink(missing_ok=True)
    if moment == 'checks':
        study = start(data, check='leaks')
        wait_for(lambda: Path('said').exists() and 'arm alibi' in said(), study.is_alive)
        time.sleep(dice.uniform(0, 3))
    elif moment in ('build_report', 'publish', 'add_to_ledger'):
        study = start(data, partial(slow_report, marker, moment))
        wait_for(marker.exists, study.is_alive, 120)
        time.sleep(dice.uniform(0, 0.3))
    elif moment == 'prices':
        study = start(data)
        wait_for(lambda: Path('said').exists() and 'arm alibi' in said(), study.is_alive)
        time.sleep(dice.uniform(0, 1))
    else:
        study = start(data)
        wait_for(lambda: sum(map(last_iteration, training())) > moment, study.is_alive, 120)
    return kill(study)


MOMENTS = ['checks', 'prices', 5, 150, 500, 'build_report', 'publish', 'add_to_ledger']


def test_killed_anywhere_is_the_same_study(data, undisturbed, record_property):
    dice, outlived = random.Random(1), []
    for moment in MOMENTS:
        outlived.append(killed_at(moment, data, dice))
    finish(start(data))
    assert not list(differences(results(), undisturbed))
    record_property('a study killed', f'{len(MOMENTS)} times: {", ".join(map(str, MOMENTS))}; '
                                      f'its workers ended after at most {max(outlived):.1f} s')
    assert max(outlived) < 5


def test_a_signal_saves_and_goes_on(data, undisturbed, record_property):
    """A scheduler's notice, and the same command when the machine is back, four times in a row."""
    sent = {30: signal.SIGTERM, 160: signal.SIGHUP, 290: signal.SIGINT, 420: signal.SIGUSR1}
    for moment, number in sent.items():
        study = start(data)
        wait_for(lambda moment=moment: sum(map(last_iteration, training())) > moment, study.is_alive, 120)
        kill(study, number)
        assert study.exitcode == 128 + number and 'the same command goes on' in said().splitlines()[-1], said()
        assert 'Traceback' not in said()
    finish(start(data))
    assert not list(differences(results(), undisturbed))
    record_property('a study stopped', ', '.join(number.name for number in sent.values()))


def test_everything_at_once(disk, data, undisturbed, monkeypatch, record_property):  # noqa: F811
    """A worker killed, the disk full, the ledger torn: with --retry the command ends as if nothing had been."""
    monkeypatch.chdir(disk)
    study, codes = start(data), []
    wait_for(lambda: sum(map(last_iteration, training())) > 60, study.is_alive, 120)
    # 1. a worker dies while it trains
    worker = next(pid for pid in descendants(study.pid) if running(pid))
    os.kill(worker, signal.SIGKILL)
    wait_for(lambda: 'its process ended with -9' in said(), lambda: True, 60)
    # 2. the disk is full while the others train on
    fill(disk)
    study.join(180)
    codes.append(study.exitcode)
    assert 'Traceback' not in said(), said()
    # 3. started again on the full disk, it says so
    study = start(data, retry=True)
    study.join(180)
    codes.append(study.exitcode)
    assert set(codes) <= DOCUMENTED - {0}, (codes, said())
    # 4. room again, and a line of the ledger that a kill cut short, after one of another study
    (disk / 'ballast').unlink()
    ledger = Path('out-ab/ledger.jsonl')
    ledger.write_text('{"name": "torn", "created": "2026-01-')
    finish(start(data, retry=True))
    ended = Path('out-ab/ledger.jsonl').read_text().splitlines()
    ledger.write_text('\n'.join(line for line in ended if '"torn"' not in line) + '\n')
    assert not list(differences(results(), undisturbed))
    record_property('a worker killed, a full disk, a torn ledger', f'exit codes {codes}, then the same report')


def test_a_study_on_a_full_disk_goes_on(disk, data, undisturbed, monkeypatch, record_property): # noqa: F811
    """With room again the same command goes on; nobody has to know --retry."""
    monkeypatch.chdir(disk)
    codes = []
    for moment in 30, 300:
        study = start(data)
        wait_for(lambda moment=moment: sum(map(last_iteration, training())) > moment, study.is_alive, 120)
        fill(disk)
        study.join(180)
        codes.append(study.exitcode)
        assert study.exitcode == 6 and 'Traceback' not in said(), (study.exitcode, said())
        (disk / 'ballast').unlink()
    finish(start(data))
    assert not list(differences(results(), undisturbed))
    record_property('a study on a full disk', f'exit codes {codes}, then the same report')


def test_damage_to_a_finished_run_is_not_a_verdict(data, undisturbed):
    """A run whose ab.json is damaged is named, and once deleted is trained again."""
    finish(start(data))
    broken = next(STORE.glob('alibi*/*/ab.json'))
    raw = broken.read_bytes()
    broken.write_bytes(raw[:len(raw) // 2])
    study = start(data)
    study.join(120)
    assert study.exitcode == 2 and str(broken) in said().splitlines()[-1], said()
    shutil.rmtree(broken.parent)
    finish(start(data))
    assert not list(differences(results(), undisturbed))
