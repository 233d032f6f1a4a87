"""The battery, for every file in variants/: pytest tests/variants/test_variants.py -k mine

lab/checks says what each check sees; tests/lab/test_checks.py breaks variants on purpose, and a check must see
every fault. Marked slow, and run before a release: weights that hide what shaken ones show, each variant
compiled as bench.py --check does it, each setting at every iteration, and pairs that cover nothing new.
"""
import contextlib
import gc
from itertools import combinations, product

import pytest
import torch
from helpers import shipped_variants
from torch.utils._python_dispatch import TorchDispatchMode

from configurator import options_of
from core.assemble import own_names, variant_names
from core.errors import Stop
from lab import checks
from lab.checks import ITERATIONS, small
from model import SLOTS, load_classes

VARIANTS = variant_names()
ALL = ['base', *VARIANTS]
torch.set_num_threads(1) # more only get in each other's way in models this small
all_variants = pytest.mark.parametrize('name', ALL)
variants_only = pytest.mark.parametrize('name', VARIANTS)
slow = pytest.mark.slow


@pytest.fixture
def frozen_heap():
    """Keeps Python from looking for garbage among existing objects, a fifth of a compilation's time."""
    gc.freeze()
    yield
    gc.unfreeze()


def collect(f, names=VARIANTS):
    """Returns [(variant, x)] for each x in f(variant).

    A file that cannot be read fails in its tests, not here.
    """
    found = []
    for name in names:
        with contextlib.suppress(Exception):
            found += [(name, one) for one in f(name)]
    return found


def declared_settings(name):
    """Returns the settings to check: no options, and those with which the variant declares a leak."""
    return [{}, *(rule for rule, _ in checks.leak_rules(name))]


SUITE = collect(checks.list_checks, ALL)
SETTINGS = collect(checks.covering_options)
DECLARED = collect(declared_settings, ALL)


def each(cases):
    """Parametrizes with (name, setting), the ids numbered: soft_window-0, soft_window-1."""
    names = [name for name, _ in cases]
    ids = [f'{name}-{names[:i].count(name)}' for i, name in enumerate(names)]
    return pytest.mark.parametrize('name, setting', cases, ids=ids)


# -----------------------------------------------------------------------------
# what the file says

@pytest.mark.parametrize('name', shipped_variants())
def test_docstring_names_its_source(name):
    text = load_classes(name).files[0].__doc__ or ''
    assert 'arxiv' in text.lower() or 'github' in text.lower(), f'{name}.py: names neither arXiv nor github'


@pytest.mark.parametrize('name', shipped_variants())
def test_options_have_meanings(name):
    own = options_of(load_classes(name).GPTConfig)
    assert [o.name for o in own.values() if not o.meaning] == []


@pytest.mark.parametrize('name', shipped_variants())
def test_declarations(name):
    file = load_classes(name).files[0]
    checks.neutral_options(name)
    own = options_of(load_classes(name).GPTConfig)
    for setting, why in getattr(file, 'LEAKS', []):
        assert set(setting) <= set(own) and why
    assert set(getattr(file, 'CLASHES', {})) <= set(VARIANTS)


# -----------------------------------------------------------------------------
# learning

@all_variants
def test_trains(name):
    checks.trains(name)


@slow
@all_variants
def test_trains_with_biases(name):
    checks.trains(name, bias=True)


@all_variants
def test_plain_loss(name):
    checks.plain_loss(small(name, 0.3))


@all_variants
def test_round_trip(name):
    checks.round_trip(name)


@all_variants
def test_shared_parameters_start_equal(name):
    # other initial values are the idea, or part of it: the first parameter that differs
    moved = dict(perturb='wte.weight', lns='c_proj.weight').get(name)
    with pytest.raises(checks.Failed, match=f'{moved} differs') if moved else contextlib.nullcontext():
        checks.shared_start(name)


@variants_only
def test_neutral_is_the_baseline_with_biases(name):
    if hasattr(load_classes(name).files[0], 'NEUTRAL'):
        checks.neutral_is_base(name, checks.neutral_options(name), bias=True)


# -----------------------------------------------------------------------------
# causality, decoding, the baseline when neutral: the suite of bench.py --check, a test for each of its lines

