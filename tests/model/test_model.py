"""The core: initial values, attention's backends, sampling, sums of variants, and its fixed options."""
import contextlib
import dataclasses
import io
import math
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

import core.assemble
import model as core_model
from core.assemble import short_name, variant_names
from core.device.flops import flops_per_token
from core.errors import Stop
from core.nn import attention as attention_paths
from core.nn.attention import Bias, Window, attend, choose_backend, distance_bias
from core.nn.gpt2_weights import load_gpt2
from core.nn.sampling import sample_token
from core.rng import generator
from core.run.checkpoint import load_model_tensors, model_tensors
from lab import checks
from lab.checks import small
from model import GPT, SLOTS, GPTConfig, Step, build, load_classes

ROOT = Path(__file__).parents[2]
SHAKESPEARE = dict(block_size=256, vocab_size=65, n_layer=6, n_head=6, n_embd=384)
HEADER = 'import torch\nimport torch.nn as nn\nimport model\n'


def refused(f, *args, **kwargs):
    """Returns the one line with which the call is refused."""
    with pytest.raises(Stop) as stop:
        f(*args, **kwargs)
    text = str(stop.value)
    assert text and '\n' not in text
    return text


def rms(x):
    return x.double().square().mean().sqrt().item()


# -- a forward pass

def test_logits_without_targets():
    """Evaluation asks for every position, and gets the logits that training computes; decoding for the last."""
    model = small().eval()
    idx = checks.tokens(model)
    training, _ = model(idx, idx)
    every, loss = model(idx, step=Step(all_positions=True))
    assert loss is None and torch.equal(every, training)
    last, loss = model(idx)
    assert loss is None and last.shape == (3, 1, 65)
    torch.testing.assert_close(last, every[:, -1:], rtol=0, atol=1e-12)


# -- the frozen surface

def test_core_options():
    """A new option of the core is a deliberate act: an idea's options belong in its variant."""
    assert [f.name for f in dataclasses.fields(GPTConfig)] == [
        'block_size', 'vocab_size', 'n_layer', 'n_head', 'n_embd', 'dropout', 'attn_dropout', 'bias', 'attn']


def test_slots():
    assert [slot.__name__ for slot in SLOTS] == [
        'GPTConfig', 'LayerNorm', 'Linear', 'CausalSelfAttention', 'MLP', 'Block', 'GPT']


def test_num_params():
    model = build(**SHAKESPEARE)
    C, V, T, L = 384, 65, 256, 6
    assert model.get_num_params() == V * C + L * (12 * C * C + 2 * C) + C == 10_646_784
    assert model.get_num_params(non_embedding=False) == 10_646_784 + T * C


def test_flops():
    config = GPTConfig(**SHAKESPEARE)
    d, T, L, V = 384, 256, 6, 65
    forward = L * (24 * d * d + 4 * d * T) + 2 * d * V
    assert flops_per_token(load_classes(), config) == (forward, 3 * forward)
    soft = load_classes('soft_window') # by its definition, not by what a fast path adds
    window = L * 2 * d * 6
    assert flops_per_token(soft, soft.GPTConfig(**SHAKESPEARE)) == (forward + window, 3 * (forward + window))


def test_config_rule():
    assert 'n_head=5: must divide n_embd=24' in refused(build, n_embd=24, n_head=5)
    assert 'nope' in refused(build, nope=1)


# -- initial values

def test_initial_values_are_nanogpts():
    model = build(**SHAKESPEARE | dict(bias=True))
    for name, p in model.named_parameters():
        if name.endswith('bias'):
            assert not p.any()
        elif 'ln_' in name:
            assert (p == 1).all()
        else:
            std = 0.02 / math.sqrt(2 * 6) if name.endswith('c_proj.weight') else 0.02
            assert abs(p.std().item() / std - 1) < 0.02 and abs(p.mean().item()) < 5 * std / math.sqrt(p.numel())
    assert model.lm_head.weight is model.transformer.wte.weight


def test_initial_value_is_a_function_of_seed_and_name(drop):
    drop('reordered', HEADER + '''
class Block(model.Block):
    def __init__(self, config, classes, layer):
        super().__init__(config, classes, layer)
        self.extra = classes.Linear(config, 8, 8)
        attn = self.attn
        del self.attn
        self.attn = attn    # registered last
''')
    torch.manual_seed(5)
    drawn = torch.rand(3)
    torch.manual_seed(5)
    one, two, other = (dict(small(variant, seed=seed).named_parameters())
                       for variant, seed in (('base', 3), ('reordered', 3), ('reordered', 4)))
    assert torch.equal(torch.rand(3), drawn), 'building a model drew from the global generator'
    assert list(one) != [name for name in two if name in one]
    for name, p in one.items():
        assert torch.equal(p, two[name])
    assert not torch.equal(two['transformer.h.0.extra.weight'], two['transformer.h.1.extra.weight'])
    assert not torch.equal(one['transformer.wpe.weight'], other['transformer.wpe.weight'])


