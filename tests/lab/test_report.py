"""The report: every number is the report's, no text of a user's becomes markup, nothing is loaded, and no block is needed."""
import copy
import json
import math
import re
import sys
from html.parser import HTMLParser

import numpy as np
import pytest

from lab.report import figures
from lab.report.report import read as read_report, write_html, write_plots
from lab.stats import compare_arms, step_equivalents
from lab.study.schema import to_dict
from lab.study.words import verdict_sentence

HOSTILE = ['<script>alert(1)</script>', 'a&b"c', "x' onload='alert(2)", '</script><img src=x onerror=alert(3)>', '$_{\\frac',
           '_under', 'a_very_long_name_of_an_arm_that_does_not_fit_in_any_column_of_a_phone', '\x1b[31mred\x00', '']
VOID = {'meta', 'input', 'br', 'img', 'link', 'hr'}


# -----------------------------------------------------------------------------
# reports like those of ab.py

def one_arm(rng, name, shift, spread, seeds, ms, iters, common):
    """An arm of a study: losses in nats that end at 1.47 + shift, with this spread over seeds beside the common one."""
    final, time = 1.47 + shift + common + spread * rng.standard_normal(len(seeds)), np.array(iters)
    val = final[:, None] + 2.7 * np.exp(-time / 260) + 0.002 * rng.standard_normal((len(seeds), len(iters))) * (time < iters[-1])
    position = 1.42 + 1.6 / np.sqrt(np.arange(1, 257)) + shift * np.linspace(0, 2, 256) + 0.01 * rng.standard_normal(256)
    slower = ms / 5.9
    stats = {'window': {'iters': iters, 'layers': [[32 + i * layer / 100 for layer in range(6)] for i in iters]},
             'gate_open': {'iters': iters, 'layers': [[0.5 + i / 25000 + 0.003 * layer for layer in range(6)] for i in iters]}}
    runs = [dict(seed=seed, status='done', reason=None, val_loss=float(x), best_val_loss=float(x) - 0.002, best_iter=1750,
                 train_loss=float(x) - 0.25, seconds=33.0 + ms, init_hash=f'{seed:04x}ab12', batch_hash=f'{seed:04x}cd34')
            for seed, x in zip(seeds, final)]
    return dict(
        name=name, variant=name, baseline=name == 'base', options={} if name == 'base' else {'window_init': 32.0},
        params=10_646_784 + round(1e6 * abs(shift)),
        checks=dict(status='ok', lines=['suffix swap ok', 'row swap ok', 'decode equals one pass'], why=None),
        price=dict(step_ms=ms, step_ratio=slower, forward_flops_per_token=2.2e7 * slower, flops_per_token=6.6e7,
                   flops_ratio=1.0 + abs(shift), peak_bytes=int(1.1e9 * slower), decode_tokens_per_s=4100 / ms,
                   compile_seconds=21.3),
        runs=runs, stats=None if name == 'base' else stats, position_loss=position.tolist(),
        curve=dict(iters=iters, val=val.tolist(), train=(val - 0.25 * time / iters[-1]).tolist(), seeds=seeds),
        loss_at_equal_time=dict(loss=float(final.mean()) + 0.002, iters=round(2000 / slower)),
        loss_at_equal_flops=dict(loss=float(final.mean()), iters=2000),
        sample=f'{name.upper()}:\nWhat say you, <b>my lord</b>? & so\nIt shall be done.\n' * 6)


def compared(arms, delta=0.005):
    """report['comparisons'] of arms, from lab.stats."""
    table = {arm['name']: {run['seed']: run['val_loss'] if run['status'] == 'done' else math.inf for run in arm['runs']}
             for arm in arms}
    verdicts, base = compare_arms(table, delta=delta), arms[0]['curve']
    curve = np.mean(base['val'], axis=0)
    return [{'arm': arm, **to_dict(c), 'words': verdict_sentence(c, verdicts),
             'step_equivalents': None if c.mean is None else step_equivalents(c.mean, base['iters'], curve),
             'text_interval': None if c.mean is None else [c.mean - 0.0014, c.mean + 0.0016]}
            for arm, c in verdicts.comparisons.items()]


