"""A study: its arms, its pairs, what survives a kill, and the statistics of files that others bring."""
import ast
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import ENV, ROOT, TINY, call, flags, forks, log, shakespeare
from scipy.stats import ttest_rel

import ab
import train
from configurator import arguments, construct, options_of, parse_option
from core.assemble import variant_names
from core.device.flops import flops_per_token
from core.errors import BAD_INPUT, Stop
from lab.stats import holm
from lab.study import pool, study as lab_study
from lab.study.study import Study, Together
from model import load_classes

SMALL = TINY | dict(max_iters=6, lr_decay_iters=6, eval_interval=3, log_interval=1, save_best=False, always_save_checkpoint=False)
QUICK = dict(check=False, price=False, jobs=1)


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return shakespeare(tmp_path_factory.mktemp('data') / 'tiny')


@pytest.fixture(autouse=True)
def somewhere_else(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if hasattr(os, 'fork'):
        monkeypatch.setattr(pool, 'SPAWN', forks()) # spawned, workers would import torch for half of the time
    handler = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, handler)


def arms_of(data, **options):
    known, given = options_of(ab.Options), arguments(flags(**SMALL | dict(dataset=data) | options))
    o = construct(ab.Options, {g.name: parse_option(known[g.name], g.value, g.origin) for g in given if g.name in known})
    return ab.read_arms(o, [g for g in given if g.name not in known])


def ran(data, *args, **options):
    return call(ab.main, *args, **SMALL | QUICK | dict(dataset=data) | options)


def losses(name):
    report = json.loads(Path(f'out-ab/{name}/report.json').read_text())
    return {arm['name']: {run['seed']: run['val_loss'] for run in arm['runs']} for arm in report['arms']}


# -- arms

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
    assert [a.name for a in arms_of(data, arms='a; b: dropout=0.1'.replace('a;', 'base;'), baseline='b')] == ['b', 'base']


def test_code_that_computes_is_part_of_what_a_run_is():
    """All that models, steps and compiled graphs import, at the top of a file or where they need it."""
    waiting = ['model.py', 'core/training/train_step.py', 'core/device/inductor.py', *(f'variants/{f.name}' for f in (ROOT / 'variants').glob('*.py'))]
    found = set(waiting)
    while waiting:
        for node in ast.walk(ast.parse((ROOT / waiting.pop()).read_text(encoding='utf-8'))):
            if isinstance(node, ast.ImportFrom) and re.match(r'(lab|variants\.kernels)(\.|$)', node.module or ''):
                names = [node.module, *(f'{node.module}.{alias.name}' for alias in node.names)]
                files = {f"{name.replace('.', '/')}.py" for name in names}
                new = {file for file in files if (ROOT / file).exists()} - found
                found |= new
                waiting += new
    computes_nothing = {'core/errors.py', 'configurator.py', 'core/nn/sampling.py'}
    assert {file for file in found if not re.match(r'variants/\w+\.py', file)} - computes_nothing <= set(lab_study.CODE)


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
    (dict(variants='alibi', arms='base; b: dropout=0.1'), 'give one of the two'),
    (dict(variants='alibi', window_init=3), 'window_init=3: no such option of any arm'),
    (dict(variants='alibi', baseline='nope'), 'baseline=nope: no such arm'),
    (dict(variants='alibi', name='../x'), 'name=../x: takes the name of a folder in out-ab'),
    (dict(variants='alibi', lr_sweep='0,1'), 'lr_sweep=0,1: takes positive numbers'),
    (dict(variants='alibi', lr_sweep='1,half'), 'lr_sweep=1,half: takes positive numbers'),
    (dict(report=__file__), 'holds no study'),
    (dict(variants='alibi', looks='10,5'), 'looks=10,5: takes growing numbers of seeds'),
    (dict(variants='alibi', devices='77'), 'devices=77: cuda:77 is not on this machine'),
])
def test_bad_arms_are_one_line(data, options, says):
    assert says in ran(data, **options).line(BAD_INPUT)
    assert not Path('out-ab').exists()


@pytest.mark.parametrize('text, says', [('{"arms"', 'is not a record in JSON'), ('[]', 'is not a record in JSON'),
                                        ('{}', 'is not what this ab.py writes'), ('{"arms": []}', 'is not what this ab.py writes'),
                                        ('{"arms": [], "options": {"sedes": 5}}', 'is not what this ab.py writes')])
