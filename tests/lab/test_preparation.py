"""Before training, each arm is checked: what refuses it, and what the refusal advises."""
import dataclasses
from types import SimpleNamespace

import pytest
from faults import FAULTS, variant
from helpers import shakespeare

import ab
import train
from configurator import Given, construct
from core.errors import Stop
from lab import checks
from lab.study.arm import Arm
from lab.study.pool import Slot
from lab.study.preparation import check_arms
from lab.study.worker import run_task
from model import load_classes

pytestmark = pytest.mark.usefixtures('somewhere_else')

# decodes otherwise than it evaluates, and is not the baseline
NOT_NEUTRAL = variant('not_neutral', 'Block', '''
def attn_out(self, y, step):
    return y * (1.1 if step.cache is None else 1.2)
''')


@pytest.fixture(scope='module')
def text(tmp_path_factory):
    return str(shakespeare(tmp_path_factory.mktemp('preparation') / 'text'))


@pytest.fixture(autouse=True)
def only_judged_models(monkeypatch):
    """Leaves out the checks of small models, which take longer than a test should."""
    monkeypatch.setattr(checks, 'run_suite', lambda *args, **options: [])


def check(text, name, which):
    """Checks an arm of a tiny study in this process; returns what the report keeps of it."""
    o = train.Options(variant=name, dataset=text, batch_size=4, max_iters=20, device='cpu', dtype='float32')
    model_args = dict(block_size=16, vocab_size=52, n_layer=2, n_head=2, n_embd=16)
    arm = Arm('mine', o, dataclasses.asdict(load_classes(name).GPTConfig(**model_args)), {})
    here = SimpleNamespace(run=lambda tasks: [(task, run_task(task, Slot('', 1), {})) for task in tasks])
    study = SimpleNamespace(arms=[arm], key=lambda arm: arm.name)
    return check_arms(study, here, which)['mine']


def test_a_leak_is_refused_by_name(text, drop, capsys):
    drop('mean_of_row', FAULTS['mean_of_row'].source)
    with pytest.raises(Stop, match=r'^arm mine: leaks as judged, evaluation: position 0 sees token 1, first in h.0 '
                                   r'before h.0.ln_2 .*--check=none trains without any check$'):
        check(text, 'mean_of_row', 'leaks')
    # whatever else was seen is not lost
    assert 'arm mine: leaks as judged, training: position 0 sees token 1' in capsys.readouterr().out


def test_what_is_no_leak_keeps_the_leak_checks(text, drop):
    drop('not_neutral', NOT_NEUTRAL)
    with pytest.raises(Stop, match=r'^arm mine: decoding as judged: .*; --check=leaks looks for leaks alone$'):
        check(text, 'not_neutral', 'all')
    kept = check(text, 'not_neutral', 'leaks')
    assert kept['status'] == 'ok' and all(line.startswith('leaks as judged') for line in kept['lines'])


@pytest.mark.parametrize('typed, means', [
    ('all', 'all'), ('leaks', 'leaks'), ('none', 'none'), ('True', True), ('False', False)])
def test_older_commands_are_understood(typed, means):
    options = construct(ab.Options, ab.parse_known(ab.options_of(ab.Options), [Given('check', typed, 'command line')]))
    assert options.check == means