def realistic(names=('base', 'soft_window', 'alibi', 'head_scaling', 'gated'), n=5):
    """A study: the first arm is the baseline, then one that helps, one that hurts, one that is equivalent, one unclear."""
    rng, seeds, iters = np.random.default_rng(0), list(range(1, n + 1)), list(range(0, 2001, 250))
    common = 0.003 * rng.standard_normal(n)
    shifts = [0, -0.0078, 0.009, -0.0012, 0.004, 0.15, 0.002, -0.003, 0.001, 0.0005]
    arms = [one_arm(rng, name, shifts[i], 0.006 if i == 4 else 0.0012, seeds, 5.9 * (1 + 0.11 * i), iters, common)
            for i, name in enumerate(names)]
    return dict(
        name='char', command=f'python ab.py config/ab_shakespeare_char.py --variants={",".join(names[1:])} --seeds={n}',
        created='2026-11-22T03:00:00Z', config='config/ab_shakespeare_char.py', arms=arms, comparisons=compared(arms),
        plan=dict(seeds=seeds, delta=0.005, alpha=0.05, looks=None, match=None,
                  metric='final validation loss, whole split, nats per character'),
        environment=dict(device='NVIDIA H100 80GB HBM3', dtype='bfloat16', compile=True, git='a894131', data='sha256 9f2c',
                         versions=dict(torch='2.11.0', numpy='2.3.1', python='3.12.4')),
        recipe=dict(max_iters=2000, batch_size=64, block_size=256, learning_rate=1e-3, dropout=0.2),
        paired=dict(batches_equal=True, init_equal=True, note=''))


def troubled():
    """Hostile names, an arm with a failed and a diverged run, a declared leak, an unknown verdict, numbers that are none."""
    r = realistic(('base', *HOSTILE[:3], 'soft_window', 'far_off'))
    bad = r['arms'][4]
    bad['runs'][1] |= {'status': 'failed', 'reason': 'out of memory: <b>CUDA</b> tried to allocate', 'val_loss': None}
    bad['runs'][3] |= {'status': 'diverged', 'reason': 'loss NaN at iteration 800', 'val_loss': 'Infinity'}
    bad['curve']['val'][3][4:] = ['NaN'] * 5
    bad['curve']['val'][1] = bad['curve']['val'][1][:3]
    bad['checks'] = {'status': 'declared leak', 'lines': [], 'why': 'top-k over the sequence & <so>'}
    r['comparisons'] = compared(r['arms'])
    r['arms'][1]['options'] = {'<i>k</i>': '"><svg onload=alert(4)>'}
    r['arms'][1]['stats'] = {'</svg><script>': {'iters': [0, 1000, 2000], 'layers': [[1, 2], ['NaN', 3], [2, 'Infinity']]}}
    r['arms'][2]['sample'] = '</pre><script>alert(5)</script>' + '\x1b[31mred'
    r['paired'] = {'batches_equal': False, 'init_equal': False, 'note': '<u>note</u>'}
    r['name'], r['command'] = '<h1>&', 'python ab.py "</script>" && rm <x>'
    return r


STUDIES = {
    'realistic': realistic, 'screen': lambda: realistic(n=3), 'troubled': troubled,
    'many': lambda: realistic(('base', *(f'variant_{i}' for i in range(9))), n=8),
    'minimal': lambda: {'arms': [{'name': 'base', 'baseline': True}]}, 'empty': dict,
}


@pytest.fixture(scope='module', params=STUDIES)
def report(request):
    return json.loads(json.dumps(STUDIES[request.param]())) # as it comes from report.json


# -----------------------------------------------------------------------------
# the page

