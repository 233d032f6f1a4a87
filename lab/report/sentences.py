"""Sentences of the page: the answers on top, warnings, the plan, the statistics explained, chart notes."""
from typing import NamedTuple

from lab.report.labels import (
    COSTS,
    EQUAL_COST,
    format_number,
    format_ratio,
    verdict_class,
    with_fixed_spaces,
    with_minus_signs,
)
from lab.stats import MIN_SEEDS

# by plan.match, what a matched baseline has in common with its arm
MATCHED = {
    'params': 'the same number of parameters',
    'flops': 'the same training FLOPs',
    'time': 'the same training time',
}

# -----------------------------------------------------------------------------
# the head of the page

class Answer(NamedTuple):
    """An answer on top of the page: 'helps soft_window: -0.0077 nats, ...', and the price below it."""
    verdict: str
    css_class: str
    title: str
    difference: str
    price: str


def subtitle(r):
    """Returns the config, the number of seeds, the metric and the date, as far as they are known."""
    seeds = f'{len(r.plan.seeds)} seeds' if r.plan.seeds else ''
    return ' · '.join(part for part in (r.config, seeds, r.plan.metric, r.created) if part)


def answers(r):
    """Yields an Answer for each of r.verdicts."""
    for arm, c, title, verdict in r.verdicts:
        # an arm without a comparison, as the baseline, shows its loss
        difference = f'{arm.mean_text}, {arm.finished} runs'
        if c.arm:
            difference = difference_sentence(c, r.plan.percent)
        # an arm with two verdicts shows its price once
        price = price_sentence(r, arm) if title == arm.name else ''
        yield Answer(verdict, verdict_class(verdict), title, with_fixed_spaces(with_minus_signs(difference)),
                     with_fixed_spaces(with_minus_signs(price)))


def difference_sentence(c, percent):
    """Returns a comparison's difference, interval and number of seeds, and what is missing for a verdict."""
    if c.mean is None:
        sentence = 'no mean difference'
    else:
        sentence = f'{format_number(c.mean, sign="+")} nats'
    if c.interval:
        low, high = (format_number(x, sign='+') for x in c.interval)
        sentence += f', {percent}interval {low} to {high}'
    # 'at 5 of 5 seeds' already gives the number of seeds
    if c.why.startswith('at '):
        return f'{sentence}, {c.why}'
    return f'{sentence}, {c.n} seeds' + (f'; {c.why}' if c.why else '')


def price_sentence(r, arm):
    """Returns the known costs on one line: the baseline's in units, other arms' as multiples of it."""
    parts = []
    for field, (value, ratio) in arm.costs.items():
        # these are only in the table
        if value is None or field in ('forward_flops_per_token', 'compile_seconds'):
            continue
        cost = COSTS[field]
        in_units = ratio is None or arm is r.base
        number = cost.format(value) if in_units else f'{format_ratio(ratio)} ×'
        parts.append(f'{number} {cost.title}')
    for field, title in EQUAL_COST.items():
        loss = getattr(arm, field).get('loss')
        if loss is None or arm is r.base:
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
            yield f'{arm.name}: {missing} of {len(arm.runs)} seeds were not run.'

    # arms with the same result of the leak suite share a line
    names_of = {}
    for arm in r.arms:
        if arm.checks.status not in ('ok', '–'):
            finding = ', '.join(part for part in (arm.checks.status, arm.checks.why) if part)
            names_of.setdefault(finding, []).append(arm.name)
    for finding, names in names_of.items():
        subject = ', '.join(names) if len(names) < len(r.arms) else 'All arms'
        yield f'{subject}: leak suite: {finding}.'


# -----------------------------------------------------------------------------
# the last section

def plan_sentences(r):
    """Yields paragraphs on what was fixed before the first run.

    The page may add a table of learning rates.
    """
    p = r.plan
    seeds = ', '.join(map(str, p.seeds)) or '–'
    yield (f'Measured: {p.metric}. Seeds: {seeds}. The loss at the end decides, not the best one on the way: '
           'picking the best of many evaluations rewards luck.')
    if p.match in MATCHED:
        yield (f'Each arm is also compared with a baseline made for it, of {MATCHED[p.match]} '
               f'(match={p.match}).')
    if p.looks:
        looks = p.looks if isinstance(p.looks, str) else ', '.join(map(str, p.looks))
        yield (f'Looks were planned at {looks} seeds; each tests at a stricter level, so that all '
               'together err as rarely as one test would.')
    if p.lr_sweep:
        yield ("Learning rates, as factors on the recipe's: each arm runs with the one marked, whose loss "
               f'was lowest on seed {p.lr_sweep.get("seed")}; the verdicts do not use that seed.')


def statistics_sentences(r):
    """Yields paragraphs that explain the statistics."""
    # the level of a plan with looks is unknown if there is no comparison
    level = f'{r.plan.level:.3g}' if r.plan.level else 'the level of a look'
    holm = ", after Holm's correction for several arms," if len(r.comparisons) > 1 else ''
    delta = f'±{r.plan.delta:g} nats' if r.plan.delta else '±delta'
    note = f' {r.paired.note}.' if r.paired.note else ''
    yield ('A difference is arm minus baseline at the same seed, below zero better. Runs of one seed share '
           'their batches and the initial values of the parameters that both arms have. The interval is '
           "Student's t over the seeds: where the mean of many such seeds plausibly lies. A run counts as "
           'one observation, however much text it is evaluated on.')
    yield (f'Helps and hurts: p of the paired t test is below {level}{holm} and the exact sign-flip test, '
           'which assumes no normal distribution, agrees. Equivalent: two one-sided tests show that the '
           f'difference is within {delta}, set in advance. Can\'t tell: neither is shown; this is not "no '
           f'effect". Screen only: with fewer than {MIN_SEEDS} seeds not even the sign is to be trusted.')
    yield ('The interval over text says how far the difference could move on other text of the same kind, '
           "with these seeds. Steps: the baseline's iterations that the difference is worth at the end of "
           f'its curve.{note}')


# -----------------------------------------------------------------------------
# notes

NO_CHARTS = ('No charts: they need matplotlib, pip install matplotlib; python ab.py --report FOLDER writes '
             'this page again.')
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


def difference_note(percent, outside):
    """Returns the note of the differences while training; outside: arms whose mean is beyond the axis."""
    note = (f'Same seed, same batches. Shaded: {percent}interval of the mean at each iteration, not for all '
            'of them at once. Grey: ±delta.')
    return note + (f' Outside the axis: {", ".join(outside)}.' if outside else '')


def forest_note(percent, over_text, beyond):
    """Returns the note of the forest plot; over_text: it has intervals over text; beyond: it has arrows."""
    note = (f'Thick: {percent}interval over seeds; rings: each seed; grey: ±delta, the least difference that '
            'matters.')
    if over_text:
        note += ' Dashed: interval over text.'
    if beyond:
        note += ' Arrow: beyond the axis.'
    return note
