"""probe.py activations: what is recorded is what the model computes, by a forward written by hand."""
import copy
import math

import numpy as np
import pytest
import torch
from helpers import TINY, call, shipped_variants
from made_runs import made_run
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import probe
import train
from core.training.evaluation import evaluate
from lab.probe import activations, attention_patterns, record
from lab.probe.activations import difference_sentence, measure, watch
from model import Step

SAME = dict(rtol=0, atol=1e-9)


def by_hand(w, idx, n_layer=2, n_head=2):
    """Returns the baseline's activations and patterns from its weights w, without any module of it."""
    acts, patterns, h = {}, {}, 'transformer.h.'
    B, T = idx.shape

    def norm(x, name):
        x = x - x.mean(-1, keepdim=True)
        acts[name] = x / ((x ** 2).mean(-1, keepdim=True) + 1e-5).sqrt() * w[f'{name}.weight']
        return acts[name]

    def linear(x, name):
        acts[name] = torch.einsum('btc,dc->btd', x, w[f'{name}.weight'])
        return acts[name]

    x = acts['transformer.drop'] = w['transformer.wte.weight'][idx] + w['transformer.wpe.weight'][:T]
    for n in range(n_layer):
        qkv = linear(norm(x, f'{h}{n}.ln_1'), f'{h}{n}.attn.c_attn')
        q, k, v = (z.unflatten(-1, (n_head, -1)) for z in qkv.chunk(3, -1))
        weights = torch.zeros(B, n_head, T, T, dtype=torch.float64)
        for i in range(T):
            for j in range(i + 1):
                weights[:, :, i, j] = torch.exp((q[:, i] * k[:, j]).sum(-1) / math.sqrt(q.size(-1)))
        patterns[f'{h}{n}.attn'] = weights = weights / weights.sum(-1, keepdim=True)
        y = torch.einsum('bhij,bjhc->bihc', weights, v).flatten(2)
        x = x + linear(y, f'{h}{n}.attn.c_proj')
        z = linear(norm(x, f'{h}{n}.ln_2'), f'{h}{n}.mlp.c_fc')
        z = acts[f'{h}{n}.mlp.gelu'] = z * (1 + torch.erf(z / math.sqrt(2))) / 2
        x = acts[f'{h}{n}'] = x + linear(z, f'{h}{n}.mlp.c_proj')
    norm(x, 'transformer.ln_f')
    acts['model'] = torch.einsum('btc,vc->btv', acts['transformer.ln_f'], w['transformer.wte.weight'])
    return acts, patterns


def test_activations_patterns_and_logits_are_those_of_a_forward_by_hand(data):
    run = made_run(data)
    idx = next(run.windows(3))[0]
    acts, patterns = by_hand({name: p.detach() for name, p in run.model.named_parameters()}, idx)
    seen = watch(run, idx, '*')
    assert len(acts) == 19 and acts.keys() < seen.keys()
    for name, x in acts.items():
        torch.testing.assert_close(seen[name], x, **SAME, msg=name)
    with attention_patterns(run.model) as found:
        logits = run.logits(idx)
    assert found.keys() == patterns.keys()
    for name, weights in patterns.items():
        torch.testing.assert_close(found[name], weights, **SAME)
    torch.testing.assert_close(logits, acts['model'], **SAME)


def as_it_is(x):
    """A copy of a module's argument as it is now; a Step goes on being filled."""
    if isinstance(x, Step):
        x = copy.copy(x)
        x.shared, x.losses, x.uses, x.stats = dict(x.shared), dict(x.losses), dict(x.uses), None
    return list(x) if isinstance(x, list) else x


