"""The tables of the page: which columns and rows they have, and how each cell reads."""
from typing import NamedTuple

from lab.report.labels import (
    COSTS,
    EQUAL_COST,
    format_number,
    format_ratio,
    verdict_class,
    with_minus_signs,
)

COLUMNS = {                             # of the table of verdicts, for whom a title is not enough
    'd': 'arm minus baseline, mean over seeds, in nats',
    'ms ×, FLOPs ×': "training cost, times the baseline's",
    'n': 'runs that came to their end / runs planned',
    'loss': 'mean ± standard deviation over seeds',
    'wins': 'seeds at which the arm is lower',
    'p': 'of the paired t test, or of ranks where a run diverged',
    'Holm': 'p, corrected for several arms',
    'flip p': 'of the exact sign-flip test',
    'sd of d': 'over seeds',
    'rho': 'correlation of the arms over seeds; above zero, pairing pays',
    'P(imp)': 'chance that a run of the arm is below a run of the baseline',
    'MDE80': 'the difference that 4 of 5 such studies would find',
    'other text': 'interval of d over text',
    'steps': 'baseline iterations that d is worth; minus: lost',
}


class Cell(NamedTuple):
    text: str
    value: object = None                # what its column sorts by, with every digit; None sorts last
    css_class: str = ''                 # number: set on the right; a verdict's colors it
    details: tuple | list = ()          # lines folded below the text


class Table(NamedTuple):
    titles: list                        # of the columns; the first column names the row
    rows: list                          # lists of Cell
    sortable: bool = False


def number(text, value):
    return Cell(with_minus_signs(text), value, 'number')


def fixed(x, digits=4, sign=''):
    """A number with this many digits."""
    return number(format_number(x, digits, sign), x)


def interval(x):
    """Both ends of an interval, which sorts by its lower end."""
    return number(', '.join(format_number(end, sign='+') for end in x) if x else '–', x[0] if x else None)


def p_value(p):
    return number('<0.001' if p is not None and p < 0.001 else format_number(p, 3), p)


def row_title(name):
    return Cell(name, name)


# -----------------------------------------------------------------------------
# one function a table; None where there is nothing to show

def verdict_table(r):
    # the answer and the price come first, since a phone shows no more
    titles = ['arm', 'verdict', 'd', f'{r.plan.percent}interval', 'ms ×', 'FLOPs ×', 'n', 'loss', 'wins', 'p', 'Holm',
              'flip p', 'sd of d', 'rho', 'P(imp)', 'MDE80', 'other text', 'steps']
    rows = [[
        row_title(title),
        Cell(verdict, verdict, verdict_class(verdict)),
        fixed(c.mean, sign='+'),
        interval(c.interval),
        fixed(arm.costs['step_ms'][1], 3),
        fixed(arm.costs['flops_per_token'][1], 3),
        number(arm.finished, len(arm.losses)),
        number(arm.mean_text, arm.mean),
        number('–' if c.wins is None else f'{c.wins}/{c.n}', c.wins),
        p_value(c.p),
        p_value(c.holm_p),
        p_value(c.flip_p),
        fixed(c.sd),
        fixed(c.rho, 2),
        fixed(c.p_improve, 2),
        fixed(c.mde),
        interval(c.text_interval),
        fixed(c.step_equivalents, 0, '+'),
    ] for arm, c, title, verdict in r.verdicts]
    return Table(titles, rows, sortable=True) if rows else None


def price_table(r):
    """The costs that any arm has, and losses at equal cost."""
    costs = [field for field in COSTS if any(arm.costs[field][0] is not None for arm in r.arms)]
    equal = [field for field in EQUAL_COST if any(getattr(arm, field) for arm in r.arms)]
    if not costs and not equal:
        return None

    def priced(field, value, ratio):
        text = '–' if value is None else COSTS[field].format(value)
        return number(text + (f' ({format_ratio(ratio)} ×)' if ratio is not None and value is not None else ''), value)

    def loss_at(loss=None, iters=None):
        return number(format_number(loss) + (f' at {iters}' if iters is not None else ''), loss)

    titles = ['arm', *(COSTS[field].title for field in costs), *(EQUAL_COST[field] for field in equal)]
    rows = [[row_title(arm.name), *(priced(field, *arm.costs[field]) for field in costs),
             *(loss_at(**getattr(arm, field)) for field in equal)] for arm in r.arms]
    return Table(titles, rows, sortable=True)


def arms_table(r):
    """Each arm's options, and what the leak suite found."""
    rows = [[row_title(arm.name), Cell(arm.variant),
             Cell(', '.join(f'{option}={x}' for option, x in arm.options.items()) or '–'),
             Cell(arm.checks.status, details=arm.checks.lines), Cell(arm.checks.why or '–')] for arm in r.arms]
    return Table(['arm', 'variant', 'options', 'leak suite', 'why'], rows) if rows else None


def failed_table(r):
    rows = [[row_title(arm.name), Cell(run.seed), Cell(run.status), Cell(run.reason)]
            for arm in r.arms for run in arm.runs if run.status not in ('done', 'missing')]
    return Table(['arm', 'seed', 'status', 'reason'], rows) if rows else None


def runs_table(r):
    titles = ['arm', 'seed', 'status', 'final loss', 'best', 'at', 'train loss', 'seconds', 'initial values', 'batches']
    rows = [[row_title(arm.name), number(str(run.seed), run.seed), Cell(run.status), fixed(run.val_loss),
             fixed(run.best_val_loss), fixed(run.best_iter, 0), fixed(run.train_loss), fixed(run.seconds, 1),
             Cell(run.init_hash), Cell(run.batch_hash)] for arm in r.arms for run in arm.runs]
    return Table(titles, rows, sortable=True) if rows else None


def sweep_table(r):
    """Final losses at the learning rates tried, the lowest marked; none for a run that did not come to its end."""
    losses = r.plan.lr_sweep.get('losses') or {}
    factors = list(dict.fromkeys(factor for by_factor in losses.values() for factor in by_factor))
    rows = []
    for name, by_factor in losses.items():
        best = min((x for x in by_factor.values() if x is not None), default=None)
        row = [row_title(name)]
        for factor in factors:
            loss = by_factor.get(factor)
            mark = ' ←' if loss is not None and loss == best else ''
            row.append(number(format_number(loss) + mark, loss))
        rows.append(row)
    return Table(['arm', *(f'{factor} ×' for factor in factors)], rows) if rows else None


def flat_text(x):
    """A value of a list of terms in one line, dicts and lists within it too."""
    if isinstance(x, dict):
        return ', '.join(f'{name} {flat_text(v)}' for name, v in x.items())
    if isinstance(x, list):
        return ', '.join(map(flat_text, x))
    return '–' if x is None else str(x)
