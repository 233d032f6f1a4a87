"""Tables of the page: their columns, rows and cells."""
from typing import NamedTuple

from lab.report.labels import (
    COSTS,
    EQUAL_COST,
    format_number,
    format_ratio,
    verdict_class,
    with_minus_signs,
)

# the columns of the table of verdicts, explained below it
COLUMNS = {
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
    """A cell of a table."""
    text: str
    value: object = None                # the column is sorted by this, all digits kept; None sorts last
    css_class: str = ''                 # number: flush right; a verdict's class colors it
    details: tuple | list = ()          # lines folded below the text


class Table(NamedTuple):
    """A table of the page."""
    titles: list                        # of the columns; the first column names the row
    rows: list                          # lists of Cell
    sortable: bool


def make_table(rows, sortable=False):
    """Returns the Table of rows, {column's title: Cell} each; None without rows."""
    # all rows have the titles of the first
    return Table([*rows[0]], [[*row.values()] for row in rows], sortable) if rows else None


def name_cell(name):
    return Cell(name, name)


def number_cell(text, value):
    return Cell(with_minus_signs(text), value, 'number')


def fixed_cell(x, digits=4, sign=''):
    """Returns the Cell of a number with this many decimals."""
    return number_cell(format_number(x, digits, sign), x)


def interval_cell(x):
    """Returns the Cell of an interval, which sorts by its lower end."""
    if not x:
        return number_cell('–', None)
    return number_cell(', '.join(format_number(end, sign='+') for end in x), x[0])


def p_cell(p):
    return number_cell('<0.001' if p is not None and p < 0.001 else format_number(p, 3), p)


# -----------------------------------------------------------------------------
# one function per table; each returns a Table, or None where there is nothing to show

def verdict_table(r):
    # the answer and the price come first, because a phone shows little more
    return make_table([{
        'arm': name_cell(title),
        'verdict': Cell(verdict, verdict, verdict_class(verdict)),
        'd': fixed_cell(c.mean, sign='+'),
        f'{r.plan.percent}interval': interval_cell(c.interval),
        'ms ×': fixed_cell(arm.costs['step_ms'][1], 3),
        'FLOPs ×': fixed_cell(arm.costs['flops_per_token'][1], 3),
        'n': number_cell(arm.finished, len(arm.losses)),
        'loss': number_cell(arm.mean_text, arm.mean),
        'wins': number_cell('–' if c.wins is None else f'{c.wins}/{c.n}', c.wins),
        'p': p_cell(c.p),
        'Holm': p_cell(c.holm_p),
        'flip p': p_cell(c.flip_p),
        'sd of d': fixed_cell(c.sd),
        'rho': fixed_cell(c.rho, 2),
        'P(imp)': fixed_cell(c.p_improve, 2),
        'MDE80': fixed_cell(c.mde),
        'other text': interval_cell(c.text_interval),
        'steps': fixed_cell(c.step_equivalents, 0, '+'),
    } for arm, c, title, verdict in r.verdicts], sortable=True)


def price_table(r):
    """Returns the table of the costs that any arm has, and of losses at equal cost."""
    # columns that are empty for all arms are left out
    costs = [field for field in COSTS if any(arm.costs[field][0] is not None for arm in r.arms)]
    equal_costs = [field for field in EQUAL_COST if any(getattr(arm, field) for arm in r.arms)]
    if not costs and not equal_costs:
        return None

    def price_cell(field, value, ratio):
        if value is None:
            return number_cell('–', None)
        text = COSTS[field].format(value)
        return number_cell(text if ratio is None else f'{text} ({format_ratio(ratio)} ×)', value)

    def loss_cell(loss=None, iters=None):
        text = format_number(loss)
        return number_cell(text if iters is None else f'{text} at {iters}', loss)

    return make_table([
        {'arm': name_cell(arm.name)}
        | {COSTS[field].title: price_cell(field, *arm.costs[field]) for field in costs}
        | {EQUAL_COST[field]: loss_cell(**getattr(arm, field)) for field in equal_costs}
        for arm in r.arms], sortable=True)


def arms_table(r):
    """Returns the table of the arms' options and of the leak suite's results."""
    return make_table([{
        'arm': name_cell(arm.name),
        'variant': Cell(arm.variant),
        'options': Cell(', '.join(f'{option}={x}' for option, x in arm.options.items()) or '–'),
        'leak suite': Cell(arm.checks.status, details=arm.checks.lines),
        'why': Cell(arm.checks.why or '–'),
    } for arm in r.arms])


def failed_table(r):
    return make_table([{
        'arm': name_cell(arm.name),
        'seed': Cell(run.seed),
        'status': Cell(run.status),
        'reason': Cell(run.reason),
    } for arm in r.arms for run in arm.runs if run.status not in ('done', 'missing')])


def runs_table(r):
    return make_table([{
        'arm': name_cell(arm.name),
        'seed': number_cell(str(run.seed), run.seed),
        'status': Cell(run.status),
        'final loss': fixed_cell(run.val_loss),
        'best': fixed_cell(run.best_val_loss),
        'at': fixed_cell(run.best_iter, 0),
        'train loss': fixed_cell(run.train_loss),
        'seconds': fixed_cell(run.seconds, 1),
        'initial values': Cell(run.init_hash),
        'batches': Cell(run.batch_hash),
    } for arm in r.arms for run in arm.runs], sortable=True)


def sweep_table(r):
    """Returns the table of final losses at the learning rates tried.

    An arrow marks the lowest of each arm.
    """
    losses = r.plan.lr_sweep.get('losses') or {}
    # arms may have tried different factors; the first arm's order comes first
    factors = list(dict.fromkeys(factor for by_factor in losses.values() for factor in by_factor))
    rows = []
    for name, by_factor in losses.items():
        # a run that failed has None
        best = min((x for x in by_factor.values() if x is not None), default=None)
        row = {'arm': name_cell(name)}
        for factor in factors:
            loss = by_factor.get(factor)
            mark = ' ←' if loss is not None and loss == best else ''
            row[f'{factor} ×'] = number_cell(format_number(loss) + mark, loss)
        rows.append(row)
    return make_table(rows)


def flat_text(x):
    """Returns x as text on one line, with the dicts and lists in it."""
    if isinstance(x, dict):
        return ', '.join(f'{name} {flat_text(v)}' for name, v in x.items())
    if isinstance(x, list):
        return ', '.join(map(flat_text, x))
    return '–' if x is None else str(x)