@pytest.mark.slow
def test_initial_values_in_another_process():
    code = ("import hashlib; from model import build;"
            "m = build(seed=9, block_size=8, vocab_size=11, n_layer=1, n_head=1, n_embd=4);"
            "print(hashlib.sha256(b''.join(p.detach().numpy().tobytes() for p in m.parameters())).hexdigest())")
    other = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, check=True,
                           env=os.environ | dict(PYTHONHASHSEED='12')).stdout
    here = io.StringIO()
    with contextlib.redirect_stdout(here):
        exec(code, {})
    assert here.getvalue() == other != ''


def test_parameter_without_a_value_is_named(drop):
    drop('forgetful', HEADER + '''
class MLP(model.MLP):
    def __init__(self, config, classes, layer):
        super().__init__(config, classes, layer)
        self.scale = nn.Parameter(torch.empty(3))
''')
    assert 'transformer.h.0.mlp.scale' in refused(small, 'forgetful')


def test_tags(drop):
    drop('tagged', HEADER + '''
class MLP(model.MLP):
    def __init__(self, config, classes, layer):
        super().__init__(config, classes, layer)
        self.twos = nn.Parameter(torch.empty(3, 3))
        self.twos.init = lambda p: nn.init.constant_(p, 2.0)
        self.twos.no_decay = True
        self.slow = classes.Linear(config, 3, 3)
        self.slow.weight.init = nn.init.eye_
        self.slow.weight.lr_scale = 0.1
        self.kept = nn.Parameter(torch.full((3,), 7.0))
''')
    model = small('tagged', dtype=torch.float32)
    mlp = model.transformer.h[1].mlp
    assert (mlp.twos == 2).all() and torch.equal(mlp.slow.weight, torch.eye(3)) and (mlp.kept == 7).all()
    optimizer = model.configure_optimizers(0.3, 0.01, (0.9, 0.95), 'cpu')
    group_of = {id(p): group for group in optimizer.param_groups for p in group['params']}
    for p, decay, scale in (
            (mlp.twos, 0.0, 1.0), (mlp.slow.weight, 0.3, 0.1), (mlp.kept, 0.0, 1.0), (mlp.c_fc.weight, 0.3, 1.0),
            (model.transformer.wte.weight, 0.3, 1.0), (model.transformer.ln_f.weight, 0.0, 1.0)):
        group = group_of[id(p)]
        assert (group['weight_decay'], group['lr_scale'], group['lr']) == (decay, scale, 0.01 * scale)


# -- attention

def qkv(T, B=2, nh=3, hs=16, dtype=torch.float64, seed=0, Tk=None):
    return [torch.randn(B, nh, n, hs, generator=generator(seed, name), dtype=torch.float64).to(dtype)
            for name, n in (('q', T), ('k', Tk or T), ('v', Tk or T))]


def attention(impl, tensors, slope, pos_q, pos_k, plain, seed=0):
    """[y, and the gradients for q, k, v and slope] under a random cotangent."""
    inputs = [x.clone().requires_grad_() for x in (*tensors, slope)]
    y = attend(*inputs[:3], pos_q, pos_k, distance_bias(inputs[3], pos_k), impl, plain)
    cotangent = torch.randn(y.shape, generator=generator(seed, 'cotangent'), dtype=torch.float64)
    y.backward(cotangent.to(y.dtype))
    return [y.detach(), *(x.grad for x in inputs)]


def plain_positions(T, B=2):
    return torch.arange(T).expand(B, T)


def test_math_is_the_definition():
    """Equals loops over the formula."""
    (q, k, v), pos = qkv(6), plain_positions(6)
    slope = torch.rand(2, 3, 6, generator=generator('slope'), dtype=torch.float64)
    y = attend(q, k, v, pos, pos, distance_bias(slope, pos), impl='math')
    for b in range(2):
        for h in range(3):
            for i in range(6):
                scores = [(q[b, h, i] @ k[b, h, j] / 4 - slope[b, h, i] * (i - j)).item() for j in range(i + 1)]
                weights = [math.exp(s) for s in scores]
                want = sum(w * v[b, h, j] for j, w in enumerate(weights)) / sum(weights)
                assert torch.allclose(y[b, h, i], want, rtol=0, atol=1e-12)


def test_distances_are_exact_wherever_positions_are():
    """Empty slots of routed blocks are at 2^40, where float32 has no ones."""
    (q, k, v), pos = qkv(6, dtype=torch.float32), plain_positions(6)
    slope = torch.rand(2, 3, 6, generator=generator('slope'))
    near, far = (attend(q, k, v, at, at, distance_bias(slope, at), impl='math') for at in (pos, pos + 2 ** 40))
    assert torch.equal(near, far)


@pytest.mark.parametrize('plain', [True, False], ids=['plain', 'positions'])
@pytest.mark.parametrize('T', [1, 7, 31, 64])
@pytest.mark.parametrize('dtype, tol', [(torch.float64, 1e-9), (torch.float32, 1e-5)], ids=['float64', 'float32'])
def test_sdpa_is_math(T, dtype, tol, plain):
    slope = torch.rand(2, 3, T, generator=generator('slope'), dtype=torch.float64).to(dtype)
    pos = plain_positions(T)
    if not plain: # each row's own
        pos = torch.stack([torch.randperm(4 * T, generator=generator(b))[:T].sort().values for b in range(2)])
    results = [attention(impl, qkv(T, dtype=dtype), slope, pos, pos, plain) for impl in ('math', 'sdpa')]
    for name, want, got in zip(('y', 'q', 'k', 'v', 'slope'), *results, strict=True):
        checks.assert_close(name, got, want, tol, floor=1e-2 * rms(results[0][0]))


