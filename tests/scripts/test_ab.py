"""A study as its user sees it: bad arms, pairing, resuming after a kill, and losses trained elsewhere."""
import json
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from helpers import TINY, call, flags, forks, log, wait_for
from scipy.stats import ttest_rel
from studies import descendants, running, start_study, without_times

import ab
import train
from core.data.prepare import prepare_chars
from core.errors import BAD_INPUT, DIVERGED
from core.run.files import read_json
from core.run.folder import RunFolder, last_iteration
from lab.study import pool
from lab.study.runner import ProgressLine
from lab.study.store import code_hash, write_identity

SMALL = TINY | dict(max_iters=6, lr_decay_iters=6, eval_interval=3, log_interval=1, save_best=False,
                    always_save_checkpoint=False)
QUICK = dict(check=False, price=False, jobs=1)
STORE = Path('out-ab/runs')


@pytest.fixture(autouse=True)
def somewhere_else(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if hasattr(os, 'fork'):
        monkeypatch.setattr(pool, 'SPAWN', forks()) # spawned, workers would import torch for half of the time
    handler = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, handler)


@pytest.fixture
def no_page(monkeypatch):
    """Leaves out the page and its plots, which take longer than a small study; test_report.py tests them."""
    monkeypatch.setattr(ab, 'write_page', lambda report, folder: None)


def ran(data, *args, **options):
    return call(ab.main, *args, **SMALL | QUICK | dict(dataset=data) | options)


def report_of(name):
    return read_json(f'out-ab/{name}/report.json')


def run_folder(name, arm, seed):
    """Returns the folder of a run that a study shows."""
    arms = json.loads(Path(f'out-ab/{name}/study.json').read_text())['arms']
    return STORE / next(a['key'] for a in arms if a['name'] == arm) / str(seed)


def training():
    """Returns the folders of runs in the store that have a log."""
    return sorted(file.parent for file in STORE.glob('*/*/log.jsonl'))


def losses(name):
    return {arm['name']: {run['seed']: run['val_loss'] for run in arm['runs']} for arm in report_of(name)['arms']}


