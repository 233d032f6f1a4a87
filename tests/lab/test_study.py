"""The parts of a study: its arms, the identity of a run, workers, and results read from its folders."""
import ast
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import ROOT, TINY, flags, wait_for
from pool_tasks import Word, run_word

import ab
import model
import train
from configurator import arguments, construct, options_of, parse_known
from core.assemble import variant_names
from core.data.dataset import Dataset
from core.data.prepare import prepare_chars
from core.device.flops import flops_per_token
from core.device.machine import Machine
from core.errors import BAD_INPUT, Stop
from core.run.files import read_json, write_json
from core.training import evaluation
from lab.stats import holm
from lab.study import arm as arm_module, pool
from lab.study.arm import matched_baseline, parse_arms
from lab.study.preparation import checks_code, checks_file, price_arms, stored_checks
from lab.study.results import arm_result, build_report, load_run, load_runs, loss_at_cost
from lab.study.schema import Curve, to_dict
from lab.study.store import RUNS, studies_by_key, write_identity
from lab.study.study import Findings, Study
from lab.study.worker import PriceTask, TaskGroup, TaskResult, TrainTask, record_failure, run_task, sample_text
from model import load_classes

pytestmark = pytest.mark.usefixtures('somewhere_else')
SMALL = TINY | dict(max_iters=6, lr_decay_iters=6, eval_interval=3, log_interval=1, save_best=False,
                    always_save_checkpoint=False)


def arms_of(data, **options):
    known, given = options_of(ab.Options), arguments(flags(**SMALL | dict(dataset=data) | options))
    o = construct(ab.Options, parse_known(known, given))
    return parse_arms(o, [g for g in given if g.name not in known])


def study_of(arms, seeds=(1, 2, 3, 4), **options):
    findings = Findings('python ab.py', None, '2026-01-31T12:00:00Z', {})
    return Study(Path('study'), arms, ab.Options(**options), {arm.name: list(seeds) for arm in arms}, findings)


def task_of(study, arm, seed):
    return TrainTask(arm, seed, str(study.run_folder(arm, seed)))


# -----------------------------------------------------------------------------
# arms

def test_arms_of_a_list_of_variants(data):
    base, soft, both = arms_of(data, variants='soft_window,alibi+gated_attention', window_init=16)
    assert [a.options.variant for a in (base, soft, both)] == ['base', 'soft_window', 'alibi+gated_attention']
    assert soft.model_args['window_init'] == 16 and 'window_init' not in base.model_args | both.model_args
    assert base.options.max_iters == 6 and base.model_args['vocab_size'] == 52


def test_variants_stand_on_the_variant_of_the_recipe(data):
    assert [a.options.variant for a in arms_of(data, variant='rope', variants='gqa')] == ['rope', 'rope+gqa']


def test_any_option_may_differ(data):
    base, far, cool = arms_of(data, arms='base; far: variant=soft_window window_init=128; cool: learning_rate=1e-4')
    assert (far.options.variant, far.model_args['window_init']) == ('soft_window', 128)
    assert cool.options.learning_rate == 1e-4 and base.options.learning_rate == SMALL['learning_rate']
    assert [a.name for a in arms_of(data, arms='base; b: dropout=0.1', baseline='b')] == ['b', 'base']


def test_the_baseline_is_known_by_its_name(data):
    """As in a table of losses: an arm called base is the baseline wherever it stands."""
    assert [a.name for a in arms_of(data, arms='mine: dropout=0.1; base')] == ['base', 'mine']


def test_names_that_differ_in_a_character_are_other_runs(data):
    arms = arms_of(data, arms='base; a b: dropout=0.5; a_b: learning_rate=0.5; A-b: weight_decay=0.5')
    study = study_of(arms)
    folders = [str(study.run_folder(arm, 1)).casefold() for arm in arms]
    assert len(set(folders)) == 4
    # in a study from before the store they shared one
    old = [arm.as_dict() | dict(key='') for arm in arms]
    d = dict(arms=old, options={}, pairs={}, seeds=[1], extra=vars(study.findings))
    with pytest.raises(Stop, match='study: arms a b and a_b have one folder'):
        Study.from_dict(study.folder, d, ab.Options)


