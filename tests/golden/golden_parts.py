"""Ideas about one part of a block: functions in place of norms, and attention without a token's own value."""
import re

from golden_common import Source, new_step, spy

from model import build

ALPHAS = dict(attn_alpha='dyt_attn_alpha', ffn_alpha='dyt_mlp_alpha', dec_alpha='dyt_final_alpha')


def dyt_options(curve):
    return lambda config: dict({ALPHAS.get(n, n): value for n, value in config.items()}, dyt_curve=curve)


def xsa_options(config):
    c = dict(config, vocab_size=1)
    return dict(c, xsa_form='gated' if c.pop('gated') else 'plain')


def check_start(model, config):
    """Checks the values that parameters start with, which the file's parameters replace."""
    norms = {'ln_1': 'attn_alpha', 'ln_2': 'ffn_alpha', 'ln_f': 'dec_alpha'}
    want = {'shared_scale': config['n_embd'] ** 0.5}
    for name, _ in model.named_parameters():
        *_, norm, part = ('.' + name).split('.')
        if norm in norms:
            want[name] = dict(alpha=config[norms[norm]], shift=0.0, weight=1.0, bias=0.0)[part]
    for name, value in want.items():
        assert (model.get_parameter(name) - value).abs().max() < 1e-6, name


# -- levels: (golden, source) -> everything that can be seen, compared

def dyt_level(golden, source):
    check_start(build(source.variant, **source.options(golden.meta['config'])), golden.meta['config'])
    _, model = source.module(golden)
    idx, targets, outs = golden('in')['idx'], golden('in')['targets'], {}
    for name, module in model.named_modules():
        if found := re.fullmatch(r'transformer\.(h\.(\d+)\.ln_1|ln_f)', name):
            ours = f'h{found[2]}.ln_1' if found[2] else 'ln_f'
            module.register_forward_hook(lambda m, args, y, ours=ours: outs.setdefault(ours, y))
    logits, loss = model(idx, targets)
    loss.backward()
    source.compare(golden, model, outs | dict(logits=logits, loss=loss, logits_last=model(idx)[0]))


def xsa_level(golden, source):
    module, _ = source.module(golden)
    x, heads, exclusive = golden('in')['x'].requires_grad_(), [], []
    spy(module, 'compute_attention', heads)
    spy(module, 'attend', exclusive)
    y = module(x, new_step(golden, x))
    objective = (y * golden('in')['gy']).sum()
    objective.backward()
    (_, before), (_, after) = heads[0], exclusive[0]
    source.compare(golden, module, dict(y=y, objective=objective, heads=before.transpose(1, 2).flatten(2),
                                        exclusive=after.transpose(1, 2).flatten(2)), x)


SOURCES = {
    'dyt': Source('dyt', dyt_options('tanh'), not_ours=('lm_head.weight',), levels=dict(model=dyt_level)),
    'derf': Source('dyt', dyt_options('erf'), not_ours=('lm_head.weight',), levels=dict(model=dyt_level)),
    'xsa': Source('xsa', xsa_options, levels=dict(attn=xsa_level)),
}
