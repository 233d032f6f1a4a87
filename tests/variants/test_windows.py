"""Windows, spans and strides: who sees whom, where the battery's small models see everything."""
import math

import pytest
import torch

from core.errors import Stop
from core.nn.attention import attention_weights, local_attention, math_attention
from core.rng import generator
from lab import checks
from lab.checks import iteration, small
from model import Step

T = checks.SMALL['block_size']


def normal(*size, seed=0):
    return torch.randn(size, generator=generator(seed, 'normal', size), dtype=torch.float64)


def weights(model, layer=0, T=T, seed=0):
    """Returns the weights (B, nh, T, T) of a layer's attention, by one-hot values, and the Step."""
    attn, step = model.transformer.h[layer].attn, Step(stats={}, it=iteration(0))
    step.pos = torch.arange(T).expand(2, T)
    x = normal(2, T, model.config.n_embd, seed=seed)
    q, k, v = attn.qkv(x)
    y = attn.attend(q, k, torch.eye(T, dtype=v.dtype).expand(2, attn.n_head, T, T), x, step.pos, step)
    return y, attention_weights(q, k, step.pos, step.pos)[1], step


def distance(T=T):
    return torch.arange(T)[:, None] - torch.arange(T)


@torch.no_grad()
def set_bias(attn, *bias):
    """Sets windows by hand, one per head and the same for every query: only the bias counts."""
    attn.window.weight.zero_()
    attn.window.bias.copy_(torch.tensor(bias))


# -- the fast path of what sees the last tokens only

@pytest.mark.parametrize('length', [1, 7, 8, 31, 32, 45])
@pytest.mark.parametrize('window', [1, 5, 8, 16, 31, 32, 100])
def test_local_attention_is_a_window(window, length):
    q, k, v, gy = (normal(2, 3, length, 4, seed=seed).requires_grad_() for seed in range(4))
    pos = torch.arange(length).expand(2, length)
    mod = lambda s, b, h, i, j: torch.where(i - j < window, s, -math.inf)
    results = math_attention(q, k, v, pos, pos, mod), local_attention(q, k, v, window, 0.0)
    for want, got in zip(*([y, *torch.autograd.grad((y * gy).sum(), (q, k, v))] for y in results)):
        assert torch.allclose(got, want, rtol=0, atol=1e-12)


def test_local_attention_writes_no_square():
    class Largest(torch.utils._python_dispatch.TorchDispatchMode):
        size = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            for t in out if isinstance(out, (tuple, list)) else [out]:
                self.size = max(self.size, t.numel() if isinstance(t, torch.Tensor) else 0)
            return out
    q = normal(1, 1, 4096, 8)
    with Largest() as seen:
        local_attention(q, q, q, 16, 0.0)
    assert seen.size <= 4096 * 32 # T * 2 window


FAST = [('sliding_window', dict(window=5, full_every=0)), ('sliding_window', dict(window=8, full_every=2)),
        ('strided_heads', dict(keys=3)), ('strided_heads', dict(stride=3, levels=2, keys=5)),
        ('strided_heads', dict(stride=4, levels=3, keys=1, every=2))]
fast = pytest.mark.parametrize('name, options', FAST, ids=[f'{name}-{i}' for i, (name, _) in enumerate(FAST)])


@pytest.mark.parametrize('length', [1, 7, 31, 32])
@pytest.mark.parametrize('impl', ['auto', 'sdpa'])
@fast
def test_windows_are_fast_and_exact(name, options, impl, length):
    for n_head, n_embd in (3, 24), (4, 16):
        checks.fast_path(small(name, 0.1, n_head=n_head, n_embd=n_embd, **options), impl, length, 1e-9)


@pytest.mark.parametrize('attn', ['math', 'auto', 'sdpa'])
@fast
def test_windows_are_causal_and_decode(name, options, attn):
    model = small(name, 0.3, attn=attn, **options)
    checks.suffix_swap(model)
    checks.row_swap(model)
    checks.cached_decoding(model)
    checks.greedy_generation(model)


# -- who sees whom

@pytest.mark.parametrize('attn', ['math', 'auto'])
def test_sliding_window_sees_the_last_tokens(attn):
    seen, _, _ = weights(small('sliding_window', 0.3, window=5, attn=attn))
    assert torch.equal(seen > 0, ((0 <= distance()) & (distance() < 5)).expand_as(seen))


def test_sliding_window_in_three_layers_of_four():
    windowed = lambda **options: [block.attn.windowed for block in small('sliding_window', **options).transformer.h]
    assert windowed(window=5, n_layer=6) == [True, True, True, False, True, False]
    assert windowed(window=5, n_layer=5, full_every=2) == [True, False, True, False, False]
    assert windowed(window=5, n_layer=3, full_every=0) == [True, True, True]
    assert windowed(window=T, full_every=0) == [False, False]


@pytest.mark.parametrize('attn', ['math', 'auto'])
def test_strided_heads_see_every_rth_token(attn):
    seen, _, _ = weights(small('strided_heads', 0.3, keys=3, n_head=4, attn=attn))
    for head, r in enumerate((1, 2, 4, 1)):
        want = (distance() % r == 0) & (0 <= distance()) & (distance() < 3 * r)
        assert torch.equal(seen[:, head] > 0, want.expand(2, T, T))
        assert (want.sum(-1)[3 * r:] == 3).all() # the same number of keys for each


