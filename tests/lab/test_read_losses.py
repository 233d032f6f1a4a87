"""A table of losses reads back as what was written, in any dialect, or is refused in one line."""
import csv
import io
import json
from math import inf

import pytest
from hypothesis import assume, given, strategies as st

from core.errors import BAD_INPUT, Stop
from lab.read_losses import ARM, DIVERGED, LOSS, MISSING, NO_ARM, SEED, choose_baseline, read_losses

RESERVED = {*ARM, *SEED, *LOSS, *NO_ARM, *DIVERGED, *MISSING, 'nan'}


def read(tmp_path, text, columns=''):
    path = tmp_path / 'r.csv'
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return read_losses(path, columns)


def refused(tmp_path, text, columns=''):
    """Returns the line by which a file is refused, without its path."""
    with pytest.raises(Stop) as stop:
        read(tmp_path, text, columns)
    said = str(stop.value)
    assert stop.value.code == BAD_INPUT and '\n' not in said and said.startswith(str(tmp_path / 'r.csv')), said
    return said.removeprefix(str(tmp_path / 'r.csv'))


# -----------------------------------------------------------------------------
# whatever the dialect

names = st.from_regex(r'[A-Za-zé][A-Za-z0-9é ,;|"\'=._-]{0,12}', fullmatch=True).map(str.strip).filter(
    lambda name: name.casefold().replace(' ', '_').replace('-', '_') not in RESERVED)
loss_values = st.one_of(st.floats(-1e6, 1e6).map(lambda x: round(x, 5)), st.floats(1e-12, 10), st.just(inf))
tables = st.dictionaries(
    names, st.dictionaries(st.integers(0, 99_999), loss_values, min_size=2, max_size=6), min_size=2, max_size=5)


@st.composite
def dialects(draw):
    """Returns how a table is written."""
    def one(*choices):
        return draw(st.sampled_from(choices))
    return dict(
        layout=one('long', 'column per arm', 'row per arm', 'json'), separator=one(*',;\t|'),
        comma=draw(st.booleans()), quoting=one(csv.QUOTE_MINIMAL, csv.QUOTE_ALL), end=one('\n', '\r\n'),
        mark=one('', '\ufeff'), comment=one('', '# anything, "at all;\n'),
        titles=one('arm,seed,loss', 'Variant,Trial,val_loss', 'model,run,Score', 'run,seed,value',
                   'group,rep,metric', 'name,run,accuracy'),
        diverged=one('inf', 'diverged', 'Infinity'), missing=one('', '-', 'NA'), extra=draw(st.booleans()))


def write(table, d):
    """Returns the table as text in a dialect."""
    def number(x):
        text = d['diverged'] if x == inf else repr(x)
        return text.replace('.', ',') if d['comma'] else text

    arm_title, seed_title, loss_title = d['titles'].split(',')
    seeds = list(dict.fromkeys(seed for runs in table.values() for seed in runs))
    rows = [(arm, seed, number(x)) for arm, runs in table.items() for seed, x in runs.items()]
    if d['layout'] == 'json':
        return '\n'.join(json.dumps(dict(zip([arm_title, seed_title, loss_title], row))) for row in rows)
    if d['layout'] == 'long':
        cells = [[arm_title, seed_title, loss_title], *rows]
    elif d['layout'] == 'row per arm':
        cells = [[arm_title, *seeds]] + [
            [arm, *(number(runs[seed]) if seed in runs else d['missing'] for seed in seeds)]
            for arm, runs in table.items()]
    else:
        cells = [[seed_title, *table]] + [
            [seed, *(number(runs[seed]) if seed in runs else d['missing'] for runs in table.values())]
            for seed in seeds]
    if d['extra']:
        cells = [[*row, 'steps' if i == 0 else '7'] for i, row in enumerate(cells)]
    file = io.StringIO()
    csv.writer(file, delimiter=d['separator'], quoting=d['quoting'], lineterminator=d['end']).writerows(cells)
    return d['mark'] + d['comment'] + file.getvalue()