@pytest.mark.parametrize('options, says', [
    (dict(), 'nothing to compare'),
    (dict(varaints='alibi'), 'varaints=alibi: no such option of any arm; did you mean variants?'),
    (dict(arms=';', null=True), 'arms=;: names no arm'),
    (dict(variants='nope'), 'no file variants/nope.py'),
    (dict(variants='alibi,alibi'), 'alibi is there twice'),
    (dict(arms='base; : dropout=0.1'), 'has no name'),
    (dict(arms='base; hot: learning_rate'), 'write option=value'),
    (dict(arms='base; hot: "variant=alibi'), 'arms: hot: "variant=alibi: No closing quotation'),
    (dict(arms='base; hot: learning_rate=high'), 'arm hot: --learning_rate=high'),
    (dict(arms='base; hot: seed=3'), 'seed is the same for all arms'),
    (dict(arms='base; x: dataset=dna'), 'arms: x: dataset=dna: changes what is measured'),
    (dict(arms='base; x: eval_iters=2'), 'arms: x: eval_iters=2: changes what is measured'),
    (dict(arms='base; x: curve_iters=2'), 'arms: x: curve_iters=2: changes what is measured'),
    (dict(arms='base; x: eval_train=always'), 'arms: x: eval_train=always: changes what is measured'),
    (dict(arms='base; x: block_size=8'), 'arms: x: block_size=8: changes what is measured'),
    (dict(arms='base; x: batch_size=8', eval_iters=2), 'arm x: eval_iters x batch_size=16: must be the same in all'),
    (dict(arms='base; x: eval_only=True'), 'arms: x: eval_only=True: changes what is measured'),
    (dict(variants='alibi', eval_only=True), 'eval_only=True, init_from=scratch: a study trains each run from scratch'),
    (dict(variants='alibi', init_from='gpt2'), 'init_from=gpt2: is set by ab.py'),
    (dict(variants='alibi', seed=5), 'seed=5: is set by ab.py, for each run; --first_seed moves all seeds'),
    (dict(arms='Mine; mine: dropout=0.1'), 'Mine is there twice'),
    (dict(arms='base; null: dropout=0.1', null=True), 'null is there twice'),
    (dict(variants='alibi', arms='base; b: dropout=0.1'), 'give one of the two'),
    (dict(variants='alibi', window_init=3), 'window_init=3: no such option of any arm'),
    (dict(variants='alibi', baseline='nope'), 'baseline=nope: no such arm'),
    (dict(variants='alibi', name='../x'), 'name=../x: takes the name of a folder in out-ab'),
    (dict(variants='alibi', name='..'), 'name=..: takes the name of a folder in out-ab'),
    (dict(variants='alibi', name='runs'), 'name=runs: takes the name of a folder in out-ab'),
    (dict(variants='alibi', name='Ledger.jsonl'), 'name=Ledger.jsonl: takes the name of a folder in out-ab'),
    (dict(variants='alibi', name='gate.jsonl'), 'name=gate.jsonl: takes the name of a folder in out-ab'),
    (dict(variants='alibi', name='.git'), 'name=.git: takes the name of a folder in out-ab'),
    (dict(variants='alibi', name='con'), 'name=con: takes the name of a folder in out-ab'),
    (dict(variants='alibi', name='a\0b'), 'takes the name of a folder in out-ab'),
    (dict(variants='alibi', name='x' * 201), 'takes the name of a folder in out-ab'),
    (dict(variants='alibi', lr_sweep='0,1'), 'lr_sweep=0,1: takes positive numbers'),
    (dict(variants='alibi', lr_sweep='1,half'), 'lr_sweep=1,half: takes positive numbers'),
    (dict(report=__file__), 'holds no study'),
    (dict(variants='alibi', seeds=1), 'seeds=1: takes auto, or 2 or more'),
    (dict(variants='alibi', max_seeds=3), 'max_seeds=3: takes 4, the runs of the first look, to 64'),
    (dict(variants='alibi', max_seeds=99), 'max_seeds=99: takes 4, '),
    (dict(variants='alibi', budget='5'), 'budget=5: takes a time such as 90s'),
    (dict(variants='alibi', seeds=5, budget='10m'), 'budget=10m: is for seeds=auto'),
    (dict(variants='alibi', check='leak'), 'check takes all | leaks | none'),
    (dict(variants='alibi', looks='10,5'), 'looks=10,5: takes growing numbers of seeds'),
    (dict(variants='alibi', devices='77'), 'devices=77: cuda:77 is not on this machine'),
    (dict(variants='alibi', over='bias=True,False', seeds='auto'), 'seeds=auto: not with --over'),
    (dict(variants='alibi', over='bias=True,False', paired=True), 'paired=True: not with --over'),
    (dict(variants='alibi', over='bias=True,False', looks='5,10'), 'looks=5,10: not with --over'),
    (dict(variants='alibi', over='bias=True,False', null=True), 'null=True: not with --over'),
    (dict(variants='alibi', over='bias=True,False', lr_sweep='1,2'), 'lr_sweep=1,2: not with --over'),
    (dict(variants='alibi', over='bias=True,False', match='time'), 'match=time: not with --over'),
    (dict(variants='alibi', over='bias=True,False', budget='1h'), 'budget=1h: not with --over'),
    (dict(variants='alibi', over='bias=True,False', max_seeds=8), 'max_seeds=8: not with --over'),
    (dict(variants='alibi', over='bias=True'), 'over: bias=True: takes two levels or more'),
    (dict(variants='alibi', cells=15), 'cells=15: are those of --over'),
])
def test_bad_arms_are_one_line(data, options, says):
    assert says in ran(data, **options).line(BAD_INPUT)
    assert not Path('out-ab').exists()


@pytest.mark.parametrize('text, says', [
    ('{"arms"', 'is not a record in JSON'), ('[]', 'is not a record in JSON'),
    ('{}', 'is not what this ab.py writes'), ('{"arms": []}', 'is not what this ab.py writes'),
    ('{"arms": [], "options": {"sedes": 5}}', 'is not what this ab.py writes')])
def test_a_study_edited_by_hand_is_one_line(data, tmp_path, text, says):
    (tmp_path / 'study.json').write_text(text)
    assert f'study.json: {says}' in ran(data, report=tmp_path).line(BAD_INPUT)


