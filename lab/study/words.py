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

def over_sentence(over, arm, factors):
    """Returns an arm's verdict over texts on one line: what it does here, and what to expect on another text.

    over: lab.blocked.Over. factors: {factor: [level as typed]}.
    """
    a = over.arms[arm]
    if a.over is None:
        return '; '.join([a.verdict, a.refused['over'], *diverged_runs(a)])
    mean, texts = a.over.mean, count(a.over.n_texts, 'text')
    if a.verdict in ('better', 'worse') and (mean < 0) == (a.verdict == 'better'):
        parts = [f'{a.verdict} here by {short_number(abs(mean))}, {format_ends(a.over.interval)}, mean of {texts}']
    elif a.verdict == 'equivalent':
        parts = [f'equivalent here: within ±{over.delta:g} in the mean of {texts}']
    else:
        parts = [f'{a.verdict}: here {plausible_effects(a.over)}, mean of {texts}']
    if a.over.prediction:
        parts.append(f'on another text we expect {format_ends(a.over.prediction)}')
    if a.early:
        parts.append(f'early: {differences_at_lengths(a, factors)}')
    return '; '.join([*parts, *diverged_runs(a)])


def diverged_runs(a):
    """Yields which runs of an arm over texts, a lab.blocked.ArmOver, and of its baseline diverged."""
    for key, who, n in ('var', 'it', a.n), ('base', 'the baseline', a.n_base):
        if a.bad[key]:
            yield f'{who} diverged in {a.bad[key]} of {n} runs'


def over_sentences(over, arm, factors):
    """Returns sentences on what else a study over texts shows of an arm: spread, rates, speed, and what it cannot."""
    a, found = over.arms[arm], []
    if a.over is not None and a.over.tau is not None:
        tau = f'{short_number(a.over.tau)} [{", ".join(map(short_number, a.over.tau_interval))}]'
        found.append(f'better on {a.signs["better"]} of {count(len(a.texts), "text")}; standard deviation of its '
                     f'effect between texts, tau, {tau}')
    if a.over is not None and a.over.prediction:
        found.append(f'P(better on another text) {format_chance(a.over.p_new_better)}')
    if best := a.own_best:
        how = f'{best.by_parabola} of {best.by_parabola + best.by_grid} pairs by parabola'
        how += ', the others by the best of the grid' * (best.by_grid > 0)
        ends = f'{short_number(best.over.mean, sign="+")}, {format_ends(best.over.interval)}' if best.over else '-'
        rates = ', '.join(best_rates(best, name, factors['learning_rate']) for name in (over.baseline, arm))
        found.append(f'each at its own best learning rate: {ends}; {how}; {rates}')
    for factor, slope in a.slopes.items():
        found.append(f'each doubling of {factor} changes the difference by {short_number(slope.slope, sign="+")}, '
                     f'{format_ends(slope.interval)}')
    found += [f'effective speedup in {factor}: {speedup_text(speedup)}' for factor, speedup in a.speedups.items()]
    if len(a.lengths) > 1 and not a.early:
        found.append(f'by length: {differences_at_lengths(a, factors)}')
    names = dict(own_best='own best learning rate')
    refused = {what: why for what, why in a.refused.items() if what != 'over'}
    return found + [f'{names.get(what, f"speedup in {what}")}: {why}' for what, why in refused.items()]


def best_rates(best, arm, levels):
    """Returns the range of an arm's best learning rates over texts, and how many lie at an edge of the grid."""
    optima = [optimum for optimum in best.optima if optimum.arm == arm]
    low, high = (as_level(f(optimum.rate for optimum in optima), levels) for f in (min, max))
    edges = sum(optimum.edge is not None for optimum in optima)
    return f'{arm} at {low if low == high else f"{low} to {high}"}' + f' ({edges} at an edge)' * (edges > 0)


def as_level(x, levels):
    """Returns a number as the levels of its factor were typed: x1.41 or 0.00141."""
    return f'x{x:.3g}' if levels[0].startswith('x') else f'{x:.3g}'


def speedup_text(speedup):
    """Returns 1.21x [1.10, 1.33]; with texts that only bound it, those of each text."""
    if speedup.mean is not None:
        interval = f' [{", ".join(f"{x:.2f}" for x in speedup.interval)}]' if speedup.interval else ''
        return f'{speedup.mean:.2f}x{interval}, by {speedup.method}'
    factors = [f'{text} {speedup.bounds.get(text, "")} {x:.2f}x' for text, x in speedup.factors.items()]
    return f'{", ".join(" ".join(text.split()) for text in factors)}, by {speedup.method}'


def differences_at_lengths(a, factors):
    """Returns the mean differences at each length of training: -.1410 at 500, +.0080 at 2000."""
    return ', '.join(f'{short_number(at.over.mean, sign="+")} at {as_level(at.length, factors["max_iters"])}'
                     for at in a.lengths)


def over_table(over, arm, cells, factors):
    """Returns an arm's cells as text, a row for each, and below them all that is said of it.

    cells: lab.study.schema.ReportedCells.
    """
    rows = [['cell', over.baseline, arm, 'difference', 'se', 'runs']]
    for cell in cells:
        found, losses = cell.differences[arm], [cell.losses[name] for name in (over.baseline, arm)]
        rows.append([cell.name, *map(mean_loss, losses), short_number(found.difference, sign='+'),
                     short_number(found.se), ' and '.join(str(len(runs)) for runs in losses)])
    return '\n'.join([*align(rows), '', f'{arm}: {over_sentence(over, arm, factors)}',
                      *(f'  {sentence}' for sentence in over_sentences(over, arm, factors))])


def mean_loss(losses):
    """Returns the mean of a cell's losses, or how many diverged."""
    if lost := sum(x == inf for x in losses):
        return f'diverged {lost}/{len(losses)}'
    return f'{sum(losses) / len(losses):.4f}' if losses else '-'


def format_ends(interval):
    """Returns both ends in words: -.0210 to +.0030."""
    return ' to '.join(short_number(x, sign='+') for x in interval)


def count(n, thing):
    """Returns '1 text' or '2 texts'."""
    return f'{n} {thing}{"s" * (n != 1)}'
