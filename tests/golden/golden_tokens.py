"""Ideas that read tokens or their embeddings: the smear gate, value embeddings, n-grams."""
import re

import torch
import torch.nn.functional as F
from golden_common import Source, fill, new_step, spy
from torch import nn

from configurator import construct_checked
from model import Step
from variants.bigram import pair_hash
from variants.engram import Engram, GPTConfig, multipliers, table_sizes


def parameters(*modules):
    return tuple(f'{module}.{p}' for module in modules for p in ('weight', 'bias'))


# of our whole model, around a file's part
AROUND = parameters('wte', 'wpe', 'lm_head', 'ln_1', 'ln_2', 'ln_f', 'mlp.c_fc', 'mlp.c_proj')
ATTENTION = parameters('attn.c_attn', 'attn.c_proj')


def smear_options(config):
    # one formula, on embeddings after or before a norm
    assert config['source'] in ('nanochat', 'modded'), f'source={config["source"]}: not known'
    return dict(n_embd=config['n_embd'], n_head=1, n_layer=1, smear_channels=config['gate_channels'])


def smear_name(name, config):
    return name.removesuffix('.weight'), None # a row of one matrix, or one number


def smear_level(golden, source):
    _, model = source.module(golden)
    x, step = golden('in')['x'].requires_grad_(), Step()
    y = model.mix_tokens(x, step)
    objective = (y * golden('in')['gy']).sum()
    objective.backward()
    outs = dict(y=y, objective=objective)
    if 'cached' in golden('out'):
        outs['cached'] = one_by_one(model.mix_tokens, x, golden.meta['T'] - 3)
    source.compare(golden, model, outs, x)


def one_by_one(f, x, prompt):
    """Returns f(x, step) computed in passes with a cache: a prompt, then single tokens."""
    cache = [{}]
    passes = x[:, :prompt], *x[:, prompt:].split(1, dim=1)
    return torch.cat([f(part, Step(cache=cache)) for part in passes], dim=1)


def value_options(config):
    c = {name: config[name] for name in ('n_embd', 'n_head', 'vocab_size', 'bias')}
    # a form without a gate reads no channels
    if 've_gate_channels' in config:
        c['value_channels'] = config['ve_gate_channels']
    return c | dict(value_form=config['form'], value_every=1, n_layer=1)


def value_name(name, config):
    return name.replace('ve_gate', 'value_gate').replace('lamb', 'value_lambda'), ...


def value_level(golden, source):
    attn, _ = source.module(golden)
    x, calls = golden('in')['x'].requires_grad_(), []
    step = new_step(golden, x)
    spy(attn, 'values', calls)
    y = attn(x, step)
    objective = (y * golden('in')['gy']).sum()
    objective.backward()
    outs = dict(y=y, objective=objective, v=calls[0][1].transpose(1, 2).flatten(2))
    if 'value_gate' in step.stats:
        outs['gate'] = step.stats['value_gate'][0]
    source.compare(golden, attn, outs, x)


def bigram_options(config):
    assert config['pair_at_1'] in ('token', 'index'), f'pair_at_1={config["pair_at_1"]}: not known'
    c = {name: config[name] for name in ('n_embd', 'n_head', 'n_layer', 'vocab_size', 'bias')}
    return c | dict(bigram_rows=config['bigram_vocab_size'])


def bigram_name(name, config):
    return f'transformer.{name}' if name.startswith('h.') else name, ...


# ids whose product with 36313 fits in int32
EXACT_IDS = 2 ** 31 // 36313


def hash_of_source(idx, rows, pair_at_1):
    """Returns the rows as the source computes them, in int32, where products of large ids wrap around.

    Its code has the last row's number before position 1 ('index'), its text the token ('token').
    """
    before = F.pad(idx, (1, -1), value=-1)
    if pair_at_1 == 'index':
        before[:, 1:2] = rows - 1
    return pair_hash(idx.int(), before.int(), rows)