@pytest.mark.parametrize('options, says', [
    (dict(), 'gate: judges one idea: --variant=NAME'),
    (dict(variant='alibi,rope'), 'gate: judges one idea'),
    (dict(variant='nope'), 'no file variants/nope.py'),
    (dict(variant='alibi', paired=True), 'paired=True: not for the gate'),
    (dict(variant='alibi', seeds=5), 'seeds=5: not for the gate'),
    (dict(variant='alibi', over='bias=True,False'), 'over=bias=True,False: not for the gate'),
    (dict(arms='base; a: variant=alibi; b: variant=rope'), 'the gate judges one idea; name the baseline and one arm'),
])
def test_what_the_gate_cannot_judge_is_one_line(data, options, says):
    assert says in ran(data, 'gate', **options).line(BAD_INPUT)
    assert not Path('out-ab/gate.jsonl').exists()


def test_the_gate_answers_by_its_exit_code_and_from_memory(data, no_page, monkeypatch):
    """A ruined idea is dropped; asked again, the answer is the same and nothing is trained."""
    monkeypatch.setattr(ab, 'GATE_BASELINE', 5)
    options = dict(arms='base; hot: learning_rate=10', max_iters=3, lr_decay_iters=3)
    done = ran(data, 'gate', '--json', **options)
    answer = json.loads(done.out.splitlines()[-1])
    assert done.code == 10 and (answer['decision'], answer['runs'], answer['tried']) == ('drop', 4, None), done
    assert answer['baseline_runs'] == 5 and answer['level_left'] == pytest.approx(0.05)
    again = ran(data, 'gate', '--json', **options)
    assert again.code == 10 and ', seed ' not in again.out
    assert json.loads(again.out.splitlines()[-1])['tried']['decision'] == 'drop'


# -----------------------------------------------------------------------------
# a study

def test_a_study_is_its_runs(data):
    """Each run, also the second of a process, equals to the bit a run of train.py with the same options."""
    options = dict(variants='alibi', seeds=2, name='s', null=True, dropout=0.1)
    done = ran(data, **options, at_once=1)
    assert done.code == 0, done
    assert 'seed 1338: batches equal in 2 arms' in done.out
    runs_are_alone(data, 's', dropout=0.1)
    report = report_of('s')
    assert report['paired'] == dict(batches_equal=True, init_equal=True, note=report['paired']['note'])
    # the null arm is a noise floor, and no comparison
    comparison, = report['comparisons']
    found = losses('s')
    assert comparison['mean'] == pytest.approx(np.mean([found['alibi'][s] - found['base'][s] for s in (1337, 1338)]))
    assert comparison['verdict'] == "can't tell"
    moved = [found['null'][s] - found['base'][s] for s in (1337, 1338)]
    floor = dict(n=2, mean=pytest.approx(np.mean(moved)), sd=pytest.approx(np.std(moved, ddof=1)))
    assert report['noise_floor'] == floor
    assert 0 < max(map(abs, moved)) < 1e-3
    assert json.loads((STORE.parent / 's/study.json').read_text())['extra']['stored'] == dict(before=0, new=2)

    kept = run_folder('s', 'alibi', 1337).joinpath('ab.json').read_bytes()
    run_folder('s', 'alibi', 1338).joinpath('ab.json').unlink()
    again = ran(data, **options)
    assert again.code == 0 and '5 of 6 runs are done already' in again.out and again.out.count('alibi, seed') == 1
    # what the study trained itself is not what it found
    assert json.loads((STORE.parent / 's/study.json').read_text())['extra']['stored'] == dict(before=0, new=2)
    assert losses('s') == found and run_folder('s', 'alibi', 1337).joinpath('ab.json').read_bytes() == kept

    report = report_of('s')
    assert call(ab.main, '--report', 'out-ab/s').code == 0 and report_of('s') == report
    listed = call(ab.main, '--ledger')
    # the study was reported three times, with one result
    assert '1 comparisons in 1 studies' in listed.out, listed
    assert Path('out-ab/LEDGER.md').read_text() == listed.out