@pytest.mark.parametrize('name', ['..', 'runs', 'price.json', 'con', 'ledger.jsonl', 'a/b', '~', 'Ab', 'x' * 300])
def test_any_name_of_an_arm_gives_a_folder_of_its_own(data, name):
    arms = arms_of(data, arms=f'base; {name}: dropout=0.5')
    folder = Path('out-ab') / ab.default_name('', arms, ab.Options())
    assert folder.parent == Path('out-ab') and len(folder.name) <= 80 and ab.is_study_name(folder.name)
    study = study_of(arms)
    assert study.run_folder(arms[1], 1).parents[1] == RUNS
    # a study from before the store
    study.in_store, arms[1].key = False, ''
    assert study.run_folder(arms[1], 1).parents[1] == study.folder


def test_no_study_takes_the_place_of_another(data):
    """A folder that is used again and again keeps every study that was in it, and the store their runs."""
    rates = 1e-3, 2e-3, 3e-3
    for rate in rates:
        study = study_of(arms_of(data, arms='base', null=True, learning_rate=rate))
        moved = study.archive_other()
        write_run(study, study.baseline, 1, 1.5)
        study.save()
    assert moved.name == 'previous.1'
    found = [read_json(Path('study', place, 'study.json')) for place in ('previous', 'previous.1', '')]
    assert [saved['arms'][0]['options']['learning_rate'] for saved in found] == list(rates)
    assert len(studies_by_key(Path('.'))) == 3


@pytest.mark.parametrize('name', ['ab.json', 'failed.json'])
def test_a_record_of_another_run_is_refused(data, name):
    """A run that lies in another's place, as after a cp -r, is named and not judged."""
    base, alibi = arms_of(data, variants='alibi')
    study = study_of([base, alibi])
    task = task_of(study, base, 1)
    if name == 'ab.json':
        run_task(TaskGroup([task]), pool.Slot('', 1), {})
    else:
        record_failure(task, TaskResult('failed', 'out of memory'))
    mine = study.run_folder(base, 1) / name
    assert load_run(study, base, 1).status == study.state(base, 1)
    for arm, seed in (base, 2), (alibi, 1):
        theirs = study.run_folder(arm, seed) / name
        theirs.parent.mkdir(parents=True)
        theirs.write_bytes(mine.read_bytes())
        with pytest.raises(Stop, match=f'{theirs}: is the record of another run, {study.key(base)} seed 1') as stop:
            load_run(study, arm, seed)
        assert stop.value.code == BAD_INPUT


def test_a_damaged_record_is_never_read(data):
    """A flipped byte or a cut in any file that a verdict or price rests on is named, or the file is made anew."""
    arms = arms_of(data, variants='alibi')
    study, rng = study_of(arms), np.random.default_rng(0)
    for arm in arms:
        for seed in study.seeds_of(arm):
            write_run(study, arm, seed, 1.5 + seed / 100)
    study.save()
    read_study = lambda: Study.from_dict(study.folder, read_json(study.folder / 'study.json'), ab.Options)
    write_json(study.folder / 'price.json', dict(identity={}, results={}))
    for path, read in ((study.run_folder(arms[1], 2) / 'ab.json', lambda: load_runs(study)),
                       (study.folder / 'study.json', read_study),
                       (study.folder / 'price.json', lambda: price_arms(study, None, 'price.json'))):
        whole = path.read_bytes()
        for damaged in damages(whole, rng):
            path.write_bytes(damaged)
            with pytest.raises(Stop, match=f'{path}: is ') as stop:
                read()
            assert stop.value.code == BAD_INPUT
        path.write_bytes(whole)


