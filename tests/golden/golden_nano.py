"""nanoGPT's own numbers, and those of sources that keep its modules: soft windows and the surprise gate."""
import re

import pytest
import torch
from golden_common import Source, attention_pass, new_step, spy
from torch import nn

from core.errors import Stop
from core.nn.attention import attention_weights, change_scores
from model import GPTConfig, LayerNorm, Step, build


def tanh_gelu(model):
    for block in model.transformer.h:
        block.mlp.gelu = nn.GELU(approximate='tanh')


def soft_options(config):
    return dict(config, window_init=config['block_size'] / 2)


def soft_name(name, config):
    return name.replace('c_mem', 'window'), slice(None)


def surprise_options(config):
    c = dict(config, bias=True, gate='row', prior_width=4.0)
    return c | dict(k=c.pop('dynamic_k'), gate_warmup=c.pop('gate_warmup_iters'), gate_loss=c.pop('gate_loss_weight'),
                    prior_loss=c.pop('prior_loss_weight'))


def surprise_model(model):
    """Makes the source's model: ReLU, query, key and value without biases, an untied head with biases."""
    for block in model.transformer.h:
        block.mlp.gelu = nn.ReLU()
        nn.init.zeros_(block.attn.c_attn.bias)
    model.lm_head = nn.Linear(model.config.n_embd, model.config.vocab_size)


def token_options(config):
    return surprise_options(config) | dict(gate='token', means='row')


def first_options(config):
    return token_options(config) | dict(first_open=True)


def first_model(model):
    """Makes the model of v1_2, which has no norm before the prior."""
    surprise_model(model)
    for block in model.transformer.h:
        block.ln_3 = nn.Identity()


def surprise_name(name, config):
    for theirs, ours in {
        r'^token_embedding_table\.': 'transformer.wte.', r'^position_embedding_table\.': 'transformer.wpe.',
        r'^blocks\.': 'transformer.h.', r'^ln_f\.': 'transformer.ln_f.', r'\bln([123])\.': r'ln_\1.',
        r'\bsa\.proj\.': 'attn.c_proj.', r'\bffwd\.net\.0\.': 'mlp.c_fc.', r'\bffwd\.net\.2\.': 'mlp.c_proj.',
        r'\bprior_ffn\.net\.0\.': 'prior_fc.', r'\bprior_ffn\.net\.2\.': 'prior_proj.',
    }.items():
        name = re.sub(theirs, ours, name)
    # c_attn has all queries first
    if head := re.search(r'\bsa\.heads\.(\d+)\.(query|key|value)\.weight$', name):
        size = config['n_embd'] // config['n_head']
        start = ('query', 'key', 'value').index(head[2]) * config['n_embd'] + int(head[1]) * size
        return name[:head.start()] + 'attn.c_attn.weight', slice(start, start + size)
    return name, slice(None)


# -- levels: (golden, source) -> everything that can be seen, compared

def attn_level(golden, source):
    module, x, step, (y, objective), (q, k, pos_k) = attention_pass(golden, source)
    score_mod = module.score_mod(x, pos_k, step)
    outs = dict(y=y, objective=objective, att=attention_weights(q, k, step.pos, pos_k, score_mod)[1])
    if 'window' in step.stats:
        w = outs['window'] = step.stats['window'][0]
        added = change_scores(torch.zeros_like(outs['att']), step.pos, pos_k, score_mod)
        scaling = added + 1 - 1 / w[..., None] # a constant for each query, which softmax does not see
        outs['att_logit_scaling'] = torch.where(torch.ones_like(scaling).tril() > 0, scaling, 1.0)
    source.compare(golden, module, outs, x)


def block_level(golden, source):
    module, model = source.module(golden)
    x, step, calls = golden('in')['x'].requires_grad_(), new_step(golden, golden('in')['x']), []
    spy(module, 'mlp_residual', calls)
    seen = watch_surprise(module) if source.variant == 'surprise' else None
    model.config.prior_loss = model.config.n_layer # so that one block's loss comes unweighted
    y = module(x, step)
    (x_mid, _), posterior = calls[0]
    outs = dict(y=y, x_mid=x_mid)
    objective = (y * golden('in')['gy']).sum()
    if seen:
        outs |= dict(surprise_outs(module, step, *seen), mha_out=x_mid, posterior=posterior)
        objective = objective + step.losses['prior']
    objective.backward()
    source.compare(golden, module, outs | dict(objective=objective), x)


def token_level(golden, source):
    module, _ = source.module(golden)
    x, step, calls, means, betas = golden('in')['x'].requires_grad_(), new_step(golden, golden('in')['x']), [], [], []
    spy(module, 'mlp_residual', calls)
    opened, priors = watch_surprise(module)
    spy(module, 'means', means)
    spy(module, 'beta', betas)
    y = module(x, step)
    objective = (y * golden('in')['gy']).sum()
    objective.backward()
    outs = surprise_outs(module, step, opened[:1], priors)
    scale = module.beta(torch.ones((), dtype=y.dtype), step)
    outs |= dict(y=y, mha_out=calls[0][0][0], posterior=calls[0][1], objective=objective, gate=step.stats['gate'][0],
                 d_st=outs['d_st_tok'], d_ch=outs['d_ch_tok'], CE=outs['CE_tok'], CU=outs['CU_tok'],
                 moving_avg=means[0][1][0], gate_bias=betas[0][1], bias_scale=scale)
    source.compare(golden, module, outs, x)


