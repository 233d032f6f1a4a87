"""Settings of a variant's options to check, and what the variant declares about them: NEUTRAL and LEAKS."""
from contextlib import suppress
from itertools import combinations
from random import Random
from typing import Literal, get_args, get_origin

from configurator import options_of, parse_option
from core.errors import Stop
from lab.checks.failures import require
from lab.checks.models import SMALL
from model import GPTConfig, load_classes

# -----------------------------------------------------------------------------
# what a variant declares

def neutral_options(variant):
    """Returns the options that make the variant the baseline: NEUTRAL of all its files, merged."""
    found = {}
    for file in load_classes(variant).files:
        options = getattr(file, 'NEUTRAL', None)
        require(isinstance(options, dict), f'neutral: {file.__name__} has no NEUTRAL = dict(option=value), '
                                           'the options that make it the baseline')
        found |= options
    return found


def leak_rules(variant):
    """Returns [(options, why)]: settings declared to see the future, or other rows, in training."""
    return [rule for file in load_classes(variant).files for rule in getattr(file, 'LEAKS', [])]


def leak_reason(variant, options):
    """Returns the declared reason why the variant leaks with these options; None if it declares none."""
    defaults = {name: o.default for name, o in options_of(load_classes(variant).GPTConfig).items()}
    values = defaults | options
    # a rule applies where all its options have its values
    return next((why for rule, why in leak_rules(variant) if rule.items() <= values.items()), None)


# -----------------------------------------------------------------------------
# which options to look at

def is_valid(config_class, options):
    """Returns True if the small model's config accepts these values together."""
    try:
        config_class(**SMALL | options)
    except Stop:
        return False
    return True


def choices(variant):
    """Returns {option of the variant: values to check}: its default, then a few others, all valid."""
    found, core_options = {}, options_of(GPTConfig)
    config_class = load_classes(variant).GPTConfig
    for name, option in options_of(config_class).items():
        if name in core_options:
            continue
        found[name] = [option.default]
        for candidates in candidate_values(option):
            # the first valid value of each group
            for value in candidates:
                with suppress(Stop):
                    is_new = parse_option(option, value, '') != option.default
                    if is_new and is_valid(config_class, {name: value}):
                        found[name].append(value)
                        break
    return found


def candidate_values(option):
    """Returns groups of values to try beside an option's default; one value of each group is enough.

    They are every word of a Literal, the opposite of a bool, a number doubled or halved, and 0.
    """
    # what None or free text means to a variant cannot be guessed
    default = option.default
    # Literal[...] | None is a union, whose parts have the words
    kinds = option.kind, *get_args(option.kind)
    words = [word for kind in kinds if get_origin(kind) is Literal for word in get_args(kind)]
    if words:
        return [[word] for word in words]
    if isinstance(default, bool):
        return [[not default]]
    if isinstance(default, str):
        return []
    return [[2 * default, default / 2], [0]] if default else [[4, 0.5]]


def covering_options(variant):
    """Yields a few settings of the variant's options, {option: value}, that cover every pair of choices.

    Pairs, because one option may hide what another does. Settings that leak by a declared rule come last, for
    the pairs that no other setting covers.
    """
    values, rules = choices(variant), leak_rules(variant)
    config_class = load_classes(variant).GPTConfig
    # seeded by the name: the same settings in every session
    draw = Random(variant).choice # noqa: S311
    met = set()
    for leaky in False, True:
        while True:
            # greedy: the best of a hundred random settings, until none of them adds a pair
            drawn = [{name: draw(some) for name, some in values.items()} for _ in range(100)]
            if not leaky:
                drawn = [s for s in drawn if not any(rule.items() <= s.items() for rule, why in rules)]
            # most new pairs first; settings whose options exclude each other are skipped
            drawn.sort(key=lambda s: -len(pairs_of(s) - met))
            best = next((s for s in drawn if pairs_of(s) <= met or is_valid(config_class, s)), {})
            if pairs_of(best) <= met:
                break
            met |= pairs_of(best)
            yield {name: value for name, value in best.items() if value != values[name][0]}


def pairs_of(options):
    """Returns the set of all single (option, value) items and of all pairs of them."""
    return set(options.items()) | set(combinations(options.items(), 2))
