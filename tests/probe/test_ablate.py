"""probe.py ablate: what the loss owes to heads, layers and what variants add."""
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import call, shakespeare, shipped_variants

import probe
from core.data.tokenizer import Tokenizer, read_meta
from core.device.machine import machine
from core.rng import generator
from lab.probe import ablate, record, replace
from lab.probe.ablate import ablated, gates_of, head_sites, layers_of, mean_of, mean_updates, ranked, take_out
from lab.probe.runs import Run
from model import build

SIZES = dict(n_layer=2, n_head=2, n_embd=16, block_size=12, dropout=0.0)


@pytest.fixture(scope='module')
def text(tmp_path_factory):
    return shakespeare(tmp_path_factory.mktemp('text'))


def made(text, variant='base', seed=1, dtype=torch.float64, **sizes):
    """A Run whose weights are all far from their initial ones."""
    tokenizer = Tokenizer.from_meta(read_meta(text))
    model = build(variant, **SIZES | dict(vocab_size=tokenizer.vocab_size) | sizes).to(dtype).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            p += 0.3 * torch.randn(p.shape, generator=generator(seed, name))
    return Run(variant, seed, Path('out'), model, tokenizer, machine('cpu', 'float32', compile=False), 5,
               dict(dataset=str(text), batch_size=4, seed=seed, variant=variant))


def zero_columns(run, layer, channels):
    with torch.no_grad():
        run.model.transformer.h[layer].attn.c_proj.weight[:, channels] = 0


def tokens(run, seed=3):
    return torch.randint(run.tokenizer.vocab_size, (3, 12), generator=torch.Generator().manual_seed(seed))


def test_ablating_nothing_changes_nothing_and_hooks_go(text):
    run, idx = made(text, dtype=torch.float32), tokens(made(text))
    plain = run.logits(idx)
    with ablated(run.model, []):
        assert torch.equal(run.logits(idx), plain)
    sites = head_sites(run)[0] + layers_of(run)[0]
    means = mean_updates(run, sites, [idx])
    with pytest.raises(ZeroDivisionError), ablated(run.model, sites, means):
        assert not torch.equal(run.logits(idx), plain)
        raise ZeroDivisionError
    assert torch.equal(run.logits(idx), plain)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in run.model.modules())
    assert not any('attend' in vars(m) for m in run.model.modules())


def test_a_compiled_model_is_looked_into_by_the_eager_one(text):
    def never(*args):
        raise AssertionError('compiled')
    run, compiled = made(text), made(text)
    compiled.model = torch.compile(compiled.model, backend=never)
    sites, others = head_sites(run)[0], head_sites(compiled)[0]
    assert [site[:3] for site in sites] == [site[:3] for site in others]
    with ablated(run.model, sites), ablated(compiled.model, others):
        assert torch.equal(run.logits(tokens(run)), compiled.logits(tokens(run)))


def test_a_head_at_zero_is_a_head_whose_weights_are_zero(text):
    run, other = made(text), made(text)
    sites, without = head_sites(run)
    assert [site.title for site in sites] == [f'layer {i} head {j}' for i in (0, 1) for j in (0, 1)] and not without
    zero_columns(other, 1, slice(0, 8))
    with ablated(run.model, [sites[2]]):
        torch.testing.assert_close(run.logits(tokens(run)), other.logits(tokens(run)), rtol=0, atol=1e-9)


def test_a_part_at_its_mean_puts_out_the_mean_of_other_tokens(text):
    run, idx, others = made(text), tokens(made(text)), tokens(made(text), 4)
    sites, _ = layers_of(run)
    attention, mlp, block = sites[3:]
    means = mean_updates(run, sites + head_sites(run)[0], [others[:1], others[1:]])
    with record(run.model, 'transformer.h.*', 'transformer.h.1.attn.c_proj', inputs=True) as taken:
        with record(run.model, 'transformer.h.1', 'transformer.h.1.attn') as given:
            run.logits(others)
    torch.testing.assert_close(means[attention], given['transformer.h.1.attn'].mean((0, 1)).float())
    update = given['transformer.h.1'] - taken['transformer.h.1']
    torch.testing.assert_close(means[block], update.mean((0, 1)).float())
    torch.testing.assert_close(means[head_sites(run)[0][3]],
                               taken['transformer.h.1.attn.c_proj'].mean((0, 1))[8:].float())
    mean = means[mlp].double()
    with replace(run.model, {'transformer.h.1.mlp': lambda y: mean.expand_as(y)}):
        want = run.logits(idx)
    with ablated(run.model, [mlp], means):
        torch.testing.assert_close(run.logits(idx), want)
    # a block at zero hands on its input
    with record(run.model, 'transformer.h.0') as first, ablated(run.model, [block]):
        x = run.logits(idx)
    torch.testing.assert_close(run.model.lm_head(run.model.transformer.ln_f(first['transformer.h.0'])), x)


