"""Flips and cuts in every file that is read again: noticed or without effect; nothing else, no traceback."""
import hashlib
import json
import random
import shutil
from pathlib import Path

import pytest
from drill import cuts, drill_file, flips, outcome
from helpers import TINY, call, flags

import ab
import train
from configurator import configure
from core.data.dataset import Dataset
from core.run.checkpoint import MODEL_FILE, OPTIM_FILE, STATE_FILE
from core.run.files import read_json
from core.run.folder import RunFolder
from lab.study import ledger, pool, runner
from lab.study.gate import Idea, Stream
from model import load_classes

SMALL = TINY | dict(max_iters=3, lr_decay_iters=3, eval_interval=3, save_best=False,
                    always_save_checkpoint=False)
STUDY = dict(variants='alibi', seeds=2, name='s', jobs=1)


@pytest.fixture(scope='module')
def finished(data, tmp_path_factory):
    """A finished run with two checkpoints."""
    out = tmp_path_factory.mktemp('finished') / 'run'
    assert call(train.main, **TINY | dict(dataset=data, out_dir=out, max_iters=4, eval_interval=2)).code == 0
    return out


@pytest.fixture(scope='module')
def studied(data, tmp_path_factory):
    """A folder in which a study has ended, checked and timed, with a run that diverged."""
    folder = tmp_path_factory.mktemp('studied')
    with pytest.MonkeyPatch.context() as patch:
        from helpers import forks
        patch.chdir(folder)
        patch.setattr(pool, 'SPAWN', forks())
        patch.setattr(ab, 'write_page', lambda report, folder: None)
        done = call(ab.main, **SMALL | dict(dataset=data) | STUDY | dict(check='leaks'))
        assert done.code == 0, done
        arms = 'base; hot: learning_rate=1e30 grad_clip=0'
        call(ab.main, **SMALL | dict(dataset=data) | dict(arms=arms, seeds=2, name='hot', jobs=1, check=False,
                                                          price=False))
        rows = [f'{arm},{seed},1.{seed}\n' for arm in 'ab' for seed in (1, 2)]
        Path('r.csv').write_text('arm,seed,loss\n' + ''.join(rows))
        assert call(ab.main, from_csv='r.csv').code == 0
    return folder


@pytest.fixture
def here(studied, tmp_path, monkeypatch):
    """Changes into a copy of `studied`, where no worker is started and no page is written."""
    shutil.copytree(studied / 'out-ab', tmp_path / 'out-ab')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ab, 'write_page', lambda report, folder: None)
    monkeypatch.setattr(runner.Runner, 'run', no_worker)
    return Path('out-ab')


def no_worker(self, tasks, tick=None):
    """Stands in for Runner.run(): says what would be done again, and ends there."""
    if tasks := list(tasks):
        raise ab.Stop(f'begins {len(tasks)} tasks')
    return iter(())


def arm_folder(name, arm):
    saved = json.loads(Path(f'out-ab/{name}/study.json').read_text())
    return Path('out-ab/runs') / next(a['key'] for a in saved['arms'] if a['name'] == arm)


def shown(read):
    """Returns a function that gives the Outcome of a script that prints what read() returns."""
    return lambda: outcome(lambda: print(read()), ['read'])


def report_again(name='s'):
    """Prints a report made once more, all of it."""
    ab.report_again(Path('out-ab') / name)
    report = json.loads(Path(f'out-ab/{name}/report.json').read_text())
    # its seal and the time of day
    del report['sha256'], report['created']
    print(report)


def again(data, **more):
    """Returns a function that gives the Outcome of the study's command, given once more."""
    args = ['ab.py', *flags(**SMALL | dict(dataset=data) | STUDY | more)]

    def play():
        done = outcome(ab.main, args)
        # the time of day, and how often a study was reported
        return done._replace(out='\n'.join(line for line in done.out.splitlines() if 'created' not in line))
    return play


def dice(name):
    return random.Random(f'{name}, 20261201')


# -----------------------------------------------------------------------------
# what a study is judged by

def test_ab_json(here, record_property):
    drill_file(arm_folder('s', 'alibi') / '1338/ab.json', lambda: outcome(report_again, []), dice('ab'),
               record_property)


def test_study_json(here, record_property):
    drill_file(here / 's/study.json', lambda: outcome(report_again, []), dice('study'), record_property)