def test_studies_share_runs(data, no_page):
    """A baseline trained once serves another study; other options are other runs, and nothing is lost."""
    assert ran(data, variants='alibi', seeds=2, name='one').code == 0
    two = ran(data, variants='rope', seeds=2, name='two')
    assert '2 of 4 runs are done already' in two.out and 'base, seed' not in two.out
    assert losses('one')['base'] == losses('two')['base']
    # the same name, with other options
    report = report_of('one')
    other = ran(data, variants='alibi', seeds=2, name='one', learning_rate=5e-3)
    assert 'is now in its previous/' in other.out and losses('one')['base'] != losses('two')['base']
    assert report_of('one/previous') == report

    listed = call(ab.main, '--store')
    assert '10 runs of 5 identities' in listed.out and 'one/previous, two' in listed.out
    # an arm that was checked, and never trained
    write_identity(STORE, 'checked-0', dict(code='x'))
    assert call(ab.main, '--store').out == listed.out
    # what no study shows goes, and what did not end
    Path('out-ab/two/study.json').unlink()
    run_folder('one', 'base', 1338).joinpath('ab.json').unlink()
    pruned = call(ab.main, '--store=prune')
    assert pruned.out.startswith('3 runs removed') and '7 runs of 4 identities' in pruned.out


def test_checkpoints_are_kept_on_request_afterwards_too(data, no_page):
    options = dict(variants='rope', seeds=2, name='kept', max_iters=3, eval_interval=3)
    ran(data, **options)
    report, folders = report_of('kept'), [RunFolder(path) for path in sorted(STORE.glob('*/133[78]'))]
    assert len(folders) == 4 and not any(run.checkpoints() or run.spaced() for run in folders)
    # runs that are done are not trained again unasked
    said = ran(data, **options, keep_checkpoints='log')
    assert '4 of these have no checkpoints' in said.out and '--retry=True trains them again' in said.out
    assert not any(run.checkpoints() for run in folders)
    ran(data, **options, keep_checkpoints='log', retry=True)
    for run in folders:
        assert run.load()[0]['step'] == 3 and len(run.spaced()) == 4
    runs_of = lambda report: [arm['runs'] for arm in without_times(report)['arms']]
    assert runs_of(report_of('kept')) == runs_of(report)
    # they are the same runs whatever is kept of them
    said = ran(data, **options, keep_checkpoints=True, retry=True)
    assert '4 of 4 runs are done already' in said.out and 'no checkpoints' not in said.out
    assert '--keep_checkpoints=log' in ran(data, **options, keep='log').line(2)


def test_a_comment_does_not_make_another_run(tmp_path):
    """The identity of a run has what its code computes, not how it is written."""
    def hashed(name, source):
        (tmp_path / name).write_text(source)
        return code_hash(tmp_path / name)

    plain = hashed('a.py', 'def f():\n    return 1 + 2\n')
    assert hashed('b.py', '"""Sums."""\n\ndef f():\n    """Adds."""\n    return (1 + # one\n       2)\n') == plain
    assert hashed('c.py', 'def f():\n    return 1 + 3\n') != plain
    assert hashed('d.py', 'def f():\n    """Nothing."""\n') == hashed('e.py', 'def f():\n    pass\n')


def test_studies_at_the_same_time_train_each_run_once(data):
    """Two studies begin together: what one trains, the other waits for."""
    both = [started(data, name, jobs=1, seeds=2) for name in ('a', 'b')]
    for study in both:
        study.join(120)
        assert study.exitcode == 0
    assert losses('a') == losses('b')
    for folder in training():
        assert (folder / 'output.txt').read_text().count('best val loss') == 1
        assert not (folder / 'previous').exists()


def runs_are_alone(data, name, **options):
    for seed in 1337, 1338:
        for arm, variant in ('base', 'base'), ('alibi', 'alibi'):
            call(train.main, **SMALL | dict(dataset=data, seed=seed, variant=variant, out_dir='alone') | options)
            folder = run_folder(name, arm, seed)
            assert log(folder) == log('alone')
            said = (folder / 'output.txt').read_text()
            assert said.count('best val loss') == 1 and f'/{seed}' in said and f'/{2675 - seed}' not in said


def test_runs_beside_each_other_are_what_they_are_alone(data, no_page):
    assert ran(data, variants='alibi', seeds=2, name='s', at_once=2, dropout=0.1).code == 0
    runs_are_alone(data, 's', dropout=0.1)