def test_a_study_edited_by_hand_is_one_line(data, tmp_path, text, says):
    (tmp_path / 'study.json').write_text(text)
    assert f'study.json: {says}' in ran(data, report=tmp_path).line(BAD_INPUT)


def test_matched_baselines_hit_within_a_percent(data):
    """Of the model of config/ab_shakespeare_cpu.py, in parameters and in FLOPs for the whole training."""
    size = dict(n_layer=4, n_head=4, n_embd=128, block_size=64, max_iters=800, lr_decay_iters=800)
    base, *others = arms_of(data, variants='gated_attention,embedding_gate,surprise,gqa,mod', **size)
    flops = {a.name: dict(flops_per_token=flops_per_token((classes := load_classes(a.options.variant)),
                                                          classes.GPTConfig(**a.model_args))[1]) for a in (base, *others)}
    for arm in others:
        wide, longer = ab.matched(base, arm, 'params', None), ab.matched(base, arm, 'flops', flops)
        assert wide.model().num_params() == pytest.approx(arm.model().num_params(), rel=0.01)
        assert longer.options.max_iters == longer.options.lr_decay_iters
        spent = [a.options.max_iters * flops[name]['flops_per_token'] for a, name in ((longer, base.name), (arm, arm.name))]
        assert spent[0] == pytest.approx(spent[1], rel=0.01)


# -- a study

@pytest.mark.parametrize('at_once', [1, 2])
def test_a_study_is_its_runs(data, at_once):
    """Each run, the second of a process or beside another, is to the bit what train.py makes of the same options alone."""
    done = ran(data, variants='alibi', seeds=2, name='s', null=True, at_once=at_once, dropout=0.1)
    assert done.code == 0, done
    assert 'seed 1338: batches equal in 2 arms' in done.out and 'alibi: screen' in done.out
    for seed in 1337, 1338:
        for arm, variant in ('base', 'base'), ('alibi', 'alibi'):
            call(train.main, **SMALL | dict(dataset=data, seed=seed, variant=variant, out_dir='alone', dropout=0.1))
            assert log(f'out-ab/s/{arm}/seed_{seed}') == log('alone')
            said = Path(f'out-ab/s/{arm}/seed_{seed}/output.txt').read_text()
            assert said.count('best val loss') == 1 and f'seed_{seed}' in said and f'seed_{2675 - seed}' not in said
    call(train.main, **SMALL | dict(dataset=data, seed=101337, out_dir='alone', dropout=0.1))
    assert log('out-ab/s/null/seed_1337') == log('alone') # the null arm: other seeds
    report = json.loads(Path('out-ab/s/report.json').read_text())
    assert report['paired'] == dict(batches_equal=True, init_equal=True, note=report['paired']['note'])
    comparison, _ = report['comparisons']
    found = losses('s')
    assert comparison['mean'] == pytest.approx(np.mean([found['alibi'][s] - found['base'][s] for s in (1337, 1338)]))
    assert comparison['verdict'] == 'screen'
    windows = json.loads(Path('out-ab/s/base/seed_1337/ab.json').read_text())
    assert windows['result']['val_loss'] == pytest.approx(np.mean(windows['windows']), abs=0.02)

    kept = Path('out-ab/s/alibi/seed_1337/ab.json').read_bytes()
    Path('out-ab/s/alibi/seed_1338/ab.json').unlink()
    again = ran(data, variants='alibi', seeds=2, name='s', null=True, dropout=0.1)
    assert again.code == 0 and '5 of 6 runs are done already' in again.out and again.out.count('alibi, seed') == 1
    assert losses('s') == found and Path('out-ab/s/alibi/seed_1337/ab.json').read_bytes() == kept

    refused = ran(data, variants='alibi', seeds=2, name='s', null=True, learning_rate=5e-3, dropout=0.1).line(BAD_INPUT)
    assert 'was run with another learning_rate (0.01 then, 0.005 now)' in refused and '--redo=True' in refused
    redone = ran(data, variants='alibi', seeds=2, name='s', redo=True, learning_rate=5e-3, dropout=0.1)
    assert redone.code == 0 and losses('s')['base'] != found['base']

    call(ab.main, '--report', 'out-ab/s')
    listed = call(ab.main, '--ledger')
    assert '3 comparisons in 2 studies' in listed.out, listed # the first study was reported twice, with one result
    assert Path('out-ab/LEDGER.md').read_text() == listed.out


