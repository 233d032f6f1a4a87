"""Verdicts in words: the text table for a terminal, and a sentence for each comparison."""
import re

from lab.stats import FLIP_FLOOR, MAX_SEEDS, MIN_SEEDS, has_more_bad

# numbers from here on have no decimals
LARGE = 1e6


def text_table(verdicts, extra=None, unit='nats', sentences=None):
    """Returns lab.stats.Verdicts as text: a row for each arm, a sentence for each comparison, and a legend.

    extra: further columns, {title: {arm: text}}. unit: of the losses; '': unknown. sentences: {arm: verdict in
    words}, by default verdict_sentence()'s.
    """
    extra = extra or {}
    interval_title = f'difference [{100 * (1 - verdicts.level):.3g} %]'
    rows = [['arm', 'runs', 'loss', interval_title, 'shrunk', 'P(better)', 'p', *extra, 'verdict']]
    # one row per arm
    for name, arm in verdicts.arms.items():
        # the baseline has no comparison, and empty cells
        c = verdicts.comparisons.get(name)
        more = [column.get(name, '') for column in extra.values()]
        rows.append([name, str(c.n if c else len(arm.losses)), loss_cell(arm), *comparison_cells(c), *more,
                     c.verdict if c else 'baseline'])
    lines = align(rows)
    sentences = sentences or {arm: verdict_sentence(c, verdicts) for arm, c in verdicts.comparisons.items()}
    words = [f'{arm}: {sentence}' for arm, sentence in sentences.items()]
    return '\n'.join([*lines, '', *words, '', *legend_lines(verdicts, unit)])


def align(rows):
    """Returns a line for each row of cells, with columns as wide as their widest cell."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    return ['  '.join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]


def loss_cell(arm):
    """Returns mean±sd of an arm's runs, or how many diverged."""
    if arm.diverged:
        return f'diverged {len(arm.diverged)}/{len(arm.losses)}'
    if arm.mean is None:
        return '-'
    return f'{arm.mean:{".4f" if abs(arm.mean) < LARGE else ".4g"}}±{short_number(arm.sd)}'


def comparison_cells(c):
    """Returns the cells of a Comparison, from the difference to p; empty ones for None."""
    if c is None:
        return [''] * 4
    difference = f'{short_number(c.mean, sign="+")} [{format_interval(c.interval)}]' if c.interval else '-'
    return [difference, short_number(c.shrunk, sign='+'), format_chance(c.p_better), format_p(c.holm_p)]


def verdict_sentence(c, verdicts):
    """Returns a Comparison's verdict on one line, with its grounds, or with what it would take to get one."""
    parts = [c.verdict]
    if c.verdict in ('better', 'worse'):
        if c.mean is not None:
            parts = [f'{c.verdict} by {short_number(abs(c.mean))} (shrunk {short_number(abs(c.shrunk))})']
            chance = c.p_better if c.verdict == 'better' else 1 - c.p_better
            parts.append(f'P({c.verdict}) {format_chance(chance)}')
        parts.append(grounds(c, verdicts))
    elif c.verdict == 'equivalent':
        equal = c.sd_base == c.sd_var and c.mean == 0 and not c.sd
        parts = ['equivalent: equal to the bit' if equal else f'equivalent: within ±{verdicts.delta:g}']
        parts += [] if equal else [f'P(within) {format_chance(c.p_within)}']
        parts.append(grounds(c, verdicts))
    else:
        parts += what_is_missing(c, verdicts)
    parts += what_went_wrong(c)
    return '; '.join(parts)


def grounds(c, verdicts):
    """Returns on what a verdict rests: decided at 6 runs against 41 of the baseline; or at 5 of 5 seeds."""
    if verdicts.design == 'welch':
        return f'decided at {c.decided_at} runs against {c.n_base} of the baseline'
    if verdicts.design == 'paired':
        return f'decided at {c.decided_at} pairs'
    if c.wins is None:
        return f'{c.n} runs against {c.n_base}, unpaired'
    if c.verdict == 'equivalent':
        return f'{c.n} seeds'
    return f'at {c.wins if c.verdict == "better" else c.n - c.wins} of {c.n} seeds'


def what_went_wrong(c):
    """Yields what is to be said of runs that diverged or stand out, and what that kept from being said."""
    for key, who, n in ('var', 'it', c.n), ('base', 'the baseline', c.n_base):
        if c.diverged[key]:
            yield f'{who} diverged in {c.diverged[key]} of {n} runs'
    if far := c.bad['var'] - c.diverged['var']:
        yield f'{far} of its {c.n} runs {"is" if far == 1 else "are"} far worse than the others, and not in the mean'
    if c.side < 0 and c.verdict == "can't tell" and has_more_bad(c.bad, c.n_base, c.n):
        yield 'with more bad runs than the baseline it is not called better'


