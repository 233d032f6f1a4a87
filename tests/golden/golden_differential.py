"""Differential attention, V1 and V2, with the source's grouped keys and rotary positions."""
import re

from golden_common import Source, attention_pass, fill, new_step, rope_base, spy
from torch import nn

from model import build


def first_options(config):
    return dict(n_embd=config['n_embd'], n_head=config['n_head'], n_kv_head=config['n_kv_head'],
                n_layer=config['depth'] + 1, rope_share=float(config['rope']))


def last_block_first(model):
    """Puts the block whose depth the file has where the level looks for its module."""
    model.transformer.h[0] = model.transformer.h[-1]


def first_name(name, config):
    if name.startswith('lambda_'):
        return 'lambda_qk', ('qk'.index(name[-2]), int(name[-1]) - 1)
    head = config['n_embd'] // config['n_head']
    return joined_name(name, config['n_embd'], config['n_kv_head'] * head)


def joined_name(name, queries, keys):
    """Returns our name: queries, keys and values are rows of c_attn."""
    start, ends = 0, dict(q_proj=queries, k_proj=queries + keys, v_proj=queries + 2 * keys)
    for part, end in ends.items():
        if name == f'{part}.weight':
            return 'c_attn.weight', slice(start, end)
        start = end
    return re.sub(r'^(out|o)_proj', 'c_proj', name).replace('subln.weight', 'head_norm'), ...


def first_level(golden, source):
    module, _ = source.module(golden)
    module.config.rope_base = rope_base(golden)
    x, weights, norms = golden('in')['x'].requires_grad_(), [], []
    spy(module, 'weight_of_second', weights)
    spy(module, 'norm_heads', norms)
    y = module(x, new_step(golden, x))
    objective = (y * golden('in')['gy']).sum()
    objective.backward()
    outs = dict(y=y, objective=objective, lambda_full=weights[0][1], diff=norms[0][0][0])
    source.compare(golden, module, outs, x)


class Second(Source):
    """A source whose heads need not fill its residual stream, with the queries of both maps in one matrix."""

    def module(self, golden):
        c, arrays = golden.meta['config'], golden.arrays
        C, n_head, hd = c['n_embd'], c['n_head'], c['head_dim']
        for kind in 'param', 'grad':
            maps = arrays.pop(f'{kind}.q_proj.weight').view(n_head, 2, hd, C)
            for i, name in enumerate(('q_proj', 'c_query')):
                arrays[f'{kind}.{name}.weight'] = maps[:, i].reshape(-1, C)
        model = build(self.variant, n_layer=1, n_embd=n_head * hd, n_head=n_head, n_kv_head=c['n_kv_head'],
                      rope_share=float(c['rope']), rope_base=rope_base(golden)).double()
        attn = model.transformer.h[0].attn
        for name, linear in list(attn.named_children()):
            if name in ('c_attn', 'c_query', 'lambda_proj'):
                setattr(attn, name, nn.Linear(C, linear.out_features, bias=False).double())
        attn.c_proj = nn.Linear(n_head * hd, C, bias=False).double()
        fill(attn, golden('param'), self.name, c)
        return attn, model


def second_name(name, config):
    return joined_name(name, config['n_head'] * config['head_dim'], config['n_kv_head'] * config['head_dim'])


def second_level(golden, source):
    module, x, step, (y, objective), _ = attention_pass(golden, source)
    outs = dict(y=y, objective=objective)
    outs['lambda'] = step.stats['lambda'][0]
    source.compare(golden, module, outs, x)


SOURCES = {
    'diff': Source('diff_attention+gqa+rope', first_options, last_block_first, first_name,
                   constants=dict(rms_eps=1e-5), levels=dict(attn=first_level)),
    'diff2': Second('diff_attention_v2+gqa+rope', name=second_name, levels=dict(attn=second_level)),
}