def test_what_can_be_made_anew_is(data, capsys):
    base, = arms_of(data, arms='base', null=True)
    study, rng = study_of([base]), np.random.default_rng(0)
    key = study.key(base)
    path = RUNS / key / 'identity.json'
    checks_path, found = checks_file(study, base), dict(status='ok', why=None, lines=[])
    write_json(checks_path, dict(identity=key, which='all', code=checks_code(), found=found))
    whole, whole_checks = path.read_bytes(), checks_path.read_bytes()
    assert stored_checks(study, base, 'leaks') == found
    for damaged, damaged_checks in zip(damages(whole, rng), damages(whole_checks, rng)):
        path.write_bytes(damaged)
        write_identity(RUNS, key, study.identity(base))
        assert path.read_bytes() == whole and f'warning: {path}: is ' in capsys.readouterr().err
        checks_path.write_bytes(damaged_checks)
        assert stored_checks(study, base, 'leaks') is None and f'warning: {checks_path}: is ' in capsys.readouterr().err
    # those of another arm are not this one's
    write_json(checks_path, dict(identity='other', which='all', code=checks_code(), found=found))
    assert stored_checks(study, base, 'leaks') is None


def damages(whole, rng, n=25):
    """Yields these bytes with one bit flipped, and cut, n times each."""
    for at in rng.integers(len(whole), size=n):
        flipped = bytearray(whole)
        flipped[at] ^= 1 << rng.integers(8)
        yield bytes(flipped)
        yield whole[:at]


def test_matched_baselines_hit_within_a_percent(data):
    """For the model of config/ab_shakespeare_cpu.py, in parameters and in FLOPs of the whole training."""
    size = dict(n_layer=4, n_head=4, n_embd=128, block_size=64, max_iters=800, lr_decay_iters=800)
    base, *others = arms_of(data, variants='gated_attention,embedding_gate,surprise,gqa,mod', **size)
    flops = {}
    for arm in (base, *others):
        classes = load_classes(arm.options.variant)
        _, train_flops = flops_per_token(classes, classes.GPTConfig(**arm.model_args))
        flops[arm.name] = dict(flops_per_token=train_flops)
    for arm in others:
        wide, longer = (matched_baseline(base, arm, match, flops) for match in ('params', 'flops'))
        assert wide.meta_model().get_num_params() == pytest.approx(arm.meta_model().get_num_params(), rel=0.01)
        assert longer.options.max_iters == longer.options.lr_decay_iters
        spent = [a.options.max_iters * flops[b.name]['flops_per_token'] for a, b in ((longer, base), (arm, arm))]
        assert spent[0] == pytest.approx(spent[1], rel=0.01)


# -----------------------------------------------------------------------------
# what a run depends on

