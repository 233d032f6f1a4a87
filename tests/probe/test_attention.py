"""probe.py attention: what is said of heads is what they do."""
import math

import numpy as np
import pytest
import torch
from helpers import TINY, call
from made_runs import made_run

import probe
import train
from lab.probe import attention
from lab.probe.attention import MEASURES, by_token, differs_most, heads_and_positions, measure_heads, watch
from lab.probe.seeds import over_seeds

T = 12


def rows(f):
    """Weights (1, 1, T, T) whose row i is f(i), normed."""
    w = torch.zeros(T, T, dtype=torch.float64)
    for i in range(T):
        for j, x in f(i).items():
            w[i, j] = x
    return (w / w.sum(-1, keepdim=True))[None, None]


def measured(weights, is_text=None):
    values = measure_heads(weights, torch.ones(1, T, dtype=torch.bool) if is_text is None else is_text)
    return dict(zip(MEASURES, values[0, 0].tolist(), strict=True))


def test_heads_that_are_of_one_kind_measure_as_such():
    previous = measured(rows(lambda i: {max(i - 1, 0): 1}))
    assert previous == dict(distance=1, entropy=0, spread=0, first=0, previous=1, own=0)
    sink = measured(rows(lambda i: {0: 1}))
    # queries 2 to 11
    assert sink == dict(distance=6.5, entropy=0, spread=0, first=1, previous=0, own=0)
    broad = measured(rows(lambda i: dict.fromkeys(range(i + 1), 1)))
    assert broad['spread'] == pytest.approx(1) and broad['distance'] == pytest.approx(3.25)
    assert broad['entropy'] == pytest.approx(np.mean([math.log(i + 1) for i in range(2, T)]))
    even = pytest.approx(np.mean([1 / (i + 1) for i in range(2, T)]))
    assert broad['first'] == broad['previous'] == broad['own'] == even


def test_queries_past_the_text_and_rows_without_one_do_not_count():
    w, ends = rows(lambda i: {max(i - 1, 0): 1} if i < 6 else {0: 1}), torch.arange(T)[None] < 6
    assert measured(w, ends)['previous'] == 1
    w[0, 0, 6:] = torch.nan
    assert measured(w)['previous'] == 1
    # a second map may be subtracted, and gates make weights smaller
    assert measured(-0.3 * rows(lambda i: {i: 1}))['own'] == 1


def test_kinds_are_named_with_the_clearest_first():
    first = torch.tensor([[1, 0, 0.1, 0.0, 0.6, 0.2], [1, 0, 0.95, 0.0, 0.8, 0.2]])
    second = torch.tensor([[1, 0, 0.1, 0.3, 0.1, 0.2], [1, 0, 0.2, 0.4, 0.1, 0.2]])
    heads = {'transformer.h.0.attn': first[None], 'transformer.h.1.attn:2': second[None]}
    found = attention.kinds(heads)
    assert [name for _, name in found['previous'][0]] == ['L0 H1', 'L0 H0']
    assert [name for _, name in found['spread'][0]] == ['L0 H1']
    assert found['first'][0] == [] and found['first'][1] == (pytest.approx(0.4), 'L1 map 2 H1')


def test_patterns_are_on_the_tokens_that_were_routed(data):
    pos_q = torch.tensor([[1, 4, 2 ** 40]])
    w = torch.tensor([[[[1.0, 0, 0], [0.25, 0.75, 0], [0.3, 0.3, 0.4]]]])
    full = by_token(w, pos_q, pos_q, 6)[0, 0]
    assert full[1, 1] == 1 and full[4].tolist() == [0, 0.25, 0, 0, 0.75, 0]
    assert full[[0, 2, 3, 5]].isnan().all()
    run = made_run(data, 'mod')
    x, _ = next(run.windows(4))
    patterns, logged = watch(run, x)
    routed = next(s for s in logged if s.name == 'routed')
    assert routed.place == 'layer 1' and 0 < routed.value.mean() < 1
    there = ~patterns['transformer.h.1.attn'].isnan().any(-1)[:, 0]
    assert torch.equal(there, routed.value[:, 0] == 1)
    assert not patterns['transformer.h.0.attn'].isnan().any()


def test_what_is_logged_is_of_its_module_by_head_and_position(data):
    both = ['layer 0', 'layer 1']
    connections = [f'{layer} hc_{part}' for layer in both for part in ('attn', 'mlp')]
    for variant, name, places, shape in [
            ('soft_window', 'window', both, (3, 2, T)), ('surprise', 'gate', both, (3, 1, T)),
            ('gated_attention', 'gate', both, (3, 2, T)), ('static_slope', 'window', both, (1, 2, 1)),
            ('bigram', 'bigram', None, (1, 1, 1)), ('smear', 'smear', ['model'], (3, 1, T)),
            ('value_residual', 'first_value', ['layer 1'], (1, 1, 1)),
            ('loop', 'exit', ['model', 'model (2)', 'model (3)', 'model (4)'], (3, 1, T)),
            ('mhc', 'stream_read', connections, (3, 1, T))]:
        run = made_run(data, variant)
        x, _ = next(run.windows(3))
        found = [s for s in watch(run, x[:3])[1] if s.name == name]
        assert places in (None, [s.place for s in found]), variant
        assert {tuple(s.value.shape) for s in found} == {shape}, variant


def test_dimensions_of_a_logged_tensor():
    value = torch.randn(3, 5, 7)
    assert torch.equal(heads_and_positions(value, 3, 7, 5), value)
    assert torch.equal(heads_and_positions(value.mT, 3, 7, 5), value)
    torch.testing.assert_close(heads_and_positions(value, 3, 7, 0), value.mean(1, keepdim=True))
    assert heads_and_positions(value[0, :, 0], 3, 7, 5).tolist() == value[None, 0, :, :1].tolist()
    assert heads_and_positions(torch.tensor(2.0), 3, 7, 5).tolist() == [[[2.0]]]