def test_study_json_when_the_study_goes_on(here, data, record_property):
    drill_file(here / 's/study.json', again(data, check='leaks'), dice('goes on'), record_property,
               n=20, title='study.json, going on')


def test_price_json(here, data, record_property):
    drill_file(here / 's/price.json', again(data, check='leaks'), dice('price'), record_property)


def test_checks_json(here, data, record_property):
    drill_file(arm_folder('s', 'alibi') / 'checks.json', again(data, check='leaks'), dice('checks'),
               record_property, n=30)


def test_failed_json(here, record_property):
    drill_file(arm_folder('hot', 'hot') / '1337/failed.json', lambda: outcome(lambda: report_again('hot'), []),
               dice('failed'), record_property)


def test_losses_json(here, record_property):
    drill_file(here / 'r/losses.json', lambda: outcome(lambda: report_again('r'), []), dice('losses'),
               record_property)


def test_identity_json(here, data, record_property):
    drill_file(arm_folder('s', 'alibi') / 'identity.json', again(data, check='leaks'), dice('identity'),
               record_property, n=20)


def test_ledger(here, record_property):
    path = here / 'ledger.jsonl'
    lines = path.read_bytes()
    path.write_bytes(lines * 3)
    drill_file(path, shown(lambda: ledger.ledger_text(here)), dice('ledger'), record_property,
               n=110, grows=True)


def test_gate_jsonl(tmp_path, record_property):
    ideas = [Idea(f'idea {n}', f'key {n}', 'command', '.') for n in range(4)]
    stream = Stream(tmp_path / 'gate.jsonl')
    for idea in ideas:
        stream.claim(idea)
    # the last whole line may be missing: a kill before it was written leaves the same
    drill_file(stream.path, shown(lambda: [stream.claim(idea) for idea in ideas[:3]]), dice('gate'),
               record_property)


# -----------------------------------------------------------------------------
# runs and data

@pytest.mark.parametrize('name', [STATE_FILE, MODEL_FILE, OPTIM_FILE])
def test_checkpoint(finished, tmp_path, record_property, name):
    shutil.copytree(finished, tmp_path / 'run')

    def load():
        state, model, optim = RunFolder(tmp_path / 'run').load()
        digest = lambda tensors: {k: hashlib.sha256(t.numpy().tobytes()).hexdigest() for k, t in tensors.items()}
        return state, digest(model), digest(optim)
    drill_file(tmp_path / 'run/ckpt/step_00000004' / name, shown(load), dice(name), record_property, n=120)


def test_config_json(finished, tmp_path, record_property):
    """It is what a run without a checkpoint is resumed from."""
    shutil.copytree(finished, tmp_path / 'run')
    shutil.rmtree(tmp_path / 'run/ckpt')
    args = [f'--out_dir={tmp_path}/run', '--init_from=resume']
    config = configure(train.Options, load_classes, args, lambda text: None)
    resolve = lambda: train.resolve(config, RunFolder(tmp_path / 'run'))[:4]
    drill_file(tmp_path / 'run/config.json', shown(resolve), dice('config'), record_property)


def test_result_json(finished, tmp_path, record_property):
    shutil.copytree(finished, tmp_path / 'run')
    path = tmp_path / 'run/result.json'
    drill_file(path, shown(lambda: read_json(path)), dice('result'), record_property)


def test_log_jsonl(finished, tmp_path, record_property):
    """A log has no seal: it is for people. Damage to it ends nothing."""
    shutil.copytree(finished, tmp_path / 'run')
    path, faults = tmp_path / 'run/log.jsonl', []
    raw = path.read_bytes()
    for what, bad in [*flips(raw, dice('log'), 100), *cuts(raw, dice('log'), 100)]:
        path.write_bytes(bad)
        found = shown(RunFolder(tmp_path / 'run').read_log)()
        faults += [f'{what}: {found.fault()}'] if found.fault() or found.code else []
    record_property('log.jsonl', f'flips 100, cuts 100, tracebacks {len(faults)}')
    assert not faults, faults[:5]


@pytest.mark.parametrize('name', ['train.bin', 'val.bin', 'meta.json'])
def test_data(data, tmp_path, record_property, name):
    shutil.copytree(data, tmp_path / 'set')

    def read():
        found = Dataset(str(tmp_path / 'set'), 16)
        return found.hash, found.tokenizer.meta, {split: ids.tolist() for split, ids in found.tokens.items()}
    drill_file(tmp_path / 'set' / name, shown(read), dice(name), record_property)
