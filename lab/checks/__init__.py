"""Checks of what must hold for every variant: functions that raise Failed, or Leak, where it does not.

    models      small models, and tokens for them
    settings    which options to look at
    causality   does a position see a later one, or a row another row?
    decoding    does decoding give what evaluation gives?
    equality    are the numbers the same: fast path, NEUTRAL, compiled, after a checkpoint?
    difference  does a variant compute anything that the baseline does not?
    learning    does every parameter learn, and does no model predict what cannot be known?
    judged      the same of the very model that a study judges, in its circumstances
    locate      in which module do two passes part?
    state       what may a pass leave in a model?
    precision   what does rounding explain?
    suite       all checks, as bench.py --check and ab.py run them

They take a model, or a variant's name and options, and know no particular variant. They need only torch and
the model's code, so other programs can use them. All models but those of judged are small, on the CPU,
without dropout, and in float64 where precision matters.
"""
from lab.checks.causality import causal, declared_leak, has_leak, jacobian, row_swap, suffix_swap
from lab.checks.decoding import cached_decoding, greedy_generation, stateless
from lab.checks.difference import is_baseline, why_idle
from lab.checks.equality import (
    assert_close,
    assert_grads_close,
    fast_path,
    neutral_is_base,
    one_graph,
    outputs_and_grads,
    round_trip,
    shared_start,
)
from lab.checks.failures import Failed, Leak
from lab.checks.learning import below_chance, plain_loss, trains, uniform_tokens
from lab.checks.models import (
    ITERATIONS,
    SMALL,
    capture_embeddings,
    different_tokens,
    frozen_rng_and_buffers,
    iteration,
    logits_of,
    shake_weights,
    small,
    tokens,
    train_small,
    uses_rng,
)
from lab.checks.settings import choices, covering_options, is_valid, leak_reason, leak_rules, neutral_options
from lab.checks.suite import LEAKS, SLOW, CheckResult, check_trained, list_checks, run_fresh, run_suite

__all__ = [
    'ITERATIONS', 'LEAKS', 'SLOW', 'SMALL', 'CheckResult', 'Failed', 'Leak', 'assert_close',
    'assert_grads_close', 'below_chance', 'cached_decoding', 'capture_embeddings', 'causal', 'check_trained',
    'choices', 'covering_options', 'declared_leak', 'different_tokens', 'fast_path', 'frozen_rng_and_buffers',
    'greedy_generation', 'has_leak', 'is_baseline', 'is_valid', 'iteration', 'jacobian', 'leak_reason', 'leak_rules',
    'list_checks', 'logits_of', 'neutral_is_base', 'neutral_options', 'one_graph', 'outputs_and_grads',
    'plain_loss', 'round_trip', 'row_swap', 'run_fresh', 'run_suite', 'shake_weights', 'shared_start', 'small',
    'stateless', 'suffix_swap', 'tokens', 'train_small', 'trains', 'uniform_tokens', 'uses_rng', 'why_idle',
]