def hash_level(golden, source):
    c, idx = golden.meta['config'], golden('in')['idx']
    assert idx.max() < c['vocab_size']
    rows = c['bigram_vocab_size']
    outs = {form: hash_of_source(idx, rows, form) for form in ('token', 'index')}
    if c['vocab_size'] <= EXACT_IDS:
        outs['token'] = pair_hash(idx, F.pad(idx, (1, -1), value=-1), rows)
    source.compare(golden, nn.Module(), outs)


def bigram_level(golden, source):
    _, model = source.module(golden)
    x = golden('in')['x'].requires_grad_()
    c = golden.meta['config']
    if c['pair_at_1'] == 'index' or c['vocab_size'] > EXACT_IDS:
        model.rows = lambda step: hash_of_source(step.idx, c['bigram_vocab_size'], c['pair_at_1'])
    step, hashes, outs = new_step(golden, x), [], {}
    spy(model, 'rows', hashes)
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
                golden.arrays[f'{kind}.short_conv.conv.{i}.weight'] = kernel.squeeze(1)
        heads, n, layers = c['n_head_per_ngram'], c['max_ngram_size'], c['layer_ids']
        factors = multipliers(c['layer_id'], n, c['vocab_size'], c['hash_seed'])
        sizes = table_sizes(c['engram_vocab_size'], heads, len(layers))[layers.index(c['layer_id'])]
        config = construct_checked(GPTConfig, dict(
            n_embd=c['n_embd'], n_head=1, vocab_size=c['vocab_size'], engram_heads=heads, engram_ngram=n,
            engram_width=c['n_embed_per_ngram'] // heads, engram_kernel=c['kernel_size']))
        module = nn.ModuleList(Engram(config, 0, factors, sizes) for _ in range(c['hc_mult'])).double()
        for stream in module:
            stream.table, stream.value_proj = module[0].table, module[0].value_proj
        fill(module, golden('param'), self.name, c)
        return module, None


def engram_name(name, config):
    """Returns our name; norm1 is that of the keys, norm2 that of the stream."""
    for theirs, ours in {
        r'^multi_head_embedding\.embedding\.': '0.table.', r'^value_proj\.': '0.value_proj.',
        r'^key_projs\.(\d+)': r'\1.key_proj', r'^norm1\.(\d+)': r'\1.norm_key',
        r'^norm2\.(\d+)': r'\1.norm_x', r'^short_conv\.norms\.(\d+)': r'\1.norm_conv',
        r'^short_conv\.conv\.(\d+)\.weight': r'\1.conv',
    }.items():
        name = re.sub(theirs, ours, name)
    return name, ...


def engram_level(golden, source):
    c, x = golden.meta['config'], golden('in')['x'].requires_grad_()
    module, _ = source.module(golden)
    rows, ys = [], []
    module[0].table.register_forward_pre_hook(lambda m, args: rows.append(args[0]))
    for g, stream in enumerate(module):
        step = new_step(golden, x)
        # the text before
        step.cache = [dict(engram_ids=step.idx.new_full((len(x), c['max_ngram_size'] - 1), c['pad_id']))]
        ys.append(stream(x[:, :, g], step))
    y = torch.stack(ys, dim=2)
    objective = (y * golden('in')['gy']).sum()
    objective.backward()
    factors, sizes = module[0].factors, torch.tensor(module[0].sizes)
    starts = F.pad(sizes.flatten().cumsum(0), (1, -1))
    source.compare(golden, module, dict(
        y=y, objective=objective, hash_ids=rows[0] - starts, multipliers=torch.tensor(factors),
        primes=sizes, offsets=starts), x)


SOURCES = {
    'smear': Source('smear', smear_options, name=smear_name, not_ours=AROUND + ATTENTION,
                    levels=dict(module=smear_level)),
    'value_embed': Source('value_embed', value_options, name=value_name, levels=dict(attn=value_level)),
    'bigram': Source('bigram', bigram_options, name=bigram_name, not_ours=AROUND,
                     levels=dict(hash=hash_level, stack=bigram_level)),
    'engram': Streams('engram', name=engram_name, constants=dict(conv_norm_eps=1e-5),
                      levels=dict(module=engram_level)),
}
