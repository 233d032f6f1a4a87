"""Sentences of the page: the answers on top, warnings, the plan, the statistics, chart notes."""
from typing import NamedTuple

from lab.report.labels import (
    COSTS,
    EQUAL_COST,
    count,
    format_number,
    format_ratio,
    format_seeds,
    verdict_class,
    verdict_rank,
    with_fixed_spaces,
    with_minus_signs,
)

# by plan.match, what a matched baseline has in common with its arm
MATCHED = {
    'params': 'the same number of parameters',
    'flops': 'the same training FLOPs',
    'time': 'the same training time',
}

# -----------------------------------------------------------------------------
# the head of the page

MOST_WARNINGS = 6   # more are folded
MOST_ANSWERS = 8    # more are words alone, and only the better ones are not folded


class Answer(NamedTuple):
    """An answer on top of the page: a verdict in words, and below it numbers and price, where they fit."""
    verdict: str
    css_class: str
    title: str
    rest: str               # of the words, after the verdict
    suspicions: list        # sentences
    lines: list             # numbers, the verdict at equal time, the price


class Group(NamedTuple):
    """The answers that share a verdict."""
    verdict: str
    css_class: str
    answers: list
    folded: bool
    names: str              # of the arms, where they are folded


def subtitle(r):
    """Returns the config, the number of seeds or runs, the metric and the date, as far as they are known."""
    runs = sum(len(arm.losses) for arm in r.arms)
    same_seeds = len({tuple(run.seed for run in arm.runs) for arm in r.arms}) == 1
    seeds = count(len(r.plan.seeds), 'seed') if r.plan.seeds else ''
    size = seeds if same_seeds or not runs else count(runs, 'run')
    if r.over.cells:
        size = f'{count(len(r.over.cells), "cell")}, {count(runs, "run")}'
    return ' · '.join(part for part in (r.config, size, r.plan.metric, r.created) if part)


def tally(r):
    """Returns how many arms have each verdict: '3 better, 1 suspicious · 2 worse'; '' where they are few."""
    compared = [v for v in r.verdicts if v.comparison.arm]
    if len(compared) < 4:
        return ''
    parts = []
    for verdict in dict.fromkeys(v.verdict for v in compared):
        suspicions = [bool(v.comparison.suspicions) for v in compared if v.verdict == verdict]
        suspicious = f', {sum(suspicions)} suspicious' if any(suspicions) else ''
        parts.append(f'{len(suspicions)} {verdict}{suspicious}')
    return ' · '.join(parts)


def noise_sentence(r):
    """Returns what rounding alone does to a run; '' if no arm was trained to know it."""
    sd = r.noise_floor.get('sd')
    if sd is None:
        return ''
    return (f'Noise floor: the baseline with its initial weights moved by a millionth differs from itself by '
            f'{format_number(sd)} {r.plan.unit} (standard deviation over {r.noise_floor.get("n")} seeds).')


def answer_groups(r):
    """Returns the Groups of answers, in the order of r.verdicts; what is undecided is folded.

    Suspicious arms are never folded. If nothing is decided, nothing is folded.
    """
    groups = {}
    for v in r.verdicts:
        groups.setdefault((v.verdict, bool(v.comparison.suspicions)), []).append(v)
    decided = any(verdict_rank(v.verdict) < 3 for v in r.verdicts)
    found = []
    for (verdict, suspicious), members in groups.items():
        undecided = verdict_rank(verdict) > 2 and members[0].comparison.arm and decided
        many = len(r.verdicts) > MOST_ANSWERS + 1 and len(members) > 3 and verdict != 'better'
        names = [v.title for v in members[:10]] + [f'{len(members) - 10} more'] * (len(members) > 10)
        found.append(Group(verdict, verdict_class(verdict), [answer(r, v) for v in members],
                           bool(undecided or many) and not suspicious, ', '.join(names)))
    return found


