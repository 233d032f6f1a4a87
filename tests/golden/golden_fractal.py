"""Fractal heads: attention, a layer, and the source's whole model, made of six of our variants."""
import re
from types import SimpleNamespace
from unittest import mock

import torch
from golden_common import Source, fill, new_step, spy
from torch import nn

import model
from configurator import construct_checked
from core.nn.attention import attend
from model import load_classes

# norm_type -> our variant and its options; a cosine norm's epsilon is the least length that it divides by
NORMS = dict(RMSNorm=('rmsnorm', dict(rms_center=False)), LayerNorm=('rmsnorm', dict(rms_center=True)),
             CosineNorm=('cosine_norm', dict(cosine_eps=1e-30)))
CURVES = dict(SiLU=nn.SiLU, GeLU=nn.GELU, GELU=nn.GELU, ReLU=nn.ReLU)


class Fractal(Source):
    """A source whose heads need not fill its residual stream, and whose norms and MLP are options.

    Attention is made for a stream of n_q * hd channels, and then gets maps from and to one of dim channels.
    The MLP is as wide as the file's.
    """

    def module(self, golden):
        c, params = golden.meta['config'], golden('param')
        # its dropout never acts in a layer, and its sizes are those of the arrays
        c.ignore('dropout_rate', 'mlp_hidden_mult', 'vocab_len', 'num_layers')
        # FORMAT.md: the source's slices are right for 2 alone
        c.only(fractal_split=2)
        c['mlp_hidden'] = max((len(w) for name, w in params.items() if name.endswith('Wup.weight')), default=1)
        n_q, n_kv, hd, dim, level = c['num_q_heads'], c['num_kv_heads'], c['head_dim'], c['dim'], golden.meta['level']
        norm, options = NORMS[c['norm_type']]
        options = options | dict(
            block_size=c['max_seq_len'], vocab_size=golden.meta.get('vocab', 1),
            bias=c['norm_bias'] and c['norm_affine'], n_layer=c['num_layers'] if level == 'model' else 1,
            split=c['fractal_split'], fractal_scale='head', rope_base=c['theta'], rope_share=float(c['rope']),
            embedding_scale=None if c['scale_first_resid'] else 1.0)
        parts, curve, eps = [self.variant, norm], c['mlp_nonlinearity'], c['eps']
        if norm == 'rmsnorm':
            options['rms_eps'] = eps
        if c['mlp_gated']:
            parts.append('glu')
            options['glu_gate'] = curve.lower()
        if c['second_resid_norm']:
            parts.append('post_norm')
        # our own, two of which are replaced below
        classes = SimpleNamespace(**vars(load_classes('+'.join(parts))))
        stream = construct_checked(classes.GPTConfig, options | dict(n_embd=dim, n_head=1))
        heads = construct_checked(classes.GPTConfig, options | dict(n_embd=n_q * hd, n_head=n_q, n_kv_head=n_kv))

        def attention(config, classes, layer, made=classes.CausalSelfAttention):
            module = made(heads, classes, layer)
            module.c_attn = nn.Linear(dim, (n_q + 2 * n_kv) * hd, bias=False)
            module.c_proj = nn.Linear(n_q * hd, dim, bias=False)
            return module

        def mlp(config, classes, layer, made=classes.MLP):
            module, hidden = made(config, classes, layer), c['mlp_hidden']
            module.gelu = CURVES[curve]()
            module.c_fc = nn.Linear(dim, (1 + c['mlp_gated']) * hidden, bias=c['mlp_bias'])
            module.c_proj = nn.Linear(hidden, dim, bias=c['mlp_bias'])
            return module

        classes.CausalSelfAttention, classes.MLP = attention, mlp
        model = classes.GPT(stream, classes).double().train()
        if not c['norm_affine']:
            for part in model.modules():
                if isinstance(part, classes.LayerNorm):
                    part.weight.requires_grad_(False) # stays 1
        block = model.transformer.h[0]
        module = dict(attn=block.attn, layer=block, model=model)[level]
        fill(module, params, self.name, c)
        return module, model


def fractal_name(name, c):
    """Returns our name: queries, keys, values are rows of c_attn, the MLP's gate and its units of c_fc."""
    for theirs, ours in {
        r'^layers\.': 'transformer.h.', r'^token_embedder\.': 'transformer.wte.', r'^final_norm\.': 'transformer.ln_f.',
        r'\bpre_attn_norm\.': 'ln_1.', r'\bpre_mlp_norm\.': 'ln_2.', r'\bw$': 'weight', r'\bb$': 'bias',
        r'\bpost_attn_norm\.': 'ln_attn_out.', r'\bpost_mlp_norm\.': 'ln_mlp_out.',
        r'\b(Wo|Wdown)\.': 'c_proj.',
    }.items():
        name = re.sub(theirs, ours, name)
    kv, hidden = c['num_kv_heads'] * c['head_dim'], c['mlp_hidden']
    for ours, sizes in {
        'c_attn': dict(Wq=c['num_q_heads'] * c['head_dim'], Wk=kv, Wv=kv),
        'c_fc': dict(Wgate=hidden, Wup=hidden) if c['mlp_gated'] else dict(Wup=hidden),
    }.items():
        start = 0
        for theirs, size in sizes.items():
            if theirs in name.split('.'):
                return name.replace(theirs, ours), slice(start, start + size)
            start += size
    return name, slice(None)


# -- levels: (golden, source) -> everything that can be seen, compared

def attn_level(golden, source):
    module, _ = source.module(golden)
    x, calls, slices = golden('in')['x'].requires_grad_(), [], []
    spy(module, 'attend', calls)

    def noted(q, k, *args):
        # (B, slices, T, T), before score_mod and mask
        slices.append(q @ k.transpose(-2, -1) * q.size(-1) ** -0.5)
        return attend(q, k, *args)
    with mock.patch.object(model, 'attend', noted):
        y = module(x, new_step(golden, x))
    objective = (y * golden('in')['gy']).sum()
    objective.backward()
    (q, *_), heads = calls[0]
    source.compare(golden, module, dict(
        y=y, objective=objective, queries_after_rope=q.transpose(1, 2), heads_concat=heads.transpose(1, 2).flatten(2),
        logits_unmasked=torch.cat(slices, dim=1)), x)
    assert sum(s.size(1) for s in slices) == golden.meta.get('num_fractal_heads', sum(s.size(1) for s in slices))


def layer_level(golden, source):
    module, _ = source.module(golden)
    x = golden('in')['x'].requires_grad_()
    y = module(x, new_step(golden, x))
    objective = (y * golden('in')['gy']).sum()
    objective.backward()
    source.compare(golden, module, dict(y=y, objective=objective), x)


def model_level(golden, source):
    _, model = source.module(golden)
    targets = golden('in')['targets']
    # padding
    logits, loss = model(golden('in')['idx'], torch.where(targets == model.config.vocab_size - 1, -1, targets))
    loss.backward()
    source.compare(golden, model, dict(logits=logits, loss=loss))


SOURCES = {
    'fha': Fractal('fractal_heads+gqa+rope+scaled_embedding', name=fractal_name,
                   levels=dict(attn=attn_level, layer=layer_level, model=model_level)),
}