def test_a_sweep_gives_each_arm_its_best_learning_rate(data, no_page):
    done = ran(data, arms='base; hot: learning_rate=10', seeds=2, name='l', lr_sweep='0.001,1')
    assert done.code == 0, done
    sweep = report_of('l')['plan']['lr_sweep']
    best = {arm: min(tried, key=tried.get) for arm, tried in sweep['losses'].items()}
    # 1e-5 hardly learns, 10 ruins
    assert best == dict(base='1', hot='0.001') and sweep['seed'] not in (1337, 1338)
    for arm, rates in ('base', {}), ('hot', dict(learning_rate=0.01, min_lr=1e-6)):
        assert f'lr_sweep, {arm}: ' in done.out and f'x{best[arm]} is used' in done.out
        call(train.main, **SMALL | dict(dataset=data, seed=1338, out_dir='alone') | rates)
        assert log(run_folder('l', arm, 1338)) == log('alone')


def test_a_diverged_arm_counts_against_it(data, no_page):
    """The arm is worse at the first look, trains no further, and still counts in Holm's correction."""
    options = dict(arms='base; hot: learning_rate=1e30 grad_clip=0; same: dropout=0', looks='6,7', name='d',
                   max_iters=2, lr_decay_iters=2)
    done = ran(data, **options)
    assert done.line(DIVERGED).startswith('hot: 6 of 7 runs diverged or failed; the others are in out-ab/d/report.html')
    assert 'hot, seed 1337: diverged: diverged at iteration' in done.out
    assert 'arm same: dropout=0; it computes what the baseline does' in done.out
    assert done.out.count('it computes what the baseline does') == 1
    assert 'hot is decided at 6 seeds: worse' in done.out
    report = report_of('d')
    hot, same = report['comparisons']
    assert (hot['n'], hot['verdict'], hot['diverged']['var']) == (6, 'worse', 6) and (same['n'], same['mean']) == (7, 0)
    assert hot['holm_p'] == 2 * hot['p']
    assert [run['status'] for run in report['arms'][1]['runs']] == ['diverged'] * 6 + ['missing']
    again = ran(data, **options, retry=True)
    assert again.out.count('hot, seed') == 6 and 'base, seed' not in again.out


# -----------------------------------------------------------------------------
# over texts and options

@pytest.fixture
def over(data, tmp_path):
    """--over with two texts and two rates."""
    prepare_chars('to be or not to be, that is the question\n' * 60, tmp_path / 'hamlet')
    return f'dataset={data},{tmp_path / "hamlet"}; learning_rate=x0.5,x1'


def test_a_study_over_texts_goes_on_and_shares_its_runs(data, over, no_page, monkeypatch):
    options = dict(variants='alibi', over=over, name='o')
    done = ran(data, **options)
    assert done.code == 0, done
    assert 'alibi: ' in done.out and 'hamlet, lr x0.5' in done.out and '0 of 8 runs are stored' in done.out
    report = report_of('o')
    assert len(report['over']['cells']) == 4 and len(report['arms'][1]['runs']) == 4
    for cell in report['over']['cells']:
        base, alibi = (cell['losses'][name] for name in ('base', 'alibi'))
        assert cell['differences']['alibi']['difference'] == pytest.approx(alibi[0] - base[0])
    mean = np.mean([cell['differences']['alibi']['difference'] for cell in report['over']['cells']])
    assert report['comparisons'][0]['mean'] == pytest.approx(mean)
    # each run is one of train.py with the cell's options
    run = next(run for run in report['arms'][1]['runs'] if run['cell'] == 'hamlet, lr x0.5')
    hamlet = over.split(';')[0].rsplit(',')[1]
    call(train.main, **SMALL | dict(dataset=hamlet, variant='alibi', seed=run['seed'], learning_rate=5e-3, min_lr=5e-4,
                                    out_dir='alone'))
    assert read_json('alone/result.json')['val_loss'] == run['val_loss']
    # once more, and from what is there
    again = ran(data, **options)
    assert '8 of 8 runs are done already' in again.out and without_times(report_of('o')) == without_times(report)
    assert call(ab.main, '--report', 'out-ab/o').code == 0 and without_times(report_of('o')) == without_times(report)
    assert '1 comparisons in 1 studies' in call(ab.main, '--ledger').out
    assert '0 runs removed' in call(ab.main, '--store=prune').out

    # a third rate trains its own cells alone, and an ordinary study finds the runs of its cell
    more = ran(data, variants='alibi', over=f'{over},x2', name='more')
    assert '8 of 12 runs are stored' in more.out and more.out.count(', seed ') == 4
    plain = ran(hamlet, variants='alibi', name='plain', seeds=2, first_seed=run['seed'])
    assert '2 of 4 runs are done already' in plain.out

    # stopped after its third run
    Path('out-ab').rename('whole')
    ended = []

    def stop_at_third(progress, task, status):
        ended.append(task)
        if len(ended) == 3:
            raise KeyboardInterrupt
    with monkeypatch.context() as patch:
        patch.setattr(ProgressLine, 'ended', stop_at_third)
        assert ran(data, **options).code == 130
    assert not Path('out-ab/o/report.json').exists()
    # what there is can be looked at
    assert call(ab.main, '--report', 'out-ab/o').code == 0 and report_of('o')['comparisons'][0]['n'] < 4
    # the others at once, although both rates of a text have one seed
    resumed = ran(data, **options, at_once=4)
    assert resumed.code == 0 and ' of 8 runs are done already' in resumed.out
    assert without_times(report_of('o')) == without_times(report)


