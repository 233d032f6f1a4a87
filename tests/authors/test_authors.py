"""Variants as people write them, outside variants/: they pass at the first attempt, or a message names the slip.

good/ are ideas in the manner of an ordinary PyTorch author; slips/ have one mistake each. The files import model
and torch, and know nothing of the checks.
"""
import re
from pathlib import Path

import pytest
from helpers import TINY, call, same_run

import sample
import train
from core.data.dataset import Dataset
from core.device.machine import machine
from core.errors import Stop
from lab import checks
from lab.checks.precision import in_float64_if_it_fails
from model import build

HERE = Path(__file__).parent
# config/ab_shakespeare_cpu.py, narrower
SIZES = dict(block_size=64, vocab_size=65, n_layer=4, n_head=4, n_embd=64, dropout=0.0)
slow = pytest.mark.slow


def files(folder, quick):
    """Returns a parameter for each file of the folder: those that are not quick are slow tests."""
    found = sorted((HERE / folder).glob('*.py'))
    return [pytest.param(str(path), id=path.stem, marks=[] if path.stem in quick else slow) for path in found]


GOOD = files('good', quick=[path.stem for path in HERE.glob('good/*.py')])
assert len(GOOD) >= 20


# -----------------------------------------------------------------------------
# what is right

@pytest.mark.parametrize('path', GOOD)
def test_it_does_something(path):
    assert checks.why_idle(path, 'base', SIZES, SIZES, max_iters=100) is None


@pytest.mark.parametrize('path', files('good', ['min_gru', 'tied_layers', 'token_shift', 'differential']))
def test_it_passes_the_quicker_checks(path):
    found = dict(checks.list_checks(path, fast=True))
    for line in 'stateless', 'causal in training, shaken weights', 'leak of targets in training', 'decoding', 'loss':
        in_float64_if_it_fails(found[line])


@slow
@pytest.mark.parametrize('path', GOOD)
def test_it_passes_the_suite(path):
    assert [f'{c.name}: {c.why}' for c in checks.run_suite(path, fast=True, base_args=SIZES) if c.why] == []


@pytest.mark.parametrize('path', files('good', ['rotary_buffer', 'tril_mask']))
def test_it_passes_as_it_is_judged(path, data):
    text = Dataset(str(data), 24)
    o = train.Options(variant=path, batch_size=4, max_iters=20)
    model_args = dict(block_size=24, n_layer=2, n_head=2, n_embd=16, vocab_size=text.vocab_size)
    found = checks.run_fresh(lambda: build(path, 1, **model_args), machine('cpu', 'float32', False), o, text)
    assert [f'{c.name}: {c.why}' for c in found if c.why] == []


@pytest.mark.parametrize('path', files('good', ['rmsprop', 'multi_token']))
def test_it_trains_and_resumes_to_the_bit(path, data, tmp_path):
    """With its own optimizer, too."""
    options = TINY | dict(dataset=data, variant=path, eval_interval=3)
    whole = call(train.main, out_dir=tmp_path / 'whole', **options | dict(max_iters=6))
    assert whole.code == 0, whole.err
    call(train.main, out_dir=tmp_path / 'two', **options | dict(max_iters=3))
    again = call(train.main, out_dir=tmp_path / 'two', init_from='resume', variant=path, max_iters=6)
    assert again.code == 0, again.err
    same_run(tmp_path / 'whole', tmp_path / 'two', 6)


# -----------------------------------------------------------------------------
# slips: {file: (the check that sees it, what it says)}

AT_LOAD = dict(
    misspelt_hook=r'misspelt_hook.py: MLP.hiden: .* did you mean hidden\?',
    wrong_class=r'wrong_class.py: class MyMLP: nothing uses .* did you mean MLP\?',
    batch_norm=r'batch_norm.py: class LayerNorm must subclass model.LayerNorm',
    nan_start=r'h.0.mlp.gate: starts with NaN or infinity')