def test_a_sweep_gives_each_arm_its_best_learning_rate(data):
    done = ran(data, arms='base; hot: learning_rate=10', seeds=2, name='l', lr_sweep='0.001,1')
    assert done.code == 0, done
    sweep = json.loads(Path('out-ab/l/report.json').read_text())['plan']['lr_sweep']
    best = {arm: min(there, key=there.get) for arm, there in sweep['losses'].items()}
    assert best == dict(base='1', hot='0.001') and sweep['seed'] not in (1337, 1338) # 1e-5 hardly learns, 10 ruins
    for arm, rates in ('base', {}), ('hot', dict(learning_rate=0.01, min_lr=1e-6)):
        assert f'lr_sweep, {arm}: ' in done.out and f'x{best[arm]} is used' in done.out
        call(train.main, **SMALL | dict(dataset=data, seed=1338, out_dir='alone') | rates)
        assert log(f'out-ab/l/{arm}/seed_1338') == log('alone')


def test_what_one_run_comes_to_is_its_own(data, monkeypatch):
    """Of four at once one has an error of its own and two no memory beside others: these are trained again, alone."""
    arm, = [a for a in arms_of(data, arms='base', null=True)]
    study, alone, trained = Study('study', [arm]), train.train, []

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
    tasks = [study.task(arm, seed) for seed in (1, 2, 3, 4)]
    done = lab_study.perform(Together(tasks), pool.Place('', 1), {})
    assert [result['status'] for result in done['results']] == ['done', 'failed', 'done', 'done'] and done['leave']
    assert 'ValueError: its own' in done['results'][1]['reason'] and trained == [1, 2, 3, 4, 3, 4]
    assert [study.state(arm, seed)[0] for seed in (1, 2, 3, 4)] == ['done', 'failed', 'done', 'done']


def test_what_no_run_can_begin_with_fails_them_all(data):
    arm, = arms_of(data, arms='base', null=True, device='cuda:77')
    tasks = [Study('study', [arm]).task(arm, seed) for seed in (1, 2)]
    done = lab_study.perform(Together(tasks), pool.Place('', 1), {})
    assert [(r['status'], 'device=cuda:77: not on this machine' in r['reason']) for r in done['results']] == [('failed', True)] * 2


def test_one_process_compiles_any_number_of_arms(data, monkeypatch):
    """Seeds of an arm share what is compiled, and Dynamo's limit of versions is one arm's."""
    compile_ = torch.compile
    monkeypatch.setattr(torch, 'compile', lambda f, **options: compile_(f, **options | dict(backend='eager')))
    arms = arms_of(data, variants=','.join(variant_names()[:10]), compile=True, max_iters=1, eval_iters=1)
    study, kept = Study('study', arms), {}
    for arm in arms:
        torch._dynamo.utils.counters.clear()
        done = lab_study.perform(Together([study.task(arm, seed) for seed in (1, 2)]), pool.Place('', 1), kept)
        assert done['results'] == [dict(status='done')] * 2, done
        assert torch._dynamo.utils.counters['stats']['unique_graphs'] == 1


def test_a_diverged_arm_counts_against_it(data):
    done = ran(data, arms='base; hot: learning_rate=1e30 grad_clip=0', seeds=5, name='d')
    assert done.code == 0, done
    assert 'hot, seed 1337: diverged: diverged at iteration' in done.out
    report = json.loads(Path('out-ab/d/report.json').read_text())
    comparison, = report['comparisons']
    assert comparison['verdict'] == 'worse' and comparison['diverged']['var'] == 5
    assert [run['status'] for run in report['arms'][1]['runs']] == ['diverged'] * 5
    again = ran(data, arms='base; hot: learning_rate=1e30 grad_clip=0', seeds=5, name='d', retry=True)
    assert again.out.count('hot, seed') == 5 and 'base, seed' not in again.out


