"""Libraries that look into a plain nn.Module see this project's models as they are."""
import sys
from importlib.util import find_spec

import pytest
import torch
from made_runs import made_run

from core.errors import Stop
from lab.probe.hooks import record
from lab.probe.lens import operations


def needs(package):
    return pytest.mark.skipif(not find_spec(package), reason=f'needs pip install {package}')


@pytest.fixture
def run(data):
    return made_run(data, 'soft_window')


def test_without_torchlens_one_line_says_what_to_install(run, monkeypatch):
    monkeypatch.setitem(sys.modules, 'torchlens', None)
    with pytest.raises(Stop, match='^operations need torchlens: pip install torchlens$'):
        operations(run, torch.zeros(1, 3, dtype=torch.long))


@pytest.mark.slow
@needs('torchlens')
def test_torchlens_has_each_operation_and_the_same_logits(run):
    idx, _ = next(run.windows(2))
    logits = run.logits(idx)
    trace = operations(run, idx)
    assert torch.equal(trace['output_1'].out, logits)
    # the slopes of the windows, which no module puts out
    with record(run.model, 'transformer.h.0.attn.window') as found:
        assert torch.equal(run.logits(idx), logits)
    z, = found.values()
    assert torch.equal(trace['sigmoid_1'].out, torch.sigmoid(-z.mT - torch.tensor(32.0).double().log()))


@pytest.mark.slow
@needs('nnsight')
def test_nnsight_sees_and_changes_what_modules_put_out(run):
    from nnsight import NNsight
    idx, _ = next(run.windows(2))
    logits, model = run.logits(idx), NNsight(run.model)
    with torch.no_grad(), model.trace(idx, step=run.step()):
        out = model.output.save()
    assert torch.equal(out[0], logits)
    with torch.no_grad(), model.trace(idx, step=run.step()):
        model.transformer.h[1].mlp.output[:] = 0
        changed = model.output.save()
    assert not torch.equal(changed[0], logits) and torch.equal(run.logits(idx), logits)