def test_strides_beyond_the_context_are_refused():
    with pytest.raises(Stop, match='stride=8: with levels=3 the longest is 64'):
        small('strided_heads', stride=8)


def test_hard_window_is_the_formula_and_ends():
    model = small('hard_window', 0.3, bias=True, window_init=6.0)
    set_bias(model.transformer.h[0].attn, -3.0, 0.0, 1.0)
    seen, plain, step = weights(model)
    w = (2 + 6 * torch.tensor([-3.0, 0.0, 1.0], dtype=torch.float64).exp())[:, None, None]
    assert torch.allclose(step.stats['window'][0], w[..., 0].expand(2, 3, T))
    g = 1 - torch.exp(-torch.relu((w - distance() - 1) / w))
    want = plain * g
    assert torch.allclose(seen, want / want.sum(-1, keepdim=True), rtol=0, atol=1e-12)
    assert torch.equal(seen > 0, ((0 <= distance()) & (distance() + 1 < w)).expand_as(seen))


def test_hard_window_of_nothing_still_sees_itself():
    model = small('hard_window', 0.3, bias=True, min_window=1.0, dtype=torch.float32)
    set_bias(model.transformer.h[0].attn, -200.0, -200.0, 200.0)
    model.float()
    idx = checks.tokens(model)
    loss = model(idx, idx)[1]
    loss.backward()
    assert loss.isfinite() and all(p.grad.isfinite().all() for p in model.parameters())


def test_hard_window_counts_the_blocks_that_are_seen():
    model = small('hard_window', 0.3, bias=True, block_size=700)
    set_bias(model.transformer.h[0].attn, 0.0, 1.0, 2.0)
    _, _, step = weights(model, T=650)
    w = step.stats['window'][0] # (B, nh, T)
    live = (distance(650) >= 0) & (distance(650) + 1 < w[..., None])
    live = torch.nn.functional.pad(live, (0, 118, 0, 118)).unflatten(-1, (6, 128)).unflatten(-3, (6, 128))
    want = live.any(-1).any(-2).double().mean((0, 1)).sum() / 21
    assert torch.allclose(step.stats['visited'][0].double(), want) and want < 0.9


def test_block_loss_is_about_the_widest_window_of_a_block():
    model = small('hard_window', 0.3, bias=True, block_loss=1.0, n_layer=1, block_size=200)
    attn = model.transformer.h[0].attn
    step = Step(stats={}, it=iteration(0))
    step.pos = torch.arange(200).expand(2, 200)
    x = normal(2, 200, 24).requires_grad_()
    attn.score_mod(x, step.pos, step)
    w = step.stats['window'][0] / 200
    widest = torch.stack([w[..., :128].amax(-1), w[..., 128:].amax(-1)], dim=-1).mean()
    assert widest <= step.losses['block'] <= widest + math.log(128) / 16
    grad, = torch.autograd.grad(step.losses['block'], x)
    assert grad.norm(dim=-1).max() > 10 * grad.norm(dim=-1).median() # most of it where the window is widest


def test_static_hard_windows_do_not_depend_on_the_query():
    model = small('hard_window', 0.3, static=True)
    step = weights(model)[2]
    assert step.stats['window'][0].std(-1).max() < 1e-12


@pytest.mark.parametrize('span', ['static', 'dynamic'])
def test_adaptive_span_is_the_formula(span):
    model = small('adaptive_span', 0.3, span=span, ramp=4.0, span_init=0.25)
    seen, plain, step = weights(model)
    z = step.stats['span'][0][..., None] # (B, nh, T, 1)
    want = plain * ((4 + z - distance()) / 4).clamp(0, 1)
    assert torch.allclose(seen, want / want.sum(-1, keepdim=True), rtol=0, atol=1e-12)
    assert (seen == 0).any() and 0 <= z.min() and z.max() <= 1.5 * T
    assert (z.std(-2).max() < 1e-12) == (span == 'static')


def test_a_span_of_nothing_can_grow():
    model = small('adaptive_span', span_loss=0.0, ramp=1.0)
    for p in -1e-3, 0.0, 1e-3: # reflected at 0, where the paper's starts
        attn = model.transformer.h[0].attn
        with torch.no_grad():
            attn.span.fill_(p)
        _, _, step = weights(model)
        assert torch.allclose(step.stats['span'][0], torch.tensor(abs(p) * T, dtype=torch.float64), rtol=1e-5)
    checks.trains('adaptive_span')


def test_a_dynamic_span_starts_where_it_should():
    for share, starts in (0.5, 0.5), (0.0, 0.01), (1.0, 0.99):
        _, _, step = weights(small('adaptive_span', span='dynamic', span_init=share))
        assert torch.allclose(step.stats['span'][0], torch.tensor(starts * T, dtype=torch.float64), rtol=1e-5)