def test_a_diverged_cell_is_reported_and_ends_with_3(data, over, no_page):
    options = dict(arms='base; hot: learning_rate=1e30 grad_clip=0', over=over.replace('x0.5', 'x1e-30'), name='o')
    done = ran(data, **options)
    assert done.line(DIVERGED).startswith('hot: 2 of 4 runs diverged or failed; the others are in out-ab/o/report.html')
    cells = {cell['name']: cell['losses']['hot'] for cell in report_of('o')['over']['cells']}
    assert cells['hamlet, lr x1'] == ['Infinity'] and cells['hamlet, lr x1e-30'] != ['Infinity']
    retried = ran(data, **options, retry=True)
    assert retried.code == DIVERGED and retried.out.count(': diverged: ') == 2 and 'base (' not in retried.out


# -----------------------------------------------------------------------------
# kills: of a study in a process that was forked from one with torch imported, and forks its workers

def started(data, name, **more):
    options = SMALL | QUICK | dict(dataset=data, variants='alibi', seeds=2, name=name, jobs=2, max_iters=300,
                                   lr_decay_iters=300, eval_interval=100, checkpoint_minutes=0.005) | more
    return start_study(int, flags(**options))


def ended(study):
    study.join(120)
    assert study.exitcode == 0, Path('said').read_text()


def kill(study):
    """Kills a study; its two workers must not outlive it."""
    children = descendants(study.pid)
    study.kill()
    study.join()
    assert len(children) == 2
    wait_for(lambda: not any(map(running, children)), seconds=20)


@pytest.mark.skipif(not Path('/proc/self/stat').exists(), reason='reads /proc')
def test_no_worker_outlives_its_study(data):
    """A worker that did would train for hours."""
    study = started(data, 'k', max_iters=10_000_000)
    both_train = lambda: sum(last_iteration(f) > 0 for f in training()) == 2
    wait_for(both_train, study.is_alive)
    kill(study)


@pytest.mark.skipif(not Path('/proc/self/stat').exists(), reason='reads /proc')
@pytest.mark.parametrize('moments', [(90,), pytest.param((5, 90, 220), marks=pytest.mark.slow)])
def test_killed_and_continued_is_the_same_study(data, moments):
    ended(started(data, 'k'))
    whole, report = {folder: log(folder) for folder in training()}, report_of('k')
    Path('out-ab').rename('whole')
    for moment in moments: # iterations of both first runs, or so
        study = started(data, 'k')
        wait_for(lambda moment=moment: sum(map(last_iteration, training())) > moment * 2, study.is_alive)
        kill(study)
    ended(started(data, 'k'))
    assert without_times(report_of('k')) == without_times(report)
    assert {folder: log(folder) for folder in training()} == whole


@pytest.mark.skipif(not Path('/proc/self/fd').exists(), reason='lists open files')
@pytest.mark.parametrize('at_once, name', [(1, 'SIGHUP'), (2, 'SIGINT'), *(
    pytest.param(1, name, marks=pytest.mark.slow) for name in ('SIGINT', 'SIGTERM', 'SIGUSR1'))])
