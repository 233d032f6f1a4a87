"""The price of a variant: a table for people, a line of JSON for programs, and the same numbers in both."""
import json
import re
from statistics import median

import pytest
from helpers import call

import bench
from core.device.flops import flops_per_token
from core.errors import BAD_INPUT
from lab.checks import suite
from model import build, load_classes

SMALL = dict(n_layer=2, n_head=2, n_embd=16, block_size=16, vocab_size=52)
QUICK = dict(device='cpu', dtype='float32', compile=False, batch_size=4, rounds=2, seconds=0.005, decode_tokens=20)
ARMS = 'base', 'surprise', 'soft_window', 'surprise+soft_window'


@pytest.fixture(scope='module')
def done():
    # intervals need six rounds
    options = SMALL | QUICK | dict(rounds=6)
    return call(bench.main, variants=','.join(ARMS[1:]), peak_tflops=1e-3, prior_width=1.0, seeds=2, **options)


def test_a_row_for_every_arm_in_both_tables(done):
    assert (done.code, done.err) == (0, '')
    lines = done.out.splitlines()
    head = next(i for i, line in enumerate(lines) if line.split()[:1] == ['variant'] and 'step ms' in line)
    costs, ratios = lines[head:head + 5], lines[head + 6:-1]
    assert tuple(line.split()[0] for line in costs[1:]) == ARMS
    assert lines[head + 5] == '' and len(ratios) == 5
    assert [line.split()[0].rstrip(',') for line in ratios] == ['over', *ARMS]
    for table in costs, ratios:
        assert len({len(line) for line in table}) == 1 and len(table[0]) <= 100 # aligned
    # forward, forward and backward, a step, a step of both seeds
    number = r'\d+\.\d\d'
    ratio = rf' +{number}x \[{number}, {number}\]'
    assert all(re.fullmatch(rf'\S+({ratio}){{4}}', line) for line in ratios[2:])


def test_a_ratio_is_of_samples_of_the_same_round(done):
    base, *others = json.loads(done.out.splitlines()[-1])['results']
    names = dict(forward='forward', backward='forward_backward', step='step', together='seeds_step')
    for kind, name in names.items():
        assert (base[f'{name}_ratio'], base[f'{name}_ratio_interval']) == (1, [1, 1])
        for arm in others:
            pairs = sorted(a / b for a, b in zip(arm['samples_ms'][kind], base['samples_ms'][kind], strict=True))
            assert arm[f'{name}_ms'] == median(arm['samples_ms'][kind])
            assert arm[f'{name}_ratio'] == median(pairs)
            # of six values, the smallest and the largest
            assert arm[f'{name}_ratio_interval'] == [pairs[0], pairs[-1]]
            assert arm[f'{name}_ms_interval'] == [min(arm['samples_ms'][kind]), max(arm['samples_ms'][kind])]


def test_the_last_line_is_json_with_the_numbers(done):
    said = json.loads(done.out.splitlines()[-1])
    assert (said['device'], said['dtype'], said['compile']) == ('cpu', 'float32', False)
    assert [arm['variant'] for arm in said['results']] == list(ARMS)
    for arm in said['results']:
        options = SMALL | (dict(prior_width=1.0) if 'surprise' in arm['variant'] else {})
        model = build(arm['variant'], **options)
        assert arm['params'] == model.get_num_params()
        flops = flops_per_token(load_classes(arm['variant']), model.config)
        assert (arm['forward_flops_per_token'], arm['flops_per_token']) == flops
        assert all(len(ms) == 6 and min(ms) > 0 for ms in arm['samples_ms'].values())
        assert arm['tokens_per_s'] == pytest.approx(4 * 16 / arm['step_ms'] * 1000)
        assert arm['mfu'] == pytest.approx(arm['flops_per_token'] * arm['tokens_per_s'] / 1e9)
        assert arm['peak_bytes'] is None                        # a number that a CPU cannot tell is none
    base, wide = said['results'][:2]
    assert wide['params'] > base['params'] and wide['flops_per_token'] > base['flops_per_token']


@pytest.mark.parametrize('attn, ways', [
    ('auto', ['sdpa', 'sdpa', 'math', 'sdpa']), ('math', ['math'] * 4), ('kernel', ['kernel'] * 4)])
def test_the_attention_module_alone(attn, ways):
    """A row for each variant, the same numbers in both, and the way that attention went."""
    variants = 'base', 'soft_window', 'head_scaling', 'canon'
    options = SMALL | QUICK | dict(block_size=64, attn=attn)
    done = call(bench.main, '--module', variants=','.join(variants[1:]), **options)
    said = json.loads(done.out.splitlines()[-1])['results']
    assert [(arm['variant'], arm['attention']) for arm in said] == [(v, [way]) for v, way in zip(variants, ways)]
    rows = [line.split() for line in done.out.splitlines() if line.split()[:1] and line.split()[0] in variants]
    for row, arm in zip(rows, said, strict=True):
        assert row[:3] == [arm['variant'], *arm['attention'], f"{arm['ms']:.3f}"]
        assert len(arm['samples_ms']['backward']) == 2