def test_an_arm_that_failed_does_not_take_seeds_from_others(data, monkeypatch):
    """A run that failed, not diverged, is left out of its own arm's comparison; Holm's correction counts all arms."""
    done = ran(data, variants='alibi,gated_attention', seeds=5, name='f')
    assert done.code == 0, done
    alone = json.loads(Path('out-ab/f/report.json').read_text())
    folder = Path('out-ab/f/alibi/seed_1340')
    record = json.loads((folder / 'ab.json').read_text())
    (folder / 'ab.json').unlink()
    lab_study.write_json(folder / 'failed.json', dict(identity=record['identity'], status='failed', reason='out of memory'))
    assert call(ab.main, '--report', 'out-ab/f').code == 0
    report = json.loads(Path('out-ab/f/report.json').read_text())
    before, after = ({c['arm']: c for c in r['comparisons']} for r in (alone, report))
    assert (after['alibi']['n'], after['gated_attention']['n']) == (4, 5)
    assert after['gated_attention']['p'] == before['gated_attention']['p']
    assert [c['holm_p'] for c in report['comparisons']] == pytest.approx(holm([c['p'] for c in report['comparisons']]))
    assert report['arms'][1]['runs'][3] | dict(status='failed', reason='out of memory') == report['arms'][1]['runs'][3]


def test_a_change_of_code_is_named(data, monkeypatch):
    arms = arms_of(data, variants='alibi')
    study = lab_study.Study('s', arms)
    lab_study.write_json(study.run_folder(arms[1], 1) / 'ab.json', dict(identity=study.identity(arms[1])))
    assert study.state(arms[1], 1)[0] == 'done' and study.state(arms[0], 1)[0] == 'new'
    monkeypatch.setattr(lab_study, 'sha256', lambda path: 'other' if path.name == 'alibi.py' else 'same')
    now = study.identity(arms[1])
    lab_study.write_json(study.run_folder(arms[1], 1) / 'ab.json', dict(identity=now))
    monkeypatch.setattr(lab_study, 'sha256', lambda path: 'same')
    with pytest.raises(Stop, match=r'another code: variants/alibi.py; --redo'):
        study.state(arms[1], 1)


def test_at_equal_cost():
    curve = dict(iters=[0, 100, 200], val=[[4.0, 2.0, 1.0], [4.0, 2.2, 1.2]])
    assert lab_study.at_ratio(curve, 1.0) is None and lab_study.at_ratio(curve, 0.9) is None
    assert lab_study.at_ratio(curve, 4 / 3) == dict(loss=pytest.approx(1.6), iters=150)


# -- kills

def spawned(data, name, **more):
    options = SMALL | QUICK | dict(dataset=data, variants='alibi', seeds=2, name=name, jobs=2, max_iters=300, lr_decay_iters=300,
                                   eval_interval=100, checkpoint_minutes=0.005) | more
    return subprocess.Popen([sys.executable, str(ROOT / 'ab.py'), *flags(**options)], stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT, text=True, env=ENV)


def descendants(pid):
    found, parents = [], {}
    for stat in Path('/proc').glob('[0-9]*/stat'):
        try:
            fields = stat.read_text().rsplit(')', 1)[1].split()
            parents[int(stat.parent.name)] = int(fields[1])
        except OSError:
            pass
    todo = [pid]
    while todo:
        one = todo.pop()
        children = [child for child, parent in parents.items() if parent == one]
        found, todo = found + children, todo + children
    return found


def gone(pids, seconds=20):
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if not any(running(pid) for pid in pids):
            return True
        time.sleep(0.1)
    return False


def running(pid):
    try:
        return Path(f'/proc/{pid}/stat').read_text().rsplit(')', 1)[1].split()[0] != 'Z'
    except OSError:
        return False


TIMES = 'seconds', 'created', 'command', 'environment', 'tables'


def without_times(x):
    if isinstance(x, dict):
        return {name: without_times(value) for name, value in x.items() if name not in TIMES and name != 'name'}
    return [without_times(value) for value in x] if isinstance(x, list) else x


@pytest.mark.skipif(not Path('/proc/self/stat').exists(), reason='reads /proc')
def test_killed_and_continued_is_the_same_study(data):
    whole = spawned(data, 'whole')
    assert whole.wait(120) == 0, whole.stdout.read()
    for moment in 5, 90, 220: # iterations of both first runs, or so
        run, began = spawned(data, 'killed'), time.monotonic()
        while run.poll() is None and time.monotonic() - began < 60:
            if sum(ab.last_iteration(folder) for folder in Path('out-ab/killed').glob('*/seed_*')) > moment * 2:
                break
            time.sleep(0.02)
        children = descendants(run.pid)
        run.kill()
        run.wait()
        assert children and gone(children), 'a worker outlived its runner'
    last = spawned(data, 'killed')
    assert last.wait(120) == 0, last.stdout.read()
    reports = [json.loads(Path(f'out-ab/{name}/report.json').read_text()) for name in ('whole', 'killed')]
    assert without_times(reports[0]) == without_times(reports[1])
    for folder in sorted(Path('out-ab/whole').glob('*/seed_*')):
        assert log(folder) == log(Path(str(folder).replace('whole', 'killed')))


