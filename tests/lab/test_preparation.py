"""Before training, each arm is checked: what refuses it, and what the refusal advises."""
import dataclasses
from types import SimpleNamespace

import pytest
from faults import FAULTS, variant
from helpers import shakespeare

import ab
import train
from configurator import Given, construct
from core.errors import BAD_INPUT, Stop
from lab import checks
from lab.study.arm import Arm
from lab.study.pool import Slot
from lab.study.preparation import check_arms, refuse_idle_arms
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


# -----------------------------------------------------------------------------
# arms that do nothing

def study_of(text, arms):
    """Returns a study of these arms, (name, options) each, the baseline first, as far as refuse_idle_arms() looks."""
    made = []
    for name, given in arms:
        given = dict(given)
        model_args = dict(block_size=16, vocab_size=52, n_layer=2, n_head=2, n_embd=16)
        o = train.Options(dataset=text, **{n: given.pop(n) for n in ('variant', 'learning_rate') if n in given})
        config = load_classes(o.variant).GPTConfig(**model_args | given)
        made.append(Arm(name, o, dataclasses.asdict(config), {}))
    return SimpleNamespace(baseline=made[0], judged_arms=lambda: made[1:])


def test_an_arm_that_is_the_baseline_is_refused_before_it_trains(text):
    """As sliding_window was, with a window of 64 in a context of 64."""
    with pytest.raises(Stop, match=r'^arm near is the baseline: sliding_window does nothing with window=16 at '
                                   r'block_size=16, .*; window=8 would$') as stop:
        refuse_idle_arms(study_of(text, [('base', {}), ('near', dict(variant='sliding_window', window=16))]))
    assert stop.value.code == BAD_INPUT and '\n' not in str(stop.value)


def test_a_part_that_does_nothing_beside_the_others_is_refused(text):
    arm = 'both', dict(variant='rmsnorm+sliding_window', window=16)
    with pytest.raises(Stop, match=r'^arm both is the same without sliding_window: .* with window=16'):
        refuse_idle_arms(study_of(text, [('base', {}), arm]))


def test_arms_that_differ_are_trained(text, drop, capsys):
    drop('crashes', variant('crashes', 'Block', 'def attn_out(self, y, step):\n    return y + step.nothing'))
    arms = [('base', {}), ('fast', dict(learning_rate=0.1)), ('math', dict(attn='math')),
            ('near', dict(variant='sliding_window', window=8)), ('crashes', dict(variant='crashes')),
            ('dropout', dict(dropout=0.1))]
    refuse_idle_arms(study_of(text, arms))
    assert capsys.readouterr().out == ''


def test_an_idle_variant_beside_other_options_is_said(text, capsys):
    arms = [('base', {}), ('near', dict(variant='sliding_window', window=16, learning_rate=0.1))]
    refuse_idle_arms(study_of(text, arms))
    out = capsys.readouterr().out
    assert out.startswith('arm near is the baseline: ') and out.endswith('training are all that differs\n')