def test_the_span_costs_what_the_paper_says():
    model = small('adaptive_span', span_init=0.5)
    step = Step()
    model(checks.tokens(model), step=step)
    assert math.isclose(step.losses['span'].item(), 2e-6 * T * 0.5 * 2, rel_tol=1e-6) # two layers


# -- every n-th layer

@pytest.mark.parametrize('name, own', [('soft_window', 'window'), ('static_slope', 'window'), ('hard_window', 'window'),
                                       ('adaptive_span', 'span'), ('surprise', 'prior_fc')])
def test_every_second_layer(name, own):
    model = small(name, 0.3, every=2, n_layer=5)
    layers = {int(n.split('.')[2]) for n, _ in model.named_parameters() if own in n.split('.')}
    assert layers == {1, 3}
    checks.trains(name, every=2, n_layer=3)
    checks.cached_decoding(model)


# -- surprise: rules that the battery reaches only by chance

def test_a_random_gate_is_the_same_in_training_evaluation_and_decoding():
    model, gates = small('surprise', 0.3, gate='random', open_rate=0.3, block_size=1000), []
    for training in True, False:
        step = Step(stats={})
        model.train(training)(checks.tokens(model), step=step)
        gates.append(torch.stack(step.stats['gate']))
    assert torch.equal(*gates)
    assert ((gates[0].mean((1, 2)) - 0.3).abs() < 0.06).all() # each layer
    # layers differ, rows do not
    assert not torch.equal(gates[0][0], gates[0][1]) and torch.equal(gates[0][:, 0], gates[0][:, 1])
    for rate in 0.0, 1.0:
        step = Step(stats={})
        small('surprise', gate='random', open_rate=rate)(checks.tokens(small()), step=step)
        assert (torch.stack(step.stats['gate']) == rate).all()


@pytest.mark.parametrize('gate', ['token', 'row', 'soft', 'random'])
def test_the_first_gate_can_be_held_open(gate):
    model = small('surprise', 0.3, gate=gate, first_open=True, k=1e9, open_rate=0.0)
    for training in True, False:
        step = Step(stats={})
        model.train(training)(checks.tokens(model), step=step)
        assert all((g[:, 0] == 1).all() and not (g[:, 1:] == 1).all() for g in step.stats['gate'])
    checks.cached_decoding(model)


def test_a_straight_gate_is_hard_with_the_soft_gates_gradient():
    d_st, d_ch = torch.rand(2, 3, T, dtype=torch.float64, generator=generator(0))
    d_st.requires_grad_()
    gates, slopes = {}, {}
    for name in 'token', 'straight', 'soft':
        block = small('surprise', gate=name, sharp_min=2.0).transformer.h[0]
        gate = gates[name] = block.open(d_st, d_ch, Step(it=iteration(0)))
        if gate.requires_grad:
            slopes[name], = torch.autograd.grad((gate * torch.arange(T)).sum(), d_st)
    assert torch.equal(gates['token'], gates['straight']) and set(slopes) == {'straight', 'soft'}
    torch.testing.assert_close(slopes['straight'], slopes['soft'])


def test_one_half_is_gated_and_the_other_is_whole():
    x = torch.randn(2, T, 24, dtype=torch.float64, generator=generator(0))
    for half in 'attn', 'mlp':
        block = small('surprise', 0.3, half=half, closed=0.25, k=1e9).transformer.h[0]
        # the prior's promise is worse than no change: all gates are closed
        block.prior_proj.weight.data.mul_(1e6)
        step = Step(it=iteration(0))
        step.pos = torch.arange(T).expand(2, T)
        m = block.attn_residual(x, step)
        want = m + 0.25 * (block.mlp_residual(m, step) - m)
        if half == 'attn':
            want = block.mlp_residual(x + 0.25 * (m - x), step)
        # nothing is promised for the first position, whose gate may open
        torch.testing.assert_close(block(x, step)[:, 1:], want[:, 1:])


def test_k_rises_during_its_warmup():
    model = small('surprise', 0.3, k=1e9, k_warmup=1000)
    gates = []
    for it in 0, 1000:
        step = Step(it=iteration(it), stats={})
        model(checks.tokens(model), step=step)
        gates.append(torch.stack(step.stats['gate']))
    assert (gates[0] == 1).all() and (gates[1] == 0).any()


@pytest.mark.parametrize('channels', [False, True])
def test_a_learned_gate_starts_as_the_baseline_and_follows_surprise(channels):
    model, base = small('surprise', gate='learned', per_channel=channels), small()
    assert torch.equal(*(m.eval()(checks.tokens(base))[0] for m in (model, base)))
    # opened by change that is large beside the prior's error, and closed by change that is small beside it
    block = model.transformer.h[0]
    block.weigh.data.view(3, -1)[0] = 1.0
    d_st, d_ch = torch.tensor([[[4.0, 1.0, 1.0]], [[1.0, 1.0, 3.0]]], dtype=torch.float64)
    gate = block.weighed(d_st, d_ch, Step())
    torch.testing.assert_close(gate[0, :, 0], gate.new_tensor([1.6, 1.0, 0.5]))
    assert gate.size(-1) == (24 if channels else 1)