class Page(HTMLParser):
    """A page's elements, tables and texts; tags that do not match are an error."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes, self.texts, self.tables = [], [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        names = [name for name, _ in attributes]
        assert len(names) == len(set(names)), names
        self.tags.append(tag)
        self.attributes += attributes
        if tag == 'table':
            self.tables.append([])
        elif tag == 'tr':
            self.tables[-1].append([])
        elif tag in ('th', 'td'):
            self.tables[-1][-1].append(['', dict(attributes).get('data-v')])
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, tag

    def handle_data(self, text):
        self.texts.append((self.open[-1] if self.open else '', text))
        if self.tables and ('td' in self.open or 'th' in self.open):
            self.tables[-1][-1][-1][0] += text


def read(report, tmp_path):
    write_html(report, tmp_path / 'report.html')
    written = (tmp_path / 'report.html').read_text(encoding='utf-8')
    return written, Page(written)


def test_page_is_well_formed_and_needs_nothing_else(report, tmp_path):
    written, page = read(report, tmp_path)
    assert written.startswith('<!DOCTYPE html>')
    assert page.tags.count('script') == 2 and page.tags.count('style') == page.tags.count('h1') == 1
    assert not {'link', 'img', 'iframe', 'object', 'base', 'form', 'foreignobject'} & set(page.tags)
    for name, value in page.attributes:
        assert not name.startswith('on') and name not in ('src', 'srcset', 'action', 'data'), name
        assert name != 'href' or value.startswith('#')
        assert 'url(' not in (value or '') or re.fullmatch(r'url\(#clip\w+\)', value)
    style = ''.join(text for tag, text in page.texts if tag == 'style')
    assert 'url(' not in style and '@import' not in style and 'prefers-color-scheme:dark' in style
    ids = [value for name, value in page.attributes if name == 'id']
    assert len(ids) == len(set(ids))
    for name, value in page.attributes:
        assert name not in ('href', 'for') or value.lstrip('#') in ids
    assert 'nan' not in {value for name, value in page.attributes if name in ('x', 'y', 'cx', 'cy', 'height', 'width')}
    assert not any('nan' in value or 'inf' in value for name, value in page.attributes if name in ('d', 'points'))


def test_report_can_be_read_back_from_the_page(report, tmp_path):
    _, page = read(report, tmp_path)
    data = [text for tag, text in page.texts if tag == 'script'][0]
    assert not set('<>&') & set(data)
    assert json.loads(data) == report


@pytest.mark.parametrize('name', HOSTILE)
def test_text_of_users_stays_text(name, tmp_path):
    """One hostile text in every place: as a name, an option, a reason, a sample, a statistic, a key, a command."""
    plain, hostile = ('plainname', realistic(('base', 'plainname'))), realistic(('base', name))
    for marker, r in (plain, (name, hostile)):
        arm = r['arms'][1]
        arm['options'], arm['stats'] = {marker: marker}, {marker: {'iters': [0, 1], 'layers': [[1], [2]]}}
        arm['checks'] = dict(status=marker, lines=[marker], why=marker)
        arm['runs'][0] |= dict(status=marker, reason=marker, init_hash=marker)
        arm['sample'] = r['name'] = r['command'] = r['config'] = r['created'] = r['plan']['metric'] = marker
        arm['variant'] = r['comparisons'][0]['verdict'] = r['comparisons'][0]['words'] = r['paired']['note'] = marker
        r['environment'], r['recipe'] = {marker: {marker: [marker]}}, {marker: marker}
    _, page = read(plain[1], tmp_path)
    written, other = read(hostile, tmp_path)
    assert not name or other.tags == page.tags                  # an empty text leaves lines out
    assert not name.startswith('<') or name not in written
    assert '\x1b' not in written and '\x00' not in written
    assert name.replace('\x1b', '\ufffd').replace('\x00', '\ufffd') in ''.join(said for _, said in other.texts)


NUMBERS = [ # column, field of lab.stats, digits shown
    ('d', 'mean', 4), ('p', 'p', 3), ('Holm', 'holm_p', 3), ('flip p', 'flip_p', 3), ('sd of d', 'sd', 4), ('rho', 'rho', 2),
    ('P(imp)', 'p_improve', 2), ('MDE80', 'mde', 4), ('steps', 'step_equivalents', 0),
]


def test_numbers_of_the_verdicts_are_the_reports(report, tmp_path):
    _, page = read(report, tmp_path)
    if not report.get('arms'):
        return
    (titles, *rows), found = page.tables[0], {c['arm']: c for c in report.get('comparisons', ())}
    columns = [title for title, _ in titles]
    assert [row[0][0] for row in rows] == [arm['name'] for arm in report['arms']]
    for row in rows:
        cells, c = dict(zip(columns, row)), found.get(row[0][0])
        if c is None:
            assert cells['verdict'][0] == 'baseline' and cells['d'][0] == '–'
            continue
        assert cells['verdict'][0] == {'better': 'helps', 'worse': 'hurts', 'screen': 'screen only'}.get(c['verdict'], c['verdict'])
        for title, field, digits in NUMBERS:
            shown, exact = cells[title]
            if c.get(field) is None:
                assert shown == '–' and exact is None, title
                continue
            assert float(exact) == c[field], title
            if shown != '<0.001':
                assert float(shown.replace('−', '-')) == pytest.approx(c[field], abs=0.5001 * 10 ** -digits), title
        for title, field in (('95 % interval', 'interval'), ('other text', 'text_interval')):
            shown = [float(x.replace('−', '-')) for x in cells[title][0].split(', ')] if c.get(field) else []
            assert shown == pytest.approx(c.get(field) or [], abs=0.5001e-4)
        assert cells['wins'][0] == f'{c["wins"]}/{c["n"]}'


def test_first_lines_say_what_follows(tmp_path):
    r = realistic()
    _, page = read(r, tmp_path)
    said = ''.join(text for _, text in page.texts).replace('−', '-').replace('\xa0', ' ')
    for c, word in zip(r['comparisons'], ('helps', 'hurts', 'equivalent', "can't tell")):
        low, high = c['interval']
        assert f'{word} {c["arm"]}: {c["mean"]:+.4f} nats, 95 % interval {low:+.4f} to {high:+.4f}' in said
    assert re.search(r"can't tell gated: .* about \d+ more seeds would settle a difference of \+0\.\d+", said)
    assert '1.11 × ms a step' in said and "loss at the baseline's time: 1.4" in said
    screen = ''.join(text for _, text in read(realistic(n=3), tmp_path)[1].texts)
    assert '3 seeds give no verdict, 5 do' in screen.replace('\xa0', ' ')


def test_an_arm_may_have_a_baseline_of_its_own(tmp_path):
    """As ab.py's --match makes one: the arm then has two verdicts, each with its own differences."""
    r = realistic(('base', 'wide', 'base_wide'))
    r['comparisons'] = [r['comparisons'][0] | {'baseline': 'base', 'level': 0.01},
                        compared([r['arms'][2], r['arms'][1]])[0] | {'baseline': 'base_wide', 'level': 0.01}]
    _, page = read(r, tmp_path)
    assert [(row[0][0], row[1][0]) for row in page.tables[0][1:]] == [
        ('base', 'baseline'), ('wide', 'helps'), ('wide against base_wide', 'helps'), ('base_wide', 'matched baseline')]
    assert page.tables[0][0][3][0] == '99 % interval'
    for (_, c, _, each), base in zip(figures.forest(read_report(r)).rows, ('base', 'base_wide')):
        assert c.baseline == base and np.mean(each) == pytest.approx(c.mean)