@pytest.mark.parametrize('T', [17, 256, 600])
@pytest.mark.parametrize('scale', [0.03, 0.3, 1.0])
def test_sdpa_in_bfloat16(T, scale):
    """Close as far as bfloat16 allows: its grid is coarser than positions above 256, and a slope's gradient sums
    over them."""
    slope = scale * torch.rand(2, 3, T, generator=generator('slope'), dtype=torch.float64).float()
    half, pos = qkv(T, dtype=torch.bfloat16), plain_positions(T)
    want = attention('math', [x.double() for x in half], slope.double(), pos, pos, True)
    got = attention('sdpa', half, slope, pos, pos, True)
    for name, a, b in zip(('y', 'q', 'k', 'v', 'slope'), got, want, strict=True):
        checks.assert_close(name, a, b, 2e-2 if name == 'slope' else 1e-2)


@pytest.mark.parametrize('T, grad, dtype', [
    (255, True, torch.float32), (256, True, torch.bfloat16), (255, False, torch.bfloat16)])
def test_a_cpu_trains_on_short_rows_in_float32(T, grad, dtype, monkeypatch):
    """bfloat16's backward is slow there. The output is bfloat16, with and without autocast."""
    seen, sdpa = [], F.scaled_dot_product_attention
    monkeypatch.setattr(F, 'scaled_dot_product_attention',
                        lambda *args, **options: seen.append(sdpa(*args, **options)) or seen[-1])
    qkv32, pos = qkv(T, dtype=torch.float32), plain_positions(T)
    want = attend(*[x.double() for x in qkv32], pos, pos, impl='math')
    with torch.set_grad_enabled(grad):
        for autocast, x in (True, qkv32), (False, [x.bfloat16() for x in qkv32]):
            with torch.autocast('cpu', torch.bfloat16, enabled=autocast):
                y = attend(*x, pos, pos, impl='sdpa', from_zero=True)
            assert y.dtype == torch.bfloat16 and seen.pop().dtype == dtype
            checks.assert_close('y', y, want, 1e-2)


@pytest.mark.parametrize('impl', ['math', 'sdpa'])
def test_a_subset_of_queries_and_late_positions(impl):
    """Gives rows of the whole: causality goes by position, for any queries and any first position."""
    (q, k, v), pos = qkv(20), plain_positions(20)
    slope = torch.rand(2, 3, 20, generator=generator('slope'), dtype=torch.float64)
    whole = attend(q, k, v, pos, pos, distance_bias(slope, pos), impl, True)
    some = torch.tensor([[0, 3, 4, 19], [1, 2, 10, 11]])
    picked = torch.stack([q[b, :, some[b]] for b in range(2)])
    slopes = torch.stack([slope[b, :, some[b]] for b in range(2)])
    y = attend(picked, k, v, some + 1000, pos + 1000, distance_bias(slopes, pos + 1000), impl, False)
    assert torch.allclose(y, torch.stack([whole[b, :, some[b]] for b in range(2)]), rtol=0, atol=1e-9)


def test_attention_dropout_acts_on_every_path():
    (q, k, v), pos = qkv(32, nh=2), plain_positions(32)
    for impl in 'math', 'sdpa', 'auto', 'kernel':
        torch.manual_seed(0)
        runs = torch.stack([attend(q, k, v, pos, pos, impl=impl, from_zero=True, dropout=0.5) for _ in range(200)])
        exact = attend(q, k, v, pos, pos, impl='math')
        assert rms(runs[0] - exact) > 0.1 and rms(runs.mean(0) - exact) < 0.1 # kept weights are scaled up


def test_what_cannot_be_expressed_is_refused():
    (q, k, v), pos = qkv(8), plain_positions(8)
    bias = distance_bias(torch.ones(2, 3, 8, dtype=torch.float64), pos)
    window, capped = Window(4 * bias.slope), lambda s, b, h, i, j: 2 * torch.tanh(s / 2)
    for impl in 'sdpa', 'kernel':
        assert f'attn={impl}' in refused(attend, q, k, v, pos, pos, capped, impl, True)
    assert 'attn=sdpa' in refused(attend, q, k, v, pos, pos, window, 'sdpa', True)
    assert 'attn=flex' in refused(attend, q, k, v, pos, pos, bias, 'flex', True)
    assert 'attn=flex' in refused(attend, q, k, v, pos, pos, bias, 'flex', True, 0.1)
    for impl in 'sdpa', 'flex':
        assert f'attn={impl}: gives no statistics' in refused(attend, q, k, v, pos, pos, None, impl, True, moments=True)
    assert 'attn_dropout' in refused(small, attn='flex', dropout=0.1)
    assert small(attn='flex', dropout=0.1, attn_dropout=0.0)
    assert 'attn_dropout=0.001' in refused(attend, q, k, v, pos, pos, impl='kernel', from_zero=True, dropout=0.001)
    line = refused(attend, *qkv(8, hs=256), pos, pos, impl='kernel', from_zero=True)
    assert 'attn=kernel: cannot compute heads of 256' in line
    for mod in capped, window: # what is not refused is never dropped
        auto, want = (attend(q, k, v, pos, pos, mod, impl, True) for impl in ('auto', 'math'))
        assert torch.equal(auto, want) and not torch.allclose(want, attend(q, k, v, pos, pos))