@pytest.mark.skipif(not hasattr(os, 'setsid'), reason='POSIX signals')
@pytest.mark.parametrize('at_once', [1, 2])
def test_ctrl_c_saves_and_goes_on(data, at_once):
    run = spawned(data, 'c', max_iters=100_000, lr_decay_iters=100_000, at_once=at_once)
    while len(list(Path('out-ab/c').glob('*/seed_*/log.jsonl'))) < 2 * at_once: # two processes
        assert run.poll() is None, run.stdout.read()
        time.sleep(0.05)
    time.sleep(0.3)
    run.send_signal(signal.SIGINT)
    out, _ = run.communicate(timeout=60)
    assert run.returncode == 130 and 'the same command goes on' in out.splitlines()[-1], out
    assert len(list(Path('out-ab/c').glob('*/seed_*/ckpt'))) == 2 * at_once, out


def fails(task, place, kept):
    if task == 'die':
        os.kill(os.getpid(), signal.SIGKILL)
    return dict(status='done', said=task)


class Word(str):
    like = ''


def test_a_dead_worker_is_one_failed_task():
    workers = pool.Pool(fails, [pool.Place('', 1)])
    results = {str(task): result for task, result in workers.run([Word('die'), Word('a'), Word('b')])}
    workers.stop()
    assert results['die'] == pool.Died(-9) and results['a']['said'] == 'a' and results['b']['said'] == 'b'


# -- other people's results

def write_csv(rows, header='arm,seed,loss'):
    Path('r.csv').write_text('\n'.join([header, *rows]) + '\n')


def test_from_csv_is_scipy(tmp_path):
    rng = np.random.default_rng(0)
    base, var = rng.normal(1.5, 0.01, (2, 7))
    write_csv([f'{arm},{seed},{float(x)!r}' for arm, xs in (('a', base), ('b', var)) for seed, x in enumerate(xs)])
    done = call(ab.main, from_csv='r.csv')
    assert done.code == 0, done
    c, = json.loads(Path('out-ab/r/report.json').read_text())['comparisons']
    test = ttest_rel(var, base)
    low, high = test.confidence_interval()
    assert c['mean'] == pytest.approx((var - base).mean(), abs=1e-12) and c['p'] == pytest.approx(test.pvalue, abs=1e-12)
    assert c['interval'] == pytest.approx([low, high], abs=1e-12)
    assert call(ab.main, '--report', 'out-ab/r').code == 0
    assert call(ab.main, from_csv='r.csv', baseline='b', name='other').code == 0
    assert json.loads(Path('out-ab/other/report.json').read_text())['comparisons'][0]['arm'] == 'a'


@pytest.mark.parametrize('rows, says', [
    (['a,1,1.5', 'a,2,1.5', 'b,1,1.4'], 'no run with seed 2'),
    (['a,1,1.5', 'a,2,nan', 'b,1,1.4', 'b,2,1.4'], 'r.csv:3'),
    (['a,1,1.5', 'a,1,1.5', 'b,1,1.4'], 'r.csv:3'),
    (['a,1,1.5', 'a,2,1.5'], 'a comparison needs'),
])
def test_bad_csv_is_one_line(rows, says):
    write_csv(rows)
    assert says in call(ab.main, from_csv='r.csv').line(BAD_INPUT)
    assert not Path('out-ab').exists()


def test_three_seeds_give_no_verdict():
    write_csv([f'{arm},{seed},{1.5 - (arm == "b") + seed / 100}' for arm in 'ab' for seed in range(3)])
    assert call(ab.main, from_csv='r.csv').code == 0
    c, = json.loads(Path('out-ab/r/report.json').read_text())['comparisons']
    assert c['verdict'] == 'screen'


def test_what_people_type():
    assert ab.plain_switches(['--ledger', '--report', 'out-ab/x', '--null', '--seeds=3']) == [
        '--ledger=True', '--report=out-ab/x', '--null=True', '--seeds=3']