def test_seeds_that_were_not_run_are_no_failures(tmp_path):
    r = realistic()
    r['arms'][1]['runs'][4] = dict(seed=5, status='missing')
    r['plan']['looks'] = '5,10'                                  # as typed
    written, _ = read(r, tmp_path)
    assert 'planned at 5,10 seeds' in written
    assert 'soft_window: 1 of 5 seeds were not run.' in written and 'id="failed"' not in written


def test_the_plan_is_told(tmp_path):
    """What each arm was matched to, and the learning rates tried; nothing of either where the study had none."""
    r = realistic(('base', 'wide'))
    assert 'match' not in section(read(r, tmp_path)[0]) and 'Learning rates' not in section(read(r, tmp_path)[0])
    tried = {'base': {'0.5': 1.5, '1': 1.4703}, 'wide': {'0.5': None, '1': 1.48}}
    r['plan'] |= dict(match='params', lr_sweep={'seed': 11337, 'losses': tried})
    written, page = read(r, tmp_path)
    assert 'the same number of parameters (match=params)' in section(written) and 'seed 11337' in section(written)
    assert [[cell for cell, _ in row] for row in page.tables[-1]] == [
        ['arm', '0.5 ×', '1 ×'], ['base', '1.5000', '1.4703 ←'], ['wide', '–', '1.4800 ←']]


