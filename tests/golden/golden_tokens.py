"""Ideas that read tokens or their embeddings: the smear gate, value embeddings."""
import torch
from golden_common import Source, new_step, spy

from model import Step


def parameters(*modules):
    return tuple(f'{module}.{p}' for module in modules for p in ('weight', 'bias'))


# of our whole model, around a file's part
AROUND = parameters('wte', 'wpe', 'lm_head', 'ln_1', 'ln_2', 'ln_f', 'mlp.c_fc', 'mlp.c_proj')
ATTENTION = parameters('attn.c_attn', 'attn.c_proj')


def smear_options(config):
    assert config['source'] in ('nanochat', 'modded') # one formula, on embeddings after or before a norm
    return dict(n_embd=config['n_embd'], n_head=1, n_layer=1, smear_channels=config['gate_channels'])


def smear_name(name, config):
    return name.removesuffix('.weight'), None # a row of one matrix, or one number


def smear_level(golden, source):
    _, model = source.module(golden)
    x, step = golden('in')['x'].requires_grad_(), Step()
    y = model.smear(x, step)
    objective = (y * golden('in')['gy']).sum()
    objective.backward()
    outs = dict(y=y, objective=objective)
    if 'cached' in golden('out'):
        outs['cached'] = one_by_one(model.smear, x, golden.meta['T'] - 3)
    source.compare(golden, model, outs, x)


def one_by_one(f, x, prompt):
    """Returns f(x, step) computed in passes with a cache: a prompt, then single tokens."""
    cache = [{}]
    return torch.cat([f(part, Step(cache=cache)) for part in (x[:, :prompt], *x[:, prompt:].split(1, dim=1))], dim=1)


class Around(Source):
    """A source of which our model keeps a part outside of the module of the file's level."""

    def module(self, golden):
        golden.meta['level'] = 'model'
        return super().module(golden)


def value_options(config):
    # a form without a gate reads no channels
    channels = {'value_channels': config['ve_gate_channels']} if config['form'] == 'gate' else {}
    return channels | dict(value_form=config['form'], value_every=1, n_layer=1, n_embd=config['n_embd'],
                           n_head=config['n_head'], vocab_size=config['vocab_size'], bias=config['bias'])


def value_name(name, config):
    if name == 'value_embed.weight':
        return name, ...
    return 'transformer.h.0.attn.' + name.replace('ve_gate', 'value_gate').replace('lamb', 'value_lambda'), ...


def value_level(golden, source):
    _, model = source.module(golden)
    x, idx, calls = golden('in')['x'].requires_grad_(), golden('in')['idx'], []
    step, attn = new_step(golden, x), model.transformer.h[0].attn
    model.embed(idx, step)
    spy(attn, 'values', calls)
    y = attn(x, step)
    objective = (y * golden('in')['gy']).sum()
    objective.backward()
    outs = dict(y=y, objective=objective, v=calls[0][1].transpose(1, 2).flatten(2))
    if 'value_gate' in step.stats:
        outs['gate'] = step.stats['value_gate'][0]
    source.compare(golden, model, outs, x)


SOURCES = {
    'smear': Source('smear', smear_options, name=smear_name, not_ours=AROUND + ATTENTION,
                    levels=dict(module=smear_level)),
    'value_embed': Around('value_embed', value_options, name=value_name, not_ours=AROUND,
                          levels=dict(attn=value_level)),
}