def test_it_is_said_how_attention_is_computed():
    for variant, attn, ways in (('base', 'auto', {'sdpa'}), ('soft_window', 'auto', {'sdpa'}),
                                ('hard_window', 'auto', {'math'}), ('head_scaling', 'auto', {'math'}),
                                ('head_scaling', 'kernel', {'kernel'}),
                                ('soft_window', 'kernel', {'kernel'}), ('base', 'math', {'math'})):
        step = Step(backends=set())
        small(variant, attn=attn)(torch.zeros(1, 8, dtype=torch.long), step=step)
        assert {way for way, _ in step.backends} == ways, (variant, attn, step.backends)
        assert {why for _, why in step.backends} == {'no CUDA GPU' if attn == 'auto' else f'attn={attn}'}


def test_what_is_chosen_on_a_gpu(monkeypatch):
    monkeypatch.setattr(attention_paths, 'kernels', True)
    bias, window, capped = Bias(1, 1), Window(1), lambda s, b, h, i, j: s
    for want, T, more in (
            ('kernel', 256, {}), ('sdpa', 256, dict(training=False)), ('sdpa', 4096, {}), ('math', 1, {}),
            ('sdpa', 256, dict(from_zero=False)), ('sdpa', 256, dict(dtype=torch.float32)),
            ('sdpa', 256, dict(dropout=0.01)), ('kernel', 256, dict(dropout=0.1)),
            ('kernel', 4096, dict(score_mod=bias)), ('kernel', 256, dict(score_mod=window, training=False)),
            ('sdpa', 256, dict(score_mod=bias, from_zero=False)), ('sdpa', 256, dict(score_mod=bias, hs=256)),
            ('math', 256, dict(score_mod=window, from_zero=False)), ('flex', 256, dict(score_mod=window, hs=256)),
            ('flex', 256, dict(score_mod=capped)), ('math', 256, dict(score_mod=capped, dropout=0.1)),
            ('math', 256, dict(score_mod=capped, hs=8)), ('kernel', 4096, dict(moments=True)),
            ('math', 256, dict(moments=True, from_zero=False)), ('math', 256, dict(moments=True, score_mod=capped))):
        q = SimpleNamespace(is_cuda=True, device=torch.device('cuda'), dtype=more.pop('dtype', torch.bfloat16),
                            size=dict([(2, T), (-1, more.pop('hs', 64))]).get)
        way, why = choose_backend('auto', q, q, **dict(from_zero=True) | more)
        assert way == want and why and '\n' not in why, (want, way, why, T, more)


@pytest.mark.parametrize('dropout, way', [(0.0, 'kernel'), (0.01, 'sdpa'), (0.2, 'kernel')])
def test_what_is_said_is_what_training_does(dropout, way, monkeypatch):
    """In evaluation too, without gradients and without dropout."""
    monkeypatch.setattr(attention_paths, 'kernels', True)
    q = SimpleNamespace(is_cuda=True, device=torch.device('cuda'), dtype=torch.bfloat16, size={2: 256, -1: 64}.get)
    monkeypatch.setattr(core_model, 'attend', lambda q, *args: q)
    attn, step = small(attn_dropout=dropout).eval().transformer.h[0].attn, Step(backends=set())
    with torch.no_grad():
        attn.attend(q, q, q, None, None, step)
    assert {way for way, _ in step.backends} == {way}
    assert choose_backend('auto', q, q, from_zero=True, training=False)[0] == 'sdpa'


@pytest.mark.parametrize('variant', [
    'base', 'soft_window', 'hard_window', 'forgetting', 'adaptive_span', 'head_scaling'])
def test_the_kernel_leaves_decoding_to_others(variant):
    """It knows only positions 0 to T-1, and the cache has others."""
    model = small(variant, 0.3, attn='kernel')
    checks.cached_decoding(model)
    checks.greedy_generation(model)


# -- sampling

def share(logits, n=20_000, **options):
    """Returns how often each token is sampled."""
    args = dict(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0) | options
    picked = sample_token(logits.expand(n, -1), *args.values(), generator('pick'))
    assert picked.shape == (n, 1)
    counts = Counter(picked.flatten().tolist())
    return torch.tensor([counts[i] / n for i in range(logits.numel())])