def test_a_signal_saves_and_goes_on(data, at_once, name):
    number = getattr(signal, name)
    study = started(data, 'c', max_iters=100_000, lr_decay_iters=100_000, at_once=at_once)
    wait_for(lambda: len(training()) == 2 * at_once, study.is_alive)
    time.sleep(0.3)
    os.kill(study.pid, number)
    study.join(60)
    said = Path('said').read_text()
    last = f'stopped by {name}; the same command goes on with out-ab/c'
    assert study.exitcode == 128 + number and said.splitlines()[-1] == last, said
    assert len(list(STORE.glob('*/*/ckpt'))) == 2 * at_once, said


# -----------------------------------------------------------------------------
# other people's results

def write_csv(rows, header='arm,seed,loss'):
    Path('r.csv').write_text('\n'.join([header, *rows]) + '\n')


def test_from_csv_is_scipy(no_page):
    rng = np.random.default_rng(0)
    base, var = rng.normal(1.5, 0.01, (2, 7))
    write_csv([f'{arm},{seed},{float(x)!r}' for arm, xs in (('a', base), ('b', var)) for seed, x in enumerate(xs)])
    done = call(ab.main, from_csv='r.csv')
    assert done.code == 0, done
    c, = report_of('r')['comparisons']
    test = ttest_rel(var, base)
    low, high = test.confidence_interval()
    found, expected = [c['mean'], c['p'], *c['interval']], [(var - base).mean(), test.pvalue, low, high]
    assert found == pytest.approx(expected, abs=1e-12)
    assert call(ab.main, from_csv='r.csv', baseline='b', name='other').code == 0
    assert report_of('other')['comparisons'][0]['arm'] == 'a'


def test_no_escape_of_a_file_reaches_the_terminal(no_page):
    """Names of arms, columns and files are text: a terminal would obey what they may hold."""
    evil = 'a\x1b[31m\x9bm\x07'
    write_csv([f'{arm},{seed},{1.5 + seed / 100}' for arm in ('base', evil) for seed in range(5)], 'arm,seed,loss')
    Path('r.csv').rename(f'{evil}.csv')
    done = call(ab.main, from_csv=f'{evil}.csv', name='e')
    shown = [done, call(ab.main, '--ledger'), call(ab.main, report='out-ab/e'), call(ab.main, '--store')]
    assert all(one.code == 0 for one in shown) and all('\\x1b[31m' in one.out for one in shown[:3])
    assert not {'\x1b', '\x9b', '\x07'} & set(''.join(one.out + one.err for one in shown))


def test_losses_from_a_file_are_reported_again(no_page):
    write_csv(['a,1,1.5', 'a,2,1.6', 'b,1,1.4', 'b,2,inf'])
    assert call(ab.main, '--from_csv', 'r.csv').code == 0
    report = report_of('r')
    assert call(ab.main, '--report', 'out-ab/r').code == 0
    assert without_times(report_of('r')) == without_times(report)
    assert [run['status'] for run in report['arms'][1]['runs']] == ['done', 'diverged']


@pytest.mark.parametrize('rows, says', [
    (['a,1,1.5', 'a,2,1.5', 'b,1,1.4'], 'r.csv:4: b: 1 run; must be at least 2'),
    (['a,1,1.5', 'a,2,nan', 'b,1,1.4', 'b,2,1.4'], 'r.csv:3'),
    (['a,1,1.5', 'a,1,1.5', 'b,1,1.4'], 'r.csv:3'),
    (['a,1,1.5', 'a,2,1.5'], 'a comparison needs'),
])
def test_bad_csv_is_one_line(rows, says):
    write_csv(rows)
    assert says in call(ab.main, from_csv='r.csv').line(BAD_INPUT)
    assert not Path('out-ab').exists()


def test_an_arm_called_base_is_the_baseline(no_page):
    write_csv([f'{arm},{seed},{1.5 + seed / 100}' for arm in ('mine', 'base') for seed in range(5)])
    done = call(ab.main, from_csv='r.csv')
    assert 'baseline: base (by its name)' in done.out, done
    assert [(c['arm'], c['baseline']) for c in report_of('r')['comparisons']] == [('mine', 'base')]
    assert 'baseline: mine (--baseline)' in call(ab.main, from_csv='r.csv', baseline='mine').out


