"""Tables of the page: their columns, rows and cells."""
from typing import NamedTuple

from lab.report.labels import (
    COSTS,
    EQUAL_COST,
    format_chance,
    format_ends,
    format_number,
    format_ratio,
    verdict_class,
    with_minus_signs,
)
from lab.report.read import read_arm_over
from lab.report.sentences import check_lines

# the columns of the tables of verdicts and of statistics, explained below them
COLUMNS = {
    'difference': 'arm minus baseline, with its interval',
    'shrunk': 'the difference to expect: a claim picked because it looks good overstates',
    'P(better)': 'chance that the arm is truly better',
    'P(within)': 'chance that the difference is truly within ±delta',
    'runs': "that came to their end, of those planned; against: the baseline's",
    'loss, value': 'mean ± standard deviation over runs',
    'bits a byte': 'the same loss in bits per byte of text, mean over runs',
    'p': 'of the test, corrected for several arms (Holm)',
    'ms ×, FLOPs ×': "training cost, times the baseline's",
    'equal time': 'difference to a baseline trained for as long, and its verdict',
    'a new text': 'where 95 % of differences on other texts are expected, and the chance that one is better',
    'tau': 'standard deviation of the difference between texts, beyond the noise of runs',
    'own best rate': 'difference with each at its own best learning rate',
    'speedup': "the baseline's size or iterations over what the arm needs for the same loss",
    'p alone': 'the same, not corrected',
    'flip p': 'of the exact sign-flip test',
    'sd of d': 'of the differences, over seeds',
    'rho': 'correlation of the arms over seeds; above zero, pairing pays',
    'wins': 'seeds at which the arm is better',
    'P(imp)': 'chance that a run of the arm beats a run of the baseline',
    'MDE80': 'the difference that 4 of 5 such studies would find',
    'raw': 'the difference before it was corrected for an early stop',
    'decided at': 'runs of the arm',
    'other text': 'interval of the difference over text',
    'steps': 'baseline iterations that the difference is worth; minus: lost',
}


class Cell(NamedTuple):
    """A cell of a table."""
    text: str
    value: object = None                # the column is sorted by this, all digits kept; None sorts last
    css_class: str = ''                 # number: flush right; a verdict's class colors it
    details: tuple | list = ()          # lines folded below the text
    note: str = ''                      # a line below the text

    @property
    def empty(self):
        return self.text in ('', '–') and not self.note and not self.details


class Table(NamedTuple):
    """A table of the page."""
    titles: list                        # of the columns; the first column names the row
    rows: list                          # lists of Cell
    sortable: bool


def make_table(rows, sortable=False):
    """Returns the Table of rows, {column's title: Cell} each, without empty columns.

    None if nothing is left beside the first column.
    """
    # all rows have the titles of the first
    name, *titles = [*rows[0]] if rows else ['']
    titles = [title for title in titles if not all(row[title].empty for row in rows)]
    if not titles:
        return None
    return Table([name, *titles], [[row[title] for title in (name, *titles)] for row in rows], sortable)


def name_cell(name):
    return Cell(name, name)


def number_cell(text, value, note=''):
    return Cell(with_minus_signs(text), value, 'number', note=with_minus_signs(note))


def fixed_cell(x, digits=4, sign=''):
    """Returns the Cell of a number with this many decimals."""
    return number_cell(format_number(x, digits, sign), x)


def difference_cell(x, interval, note=''):
    """Returns the Cell of a difference, its interval below it."""
    return number_cell(format_number(x, sign='+'), x, note or format_ends(interval))


def chance_cell(p):
    return number_cell(format_chance(p), p)


def interval_cell(x, note=''):
    """Returns the Cell of an interval, which sorts by its lower end."""
    return number_cell(format_ends(x) or '–', x[0] if x else None, note if x else '')


def p_cell(p):
    return number_cell('<0.001' if p is not None and p < 0.001 else format_number(p, 3), p)


# -----------------------------------------------------------------------------
# one function per table; each returns a Table, or None where there is nothing to show

def verdict_table(r):
    # as wide as a laptop's page; statistics_table() has the rest
    return make_table([{
        'arm': name_cell(title),
        'verdict': Cell(verdict, verdict, verdict_class(verdict), note='suspicious' * bool(c.suspicions)),
        'difference': difference_cell(c.mean, c.interval),
        'shrunk': difference_cell(c.shrunk, c.shrunk_interval),
        'P(better)': chance_cell(c.p_better),
        'P(within)': chance_cell(c.p_within),
        'runs': runs_cell(arm, c),
        loss_title(r): number_cell(format_number(arm.mean), arm.mean, arm.sd_text),
        'bits a byte': fixed_cell(arm.bits_per_byte),
        'p': p_cell(c.holm_p),
        'ms ×': number_cell(format_number(arm.costs['step_ms'][1], 3), arm.costs['step_ms'][1],
                            format_ends(arm.price.get('step_ratio_interval'), 3, '')),
        'FLOPs ×': fixed_cell(arm.costs['flops_per_token'][1], 3),
        'equal time': difference_cell(c.equal_time.mean, None, c.equal_time.verdict),
        'a new text': interval_cell(over.over.prediction, f'P(better) {format_chance(over.over.p_new_better)}'),
        'tau': number_cell(format_number(over.over.tau), over.over.tau, format_ends(over.over.tau_interval, sign='')),
    } for arm, c, title, verdict in r.verdicts for over in [over_of(r, c)]], sortable=True)


