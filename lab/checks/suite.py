"""The suite: all that must hold before a variant's loss can be believed, as a list of named checks."""
import time
from functools import cache, partial
from typing import NamedTuple

import torch

from core.assemble import short_name
from core.errors import Stop, out_of_memory
from lab.checks.causality import blind_to_targets, causal, declared_leak, suffix_swap
from lab.checks.decoding import cached_decoding, greedy_generation, stateless
from lab.checks.difference import why_idle
from lab.checks.equality import neutral_is_base, one_graph
from lab.checks.failures import Failed, Leak, line_of_variant, require
from lab.checks.judged import list_fresh_checks, list_trained_checks
from lab.checks.learning import plain_loss, uniform_tokens
from lab.checks.models import small, train_small
from lab.checks.precision import in_float64_if_it_fails
from lab.checks.settings import leak_reason, leak_rules, neutral_options
from model import load_classes

# the first words of the one check that takes half a minute
SLOW = 'uniform tokens'
# and of those that look for leaks
LEAKS = 'stateless', 'leak', 'causal', SLOW


class CheckResult(NamedTuple):
    name: str
    status: str         # ok, declared leak seen, LEAK found, FAILED or CRASHED
    why: str            # the failure's message, for the last three; else ''
    seconds: float


def list_checks(variant, fast=False, base_args=None, **options):
    """Returns [(name, check)] for the variant with these options, and for each setting declared to leak.

    check() raises Failed, or returns True if it saw a declared leak. fast: leaves out the check named SLOW.
    base_args: fields of the baseline's GPTConfig, of the size at which the variant must differ from it.
    """
    # leaks first: what they say comes before all else
    found = []
    for rule in {}, *(rule for rule, _ in leak_rules(variant)):
        suffix = ''.join(f', {option}={value}' for option, value in rule.items())
        found += [(name + suffix, check) for name, check in list_checks_of_options(variant, options | rule)]
    if base_args:
        found.append(('differs from base', partial(differs, variant, base_args | options, base_args)))
    found.sort(key=lambda item: not item[0].startswith(LEAKS))
    # each part of a sum is made neutral, with the other parts as they are
    names = [name for name in variant.split('+') if name != 'base']
    for name in names:
        rest = '+'.join(other for other in names if other != name) or 'base'
        # not every idea has an option that turns it off
        if hasattr(load_classes(name).files[0], 'NEUTRAL'):
            line = f'{short_name(name)} when neutral is {short_name(rest)}'
            found.append((line, partial(neutral, variant, name, rest)))
    return [(name, check) for name, check in found if not (fast and name.startswith(SLOW))]


def run_fresh(build_model, m, o, data, leaks=None):
    """Runs checks of new models of an arm as they will be judged, and yields a CheckResult after each.

    build_model() returns the model. m: the Machine; o: train.py's Options; data: the Dataset. leaks: as for
    run_suite().
    """
    yield from run_checks(list_fresh_checks(build_model, m, o, data), leaks)


def check_trained(model, m, o, data):
    """Returns a CheckResult for each check of a trained model as it is judged, on text of the validation split.

    m, o, data: as for run_fresh(). The model stays as it is.
    """
    return list(run_checks(list_trained_checks(model, m, o, data)))


def differs(variant, model_args, base_args):
    """Checks that the variant, and each part of a sum, does something; arguments as for is_baseline().

    Where the options are those of its NEUTRAL, it says so itself.
    """
    config = load_classes(variant).GPTConfig(**model_args)
    for file in load_classes(variant).files:
        neutral = getattr(file, 'NEUTRAL', None)
        if neutral and all(getattr(config, name) == value for name, value in neutral.items()):
            return
    why = why_idle(variant, 'base', model_args, base_args, max_iters=1000)
    require(why is None, f'{short_name(variant)} {why}')