# shaken and trained weights show what initial and wild ones do; one graph has tests of its own below
SLOW_CHECKS = checks.SLOW, 'one graph', 'initial weights', 'wild weights'
SUITE_CASES = []
for name, (line, check) in SUITE:
    is_slow = any(part in line for part in SLOW_CHECKS)
    SUITE_CASES.append(pytest.param(check, id=f'{name}-{line}', marks=[slow] if is_slow else []))


@pytest.mark.parametrize('check', SUITE_CASES)
def test_suite(check):
    check()


# each setting at one iteration, the next setting at the next one
AT_ONE_ITERATION = [(name, (setting, ITERATIONS[i % 3])) for i, (name, setting) in enumerate(SETTINGS)]


@each(AT_ONE_ITERATION)
def test_causal_with_options(name, setting):
    options, it = setting
    causal_with_options(name, options, [it])


@slow
@each(SETTINGS)
def test_causal_with_options_at_every_iteration(name, setting):
    causal_with_options(name, setting, ITERATIONS)


def causal_with_options(name, options, its):
    model = small(name, 0.3, **options)
    # with a declared leak only evaluation has to be causal
    for training in [False] if checks.leak_reason(name, options) else [False, True]:
        checks.causal(model.train(training), its)


def decodes_in_mixed_chunks(model):
    # every kind of pass: a context, single tokens, chunks, tokens late in the context
    checks.cached_decoding(model, its=[1000], cuts=[[7, 1, 1, 3, 12, 1, 1, 5, 1]])


@each(SETTINGS)
def test_decoding_with_options(name, setting):
    decodes_in_mixed_chunks(small(name, 0.3, **setting))


@slow
@each(SETTINGS)
def test_decoding_with_options_token_by_token(name, setting):
    checks.cached_decoding(small(name, 0.3, **setting))


# -----------------------------------------------------------------------------
# speed changes nothing

@pytest.mark.parametrize('T', [pytest.param(1, marks=slow), 7, pytest.param(31, marks=slow), 32])
@pytest.mark.parametrize('impl', ['auto', 'sdpa', 'kernel']) # kernel: on a CPU its reference
@all_variants
def test_fast_path(name, impl, T):
    for dtype, tol in (torch.float64, 1e-9), (torch.float32, 1e-5):
        model = small(name, 0.1, dtype=dtype)
        try:
            checks.fast_path(model, impl, T, tol)
        except Stop as refusal:
            assert impl != 'auto' and f'attn={impl}' in str(refusal) and '\n' not in str(refusal)


class OperatorRecorder(TorchDispatchMode):
    """Records the operators that run inside, except elementwise ones."""

    def __init__(self):
        super().__init__()
        self.found = set()

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        if torch.Tag.pointwise not in operator.tags:
            self.found.add(operator.overloadpacket)
        return operator(*args, **(kwargs or {}))


def operators_of(model):
    """Returns the operators of a training pass, forward and backward."""
    idx = checks.tokens(model, 2)
    with OperatorRecorder() as recorder:
        _, loss = model.train()(idx, idx)
        loss.backward()
    return recorder.found


# between them these have every operator that moves, sums, sorts or draws, and every operator of our own
COMPILED = [{'stt': dict(router='topk')},
            {'forgetting': {}},
            {'hard_window': {}},
            {'strided_heads': {}},
            {'diff_attention': {}, 'bigram': {}},
            {'surprise': {}, 'rope': {}, 'noise_embedding': {}},
            {'gqa': {}, 'dropconnect': {}, 'noise_mixup': dict(mix='batch')}]
COMPILED_CASES = [case for parts in COMPILED for case in parts.items()]


def sum_of(parts):
    """Returns one model with all of {variant: its options}."""
    options = {}
    for own in parts.values():
        options |= own
    return small('+'.join(parts), 0.3, **options)


@pytest.mark.parametrize('parts', COMPILED, ids='+'.join)
def test_one_graph_through_autograd(parts, frozen_heap):
    checks.one_graph(sum_of(parts))


