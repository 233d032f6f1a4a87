"""Losses trained elsewhere, read from any sensible table.

    arm,seed,loss           long: a row for each run
    seed;base;mine          wide: a column for each arm
    model|1|2|3             wide: a row for each arm, a column for each seed
    {"arm": "base", "seed": 1, "loss": 1.47}        JSON lines

Cells are separated by , ; tab or |, numbers may have decimal commas, columns may have other usual names, and
lines that begin with # are comments. What could be read in two ways is refused in one line.
"""
import csv
import io
import json
import re
from collections import defaultdict
from math import inf
from pathlib import Path
from typing import NamedTuple

from core.errors import Stop

# usual names of the columns; of two that fit, the first name here wins, except for losses
ARM = 'arm', 'variant', 'model', 'name', 'run', 'group', 'method', 'config'
SEED = 'seed', 'run', 'trial', 'rep', 'repeat', 'replicate'
LOSS = ('loss', 'val_loss', 'test_loss', 'final_loss', 'value', 'score', 'metric', 'accuracy', 'val_accuracy',
        'test_accuracy', 'acc', 'perplexity', 'ppl', 'bits_per_byte', 'bpb')
# columns of a wide table that are no arms
NO_ARM = ('', 'id', 'index', 'step', 'steps', 'iter', 'iters', 'iteration', 'iterations', 'epoch', 'epochs',
          'time', 'seconds', 'date', 'note', 'notes', 'comment')
DIVERGED = 'inf', '+inf', 'infinity', '+infinity', 'diverged'
MISSING = '', '-', '–', 'na', 'n/a', 'none', 'null'
SEPARATORS = {'\t': 'tabs', ';': 'semicolons', '|': 'bars', ',': 'commas'}
LARGEST = 1e100
NUMBER = re.compile(r'[+-]?(\d+[.,]?\d*|[.,]\d+)(e[+-]?\d+)?', re.IGNORECASE)


class LossTable(NamedTuple):
    """The losses of a file, and how they were read."""
    losses: dict    # {arm: {seed: loss}}, inf for a run that diverged
    metric: str     # the title of the losses' column, '' in a wide table
    said: str       # one line for the user


class Run(NamedTuple):
    """A run as the file has it."""
    line: int
    arm: str
    seed: str | None    # None: the file does not say
    loss: str


def read_losses(path, columns=''):
    """Returns the LossTable of a file.

    columns: 'ARM,SEED,LOSS', the titles of these columns, where they cannot be known from their names; SEED
    may be empty. A file without seeds has its runs numbered from its first to its last, so that no two arms
    share a seed. Raises Stop with path and line where the file is wrong.
    """
    text = read_text(path)
    read = read_json_lines if text.lstrip().startswith('{') else read_cells
    titles, rows, separator = read(path, text)
    if not rows:
        raise Stop(f'{path}:1: no rows below a line of titles')
    runs, metric, layout = find_runs(f'{path}:{rows[0][0]}: ', titles, rows[1:], columns)

    losses = collect(path, runs)
    said = f'{path}: {len(losses)} arms, {sum(map(len, losses.values()))} runs; {separator}{layout}'
    if uses_decimal_commas(path, runs):
        said += '; decimal commas'
    if any(run.seed is None for run in runs):
        said += '; no seeds, so runs are numbered and not paired'
    return LossTable(losses, metric, said)


def choose_baseline(losses, given=''):
    """Returns the name of the baseline, and why it is that one: given, or called base, or the first arm."""
    if given:
        if given not in losses:
            raise Stop(f'baseline={given}: no such arm; there are {", ".join(losses)}')
        return given, '--baseline'
    for arm in losses:
        if arm.casefold() in ('base', 'baseline'):
            return arm, 'by its name'
    return next(iter(losses)), 'the first arm; --baseline=NAME takes another'


# -----------------------------------------------------------------------------
# files: each reader returns titles, [(line, cells)] with the titles first, and what separates cells

def read_text(path):
    """Returns the text of a file in UTF-8, or in UTF-16 with its byte order mark."""
    try:
        data = Path(path).read_bytes()
        return data.decode('utf-16' if data[:2] in (b'\xff\xfe', b'\xfe\xff') else 'utf-8-sig')
    except OSError as error:
        raise Stop(f'{path}: {error.strerror}') from None
    except UnicodeDecodeError:
        raise Stop(f'{path}: is not UTF-8 text') from None


def text_lines(text):
    """Returns the lines of a text, comments blanked, so that lines keep their numbers."""
    # not splitlines(), which also splits at characters that a cell may hold
    return ['\n' if line.lstrip().startswith('#') else line for line in io.StringIO(text, newline='')]


