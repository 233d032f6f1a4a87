"""Routed blocks: skipped tokens are not computed, options decide which those are, nothing is seen early."""
from functools import partial

import pytest
import torch

from lab.checks import iteration, tokens
from model import Block, Step, build
from variants import _routing as routing
from variants._moments import attend_and_measure, shuffle_stats

SIZE = dict(block_size=160, vocab_size=65, n_layer=4, n_head=2, n_embd=32)
PAIR = SIZE | dict(block_size=32, n_layer=2)
ROUTED = 'mod', 'sdt', 'stt'
ROUTERS = 'threshold', 'topk', 'random'


def trained(variant, iterations, **options):
    model = build(variant, 1, **SIZE | options).train()
    optimizer = model.configure_optimizers(0.1, 3e-3, (0.9, 0.99), 'cpu')
    for it in range(iterations):
        idx = tokens(model, 4, 64, seed=it)
        loss = model(idx, (3 * idx + 1) % 65, Step(it=iteration(it)))[1]
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    return model.eval()


def executions(model):
    """Returns a list that grows by (layer, tokens) with every pass through a block's attention."""
    seen = []
    for layer, block in enumerate(model.transformer.h):
        block.attn.register_forward_hook(lambda m, args, y, layer=layer: seen.append((layer, y.size(1))))
    return seen


# one variant with each router is quick enough
QUICK = {(variant, router) for variant, router in zip(ROUTED, ROUTERS)}


@pytest.mark.parametrize('variant, router', [
    pytest.param(variant, router, marks=[] if (variant, router) in QUICK else pytest.mark.slow)
    for variant in ROUTED for router in ROUTERS])
def test_decoding_skips_blocks_and_says_the_same(variant, router):
    # at first all scores drift, away from the threshold
    iterations = 200 if (variant, router) == ('sdt', 'threshold') else 30
    model = trained(variant, iterations, router=router)
    idx = tokens(model, 1, 8)
    seen, it = executions(model), iteration(iterations) # schedules stand where training left them
    got = model.generate(idx, 128, temperature=0, it=it)
    count = [sum(x == layer for x, _ in seen) for layer in range(4)]
    assert count[0] == count[2] == 128 # these run for every token, as all would in the baseline
    assert all(8 < n < 120 for n in (count[1], count[3])), count
    with torch.no_grad():
        for _ in range(128):
            idx = torch.cat((idx, model(idx, step=Step(it=it))[0][:, -1].argmax(-1, keepdim=True)), dim=1)
    assert torch.equal(got, idx)


@pytest.mark.parametrize('variant', ['mod', 'sdt'])
def test_training_computes_the_capacity_only(variant):
    model = trained(variant, 1, capacity=0.25).train()
    seen, idx = executions(model), tokens(model, 2, 64)
    model(idx, idx)
    assert seen == [(0, 64), (1, 20), (2, 64), (3, 20)] # 1.25 * 0.25 * 64


def test_threshold_follows_the_scores():
    threshold, generator = routing.Threshold(0.25).train(), torch.Generator().manual_seed(0)
    for it in range(300):
        threshold(torch.randn(8, 64, generator=generator) + 5, iteration(it))
    least = threshold.least.clone()
    assert (least - 5 - 0.6745).abs() < 0.02 # the upper quartile
    mask = threshold.eval()(torch.randn(100, 100, generator=generator) + 5, iteration(0))
    assert (mask.float().mean() - 0.25).abs() < 0.02 and threshold.least == least


def test_a_pass_is_compared_with_those_before_it():
    threshold = routing.Threshold(0.5).train()
    score = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    assert threshold(score, iteration(0)).all() # from 0
    assert threshold(score + 10, iteration(1)).all() and not threshold(score, iteration(2)).any()


def test_random_choice_is_by_position_and_layer():
    pos = torch.arange(4096).expand(2, -1)
    masks = [routing.random_mask(pos, layer, 0.3) for layer in (1, 3)]
    assert all((mask.float().mean() - 0.3).abs() < 0.03 for mask in masks)
    both = (masks[0] & masks[1]).float().mean()
    assert (both - 0.09).abs() < 0.03 # one layer's choice says nothing about another's
    late = routing.random_mask(pos[:, 100:], 1, 0.3)
    assert torch.equal(late, masks[0][:, 100:])


@pytest.mark.parametrize('device', [
    pytest.param('cpu', marks=pytest.mark.slow), pytest.param('cuda', marks=pytest.mark.gpu)])
