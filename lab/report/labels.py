"""Short texts: formatted numbers, names of the costs, and the order and colors of the verdicts."""
import re
from collections.abc import Callable
from math import log10
from typing import NamedTuple


def format_number(x, digits=4, sign=''):
    """Returns -0.0024, -1e-07 if these digits would round x to zero, or 1e+30; a dash for None."""
    if x is None:
        return '–'
    if abs(x) >= 1e6:
        return f'{x:{sign}.4g}'
    tiny = 0 < abs(x) < 0.5 * 10 ** -digits
    return f'{x:{sign}.0e}' if tiny else f'{x:{sign}.{digits}f}'


def format_si(x):
    """Returns x with up to four digits and an SI prefix: 10.6 M."""
    # thousands: 0 for none, up to 5 for peta
    thousands = min(max(int(log10(abs(x)) // 3), 0), 5) if x else 0
    return f'{x / 1000 ** thousands:.4g} {" kMGTP"[thousands]}'.strip()


def format_ends(interval, digits=4, sign='+'):
    """Returns [-0.0095, -0.0061]; '' for None."""
    return f'[{", ".join(format_number(x, digits, sign) for x in interval)}]' if interval else ''


def format_chance(p):
    """Returns a probability with two decimals, never rounded to a certainty: >0.99."""
    if p is None:
        return '–'
    return '>0.99' if p > 0.995 else '<0.01' if p < 0.005 else f'{p:.2f}'


def format_ratio(x):
    """Returns a ratio with up to three decimals: 1.31, 1.008, 1."""
    return f'{x:.3f}'.rstrip('0').rstrip('.')


def with_minus_signs(text):
    """Returns text with a minus sign for each hyphen before a number.

    Not for names, which keep their hyphens.
    """
    # a hyphen inside a word or a number, as in 1e-05, stays
    return re.sub(r'(?<![\w.])-(?=\.?\d)', '−', text)


def with_fixed_spaces(text):
    """Returns text with no-break spaces between each number and the unit or word that follows it."""
    return re.sub(r'(?<=[\d×]) (?=[%×(\w])', '\xa0', text)


def printable(text):
    """Returns text with U+FFFD for control characters and lone surrogates, which HTML cannot hold."""
    return re.sub(r'[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]', '\ufffd', text)


def shorten(name, most):
    """Returns the name, cut to `most` characters with an ellipsis if it is longer."""
    return name if len(name) <= most else name[:most - 1] + '…'


def count(n, thing):
    """Returns '1 run' or '2 runs'."""
    return f'{n} {thing}{"s" * (n != 1)}'


def format_seeds(seeds):
    """Returns seeds with ranges for those that follow each other: 1337 to 1376, 2001."""
    parts, seeds = [], sorted(set(seeds))
    for i, seed in enumerate(seeds):
        if i and seed == seeds[i - 1] + 1:
            parts[-1][1] = seed
        else:
            parts.append([seed, seed])
    return ', '.join(f'{a}' if a == b else f'{a}, {b}' if b == a + 1 else f'{a} to {b}' for a, b in parts)


class Cost(NamedTuple):
    """A cost of an arm, and how the page shows it."""
    title: str
    ratio_field: str | None             # of arm['price']: the same cost over the baseline's
    format: Callable
    interval_field: str | None = None   # of arm['price']: the interval of that ratio


# by field of arm['price'], except params, which is a field of the arm
COSTS = {
    'step_ms': Cost('ms a step', 'step_ratio', lambda x: f'{x:.3g}' if x < 1000 else f'{x:.0f}',
                    'step_ratio_interval'),
    'forward_flops_per_token': Cost('forward FLOPs a token', None, format_si),
    'flops_per_token': Cost('training FLOPs a token', 'flops_ratio', format_si),
    'params': Cost('parameters', None, format_si),
    'peak_bytes': Cost('peak memory', None, lambda x: f'{x / 2 ** 20:,.0f} MiB'),
    'decode_tokens_per_s': Cost('tokens/s decoding', None, lambda x: f'{x:,.0f}'),
    'compile_seconds': Cost('s to compile', None, lambda x: f'{x:.3g}'),
}
# by field of an arm: its loss once it has cost as much as the baseline
EQUAL_COST = {
    'loss_at_equal_time': "loss at the baseline's time",
    'loss_at_equal_flops': "loss at the baseline's FLOPs",
}
# the order of the verdicts on the page; others come after these
VERDICTS = 'better', 'worse', 'equivalent', "can't tell"


def verdict_rank(verdict):
    """Returns the place of a verdict in the order of the page."""
    return VERDICTS.index(verdict) if verdict in VERDICTS else len(VERDICTS)


def verdict_class(verdict):
    """Returns the CSS class, also a variable of page.css, that colors a verdict."""
    return verdict if verdict in ('better', 'worse', 'equivalent') else 'open'
