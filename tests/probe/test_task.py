"""probe.py task: what the tasks ask can be known, and is all that is judged; the verdicts are ab.py's."""
from pathlib import Path

import pytest
import torch
from helpers import call, forks

import ab
import probe
from core.data.dataset import Dataset
from core.run.files import read_json
from lab.probe import open_runs, task
from lab.probe.seeds import by_arm
from lab.study import pool


@pytest.fixture(autouse=True)
def somewhere_else(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pool, 'SPAWN', forks())


def answer(name, row, i):
    """What a perfect reader of row[: i + 1] says comes next."""
    past = row[:i + 1]
    if name == 'copy':
        return row[1 + past[::-1].index(task.SIGN)]
    # after the token's earlier occurrence
    earlier = max(j for j in range(i) if past[j] == past[i])
    return past[earlier + 1]


@pytest.mark.parametrize('name', task.TASKS)
def test_what_is_judged_can_be_known(name):
    tokens, judged, vocab_size = task.TASKS[name](200, torch.Generator().manual_seed(1))
    assert tokens.min() == 0 and tokens.max() == vocab_size - 1 and (tokens[:, 0] == task.START).all()
    for row in tokens.tolist():
        assert [answer(name, row, i) for i in judged] == [row[i + 1] for i in judged]
    # by no position alone: each answer is found at many distances
    if name == 'induction':
        distances = {max(j for j in range(i) if row[j] == row[i]) - i for row in tokens.tolist() for i in judged}
        assert distances == set(range(-16, -3))
    if name == 'recall':
        places = {row.index(row[i]) for row in tokens.tolist() for i in judged}
        assert places == set(range(1, 13, 2))


@pytest.mark.parametrize('name', task.TASKS)
def test_a_set_is_the_task(name, tmp_path, monkeypatch):
    monkeypatch.setattr(task, 'EXAMPLES', dict(train=300, val=40))
    T = task.write_task(name, tmp_path / name)
    path = tmp_path / name / 'train.bin'
    written = path.stat().st_mtime_ns
    assert task.write_task(name, tmp_path / name) == T and path.stat().st_mtime_ns == written
    data = Dataset(str(tmp_path / name), T)
    for x, y in data.batch('train', 0, 8, 1), next(data.windows('val', 40))[:2]:
        for row, targets in zip(x.tolist(), y.tolist(), strict=True):
            judged = [i for i, target in enumerate(targets) if target != -1]
            assert judged and all(answer(name, row, i) == targets[i] for i in judged)
    assert data.count_windows('val') == 40


def test_the_verdicts_are_those_of_a_study(monkeypatch):
    monkeypatch.setattr(task, 'EXAMPLES', dict(train=300, val=40))
    monkeypatch.setattr(ab, 'write_page', lambda report, folder: None)
    options = dict(task='recall', seeds=2, check='none', n_embd=16, max_iters=4, lr_decay_iters=4)
    done = call(probe.main, 'task', '--arms=base; one: n_layer=1', **options)
    assert done.code == 0, done
    folder, = Path('out-ab').glob('recall-*')
    report = read_json(folder / 'report.json')
    arm, = report['comparisons']
    assert f'one: {arm["words"]}' in done.out and 'answers right' in done.out
    assert report['recipe']['dataset'] == str(Path('out-tasks/recall')) and report['command'].startswith('python ')
    page = (folder / 'probe/task.html').read_text()
    assert 'A guess is right once in 16' in page
    # the models are there to be looked into
    looked = call(probe.main, 'induction', out_dir=folder)
    assert looked.code == 0 and 'one has not learned to repeat' in looked.out


@pytest.mark.parametrize('options, says', [
    (dict(task='sort', variants='rope'), 'task=sort'),
    (dict(dataset='shakespeare_char', variants='rope'), 'dataset=shakespeare_char: is the task\'s'),
    (dict(ledger=True), 'are for ab.py'),
    (dict(), 'nothing to compare'),
])
def test_bad_options_are_one_line(options, says, monkeypatch):
    monkeypatch.setattr(task, 'EXAMPLES', dict(train=30, val=4))
    assert says in call(probe.main, 'task', **options).line(2)


@pytest.mark.slow
def test_a_model_that_cannot_look_back_far_enough_cannot_copy(monkeypatch):
    """12 runs of 15 s on one slow core."""
    monkeypatch.setattr(ab, 'write_page', lambda report, folder: None)
    near = 'near: variant=sliding_window window=8 full_every=0'
    done = call(probe.main, 'task', f'--arms=base; {near}', task='copy', name='copy', check='none')
    assert done.code == 0, done
    arm, = read_json('out-ab/copy/report.json')['comparisons']
    assert arm['verdict'] == 'worse' and arm['mean'] > 2
    # of 30 tokens
    right = {arm: [task.accuracy(run) for run in runs] for arm, runs in by_arm(open_runs('out-ab/copy')).items()}
    assert sum(right['base']) / len(right['base']) > 0.9 and max(right['near']) < 0.1
