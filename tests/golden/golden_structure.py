"""Numbers of the source that feeds back attention's statistics: head scaling, relative location, embedding
gate."""
import torch
from golden_common import Source, new_step, spy
from torch import nn

from model import Step
from variants._moments import attend_and_measure, source_units


def options(config):
    return dict(config, features='source')


def relative_options(config):
    return dict(options(config), stream='post', wide_hidden=True)


def tanh_gelu(model):
    for module in model.modules():
        if hasattr(module, 'gelu'):
            module.gelu = nn.GELU(approximate='tanh')


def relative_name(name, config):
    for kind in 'scale', 'bias':
        for i, what in enumerate(('rel', 'std')):
            if name.endswith(f'{what}_{kind}_norm_params'): # both in one parameter
                return name.replace(f'{what}_{kind}_norm_params', dict(scale='scale', bias='offset')[kind]), i
    return name.replace('ln_att_loc', 'mlp.ln_loc'), slice(None)


def split_mlp(golden):
    """Splits the source's first layer, which reads [x, statistics], into our two matrices."""
    arrays, C = {}, golden.meta['config']['n_embd']
    for name, a in golden.arrays.items():
        if name.endswith('mlp.c_fc.weight'):
            arrays[name], arrays[name.replace('c_fc', 'loc_fc')] = a[:, :C], a[:, C:]
        else:
            arrays[name] = a
    golden.arrays = arrays


def attention_outs(attn, args):
    """Returns what the attention of one layer saw, by the source's names; args: those of its attend()."""
    q, k, v, x, pos_k, step = args
    # as values, they show the weights
    one_hot = torch.eye(x.size(1), dtype=v.dtype).expand(*v.shape[:2], -1, -1)
    att, distance, variance, score = attend_and_measure(attn, q, k, one_hot, x, pos_k, Step(step.pos))
    rel, std = source_units(distance, variance, attn.config.block_size)
    outs = dict(att=att, avg_logit_raw=score, att_loc_rel_raw=rel, att_loc_std_raw=std)
    if ('loc', attn.layer) in step.shared:
        return outs | dict(att_loc=step.shared['loc', attn.layer])
    f = attn.structure(distance, variance, score, step)
    return outs | dict(att_loc=f, head_scaling=2 * torch.sigmoid(attn.mlp_scale(f)).transpose(1, 2))


def load(golden, source):
    if source.variant == 'relative_location':
        split_mlp(golden)
    return source.module(golden)


def attn_level(golden, source):
    module, _ = load(golden, source)
    x, step, calls = golden('in')['x'].requires_grad_(), new_step(golden, golden('in')['x']), []
    spy(module, 'attend', calls)
    y = module(x, step)
    outs = attention_outs(module, calls[0][0]) | dict(y=y)
    objective = (y * golden('in')['gy']).sum()
    if 'g_att_loc' in golden('in'):
        objective = objective + (outs['att_loc'] * golden('in')['g_att_loc']).sum()
    objective.backward()
    source.compare(golden, module, outs | dict(objective=objective), x)


def block_level(golden, source):
    module, _ = load(golden, source)
    x, step, outs, calls = golden('in')['x'].requires_grad_(), new_step(golden, golden('in')['x']), {}, []
    spy(module.attn, 'attend', calls)
    mids = []
    spy(module, 'mlp_residual', mids)
    for name, part in module.named_modules():
        ours = {'mlp.ln_loc': 'att_loc_ln', 'mlp_scale': 'mlp_scale', 'mlp_bias': 'mlp_bias',
                'mlp_loc': 'mlp_loc', 'mlp': 'mlp'}
        if name in ours:
            part.register_forward_hook(lambda m, args, y, to=ours[name]: outs.__setitem__(to, y))
    y = module(x, step)
    objective = (y * golden('in')['gy']).sum()
    objective.backward()
    outs |= attention_outs(module.attn, calls[0][0]) | dict(y=y, x_mid=mids[0][0][0], objective=objective)
    source.compare(golden, module, outs, x)


def model_level(golden, source):
    _, model = load(golden, source)
    idx, targets = golden('in')['idx'], golden('in')['targets']
    outs, step, calls = {}, Step(), []
    for i, block in enumerate(model.transformer.h):
        spy(block.attn, 'attend', calls)
        block.register_forward_hook(lambda m, args, y, i=i: outs.setdefault(f'h{i}.block', y))
    logits, loss = model(idx, targets, step)
    loss.backward()
    for i, (block, (args, _)) in enumerate(zip(model.transformer.h, list(calls), strict=True)):
        outs |= {f'h{i}.{name}': out for name, out in attention_outs(block.attn, args).items()}
    outs |= dict(logits=logits, loss=loss, logits_last=model(idx)[0])
    source.compare(golden, model, outs)
    assert model.get_num_params() == golden.meta['num_params']
    assert model.get_num_params(non_embedding=False) == golden.meta['num_params_all']


levels = dict(attn=attn_level, block=block_level, model=model_level)
SOURCES = {
    'headscale': Source('head_scaling', options, tanh_gelu, levels=levels),
    'autoreg': Source('relative_location', relative_options, tanh_gelu, relative_name, levels=levels),
    'embgate': Source('embedding_gate', options, tanh_gelu, levels=levels),
}