def test_a_head_that_was_made_to_look_back_one_token_is_named(data):
    run = made_run(data)
    attn = run.model.transformer.h[1].attn
    before = attn.score_mod
    # a planted previous-token head: the second of layer 1
    mod = lambda s, b, h, i, j: torch.where((h == 1) & (i - j == 1), s + 50, s)
    attn.score_mod = lambda x, pos_k, step: mod
    heads, _ = attention.measure(run, 8)
    attn.score_mod = before
    assert heads['transformer.h.1.attn'].shape == (8, 2, 6)
    said, *_ = attention.kinds_of_one(heads)
    assert said.startswith('Previous-token heads, ') and said.endswith(': 1 of 4: L1 H1 (1.00).')


def test_the_difference_that_is_named_is_sure_for_all_measures_together():
    base = np.array([10, 2.0, 0.8, 0.1, 0.1, 0.1])
    noise = 0.01 * np.array([[1], [-1], [1], [-1]]) * np.ones(6)
    d = noise + [-4, 0, 0, 0, 0, 0]
    said = differs_most('arm', 'base', base, d, {0: d - 1, 1: d})
    half = over_seeds(d[:, 0], 5).half
    assert half > over_seeds(d[:, 0]).half
    assert said.startswith('arm differs from base most in how far back heads look: -4.0')
    assert f'± {half:.3f} tokens, 40 % of base\'s 10, most in layer 0: -5.0' in said
    assert said.endswith('(4 seeds; 95 % for all 5 measures together).')
    assert 'no measure of its heads differs for sure' in differs_most('arm', 'base', base, noise, {0: noise})
    assert 'fewer than two seeds in common' in differs_most('arm', 'base', base, d[:1], {})


def test_false_alarms_are_as_rare_as_they_are_said_to_be():
    rng, base = np.random.default_rng(1), np.ones(6)
    said = [differs_most('arm', 'base', base, rng.standard_normal((3, 6)), {}) for _ in range(1000)]
    # at most 5 % of arms that do nothing, and 3 standard errors
    assert np.mean(['differs from' in s for s in said]) < 0.05 + 3 * math.sqrt(0.05 * 0.95 / 1000)


def test_a_study_shows_arms_beside_the_baseline(data, tmp_path, monkeypatch):
    runs = [made_run(data, variant, seed, n_layer=1)
            for variant in ('base', 'soft_window', 'fractal_heads') for seed in (1, 2)]
    monkeypatch.setattr(attention, 'open_from', lambda o: runs)
    ended = call(probe.main, 'attention', out_dir=tmp_path, windows=6)
    assert ended.code == 0, ended.err
    assert 'soft_window, all heads' in ended.out and 'layer 0, base' in ended.out
    assert '2 seeds; 95 % for all 5 measures together' in ended.out
    page = (tmp_path / 'probe/attention.html').read_text()
    assert 'L0 map 2, no. 2, fractal_heads' in page and 'soft_window: window layer 0' in page
    assert (tmp_path / 'probe/attention_soft_window_seed_1_layer_0.png').exists()
    # tokens' names stand beside maps of a short text
    page, _ = attention.main([f'--out_dir={tmp_path}', '--windows=4', '--text=a bad\n'])
    maps = [item for item in page.sections[1].items if item.kind == 'maps']
    assert len(maps) == 3 and list(maps[0].x_names) == ['a', '␣', 'b', 'a', 'd', '↵']
    assert maps[0].panels[0].values.shape == (6, 6)
    assert [panel.line is not None for panel in maps[1].panels] == [True, True]
    assert '>␣</text>' in page.html() and '<image href' in page.html()


def test_the_marks_are_where_the_window_ends():
    panel = attention.Panel('', np.zeros((4, 4)), np.array([-1.0, 0.0, 2.5, 9.0]))
    assert panel.marks() == [(0.5, 1), (3.0, 2)]


@pytest.fixture(scope='module')
def trained(tmp_path_factory, data):
    out = tmp_path_factory.mktemp('run') / 'out'
    options = TINY | dict(max_iters=2, dataset=data, out_dir=out, variant='gated_attention')
    assert call(train.main, **options).code == 0
    return out


def test_one_run(trained, tmp_path):
    ended = call(probe.main, 'attention', out_dir=trained, windows=3, to=tmp_path)
    assert ended.code == 0, ended.err
    assert 'Broad heads, an entropy of at least 90 % of the most possible: ' in ended.out
    assert 'gate layer 1' in ended.out
    pictures = 'attention_layer_0', 'attention_layer_1', 'logged_gate', 'logged_gate_heads'
    assert {p.name for p in tmp_path.iterdir()} == {'attention.html', *(f'{name}.png' for name in pictures)}


def test_bad_input_is_one_line(trained, tmp_path):
    def refused(code, **options):
        return call(probe.main, 'attention', **dict(out_dir=trained) | options).line(code)
    assert 'holds no checkpoint; train first: python train.py' in refused(4, out_dir=tmp_path / 'none')
    assert 'not among the 52 characters of this set' in refused(2, text='é')
    assert 'text of 17 tokens: allowed: 1 to 16' in refused(2, text='a' * 17)
    assert 'no such option; did you mean text?' in refused(2, txt='a')


def test_watching_leaves_no_hook(data):
    run = made_run(data, 'hard_window')
    x, _ = next(run.windows(1))
    plain = run.logits(x)
    watch(run, x)
    assert torch.equal(run.logits(x), plain)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in run.model.modules())
