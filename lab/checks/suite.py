"""All that must hold before anybody believes a variant's loss, as one list of named checks."""
import time
from functools import cache, partial
from typing import NamedTuple

import torch

from core.errors import Stop
from lab.checks.causality import causal, declared_leak, suffix_swap
from lab.checks.decoding import cached_decoding, greedy_generation, stateless
from lab.checks.equality import neutral_is_base, one_graph
from lab.checks.failures import Failed, Leak
from lab.checks.learning import uniform_tokens
from lab.checks.models import small, train_small
from lab.checks.settings import leak_reason, leak_rules, neutral_options

SLOW = 'uniform tokens' # how the name of the check begins that takes half a minute


class CheckResult(NamedTuple):
    name: str
    status: str         # ok, declared leak seen, LEAK found, FAILED
    why: str            # of the last two
    seconds: float


def list_checks(variant, fast=False, **options):
    """Yields (name, check) for the variant with these options, and again with those that it declares to leak.

    check() raises Failed, or returns True if it saw a declared leak. fast: without the one named SLOW.
    """
    names = [name for name in variant.split('+') if name != 'base']
    # of a sum each part, with the others left as they are
    for name in names:
        rest = '+'.join(other for other in names if other != name) or 'base'
        yield f'{name} when neutral is {rest}', partial(neutral, variant, name, rest)
    for rule in {}, *(rule for rule, _ in leak_rules(variant)):
        suffix = ''.join(f', {option}={value}' for option, value in rule.items())
        for name, check in list_checks_of_options(variant, options | rule):
            if not (fast and name.startswith(SLOW)):
                yield name + suffix, check


def neutral(variant, name, rest):
    neutral_is_base(variant, neutral_options(name), rest)


def list_checks_of_options(variant, options):
    """Yields the part of list_checks() that looks at one setting of the options."""
    declared = leak_reason(variant, options)
    # initial weights hide much, large ones saturate, and only training fills buffers
    make = partial(small, variant, **options)
    shaken, trained = partial(make, shake=0.3), cache(partial(train_small, variant, **options))
    weights = dict(initial=make, shaken=shaken, wild=partial(make, shake=1.0), trained=trained)
    # with a declared leak only evaluation has to be causal
    for training in [False] if declared else [False, True]:
        mode = 'training' if training else 'evaluation'
        for name, make_model in weights.items():
            yield f'causal in {mode}, {name} weights', partial(causal_in_mode, make_model, training)
        # kernels and masks work in blocks of 128
        yield f'causal in {mode}, across blocks of 128', partial(causal_across_blocks, make, training)
    if declared:
        yield 'leak in training', partial(declared_leak, shaken, trained)

    # what is evaluated is what is decoded, and compiles
    yield 'stateless', lambda: stateless(shaken())
    yield 'decoding', lambda: cached_decoding(shaken())
    yield 'generating', lambda: greedy_generation(shaken())
    yield 'one graph', lambda: one_graph(shaken())
    yield f'{SLOW}, half a minute', lambda: uniform_tokens(variant, declared=declared, **options)


def causal_in_mode(make_model, training):
    causal(make_model().train(training))


def causal_across_blocks(make, training):
    model = make(shake=0.3, block_size=160)
    suffix_swap(model.train(training), times=(127, 128, 129))


def run_suite(variant, fast=False, **options):
    """Runs list_checks() and yields a CheckResult as each one ends."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1) # more only get in each other's way in models this small
    try:
        for name, check in list_checks(variant, fast, **options):
            t0, why = time.perf_counter(), ''
            try:
                status = 'declared leak seen' if check() else 'ok'
            except (Failed, Stop) as failure:
                status, why = 'LEAK found' if isinstance(failure, Leak) else 'FAILED', str(failure)
            yield CheckResult(name, status, why, time.perf_counter() - t0)
    finally:
        torch.set_num_threads(threads)
