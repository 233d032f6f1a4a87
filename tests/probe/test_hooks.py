"""What is recorded of a pass is what the model computes."""
import re

import pytest
import torch
from helpers import shipped_variants

from core.errors import Stop
from lab.probe import attention_patterns, record, replace
from model import Step, build

SIZES = dict(n_layer=2, n_head=2, n_embd=16, block_size=12, vocab_size=11, dropout=0.0)


def moved(variant):
    """A model whose weights are no longer the initial ones, so that no part of it is idle."""
    model = build(variant, **SIZES).double().eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p += 0.3 * torch.randn(p.shape, generator=generator, dtype=p.dtype)
    return model


@torch.no_grad()
def run(model, idx):
    return model(idx, step=Step(all_positions=True))[0]


@pytest.fixture
def idx():
    return torch.randint(11, (2, 12), generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize('variant', ['base', *shipped_variants()])
def test_patterns_times_values_are_what_attention_puts_out(variant, idx):
    model, calls = moved(variant), []
    plain = run(model, idx)

    def watch(attn, method):
        f = getattr(attn, method)

        def call(q, k, v, *rest, **how):
            y = f(q, k, v, *rest, **how)
            calls.append((method, v, y[0] if isinstance(y, tuple) else y))
            return y
        setattr(attn, method, call)

    for block in model.transformer.h:
        watch(block.attn, 'attend')
        watch(block.attn, 'compute_attention')
    with attention_patterns(model) as patterns:
        logits = run(model, idx)
    torch.testing.assert_close(logits, plain, rtol=0, atol=0)
    # of each two passes of attention the second, or of attend() the first, has the values of the model
    inner = [call for call in calls if call[0] == 'compute_attention']
    pairs = inner[1::2] or calls[::2]
    assert len(patterns) >= 2
    for weights, (_, v, y) in zip(patterns.values(), pairs, strict=True):
        torch.testing.assert_close(weights @ v, y, rtol=0, atol=1e-9)


def test_patterns_are_of_the_past_alone_and_sum_to_one(idx):
    model = moved('base')
    with attention_patterns(model) as patterns:
        run(model, idx)
    assert list(patterns) == ['transformer.h.0.attn', 'transformer.h.1.attn']
    for weights in patterns.values():
        assert weights.shape == (2, 2, 12, 12)
        assert torch.equal(weights, weights.tril())
        torch.testing.assert_close(weights.sum(-1), torch.ones(2, 2, 12).double())


def test_what_is_recorded_is_what_the_modules_hand_on(idx):
    model = moved('base')
    with record(model, 'transformer.h.*', 'transformer.ln_f', 'model') as acts:
        logits = run(model, idx)
    with record(model, 'transformer.ln_f', inputs=True) as taken:
        run(model, idx)
    assert {'transformer.h.0', 'transformer.h.1.mlp.c_fc', 'transformer.ln_f', 'model'} <= acts.keys()
    torch.testing.assert_close(model.lm_head(acts['transformer.ln_f']), logits)
    assert torch.equal(acts['model'], logits) and torch.equal(taken['transformer.ln_f'], acts['transformer.h.1'])


def test_a_replaced_output_goes_on_and_hooks_go_with_the_context(idx):
    model = moved('base')
    plain = run(model, idx)
    with replace(model, {'transformer.h.1.mlp': torch.zeros_like}), record(model, 'transformer.h.1') as acts:
        without = run(model, idx)
    with record(model, 'transformer.h.1.attn') as attn, record(model, 'transformer.h.0') as first:
        run(model, idx)
    torch.testing.assert_close(acts['transformer.h.1'], first['transformer.h.0'] + attn['transformer.h.1.attn'])
    assert not torch.equal(without, plain)
    with pytest.raises(RuntimeError), replace(model, {'transformer.h.0': lambda y: y[:, :, :1]}):
        run(model, idx)
    with pytest.raises(ZeroDivisionError), attention_patterns(model):
        raise ZeroDivisionError
    assert torch.equal(run(model, idx), plain)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert not any('attend' in vars(m) for m in model.modules())


def test_a_name_that_is_none_is_refused():
    for name, near in [('transformer.h.7', 'near it: transformer.h.1, '), ('*.atn', 'near it: transformer.h.0.attn, '),
                       ('c_attn', 'near it: transformer.h.0.attn.c_attn, '), ('zzz', 'there are model, ')]:
        with pytest.raises(Stop, match=f'^{re.escape(name)}: names no module; {near}'):
            with record(moved('base'), name):
                pass
