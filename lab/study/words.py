"""Verdicts in words: the text table for a terminal, and a sentence for each comparison."""
import re
from math import inf

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


# -----------------------------------------------------------------------------
# studies over texts and options

def over_sentence(over, arm):
    """Returns an arm's verdict over texts on one line: what it does here, and what is to be expected elsewhere.

    over: lab.blocked.Over.
    """
    a, parts = over.arms[arm], []
    if a.over is None:
        return f'{a.verdict}; no cell has runs of both'
    mean, texts = a.over.mean, count(a.over.n_texts, 'text')
    if a.verdict in ('better', 'worse'):
        parts = [f'{a.verdict} here by {short_number(abs(mean))}, {format_ends(a.over.interval)}, mean of {texts}']
    elif a.verdict == 'equivalent':
        parts = [f'equivalent here: within ±{over.delta:g} in the mean of {texts}']
    else:
        parts = [f'{a.verdict}; {plausible_effects(a.over)} here, mean of {texts}']
    if a.over.prediction:
        parts.append(f'on another text we expect {format_ends(a.over.prediction)}')
    if a.early:
        parts.append(f'early: {at_lengths(a)}')
    for key, who in ('var', 'it'), ('base', 'the baseline'):
        if a.bad[key]:
            parts.append(f'{who} diverged in {count(a.bad[key], "run")}')
    return '; '.join(parts)


def over_sentences(over, arm):
    """Returns the sentences on what else a study over texts shows of an arm: rates, speed, what it cannot say."""
    a, found = over.arms[arm], []
    if a.over is None:
        return found
    if a.over.tau is not None:
        better = sum(text.difference < 0 for text in a.texts)
        interval = f' [{", ".join(map(short_number, a.over.tau_interval))}]' if a.over.tau_interval else ''
        found.append(f'better on {better} of {count(len(a.texts), "text")}, between which it differs by '
                     f'{short_number(a.over.tau)}{interval} (tau); P(better on another text) '
                     f'{format_chance(a.over.p_new_better)}')
    if a.own_best:
        best = a.own_best
        how = f'{best.by_parabola} by parabola, {best.by_grid} by the best of the grid'
        found.append(f'each at its own best learning rate: {short_number(best.over.mean, sign="+")}, '
                     f'{format_ends(best.over.interval)} ({how}); {best_rates(over, arm)}')
    for factor, slope in a.slopes.items():
        found.append(f'with {factor} doubled the difference changes by {short_number(slope.slope, sign="+")}, '
                     f'{format_ends(slope.interval)}')
    for factor, speedup in a.speedups.items():
        found.append(f'effective speedup in {factor}: {speedup_text(speedup)}')
    if len(a.lengths) > 1:
        found.append(f'by length: {at_lengths(a)}')
    return [*found, *a.refused.values()]


def best_rates(over, arm):
    """Returns the best learning rates of an arm and the baseline, the lowest and the highest over texts and levels."""
    words = []
    for name in over.baseline, arm:
        rates = [best.rate for best in over.arms[arm].own_best.optima if best.arm == name]
        low, high = f'{min(rates):.3g}', f'{max(rates):.3g}'
        words.append(f'{name} at {low if low == high else f"{low} to {high}"}')
    return ', '.join(words)


def speedup_text(speedup):
    """Returns 1.21x [1.10, 1.33] by power law; or what the texts that allow no estimate still say."""
    interval = f' [{", ".join(f"{x:.2f}" for x in speedup.interval)}]' if speedup.interval else ''
    mean = f'{speedup.mean:.2f}x{interval}' if speedup.mean is not None else 'not to be told'
    bounds = [f'{text}: {bound} {speedup.factors[text]:.2f}x' for text, bound in speedup.bounds.items()]
    return '; '.join([f'{mean}, by {speedup.method}', *bounds])


def at_lengths(a):
    """Returns the differences at each length: -.1410 at 500, +.0080 at 2000."""
    return ', '.join(f'{short_number(at.over.mean, sign="+")} at {at.length:g}' for at in a.lengths)


def over_table(over, arm, cells):
    """Returns an arm's cells as text, a row for each, below them its verdict and all sentences.

    cells: schema.ReportedCells, in the order of the arm's.
    """
    rows = [['cell', over.baseline, arm, 'difference', 'se', 'runs']]
    for cell, found in zip(cells, over.arms[arm].cells):
        rows.append([cell.name, *(mean_loss(cell.losses.get(name, [])) for name in (over.baseline, arm)),
                     short_number(found.difference, sign='+'), short_number(found.se), f'{found.n}+{found.n_base}'])
    return '\n'.join([*align(rows), '', f'{arm}: {over_sentence(over, arm)}',
                      *(f'    {sentence}' for sentence in over_sentences(over, arm))])


def mean_loss(losses):
    """Returns the mean of a cell's losses, or that some diverged."""
    if not losses:
        return '-'
    if lost := sum(x == inf for x in losses):
        return f'diverged {lost}/{len(losses)}'
    return f'{sum(losses) / len(losses):.4f}'


def format_ends(interval):
    """Returns both ends in words: -.0210 to +.0030."""
    return ' to '.join(short_number(x, sign='+') for x in interval)


def count(n, thing):
    """Returns '1 text' or '2 texts'."""
    return f'{n} {thing}{"s" * (n != 1)}'