def imported_files(file):
    """Returns the files of the repository that a file imports, at its top or elsewhere."""
    found = set()
    for node in ast.walk(ast.parse((ROOT / file).read_text(encoding='utf-8'))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            names = [node.module, *(f'{node.module}.{alias.name}' for alias in node.names)]
        found |= {f"{name.replace('.', '/')}.py" for name in names}
    return {name for name in found if (ROOT / name).exists()}


def test_code_that_computes_is_part_of_what_a_run_is(data):
    """A run's identity has all that training imports, for all variants, and nothing that examines models."""
    arms = arms_of(data, variants=','.join(name for name in variant_names() if name != 'base'))
    code = {name for arm in arms for name in arm.identity('')['code']}
    waiting = ['train.py', *(f'variants/{name}.py' for name in variant_names() if name != 'base')]
    found = set(waiting)
    while waiting:
        new = imported_files(waiting.pop()) - found
        found |= new
        waiting += new
    assert found <= code and not any(name.startswith('lab/') for name in code)


def test_edited_code_is_another_run(data, monkeypatch):
    """An edit of a variant's file leaves the baseline's runs where they are."""
    keys = lambda: [study_of([arm]).key(arm) for arm in arms_of(data, variants='alibi')]
    base, alibi = keys()
    # the hash of alibi.py alone is another
    known = arm_module.code_hash
    monkeypatch.setattr(arm_module, 'code_hash', lambda path: 'edited' if path.name == 'alibi.py' else known(path))
    base_then, alibi_then = keys()
    assert base_then == base and alibi_then != alibi


# -----------------------------------------------------------------------------
# workers

def test_what_one_run_comes_to_is_its_own(data, monkeypatch):
    """Four runs at once: one fails, and two that do not fit into memory are trained again, alone."""
    arm, = arms_of(data, arms='base', null=True)
    study, alone, trained, state = study_of([arm]), train.train, [], {}

    def crowded(config, signals):
        seed = config.options.seed
        trained.append(seed)
        yield
        if seed == 2:
            raise ValueError('its own')
        if seed > 2 and trained.count(seed) == 1:
            raise torch.OutOfMemoryError('CUDA out of memory.')
        return (yield from alone(config, signals))

    monkeypatch.setattr(train, 'train', crowded)
    results = run_task(TaskGroup([task_of(study, arm, seed) for seed in (1, 2, 3, 4)]), pool.Slot('', 1), state)
    assert [result.status for result in results] == ['done', 'failed', 'done', 'done'] and state['retire']
    assert 'ValueError: its own' in results[1].reason and trained == [1, 2, 3, 4, 3, 4]
    assert [study.state(arm, seed) for seed in (1, 2, 3, 4)] == ['done', 'failed', 'done', 'done']


@pytest.mark.parametrize('spoil, why', [
    (lambda self, *args, **options: [][0], 'IndexError: list index out of range'),
    (lambda self, *args, **options: (_ for _ in ()).throw(torch.OutOfMemoryError('CUDA out of memory.')),
     'OutOfMemoryError: CUDA out of memory.')])
def test_a_text_that_cannot_be_written_costs_no_run(data, monkeypatch, spoil, why):
    """The sample is for the page: whatever its decoding raises, the run counts, and the report says why."""
    arm, = arms_of(data, arms='base', null=True)
    study = study_of([arm])
    monkeypatch.setattr(model.GPT, 'stream', spoil)
    task = TrainTask(arm, 1, str(study.run_folder(arm, 1)), first=True)
    result, = run_task(TaskGroup([task]), pool.Slot('', 1), {})
    run = load_run(study, arm, 1)
    assert (result.status, run.status, run.val_loss) == ('done', 'done', result.value)
    assert run.sample is None and arm_result(study, arm, [run]).no_sample == why


def test_a_text_without_line_breaks_has_a_sample(tmp_path):
    prepare_chars('to be or not to be, that is the question: ' * 100, tmp_path / 'flat')
    arm, = arms_of(tmp_path / 'flat', arms='base', null=True, vocab_size=64)
    study = study_of([arm])
    task = TrainTask(arm, 1, str(study.run_folder(arm, 1)), first=True)
    result, = run_task(TaskGroup([task]), pool.Slot('', 1), {})
    run = load_run(study, arm, 1)
    assert result.status == 'done' and set(run.sample) <= set('to be or not to be, that is the question: ')


def test_a_study_runs_by_the_records_of_its_runs(data):
    """Curves come from the sealed record: a log that is lost, or edited, moves no figure."""
    arm, = arms_of(data, arms='base', null=True)
    study = study_of([arm])
    run_task(TaskGroup([task_of(study, arm, 1)]), pool.Slot('', 1), {})
    before = load_run(study, arm, 1)
    assert [e['iter'] for e in before.evaluations] == [0, 3, 6]
    assert before.evaluations[-1]['val_loss'] == before.val_loss
    (study.run_folder(arm, 1) / 'log.jsonl').unlink()
    assert load_run(study, arm, 1) == before


def test_what_no_run_can_begin_with_fails_them_all(data):
    arm, = arms_of(data, arms='base', null=True, device='cuda:77')
    study = study_of([arm])
    results = run_task(TaskGroup([task_of(study, arm, seed) for seed in (1, 2)]), pool.Slot('', 1), {})
    assert [result.status for result in results] == ['failed', 'failed']
    assert all('device=cuda:77: not on this machine' in result.reason for result in results)


def test_a_run_is_judged_by_one_pass(data, monkeypatch):
    """The losses of windows and of positions are those that its validation loss is the mean of."""
    passes, launch = [], evaluation.launch

    def counted(forward, data, machine, split, *args):
        passes.append(split)
        return launch(forward, data, machine, split, *args)
    monkeypatch.setattr(evaluation, 'launch', counted)
    arm, = arms_of(data, arms='base', null=True)
    study = study_of([arm])
    result, = run_task(TaskGroup([task_of(study, arm, 1)]), pool.Slot('', 1), {})
    assert passes == ['val', 'val', 'val', 'train'] # iterations 0, 3 and 6, and the last on the train split
    run = json.loads((study.run_folder(arm, 1) / 'ab.json').read_text())
    windows, positions = run['windows'], run['positions']
    assert (len(windows), len(positions)) == (25, 16)
    # of 16 windows' targets the last has 15, none at the last position
    assert (16 * sum(windows) - windows[-1]) / 399 == pytest.approx(result.value, rel=1e-14)
    assert (25 * sum(positions) - positions[-1]) / 399 == pytest.approx(result.value, rel=1e-14)


@pytest.mark.slow
@torch._dynamo.config.patch(recompile_limit=2)
def test_one_process_compiles_any_number_of_arms(data, monkeypatch):
    """Seeds of an arm share what is compiled, and Dynamo's limit of versions is one arm's."""
    compile_ = torch.compile
    monkeypatch.setattr(torch, 'compile', lambda f, **options: compile_(f, **options | dict(backend='eager')))
    arms = arms_of(data, variants='alibi,gated_attention,rope', compile=True, max_iters=1, eval_iters=1)
    study, state = study_of(arms), {}
    for arm in arms:
        torch._dynamo.utils.counters.clear()
        results = run_task(TaskGroup([task_of(study, arm, seed) for seed in (1, 2)]), pool.Slot('', 1), state)
        assert [result.status for result in results] == ['done', 'done'], results
        assert torch._dynamo.utils.counters['stats']['unique_graphs'] == 1


@pytest.mark.skipif(os.name == 'nt', reason='signals')
def test_workers_die_retire_and_keep_to_their_kind():
    """A death fails one task, a spoiled process does no other task, and a worker does all of one kind first."""
    workers = pool.Pool(run_word, [pool.Slot('', 1)])
    words = 'die', 'ax', 'bx', 'ay', 'by', 'last', 'c'
    results = list(workers.run([Word(word) for word in words]))
    workers.stop()
    assert results == [('die', pool.WorkerDied(-9)), ('ax', 'ax 1'), ('ay', 'ay 2'), ('bx', 'bx 3'), ('by', 'by 4'),
                       ('last', 'last 5'), ('c', 'c 1')]


# a task whose import takes a minute and, as that of PyTorch may, lets no other thread of Python's run
SLOW_TASK = '''
import ctypes, multiprocessing
from pathlib import Path
if multiprocessing.parent_process():
    Path('importing').touch()
    ctypes.PyDLL(None).sleep(60)
def run_task(): pass
'''
# a script without a guard, which its workers must not run again
SLOW_SCRIPT = f'''
import sys, time
sys.path[:0] = [{str(ROOT)!r}]
from lab.study import pool
import slow_task
worker = pool.Worker(slow_task.run_task, pool.Slot('', 1))
print(worker.process.pid, flush=True)
time.sleep(60)
'''


@pytest.mark.skipif(sys.platform != 'linux', reason='elsewhere a worker ends after its imports')
def test_a_worker_ends_with_its_study_while_it_imports():
    Path('slow_task.py').write_text(SLOW_TASK)
    Path('script.py').write_text(SLOW_SCRIPT)
    study = subprocess.Popen([sys.executable, 'script.py'], stdout=subprocess.PIPE, text=True)
    worker = int(study.stdout.readline())
    wait_for(Path('importing').exists, lambda: study.poll() is None)
    study.kill()
    study.wait()
    study.stdout.close()
    # what has ended waits at most for a parent that asks for its exit code
    state = lambda: Path(f'/proc/{worker}/stat').read_text().rsplit(')', 1)[1].split()[0]
    wait_for(lambda: not Path(f'/proc/{worker}').exists() or state() == 'Z', seconds=1)


# -----------------------------------------------------------------------------
# what is read out of a study's folders

def write_run(study, arm, seed, loss):
    """Writes a run's folder as a worker leaves it; loss: after the last iteration, None if the run failed."""
    folder = study.run_folder(arm, seed)
    if loss is None:
        return write_json(folder / 'failed.json', dict(status='failed', reason='out of memory'))
    result = dict(val_loss=loss, train_loss=loss - 0.1, seconds=2.0)
    write_json(folder / 'ab.json', dict(seed=seed, result=result, windows=[loss] * 12, sample=None,
                                        positions=[loss] * 16, init=dict(w='00'), batches=f'{seed:02}'))
    evaluations = [{'iter': 0, 'val_loss': 4.0, 'train_loss': 4.0, 'stats.gate': [0.0, 1.0]},
                   {'iter': 6, 'val_loss': loss, 'train_loss': loss - 0.1, 'stats.gate': [1.0, float(seed)]}]
    lines = [json.dumps(dict(iter=0, loss=4.0)), *map(json.dumps, evaluations)]
    (folder / 'log.jsonl').write_text('\n'.join(lines) + '\n')


LOSSES = {'base': [1.50, 1.52, 1.49, 1.51, 1.53], 'alibi': [1.51, 1.51, 1.50, 1.49, 1.52],
          'gated_attention': [1.47, 1.49, 1.46, 1.49, 1.50]}


def report_of(data, losses):
    arms = arms_of(data, variants='alibi,gated_attention')
    study = study_of(arms, seeds=range(1, 6))
    for arm in arms:
        for seed, loss in zip(study.seeds_of(arm), losses[arm.name]):
            study.forget(arm, seed)
            write_run(study, arm, seed, loss)
    return to_dict(build_report(study, load_runs(study)))


def test_an_arm_that_failed_does_not_take_seeds_from_others(data):
    """A run that failed is left out of its own arm's comparison only; Holm's correction counts all arms."""
    whole = report_of(data, LOSSES)
    report = report_of(data, LOSSES | dict(alibi=[1.51, 1.51, 1.50, None, 1.52]))
    before, after = ({c['arm']: c for c in r['comparisons']} for r in (whole, report))
    assert (after['alibi']['n'], after['gated_attention']['n']) == (4, 5)
    assert after['gated_attention']['p'] == before['gated_attention']['p']
    assert [c['holm_p'] for c in report['comparisons']] == pytest.approx(holm([c['p'] for c in report['comparisons']]))
    assert report['arms'][1]['runs'][3] | dict(status='failed', reason='out of memory') == report['arms'][1]['runs'][3]
    assert len(whole['tables']) == 1 and len(report['tables']) == 2


def test_the_report_holds_what_the_folders_do(data):
    report = report_of(data, LOSSES)
    gated = report['arms'][2]
    assert [run['val_loss'] for run in gated['runs']] == LOSSES['gated_attention']
    assert gated['curve']['iters'] == [0, 6] and [row[-1] for row in gated['curve']['val']] == LOSSES['gated_attention']
    assert gated['stats']['gate'] == dict(iters=[0, 6], layers=[[0.0, 1.0], [1.0, 3.0]])
    assert gated['runs'][0]['best_val_loss'] == 1.47 and gated['runs'][0]['batch_hash'] == '01'
    c = report['comparisons'][1]
    assert (c['arm'], c['baseline'], c['wins'], c['verdict']) == ('gated_attention', 'base', 5, 'better')
    assert c['text_interval'] == pytest.approx([c['mean']] * 2) # all windows are alike here
    assert c['step_equivalents'] == pytest.approx(c['mean'] / ((sum(LOSSES['base']) / 5 - 4) / 6))


def test_at_equal_cost():
    curve = Curve([0, 100, 200], [[4.0, 2.0, 1.0], [4.0, 2.2, 1.2]], [], [])
    assert loss_at_cost(curve, 1.0) is None and loss_at_cost(curve, 0.9) is None
    assert to_dict(loss_at_cost(curve, 4 / 3)) == dict(loss=pytest.approx(1.6), iters=150)


def test_all_losses_of_a_run_are_of_one_precision(data):
    """Whoever runs a model forward asks for tf32: evaluation, and the text."""
    m = Machine('cpu', 'cuda', 'float32', False) # tensors on the CPU, PyTorch's setting as on a GPU
    arm = arms_of(data, variants='alibi')[0]
    model, o, found = arm.build(1), arm.options, []
    model.register_forward_hook(lambda *args: found.append(torch.backends.cuda.matmul.fp32_precision))
    set_ = Dataset(o.dataset, model.config.block_size)
    train.evaluate(model, set_, m, 'val', o.batch_size, o.batch_size)
    sample_text(m, set_, model, o)
    assert set(found) == {'tf32'}


# -----------------------------------------------------------------------------
# prices

def test_a_price_has_intervals(data):
    arms = arms_of(data, variants='soft_window', block_size=24)
    result = run_task(PriceTask(tuple(arms)), pool.Slot('', 1), {})
    assert result.status == 'done', result.reason
    base, soft = result.value['results'].values()
    assert (base['step_ratio'], base['step_ratio_interval']) == (1, [1, 1])
    for price in base, soft:
        low, high = price['step_ms_interval']
        assert 0 < low <= price['step_ms'] <= high and price['decode_tokens_per_s'] > 0
        # what the report does not show is not timed
        assert 'forward_ms' not in price
    low, high = soft['step_ratio_interval']
    assert low <= soft['step_ratio'] <= high


def test_prices_say_what_can_be_seen(data, capsys):
    """Ratios have intervals; a study that was priced before there were any is still read."""
    arms = arms_of(data, variants='soft_window,alibi')
    study = study_of(arms)
    study.folder.mkdir()
    same = dict(params=10_660_000, flops_per_token=71e6, peak_bytes=None)
    values = dict(base=same | dict(step_ms=4.0, step_ratio=1.0, step_ratio_interval=[1.0, 1.0]),
                  soft_window=same | dict(step_ms=4.3, step_ratio=1.09, step_ratio_interval=[1.08, 1.11]),
                  alibi=same | dict(step_ms=3.9, step_ratio=0.98, step_ratio_interval=[0.95, 1.01]))
    timed = []

    def run(tasks):
        timed.append(tasks)
        yield tasks[0], TaskResult('done', value=dict(results=values))

    def lines():
        assert list(price_arms(study, SimpleNamespace(run=run), 'price.json')) == [arm.name for arm in arms]
        return capsys.readouterr().out.splitlines()

    words = [f'price, {arm.name}: 10.66M parameters, 71.0 MFLOPs a token, ' for arm in arms]
    said = ['4.00 ms a step', '4.30 ms a step, 1.09x [1.08, 1.11]',
            '3.90 ms a step, 0.98x [0.95, 1.01], no dearer than can be seen']
    assert lines() == [start + end for start, end in zip(words, said, strict=True)]
    # they are timed once
    assert lines() == [start + end for start, end in zip(words, said, strict=True)] and len(timed) == 1
    # iterations that are matched to a ratio are worth more rounds
    study.options.match = 'time'
    Path('study/price.json').unlink()
    assert lines() and timed[1][0].seconds > timed[0][0].seconds

    for price in values.values():
        del price['step_ratio'], price['step_ratio_interval']
    saved = read_json(study.folder / 'price.json')
    write_json(study.folder / 'price.json', saved | dict(results=values))
    assert [line.split(', ')[-1] for line in lines()] == ['4.00 ms a step', '1.07x', '0.97x'] and len(timed) == 2
