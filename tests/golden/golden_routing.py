"""Dynamic-Transformers' own numbers: its routers alone, and the layers of STT, SDT and MoD.

The source's tokens see all keys (keys='all'). Its repository has a Gaussian prior, and expected change as the
only reason.
"""
import importlib
import re
from types import SimpleNamespace
from unittest import mock

import torch
import torch.nn.functional as F
from golden_common import Source, new_step
from torch import nn

from model import Block, build
from variants import _routing as routing

NAMES = {
    'block.layer.': '', 'decision.block.layer.': 'decision.', 'dynamic.layer.': 'dynamic.',
    'decision.prior.': 'decision.prior.', 'transition_network.': 'prior.',
    'mlp.gate_proj': 'gate', 'mlp.up_proj': 'up', 'mlp.down_proj': 'down', 'mu_logvar_proj': 'gaussian',
    'predictive_router.raw_': 'surprise.', 'causal_router.router.0': 'causal_router.fc',
    'causal_router.router.2': 'causal_router.proj',
}


SURPRISE = ('posterior_variance_c', 'ma_window', 'prior_ffn_intermediate_size_factor', 'o_ce_init', 'm_cu_init',
            'learn_o_ce', 'learn_m_cu', 'rms_norm_eps')


class Layers(Source):
    """A routed block of ours, or the pair of SDT, under the source's names."""

    def our_name(self, name, config):
        for theirs, ours in NAMES.items():
            name = name.replace(theirs, ours)
        if self.variant == 'sdt':
            name = name.replace('causal_router.', 'dynamic.causal_router.').replace('router.raw_', 'decision.surprise.')
        return name.replace('router.router.', 'router.') if self.variant == 'mod' else name

    def module(self, golden):
        config, pair = golden.meta['config'], 1 + (self.variant == 'sdt')
        options = dict(block_size=config['block_size'], n_embd=config['n_embd'], n_head=config['n_head'],
                       bias=config['bias'], capacity=config['capacity'], n_layer=pair, every=pair,
                       router='topk', keys='all', vocab_size=8)
        options['causal_threshold'] = config['causal_threshold']
        if self.variant == 'mod':
            # the source's layers share one config; these are those of stt and sdt
            config.ignore(*SURPRISE)
        else:
            options |= {name: config[name] for name in ('o_ce_init', 'm_cu_init')}
            options |= dict(posterior_variance=config['posterior_variance_c'],
                            gate='ce', change='gaussian', prior_width=config['prior_ffn_intermediate_size_factor'],
                            ma_window=config['ma_window'], sharp_min=golden('in')['beta_ce'].item())
        blocks = build(self.variant, **options).double().train().transformer.h
        module = nn.ModuleDict(dict(decision=blocks[0], dynamic=blocks[1])) if pair == 2 else blocks[0]
        unused = golden.meta['grad_none'] # expected change alone leaves m_cu out
        weights = {self.our_name(name, config): value for name, value in golden('param').items() if name not in unused}
        # what is not learned keeps its initial value, and is no parameter there
        fixed = [name for name in ('o_ce', 'm_cu') if self.variant != 'mod' and not config[f'learn_{name}']]
        absent, unknown = module.load_state_dict(weights, strict=False)
        assert not unknown and all(name.split('.')[-1] in fixed for name in absent), (absent, unknown)
        if self.variant != 'mod':
            for part in module.modules():
                if isinstance(part, nn.RMSNorm):
                    part.eps = config['rms_norm_eps']
        golden.arrays = {name: a for name, a in golden.arrays.items() if not name.startswith('param.')}
        golden.meta = golden.meta | dict(grad_none=[])
        return module, blocks, unused


def run(blocks, x, golden):
    """Returns the output, the step, and the mask and the gate that run_chosen was given."""
    step = new_step(golden, x)
    variant = importlib.import_module('variants.' + golden.meta['variant'].removesuffix('_router'))
    step.it = torch.zeros((), dtype=torch.float64)
    with mock.patch.object(variant, 'run_chosen', wraps=routing.run_chosen) as chosen:
        for block in blocks:
            x = block(x, step)
    *_, mask, gate, _ = chosen.call_args.args
    return x, step, mask, gate


