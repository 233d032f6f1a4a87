"""Ideas about the residual stream: what blocks read from it and how they add to it. Sublayers are nanoGPT's.

At level stack, in.x is the embedding and out.y what goes to ln_f.
"""
import re
from unittest import mock

import torch
import torch.nn.functional as F
from golden_common import Source, new_step

from variants import mhc

# what trunk() does not read
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
    # the source's blocks are of block_size // 2 whole layers
    return dict(c, attnres_size={'full': 1, 'block': config['block_size'] // 2 * 2}[c.pop('mode')])


def attnres_name(name, config):
    """Returns our name and rows: their projections are matrices of one row."""
    ours = re.sub(r'\b(attn|mlp|final)_res_(proj|norm)', lambda m: f'{m[1]}_mean.{m[2]}', name)
    ours = ours.replace('proj.weight', 'query').replace('norm.weight', 'weight') if ours != name else name
    prefix = '' if ours.startswith('final') else 'transformer.'
    return prefix + ours, None if ours.endswith('query') else ...


def hyper_options(config):
    return renamed(dict(config, vocab_size=1), rate='hyper_rate', dynamic='hyper_dynamic')


def lucid_options(config):
    return renamed(dict(config, vocab_size=1, hyper_norm='rms'), rate='hyper_rate', tanh='hyper_tanh')


def mhc_options(config):
    return renamed(dict(config, vocab_size=1), rate='mhc_rate', sinkhorn_iters='mhc_sinkhorn')


def loop_options(config):
    return renamed(config, sandwich='post_norm')


def renamed(config, **names):
    """Returns a config with some fields under our names."""
    return {names.get(name, name): value for name, value in config.items()}


def hyper_name(name, config):
    """Returns our name and rows: both scales are in one vector."""
    ours = 'transformer.' + name.replace('norm.gamma', 'gamma')
    ours = re.sub('dynamic_(alpha|beta)_scale', 'dynamic_scale', ours)
    if ours.endswith('scale'):
        return ours, slice(0, 1) if name.endswith('alpha_scale') else slice(1, 2)
    return ours, ...


def mhc_name(name, config):
    return (name.replace('.hc_', '.') if name.startswith('hc_head') else f'transformer.{name}'), ...


def loop_name(name, config):
    name = name.replace('ln_1b', 'ln_attn_out').replace('ln_2b', 'ln_mlp_out').replace('early_exit', 'exit')
    return (name if name.startswith(('exit_gate', 'lm_head')) else f'transformer.{name}'), ...


def reshape(golden, last, shape):
    """Gives parameters, and their gradients, whose name ends so our shape."""
    for name, a in golden.arrays.items():
        if name.endswith('.' + last):
            golden.arrays[name] = a.view(shape)


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


def trunk(model):
    """Returns the function from a model's embedding, and the step, to what its last norm reads."""
    return lambda x, step: model.narrow(model.blocks(model.widen(x, step), step), step)


def norms_of(model):
    """Returns {h0.attn_in: the norm before it, ...} of all sublayers."""
    return {f'h{i}.{name}': norm for i, block in enumerate(model.transformer.h)
            for name, norm in dict(attn_in=block.ln_1, mlp_in=block.ln_2).items()}


def compare_pass(golden, source, module, forward, *seen):
    """Compares all outputs and gradients of a pass from in.x to y; seen: dicts that it fills on the way."""
    x = golden('in')['x'].requires_grad_()
    y = forward(x, new_step(golden, x))
    objective = (y * golden('in')['gy']).sum()
    objective.backward()
    outs = dict(y=y, objective=objective)
    for name, a in (item for one in seen for item in one.items()):
        outs[name] = torch.stack(a) if isinstance(a, list) else a
    source.compare(golden, module, outs, x)


# -- levels: (golden, source) -> everything that can be seen, compared

def lns_level(golden, source):
    block, _ = source.module(golden)
    compare_pass(golden, source, block, block, inputs_of(attn_in=block.attn, mlp_in=block.mlp))


def x0_level(golden, source):
    one_a_layer(golden, dict(resid_lambdas='resid_lambda', x0_lambdas='x0_lambda'))
    _, model = source.module(golden)
    seen = inputs_of(**{f'h{i}.x_in': block.ln_1 for i, block in enumerate(model.transformer.h)})
    compare_pass(golden, source, model, trunk(model), seen)


def attnres_level(golden, source):
    without_first_read(golden)
    _, model = source.module(golden)
    seen = inputs_of(**norms_of(model), sources=model.final_mean)
    compare_pass(golden, source, model, trunk(model), seen)


def streams_of(model):
    """Returns a dict that collects the streams after each block."""
    seen = {}
    for i, block in enumerate(model.transformer.h):
        block.register_forward_hook(lambda m, args, y, i=i: seen.__setitem__(f'h{i}.streams', y))
    return seen


def hyper_level(golden, source):
    # numbers in one source, vectors of one in the other
    for scale in 'dynamic_alpha_scale', 'dynamic_beta_scale':
        reshape(golden, scale, (1,))
    _, model = source.module(golden)
    compare_pass(golden, source, model, trunk(model), inputs_of(**norms_of(model)), streams_of(model))


def mhc_level(golden, source):
    _, model = source.module(golden)
    seen, mixed, sinkhorn = streams_of(model), [], mhc.sinkhorn
    for i, block in enumerate(model.transformer.h):
        block.hc_attn.register_forward_hook(lambda m, args, out, i=i: seen.__setitem__(f'h{i}.post', out[-1]))

    def noted(x, step):
        with mock.patch.object(mhc, 'sinkhorn', lambda *args: mixed.append(sinkhorn(*args)) or mixed[-1]):
            y = trunk(model)(x, step)
        # attention's and the MLP's in turn
        seen.update({f'h{i}.comb': r for i, r in enumerate(mixed[::2])})
        return y
    compare_pass(golden, source, model, noted, inputs_of(**norms_of(model)), seen)


def loop_level(golden, source):
    _, model = source.module(golden)
    x = golden('in')['x'].requires_grad_()
    step = new_step(golden, x)
    y = model.transformer.ln_f(model.blocks(x, step))
    hidden, p = torch.stack([*step.shared['passes'], y]), step.shared['log_exit'].exp()
    # the published code averages logits where the paper averages losses
    logits = (p[..., None] * model.logits(hidden, step)).sum(0)
    loss = F.cross_entropy(logits.flatten(0, 1), golden('in')['targets'].flatten(), ignore_index=-1)
    loss.backward()
    source.compare(golden, model, dict(
        y=y, hidden=hidden, gate_logits=model.exit_gate(hidden)[..., 0].permute(1, 2, 0),
        exit_pdf=p.permute(1, 2, 0), logits=logits, loss=loss), x)


SOURCES = {
    'attnres': Source('attnres', attnres_options, name=attnres_name, not_ours=NOT_IN_STACK,
                      constants=dict(rms_eps=1e-6), levels=dict(stack=attnres_level)),
    'lns': Source('lns', lns_options, last_block, levels=dict(block=lns_level)),
    'hyper': Source('hyper', hyper_options, name=hyper_name, not_ours=NOT_IN_STACK,
                    constants=dict(ln_eps=1e-5), levels=dict(stack=hyper_level)),
    'hyper_lucid': Source('hyper', lucid_options, name=hyper_name, not_ours=NOT_IN_STACK,
                          levels=dict(stack=hyper_level)),
    'loop': Source('loop+post_norm', loop_options, name=loop_name, not_ours=('wte.weight', 'wpe.weight'),
                   levels=dict(stack=loop_level)),
    'mhc': Source('mhc', mhc_options, name=mhc_name, not_ours=NOT_IN_STACK,
                  constants=dict(hc_eps=mhc.EPS, rms_eps=mhc.EPS), levels=dict(stack=mhc_level)),
    'x0': Source('x0', x0_options, name=stack_name, not_ours=NOT_IN_STACK, levels=dict(stack=x0_level)),
}