def answer(r, v):
    """Returns the Answer of an ArmVerdict."""
    arm, c = v.arm, v.comparison
    # words begin with the verdict, which the page colors
    rest = c.words.removeprefix(c.verdict) if c.arm else ''
    if rest == c.words and rest:
        rest = f': {rest}'
    if r.over.cells:
        rest = with_minus_signs(rest)
    lines = []
    if len(r.verdicts) <= MOST_ANSWERS + 1:
        # an arm without a comparison, as the baseline, shows its loss
        if r.over.cells:
            lines += r.over.words.get(c.arm) or []
        else:
            lines.append(difference_sentence(r, c) if c.arm else f'{arm.mean_text}, {arm.finished} runs')
        lines.append(equal_time_sentence(r, c))
        # an arm with two verdicts shows its price once
        if v.title == arm.name:
            lines.append(price_sentence(r, arm, bool(lines[-1])))
    lines = [with_fixed_spaces(with_minus_signs(line)) for line in lines if line]
    return Answer(v.verdict, verdict_class(v.verdict), v.title, rest, c.suspicions, lines)


def in_units(r, x, sign='+'):
    """Returns a number with its unit: +0.0077 nats."""
    return f'{format_number(x, sign=sign)} {r.plan.unit}'.strip()


def interval_text(r, interval, percent=''):
    """Returns ', 95 % interval -0.0095 to -0.0061'; '' for None."""
    if not interval:
        return ''
    low, high = (format_number(x, sign='+') for x in interval)
    return f', {percent}interval {low} to {high}'


def difference_sentence(r, c):
    """Returns a comparison's difference with its interval and its runs."""
    parts = ['no mean difference' if c.mean is None else
             in_units(r, c.mean) + interval_text(r, c.interval, r.plan.percent)]
    if c.n is not None:
        runs = count(c.n, 'seed' if c.paired else 'run')
        parts.append(runs if c.n_base in (None, c.n) else f'{runs} against {c.n_base} of the baseline')
    return '; '.join(parts)


def equal_time_sentence(r, c):
    """Returns the verdict against a baseline trained for as long; '' without one."""
    e = c.equal_time
    words = e.words or e.verdict
    if not words:
        return ''
    numbers = '' if e.mean is None else f' ({in_units(r, e.mean)}{interval_text(r, e.interval)})'
    return f'Against a baseline trained as long: {words}{numbers}'


def price_sentence(r, arm, equal_time=False):
    """Returns the known costs on one line: the baseline's in units, other arms' as multiples of it.

    equal_time: there is a verdict against a baseline trained as long, which says more than the arm's curve.
    """
    parts = []
    for field, (value, ratio) in arm.costs.items():
        # these are only in the table
        if value is None or field in ('forward_flops_per_token', 'compile_seconds'):
            continue
        cost = COSTS[field]
        absolute = ratio is None or arm is r.base
        number = cost.format(value) if absolute else f'{format_ratio(ratio)} ×'
        interval = arm.price.get(cost.interval_field)
        if interval and not absolute:
            number += f' [{", ".join(map(format_ratio, interval))}]'
        parts.append(f'{number} {cost.title}')
    for field, title in EQUAL_COST.items():
        loss = getattr(arm, field).get('loss')
        if loss is None or arm is r.base or equal_time:
            continue
        part = f'{title}: {format_number(loss)}'
        if r.base and r.base.mean is not None:
            part += f' ({format_number(loss - r.base.mean, sign="+")})'
        parts.append(part)
    return ' · '.join(parts)


def warning_sentences(r):
    """Yields what a reader must know before the verdicts: unpaired or failed runs, leaks, skipped checks."""
    # False, not missing: a report of losses from a file says nothing about pairing
    if r.paired.batches_equal is False:
        yield 'The arms did not see the same batches: differences between seeds are not paired.'
    if r.paired.init_equal is False:
        yield 'Parameters that the arms share did not start equal.'
    for arm in r.arms:
        missing = sum(run.status == 'missing' for run in arm.runs)
        failed = sum(run.status not in ('done', 'missing') for run in arm.runs)
        if failed:
            yield f'{arm.name}: {failed} of {len(arm.runs)} runs did not come to their end; see failed runs.'
        if missing:
            yield f'{arm.name}: {missing} of {len(arm.runs)} {"runs" if r.over.cells else "seeds"} were not run.'

    # arms with the same result of the leak suite share a line
    names_of = {}
    for arm in r.arms:
        if arm.checks.status not in ('ok', '–'):
            finding = ', '.join(part for part in (arm.checks.status, arm.checks.why) if part)
            names_of.setdefault(finding, []).append(arm.name)
    for finding, names in names_of.items():
        subject = ', '.join(names) if len(names) < len(r.arms) else 'All arms'
        yield f'{subject}: leak suite: {finding}.'
    for arm in r.arms:
        if arm.no_sample:
            yield f'{arm.name}: no sample: {arm.no_sample.rstrip(".")}. Its losses count all the same.'
    for arm in r.arms:
        for line in check_lines(arm.checks):
            if 'crashed in' in line:
                yield f'{arm.name}: {line}. A check that crashed says nothing about the arm.'