@pytest.mark.parametrize('options, kept', [
    (dict(), [0.5, 0.3, 0.15, 0.05]),
    (dict(temperature=0), [1, 0, 0, 0]),
    (dict(temperature=2.0), [0.5 ** 0.5, 0.3 ** 0.5, 0.15 ** 0.5, 0.05 ** 0.5]),
    (dict(top_k=1), [1, 0, 0, 0]),
    (dict(top_k=2), [0.5, 0.3, 0, 0]),
    (dict(top_k=99), [0.5, 0.3, 0.15, 0.05]),
    (dict(top_p=0.4), [1, 0, 0, 0]),
    (dict(top_p=0.7), [0.5, 0.3, 0, 0]),
    (dict(top_p=0.81), [0.5, 0.3, 0.15, 0]),
    (dict(min_p=0.2), [0.5, 0.3, 0.15, 0]),
    (dict(min_p=0.59), [0.5, 0.3, 0, 0]),
    (dict(min_p=0.61), [1, 0, 0, 0]),
    (dict(temperature=0.5, top_k=3), [0.25, 0.09, 0.0225, 0]),
    (dict(top_k=3, top_p=0.6, min_p=0.1), [0.5, 0.3, 0, 0]),
], ids=str)
def test_pick(options, kept):
    order = torch.tensor([2, 0, 3, 1]) # the likeliest is not the first
    want = torch.tensor(kept, dtype=torch.float64)[order]
    got = share(torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64).log()[order] + 3, **options)
    assert ((got == 0) == (want == 0)).all() and (got - want / want.sum()).abs().max() < 0.015


def test_rows_are_picked_from_their_own_logits():
    logits = torch.full((3, 5), -1e9)
    logits[[0, 1, 1, 2], [4, 0, 1, 2]] = 0 # row 1 has two equal ones
    for options in dict(), dict(top_k=2), dict(top_p=0.9), dict(min_p=0.6), dict(temperature=0):
        args = dict(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0) | options
        one, two, three = sample_token(logits, *args.values(), None).flatten().tolist()
        assert (one, three) == (4, 2) and two in (0, 1)