@pytest.mark.parametrize('variant', ['base', *shipped_variants()])
@torch.no_grad()
def test_what_is_recorded_is_what_the_module_makes_of_its_inputs_and_logits_are_evaluations(variant, data):
    run, taken, hooks, calls = made_run(data, variant), {}, [], {}
    idx, _ = next(run.windows(3))

    def keep(name, args, kwargs):
        calls[name] = calls.get(name, 0) + 1
        name = name if calls[name] == 1 else f'{name}:{calls[name]}'
        taken[name] = [as_it_is(x) for x in args], {n: as_it_is(x) for n, x in kwargs.items()}

    for name, module in run.model.named_modules():
        hooks.append(module.register_forward_pre_hook(
            lambda m, args, kwargs, name=name or 'model': keep(name, args, kwargs), with_kwargs=True))
    with record(run.model, '*') as found:
        run.logits(idx)
    for hook in hooks:
        hook.remove()

    assert found.keys() == taken.keys() and len(found) > 20
    modules = dict(run.model.named_modules())
    for name, y in found.items():
        args, kwargs = taken[name]
        again = modules[name.partition(':')[0].replace('model', '')].forward(*args, **kwargs)
        again = again[0] if isinstance(again, tuple) else again
        for a, b in zip(again, y, strict=True) if isinstance(y, list) else [(again, y)]:
            torch.testing.assert_close(a, b, rtol=0, atol=0, msg=name)

    # as train.py evaluates
    def forward(idx, stats):
        return run.model(idx, step=Step(it=torch.tensor(5.0), stats=stats, all_positions=True))[0]
    torch.testing.assert_close(found['model'], forward(idx, {}), rtol=0, atol=0)
    evaluation = evaluate(forward, run.data, run.machine, 'val', 4, limit=3)
    assert np.nanmean(run.losses(3)) == pytest.approx(evaluation.loss, abs=1e-9)


def test_sizes_are_those_of_all_tokens_of_the_text(data):
    run = made_run(data)
    sizes = measure(run, ['*.mlp', 'lm_head'])
    # the last window is not full
    rows = list(run.windows())
    assert (rows[-1][1] == -1).any() and sizes.windows == sum(len(x) for x, _ in rows)
    kept = {}
    for idx, targets in rows:
        for name, x in watch(run, idx, '*').items():
            kept.setdefault(name, []).append(x[targets != -1])
    rms = {name: float(torch.cat(parts).square().mean().sqrt()) for name, parts in kept.items()}
    assert sizes.modules == pytest.approx({name: rms[name] for name in sizes.modules}, rel=1e-12)
    assert list(sizes.modules) == ['transformer.h.0.mlp', 'transformer.h.1.mlp', 'lm_head']
    assert sizes.depths == ['embedding', 'layer 0', 'layer 1']
    stream = [rms[name] for name in ('transformer.drop', 'transformer.h.0', 'transformer.h.1')]
    assert sizes.stream == pytest.approx(stream, rel=1e-12)
    assert sizes.updates['mlp'] == pytest.approx(
        [rms[f'transformer.h.{n}.mlp'] / stream[n] for n in (0, 1)], rel=1e-12)
    stages = [torch.cat(kept[name]) for name in ('transformer.drop', 'transformer.h.0', 'transformer.h.1')]
    moves = [after - before for before, after in zip(stages, stages[1:])]
    assert sizes.updates['block'] == pytest.approx(
        [float(d.square().mean().sqrt()) / stream[n] for n, d in enumerate(moves)], rel=1e-12)
    # windows are full but for the last one, so positions count nearly alike
    assert np.sqrt((sizes.positions ** 2).mean(1)) == pytest.approx(stream, rel=0.02)


@pytest.mark.parametrize('variant, depths, block', [
    ('loop', ['embedding', 'layer 0', 'layer 1', 'layer 0 (2)', 'layer 1 (2)'], True), ('mod', None, True),
    ('attnres', None, False), ('mhc', None, True)])
def test_variants_with_other_streams_are_measured(variant, depths, block, data):
    sizes = measure(made_run(data, variant), limit=4)
    assert depths is None or sizes.depths[:5] == depths
    assert np.isfinite(sizes.stream).all() and np.isfinite(sizes.positions).all()
    assert np.isfinite(sizes.updates['block']).all() == block
    assert np.isfinite(sizes.updates['attn']).all() and np.isfinite(sizes.updates['mlp']).all()


def test_a_planted_difference_is_named(data):
    base = {seed: measure(made_run(data, seed=seed), limit=4) for seed in (1, 2, 3)}
    runs = {seed: made_run(data, seed=seed) for seed in (1, 2, 3)}
    with torch.no_grad():
        for run in runs.values():
            # attention's output is half as large in both layers
            for block in run.model.transformer.h:
                block.attn.c_proj.weight *= 0.5
    halved = {seed: measure(run, limit=4) for seed, run in runs.items()}
    said = difference_sentence('arm', 'base', base, halved)
    assert said.startswith('arm differs from base most in the size of attention\'s updates relative to the ')
    assert 'do not differ for sure' in difference_sentence('arm', 'base', base, base)
    assert 'fewer than two seeds' in difference_sentence('arm', 'base', base, {1: halved[1]})


