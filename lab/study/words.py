"""Verdicts in words: the text table for a terminal, and a sentence for each comparison."""
import re

from lab.stats import MAX_SEEDS, MIN_SEEDS


def text_table(verdicts, extra=None):
    """Returns lab.stats.Verdicts as text: a row for each arm, a sentence for each comparison, and a legend.

    extra: further columns, {title: {arm: text}}.
    """
    extra = extra or {}
    interval_title = f'd vs {verdicts.baseline} [{100 * (1 - verdicts.level):.3g}% t]'
    rows = [['variant', 'n', 'loss', interval_title, 'sd_d', 'rho', 'p', 'Holm', 'flip p', 'wins', 'P(imp)',
             'MDE80', *extra, 'verdict']]
    # one row per arm
    for name, arm in verdicts.arms.items():
        # the baseline has no comparison, and empty cells
        c = verdicts.comparisons.get(name)
        if arm.diverged:
            loss = f'diverged {len(arm.diverged)}/{verdicts.n}'
        else:
            loss = f'{arm.mean:.4f}±{short_number(arm.sd)}'
        more = [column.get(name, '') for column in extra.values()]
        rows.append([name, str(verdicts.n), loss, *(comparison_cells(c) if c else [''] * 9), *more,
                     c.verdict if c else 'baseline'])
    # columns as wide as their widest cell
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = ['  '.join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
    sentences = [f'{arm}: {verdict_sentence(c, verdicts)}' for arm, c in verdicts.comparisons.items()]
    return '\n'.join([*lines, '', *sentences, '', *legend_lines(verdicts)])


def comparison_cells(c):
    """Returns the nine cells of a Comparison, from the difference to MDE80."""
    difference = f'{short_number(c.mean, sign="+")} [{format_interval(c.interval)}]' if c.interval else '-'
    return [difference, short_number(c.sd), short_number(c.rho, 2), format_p(c.p), format_p(c.holm_p),
            format_p(c.flip_p), f'{c.wins}/{c.n}', short_number(c.p_improve, 2), short_number(c.mde)]


def verdict_sentence(c, verdicts):
    """Returns a Comparison's verdict on one line, with its grounds, or with what it would take to get one."""
    # the verdict, and runs that diverged
    parts = [c.verdict]
    if c.verdict == 'screen':
        parts.append(f'{c.n} seeds give no verdict, {MIN_SEEDS} do')
    for key, who in ('var', 'it'), ('base', 'the baseline'):
        if c.diverged[key]:
            parts.append(f'{who} diverged in {c.diverged[key]} of {c.n} runs')

    # its grounds, or what is missing
    if c.test == 'rank sum' and c.verdict != 'screen':
        parts.append(f'by ranks, p {format_p(c.holm_p)}')
    elif c.verdict in ('better', 'worse'):
        seeds = c.wins if c.mean < 0 else c.n - c.wins
        parts[0] += f' by {short_number(abs(c.mean))}, at {seeds} of {c.n} seeds'
        if c.equivalent:
            parts.append(f'so little that it also counts as equivalent, within ±{verdicts.delta:g}')
    elif c.verdict == 'equivalent':
        differs = c.sd or c.mean
        parts.append(f'the difference is within ±{verdicts.delta:g}' if differs else 'equal to the bit')
    elif c.verdict == "can't tell":
        parts += what_is_missing(c, verdicts.level, verdicts.delta)

    # at rho <= 0 pairing does not save seeds, so the unpaired p is shown too
    if c.rho is not None and c.rho <= 0 and c.verdict != 'screen':
        parts.append(f'seeds do not pair, rho {short_number(c.rho, 2)}: unpaired p {format_p(c.welch_p)}')
    return '; '.join(parts)


def what_is_missing(c, level, delta):
    """Yields the reasons for a "can't tell" without diverged runs, and the number of seeds to settle it."""
    # significant by the t test, but not by the sign-flip test, or not after Holm
    if c.holm_p < level:
        yield f'the sign-flip test does not agree, p {format_p(c.flip_p)}'
    elif c.p < level:
        yield f'p {format_p(c.p)} is {format_p(c.holm_p)} after Holm'

    # seeds to add, if the difference stays what it is; None: more than MAX_SEEDS in all
    more_for_difference, more_for_equivalence = (
        seeds and max(seeds - c.n, 1) for seeds in (c.seeds_difference, c.seeds_equivalence))
    more = more_for_difference or more_for_equivalence
    seeds = f'about {more} more seed{"s" * (more != 1)} would'
    mean = short_number(c.mean, sign='+')
    if more_for_difference:
        sooner = more_for_equivalence and more_for_equivalence < more_for_difference
        also = f', {more_for_equivalence} that it is within ±{delta:g}' if sooner else ''
        yield f'{seeds} settle a difference of {mean}{also}'
    elif more_for_equivalence:
        yield f'{seeds} show that it is within ±{delta:g}'
    else:
        yield f'not even {MAX_SEEDS} seeds would settle a difference of {mean}'


def legend_lines(verdicts):
    """Yields the lines of a legend: columns, the verdicts that occur, and the next look."""
    level, within = f'{verdicts.level:.3g}', f'within ±{verdicts.delta:g}'
    after_holm = ' after Holm' if len(verdicts.comparisons) > 1 else ''
    one_side = ': all seeds on one side' if verdicts.n == 5 else ''
    meanings = {
        'better, worse': f'p below {level}{after_holm}, and the sign-flip test agrees{one_side}',
        'equivalent': f'shown to be {within}, by one-sided tests at {level}{after_holm}',
        "can't tell": f'neither a difference nor equivalence {within} is shown; this is not "no effect"',
        'screen': 'too few seeds; not even the sign is to be trusted',
    }
    yield ("d: variant - baseline, in nats; P(imp): a variant's run beats a baseline's; "
           'MDE80: what 4 of 5 such studies would find')
    # only the verdicts that occur
    for words, meaning in meanings.items():
        if any(c.verdict in words for c in verdicts.comparisons.values()):
            yield f'{words}: {meaning}'
    if later := [look for look in verdicts.looks if look > verdicts.n]:
        looks = ', '.join(map(str, verdicts.looks))
        yield f'looks at {looks} seeds, each at {level}: the next is at {later[0]}'


def short_number(x, digits=4, sign=''):
    """Returns .0024, or 1e-07 if the digits would all be 0; '-' for None."""
    if x is None:
        return '-'
    text = f'{x:{sign}.{digits}f}' if not x or abs(x) >= 0.5 * 10 ** -digits else f'{x:{sign}.0e}'
    return re.sub(r'^([+-]?)0\.', r'\1.', text)


def format_interval(interval):
    """Returns both ends with their signs: -.0004, +.0171."""
    return ', '.join(short_number(x, sign='+') for x in interval)


def format_p(p):
    """Returns .056, or <.001; '-' for None."""
    return '-' if p is None else '<.001' if p < 0.001 else short_number(p, 3)
