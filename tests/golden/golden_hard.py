"""Hard windows. The source adds 1e-10 to the weights and to their window before it divides; the tests add it
around our code."""
import torch
from golden_common import Source, attention_pass
from golden_nano import model_level, soft_name, soft_options, tanh_gelu

from core.nn.attention import attention_weights, change_scores, score_function

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
    module, x, step, (y, objective), (q, k, pos_k) = attention_pass(golden, source)
    weights = lambda mod: attention_weights(q, k, step.pos, pos_k, mod)[1]
    att = weights(module.score_mod(x, pos_k, step))
    added = change_scores(torch.zeros_like(att), step.pos, pos_k, module.ours(x, pos_k, step))
    scaling = (added.exp() + FLOOR).tril()
    outs = dict(y=y, objective=objective, att=att, att_softmax=weights(None), att_window_scaling=scaling)
    outs['window'] = step.stats['window'][0]
    source.compare(golden, module, outs, x)


SOURCES = {
    'hard': Source('hard_window', hard_options, hard_model, soft_name, levels=dict(attn=attn_level, model=model_level)),
}