def check_lines(checks):
    """Returns a line for each check: what it found, or only its outcome."""
    outcomes = [f'{check}: {outcome}' for check, outcome in checks.outcomes.items()]
    return checks.lines + [line for line in outcomes if line not in checks.lines]


# -----------------------------------------------------------------------------
# the last section

def plan_sentences(r):
    """Yields paragraphs on what was fixed before the first run.

    The page may add a table of learning rates.
    """
    p = r.plan
    seeds = f' Seeds: {format_seeds(p.seeds)}.' if p.seeds else ''
    yield f'Measured: {p.metric}.{seeds}' + ('' if r.from_file else ' ' + LAST_LOSS)
    if p.design:
        yield p.design
    if p.stored:
        before, new = p.stored.get('before', 0), p.stored.get('new', 0)
        where = f' in {p.store}' if p.store else ''
        yield (f'The baseline stands on {count(before + new, "run")}: {before} that were stored '
               f'before{where}, {new} trained for this study.')
    if p.match in MATCHED:
        yield (f'Each arm is also compared with a baseline made for it, of {MATCHED[p.match]} '
               f'(match={p.match}).')
    if p.looks:
        looks = p.looks if isinstance(p.looks, str) else ', '.join(map(str, p.looks))
        yield (f'Looks were planned at {looks} {"runs of an arm" if p.design else "seeds"}; each tests at a '
               'stricter level, so that all together err as rarely as one test would.')
    if p.lr_sweep:
        yield ("Learning rates, as factors on the recipe's: each arm runs with the one marked, whose loss "
               f'was lowest on seed {p.lr_sweep.get("seed")}; the verdicts do not use that seed.')


def statistics_sentences(r):
    """Yields paragraphs that explain the statistics, of the tests that were used."""
    if r.over.cells:
        yield from over_statistics_sentences(r)
        return
    compared = [c for c in r.comparisons if c.arm]
    paired = any(c.paired for c in compared) or not compared
    unpaired = any(not c.paired and c.test != 'rank sum' for c in compared)
    # the level of a plan with looks is unknown if there is no comparison
    level = f'{r.plan.level:.3g}' if r.plan.level else 'the level of a look'
    holm = ", after Holm's correction for several arms," if len(compared) > 1 else ''
    delta = f'±{r.plan.delta:g} {r.plan.unit}'.strip() if r.plan.delta else '±delta'
    up = 'above' if r.plan.higher_is_better else 'below'

    yield (f'A difference is arm minus baseline, {up} zero better. The interval says where the mean of many '
           'such runs plausibly lies. A run counts as one observation'
           + ('.' if r.from_file else ', however much text it is evaluated on.'))
    if paired:
        note = f' {r.paired.note}.' if r.paired.note else ''
        shared = (' Runs of one seed share their batches and the initial values of the parameters that both '
                  f'arms have.{note}') * (not r.from_file)
        yield (f"Paired: arm minus baseline at the same seed; Student's t over the seeds.{shared} Better and "
               f'worse: its p is below {level}{holm} and the exact sign-flip test, which assumes no normal '
               'distribution, agrees.')
    if unpaired:
        yield ('Unpaired: all runs of the arm against all runs of the baseline, whatever their seeds, by '
               f"Welch's test, which does not assume equal spreads. Better and worse: its p is below {level}"
               f'{holm.rstrip(",")}.')
    yield (f'Equivalent: two one-sided tests show that the difference is within {delta}, set in advance. '
           'Can\'t tell: neither is shown; this is not "no effect".')
    if any(c.shrunk is not None for c in compared):
        yield ('Shrunk: the difference to expect, if ideas are as published ones are. A claim that is picked '
               'because it looks good overstates, and this takes off what that is worth on average. P(better) '
               f'and P(within {delta}) come from the same.')
    if any(c.text_interval or c.step_equivalents for c in compared):
        yield ('The interval over text says how far the difference could move on other text of the same '
               "kind, with these seeds. Steps: the baseline's iterations that the difference is worth at the "
               'end of its curve.')


