"""Ideas about the residual stream: what blocks read from it and how they add to it. Sublayers are nanoGPT's.

At level stack, in.x is the embedding and out.y what goes to ln_f.
"""
import re

import torch
from golden_common import Source, new_step

# what GPT.blocks() does not read
NOT_IN_STACK = 'wte.weight', 'wpe.weight', 'ln_f.weight', 'ln_f.bias', 'lm_head.weight'


def lns_options(config):
    c = dict(config, vocab_size=1)
    return dict(c, n_layer=c.pop('layer_index') + 1)


def last_block(model):
    model.transformer.h = model.transformer.h[-1:]


def x0_options(config):
    return dict(config, vocab_size=1, x0_start='identity')


def stack_name(name, config):
    return f'transformer.{name}', ...


def attnres_options(config):
    c = dict(config, block_size=1024, vocab_size=1)
    return dict(c, attnres_size={'full': 1, 'block': config['block_size']}[c.pop('mode')])


def attnres_name(name, config):
    """Returns our name and rows: their projections are matrices of one row."""
    ours = re.sub(r'\b(attn|mlp|final)_res_(proj|norm)', lambda m: f'{m[1]}_mean.{m[2]}', name)
    ours = ours.replace('proj.weight', 'query').replace('norm.weight', 'weight') if ours != name else name
    prefix = '' if ours.startswith('final') else 'transformer.'
    return prefix + ours, None if ours.endswith('query') else ...


def without_first_read(golden):
    """Drops the weights by which the first sublayer reads its single source; nothing depends on them."""
    for name in [n for n in golden.arrays if '.h.0.attn_res_' in n]:
        assert name.startswith('param.') or not golden.arrays[name].any(), name
        del golden.arrays[name]


def one_a_layer(golden, names):
    """Splits vectors over the layers into a number for each: {the source's name: ours}."""
    for name, a in list(golden.arrays.items()):
        prefix, _, theirs = name.partition('.')
        if theirs in names:
            del golden.arrays[name]
            golden.arrays |= {f'{prefix}.h.{i}.{names[theirs]}': value for i, value in enumerate(a)}


def inputs_of(**modules):
    """Returns a dict that collects what modules get, under their names."""
    seen = {}
    for name, module in modules.items():
        module.register_forward_pre_hook(lambda m, args, name=name: seen.__setitem__(name, args[0]))
    return seen


def norms_of(model):
    """Returns {h0.attn_in: the norm before it, ...} of all sublayers."""
    return {f'h{i}.{name}': norm for i, block in enumerate(model.transformer.h)
            for name, norm in dict(attn_in=block.ln_1, mlp_in=block.ln_2).items()}


def compare_pass(golden, source, module, forward, seen):
    """Compares all outputs and gradients of a pass from in.x to y; seen: what it fills on the way."""
    x = golden('in')['x'].requires_grad_()
    y = forward(x, new_step(golden, x))
    objective = (y * golden('in')['gy']).sum()
    objective.backward()
    seen = {name: torch.stack(a) if isinstance(a, list) else a for name, a in seen.items()}
    source.compare(golden, module, seen | dict(y=y, objective=objective), x)


# -- levels: (golden, source) -> everything that can be seen, compared

def lns_level(golden, source):
    block, _ = source.module(golden)
    compare_pass(golden, source, block, block, inputs_of(attn_in=block.attn, mlp_in=block.mlp))


def x0_level(golden, source):
    one_a_layer(golden, dict(resid_lambdas='resid_lambda', x0_lambdas='x0_lambda'))
    _, model = source.module(golden)
    seen = inputs_of(**{f'h{i}.x_in': block.ln_1 for i, block in enumerate(model.transformer.h)})
    compare_pass(golden, source, model, model.blocks, seen)


def attnres_level(golden, source):
    without_first_read(golden)
    _, model = source.module(golden)
    seen = inputs_of(**norms_of(model), sources=model.final_mean)
    compare_pass(golden, source, model, model.blocks, seen)


SOURCES = {
    'attnres': Source('attnres', attnres_options, name=attnres_name, not_ours=NOT_IN_STACK,
                      levels=dict(stack=attnres_level)),
    'lns': Source('lns', lns_options, last_block, levels=dict(block=lns_level)),
    'x0': Source('x0', x0_options, name=stack_name, not_ours=NOT_IN_STACK, levels=dict(stack=x0_level)),
}