def what_is_missing(c, verdicts):
    """Yields why a comparison has no verdict, the largest plausible effects, and how many runs would settle it."""
    fixed, level = verdicts.design == 'fixed', verdicts.level
    if fixed and min(c.n, c.n_base) < MIN_SEEDS:
        yield f'{min(c.n, c.n_base)} seeds give no verdict, {MIN_SEEDS} do'
    elif fixed and c.holm_p < level and c.flip_p is not None and c.flip_p > FLIP_FLOOR:
        yield f'the sign-flip test does not agree, p {format_p(c.flip_p)}'
    if c.mean is None:
        yield f'too few runs: the first look is at {c.next_look}' if c.next_look else 'too few good runs'
        return
    yield plausible_effects(c)
    if c.runs_to_settle:
        more = c.runs_to_settle - c.n
        unit = ('pair' if verdicts.design == 'paired' else 'run') + 's' * (more != 1)
        runs = f'a new study of about {c.runs_to_settle} seeds' if fixed else f'about {more} more {unit}'
        yield f'{runs} would settle it, 4 times in 5'
    elif c.settle_chance is not None:
        yield f'even {MAX_SEEDS} {"seeds" if fixed else "runs"} would settle it only {c.settle_chance:.0%} of the time'


def plausible_effects(c):
    """Returns the ends of the interval in words: at most .0071 better or .0035 worse."""
    low, high = c.interval
    if low < 0 < high:
        return f'at most {short_number(-low)} better or {short_number(high)} worse'
    least, most = sorted(map(abs, c.interval))
    return f'{short_number(least)} to {short_number(most)} {"better" if high <= 0 else "worse"} by its interval alone'


def legend_lines(verdicts, unit):
    """Yields the lines of a legend: columns, the verdicts that occur, and the looks."""
    level, within = f'{verdicts.level:.3g}', f'within ±{verdicts.delta:g}'
    after_holm = ' after Holm' if len(verdicts.comparisons) > 1 else ''
    flip = ', at whichever look'
    if verdicts.design == 'fixed':
        paired = any(c.flip_p is not None for c in verdicts.comparisons.values())
        flip = ', and the sign-flip test agrees' if paired else ''
    meanings = {
        'better, worse': f'p below {level}{after_holm}{flip}',
        'equivalent': f'shown to be {within}, by one-sided tests at {level}{after_holm}',
        "can't tell": f'neither a difference nor equivalence {within} is shown; this is not "no effect"',
    }
    corrected = '' if verdicts.design == 'fixed' else ', corrected for early stops'
    yield f'difference: arm - {verdicts.baseline}{unit and ", "}{unit}{corrected}'
    yield 'shrunk: what is to be expected, as most ideas do little'
    # only the verdicts that occur
    for words, meaning in meanings.items():
        if any(c.verdict in words for c in verdicts.comparisons.values()):
            yield f'{words}: {meaning}'
    if verdicts.looks:
        yield f'looks at {", ".join(map(str, verdicts.looks))} {"pairs" if verdicts.design == "paired" else "runs"}'


def short_number(x, digits=4, sign=''):
    """Returns .0024, 1e-07 if the digits would all be 0, 1e+30 from LARGE on; '-' for None."""
    if x is None:
        return '-'
    if abs(x) >= LARGE:
        return f'{x:{sign}.4g}'
    text = f'{x:{sign}.{digits}f}' if not x or abs(x) >= 0.5 * 10 ** -digits else f'{x:{sign}.0e}'
    return re.sub(r'^([+-]?)0\.', r'\1.', text)


def format_interval(interval):
    """Returns both ends with their signs: -.0004, +.0171."""
    return ', '.join(short_number(x, sign='+') for x in interval)


def format_p(p):
    """Returns .056, <.001 or 1; '-' for None."""
    if p is None:
        return '-'
    return '<.001' if p < 0.001 else '1' if p > 0.9995 else short_number(p, 3)


def format_chance(p):
    """Returns .97; '-' for None. What rounds to 0 or 1 is <.01 or >.99."""
    if p is None:
        return '-'
    return '<.01' if p < 0.005 else '>.99' if p > 0.995 else short_number(p, 2)