def read_cells(path, text):
    """Returns the rows of a table with separators, cells stripped and as many as titles."""
    lines = text_lines(text)
    first = next((line for line in lines if line.strip()), '')
    # what makes most cells of the titles separates cells; a tab before ; before | before , if there is a tie
    separator = max(SEPARATORS, key=lambda s: len(next(csv.reader([first], delimiter=s), ())))
    reader = csv.reader(lines, delimiter=separator, strict=True, skipinitialspace=True)
    rows = []
    try:
        for cells in reader:
            cells = [cell.strip() for cell in cells]
            # a table in Markdown has a | at both ends, and a line of dashes
            if separator == '|' and cells[:1] == cells[-1:] == ['']:
                cells = cells[1:-1]
            rule = separator == '|' and all(re.fullmatch(':?-+:?', cell) for cell in cells)
            if any(cells) and not rule:
                rows.append((reader.line_num, fit(path, reader.line_num, cells, rows)))
    except csv.Error as error:
        raise Stop(f'{path}:{reader.line_num}: {error}') from None
    return rows[0][1] if rows else [], rows, f'cells separated by {SEPARATORS[separator]}; '


def fit(path, line, cells, rows):
    """Returns the cells, as many as there are titles; Stop if there are more."""
    most = len(rows[0][1]) if rows else len(cells)
    if any(cells[most:]):
        raise Stop(f'{path}:{line}: {len(cells)} cells below {most} titles; '
                   'a number with a decimal comma needs quotes, or ; between cells')
    return cells[:most] + [''] * (most - len(cells))


def read_json_lines(path, text):
    """Returns the rows of JSON lines, an object for each row; its keys are the titles."""
    objects = []
    for number, line in enumerate(text_lines(text), 1):
        if not line.strip():
            continue
        try:
            # numbers stay as they are written
            row = json.loads(line, parse_float=str, parse_int=str, parse_constant=str)
        except ValueError as error:
            raise Stop(f'{path}:{number}: {error}') from None
        if not isinstance(row, dict):
            raise Stop(f'{path}:{number}: must be an object, as {{"arm": "base", "seed": 1, "loss": 1.5}}')
        objects.append((number, {key.strip(): x for key, x in row.items()}))
    titles = list(dict.fromkeys(key for _, row in objects for key in row))
    rows = [(n, ['' if row.get(t) is None else str(row[t]).strip() for t in titles]) for n, row in objects]
    return titles, [(1, titles), *rows], 'JSON lines; '


# -----------------------------------------------------------------------------
# layouts

def find_runs(where, titles, rows, columns):
    """Returns the Runs of a table, the title of the losses' column, and the layout in words.

    rows: [(line, cells)]. columns: as in read_losses().
    """
    if columns:
        arm, seed, loss = named_columns(where, titles, columns)
        return long_runs(titles, rows, arm, seed, loss)
    arms, seeds, losses = usual_columns(titles)
    if losses:
        if not arms:
            raise unknown_columns(where, titles, 'none is named as an arm')
        for role, found in dict(arm=arms, seed=seeds, loss=losses).items():
            if len(found) > 1:
                names = ' and '.join(titles[i] for i in found)
                raise unknown_columns(where, titles, f'{names} could each be the {role}')
        return long_runs(titles, rows, arms[0], seeds[0] if seeds else None, losses[0])
    return wide_runs(where, titles, rows, arms, seeds)


def unknown_columns(where, titles, why):
    """Returns the Stop for a table whose columns do not say what they hold."""
    return Stop(f'{where}columns {", ".join(titles) or "(none)"}: {why}; --columns=ARM,SEED,LOSS says which '
                f'columns hold what, by their titles, with nothing for SEED if there is none')


def named_columns(where, titles, columns):
    """Returns the indices (arm, seed or None, loss) of the columns that the user named."""
    names = [name.strip() for name in columns.split(',')]
    if len(names) != 3 or not names[0] or not names[2]:
        raise Stop(f'columns={columns}: takes three titles, ARM,SEED,LOSS; SEED may be empty')
    found = []
    for name in names:
        if name and titles.count(name) != 1:
            raise Stop(f'{where}columns={columns}: {name} is the title of {titles.count(name)} columns; '
                       f'there are {", ".join(titles)}')
        found.append(titles.index(name) if name else None)
    return found


def usual_columns(titles):
    """Returns the indices of columns that are named as arms, as seeds and as losses."""
    plain = [re.sub(r'[ -]', '_', title.casefold()) for title in titles]

    def named(names):
        found = [i for i, title in enumerate(plain) if title in names]
        return [i for i in found if plain[i] == names[0]] or found

    arms, seeds = named(ARM), named(SEED)
    # a column named run holds arms if no other does, else seeds
    arms = [i for i in arms if i not in seeds] or arms
    seeds = [i for i in seeds if i not in arms]
    losses = [i for i, title in enumerate(plain) if title in LOSS]
    return arms, seeds, losses


def long_runs(titles, rows, arm, seed, loss):
    """Returns the runs of a table with a row for each."""
    runs = [Run(line, cells[arm], None if seed is None else cells[seed], cells[loss]) for line, cells in rows]
    roles = [('arm', arm), ('seed', seed), ('loss', loss)]
    layout = ', '.join(f'{role} = {titles[i]}' for role, i in roles if i is not None)
    return runs, titles[loss], layout


