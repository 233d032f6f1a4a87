"""The noise notebook: noise on embeddings, mixup, noise on the residual stream, DropConnect.

The notebook's own draws take the place of ours.
"""
import re

import torch
from golden_common import Source, new_step
from golden_nano import surprise_model, surprise_name

from model import Linear


def noise_options(config):
    c = {name: config[name] for name in ('block_size', 'vocab_size', 'n_layer', 'n_head', 'dropout')}
    return c | dict(n_embd=config['d_model'], bias=True)


def mixup_options(config):
    return noise_options(config) | dict(mix='batch', mix_prob=1.0)


def dropconnect_options(config):
    return noise_options(config) | dict(rescale=False)


def dropconnect_model(model):
    """Makes the notebook's model, whose biases exist but are not used."""
    surprise_model(model)
    for module in model.modules():
        if isinstance(module, Linear):
            module.unused, module.bias = module.bias, None


def noise_name(name, config):
    """Returns our name by way of the other notebook's names."""
    for theirs, ours in {r'^ln\.': 'ln_f.', r'^ff\.': 'lm_head.', r'\.ff\.ff\.': '.ffwd.net.',
                         r'\.ff\.fc1\.': '.ffwd.net.0.', r'\.ff\.fc2\.': '.ffwd.net.2.',
                         r'\bW_Q\b': 'query', r'\bW_K\b': 'key', r'\bW_V\b': 'value'}.items():
        name = re.sub(theirs, ours, name)
    return surprise_name(name, config | dict(n_embd=config['d_model']))


def dropconnect_name(name, config):
    ours, rows = noise_name(name, config)
    return (re.sub(r'(h\.\d+\..*)\.bias$', r'\1.unused', ours) if '.ln_' not in ours else ours), rows


# -- the notebook's draws in place of ours

def embedding_draws(golden, model):
    model.config.noise_std = golden('in')['noise_std'].item()
    model.noise = lambda x: golden('in')['noise']


def mixup_draws(golden, model):
    model.config.mix_std = golden('in')['noise_std'].item()
    drawn = model.draw

    def draw(x):
        _, times, coin, _ = drawn(x)
        assert coin.all() # mix_prob=1
        return golden('in')['perm'][:, None], times, coin, golden('in')['lam']
    model.draw, model.noise = draw, lambda x: golden('in')['noise']


def residual_draws(golden, model):
    for i, block in enumerate(model.transformer.h):
        block.config.residual_std = golden('in')['noise_std'].item()
        draws = iter([golden('in')[f'h{i}.noise_attn'], golden('in')[f'h{i}.noise_mlp']])
        block.noise = lambda x, draws=draws: next(draws)


def dropconnect_draws(golden, model):
    masks = {}
    for name, mask in golden('in').items():
        if name.startswith('mask.'):
            ours, rows = dropconnect_name(name.removeprefix('mask.'), golden.meta['config'])
            linear = ours.removesuffix('.weight')
            masks.setdefault(linear, torch.zeros_like(model.get_submodule(linear).weight))[rows] = mask.double()
    assert set(masks) == {name for name, module in model.named_modules() if isinstance(module, Linear)}
    for name, mask in masks.items():
        module = model.get_submodule(name)
        module.drop_weight, module.mask = golden('in')['drop_prob'].item(), lambda kept, mask=mask: mask


def model_level(draws):
    def level(golden, source):
        _, model = source.module(golden)
        draws(golden, model)
        idx, targets, outs = golden('in')['idx'], golden('in')['targets'], {}
        hooks = [model.transformer.drop.register_forward_hook(lambda m, args, y: outs.__setitem__('x_clean', y)),
                 model.transformer.h[0].register_forward_pre_hook(
                     lambda m, args: outs.__setitem__('x_blocks_in', args[0]))]
        hooks += [block.register_forward_hook(lambda m, args, y, i=i: outs.__setitem__(f'h{i}.block', y))
                  for i, block in enumerate(model.transformer.h)]
        step = new_step(golden, idx)
        step.from_zero = True
        outs['logits'], outs['loss'] = model(idx, targets, step)
        outs['loss'].backward()
        for hook in hooks:
            hook.remove()
        outs['eval.logits'] = model.eval()(idx, targets)[0]
        source.compare(golden, model, outs)
    return level


def noise_source(variant, options, draws, prepare=surprise_model, name=noise_name, not_ours=('c_attn.bias',)):
    return Source(variant, options, prepare, name, not_ours=not_ours, levels=dict(model=model_level(draws)))


SOURCES = {
    'noise_gaussian': noise_source('noise_embedding', noise_options, embedding_draws),
    'noise_mixup': noise_source('noise_mixup', mixup_options, mixup_draws),
    'noise_noisy_residual': noise_source('noise_residual', noise_options, residual_draws),
    'noise_dropconnect': noise_source('dropconnect', dropconnect_options, dropconnect_draws, dropconnect_model,
                                      dropconnect_name, not_ours=('c_attn.unused',)),
}