IN_THE_SUITE = dict(
    wrong_option=('differs from base', r'is the baseline: .* reach=64 at block_size=64.*; reach=32 would'),
    unused_gate=('differs from base', r'is the baseline: nothing that unused_gate defines \(MLP.__init__, MLP.forward'),
    conv_padding=('causal in evaluation, shaken weights', r'suffix swap: .* first in h.0 before h.0.ln_2 .* pad on'),
    batch_mean=('causal in evaluation, shaken weights', r'row swap: .* other rows, first in h.0 before h.0.ln_2 '),
    state_on_self=('stateless', r'h.0: attribute h.* outlives a pass.* step.state\('),
    peeking_loss=('leak of targets in evaluation', 'logits in evaluation change with the targets'),
    own_loss=('loss', 'plain loss: evaluation reports .* the cross entropy .* step.loss'),
    wrong_decode_state=('decoding', r'1 tokens after 1 in .*, first in h.0.mlp before h.0.mlp.c_fc .* step.extend'),
    print_in_forward=('one graph', r"print_in_forward.py:15: print\('block'.* no print"),
    item_branch=('one graph', r'item_branch.py:8: if y.abs\(\).max\(\).item\(\) > 3: .* no .item\(\)'),
    neutral_widths=('neutral_widths when neutral is base', r'mlp.c_fc.weight is \(144, 24\) where base has \(96, 24\)'),
    neutral_wrong=('neutral_wrong when neutral is base', r'logits: off by .* 1e-06 of it .* or leave NEUTRAL out'))
SLIPS = sorted((HERE / 'slips').glob('*.py'))
assert {path.stem for path in SLIPS} == {*AT_LOAD, *IN_THE_SUITE} and len(SLIPS) >= 10


@pytest.mark.parametrize('name', AT_LOAD)
def test_a_slip_is_named_when_the_model_is_built(name):
    with pytest.raises(Stop, match=AT_LOAD[name]) as stop:
        build(str(HERE / f'slips/{name}.py'), **SIZES)
    assert '\n' not in str(stop.value)


@pytest.mark.parametrize('name', [pytest.param(name, marks=slow if name == 'item_branch' else [])
                                  for name in IN_THE_SUITE])
def test_a_slip_is_named_by_a_check(name):
    line, says = IN_THE_SUITE[name]
    check = dict(checks.list_checks(str(HERE / f'slips/{name}.py'), fast=True, base_args=SIZES))[line]
    with pytest.raises(checks.Failed, match=says):
        check()


@slow
@pytest.mark.parametrize('name', IN_THE_SUITE)
def test_the_first_finding_is_the_slip(name):
    found = checks.run_suite(str(HERE / f'slips/{name}.py'), fast=True, base_args=SIZES)
    first = next(c for c in found if c.why)
    assert re.search(IN_THE_SUITE[name][1], first.why), first


# -----------------------------------------------------------------------------
# a file anywhere

def test_a_run_goes_on_from_another_folder(data, tmp_path, monkeypatch):
    """--variant=ideas/mine.py is the same file when the run is sampled or resumed elsewhere."""
    ideas = tmp_path / 'ideas'
    ideas.mkdir()
    (ideas / 'mine.py').write_bytes((HERE / 'good/squared_relu.py').read_bytes())
    monkeypatch.chdir(tmp_path)
    options = TINY | dict(dataset=data, variant='ideas/mine.py', max_iters=2)
    assert call(train.main, **options).code == 0
    # named after the file
    run = tmp_path / 'out-mine'
    monkeypatch.chdir(ideas)
    short = dict(num_samples=1, max_new_tokens=3, device='cpu', start='a')
    sampled = call(sample.main, out_dir=run, variant='mine.py', **short)
    assert sampled.code == 0
    assert call(train.main, out_dir=run, init_from='resume', variant='mine.py', max_iters=3).code == 0