def neutral(variant, name, rest):
    """Checks that the variant is `rest` with the NEUTRAL of its part `name`, or starts as it."""
    options = neutral_options(name)
    try:
        neutral_is_base(variant, options, rest)
    except Failed as failure:
        try:
            # an option may set where a parameter starts
            neutral_is_base(variant, options, rest, shake_own=False)
        except Failed:
            values = 'at any values of its own parameters, or where they start' if options else 'where it starts'
            raise Failed(f'{failure}; NEUTRAL = {options} says that it is {short_name(rest)} {values}: name options '
                         'with which it is, or leave NEUTRAL out') from None


def list_checks_of_options(variant, options):
    """Yields (name, check) for one setting of the options."""
    declared = leak_reason(variant, options)
    # four kinds of weights: initial ones hide leaks, large ones saturate, only training fills buffers
    make = partial(small, variant, **options)
    shaken, trained = partial(make, shake=0.3), cache(partial(train_small, variant, **options))
    weights = dict(initial=make, shaken=shaken, wild=partial(make, shake=1.0), trained=trained)
    # before all others, which would call it something else
    yield 'stateless', lambda: stateless(shaken())
    # a declared leak may show in training, never in evaluation
    for training in [False] if declared else [False, True]:
        mode = 'training' if training else 'evaluation'
        for name, make_model in weights.items():
            check = partial(causal_in_mode, make_model, training, looks_back=name != 'initial')
            yield f'causal in {mode}, {name} weights', check
        # kernels and masks work in blocks of 128 tokens
        yield f'causal in {mode}, across blocks of 128', partial(causal_across_blocks, make, training)
        yield f'leak of targets in {mode}', partial(blind_to_targets_in_mode, shaken, training)
    if declared:
        yield 'leak in training', partial(declared_leak, shaken, trained)

    # decoding agrees with evaluation, and the pass compiles
    yield 'decoding', lambda: cached_decoding(shaken())
    yield 'generating', lambda: greedy_generation(shaken())
    yield 'one graph', lambda: one_graph(shaken())
    yield 'loss', lambda: plain_loss(shaken())
    yield f'{SLOW}, half a minute', lambda: uniform_tokens(variant, declared=declared, **options)


def causal_in_mode(make_model, training, looks_back):
    causal(make_model().train(training), looks_back=looks_back)


def blind_to_targets_in_mode(make_model, training):
    blind_to_targets(make_model().train(training))


def causal_across_blocks(make, training):
    """Checks causality on both sides of position 128."""
    model = make(shake=0.3, block_size=160)
    suffix_swap(model.train(training), times=(127, 128, 129))


def run_suite(variant, fast=False, leaks=None, base_args=None, **options):
    """Runs the checks of list_checks() and yields a CheckResult after each.

    leaks: True runs those for leaks alone, False all others.
    """
    threads = torch.get_num_threads()
    # models this small are slower with more threads
    torch.set_num_threads(1)
    try:
        yield from run_checks(list_checks(variant, fast, base_args, **options), leaks)
    finally:
        torch.set_num_threads(threads)


def run_checks(found, leaks=None):
    """Runs checks, (name, check) each, and yields a CheckResult after each; none keeps the next from running."""
    for name, check in found:
        if leaks is not None and leaks != name.startswith(LEAKS):
            continue
        t0, why = time.perf_counter(), ''
        try:
            status = 'declared leak seen' if in_float64_if_it_fails(check) else 'ok'
        except (Failed, Stop) as failure:
            status, why = 'LEAK found' if isinstance(failure, Leak) else 'FAILED', str(failure)
        except Exception as error:
            # memory that is out is no fault of the variant
            if out_of_memory(error):
                raise
            first_line = (str(error).strip().splitlines() or [''])[0][:300]
            where = line_of_variant(error)
            status, why = 'CRASHED', f'crashed in {name}: {where}{type(error).__name__}: {first_line}'
        yield CheckResult(name, status, why, time.perf_counter() - t0)
