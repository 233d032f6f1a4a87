"""Multi-token prediction: with a head for each token, and by weights without heads."""
import torch
from golden_common import Source, spy
from torch import nn

from model import Step, build


def heads_options(config):
    # the source counts its extra heads among the layers
    return dict(config, n_layer=config['n_layer'] - config['n_future'] + 1)


def heads_level(golden, source):
    _, model = source.module(golden)
    idx, targets, step, logits = golden('in')['idx'], golden('in')['targets'], Step(), []
    spy(model, 'logits', logits)
    _, loss = model(idx, targets, step)
    loss.backward()
    # head 0 comes first
    (_, first), *extra = logits
    parts = [loss - sum(step.losses.values()), *step.losses.values()]
    outs = dict(loss=loss, logits=torch.stack([first, *(out for _, out in extra)], dim=2))
    source.compare(golden, model, outs | {f'loss{i}': part for i, part in enumerate(parts)})


def weighted_level(golden, source):
    c, wanted = golden.meta['config'], golden('in')['weights']
    logits, targets = nn.Parameter(golden('in')['logits']), golden('in')['targets']
    model = build(source.variant, vocab_size=c['vocab_size'], n_layer=1, n_embd=1, n_head=1).train()
    progress = torch.linspace(0, 1, c['schedule_steps'] + 1, dtype=torch.float64)
    schedule = torch.stack([torch.ones_like(progress), *model.weights(progress)], dim=1)

    assert wanted.tolist() == c['weights']
    # ours has a weight of 1 for the next token
    first = wanted[0]
    model.weights = lambda progress: wanted[1:] / first
    step = Step(it=progress[0])
    step.model = model
    # the source sums over tokens
    parts = [model.loss(logits, targets, None, step), *step.losses.values()]
    loss = first * sum(parts) * targets.numel()
    loss.backward()
    each = torch.stack([model.nll_ahead(logits, targets, k) for k in range(len(wanted))], dim=2)
    module = nn.ParameterDict(dict(logits=logits))
    source.compare(golden, module, dict(loss=loss, schedule=schedule, cross_entropy=each), logits)


SOURCES = {
    'mtp': Source('mtp', heads_options, not_ours=('lm_head.weight',), levels=dict(model=heads_level)),
    'mtp_weighted': Source('mtp_weighted', name=lambda name, config: (name.removeprefix('in.'), ...),
                           levels=dict(loss=weighted_level)),
}
