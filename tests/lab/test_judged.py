"""Checks of the model that is judged see sixty faults, and nothing in what has none."""
import re

import pytest
import torch
from faults import FAULTS, RECIPE, variant
from helpers import shakespeare
from honest import CIRCUMSTANCES, HONEST

import train
from core.data.dataset import Dataset
from core.device.machine import machine
from lab import checks
from model import build

torch.set_num_threads(1)


@pytest.fixture(scope='session')
def text(tmp_path_factory):
    return str(shakespeare(tmp_path_factory.mktemp('judged') / 'text', 40_000))


def judged(text, name, **circumstances):
    """Yields the results of the checks of a variant's model as a study with these options judges it."""
    c = RECIPE | circumstances
    o = train.Options(variant=name, **{option: c.pop(option) for option in ('batch_size', 'max_iters', 'dtype')})
    data = Dataset(text, c['block_size'])
    model_args = dict(vocab_size=data.vocab_size) | c
    return checks.run_fresh(lambda: build(name, 1, **model_args), machine('cpu', o.dtype, False), o, data)


def sees_fault(name, text, drop, **circumstances):
    """Asserts that the first finding is the one that the fault is known by."""
    drop(name, FAULTS[name].source)
    found = next((f'{c.name}: {c.why}' for c in judged(text, name, **circumstances) if c.why), 'nothing')
    assert re.search(FAULTS[name].says, found), found


TINY = dict(block_size=24, batch_size=4, n_layer=2, n_head=2, n_embd=16)
QUICK_FAULTS = ('mean_of_row', 'mask_off_by_one', 'beyond_200', 'with_dropout', 'iterations_20_to_90',
                'mean_of_batch', 'counts_passes', 'counts_evaluations', 'reads_targets_that_differ')
QUICK_HONEST = 'rope_tables', 'running_scale', 'statistics_that_nothing_reads', 'softmax_in_float32'


@pytest.mark.parametrize('name', QUICK_FAULTS)
def test_sees_a_fault_of_a_tiny_model(name, text, drop):
    sees_fault(name, text, drop, **TINY | FAULTS[name].circumstances)


@pytest.mark.parametrize('name', QUICK_HONEST)
def test_says_nothing_of_a_tiny_model_without_fault(name, text, drop):
    drop(name, HONEST[name])
    assert [c for c in judged(text, name, **TINY | CIRCUMSTANCES[name]) if c.why] == []


@pytest.mark.slow
@pytest.mark.parametrize('name', FAULTS)
def test_sees_a_fault(name, text, drop):
    sees_fault(name, text, drop, **FAULTS[name].circumstances)


@pytest.mark.slow
@pytest.mark.parametrize('name', HONEST)
def test_says_nothing_of_what_has_no_fault(name, text, drop):
    drop(name, HONEST[name])
    assert [c for c in judged(text, name, **CIRCUMSTANCES[name]) if c.why] == []
    assert [c for c in checks.run_suite(name, fast=True) if c.why] == []


# -----------------------------------------------------------------------------
# the suite

CRASHES = variant('crashes', 'Block', '''
def attn_out(self, y, step):
    return y + .1 * y.mean(1, keepdim=True) if step.cache is None else y + step.cache
''')


def test_a_crash_hides_nothing_and_leaks_come_first(drop, text):
    drop('crashes', CRASHES)
    found = list(judged(text, 'crashes', **TINY))
    assert found[0].status == 'LEAK found' and 'first in h.0 before h.0.ln_2' in found[0].why
    crash = next(c for c in found if c.status == 'CRASHED')
    assert crash.why.startswith('crashed in decoding as judged: crashes.py:9: return y + ')
    assert found[-1].status == 'ok'
    names = [name for name, _ in checks.list_checks('alibi')]
    is_leak_check = [name.startswith(checks.LEAKS) for name in names]
    assert is_leak_check == sorted(is_leak_check, reverse=True) and names[-1] == 'alibi when neutral is base'


def test_a_trained_model_is_checked_and_left_as_it_is(drop, text):
    drop('shut_by_a_relu', FAULTS['shut_by_a_relu'].source)
    data, m = Dataset(text, 24), machine('cpu', 'float32', False)
    c = TINY | dict(vocab_size=data.vocab_size)
    o = train.Options(variant='shut_by_a_relu', batch_size=c.pop('batch_size'), max_iters=20)
    model = build('shut_by_a_relu', 1, **c).train()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    assert [c for c in checks.check_trained(model, m, o, data) if c.why] == []
    assert model.training and all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    # what training might do
    with torch.no_grad():
        model.transformer.h[1].gate += 1
    first = next(c for c in checks.check_trained(model, m, o, data) if c.why)
    assert first.status == 'LEAK found' and 'first in h.1 before h.1.ln_2' in first.why


def test_declared_leaks_are_allowed_in_training_alone(drop, text):
    declared = "LEAKS = [(dict(), 'an average over the row')]\n"
    drop('open', FAULTS['only_in_training'].source + declared)
    assert [c for c in judged(text, 'open', **TINY) if c.why] == []
    drop('wide_open', FAULTS['mean_of_row'].source + declared)
    assert next(c for c in judged(text, 'wide_open', **TINY) if c.why).status == 'LEAK found'