def model_level(golden, source):
    _, model = source.module(golden)
    idx, targets = golden('in')['idx'], golden('in')['targets']
    outs, step = {}, new_step(golden, idx)
    step.from_zero = True
    seen = [watch_surprise(block) for block in model.transformer.h] if source.variant == 'surprise' else None
    hooks = [block.register_forward_hook(lambda m, args, y, i=i: outs.__setitem__(f'h{i}.block', y))
             for i, block in enumerate(model.transformer.h)]
    logits, loss = model(idx, targets, step)
    loss.backward()
    for hook in hooks:
        hook.remove()
    outs |= dict(logits=logits, loss=loss, logits_last=model(idx)[0])
    outs |= {f'h{i}.window': w for i, w in enumerate(step.stats.get('window', ()))}
    if seen:
        c, gates = model.config, torch.stack([gate.mean() for gate in step.stats['gate']])
        for i, block in enumerate(model.transformer.h):
            outs |= {f'h{i}.{name}': value for name, value in surprise_outs(block, step, *seen[i]).items()}
        outs |= dict(lm_loss=loss - sum(step.losses.values()),
                     pred_loss_total=torch.stack([change.mean() for change in step.stats['change']]).mean(),
                     gate_means=gates, mean_gate_activation=gates.mean())
        c.gate_loss, step = 1.0, new_step(golden, idx)
        model(idx, targets, step)
        outs['aux_gate'] = step.losses['gate']
    source.compare(golden, model, outs)
    if 'num_params' in golden.meta:
        assert model.get_num_params() == golden.meta['num_params']
        assert model.get_num_params(non_embedding=False) == golden.meta['num_params_all']


def watch_surprise(block):
    opened, priors = [], []
    spy(block, 'open', opened)
    block.prior_proj.register_forward_hook(lambda m, args, y: priors.append(y))
    return opened, priors


def surprise_outs(block, step, opened, priors):
    """Returns what the gate saw and did, by the source's names, for each reason with the other ruled out."""
    (d_st, d_ch, _), gate = opened[0]
    k, step = block.config.k, Step(it=step.it)
    block.config.k = 1e30
    first, block.config.first_open = block.config.first_open, False
    expected = block.open(d_st, d_ch, step)
    block.config.k = k
    unexpected = block.open(d_st, d_ch + 1e30, step)
    block.config.first_open = first
    return dict(d_st_tok=d_st, d_ch_tok=d_ch, D_st=d_st.mean(1), D_ch=d_ch.mean(1), pred_loss=d_ch.mean(),
                CE=expected[:, 0], CU=unexpected[:, 0], CE_tok=expected, CU_tok=unexpected,
                gate_vec=gate[:, 0], prior_ch=priors[0])


def ln_mlp_level(golden, source):
    model = build(source.variant, **source.options(golden.meta['config']))
    source.prepare(model)
    outs = {}
    for name in golden('out'):
        weights = {n.removeprefix(name + '.'): w for n, w in golden('param').items() if n.startswith(name + '.')}
        if name == 'mlp':
            module = model.transformer.h[0].mlp.double()
            args = golden('in')['x'], None
        else:
            module = LayerNorm(GPTConfig(bias='bias' in weights), len(weights['weight'])).double()
            args = golden('in')['x'],
        module.load_state_dict(weights)
        outs[name] = module(*args)
    source.compare(golden, nn.Module(), outs)


def generate_level(golden, source, monkeypatch):
    _, model = source.module(golden)
    model.eval()
    meta, want, idx = golden.meta, golden('out'), golden('in')['idx']
    new, probs = meta['max_new_tokens'], {}
    for name in want:
        if form := re.fullmatch(r'probs_t([\d.]+)_k(\d+|None)', name):
            probs[name] = float(form[1]), 0 if form[2] == 'None' else int(form[2])
    outs = dict(logits_last=model(idx)[0], greedy=model.generate(idx, new, temperature=0))
    assert torch.equal(outs['greedy'], model.generate(idx, new, top_k=1))
    for name, (temperature, top_k) in probs.items():
        drawn, multinomial = [], torch.multinomial
        monkeypatch.setattr(torch, 'multinomial', lambda p, *args, drawn=drawn, f=multinomial, **kwargs:
                            drawn.append(p) or f(p, *args, **kwargs))
        torch.manual_seed(meta['seed'])
        outs['sampled'] = model.generate(idx, new, temperature=temperature, top_k=top_k)
        monkeypatch.undo()
        outs[name] = drawn[0]
    with pytest.raises(Stop, match='block_size'):
        model(torch.zeros(1, model.config.block_size + 1, dtype=torch.long))
    if 'crop.block_size' in want:
        size = outs['crop.block_size'] = want['crop.block_size'].item()
        model.crop_block_size(size)
        head = idx[:, :size]
        outs['crop.logits'] = model(head, head)[0]
    source.compare(golden, model, outs)


nano = dict(attn=attn_level, block=block_level, model=model_level, ln_mlp=ln_mlp_level, generate=generate_level)
SOURCES = {
    'baseline': Source(levels=nano),
    'base_tanh': Source(prepare=tanh_gelu, levels=nano),
    'soft': Source('soft_window', soft_options, tanh_gelu, soft_name, levels=nano),
    'surprise': Source('surprise', surprise_options, surprise_model, surprise_name, not_ours=('c_attn.bias',),
                       not_shown=('beta', 'bias_scale', 'D_ch_biased'),
                       levels=dict(block=block_level, model=model_level)),
    'surprise_tok_v1_4': Source('surprise', token_options, surprise_model, surprise_name, not_ours=('c_attn.bias',),
                                levels=dict(block=token_level)),
    'surprise_tok_v1_2': Source('surprise', first_options, first_model, surprise_name, not_ours=('c_attn.bias',),
                                levels=dict(block=token_level)),
}