def test_no_peak_no_mfu():
    done = call(bench.main, **SMALL, **QUICK)
    assert done.code == 0 and 'no MFU: give --peak_tflops' in done.out
    only, = json.loads(done.out.splitlines()[-1])['results']
    assert only['variant'] == 'base' and only['mfu'] is None
    # two rounds are too few for an interval
    assert only['step_ms'] > 0 and only['step_ms_interval'] is None


@pytest.mark.parametrize('options, says', [
    (dict(variants='nope'), 'variant=nope: no file variants/nope.py'),
    (dict(variants='surprise,surprise'), 'variants=surprise,surprise: base is always there, and each variant is named'),
    (dict(variants='base'), 'variants=base: base is always there'),
    (dict(variants='surprise', gate_range=3),
     '--gate_range=3: no such option; it belongs to --variant=gated_attention'),
    (dict(variants='surprise', n_head=5), 'n_head=5: must divide n_embd=16'),
    (dict(peak_tflops=0), '--peak_tflops=0: ')])
def test_bad_options(options, says):
    assert call(bench.main, **SMALL | QUICK | options).line(BAD_INPUT).startswith(says)


# -- bench.py --check

LEAKY = '''
    """It looks at the whole row. Source: github"""
    from dataclasses import dataclass
    import model
    NEUTRAL = dict(peek=0.0)
    LEAKS = [(dict(peek=0.5), 'it adds the mean of the row')]
    @dataclass
    class GPTConfig(model.GPTConfig):
        peek: float = 0.0               # how much of it
    class Block(model.Block):
        def attn_out(self, y, step):
            return y + self.config.peek * y.mean(1, keepdim=True) if self.training else y
'''


@pytest.fixture
def quick(monkeypatch):
    """Leaves out the checks that take longest."""
    monkeypatch.setattr(suite, 'one_graph', lambda model: None)
    monkeypatch.setattr(suite, 'uniform_tokens', lambda variant, **options: options['declared'] is not None)


def check(*args, **options):
    """Returns {check: its status} and how the script ended."""
    done = call(bench.main, '--check', *args, **options)
    lines = [line for line in done.out.splitlines() if not line.endswith('(command line)')]
    form = r'\w+ +\S.*  (ok|declared leak seen|LEAK found|FAILED) +\d+\.\d s'
    assert all(re.fullmatch(form, line) for line in lines), done.out
    return {line[21:81].strip(): line[82:].split('  ')[0] for line in lines}, done


def test_check_as_declared(drop, quick):
    drop('leaky', LEAKY)
    status, done = check(variants='leaky')
    assert (done.code, done.err) == (0, '')
    declared = {'leak in training, peek=0.5', 'uniform tokens, half a minute, peek=0.5'}
    assert {name for name, how in status.items() if how == 'declared leak seen'} == declared
    assert {how for name, how in status.items() if name not in declared} == {'ok'}
    assert {'leaky when neutral is base', 'causal in training, trained weights', 'decoding', 'decoding, peek=0.5',
            'one graph', 'causal in evaluation, trained weights, peek=0.5'} <= set(status)
    assert 'causal in training, trained weights, peek=0.5' not in status


def test_check_finds_a_leak(drop, quick):
    drop('leaky', LEAKY.replace('LEAKS', 'SILENT').replace('peek: float = 0.0', 'peek: float = 0.5'))
    status, done = check(variants='leaky')
    assert done.line(BAD_INPUT).startswith('leaky: causal in training, initial weights: suffix swap: logits before [')
    assert status['causal in training, trained weights'] == 'LEAK found' and status['decoding'] == 'ok'
    assert status['causal in evaluation, trained weights'] == 'ok'
    status, done = check(variants='leaky', peek=0.0)
    assert (done.code, set(status.values())) == (0, {'ok'})


def test_check_finds_a_leak_that_is_none(drop, quick):
    drop('leaky', LEAKY.replace('if self.training', 'if False'))
    status, done = check(variants='leaky')
    assert status['leak in training, peek=0.5'] == 'FAILED'
    assert done.line(BAD_INPUT) == 'leaky: leak in training, peek=0.5: declared leak: no check sees it: is it one?'


def test_a_file_anywhere_beside_a_variant_with_options(tmp_path):
    """A class without options of its own, as key_importance has none, beside one that has some."""
    (tmp_path / 'mine.py').write_text('import model\nclass MLP(model.MLP):\n    def hidden(self, x, step):\n'
                                      '        return 2 * super().hidden(x, step)\n')
    done = call(bench.main, variants=f'{tmp_path}/mine.py,alibi', **SMALL | QUICK)
    assert done.code == 0, done.err
    assert [line.split()[0] for line in done.out.splitlines() if line.startswith(('mine ', 'alibi '))] == [
        'mine', 'alibi'] * 2