def section(written, name='statistics'):
    return written.split(f'<section id="{name}"')[1].split('</section>')[0]


def test_arms_share_a_warning(tmp_path):
    r = realistic()
    for arm in r['arms']:
        arm['checks'] = dict(status='skipped', lines=[], why=None)
    assert 'All arms: leak suite: skipped.' in read(r, tmp_path)[0]


def test_statistics_without_layers():
    r = dict(arms=[dict(name='x', stats={'gate': {'iters': [0, 5], 'layers': [0.5, 0.75]}})])
    ((_, figure),) = figures.stat_figures(read_report(r))
    assert [(s.label, s.y) for s in figure.series] == [('gate', [0.5, 0.75])]


def test_sections_in_their_order(tmp_path):
    written, _ = read(troubled(), tmp_path)
    order = ['verdicts', 'price', 'figures', 'diagnostics', 'samples', 'arms', 'failed', 'runs', 'environment', 'recipe', 'command',
             'statistics']
    assert re.findall(r'<section id="(\w+)"', written) == order
    for said in ('did not see the same batches', 'did not start equal', 'soft_window: 2 of 5 runs', 'declared leak, top-k',
                 'loss NaN at'):
        assert said in written


def paths_of(value, at=()):
    """The place of every part of a report."""
    for key, x in value.items() if isinstance(value, dict) else enumerate(value[:2]) if isinstance(value, list) else ():
        yield (*at, key)
        yield from paths_of(x, (*at, key))


def test_any_part_may_be_missing(tmp_path):
    """Each part taken away, or None, or a number that is none: a page comes out all the same."""
    whole = realistic(('base', 'soft_window'))
    places = [at for at in paths_of(whole) if not {'sample', 'position_loss'} & set(at[:-1]) and len(at) < 6]
    assert len(places) > 100
    for at in places:
        for value in (None, 'NaN') if isinstance(lookup(whole, at), float) else (None,):
            r = copy.deepcopy(whole)
            lookup(r, at[:-1])[at[-1]] = value
            if value is None and isinstance(lookup(r, at[:-1]), dict):
                gone = copy.deepcopy(r)
                del lookup(gone, at[:-1])[at[-1]]
                write_html(gone, tmp_path / 'gone.html')
            if isinstance(lookup(r, at[:-1]), dict) or value:
                write_html(r, tmp_path / 'none.html')


def lookup(value, at):
    for key in at:
        value = value[key]
    return value


# -----------------------------------------------------------------------------
# PNGs

@pytest.mark.parametrize('name', ['realistic', 'troubled', 'minimal', 'empty'])
def test_figures_as_png(name, tmp_path):
    pytest.importorskip('matplotlib')
    report = STUDIES[name]()
    written = write_plots(report, tmp_path / 'plots')
    assert len(set(written)) == len(written) and all(path.parent == tmp_path / 'plots' for path in written)
    assert all(path.read_bytes().startswith(b'\x89PNG') for path in written)
    assert bool(written) == ('curve' in (report.get('arms') or [{}])[0])