def layer_level(golden, source):
    params = golden('param')
    module, blocks, unused = source.module(golden)
    config, c, last = golden.meta['config'], blocks[0].config, blocks[-1]
    x = golden('in')['x'].requires_grad_()
    y, step, mask, g = run(blocks, x, golden)
    # unweighted
    losses = {name: value * c.n_layer / getattr(c, f'{name}_loss') for name, value in step.losses.items()}
    logits = last.causal_router(x.detach())
    k = max(1, int(c.capacity * x.size(1)))
    outs = dict(y=y, mask=mask, k=k, topk_idx_sorted=routing.assign_slots(mask, k)[0], causal_logits=logits,
                causal_acc=((logits > 0) == mask).double().mean())
    bce = F.binary_cross_entropy_with_logits
    outs['causal_router_loss'] = bce(logits, mask.to(x.dtype))
    if source.variant == 'mod':
        outs |= dict(router_logits=last.router(x)[..., 0], mod_z_loss=losses['z'],
                     mod_router_aux_loss=losses['router'] - outs['causal_router_loss'])
    else:
        torch.testing.assert_close(losses['router'], outs['causal_router_loss'])
        outs['causal_router_loss'] = losses['router']
        decides = blocks[0]
        h = Block.forward(decides, x, new_step(golden, x))
        r = h - x
        prior = decides.prior(x if source.variant == 'sdt' else F.pad(h, (0, 0, 1, -1)))
        beta, raw = golden('in')['beta_ce'], [value for name, value in params.items() if name.endswith('raw_m_cu')]
        m_cu = raw[0] if raw else torch.tensor(config['m_cu_init']).to(y.dtype)
        outs |= vpr_outs(decides.surprise, m_cu, step.stats['surprise'][0], step.stats['change'][0],
                         config['ma_window'], beta, golden('in')['beta_cu'], g)
        outs |= dict(processed=h, mu_q=prior[0], log_var_q=prior[1], D_st=routing.static_surprise(r),
                     D_ch=step.stats['change'][0])
        outs['stt_tpn_loss' if source.variant == 'stt' else 'sdt_prior_loss'] = losses['prior']
    terms = re.findall(r'([\d.e-]+)\*(\w+_loss)', golden.meta['objective'])
    objective = (y * golden('in')['gy']).sum() + sum(float(weight) * outs[name] for weight, name in terms)
    objective.backward()
    module.eval()
    again, _, kept, _ = run(blocks, x.detach(), golden)
    outs |= {'objective': objective, 'causal_mode.y': again, 'causal_mode.mask': kept}
    assert all(name.endswith('raw_m_cu') for name in unused)
    outs = {name: value.to(torch.int64) if getattr(value, 'dtype', None) == torch.bool else value
            for name, value in outs.items()}
    compare(golden, source, module, outs, x)


def compare(golden, source, module, outs, x):
    source.name = lambda name, config: (source.our_name(name, config), ...)
    source.compare(golden, module, outs, x)


def vpr_outs(surprise, m_cu, d_st, d_ch, window, beta_ce, beta_cu, g):
    """Returns both reasons by the source's names; where only one counts, the other is there all the same."""
    both = routing.Surprise(SimpleNamespace(gate='or', o_ce_init=1.0, m_cu_init=1.0)).to(d_st.dtype)
    both.o_ce, both.m_cu = surprise.o_ce, nn.Parameter(m_cu)
    mean = routing.moving_average(d_st.detach(), min(window, d_st.size(-1)))
    ce, cu = both.expected(d_st, d_ch), both.unexpected(d_st, mean)
    return dict(moving_average=mean, CE=ce, CU=cu, S_CE=torch.sigmoid(beta_ce * ce),
                S_CU=torch.sigmoid(beta_cu * cu), g_cont=g)


# -- the routers alone

class Alone(Source):
    """A module of variants/_routing.py with the file's parameters, and its inputs as leaves."""

    def check(self, golden, module, outs, inputs):
        # so that compare() finds the gradients of several inputs among the parameters
        for name, x in inputs.items():
            module.register_parameter(name, nn.Parameter(x.detach()))
            module.get_parameter(name).grad = x.grad
        self.name = lambda name, config: (name.removeprefix('in.'), ...)
        golden.meta = dict(golden.meta, config=None)
        self.compare(golden, module, outs, inputs.get('x'))


def leaves(golden, *names):
    return {name: golden('in')[name].requires_grad_() for name in names}


def kl_level(golden, source):
    i = leaves(golden, 'mu_p', 'mu_q', 'log_var_q')
    d_ch = routing.change_surprise(SimpleNamespace(posterior_variance=golden('in')['c']), i['mu_p'], i['mu_q'],
                                   i['log_var_q'])
    (d_ch * golden('in')['gy']).sum().backward()
    source.check(golden, nn.Module(), dict(D_ch=d_ch, D_st_of_mu_p=routing.static_surprise(i['mu_p'])), i)