@pytest.fixture(scope='module')
def trained(tmp_path_factory, data):
    out = tmp_path_factory.mktemp('run') / 'out'
    assert call(train.main, **TINY | dict(max_iters=2), dataset=data, out_dir=out).code == 0
    return out


def test_activations_are_saved_by_name(trained, tmp_path):
    file = tmp_path / 'new/acts.safetensors'
    ended = call(probe.main, 'activations', out_dir=trained, windows=3, to=tmp_path / 'page', save=file,
                 text='a bad\n')
    assert ended.code == 0, ended.err
    assert {p.name for p in (tmp_path / 'page').iterdir()} == {
        'activations.html', 'stream_by_layer.png', 'stream_by_position.png', 'updates.png'}
    saved = load_file(file)
    assert f'{len(saved)} tensors are in {file}, by name.' in ended.out
    run, = activations.open_runs(trained, device='cpu')
    seen = watch(run, saved['tokens'], '*')
    assert run.tokenizer.decode(saved['tokens'][0].tolist()) == 'a bad\n'
    assert saved.keys() == seen.keys() | {'tokens'}
    assert all(torch.equal(saved[name], x) for name, x in seen.items())
    with safe_open(file, 'pt') as f:
        assert f.metadata() == dict(made_by='probe.py activations', out_dir=str(trained), iteration='2')
    # its own file is made anew
    activations.check_replaceable(file)
    activations.save_activations(file, watch(run, saved['tokens'], '*.mlp', 'lm_head'), {})
    assert load_file(file).keys() == {'transformer.h.0.mlp', 'transformer.h.1.mlp', 'lm_head'}


def test_no_other_file_is_replaced(trained, tmp_path):
    def refused(**options):
        return call(probe.main, 'activations', out_dir=trained, windows=1, **options).line(2)
    weights = tmp_path / 'model.safetensors'
    save_file({'w': torch.ones(2)}, weights)
    text = tmp_path / 'text.safetensors'
    text.write_text('mine')
    folder = tmp_path / 'folder.safetensors'
    folder.mkdir()
    for path in weights, text, folder:
        assert refused(save=path) == (f'save={path}: is there already, and this command has not made it; '
                                      'choose another name')
    assert load_file(weights)['w'].tolist() == [1, 1] and text.read_text() == 'mine'
    assert refused(save=tmp_path / 'acts.pt').endswith('acts.pt: allowed: a name that ends in .safetensors')
    assert not (trained / 'probe').exists()


def test_bad_input_is_one_line(trained, tmp_path):
    def refused(code, **options):
        return call(probe.main, 'activations', **dict(out_dir=trained) | options).line(code)
    near = 'names no module; near it: transformer.h.'
    assert refused(2, names='*.attm') == f'*.attm: {near}0.attn, transformer.h.1.attn'
    assert refused(2, names='lm_head,transformer.h.2').startswith(f'transformer.h.2: {near}1, ')
    assert refused(2, names=',').startswith('names=: allowed: patterns of modules\' names')
    assert 'not among the 52 characters of this set' in refused(2, text='é')
    assert 'holds no checkpoint' in refused(4, out_dir=tmp_path)


def test_a_study_has_bands_and_names_by_arm(data, tmp_path, monkeypatch):
    runs = [made_run(data, variant, seed, n_layer=1) for variant in ('base', 'canon') for seed in (1, 2)]
    monkeypatch.setattr(activations, 'open_from', lambda o: runs)
    file = tmp_path / 'a.safetensors'
    page, folder = activations.main([f'--out_dir={tmp_path}', '--windows=3', f'--save={file}'])
    assert folder == tmp_path / 'probe'
    by_layer, by_position, updates, table = page.sections[0].items
    for chart in by_layer, by_position, updates:
        assert [s.label for s in chart.series] == ['base', 'canon'] and chart.has_seeds
        assert all(low <= y <= high for s in chart.series for low, y, high in zip(s.low, s.y, s.high))
    assert by_position.series[0].x == list(range(12)) and by_layer.series[0].x == [0, 1]
    assert [row[0] for row in table.rows] == ['layer 0, base', 'layer 0, canon']
    assert ' ± ' in table.rows[0][2].text
    assert page.sections[1].items[0].titles == ['module', 'shape', 'base', 'canon']
    names = load_file(file).keys()
    assert {'base/seed_1/tokens', 'canon/seed_2/transformer.h.0.attn'} <= names