def may_be_thousands(table):
    """Returns True if written with decimal commas no loss shows that they are decimal."""
    texts = [repr(x) for runs in table.values() for x in runs.values() if '.' in repr(x)]
    return all(len(text.split('.')[1]) == 3 and text.lstrip('-')[0] != '0' for text in texts)


@given(tables, dialects())
def test_any_dialect_reads_back(tmp_path_factory, table, dialect):
    assume(not (dialect['comma'] and may_be_thousands(table)))
    seeds = {seed for runs in table.values() for seed in runs}
    assume(len(seeds) > 1)
    assert read(tmp_path_factory.getbasetemp(), write(table, dialect)).losses == table


# -----------------------------------------------------------------------------
# one by one

def test_decimal_commas_are_no_thousands(tmp_path):
    """Read as thousands or cut at the comma, these two arms would be equal."""
    table = read(tmp_path, 'arm;seed;loss\nbase;1;1,4697\nbase;2;1,4701\nmine;1;1,5\nmine;2;1,500\n')
    assert table.losses == dict(base={1: 1.4697, 2: 1.4701}, mine={1: 1.5, 2: 1.5})
    assert 'decimal commas' in table.said and 'semicolons' in table.said


@pytest.mark.parametrize('losses, says', [
    (['1,467', '1,469'], ':2: loss=1,467: may be 1.467 or 1467'),
    (['1,4671', '1.469'], ':3: loss=1.469: has a decimal point'),
    (['1.234,5', '1,4'], ':2: loss=1.234,5: must be a number without thousands'),
    (['1,234.5', '1.4'], ':2: loss=1,234.5: must be a number without thousands'),
    (['1 234', '1.4'], ':2: loss=1 234: must be a number without thousands'),
    (['1_234', '1.4'], ':2: loss=1_234: must be a number without thousands'),
    (['nan', '1.4'], ':2: loss=nan: must be a number'),
    (['-inf', '1.4'], ':2: loss=-inf: must be a number'),
    (['1.5', ''], ':3: loss=: must be a number'),
    (['1.5', '0x1p3'], ':3: loss=0x1p3: must be a number'),
    (['1.5', '91 %'], ':3: loss=91 %: must be a number'),
    (['1.5', '1e300'], ':3: loss=1e300: must be within ±1e+100; inf or diverged for a diverged run'),
])
def test_losses_that_are_no_plain_numbers(tmp_path, losses, says):
    rows = '\n'.join(f'base;{seed};{x}' for seed, x in enumerate(losses))
    assert refused(tmp_path, f'arm;seed;loss\n{rows}\n').startswith(says)


GOOD = 'arm,seed,loss\nbase,1,1.5\nbase,2,1.6\nmine,1,1.5\nmine,2,1.6\n'


@pytest.mark.parametrize('old, new, says', [
    ('mine,2,1.6', 'mine,2,1,6', ':5: 4 cells below 3 titles; a number with a decimal comma needs quotes'),
    ('mine,2,1.6', 'mine,2', ':5: loss=: must be a number'),
    ('base,2', 'base,two', ':3: seed=two: must be a whole number'),
    ('base,2', ',2', ':3: no arm'),
    ('mine,2', 'mine,1', ':5: mine, seed 1 again; first on line 4'),
    ('mine', 'base', ':4: base, seed 1 again; first on line 2'),
    ('mine,2,1.6\n', '', ':4: mine: 1 run; must be at least 2'),
    ('mine,1,1.5\nmine,2,1.6\n', '', ':3: arms: base: a comparison needs'),
    ('arm,seed,loss', 'arm,seed,final', ':1: columns arm, seed, final: none is named as a loss'),
    ('arm,seed,loss', 'which,seed,loss', ':1: columns which, seed, loss: none is named as an arm'),
    ('arm,seed,loss', 'name,group,loss', ':1: columns name, group, loss: name and group could each be the arm'),
    ('arm,seed,loss', 'arm,val_loss,loss', ': val_loss and loss could each be the loss; --columns='),
    ('arm,seed,loss', 'arm,trial,rep,loss', ': trial and rep could each be the seed; --columns='),
    ('arm,seed,loss\n', '', ':1: base, 1, 1.5: the first row must be titles'),
    ('mine,2,1.6', 'mine,2,"1.6', ':5: unexpected end of data'),
    (GOOD, '', ':1: no rows'),
    (GOOD, 'arm,seed,loss\n', ':1: arms: none'),
    (GOOD, 'seed,base,base\n1,1.5,1.6\n', ':1: columns seed, base, base: base is there twice'),
    (GOOD, '{"arm": "base"\n', ':1: '),
    (GOOD, '{"arm": "base", "loss": 1}\n[1]\n', ':2: must be an object'),
])
def test_a_file_that_cannot_be_read(tmp_path, old, new, says):
    said = refused(tmp_path, GOOD.replace(old, new))
    assert said.startswith(says) or says.startswith(': ') and says in said