@each([case for case in DECLARED if case not in COMPILED_CASES])
def test_one_graph(name, setting, frozen_heap):
    """Dynamo alone sees graph breaks, branches and recompilation."""
    checks.one_graph(small(name, 0.3, **setting), backend='eager')


@slow
def test_every_operator_is_compiled_through_autograd():
    compiled = set().union(*(operators_of(sum_of(parts)) for parts in COMPILED))
    for name, setting in DECLARED:
        assert operators_of(small(name, 0.3, **setting)) <= compiled, name


@slow
@all_variants
def test_compiled_nothing_is_added_up_in_any_order(name):
    """Two runs of one seed would drift apart."""
    from torch._inductor import config, utils  # seconds to import
    model = small(name, 0.3, dtype=torch.float32).train()
    idx = checks.tokens(model)
    torch._dynamo.reset()
    loss = torch.compile(lambda: model(idx, idx)[1], fullgraph=True)
    with config.patch({'cpp.threads': 2}): # with one thread nothing would need atomics
        _, code = utils.run_and_get_code(lambda: loss().backward())
    assert len(code) == 2 and 'atomic_add' not in ''.join(code) # forward and backward


# -----------------------------------------------------------------------------
# two ideas at once

def goes_together(one, two):
    try:
        load_classes(f'{one}+{two}')
    except Stop as refusal:
        assert f'{one}+{two}' in str(refusal) and '\n' not in str(refusal)
        return False
    return True


def hooks_of(name):
    """Returns {(slot, method)} of model.py that a variant changes; method '' if only the constructor."""
    file = load_classes(name).files[0]
    subclasses = [(slot, vars(file)[slot.__name__]) for slot in SLOTS[1:] if slot.__name__ in vars(file)]
    return {(slot.__name__, hook) for slot, c in subclasses for hook in own_names(c) & set(dir(slot)) or {''}}


HOOKS = dict(collect(lambda name: [hooks_of(name)]))
# the last three: ideas that read tokens, and one that runs blocks of several streams over again
NAMED = [('rope', 'soft_window'), ('dropconnect', 'surprise'),
         ('smear', 'value_embed'), ('bigram', 'engram'), ('hyper', 'loop')]


def meetings(one, two):
    """Returns what a pair covers: each hook with the other's classes, hooks of one class, and both names."""
    found = {one, two}
    for a, b in product(HOOKS[one], HOOKS[two]):
        found |= {(a, b[0]), (b, a[0])}
        if a[0] == b[0]:
            found.add(frozenset((a, b)))
    return found


def covering_pairs():
    """Returns NAMED and a few other pairs that cover all that any pair does, chosen greedily."""
    to_meet = {pair: meetings(*pair) for pair in combinations(HOOKS, 2)}
    found, met = [], set()
    for pair in NAMED:
        if pair in to_meet:
            found.append(pair)
            met |= to_meet.pop(pair)
    while to_meet:
        pair = max(to_meet, key=lambda pair: len(to_meet[pair] - met))
        new = to_meet.pop(pair) - met
        if not new:
            break
        with contextlib.suppress(Exception): # test_pairs_load_or_say_why_not fails there
            if goes_together(*pair):
                met |= new
                found.append(pair)
    return found


PAIRS = covering_pairs()
OTHER_PAIRS = [pair for pair in combinations(HOOKS, 2) if pair not in PAIRS]


def name_pairs(pairs):
    return pytest.mark.parametrize('one, two', pairs, ids=['+'.join(pair) for pair in pairs])


@variants_only
def test_pairs_load_or_say_why_not(name):
    for other in HOOKS:
        if other != name:
            goes_together(name, other)


@name_pairs(PAIRS)
def test_pair(one, two):
    check_pair(one, two, its=[1000])


@slow
@name_pairs(OTHER_PAIRS)
def test_other_pair(one, two):
    if goes_together(one, two):
        check_pair(one, two, its=ITERATIONS)


def check_pair(one, two, its):
    both = f'{one}+{two}'
    for off, left in (one, two), (two, one):
        if not hasattr(load_classes(off).files[0], 'NEUTRAL'):
            continue
        checks.neutral_is_base(both, checks.neutral_options(off), than=left, its=its)
    decodes_in_mixed_chunks(small(both, 0.3)) # one cache for both