def test_sampling_follows_its_generator():
    model = small(shake=0.3).eval()
    idx = checks.tokens(model, 2, 4)
    a, b, c = (model.generate(idx, 10, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(a, b) and not torch.equal(a, c) and torch.equal(a[:, :4], idx) and a.shape == (2, 14)
    assert torch.equal(torch.cat([idx, *model.stream(idx, 10, generator=torch.Generator().manual_seed(1))], dim=1), a)


# -- the model

def test_too_long_a_context_is_refused():
    model = small()
    assert 'block_size=32' in refused(model, torch.zeros(1, 33, dtype=torch.long))
    assert 'block_size=64' in refused(model.crop_block_size, 64)


def test_cropping():
    model = small(shake=0.3).eval()
    idx = checks.tokens(model, 2, 16)
    want, _ = model(idx, idx)
    model.crop_block_size(16)
    assert torch.equal(model(idx, idx)[0], want) and model.transformer.wpe.weight.shape == (16, 24)
    assert 'block_size=16' in refused(model, checks.tokens(model, 1, 17))


def test_auxiliary_losses_and_stats_cost_nothing_unless_wanted(drop):
    drop('aux', HEADER + '''
class Block(model.Block):
    def attn_out(self, y, step):
        step.loss('half', 0.5 * torch.ones(()))
        step.stat('size', y)
        return y
''')
    model, idx = small('aux'), checks.tokens(small())
    step = Step(stats={})
    plain = small()(idx, idx)[1]
    assert torch.equal(model.eval()(idx, idx, step)[1], plain)
    assert len(step.stats['size']) == 2 and not step.stats['size'][0].requires_grad
    assert (model.train()(idx, idx)[1] - plain - 1.0).abs() < 1e-12 # two blocks
    assert Step().stats is None


def test_weights_that_do_not_fit_are_refused():
    model = small(dtype=torch.float32)
    tensors = model_tensors(model)
    assert set(tensors) == {name for name, _ in model.named_parameters()} # the tied head once
    load_model_tensors(model, tensors)
    name = 'transformer.h.1.mlp.c_fc.weight'
    for wrong in ({n: t for n, t in tensors.items() if n != name}, tensors | {'transformer.more': torch.zeros(1)},
                  tensors | {name: tensors[name][1:]}):
        named = 'transformer.more' if 'transformer.more' in wrong else name
        assert named in refused(load_model_tensors, model, wrong)


def test_gpt2_weights():
    """A state dict of Hugging Face's GPT2LMHeadModel: Conv1D transposes, masks, lm_head beside wte."""
    model, other = small(shake=0.3, bias=True).eval(), small(seed=2, bias=True).eval()
    theirs = {}
    for name, t in model.state_dict().items():
        conv1d = name.endswith(('c_attn.weight', 'c_proj.weight', 'c_fc.weight'))
        theirs[name] = t.t().contiguous() if conv1d else t.clone()
    for layer in range(2):
        theirs[f'transformer.h.{layer}.attn.bias'] = torch.ones(1, 1, 32, 32).tril()
        theirs[f'transformer.h.{layer}.attn.masked_bias'] = torch.tensor(-1e4)
    idx = checks.tokens(model)
    want = model(idx, idx)[0]
    assert not torch.equal(other(idx, idx)[0], want)
    load_gpt2(other, theirs)
    assert torch.equal(other(idx, idx)[0], want)


# -- putting variants together

def test_a_file_is_a_variant(tmp_path, monkeypatch):
    """By its name alone; helpers and folders beside it are not variants."""
    (tmp_path / 'variants' / 'kernels').mkdir(parents=True)
    for name in 'mine.py', '_helper.py', 'notes.txt', 'kernels/fast.py':
        (tmp_path / 'variants' / name).touch()
    monkeypatch.setattr(core.assemble, 'FOLDER', tmp_path / 'variants')
    assert variant_names() == ['mine']


def test_unknown_names_are_refused():
    text = refused(load_classes, 'nope')
    assert 'nope' in text and all(name in text for name in variant_names())
    assert 'did you mean soft_window?' in refused(load_classes, 'soft_windw')
    assert 'twice' in refused(load_classes, 'soft_window+soft_window')
    assert load_classes('base+base').GPT is load_classes().GPT is GPT


def test_a_file_that_changes_nothing_is_refused(drop):
    drop('empty', '"""An idea without a class."""\n')
    drop('elsewhere', 'from model import Block\n')
    for name in 'empty', 'elsewhere':
        assert f'variants/{name}.py: defines none of GPTConfig, LayerNorm' in refused(load_classes, name)


def test_a_class_that_does_not_subclass_is_refused(drop):
    drop('rootless', HEADER + 'class Block(nn.Module):\n    pass\n')
    assert refused(load_classes, 'rootless') == 'variants/rootless.py: class Block must subclass model.Block'


def test_two_files_with_one_method_are_refused_by_name(drop):
    source = HEADER + 'class Block(model.Block):\n    def attn_out(self, y, step):\n        return {} * y\n'
    drop('double', source.format(2))
    drop('treble', source.format(3))
    text = refused(load_classes, 'double+treble')
    assert 'Block.attn_out' in text and 'double+treble' in text


def test_a_declared_clash_is_refused_in_both_orders(drop):
    drop('shy', HEADER + "CLASHES = {'bold': 'there is room for one'}\nclass MLP(model.MLP):\n    pass\n")
    drop('bold', HEADER + 'class Block(model.Block):\n    pass\n')
    for pair in 'shy+bold', 'bold+shy':
        assert 'there is room for one' in refused(load_classes, pair)
    assert load_classes('shy') and load_classes('bold')


def test_two_files_cooperate(drop):
    """Options of both, constructors of both, methods of each, in one model."""
    for name, cls, method in (('ones', 'Block', 'attn_out(self, y, step)'), ('twos', 'Block', 'add(self, x, y)')):
        drop(name, HEADER + f'''
from dataclasses import dataclass
@dataclass
class GPTConfig(model.GPTConfig):
    {name}_size: int = 3        # elements
class {cls}(model.{cls}):
    def __init__(self, config, classes, layer):
        super().__init__(config, classes, layer)
        self.{name} = nn.Parameter(torch.ones(config.{name}_size))
    def {method}:
        return super().{method.replace('self, ', '')} * self.{name}.sum()
''')
    model = small('ones+twos', twos_size=5, dtype=torch.float32)
    block = model.transformer.h[0]
    assert block.ones.shape == (3,) and block.twos.shape == (5,)
    one = torch.ones(())
    assert block.attn_out(one, None) == 3 and block.add(one, one) == 10
    assert {f.name for f in dataclasses.fields(model.config)} >= {'ones_size', 'twos_size'}
    ones = load_classes('ones').GPTConfig()
    assert ones.ones_size == 3 and not hasattr(ones, 'twos_size')


def test_values_may_be_wider_or_narrower_than_queries():
    """Each way gives the definition's y, as wide as v, or refuses."""
    pos = torch.arange(9).expand(2, -1)
    for width in 4, 24:
        q, k, v = qkv(9, dtype=torch.float64)
        v = torch.cat(3 * [v], dim=-1)[..., :width]
        for bias in None, distance_bias(torch.rand(2, 3, 9, dtype=torch.float64), pos):
            want = attend(q, k, v, pos, pos, bias, impl='math')
            assert want.size(-1) == width
            for impl in 'sdpa', 'auto':
                torch.testing.assert_close(attend(q, k, v, pos, pos, bias, impl, True), want)
            assert f'values of {width} channels' in refused(attend, q, k, v, pos, pos, bias, 'kernel', True)


# -- what would do nothing is refused

@pytest.mark.parametrize('source, said', [
    ('class MLP(model.MLP):\n    def hiden(self, x, step):\n        return x\n', ['MLP.hiden', 'did you mean hidden?']),
    ('class Mlp(model.MLP):\n    def hidden(self, x, step):\n        return x\n', ['class Mlp', 'did you mean MLP?']),
    ('class Block(model.Block):\n    def attn_update(self, y, step):\n        return y\n', ['attn_update', 'attn_out']),
    # beside a class that is right
    ('class MLP(model.MLP):\n    pass\nclass block(model.Block):\n    pass\n', ['class block', 'did you mean Block?']),
])
def test_a_misspelt_name_is_refused(drop, source, said):
    drop('misspelt', HEADER + source)
    text = refused(load_classes, 'misspelt')
    assert 'misspelt.py' in text and all(words in text for words in said)


def test_helpers_of_an_author_are_not_misspelt(drop):
    """Methods that are called, that begin with _, and subclasses of slots that are used under their own names."""
    drop('helped', HEADER + '''
class Half(model.Linear):
    def halve(self, x):
        return x / 2
    def forward(self, x):
        return self.halve(super().forward(x))
class MLP(model.MLP):
    def __init__(self, config, classes, layer):
        super().__init__(config, classes, layer)
        self.c_fc = Half(config, config.n_embd, 4 * config.n_embd)
    def _unused(self):
        pass
    @property
    def width(self):
        return self.c_fc.weight.size(0)
    def hidden(self, x, step):
        return super().hidden(x, step)[..., :self.width]
''')
    assert small('helped').transformer.h[0].mlp.width == 96


REPLACES = HEADER + '''
class Block(model.Block):
    def forward(self, x, step):
        return x + self.attn(self.ln_1(x), step) + self.mlp(self.ln_2(x), step)
'''


def test_a_partner_that_would_be_dropped_is_refused(drop):
    """The parallel block never calls mlp_out or mlp_residual, so what changes them would do nothing."""
    drop('parallel', REPLACES)
    drop('scaled', HEADER + 'class Block(model.Block):\n    def mlp_out(self, y, step):\n        return 2 * y\n')
    for pair in 'parallel+scaled', 'scaled+parallel':
        text = refused(load_classes, pair)
        assert 'parallel.py' in text and 'scaled.py' in text and 'Block.mlp_out' in text
    assert load_classes('parallel') and load_classes('scaled')


@pytest.mark.parametrize('name, refusing', [('parallel', True), ('sequential', False)])
def test_an_option_that_bypasses_a_partner_counts(drop, name, refusing):
    """A call through super() that default options never reach keeps no partner; one that they do reach does."""
    drop(name, f'''
from dataclasses import dataclass
import model
@dataclass
class GPTConfig(model.GPTConfig):
    parallel: bool = {refusing}
class Block(model.Block):
    def forward(self, x, step):
        if not self.config.parallel:
            return super().forward(x, step)
        return x + self.attn(self.ln_1(x), step) + self.mlp(self.ln_2(x), step)
''')
    drop('scaled', HEADER + 'class Block(model.Block):\n    def mlp_out(self, y, step):\n        return 2 * y\n')
    if refusing:
        assert 'Block.mlp_out' in refused(load_classes, f'{name}+scaled')
    else:
        assert load_classes(f'{name}+scaled')


def test_a_partner_that_is_still_called_is_not_refused(drop):
    """By the new forward itself, through another hook, or through super()."""
    drop('scaled', HEADER + 'class Block(model.Block):\n    def mlp_out(self, y, step):\n        return 2 * y\n')
    drop('calls', REPLACES.replace('self.mlp(self.ln_2(x), step)', 'self.mlp_out(self.mlp(self.ln_2(x), step), step)'))
    drop('through', HEADER + '''
class Block(model.Block):
    def forward(self, x, step):
        return self.mlp_residual(x, step)
''')
    drop('twice', HEADER + '''
class Block(model.Block):
    def forward(self, x, step):
        return super().forward(super().forward(x, step), step)
''')
    for name in 'calls', 'through', 'twice':
        assert load_classes(f'{name}+scaled')


# -- variants that are no file in variants/

def test_a_path_is_a_variant(tmp_path):
    """From anywhere; two files of one name are two variants; combined as any other."""
    for folder, factor in ('one', 2), ('two', 3):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / 'mine.py').write_text(
            HEADER + f'class Block(model.Block):\n    def attn_out(self, y, step):\n        return {factor} * y\n')
    y = torch.ones(1)
    for folder, factor in ('one', 2), ('two', 3):
        path = f'{tmp_path}/{folder}/mine.py'
        assert small(path).transformer.h[0].attn_out(y, None) == factor
        assert small(f'rope+{path}').transformer.wpe.weight is None
        assert short_name(f'rope+{path}') == 'rope+mine'
    assert f'no file {tmp_path}/three.py' in refused(load_classes, f'{tmp_path}/three.py')


def test_classes_of_a_notebook_are_a_variant():
    class Doubled(core_model.MLP):
        def hidden(self, x, step):
            return 2 * super().hidden(x, step)

    class Wider(core_model.MLP):
        pass

    ours = build(classes=[Doubled], **checks.SMALL)
    x = torch.randn(1, 4, 24)
    base = build(**checks.SMALL).transformer.h[0].mlp
    torch.testing.assert_close(ours.transformer.h[0].mlp.hidden(x, None), 2 * base.hidden(x, None))
    assert isinstance(build('rope', classes=[Doubled], **checks.SMALL).transformer.h[0].mlp, Doubled)
    assert 'two of them subclass MLP' in refused(build, classes=[Doubled, Wider])
    assert 'int must subclass one of GPTConfig' in refused(build, classes=[int])


def test_nanogpt_by_heart():
    """GPT(GPTConfig()) has its initial weights, from torch's seed."""
    torch.manual_seed(3)
    ours = GPT(GPTConfig(**checks.SMALL))
    want = build(seed=3, **checks.SMALL)
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), want.parameters(), strict=True))
    assert ours.get_num_params() == want.get_num_params()
    # the peak of a CPU is not known
    assert ours.estimate_mfu(4, 0.1) is None