def test_the_only_head_that_does_anything_is_found(text):
    run = made(text)
    for layer, channels in ((0, slice(0, 16)), (1, slice(0, 8))):
        zero_columns(run, layer, channels)
    sites, _ = head_sites(run)
    found = ablate.ablate(run, sites, windows=12)
    for way in ablate.WAYS:
        assert found.changes[way].shape == (4, len(found.loss))
        assert not found.changes[way][:3].any() and found.changes[way][3].all()
        np.testing.assert_allclose(found.together[way], found.changes[way][3], rtol=0, atol=1e-6)
    by_rank = ranked(found)
    assert [site.title for site in by_rank.sites[2:]] == ['layer 1 head of rank 1', 'layer 1 head of rank 2']
    cost = by_rank.changes['mean'].mean(1)
    assert cost[2] >= cost[3] and sorted(cost[2:]) == sorted(found.changes['mean'].mean(1)[2:])


def test_windows_that_are_judged_and_those_for_means_are_others(text):
    run = made(text)
    x, y, others = ablate.two_sets_of_windows(run, 8)
    assert len(x) == len(others) == 8 and torch.equal(x[:, 1:], y[:, :-1])
    assert not {tuple(row) for row in x.tolist()} & {tuple(row) for row in others.tolist()}
    np.testing.assert_allclose(ablate.window_losses(run, x, y).mean(), np.nanmean(run.losses(16)[::2]), atol=1e-6)


@pytest.mark.parametrize('variant', [pytest.param(name, marks=[] if name == 'canon' else pytest.mark.slow)
                                     for name in shipped_variants()])
def test_heads_and_layers_of_every_variant_can_be_taken_away(variant, text):
    run = made(text, variant)
    sites, without = head_sites(run)
    assert (len(sites), without) == (4, [])
    layers, without = layers_of(run)
    # a list of streams stands in for one
    assert len(layers) == (4 if variant == 'attnres' else 6) and len(without) == 6 - len(layers)
    found = ablate.ablate(run, sites + layers + gates_of(run), windows=2)
    assert np.isfinite(found.changes['zero']).all()


def test_a_layer_without_heads_side_by_side_is_named(text, tmp_path):
    path = tmp_path / 'turned.py'
    path.write_text('import model\n\n\nclass CausalSelfAttention(model.CausalSelfAttention):\n'
                    '    def forward(self, x, step):\n        q, k, v = self.qkv(x)\n'
                    '        y = self.attend(q, k, v, x, step.pos, step)\n'
                    '        return self.c_proj(y.permute(0, 2, 3, 1).flatten(2))\n')
    sites, without = head_sites(made(text, str(path)))
    assert not sites and len(without) == 2
    assert without[0].endswith('layer 0 has no heads that can be taken away, because what c_proj takes in is not the '
                               'heads\' outputs side by side.')


def test_what_a_variant_adds_is_taken_out_as_a_whole_and_by_module(text):
    run = made(text, 'canon')
    titles = [f'layer {i} {part}.canon' for i in (0, 1) for part in ('attn', 'mlp')]
    assert [site.title for site in gates_of(run)] == titles
    out, refused = take_out(run, 12)
    how, = out
    assert how == 'the same weights in a model without canon' and not refused
    # all modules idle are the whole
    found = ablate.ablate(run, gates_of(run), 12)
    np.testing.assert_allclose(found.together['zero'], out[how], atol=1e-6)
    out, refused = take_out(made(text, 'rope+canon'), 12)
    assert list(out) == ['the same weights in a model without canon'] and len(refused) == 2


def test_means_have_intervals_over_seeds_or_over_text():
    one = np.arange(40.0)
    assert mean_of([one]).mean == 19.5 and 0 < mean_of([one]).half < 20 and np.isnan(mean_of([one[:5]]).half)
    three = mean_of([one, one + 1, one + 2])
    assert three.mean == 20.5 and three.half == pytest.approx(2.4841, abs=1e-4) and three.n == 3


def study(text):
    runs = [made(text, variant, seed) for variant in ('base', 'canon') for seed in (1, 2)]
    return lambda o: runs


@pytest.mark.parametrize('what', ['heads', pytest.param('layers', marks=pytest.mark.slow), 'gates'])
def test_the_command_writes_a_page_of_a_study(what, text, tmp_path, monkeypatch):
    monkeypatch.setattr(ablate, 'open_from', study(text))
    ended = call(probe.main, 'ablate', what=what, windows=12, to=tmp_path)
    assert ended.code == 0, ended
    assert 'over 2 seeds' in ended.out and (tmp_path / f'ablate_{what}.html').exists()
    if what == 'heads':
        assert 'canon: of the heads layer' in ended.out and 'do not add up' in ended.out
        assert (tmp_path / 'ablate_heads_sorted.png').exists()
    if what == 'gates':
        assert 'canon: the same weights in a model without canon: the loss changes by ' in ended.out
        assert 'base' not in ended.out


def test_bad_input_is_one_line(text, tmp_path, monkeypatch):
    assert call(probe.main, 'ablate', what='tails').line(2).startswith('--what=tails')
    assert 'holds no checkpoint' in call(probe.main, 'ablate', out_dir=tmp_path).line(4)
    monkeypatch.setattr(ablate, 'open_from', lambda o: [made(text)])
    err = call(probe.main, 'ablate', what='gates').err
    assert err.splitlines()[-1] == 'base, seed 1: the baseline has nothing to take out'