def wide_runs(where, titles, rows, arms, seeds):
    """Returns the runs of a table whose cells are losses; empty cells are no runs."""
    if again := next((title for title in titles if title and titles.count(title) > 1), None):
        raise Stop(f'{where}columns {", ".join(titles)}: {again} is there twice')
    if any(is_number(title) and not title.isdecimal() for title in titles):
        raise Stop(f'{where}{", ".join(titles)}: the first row must be titles, as arm, seed, loss')
    numbers = {i: is_number_column(rows, i) for i in range(len(titles))}

    # a row for each arm: texts in the first column or that of arms, then titles like 1, 2 or seed_1, seed_2
    first = arms[0] if arms else 0
    by_prefix = defaultdict(list)
    for i, title in enumerate(titles):
        if i != first and (number := re.fullmatch(r'(\D*)\d+', title)):
            by_prefix[number[1]].append(i)
    numbered = max(by_prefix.values(), key=len, default=[])
    if len(numbered) > 1 and not numbers[first]:
        runs = [Run(line, cells[first], titles[i], cells[i]) for line, cells in rows for i in numbered
                if cells[i].casefold() not in MISSING]
        return runs, '', 'a row for each arm, a column for each seed'

    # a column for each arm
    if arms and numbers[first] and titles[first].casefold() in SEED:
        arms, seeds = [], arms
    held = [i for i, title in enumerate(titles) if i not in seeds and title.casefold() not in NO_ARM]
    if arms or len(seeds) > 1 or len(held) < 2 or not all(numbers[i] for i in held):
        raise unknown_columns(where, titles, 'none is named as a loss')
    runs = [Run(line, titles[i], cells[seeds[0]] if seeds else None, cells[i]) for line, cells in rows
            for i in held if cells[i].casefold() not in MISSING]
    return runs, '', 'a column for each arm' + (f', seed = {titles[seeds[0]]}' if seeds else '')


def is_number_column(rows, i):
    """Returns True if any cell of column i is a number or a run that diverged, or all are missing."""
    cells = [cells[i].casefold() for _, cells in rows]
    return any(is_number(x) or x in DIVERGED for x in cells) or all(x in MISSING for x in cells)


def is_number(text):
    return NUMBER.fullmatch(text) is not None


# -----------------------------------------------------------------------------
# losses

def collect(path, runs):
    """Returns {arm: {seed: loss}} of Runs. Stop for what is no arm, seed or loss, or is there twice."""
    decimal_commas = uses_decimal_commas(path, runs)
    losses, lines = {}, {}
    for number, run in enumerate(runs, 1):
        where = f'{path}:{run.line}: '
        if not run.arm:
            raise Stop(f'{where}no arm')
        seed = number if run.seed is None else parse_seed(run.seed, where)
        if (run.arm, seed) in lines:
            raise Stop(f'{where}{run.arm}, seed {seed} again; first on line {lines[run.arm, seed]}')
        lines[run.arm, seed] = run.line
        losses.setdefault(run.arm, {})[seed] = parse_loss(run.loss, where, decimal_commas)

    last = f'{path}:{runs[-1].line}: ' if runs else f'{path}:1: '
    if len(losses) < 2:
        raise Stop(f'{last}arms: {", ".join(losses) or "none"}: a comparison needs a baseline and a variant')
    for arm, found in losses.items():
        if len(found) < 2:
            raise Stop(f'{last}{arm}: 1 run; must be at least 2')
    return losses


def parse_seed(text, where):
    """Returns the number in a seed: 1337, 1337.0 as spreadsheets write it, or seed_1337."""
    number = re.fullmatch(r'(?:[A-Za-z_]+[ _-]?)?(\d+)(?:\.0+)?|(-\d+)', text)
    if not number:
        raise Stop(f'{where}seed={text}: must be a whole number')
    return int(number[1] or number[2])


def parse_loss(text, where, decimal_commas):
    """Returns a loss, inf if the run diverged."""
    if text.casefold() in DIVERGED:
        return inf
    # a pattern, because float() takes 1_469 and nan
    if not is_number(text):
        raise Stop(f'{where}loss={text}: must be a number without thousands separators, '
                   'inf or diverged for a diverged run')
    if decimal_commas and '.' in text:
        raise Stop(f'{where}loss={text}: has a decimal point, other losses have decimal commas')
    loss = float(text.replace(',', '.'))
    # squares of more would be infinite
    if abs(loss) > LARGEST:
        raise Stop(f'{where}loss={text}: must be within ±{LARGEST:g}; inf or diverged for a diverged run')
    return loss


def uses_decimal_commas(path, runs):
    """Returns True if losses have decimal commas. Stop if their commas might separate thousands."""
    with_comma = [run for run in runs if ',' in run.loss and is_number(run.loss)]
    # 1,4697 and 0,469 have no thousands
    if any(not re.fullmatch(r'[+-]?[1-9]\d{0,2},\d{3}', run.loss) for run in with_comma):
        return True
    if with_comma:
        line, text = with_comma[0].line, with_comma[0].loss
        raise Stop(f'{path}:{line}: loss={text}: may be {text.replace(",", ".")} or {text.replace(",", "")}; '
                   'write losses with a decimal point')
    return False