def test_compiled_shams_choose_as_eager_ones_do(device):
    """Inductor computes with positions in 32 bits on a GPU; their hashes need 64."""
    stats = torch.arange(2 * 300.0, device=device).view(2, 300, 1)

    def f():
        pos = torch.arange(300, device=device).expand(2, -1)
        return routing.random_mask(pos, 5, 0.3), shuffle_stats(stats, 0, Step())

    for eager, compiled in zip(f(), torch.compile(f, fullgraph=True)(), strict=True):
        assert torch.equal(eager, compiled)


def test_slots():
    mask = torch.tensor([[0, 1, 1, 0, 1], [0, 0, 0, 1, 0]]).bool()
    index, live = routing.assign_slots(mask, 2)
    assert index.tolist() == [[1, 2], [3, 0]] and live.tolist() == [[True, True], [True, False]]


@pytest.mark.parametrize('variant', ['stt', 'sdt'])
def test_the_posterior_variance_counts_in_scores_and_in_the_loss(variant):
    """mean_C [(c - 1) exp(-log_var)] / 2 more than with c=1, in both."""
    c, layer = 0.3, 1 if variant == 'stt' else 0
    found = {}
    for variance in 1.0, c:
        options = dict(change='gaussian', router='topk', keys='all', posterior_variance=variance)
        model, step = build(variant, 1, **PAIR, **options).double().train(), Step(stats={}, it=iteration(0))
        log_var = []
        model.transformer.h[layer].prior.register_forward_hook(lambda m, args, out, to=log_var: to.append(out[1]))
        model(tokens(model), tokens(model), step)
        found[variance] = step.stats['change'][0].mean(), step.losses['prior'] / model.config.prior_loss * 2
    more = 0.5 * (c - 1) * torch.exp(-log_var[0]).mean()
    for one, other in zip(found[1.0], found[c], strict=True):
        torch.testing.assert_close(other - one, more)


def test_the_sources_other_constants_are_options():
    model = build('stt', **PAIR, router='topk', o_ce_init=1.5, m_cu_init=2.0, causal_threshold=0.9).double()
    surprise = model.transformer.h[1].surprise
    assert (surprise.o_ce.item(), surprise.m_cu.item()) == (1.5, 2.0)
    step = Step(stats={})
    model.eval()(tokens(model), step=step)
    # the router is new, and says about 0.5 of every token
    assert not step.stats['routed'][0].any()


@pytest.mark.parametrize('variant', ROUTED)
def test_a_whole_update_has_the_gates_gradient(variant):
    """Its value is the block's own update; the gate learns as it does when it multiplies."""
    found = {}
    for whole in True, False:
        options = dict(keys='all', whole=whole, router='random' if variant == 'mod' else 'threshold')
        model = build(variant, 1, **PAIR, **options).double().train()
        block = model.transformer.h[1]
        x = torch.randn(2, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        gate = torch.full((2, 32), 0.3, dtype=torch.float64, requires_grad=True)
        step = Step(it=iteration(0))
        step.pos = torch.arange(32).expand(2, 32)
        mask = step.pos % 2 == 0
        y = routing.run_chosen(block, partial(Block.forward, block), x, mask, gate, step)
        found[whole] = y - x, torch.autograd.grad(y.sum(), gate)[0]
    torch.testing.assert_close(0.3 * found[True][0], found[False][0])
    torch.testing.assert_close(found[True][1], found[False][1])


def test_stt_can_evaluate_as_it_trains():
    model = trained('stt', 60, evaluation='computed', keys='all')
    idx, it, logits = tokens(model, 2, 64), iteration(60), []
    for training in False, True:
        model.train(training)
        logits.append(model(idx, step=Step(it=it, all_positions=True))[0])
    assert torch.equal(*logits)


@pytest.mark.parametrize('variant', ['head_scaling', 'embedding_gate', 'relative_location'])
def test_statistics_can_be_read_without_a_gradient(variant):
    for detach in False, True:
        attn = build(variant, 1, **PAIR, detach=detach).transformer.h[0].attn
        x, pos = torch.randn(2, 32, 32), torch.arange(32).expand(2, 32)
        y, *stats = attend_and_measure(attn, *attn.qkv(x), x, pos, Step(pos))
        assert y.requires_grad and all(s.requires_grad != detach for s in stats)


@pytest.mark.parametrize('threshold, chosen', [(0.4, True), (0.6, False)])
def test_mod_has_the_sources_threshold_in_evaluation(threshold, chosen):
    model, step = build('mod', **PAIR, router='topk', causal_threshold=threshold), Step(stats={})
    model.eval()(tokens(model), step=step)
    assert (step.stats['routed'][0] == chosen).all()