# -- state between passes

def test_a_recurrence_decodes_as_it_evaluates(drop):
    """A running mean of all tokens so far, kept by state() and set_state()."""
    drop('running', HEADER + '''
class Block(model.Block):
    def forward(self, x, step):
        total, n = step.state(self.layer, 'running', (torch.zeros_like(x[:, 0]), 0))
        totals = total[:, None] + x.cumsum(1)
        count = torch.arange(n + 1, n + 1 + x.size(1), device=x.device)[:, None]
        step.set_state(self.layer, 'running', (totals[:, -1], n + x.size(1)))
        return super().forward(x + totals / count, step)
''')
    assert_decodes(small('running', shake=0.3).eval())


def test_a_module_that_runs_twice_in_a_pass_has_two_pasts(drop):
    """Tied layers, and a block that loops: keys and values of each use are apart."""
    drop('tied', HEADER + '''
class GPT(model.GPT):
    def blocks(self, x, step):
        first = self.transformer.h[0]
        return first(first(first(x, step), step), step)
''')
    assert_decodes(small('tied', shake=0.3).eval())


def test_the_readmes_embedding_of_pairs(drop):
    """It sees the token before, and no other, also when decoding token by token."""
    page = (ROOT / 'README.md').read_text(encoding='utf-8')
    example, = (block for block in re.findall('```python\n(.*?)```', page, re.DOTALL) if 'with_past' in block)
    drop('pairs', HEADER + 'from core.nn.embedding import Embedding\n' + example)
    one = small('pairs', shake=0.3).eval()
    assert_decodes(one)
    step, looked_up = Step(), []
    one.pairs.register_forward_pre_hook(lambda module, args: looked_up.append(args[0]))
    idx = torch.tensor([[3, 5, 5, 3, 5]])
    one(idx, step=step)
    assert looked_up[0][0].tolist() == [93, 31 * 5 + 3, 31 * 5 + 5, 31 * 3 + 5, 31 * 5 + 3]