def test_no_file_and_no_text(tmp_path):
    with pytest.raises(Stop, match='no.csv: No such file'):
        read_losses(tmp_path / 'no.csv')
    assert refused(tmp_path, GOOD.encode() + b'\xdc') == ': is not UTF-8 text'
    assert read(tmp_path, GOOD.encode('utf-16')).losses == read(tmp_path, GOOD).losses


def test_columns_by_their_titles(tmp_path):
    text = 'name,group,trial,val_loss,loss\nr1,base,1,3,5\nr2,base,2,4,6\nr3,x,1,1,7\nr4,x,2,2,8\n'
    assert read(tmp_path, text, 'group,trial,val_loss').losses == dict(base={1: 3, 2: 4}, x={1: 1, 2: 2})
    table = read(tmp_path, text, 'group,,loss')
    assert table.losses == dict(base={1: 5, 2: 6}, x={3: 7, 4: 8}) and table.metric == 'loss'
    assert 'columns=group,trial: takes three titles' in str(pytest.raises(
        Stop, read, tmp_path, text, 'group,trial').value)
    assert ':1: columns=arm,trial,loss: arm is the title of 0 columns' in refused(tmp_path, text, 'arm,trial,loss')


def test_runs_without_seeds_are_not_paired(tmp_path):
    """They are numbered through the file, so that no two arms share a seed."""
    for text in ('method\tloss\nb\t2\nb\t3\na\t1\na\t1.5\n', 'b,a\n2,1\n3,1.5\n', ',b,a\n0,2,1\n1,3,1.5\n'):
        table = read(tmp_path, text)
        assert {arm: list(runs.values()) for arm, runs in table.losses.items()} == dict(b=[2, 3], a=[1, 1.5])
        assert not set(table.losses['a']) & set(table.losses['b']) and 'not paired' in table.said


@pytest.mark.parametrize('text', [
    '| arm | seed | loss |\n|---|---:|---|\n| base | 1 | 1.5 |\n| base | 2 | 1.6 |\n| mine | 1 | 1.5|\n|mine|2|1.6|\n',
    'loss,note,seed,arm\n1.5,"a\nb",1,base\n\n1.6,,2,base\n1.5,x,1,mine\n# 9,,9,mine\n1.6,,2.0,mine\n',
    'architecture,seed_1,seed_2\nbase,1.5,1.6\nmine,1.5,1.6\n',
    'run,base,mine\n1,1.5,1.5\n2,1.6,1.6\n',
    'seed,step,base,mine,note\n1,800,1.5,1.5,quick\n2,800,1.6,1.6,\n',
])
def test_other_layouts(tmp_path, text):
    assert read(tmp_path, text).losses == read(tmp_path, GOOD).losses


def test_the_baseline_is_known_by_its_name():
    arms = dict(alibi={}, Baseline={}, rope={})
    assert choose_baseline(arms) == ('Baseline', 'by its name')
    assert choose_baseline(arms, 'rope')[0] == 'rope'
    assert choose_baseline(dict(b={}, a={}))[0] == 'b'
    with pytest.raises(Stop, match='baseline=x: no such arm; there are alibi, Baseline, rope'):
        choose_baseline(arms, 'x')
