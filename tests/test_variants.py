"""The battery: every file in variants/ is here as soon as it is there. `pytest tests/test_variants.py -k mine` runs one's own.

What each check sees is in checks.py; the last part of this file breaks variants on purpose and asks for the check that catches each.
"""
from itertools import combinations

import checks
import pytest
import torch
from checks import Failed, small

import model as core
from lab import options as lab_options
from lab.errors import Stop

VARIANTS = core.variants()
ALL = ['base', *VARIANTS]
every = pytest.mark.parametrize('name', ALL)
mine = pytest.mark.parametrize('name', VARIANTS)
modes = pytest.mark.parametrize('training', [False, True], ids=['eval', 'train'])


def spelled(setting):
    return ','.join(f'{name}={value}' for name, value in setting.items())


def each_setting(names):
    pairs = [(name, setting) for name in names for setting in sorted(checks.settings(name), key=str)]
    return pytest.mark.parametrize('name, setting', pairs, ids=[f'{name}-{spelled(setting)}' for name, setting in pairs])


def each_leak():
    found = [(name, setting) for name in VARIANTS for file in core.load(name).files for setting, _ in getattr(file, 'LEAKS', [])]
    return pytest.mark.parametrize('name, setting', found, ids=[f'{name}-{spelled(setting)}' for name, setting in found])


def safe(name, options, training):
    """Training with options that the variant declares leaky is looked at by another test."""
    return not (training and checks.leak_reason(name, options))


# -- what the file says

@mine
def test_docstring_names_its_source(name):
    text = core.load(name).files[0].__doc__ or ''
    assert 'arxiv' in text.lower() or 'github' in text.lower(), f'variants/{name}.py: the docstring names no source (arXiv or github)'


@mine
def test_options_have_meanings(name):
    own = lab_options.options(core.load(name).GPTConfig)
    assert [o.name for n, o in own.items() if not o.meaning] == []


@mine
def test_declarations(name):
    file = core.load(name).files[0]
    checks.neutral(name)
    own = lab_options.options(core.load(name).GPTConfig)
    for setting, why in getattr(file, 'LEAKS', []):
        assert set(setting) <= set(own) and why
    assert set(getattr(file, 'CLASHES', {})) <= set(VARIANTS)


# -- learning

@every
def test_trains(name):
    checks.trains(name)


@every
def test_trains_with_biases(name):
    checks.trains(name, bias=True)


@every
def test_round_trip(name):
    checks.round_trip(name)


@every
def test_shared_parameters_start_equal(name):
    checks.shared_start(name)


@mine
@pytest.mark.parametrize('bias', [False, True], ids=['', 'bias'])
def test_neutral_is_the_baseline(name, bias):
    checks.neutral_is_base(name, **checks.neutral(name) | dict(bias=bias) if bias else checks.neutral(name))


# -- causality

@pytest.mark.parametrize('shake', [0.0, 0.3, 1.0], ids=['initial', 'shaken', 'wild'])
@modes
@every
def test_causal(name, training, shake):
    if safe(name, {}, training):
        checks.causal(small(name, shake).train(training))
    else:
        assert checks.leaks(lambda seed: small(name, 0.3, seed).train())


@modes
@every
def test_causal_across_blocks_of_128(name, training):
    if safe(name, {}, training):
        checks.suffix_swap(small(name, 0.3, block_size=160).train(training), times=(127, 128, 129), trials=2)


@each_setting(VARIANTS)
def test_causal_with_each_option(name, setting):
    for training in False, True:
        if safe(name, setting, training):
            checks.causal(small(name, 0.3, **setting).train(training))


@each_leak()
def test_declared_leak_is_real_and_only_in_training(name, setting):
    assert checks.leaks(lambda seed: small(name, 0.3, seed, **setting).train()), 'no check sees this leak: is it one?'
    for shake in 0.0, 0.3:
        checks.causal(small(name, shake, **setting).eval())


# -- decoding

@every
def test_stateless(name):
    checks.stateless(small(name, 0.3))


@every
def test_decoding(name):
    for shake in 0.0, 0.3:
        for it in checks.ITS:
            checks.decoding(small(name, shake), it)


@each_setting(VARIANTS)
def test_decoding_with_each_option(name, setting):
    for it in checks.ITS:
        checks.decoding(small(name, 0.3, **setting), it)


@every
def test_generating(name):
    checks.generating(small(name, 0.3))


# -- speed changes nothing

@pytest.mark.parametrize('T', [1, 7, 31, checks.SMALL['block_size']])
@pytest.mark.parametrize('impl', ['auto', 'sdpa'])
@every
def test_fast_path(name, impl, T):
    for dtype, tol in (torch.float64, 1e-9), (torch.float32, 1e-5):
        model = small(name, 0.1, dtype=dtype)
        try:
            checks.fast_path(model, impl, T, tol)
        except Stop as refused:
            assert impl != 'auto' and f'attn={impl}' in str(refused) and '\n' not in str(refused)


@every
def test_one_graph(name):
    checks.one_graph(small(name, 0.3))


@each_leak()
def test_one_graph_of_a_leaky_rule(name, setting):
    checks.one_graph(small(name, 0.3, **setting))


# -- two ideas at once

@pytest.mark.parametrize('one, two', combinations(VARIANTS, 2), ids='+'.join)
def test_pair(one, two):
    both = f'{one}+{two}'
    try:
        core.load(both)
    except Stop as refused:
        assert both in str(refused) and '\n' not in str(refused)
        return
    for off, left in (one, two), (two, one):
        checks.neutral_is_base(both, than=left, **checks.neutral(off))