@pytest.mark.parametrize('n', [0, 1, 3])
def test_the_past_of_a_tensor_is_what_earlier_passes_had(n):
    """Of ids and of activations, however the text is cut into passes; n positions, and no more are kept."""
    for x, fill in (torch.arange(14).view(2, 7), -1), (torch.randn(2, 7, 4), 0.0):
        padded = torch.cat((x.new_full((2, n, *x.shape[2:]), fill), x), dim=1)
        assert torch.equal(Step().with_past(0, 'x', x, n, fill), padded)
        cache = [{}]
        for begin, end in (0, 4), (4, 5), (5, 7):
            got = Step(cache=cache).with_past(0, 'x', x[:, begin:end], n, fill)
            assert torch.equal(got, padded[:, begin:end + n])
            assert cache[0]['x'].size(1) == n


def test_tokens_are_in_step_and_streams_in_blocks(drop):
    """A module anywhere reads the ids of its pass; blocks take what widen() makes, the last norm what narrow() does."""
    drop('streams', HEADER + '''
class Block(model.Block):
    def forward(self, x, step):
        assert x.shape[:2] == step.idx.shape and x.ndim == 4
        return torch.stack([super(Block, self).forward(x[:, :, 0], step), x[:, :, 1]], dim=2)
class GPT(model.GPT):
    def widen(self, x, step):
        return torch.stack([x, torch.zeros_like(x)], dim=2)
    def narrow(self, x, step):
        return x.sum(2)
''')
    one, base = small('streams', shake=0.3), small(shake=0.3)
    idx = checks.tokens(base)
    assert torch.equal(one(idx, idx)[0], base(idx, idx)[0])
    assert_decodes(one.eval())


def test_progress_is_the_share_of_the_schedule():
    one, idx = small(), torch.zeros(1, 3, dtype=torch.long)
    for n, it, share in (None, 5.0, 0.0), (0, 5.0, 0.0), (20, 5.0, 0.25), (20, 20.0, 1.0), (20, 21.0, 1.0):
        one.schedule_iters, step = n, Step(it=torch.tensor(it))
        one(idx, step=step)
        assert step.progress.item() == share and step.progress.shape == ()


def assert_decodes(one):
    """Asserts that passes of 3 and then 1 token with a cache give the logits of one pass over all tokens."""
    idx = checks.tokens(one, B=2, T=9)
    want = one(idx, step=Step(all_positions=True))[0]
    cache, got = [{} for _ in one.transformer.h], []
    for begin, end in ((0, 3), *((n, n + 1) for n in range(3, 9))):
        pos = torch.arange(begin, end).expand(2, -1) if begin else None
        got.append(one(idx[:, begin:end], step=Step(pos, cache=cache, all_positions=True))[0])
    torch.testing.assert_close(torch.cat(got, dim=1), want)


def test_a_loss_of_ones_own_sees_what_the_logits_are_of(drop):
    """Multi-token prediction without a forward of its own: hooks between the trunk and the loss."""
    drop('two_ahead', HEADER + '''
class GPT(model.GPT):
    def loss(self, logits, targets, x, step):
        ahead = self.logits(x[:, :-1], step)
        step.loss('two_ahead', torch.nn.functional.cross_entropy(ahead.flatten(0, 1), targets[:, 1:].flatten()))
        return super().loss(logits, targets, x, step)
''')
    ours, base = small('two_ahead'), small()
    idx = checks.tokens(base)
    step = Step()
    _, loss = ours(idx, idx, step)
    want = base(idx, idx)[1]
    assert step.losses['two_ahead'] > 0 and torch.equal(loss, want + step.losses['two_ahead'])
    # what is judged has no part of it
    assert torch.equal(ours.eval()(idx, idx)[1], want)