def test_higher_is_better(no_page):
    """All findings are those of the losses 1 - accuracy, with the signs of accuracies."""
    rng = np.random.default_rng(0)
    accuracies = dict(base=rng.normal(0.6, 0.01, 6), good=rng.normal(0.7, 0.01, 6), bad=rng.normal(0.5, 0.01, 6),
                      same=rng.normal(0.6, 0.02, 6))
    for name, flip in ('up', lambda x: x), ('down', lambda x: -x):
        write_csv([f'{arm},{seed},{float(flip(x))!r}' for arm, xs in accuracies.items() for seed, x in enumerate(xs)],
                  'model,seed,accuracy')
        options = dict(higher_is_better=True, unit='accuracy') if name == 'up' else {}
        done = call(ab.main, from_csv='r.csv', name=name, **options)
        assert done.code == 0, done
        assert (', accuracy\n' in done.out) == (name == 'up') == ('nats' not in done.out)
    up, down = report_of('up'), report_of('down')
    assert [c['verdict'] for c in up['comparisons']] == ['better', 'worse', "can't tell"]
    for c, turned in zip(up['comparisons'], down['comparisons']):
        assert c['mean'] == -turned['mean'] and c['interval'] == [-x for x in turned['interval'][::-1]]
        assert [c[name] for name in ('verdict', 'p', 'holm_p', 'wins', 'p_improve', 'sd')] == [
            turned[name] for name in ('verdict', 'p', 'holm_p', 'wins', 'p_improve', 'sd')]
    assert all('at 6 of 6 seeds' in c['words'] for c in up['comparisons'][:2])
    assert all(f'{c["arm"]}: {c["words"]}\n' in up['tables'][0] for c in up['comparisons'])
    assert up['comparisons'][0]['mean'] > 0 and losses('up')['good'] == dict(enumerate(accuracies['good']))
    assert up['plan']['unit'] == 'accuracy' and up['plan']['higher_is_better']
    assert up['plan']['metric'] == 'accuracy, as given' and '0.6' in up['tables'][0]


@pytest.mark.filterwarnings('error')
def test_losses_far_from_each_other_are_judged(no_page):
    """A perplexity of a run that came close to diverging is a number like any other, and takes no whole line."""
    losses = dict(base=[1.1, 1.2, 1.3, 1.4, 1.5, 1.6], far=[1e99] * 6, wide=[n * 1e98 for n in range(1, 7)],
                  tiny=[1e-99] * 6)
    write_csv([f'{arm},{seed},{x}' for arm, xs in losses.items() for seed, x in enumerate(xs)])
    done = call(ab.main, from_csv='r.csv')
    assert (done.code, done.err) == (0, '') and max(map(len, done.out.splitlines())) < 200
    found = {c['arm']: c for c in report_of('r')['comparisons']}
    assert [found[arm]['verdict'] for arm in ('far', 'wide', 'tiny')] == ['worse', 'worse', 'better']
    assert found['far']['shrunk'] == pytest.approx(1e99, rel=1e-9) and 'nan' not in done.out
    assert '+1e+99' in call(ab.main, '--ledger').out


def test_a_run_that_diverged_is_the_worst_accuracy(no_page):
    write_csv([f'{arm},{seed},{"diverged" if (arm, seed) == ("b", 0) else 0.9}' for arm in 'ab' for seed in range(9)],
              'arm,seed,accuracy')
    assert call(ab.main, from_csv='r.csv', higher_is_better=True).code == 0
    c, = report_of('r')['comparisons']
    assert c['p_improve'] < 0.5 and c['diverged']['var'] == 1


def test_arms_may_have_other_seeds(no_page):
    """An arm with other seeds than the baseline's is compared unpaired."""
    write_csv([f'{arm},{seed},{1.5 + seed / 100}' for arm, n in (('a', 9), ('b', 6)) for seed in range(n)])
    assert call(ab.main, from_csv='r.csv').code == 0
    c, = report_of('r')['comparisons']
    assert (c['test'], c['n'], c['n_base']) == ('Welch', 6, 9)


def test_three_seeds_give_no_verdict(no_page):
    write_csv([f'{arm},{seed},{1.5 - (arm == "b") + seed / 100}' for arm in 'ab' for seed in range(3)])
    assert call(ab.main, from_csv='r.csv').code == 0
    c, = report_of('r')['comparisons']
    assert c['verdict'] == "can't tell" and '5 seeds' in c['words']


def test_without_scipy_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(ab.importlib.util, 'find_spec', lambda name: None)
    assert 'pip install scipy' in call(ab.main, '--ledger').line(BAD_INPUT)
