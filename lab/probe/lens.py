"""Every operation of a pass, by torchlens, where hooks see what modules put out: pip install torchlens.

    from lab.probe.lens import operations, open_runs
    run, = open_runs('out-surprise')
    trace = operations(run, run.encode('ROMEO:'))
    trace['sigmoid_1'].out

nnsight, which changes what modules put out, takes a model as it is: within NNsight(run.model).trace(idx,
step=run.step()) as nnsight's documentation has it.
"""
import torch

from core.errors import Stop
from lab.probe.hooks import eager
from lab.probe.runs import open_runs  # noqa: F401 for notebooks


@torch.no_grad()
def operations(run, idx):
    """Returns torchlens's Trace of a pass over idx (B, T): each operation by name, its output and parents.

    The last is 'output_1', the logits (B, T, vocab_size). Stop without torchlens.
    """
    try:
        import torchlens
    except ImportError:
        raise Stop('operations need torchlens: pip install torchlens') from None
    with run.machine.precision():
        return torchlens.trace(eager(run.model), [idx], dict(step=run.step()))