def vpr_level(golden, source):
    i, params = leaves(golden, 'D_st', 'D_ch'), golden('param')
    surprise = routing.Surprise(SimpleNamespace(
        gate='ce' if golden.meta['grad_none'] else 'or', o_ce_init=1.0, m_cu_init=1.0)).double()
    own = dict(surprise.named_parameters())
    with torch.no_grad():
        for name, p in own.items():
            p.copy_(params[f'raw_{name}'])
    window = min(golden.meta['ma_window'], i['D_st'].size(1))
    mean = routing.moving_average(i['D_st'].detach(), window)
    betas = [golden('in')[f'beta_{name}'] for name in ('ce', 'cu')]
    g = surprise(i['D_st'], i['D_ch'], mean, *betas)
    outs = vpr_outs(surprise, params['raw_m_cu'], i['D_st'], i['D_ch'], window, *betas, g)
    (g * golden('in')['gy']).sum().backward()
    module = nn.Module()
    for name, p in own.items():
        module.register_parameter(f'raw_{name}', p)
    golden.meta = golden.meta | dict(grad_none=[])
    source.check(golden, module, outs, i)


def average_level(golden, source):
    d = golden('in')['d_st']
    outs = {f'ma_w{w}': routing.moving_average(d, min(w, d.size(1))) for w in golden.meta['windows']}
    source.check(golden, nn.Module(), outs, {})


def topk_level(golden, source):
    scores, hidden = golden('in')['scores'], golden('in')['hidden']
    capacity = golden('in')['capacity'].item()
    mask = routing.top_k_mask(scores, capacity)
    index, live = routing.assign_slots(mask, int(mask.sum(1).max()))
    assert live.all() # as many in every row
    # the source's order: by score
    ranked = index.gather(1, scores.gather(1, index).argsort(dim=1, descending=True))
    rows = torch.arange(len(index)).repeat_interleave(index.size(1))
    outs = dict(mask=mask.long(), token_idx_sorted=index, token_idx=ranked.flatten(), batch_idx=rows, k=index.size(1),
                scores_selected=scores.gather(1, ranked).flatten(), selected_hidden=hidden[rows, ranked.flatten()])
    source.check(golden, nn.Module(), outs, {})


def causal_level(golden, source):
    i = leaves(golden, 'x')
    router = routing.CausalRouter(i['x'].size(-1)).double()
    router.load_state_dict({'fc.weight': golden('param')['router.0.weight'],
                            'proj.weight': golden('param')['router.2.weight']})
    logits, targets = router(i['x']), golden('in')['targets'].double()
    loss = F.binary_cross_entropy_with_logits(logits, targets)
    loss.backward()
    module = nn.Module()
    module.router = nn.ModuleDict({'0': router.fc, '2': router.proj})
    source.check(golden, module, dict(logits=logits, loss=loss, accuracy=((logits > 0) == targets).double().mean()), i)


def mod_level(golden, source):
    i, capacity = leaves(golden, 'x'), golden('in')['capacity'].item()
    B, T, C = i['x'].shape
    block = build('mod', block_size=T, n_layer=1, n_head=1, n_embd=C, vocab_size=8, every=1, router='topk',
                       capacity=capacity).double().train().transformer.h[0]
    block.router.load_state_dict({'weight': golden('param')['router.weight']})
    _, step, mask, gate = run([block], i['x'], golden)
    logits, c = block.router(i['x'])[..., 0], block.config
    bce = F.binary_cross_entropy_with_logits
    aux = step.losses['router'] / c.router_loss - bce(block.causal_router(i['x'].detach()), mask.to(logits.dtype))
    z = step.losses['z'] / c.z_loss
    objective = (gate * mask * golden('in')['gy']).sum() + aux + z
    objective.backward()
    outs = dict(logits=logits, bce=aux, z=z, mask=mask.long(), k=mask[0].sum(), gate=gate * mask, objective=objective,
                token_idx_sorted=routing.assign_slots(mask, int(mask[0].sum()))[0])
    module = nn.Module()
    module.router = block.router
    source.check(golden, module, outs, i)


SOURCES = {
    'stt': Layers('stt', levels=dict(layer=layer_level)),
    'sdt': Layers('sdt', levels=dict(layer=layer_level)),
    'mod': Layers('mod', levels=dict(layer=layer_level)),
    'surprise_router': Alone(levels=dict(kl=kl_level, vpr=vpr_level, moving_average=average_level, topk=topk_level)),
    'causal_router': Alone(levels=dict(module=causal_level)),
    'mod_router': Alone(levels=dict(module=mod_level)),
}