def test_no_figures_without_matplotlib(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'matplotlib.figure', None)
    with pytest.raises(ImportError):
        write_plots(realistic(), tmp_path)


# -----------------------------------------------------------------------------
# numbers and axes

@pytest.mark.parametrize('low, high', [
    (0, 1), (-0.013, 0.02), (1.4612, 1.4705), (0, 2000), (5.9, 9.15), (6.0e7, 7.2e7), (-1e-6, 1e-6)])
def test_ticks_are_round_distinct_and_within(low, high):
    values, texts = zip(*figures.ticks(low, high))
    assert 2 <= len(values) <= 6 and len(set(texts)) == len(texts)
    assert all(low - 1e-9 * (high - low) <= v <= high + 1e-9 * (high - low) for v in values)
    if high < 1e6:
        assert [float(x.replace(',', '')) for x in texts] == pytest.approx(values, abs=1e-12)


def test_position_bins_average_all_positions():
    """A difference that is the same everywhere is so in every bin; the last position counts."""
    r = dict(arms=[dict(name='base', baseline=True, position_loss=[2.0] * 200), dict(name='x', position_loss=[2.5] * 199 + [9.0])])
    series = figures.position_figure(read_report(r)).series[0]
    assert series.y[:-1] == [0.5] * (len(series.y) - 1) and series.y[-1] > 0.5 and series.x[0] == 1 and series.x[-1] <= 200


def test_costs_that_agree_make_no_figure():
    r = read_report(realistic(('base', 'a')))
    assert figures.cost_figure(r, 'step_ms', '') and figures.cost_figure(r, 'flops_per_token', '') is None


def test_unfinished_runs_do_not_move_the_mean():
    """Nor does the first part of one: of a run that stopped, of one that diverged."""
    val = [[2.0, 1.0], [4.0, 3.0], [100.0], [100.0, 'NaN'], [100.0, None]]
    r = dict(arms=[dict(name='base', baseline=True, curve=dict(iters=[0, 10], val=val, seeds=[1, 2, 3, 4, 5]))])
    (line,) = figures.loss_figure(read_report(r), 'val', '').series
    assert (line.y, line.low, line.high, len(line.each)) == ([3, 2], [2, 1], [4, 3], 2)


def test_difference_curve_is_paired(tmp_path):
    """With seeds in another order and iterations that only partly agree."""
    r = dict(arms=[
        dict(name='base', baseline=True, curve=dict(iters=[0, 10, 20], val=[[4, 3, 2], [5, 4, 3]], seeds=[1, 2])),
        dict(name='x', curve=dict(iters=[0, 20, 40], val=[[5, 2.5, 1], [4, 1.5, 1]], seeds=[2, 1]))])
    series = figures.difference_figure(read_report(r)).series[0]
    assert series.x == [0, 20] and series.y == [0, -0.5] and series.low == series.high == series.y


def test_an_arm_far_off_does_not_flatten_the_others():
    r = read_report(realistic(('base', 'a', 'b', 'c', 'd', 'far_off')))
    tree = figures.forest(r)
    assert tree.reach < 0.1 < max(c.mean for _, c, *_ in tree.rows) and 'Arrow' in tree.note
    assert 'far_off' in figures.difference_figure(r).note


def test_equal_to_the_bit_without_delta(tmp_path):
    """An A/A study whose arms agree in every bit: axes of no size would divide by zero."""
    r = realistic(('base', 'same'))
    r['arms'][1] |= {key: r['arms'][0][key] for key in ('runs', 'curve', 'position_loss', 'price')}
    r['comparisons'], r['plan']['delta'] = compared(r['arms']), None
    assert 'nan' not in read(r, tmp_path)[0].split('<script')[0].lower()
