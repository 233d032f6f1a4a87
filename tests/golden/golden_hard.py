"""Hard windows. The source adds 1e-10 to the weights and to their window before it divides; the tests add it
around our code."""
import torch
from golden_common import Source, new_step, spy
from golden_nano import model_level, soft_name, soft_options, tanh_gelu

from core.nn.attention import attention_weights, score_function

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
        window = score_function(ours(x, pos_k, step), step.pos, pos_k)
        later = pos_k[:, None, None, :] > step.pos[:, None, :, None]

        def f(s, b, h, i, j):
            a = s.masked_fill(later, float('-inf')).softmax(-1)
            return ((a + FLOOR) * (window(torch.zeros_like(s), b, h, i, j).exp() + FLOOR)).log()
        return f
    attn.ours, attn.score_mod = ours, score_mod


def attn_level(golden, source):
    module, _ = source.module(golden)
    x, step, calls = golden('in')['x'].requires_grad_(), new_step(golden, golden('in')['x']), []
    spy(module, 'attend', calls)
    y = module(x, step)
    objective = (y * golden('in')['gy']).sum()
    objective.backward()
    (q, k, _, _, pos_k, _), _ = calls[0]
    weights = lambda mod: attention_weights(q, k, step.pos, pos_k, mod)[1]
    att = weights(module.score_mod(x, pos_k, step))
    b, h, i, j = (torch.arange(n) for n in att.shape)
    window = score_function(module.ours(x, pos_k, step), step.pos, pos_k)
    added = window(torch.zeros(()), b.view(-1, 1, 1, 1), h.view(-1, 1, 1), i.view(-1, 1), j)
    scaling = torch.where(j <= i.view(-1, 1), added.exp() + FLOOR, 0.0)
    outs = dict(y=y, objective=objective, att=att, att_softmax=weights(None), att_window_scaling=scaling)
    outs['window'] = step.stats['window'][0]
    source.compare(golden, module, outs, x)


SOURCES = {
    'hard': Source('hard_window', hard_options, hard_model, soft_name, levels=dict(attn=attn_level, model=model_level)),
}