def over_statistics_sentences(r):
    """Yields paragraphs that explain the statistics of a study over texts and options."""
    delta = f'±{r.plan.delta:g} {r.plan.unit}'.strip()
    yield ('A difference is arm minus baseline in one cell, at the same seeds, below zero better. The texts are taken '
           'as a sample of texts, the other factors as fixed: each text has one difference, at the centre of the other '
           'factors, and the mean over texts has the interval of Hartung and Knapp. Better and worse: its p is below '
           f'{r.plan.level:.3g}, after Holm\'s correction for several arms; a part of the level is for numbers of '
           f'diverged runs. Equivalent: two one-sided tests show that the mean is within {delta}. Can\'t tell: neither '
           'is shown; this is not "no effect".')
    yield ('The mean speaks of these texts. What a new text of such a kind may show is the prediction interval, which '
           'adds tau, the standard deviation of the effect between texts beyond the noise of runs.')
    yield ("Losses near the best learning rate are a parabola in the rate's logarithm: with three rates each arm is "
           'also compared at its own best, or at the best of the grid where that is at its edge. The speedup is the '
           "baseline's size or iterations over what the arm needs for the same loss.")


# -----------------------------------------------------------------------------
# notes

NO_CHARTS = ('No charts: they need matplotlib, pip install matplotlib; python ab.py --report FOLDER writes '
             'this page again.')
LAST_LOSS = ('The loss at the end decides, not the best one on the way: picking the best of many evaluations '
             'rewards luck.')
LOSS_NOTE = ('Mean over the seeds that came to their end; shaded: lowest to highest. Cut off above, where '
             'arms look alike.')
COST_NOTE = 'Mean, and lowest to highest seed. Lower and further left is better.'
POSITION_NOTE = 'Mean over seeds. An idea that uses the past better falls to the right.'


def equal_cost_note(r):
    """Returns the note of the price table; '' without losses at equal cost."""
    if not any(getattr(arm, field) for arm in r.arms for field in EQUAL_COST):
        return ''
    return ("Losses at the baseline's time or FLOPs are read off the arm's own curve; its schedule was not "
            'made to end there, so they are too high.')


def drawn_note(r):
    """Returns which arms are drawn, where there are too many for one chart."""
    arms = sum(arm is not r.base for arm in r.arms)
    drawn = sum(arm is not r.base for arm in r.drawn)
    return '' if drawn == arms else f' The first {drawn} of {arms} arms by verdict.'


def difference_note(percent, paired, null, outside):
    """Returns the note of the differences while training.

    null: names of arms that are paired though the others are not. outside: those whose mean is beyond the axis.
    """
    what = 'Same seed, same batches' if paired else "Mean of the arm's runs minus mean of the baseline's"
    what += f'; {", ".join(null)}: at the same seeds' * bool(null)
    note = (f'{what}. Shaded: {percent}interval of the mean at each iteration, not for all of them at once. '
            'Grey: ±delta.')
    return note + (f' Outside the axis: {", ".join(outside)}.' if outside else '')


def forest_note(r, paired, over_text, beyond):
    """Returns the note of the forest plot.

    paired: of each of its rows. over_text: it has intervals over text. beyond: it has arrows.
    """
    rings = 'each seed' if all(paired) else "each run minus the baseline's mean"
    if r.over.cells:
        rings = 'each run of a cell'
    if any(paired) and not all(paired):
        rings = "each seed, or where seeds are not paired each run minus the baseline's mean"
    note = (f'Thick: {r.plan.percent}interval; rings: {rings}; grey: ±delta, the least difference '
            'that matters.')
    if over_text:
        note += ' Dashed: interval over text.'
    if beyond:
        note += ' Arrow: beyond the axis.'
    return note


def cell_forest_note(over, lengths, beyond):
    """Returns the note of an arm's plot of cells; over: its means over texts.

    lengths: there are shorter runs. beyond: it has arrows.
    """
    note = 'Dots: cells; squares: texts, at the centre of the other factors; bars: two standard errors. Diamond: the ' \
           'mean over texts and its interval.'
    if over.prediction:
        note += ' Broad bar: where another text is expected.'
    return note + ' Shorter runs, without bars, are not in the mean.' * lengths + ' Arrow: beyond the axis.' * beyond
