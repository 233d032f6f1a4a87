"""Ideas that read tokens or their embeddings: the smear gate, value embeddings, n-grams."""
import re

import torch
import torch.nn.functional as F
from golden_common import Source, fill, new_step, spy
from torch import nn

from configurator import construct_checked
from core.nn.embedding import Embedding
from model import Step
from variants.bigram import pair_hash
from variants.engram import Engram, GPTConfig, multipliers, ngram_rows, table_sizes


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
    passes = x[:, :prompt], *x[:, prompt:].split(1, dim=1)
    return torch.cat([f(part, Step(cache=cache)) for part in passes], dim=1)


class Around(Source):
    """A source of which our model keeps a part outside of the module of the file's level."""

    def module(self, golden):
        golden.meta['level'] = 'model'
        return super().module(golden)


def value_options(config):
    c = {name: config[name] for name in ('n_embd', 'n_head', 'vocab_size', 'bias')}
    # a form without a gate reads no channels
    if 've_gate_channels' in config:
        c['value_channels'] = config['ve_gate_channels']
    return c | dict(value_form=config['form'], value_every=1, n_layer=1)


def value_name(name, config):
    if name == 'value_embed.weight':
        return name, ...
    name = name.replace('ve_gate', 'value_gate').replace('lamb', 'value_lambda')
    return f'transformer.h.0.attn.{name}', ...


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


def bigram_options(config):
    assert config['pair_at_1'] in ('token', 'index')
    c = {name: config[name] for name in ('n_embd', 'n_head', 'n_layer', 'vocab_size', 'bias')}
    return c | dict(bigram_rows=config['bigram_vocab_size'])


def bigram_name(name, config):
    return f'transformer.{name}' if name.startswith('h.') else name, ...


def hash_of_source(idx, rows):
    """Returns the rows as the source's code has them: the last row's number before position 1, in int32."""
    before = F.pad(idx, (1, -1), value=-1)
    before[:, 1:2] = rows - 1
    return pair_hash(idx.int(), before.int(), rows)


def hash_level(golden, source):
    c, idx = golden.meta['config'], golden('in')['idx']
    assert idx.max() < c['vocab_size']
    rows = c['bigram_vocab_size']
    token = pair_hash(idx, F.pad(idx, (1, -1), value=-1), rows)
    source.compare(golden, nn.Module(), dict(token=token, index=hash_of_source(idx, rows)))


def bigram_level(golden, source):
    _, model = source.module(golden)
    x, idx = golden('in')['x'].requires_grad_(), golden('in')['idx']
    if golden.meta['config']['pair_at_1'] == 'index':
        model.rows = lambda idx, step: hash_of_source(idx, model.config.bigram_rows)
    step, hashes, outs = new_step(golden, x), [], {}
    spy(model, 'rows', hashes)
    model.embed(idx, step)
    for i, block in enumerate(model.transformer.h):
        block.register_forward_pre_hook(lambda m, args, i=i: outs.__setitem__(f'h{i}.x_in', args[0]))
    y = model.blocks(x, step)
    objective = (y * golden('in')['gy']).sum()
    objective.backward()
    source.compare(golden, model, outs | dict(y=y, objective=objective, hash=hashes[0][1]), x)


class Streams(Source):
    """A source that adds to several residual streams: a module of ours for each, with what it shares."""

    def module(self, golden):
        c = golden.meta['config']
        # one convolution over the channels of all streams
        for kind in 'param', 'grad':
            kernels = golden.arrays.pop(f'{kind}.short_conv.conv.weight').chunk(c['hc_mult'])
            for i, kernel in enumerate(kernels):
                golden.arrays[f'{kind}.short_conv.conv.{i}.weight'] = kernel
        params = golden('param')
        heads, n = c['n_head_per_ngram'], c['max_ngram_size']
        config = construct_checked(GPTConfig, dict(
            n_embd=c['n_embd'], n_head=1, vocab_size=c['vocab_size'], engram_heads=heads, engram_ngram=n,
            engram_width=c['n_embed_per_ngram'] // heads, engram_kernel=c['kernel_size']))
        module = nn.ModuleDict(dict(
            table=Embedding(*params['multi_head_embedding.embedding.weight'].shape),
            streams=nn.ModuleList(Engram(config, c['layer_id']) for _ in range(c['hc_mult'])))).double()
        for stream in module['streams']:
            stream.value_proj = module['streams'][0].value_proj
        fill(module, params, self.name, c)
        return module, None


def engram_name(name, config):
    """Returns our name; norm1 is that of the keys, norm2 that of the stream."""
    for theirs, ours in {
        r'^multi_head_embedding\.embedding\.': 'table.', r'^value_proj\.': 'streams.0.value_proj.',
        r'^key_projs\.(\d+)': r'streams.\1.key_proj', r'^norm1\.(\d+)': r'streams.\1.norm_key',
        r'^norm2\.(\d+)': r'streams.\1.norm_x', r'^short_conv\.norms\.(\d+)': r'streams.\1.norm_conv',
        r'^short_conv\.conv\.(\d+)\.weight': r'streams.\1.conv',
    }.items():
        name = re.sub(theirs, ours, name)
    return name, ...


def engram_level(golden, source):
    c, x, idx = golden.meta['config'], golden('in')['x'].requires_grad_(), golden('in')['idx']
    n, layers = c['max_ngram_size'], c['layer_ids']
    factors = multipliers(c['layer_id'], n, c['vocab_size'], c['hash_seed'])
    sizes = table_sizes(c['engram_vocab_size'], c['n_head_per_ngram'], len(layers))
    sizes = sizes[layers.index(c['layer_id'])]
    starts = torch.tensor([0, *(prime for primes in sizes for prime in primes)]).cumsum(0)[:-1]

    module, _ = source.module(golden)
    rows = ngram_rows(F.pad(idx, (n - 1, 0), value=c['pad_id']), factors, sizes)
    e = module['table'](rows).flatten(2)
    y = torch.stack([stream(x[:, :, g], e, Step()) for g, stream in enumerate(module['streams'])], dim=2)
    objective = (y * golden('in')['gy']).sum()
    objective.backward()
    source.compare(golden, module, dict(
        y=y, objective=objective, hash_ids=rows - starts, multipliers=torch.tensor(factors),
        primes=torch.tensor(sizes), offsets=starts), x)


SOURCES = {
    'smear': Source('smear', smear_options, name=smear_name, not_ours=AROUND + ATTENTION,
                    levels=dict(module=smear_level)),
    'value_embed': Around('value_embed', value_options, name=value_name, not_ours=AROUND,
                          levels=dict(attn=value_level)),
    'bigram': Source('bigram', bigram_options, name=bigram_name, not_ours=AROUND,
                     levels=dict(hash=hash_level, stack=bigram_level)),
    'engram': Streams('engram', name=engram_name, levels=dict(module=engram_level)),
}
