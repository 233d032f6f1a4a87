"""The switches of modern models, where the battery is blind: each against its formula in other words."""
import math
import runpy
from pathlib import Path
from unittest import mock

import pytest
import torch
import torch.nn.functional as F

import model as model_module
from configurator import options_of
from core.errors import Stop
from core.nn.attention import attend, attention_weights, score_function
from lab.checks import iteration, logits_of, small, tokens
from model import Step, build, load_classes
from variants.forgetting import running_sum
from variants.rope import angles

ROOT = Path(__file__).parents[2]


def attention(variant, shake=0.3, layer=0, **options):
    return small(variant, shake, **options).transformer.h[layer].attn


def normal(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def step_at(x):
    step = Step(stats={})
    step.pos = torch.arange(x.size(1)).expand(x.size(0), -1)
    return step


def weights_of(attn, x):
    """Returns the attention weights (B, nh, T, T)."""
    step, (q, k, _) = step_at(x), attn.qkv(x)
    q, k = attn.rotate_qk(*attn.norm_qk(q, k), step)
    return attention_weights(q, k, step.pos, step.pos, attn.score_mod(x, step.pos, step))[1]


def scores_of(attn, x):
    """Returns the scores (B, nh, T, T) before softmax, without score_mod."""
    q, k, _ = attn.qkv(x)
    q, k = attn.rotate_qk(*attn.norm_qk(q, k), step_at(x))
    return q @ k.transpose(-2, -1) / math.sqrt(q.size(-1))


# -- norms

def test_rmsnorm_keeps_the_mean():
    norm, x = load_classes('rmsnorm').LayerNorm(small('rmsnorm').config, 24), 3 + normal(5, 24)
    want = F.rms_norm(x, (24,), eps=1e-6)
    assert torch.allclose(norm(x), want, atol=1e-9) and want.mean() > 0.9
    assert torch.allclose(norm(1000 * x), norm(x), atol=1e-6)


@pytest.mark.parametrize('unit, length', [(True, 1.0), (False, math.sqrt(24))])
def test_cosine_norm_sets_the_length(unit, length):
    norm = load_classes('cosine_norm').LayerNorm(small('cosine_norm', cosine_unit=unit).config, 24)
    assert torch.allclose(norm(normal(5, 24)).norm(dim=-1), torch.tensor(length, dtype=torch.float64), rtol=1e-5)


def test_post_norm_is_on_what_is_added():
    block, x = small('post_norm', 0.3).transformer.h[0], normal(2, 7, 24)
    step = step_at(x)
    for half, ln, inner in (block.attn_residual, block.ln_attn_out, block.attn(block.ln_1(x), step)), \
                           (block.mlp_residual, block.ln_mlp_out, block.mlp(block.ln_2(x), step)):
        assert torch.allclose(half(x, step) - x, F.layer_norm(inner, (24,), ln.weight))


# -- the MLP

@pytest.mark.parametrize('gate, act', [('silu', F.silu), ('gelu', F.gelu), ('relu', F.relu)])
def test_glu_gates_the_second_half(gate, act):
    mlp, x = small('glu', 0.3, glu_gate=gate).transformer.h[0].mlp, normal(2, 7, 24)
    w_gate, w_up = mlp.c_fc.weight.chunk(2)
    assert torch.allclose(mlp(x, None), (act(x @ w_gate.T) * (x @ w_up.T)) @ mlp.c_proj.weight.T)


def test_glu_has_the_parameters_of_the_baseline():
    assert small('glu', n_embd=48).get_num_params() == small('base', n_embd=48).get_num_params()


@pytest.mark.parametrize('power', [1, 2, 3])
def test_relu_power(power):
    mlp, x = small('relu2', 0.3, relu_power=power).transformer.h[0].mlp, normal(2, 7, 24)
    assert torch.allclose(mlp(x, None), (x @ mlp.c_fc.weight.T).clamp(min=0) ** power @ mlp.c_proj.weight.T)


def test_wide_mlp_adds_what_it_says():
    more = small('wide_mlp', mlp_ratio=4.5).get_num_params() - small('base').get_num_params()
    assert more == 2 * 2 * 24 * 12 # layers, matrices, n_embd, half of it


# -- keys and values

@pytest.mark.parametrize('n_kv', [1, 2])
def test_gqa_is_the_baseline_with_equal_heads_at_a_smaller_cache(n_kv):
    sizes = dict(n_head=4, n_embd=32)
    model, base = small('gqa', 0.3, n_kv_head=n_kv, **sizes), small('base', **sizes)
    state = model.state_dict()
    for name in [name for name in state if 'c_attn' in name]:
        q, k, v = state[name].split([32, 8 * n_kv, 8 * n_kv])
        repeated = [z.view(n_kv, 8, 32).repeat_interleave(4 // n_kv, 0).flatten(0, 1) for z in (k, v)]
        state[name] = torch.cat([q, *repeated])
    base.load_state_dict(state)
    idx, caches = tokens(model), []
    assert torch.allclose(logits_of(model, idx), logits_of(base, idx), atol=1e-9)
    for m in model, base:
        caches.append([{} for _ in m.transformer.h])
        m(idx, step=Step(cache=caches[-1]))
    own, full = (sum(cache[0][name].numel() for name in 'kv') for cache in caches)
    assert own * 4 == full * n_kv


def test_gqa_refuses_heads_that_do_not_divide():
    with pytest.raises(Stop, match='n_kv_head=2: must divide n_head=3'):
        small('gqa', n_kv_head=2)


def test_value_residual_mixes_the_first_layers_values():
    model, idx, seen = small('value_residual', 0.3, n_layer=3), None, []
    idx = tokens(model)
    for block in model.transformer.h:
        block.attn.attend = lambda q, k, v, *args, f=block.attn.attend, **more: (
            seen.append(v) or f(q, k, v, *args, **more))
    with torch.no_grad():
        for block in model.transformer.h[1:]:
            block.attn.value_mix.copy_(torch.tensor([1.0, 0.0]))
        model(idx)
    assert torch.equal(seen[1], seen[0]) and torch.equal(seen[2], seen[0])
    assert [name for name, _ in model.named_parameters() if 'value_mix' in name] == \
        [f'transformer.h.{layer}.attn.value_mix' for layer in (1, 2)]


# -- positions

def test_ropes_angles_are_an_operator():
    pos = torch.arange(5).expand(2, 5) + torch.tensor([[0], [3]])
    for dtype in torch.float32, torch.float64:
        torch.library.opcheck(angles, (pos, 6, 100.0, dtype))
    torch.library.opcheck(angles, (pos[:1], 0, 100.0, torch.float32))


def test_rope_rotates_pairs_as_complex_numbers():
    attn, x = attention('rope', n_head=2, n_embd=16), normal(1, 9, 16)
    q, k, _ = attn.qkv(x)
    turned, _ = attn.rotate_qk(q, k, step_at(x))
    angle = torch.arange(9.0)[:, None] * 10000.0 ** (-torch.arange(4, dtype=torch.float64) / 4)
    want = torch.view_as_complex(q.unflatten(-1, (4, 2)).contiguous()) * torch.polar(torch.ones_like(angle), angle)
    assert torch.allclose(turned, torch.view_as_real(want).flatten(-2), atol=1e-9)


@pytest.mark.parametrize('share, rotated', [(1.0, 8), (0.5, 4), (0.3, 2), (0.0, 0)])
def test_rope_leaves_the_other_channels(share, rotated):
    # 9 channels: one is never in a pair
    attn, x = attention('rope', n_head=3, n_embd=27, rope_share=share), normal(1, 9, 27)
    q, k, _ = attn.qkv(x)
    turned, _ = attn.rotate_qk(q, k, step_at(x))
    assert ((turned != q)[0, :, 1:].flatten(0, 1).sum(0) > 0).tolist() == [True] * rotated + [False] * (9 - rotated)


def test_rope_sees_distances_only():
    model = small('rope', 0.3)
    idx = tokens(model)
    pos = torch.arange(32).expand(3, -1)
    (want, _), (moved, _), (spread, _) = (model(idx, idx, Step(p)) for p in (pos, pos + 1000, 2 * pos))
    assert torch.allclose(moved, want, atol=1e-7) and not torch.allclose(spread, want, atol=1e-3)


def test_without_any_positions_the_order_of_the_past_is_unseen():
    swap = [1, 0, *range(2, 32)]
    for share, seen in (0.0, False), (1.0, True):
        model = small('rope', 0.3, n_layer=1, rope_share=share)
        idx = tokens(model)
        assert torch.allclose(model(idx)[0], model(idx[:, swap])[0], atol=1e-9) != seen


def test_rope_has_no_position_embeddings():
    model = small('rope')
    assert model.get_num_params(non_embedding=False) == small('base').get_num_params()
    assert model.transformer.wpe.weight is None
    model.crop_block_size(16)
    assert model(tokens(model))[0].isfinite().all()


def test_canon_is_a_causal_convolution():
    canon, x = attention('canon').canon, normal(2, 9, 24)
    want = x + F.conv1d(F.pad(x.mT, (3, 0)), canon.weight.T.flip(1)[:, None], groups=24).mT
    assert torch.allclose(canon(x, step_at(x)), want)


# -- scores

def test_qk_norm_bounds_scores():
    attn, x = attention('qk_norm', shake=5.0), normal(2, 9, 24)
    scores = scores_of(attn, x)
    assert scores.abs().max() <= math.sqrt(8)
    with torch.no_grad():
        attn.c_attn.weight[:48] *= 100
    assert torch.allclose(scores_of(attn, x), scores, atol=1e-6)


def test_softcap_bounds_logits_and_scores():
    model = small('softcap', 5.0, logit_cap=3.0)
    loud = logits_of(model, tokens(model))
    assert 2.9 < loud.abs().max() <= 3.0
    attn, x = attention('softcap', 1.0, score_cap=2.0), normal(2, 9, 24)
    scores = 2 * torch.tanh(scores_of(attn, x) / 2)
    want = scores.masked_fill(torch.ones(9, 9).triu(1).bool(), float('-inf')).softmax(-1)
    assert torch.allclose(weights_of(attn, x), want)
    with pytest.raises(Stop, match='attn=sdpa'):
        model = small('softcap', score_cap=2.0, attn='sdpa')
        model(tokens(model))


def test_scaled_embedding_scales_tokens_alone():
    model, base = small('scaled_embedding'), small('base')
    idx = tokens(model)
    assert torch.allclose(model.tok_emb(idx), math.sqrt(24) * base.tok_emb(idx)) and torch.equal(
        model.logits(torch.ones(1, 24).double(), None), base.logits(torch.ones(1, 24).double(), None))


def test_forgettings_sum_is_an_operator():
    """The operator has the shape, strides and gradient that it declares, for views too."""
    for x in (normal(2, 3, 9), normal(2, 9, 3).transpose(1, 2)):
        torch.library.opcheck(running_sum, (x.requires_grad_(),))
        assert torch.autograd.gradcheck(running_sum, (x,))


def test_forgetting_multiplies_what_lies_between():
    attn, x = attention('forgetting', forget_init=0.5), normal(2, 9, 24)
    f = torch.sigmoid(attn.forget(x) + 0.5) # (B, T, nh)
    kept = scores_of(attn, x).exp()
    for i in range(9):
        for j in range(9):
            kept[:, :, i, j] *= f[:, j + 1:i + 1].prod(1) if j <= i else 0.0
    assert torch.allclose(weights_of(attn, x), kept / kept.sum(-1, keepdim=True))


def test_every_leaves_the_other_layers():
    assert [block.attn.forget is not None for block in small('forgetting', n_layer=5, every=2).transformer.h] == \
        [False, True, False, True, False]


def test_key_importance_is_the_same_for_all_queries():
    attn, x = attention('key_importance'), normal(2, 9, 24)
    kept = (scores_of(attn, x) + attn.importance(x).transpose(1, 2)[:, :, None]).exp().tril()
    assert torch.allclose(weights_of(attn, x), kept / kept.sum(-1, keepdim=True))


# -- fractal heads

@pytest.mark.parametrize('scale', ['own', 'head'])
@pytest.mark.parametrize('options, sizes', [
    (dict(n_head=4, n_embd=64), [16, 8, 4, 2]), (dict(n_head=6, n_embd=96), [16, 8, 4, 2, 2, 2]),
    (dict(n_head=4, n_embd=64, smallest=8), [16, 8, 8, 8]), (dict(n_head=3, n_embd=54, split=3), [18, 6, 2]),
    (dict(n_head=4, n_embd=48), [12, 6, 3, 3]), (dict(n_head=3, n_embd=27), [9, 9, 9]), (dict(split=1), [8, 8, 8])])
def test_fractal_heads_slice_by_slice(options, sizes, scale):
    model = small('fractal_heads+soft_window', 0.3, fractal_scale=scale, **options)
    attn, x = model.transformer.h[0].attn, normal(2, 9, model.config.n_embd)
    step, (q, k, v) = step_at(x), attn.qkv(x)
    with mock.patch.object(model_module, 'attend', wraps=attend) as counted:
        y = attn.attend(q, k, v, x, step.pos, step)
    assert counted.call_count == len(set(sizes)) # one a size
    away = torch.arange(9)[:, None] - torch.arange(9)
    for h, size in enumerate(sizes):
        hs = q.size(-1)
        for start in range(0, hs, size):
            part = slice(start, start + size)
            s = q[:, h, :, part] @ k[:, h, :, part].mT / math.sqrt(size if scale == 'own' else hs)
            s = s - away / step.stats['window'][0][:, h, :, None]
            want = s.masked_fill(away < 0, float('-inf')).softmax(-1) @ v[:, h, :, part]
            assert torch.allclose(y[:, h, :, part], want)


@pytest.mark.parametrize('variant', ['forgetting', 'hard_window', 'adaptive_span'])
def test_slices_see_as_their_head_does(variant):
    """A Bias and a Window of whole heads are to their slices what the same change is as a function."""
    attn, x = attention(f'fractal_heads+{variant}', n_head=6, n_embd=96), normal(2, 9, 96)
    step, (q, k, v) = step_at(x), attn.qkv(x)
    y, described = attn.attend(q, k, v, x, step.pos, step), attn.score_mod
    attn.score_mod = lambda x, pos_k, step: score_function(described(x, pos_k, step), step.pos, pos_k)
    assert torch.allclose(y, attn.attend(q, k, v, x, step.pos, step))


# -- the presets

@pytest.mark.parametrize('preset', ['llama3_char', 'grok_char', 'modern_char'])
def test_presets_train(preset):
    config = runpy.run_path(str(ROOT / f'config/{preset}.py'))
    known = options_of(load_classes(config['variant']).GPTConfig)
    model_args = {name: value for name, value in config.items() if name in known}
    small_args = dict(n_layer=2, n_embd=96, block_size=32, vocab_size=65, dropout=0.0)
    model = build(config['variant'], **model_args | small_args)
    idx, before = tokens(model, 4), None
    optimizer = model.configure_optimizers(0.1, 3e-3, (0.9, 0.99), 'cpu')
    for it in range(5):
        _, loss = model(idx[:, :-1], idx[:, 1:], Step(it=iteration(it)))
        before = loss.item() if before is None else before
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss.item() < before - 0.1


# -- the residual stream

@pytest.mark.parametrize('name, options', [
    ('attnres', dict(attnres_size=1)), ('attnres', dict(attnres_size=3)), ('hyper', {}),
    ('hyper', dict(hyper_rate=3)), ('x0', dict(x0_start='identity'))])
def test_the_stream_starts_as_the_baseline(name, options):
    logits = []
    for model in small(), small(name, **options):
        with torch.no_grad():
            # large: means and sums of streams have other sizes, which norms hide but for their epsilon
            model.transformer.wte.weight *= 1e3
            model.transformer.wpe.weight *= 1e3
        logits.append(logits_of(model, tokens(model)))
    assert torch.allclose(*logits, rtol=1e-5)


def test_loop_trains_every_pass_by_its_exit():
    model, passes = small('loop', 0.3, n_loop=3).train(), []
    model.lm_head.register_forward_pre_hook(lambda m, args: passes.append(args[0]))
    idx = tokens(model)
    targets = torch.where(tokens(model, seed=1) < 20, -1, tokens(model, seed=2))
    _, loss = model(idx, targets)
    last, first, second = passes
    s1, s2 = (torch.sigmoid(model.exit_gate(x)[..., 0]) for x in (first, second))
    exits = s1, (1 - s1) * s2, (1 - s1) * (1 - s2)
    assert torch.allclose(sum(exits), torch.ones_like(s1))
    want = 0.0
    for p, x in zip(exits, (first, second, last), strict=True):
        log_probs = F.linear(x, model.lm_head.weight).log_softmax(-1)
        want = want + p * (0.1 * p.log() - log_probs.gather(-1, targets.clamp(min=0)[..., None])[..., 0])
    assert torch.allclose(loss, want[targets >= 0].mean())


def test_exclusive_attention_keeps_nothing_of_the_own_value():
    attn, x = attention('xsa'), normal(2, 7, 24)
    step, (q, k, v) = step_at(x), attn.qkv(x)
    y = attn.attend(q, k, v, x, step.pos, step)
    assert (y * v).sum(-1).abs().max() < 1e-9 and y[:, :, 0].abs().max() < 1e-9
    assert y[:, :, 1:].abs().min() > 0
