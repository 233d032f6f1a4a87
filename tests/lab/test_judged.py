"""Checks of the model that is judged see sixty faults, and nothing in what has none."""
import re

import pytest
import torch
from faults import FAULTS, RECIPE
from helpers import shakespeare
from honest import CIRCUMSTANCES, HONEST

import train
from core.assemble import variant_names
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


def first_finding(text, name, **circumstances):
    return next((f'{c.name}: {c.why}' for c in judged(text, name, **circumstances) if c.why), 'nothing')


@pytest.mark.slow
@pytest.mark.parametrize('name', FAULTS)
def test_sees_a_fault(name, text, drop):
    drop(name, FAULTS[name].source)
    found = first_finding(text, name, **FAULTS[name].circumstances)
    assert re.search(FAULTS[name].says, found), found


@pytest.mark.slow
@pytest.mark.parametrize('name', HONEST)
def test_says_nothing_of_what_has_no_fault(name, text, drop):
    drop(name, HONEST[name])
    assert [c for c in judged(text, name, **CIRCUMSTANCES[name]) if c.why] == []
    assert [c for c in checks.run_suite(name, fast=True) if c.why] == []
