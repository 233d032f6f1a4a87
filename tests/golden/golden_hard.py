"""Hard windows. The source adds 1e-10 to the weights and to their window before it divides; so do the tests, around ours."""
import pytest
import torch
from golden_common import Source, new_step, spy
from golden_nano import model_level, soft_name, soft_options, tanh_gelu

from core.errors import Stop
from core.nn.attention import math_attention

FLOOR = 1e-10


def hard_options(config):
    return dict(soft_options(config), min_window=1.0)


def hard_model(model):
    tanh_gelu(model)
    for block in model.transformer.h:
        with_floor(block.attn)


def with_floor(attn):
    ours = attn.score_mod

    def score_mod(x, pos_k, step):
        f, form = ours(x, pos_k, step)
        later = pos_k[:, None, None, :] > step.pos[:, None, :, None]

        def mod(s, b, h, i, j):
            a = s.masked_fill(later, float('-inf')).softmax(-1)
            return ((a + FLOOR) * (f(torch.zeros_like(s), b, h, i, j).exp() + FLOOR)).log()
        return mod, form
    attn.ours, attn.score_mod = ours, score_mod


def attn_level(golden, source, attn):
    module, _ = source.module(golden, attn)
    x, step, calls = golden('in')['x'].requires_grad_(), new_step(golden, golden('in')['x']), []
    spy(module, 'attend', calls)
    y = module(x, step)
    objective = (y * golden('in')['gy']).sum()
    objective.backward()
    (q, k, v, _, pos_k, _), _ = calls[0]
    one_hot = torch.eye(x.size(1), dtype=v.dtype).expand(*v.shape[:2], -1, -1) # as values, they show the weights
    weights = lambda mod: math_attention(q, k, one_hot, step.pos, pos_k, mod, 0.0)
    att = weights(module.score_mod(x, pos_k, step)[0])
    b, h, i, j = (torch.arange(n) for n in att.shape)
    added = module.ours(x, pos_k, step)[0](torch.zeros(()), b.view(-1, 1, 1, 1), h.view(-1, 1, 1), i.view(-1, 1), j)
    scaling = torch.where(j <= i.view(-1, 1), added.exp() + FLOOR, 0.0)
    outs = dict(y=y, objective=objective, att=att, att_softmax=weights(None), att_window_scaling=scaling)
    outs['window'] = step.stats['window'][0]
    source.compare(golden, module, outs, x)


def both(level):
    """What attn=sdpa cannot express it refuses; attn=auto takes its place."""
    def run(golden, source, attn):
        if attn == 'sdpa':
            with pytest.raises(Stop, match='attn=sdpa: cannot express'):
                level(golden, source, attn)
            attn = 'auto'
        level(golden, source, attn)
    return run


SOURCES = {
    'hard': Source('hard_window', hard_options, hard_model, soft_name, levels=dict(attn=both(attn_level), model=both(model_level))),
}