def over_of(r, c):
    """Returns what is known of a comparison's arm over texts; nothing in other studies."""
    return r.over.arms.get(c.arm) or read_arm_over({})


def loss_title(r):
    return 'loss' if r.plan.unit == 'nats' else 'value'


def runs_cell(arm, c):
    """Returns the Cell of an arm's number of runs, and of the baseline's where that is another."""
    against = '' if c.n_base in (None, c.n) else f'against {c.n_base}'
    return number_cell(arm.finished, len(arm.losses), against)


def statistics_table(r):
    return make_table([{
        'arm': name_cell(title),
        'test': Cell(c.test),
        'p alone': p_cell(c.p),
        'flip p': p_cell(c.flip_p),
        'sd of d': fixed_cell(c.sd),
        'rho': fixed_cell(c.rho, 2),
        'wins': number_cell('–' if c.wins is None else f'{c.wins}/{c.n}', c.wins),
        'P(imp)': fixed_cell(c.p_improve, 2),
        'MDE80': fixed_cell(c.mde),
        'raw': fixed_cell(c.raw_mean, sign='+'),
        'decided at': fixed_cell(c.decided_at, 0),
        'other text': interval_cell(c.text_interval),
        'steps': fixed_cell(c.step_equivalents, 0, '+'),
        'own best rate': difference_cell(over.own_best.mean, over.own_best.interval),
        'speedup': Cell(', '.join(f'{format_ratio(s["mean"])} × {factor}' for factor, s in over.speedups.items()
                                  if s['mean'] is not None)),
    } for _, c, title, _ in r.verdicts if c.arm for over in [over_of(r, c)]], sortable=True)


def cells_table(r):
    """Returns the table of the cells of a study over texts and options: mean losses and differences."""
    return make_table([
        {'cell': name_cell(cell.name), r.over.baseline: loss_in_cell(cell.losses.get(r.over.baseline, []))}
        | {name: difference_in_cell(d, cell.losses.get(name, [])) for name, d in cell.differences.items()}
        for cell in r.over.cells], sortable=True)


def loss_in_cell(losses):
    """Returns the Cell of the mean of an arm's runs in a cell; losses: None for a run that diverged."""
    if None in losses or not losses:
        return number_cell(f'diverged {losses.count(None)}/{len(losses)}' if losses else '–', None)
    mean = sum(losses) / len(losses)
    return number_cell(format_number(mean), mean)


def difference_in_cell(d, losses):
    """Returns the Cell of an arm's difference in a cell, or what stands in its way."""
    if d.difference is None:
        return loss_in_cell(losses) if None in losses else number_cell('–', None)
    return number_cell(format_number(d.difference, sign='+'), d.difference,
                       '' if d.se is None else f'± {format_number(d.se)}')


def column_meanings(*tables):
    """Returns those of COLUMNS that these tables have."""
    titles = {title for t in tables if t for title in t.titles}
    present = {names: titles & set(names.split(', ')) for names in COLUMNS}
    return {', '.join(sorted(found)): COLUMNS[names] for names, found in present.items() if found}


def price_table(r):
    """Returns the table of the costs that any arm has, and of losses at equal cost."""
    # columns that are empty for all arms are left out
    costs = [field for field in COSTS if any(arm.costs[field][0] is not None for arm in r.arms)]
    equal_costs = [field for field in EQUAL_COST if any(getattr(arm, field) for arm in r.arms)]
    if not costs and not equal_costs:
        return None

    def price_cell(arm, field):
        value, ratio = arm.costs[field]
        if value is None:
            return number_cell('–', None)
        # the baseline's ratio is 1
        note = '' if ratio is None or arm is r.base else f'{format_ratio(ratio)} ×'
        interval = arm.price.get(COSTS[field].interval_field)
        if note and interval:
            note += f' [{", ".join(map(format_ratio, interval))}]'
        text, ends = COSTS[field].format(value), arm.price.get(f'{field}_interval')
        return number_cell(f'{text} [{", ".join(map(COSTS[field].format, ends))}]' if ends else text, value, note)

    def loss_cell(loss=None, iters=None):
        text = format_number(loss)
        return number_cell(text if iters is None else f'{text} at {iters}', loss)

    return make_table([
        {'arm': name_cell(arm.name)}
        | {COSTS[field].title: price_cell(arm, field) for field in costs}
        | {EQUAL_COST[field]: loss_cell(**getattr(arm, field)) for field in equal_costs}
        for arm in r.arms], sortable=True)


def arms_table(r):
    """Returns the table of the arms' options and of the leak suite's results."""
    return make_table([{
        'arm': name_cell(arm.name),
        'variant': Cell(arm.variant),
        'options': Cell(', '.join(f'{option}={x}' for option, x in arm.options.items()) or '–'),
        'leak suite': Cell(arm.checks.status, details=check_lines(arm.checks)),
        'why': Cell(arm.checks.why or '–'),
    } for arm in r.arms])


def failed_table(r):
    return make_table([{
        'arm': name_cell(arm.name),
        'cell': Cell(run.cell),
        'seed': Cell(run.seed),
        'status': Cell(run.status),
        'reason': Cell(run.reason),
    } for arm in r.arms for run in arm.runs if run.status not in ('done', 'missing')])


def runs_table(r):
    return make_table([{
        'arm': name_cell(arm.name),
        'cell': Cell(run.cell, run.cell or None),
        'seed': number_cell(str(run.seed), run.seed),
        'status': Cell(run.status),
        loss_title(r): fixed_cell(run.val_loss),
        'bits a byte': fixed_cell(run.bits_per_byte),
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
