"""The report shows the numbers of report.json, lets no user's text become markup, and loads nothing."""
import copy
import json
import math
import pickle
import re
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
from scipy.stats import ttest_ind

from lab.report import figures, write_html, write_plots
from lab.report.read import read_report
from lab.stats import compare_arms, step_equivalents
from lab.study.schema import to_dict
from lab.study.words import verdict_sentence

HOSTILE = ['<script>alert(1)</script>', 'a&b"c', "x' onload='alert(2)",
           '</script><img src=x onerror=alert(3)>', '$_{\\frac$', '_under', '#0b6bcb 0.12345',
           'a_very_long_name_of_an_arm_that_does_not_fit_in_any_column_of_a_phone', '\x1b[31mred\x00', '']
VOID = {'meta', 'input', 'br', 'img', 'link', 'hr'}


# -----------------------------------------------------------------------------
# reports like those of ab.py

def make_arm(rng, name, shift, spread, seeds, ms, iters, common):
    """Returns an arm whose losses end at 1.47 + shift nats, with a spread of its own over seeds."""
    final, time = 1.47 + shift + common + spread * rng.standard_normal(len(seeds)), np.array(iters)
    noise = 0.002 * rng.standard_normal((len(seeds), len(iters))) * (time < iters[-1])
    val = final[:, None] + 2.7 * np.exp(-time / 260) + noise
    position = 1.42 + 1.6 / np.sqrt(np.arange(1, 257)) + shift * np.linspace(0, 2, 256)
    position += 0.01 * rng.standard_normal(256)
    slower = ms / 5.9
    gate = [[0.5 + i / 25000 + 0.003 * layer for layer in range(6)] for i in iters]
    window = [[32 + i * layer / 100 for layer in range(6)] for i in iters]
    stats = {'window': {'iters': iters, 'layers': window}, 'gate_open': {'iters': iters, 'layers': gate}}
    runs = [dict(seed=seed, status='done', reason=None, val_loss=float(x), best_val_loss=float(x) - 0.002,
                 best_iter=1750, train_loss=float(x) - 0.25, seconds=33.0 + ms, init_hash=f'{seed:04x}ab12',
                 batch_hash=f'{seed:04x}cd34')
            for seed, x in zip(seeds, final)]
    return dict(
        name=name, variant=name, baseline=name == 'base',
        options={} if name == 'base' else {'window_init': 32.0},
        params=10_646_784 + round(1e6 * abs(shift)),
        checks=dict(status='ok', lines=['suffix swap ok', 'row swap ok', 'decode equals one pass'], why=None),
        price=dict(step_ms=ms, step_ratio=slower, forward_flops_per_token=2.2e7 * slower,
                   flops_per_token=6.6e7, flops_ratio=1.0 + abs(shift), peak_bytes=int(1.1e9 * slower),
                   decode_tokens_per_s=4100 / ms, compile_seconds=21.3),
        runs=runs, stats=None if name == 'base' else stats, position_loss=position.tolist(),
        curve=dict(iters=iters, val=val.tolist(), train=(val - time / 8000).tolist(), seeds=seeds),
        loss_at_equal_time=dict(loss=float(final.mean()) + 0.002, iters=round(2000 / slower)),
        loss_at_equal_flops=dict(loss=float(final.mean()), iters=2000),
        sample=f'{name.upper()}:\nWhat say you, <b>my lord</b>? & so\nIt shall be done.\n' * 6)


def comparisons_of(arms, delta=0.005):
    """Returns report['comparisons'] of arms, by lab.stats."""
    table = {arm['name']: {run['seed']: run['val_loss'] if run['status'] == 'done' else math.inf
                           for run in arm['runs']} for arm in arms}
    result, base = compare_arms(table, delta=delta), arms[0]['curve']
    curve = np.mean(base['val'], axis=0)
    return [{'arm': arm, 'baseline': arms[0]['name'], **to_dict(c), 'words': verdict_sentence(c, result),
             **dict(step_equivalents=None, text_interval=None) | ({} if c.mean is None else dict(
                 step_equivalents=step_equivalents(c.mean, base['iters'], curve),
                 text_interval=[c.mean - 0.0014, c.mean + 0.0016]))}
            for arm, c in result.comparisons.items()]


def realistic(names=('base', 'soft_window', 'alibi', 'head_scaling', 'gated'), n=5):
    """Returns a study: the baseline, then an arm that helps, one that hurts, an equivalent and an unclear one."""
    rng, seeds, iters = np.random.default_rng(0), list(range(1, n + 1)), list(range(0, 2001, 250))
    common = 0.003 * rng.standard_normal(n)
    shifts = [0, -0.0078, 0.009, -0.0012, 0.004, 0.15, 0.002, -0.003, 0.001, 0.0005]
    arms = [make_arm(rng, name, shifts[i], 0.006 if i == 4 else 0.0012, seeds, 5.9 * (1 + 0.11 * i), iters,
                     common) for i, name in enumerate(names)]
    return dict(
        name='char', config='config/ab_shakespeare_char.py', created='2026-11-22T03:00:00Z',
        command=f'python ab.py config/ab_shakespeare_char.py --variants={",".join(names[1:])} --seeds={n}',
        arms=arms, comparisons=comparisons_of(arms),
        plan=dict(seeds=seeds, delta=0.005, alpha=0.05, looks=None, match=None,
                  metric='final validation loss, whole split, nats per character'),
        environment=dict(device='NVIDIA H100 80GB HBM3', dtype='bfloat16', compile=True, git='a894131',
                         data='sha256 9f2c', versions=dict(torch='2.11.0', numpy='2.3.1', python='3.12.4')),
        recipe=dict(max_iters=2000, batch_size=64, block_size=256, learning_rate=1e-3, dropout=0.2),
        paired=dict(batches_equal=True, init_equal=True, note=''))


def troubled():
    """Returns a study with hostile names, a failed and a diverged run, a declared leak, and NaN and infinity."""
    r = realistic(('base', *HOSTILE[:3], 'soft_window', '_far$_{off$'))
    bad = r['arms'][4]
    bad['runs'][1] |= dict(status='failed', reason='out of memory: <b>CUDA</b> has 80 GB', val_loss=None)
    bad['runs'][3] |= dict(status='diverged', reason='loss NaN at iteration 800', val_loss='Infinity')
    bad['curve']['val'][3][4:] = ['NaN'] * 5
    bad['curve']['val'][1] = bad['curve']['val'][1][:3]
    bad['checks'] = {'status': 'declared leak', 'lines': [], 'why': 'top-k over the sequence & <so>'}
    r['comparisons'] = comparisons_of(r['arms'])
    r['arms'][1]['options'] = {'<i>k</i>': '"><svg onload=alert(4)>'}
    layers = [[1, 2], ['NaN', 3], [2, 'Infinity']]
    r['arms'][1]['stats'] = {'</svg><script>': {'iters': [0, 1000, 2000], 'layers': layers}}
    r['arms'][2]['sample'] = '</pre><script>alert(5)</script>' + '\x1b[31mred'
    r['paired'] = {'batches_equal': False, 'init_equal': False, 'note': '<u>note</u>'}
    r['name'], r['command'] = '<h1>&', 'python ab.py "</script>" && rm <x>'
    return r


STUDIES = {
    'realistic': realistic, 'screen': lambda: realistic(n=3), 'troubled': troubled,
    'many': lambda: realistic(('base', *(f'variant_{i}' for i in range(9))), n=8),
    'looking': lambda: looking(), 'from a file': lambda: from_file(),
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
        self.text, self.open, self.tags, self.elements, self.texts, self.tables = text, [], [], [], [], []
        self.details, self.unfinished = [], [] # [attributes, text] of what is folded
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        names = [name for name, _ in attributes]
        assert len(names) == len(set(names)), names
        self.tags.append(tag)
        self.elements.append((tag, dict(attributes)))
        if tag == 'details':
            self.unfinished.append([dict(attributes), ''])
        if tag == 'table':
            self.tables.append([])
        elif tag == 'tr':
            self.tables[-1].append([])
        elif tag in ('th', 'td'):
            self.tables[-1][-1].append(['', dict(attributes).get('data-v')])
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, tag
        if tag == 'details':
            self.details.append(self.unfinished.pop())

    def handle_data(self, text):
        self.texts.append((self.open[-1] if self.open else '', text))
        for details in self.unfinished:
            details[1] += text
        if self.tables and ('td' in self.open or 'th' in self.open):
            self.tables[-1][-1][-1][0] += text

    @property
    def attributes(self):
        return [pair for _, attributes in self.elements for pair in attributes.items()]

    def words(self, *tags):
        """Returns the text in these elements, or in all, as a reader would type it."""
        text = ''.join(text for tag, text in self.texts if not tags or tag in tags)
        return text.replace('−', '-').replace('\xa0', ' ')


def read(report, tmp_path):
    write_html(report, tmp_path / 'report.html')
    return Page((tmp_path / 'report.html').read_text(encoding='utf-8'))


@pytest.fixture(scope='module')
def page(report, tmp_path_factory):
    return read(report, tmp_path_factory.mktemp('page'))


@pytest.fixture(scope='module')
def realistic_page(tmp_path_factory):
    return read(realistic(), tmp_path_factory.mktemp('page'))


@pytest.fixture
def no_charts(monkeypatch):
    """Leaves out the charts, for tests of the rest of a page."""
    monkeypatch.setattr(figures, 'draw_svg', lambda chart, prefix: '')


def test_page_is_well_formed_and_needs_nothing_else(page):
    assert page.text.startswith('<!DOCTYPE html>')
    assert page.tags.count('script') == 2 and page.tags.count('style') == page.tags.count('h1') == 1
    assert not {'link', 'img', 'iframe', 'object', 'base', 'form', 'foreignobject'} & set(page.tags)
    policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
    assert ('meta', {'http-equiv': 'Content-Security-Policy', 'content': policy}) in page.elements
    for name, value in page.attributes:
        assert not name.startswith('on') and name not in ('src', 'srcset', 'action', 'data'), name
        assert not name.endswith('href') or value.startswith('#')
        assert 'url(' not in (value or '') or name == 'clip-path' and re.fullmatch(r'url\(#[\w-]+\)', value)
    style = page.words('style')
    assert 'url(' not in style and '@import' not in style and '(prefers-color-scheme: dark)' in style


def test_ids_of_a_page_are_its_own(page):
    """In all its SVGs together each id occurs once, and each reference leads to one."""
    ids = [value for name, value in page.attributes if name == 'id']
    assert len(ids) == len(set(ids))
    for name, value in page.attributes:
        if name.endswith('href') or name == 'for':
            assert value.lstrip('#') in ids
        elif name == 'clip-path':
            assert value[5:-1] in ids


def test_report_can_be_read_back_from_the_page(report, page):
    data = [text for tag, text in page.texts if tag == 'script'][0]
    assert not set('<>&') & set(data)
    assert json.loads(data) == report


def with_text_everywhere(text):
    """Returns a report with this text as name, option, reason, sample, statistic, key and command."""
    r = realistic(('base', text), n=2)
    arm = r['arms'][1]
    arm['options'], arm['stats'] = {text: text}, {text: {'iters': [0, 1], 'layers': [[1], [2]]}}
    arm['checks'] = dict(status=text, lines=[text], why=text)
    arm['runs'][0] |= dict(status=text, reason=text, init_hash=text)
    arm['variant'] = arm['sample'] = r['paired']['note'] = r['plan']['metric'] = text
    r['name'] = r['command'] = r['config'] = r['created'] = text
    r['comparisons'][0] |= dict(verdict=text, words=text)
    r['environment'], r['recipe'] = {text: {text: [text]}}, {text: text}
    return r


@pytest.fixture(scope='module')
def harmless_page(tmp_path_factory):
    return read(with_text_everywhere('plainname'), tmp_path_factory.mktemp('page'))


@pytest.mark.parametrize('name', HOSTILE)
def test_text_of_users_stays_text(name, harmless_page, tmp_path):
    page = read(with_text_everywhere(name), tmp_path)
    assert not name or page.tags == harmless_page.tags          # an empty text leaves lines out
    assert not name.startswith('<') or name not in page.text
    assert '\x1b' not in page.text and '\x00' not in page.text
    shown = name.replace('\x1b', '\ufffd').replace('\x00', '\ufffd')
    assert shown in page.words() and shown[:20] in page.words('text')


NUMBERS = [ # column, field of lab.stats, digits shown
    ('difference', 'mean', 4), ('p', 'holm_p', 3), ('p alone', 'p', 3), ('flip p', 'flip_p', 3), ('sd of d', 'sd', 4),
    ('rho', 'rho', 2), ('P(imp)', 'p_improve', 2), ('MDE80', 'mde', 4), ('steps', 'step_equivalents', 0),
    ('raw', 'raw_mean', 4), ('shrunk', 'shrunk', 4), ('decided at', 'decided_at', 0),
    ('P(better)', 'p_better', 2), ('P(within)', 'p_within', 2),
]


def rows_of(table):
    """Returns {first cell: {title: (text, exact value)}} of a page's table."""
    titles, *rows = table
    return {row[0][0]: {title: cell for (title, _), cell in zip(titles, row)} for row in rows}


def number(text):
    return float(text.replace('−', '-').lstrip('<>'))


def same_numbers(page, comparisons):
    """Asserts that the two tables of verdicts show the numbers of these comparisons."""
    verdicts, statistics = map(rows_of, page.tables[:2])
    for c in comparisons:
        cells = verdicts[c['arm']] | statistics[c['arm']]
        assert cells['verdict'][0].removesuffix('suspicious') == c['verdict']
        for title, field, digits in NUMBERS:
            shown, exact = cells.get(title, ('–', None))
            if c.get(field) is None:
                assert shown == '–' and exact is None, title
                continue
            assert float(exact) == c[field], title
            # an interval stands below
            shown = shown.split('[')[0]
            if shown[0] not in '<>':
                assert number(shown) == pytest.approx(c[field], abs=0.5001 * 10 ** -digits), title
        intervals = ('difference', 'interval'), ('shrunk', 'shrunk_interval'), ('other text', 'text_interval')
        for title, field in intervals:
            ends = cells.get(title, ('', None))[0].partition('[')[2].rstrip(']')
            shown = [number(x) for x in ends.split(', ')] if ends else []
            assert shown == pytest.approx(c.get(field) or [], abs=0.5001e-4), title
        if c.get('wins') is not None:
            assert cells['wins'][0] == f'{c["wins"]}/{c["n"]}'


def test_numbers_of_the_verdicts_are_the_reports(report, page):
    if not report.get('comparisons'):
        return
    same_numbers(page, report['comparisons'])
    shown = rows_of(page.tables[0])
    assert sorted(shown) == sorted(arm['name'] for arm in report['arms'])
    assert shown['base']['verdict'][0] == 'baseline' and shown['base']['difference'][0] == '–'


def test_arms_are_sorted_by_verdict_and_undecided_ones_folded(tmp_path, no_charts):
    r = realistic(('base', 'soft_window', 'alibi', 'same', 'gated', 'far'))
    r['comparisons'].reverse()
    page = read(r, tmp_path)
    verdicts = [cells['verdict'][0] for cells in rows_of(page.tables[0]).values()]
    assert verdicts == ['baseline', 'better', 'worse', 'worse', 'equivalent', "can't tell"]
    # gated hurts less than far
    assert list(rows_of(page.tables[0]))[2:4] == ['alibi', 'far']
    groups = [text for attributes, text in page.details if attributes.get('class') == 'group']
    assert len(groups) == 1 and groups[0].startswith("can't tell gated")
    assert '1 better · 2 worse · 1 equivalent · 1 can\'t tell' in page.words('p')
    # where nothing is decided, nothing is folded
    r['comparisons'] = [c | dict(verdict="can't tell") for c in r['comparisons']]
    assert not [1 for attributes, _ in read(r, tmp_path).details if attributes.get('class') == 'group']


def test_words_are_printed_as_given(tmp_path, no_charts):
    """The page's words are the terminal's; the numbers stand below them."""
    r = realistic()
    said = read(r, tmp_path).words()
    for c in r['comparisons']:
        low, high = c['interval']
        assert f'{c["arm"]} {c["words"]}' in said
        assert f'{c["mean"]:+.4f} nats, 95 % interval {low:+.4f} to {high:+.4f}; 5 seeds' in said
    assert '1.11 × ms a step' in said and "loss at the baseline's time: 1.4" in said
    # of an older version
    assert 'soft_window screen; 3 seeds give no verdict' in read(
        realistic(n=3) | dict(comparisons=[r['comparisons'][0] | dict(
            verdict='screen', words='screen; 3 seeds give no verdict, 5 do')]), tmp_path).words()


def looking(n_base=12, ns=(4, 16)):
    """Returns a study with seeds=auto: arms of different numbers of runs against the baseline's stored ones."""
    r = realistic(('base', 'early', 'long'), n=max(n_base, *ns))
    for arm, n in zip(r['arms'], (n_base, *ns)):
        shift = 0 if arm is r['arms'][0] else 1000
        arm['runs'] = [run | dict(seed=run['seed'] + shift, bits_per_byte=run['val_loss'] / math.log(2))
                       for run in arm['runs'][:n]]
        curve = arm['curve']
        curve['val'], curve['seeds'] = curve['val'][:n], [run['seed'] for run in arm['runs']]
        # evaluated at the last point only
        curve['train'] = [[None] * 8 + [2.0]] * n
    r['comparisons'] = [
        dict(arm='early', baseline='base', n=4, n_base=n_base, test='welch', verdict='better', level=0.008,
             words='better by .0071, 4 runs against 12', mean=-0.0071, raw_mean=-0.0079, interval=[-0.01, -0.004],
             shrunk=-0.0066, shrunk_interval=[-0.009, -0.003], p_better=0.9991, p_within=0.003, p=0.0004, holm_p=0.0008,
             decided_at=4, suspicions=['the gain sits at positions 48 & 96'], p_improve=1.0,
             equal_time=dict(words="can't tell; 3 more runs", verdict="can't tell", mean=0.0011,
                             interval=[-0.01, 0.02])),
        dict(arm='long', baseline='base', n=16, n_base=n_base, test='welch', verdict='worse', level=0.008,
             words='worse by .0087', mean=0.0087, interval=[0.004, 0.013], p=0.001, holm_p=0.001, p_improve=0.1)]
    r['plan'] |= dict(design="Welch's test, because <stored> runs cost nothing.", looks='4, 6, 8',
                      stored=dict(before=10, new=2), store='out-ab/runs/5f')
    r['arms'][1]['price']['step_ratio_interval'] = [1.08, 1.13]
    r['arms'][1]['checks']['outcomes'] = {'suffix swap': 'ok', 'decode': 'crashed in h.0.attn'}
    r['noise_floor'] = dict(n=8, mean=0.0001, sd=0.004)
    return r


def test_a_study_with_looks(tmp_path, no_charts):
    r = looking()
    page = read(r, tmp_path)
    same_numbers(page, r['comparisons'])
    cells = rows_of(page.tables[0])['early']
    assert cells['runs'][0] == '4/4against 12' and cells['verdict'][0] == 'bettersuspicious'
    assert cells['equal time'][0] == "+0.0011can't tell" and cells['ms ×'][0] == '1.110[1.080, 1.130]'
    assert float(cells['bits a byte'][1]) == np.mean([run['bits_per_byte'] for run in r['arms'][1]['runs']])
    said = page.words('p', 'b', 'strong')
    for words in ('Suspicious: the gain sits at positions 48 & 96', 'early better by .0071, 4 runs against 12',
                  "Against a baseline trained as long: can't tell; 3 more runs (+0.0011 nats, interval -0.0100",
                  'differs from itself by 0.0040 nats', "Welch's test, because <stored> runs cost nothing.",
                  'stands on 12 runs: 10 that were stored before in out-ab/runs/5f, 2 trained',
                  'early: decode: crashed in h.0.attn. A check', '1.11 × [1.08, 1.13] ms a step', '4 runs against 12'):
        assert words in said, words
    assert 'sign-flip' not in plan_of(page) and 'does not assume equal spreads' in plan_of(page)


def test_runs_that_are_not_paired_are_not_drawn_as_pairs():
    """Rings are runs minus the baseline's mean, and curves are differences of means, though seeds agree."""
    r = looking(n_base=6, ns=(6, 6))
    for arm in r['arms']:
        for seed, run in enumerate(arm['runs']):
            run['seed'] = arm['curve']['seeds'][seed] = seed
    report = read_report(r)
    base, early = ([run['val_loss'] for run in arm['runs']] for arm in r['arms'][:2])
    row, _ = figures.forest_plot(report).rows
    assert row.differences == pytest.approx(np.array(early) - np.mean(base))
    chart = figures.difference_chart(report)
    assert not chart.has_seeds and 'Same seed' not in chart.note
    var, ref = (np.array(r['arms'][i]['curve']['val']) for i in (1, 0))
    (s, _), at = chart.series, len(r['arms'][0]['curve']['iters']) - 1
    test = ttest_ind(var[:, at], ref[:, at], equal_var=False).confidence_interval(1 - 0.008)
    assert [s.y[at], s.low[at], s.high[at]] == pytest.approx([var[:, at].mean() - ref[:, at].mean(), *test])
    # the same runs, paired
    for c in r['comparisons']:
        c['test'] = 'paired t'
    row, _ = figures.forest_plot(read_report(r)).rows
    assert row.differences == pytest.approx(np.array(early) - base)


def from_file():
    """Returns the report of accuracies from a file, and what it was made of."""
    whole = realistic(('base', 'good', 'bad'))
    runs = {arm['name']: [dict(seed=run['seed'], status='done', val_loss=run['val_loss']) for run in arm['runs']]
            for arm in whole['arms']}
    arms = [dict(name=name, variant=None, baseline=name == 'base', options={}, runs=x) for name, x in runs.items()]
    plan = dict(seeds=[1, 2, 3, 4, 5], delta=0.005, alpha=0.05, looks=None, metric='acc, as given',
                unit='accuracy', higher_is_better=True)
    words = dict(better='worse', worse='better')
    comparisons = [c | dict(verdict=words[c['verdict']], words=c['words'].replace(c['verdict'], words[c['verdict']]),
                            text_interval=None, step_equivalents=None) for c in whole['comparisons']]
    return dict(name='r', command='python ab.py', config=None, created='now', plan=plan, arms=arms,
                environment=dict(versions={}), comparisons=comparisons, tables=[])


def test_a_file_of_losses_has_only_losses(tmp_path):
    page = read(from_file(), tmp_path)
    sections = [attributes['id'] for tag, attributes in page.elements if tag == 'section']
    assert sections == ['verdicts', 'figures', 'runs', 'environment', 'command', 'statistics']
    titles = [[title for title, _ in table[0]] for table in page.tables]
    assert titles == [['arm', 'verdict', 'difference', 'shrunk', 'P(better)', 'P(within)', 'runs', 'value', 'p'],
                      ['arm', 'test', 'p alone', 'flip p', 'sd of d', 'rho', 'wins', 'P(imp)', 'MDE80', 'raw'],
                      ['arm', 'seed', 'status', 'value']]
    said = page.words('p', 'figcaption', 'text', 'dd', 'h2', 'h3')
    for absent in ('nats', 'batches', 'initial values', 'iteration', 'leak', 'text', 'best one on the way'):
        assert absent not in said, absent
    assert 'accuracy; above zero the arm is better' in said and 'above zero better' in said
    assert '+0.0095 accuracy, 95 %' in said
    # the arm that is higher comes first
    assert list(rows_of(page.tables[0])) == ['base', 'bad', 'good']


@pytest.mark.parametrize('up', [True, False])
def test_the_largest_gain_comes_first(up):
    r = from_file()
    r['plan']['higher_is_better'] = up
    for c, mean in zip(r['comparisons'], (0.01, 0.02)):
        c |= dict(verdict='better', mean=mean)
    names = [v.title for v in read_report(r).verdicts]
    assert names == (['base', 'bad', 'good'] if up else ['base', 'good', 'bad'])


def test_fifty_arms_can_be_used(tmp_path):
    """Words instead of paragraphs, folded groups, a forest plot of all arms, curves of seven."""
    r = looking()
    fifty = [copy.deepcopy(r['arms'][1 + i % 2]) | dict(name=f'arm_{i}') for i in range(50)]
    r['comparisons'] = [r['comparisons'][i % 2] | dict(arm=f'arm_{i}', mean=0.001 * (i - 25), suspicions=[])
                        for i in range(50)]
    r['arms'] = [r['arms'][0], *fifty]
    report = read_report(r)
    forest = figures.forest_plot(report)
    assert [row.title for row in forest.rows][:3] == ['arm_0', 'arm_2', 'arm_4'] and len(forest.rows) == 50
    for chart in figures.build_charts(report)[1:]:
        assert 7 <= len(chart.series) <= 8 and 'The first 7 of 50 arms' in chart.note
        assert len({(s.legend_entry.color, s.legend_entry.dashed) for s in chart.series}) == len(chart.series)
    write_html(r, tmp_path / 'r.html')
    page = Page((tmp_path / 'r.html').read_text(encoding='utf-8'))
    groups = [text for attributes, text in page.details if attributes.get('class') == 'group']
    assert len(groups) == 1 and groups[0].startswith('worse arm_1') and '15 more' in groups[0]
    assert len(rows_of(page.tables[0])) == 51


@pytest.mark.parametrize('study', [realistic, looking])
def test_texts_of_the_forest_plot_lie_on_nothing(study):
    """Not on a line, a marker, an area or another text, at the widths of matplotlib's font."""
    figure = figures.forest_plot(read_report(study())).draw()
    (ax,) = figure.axes
    figure.canvas.draw()
    texts = [text.get_window_extent() for text in ax.texts]
    marks = [artist.get_window_extent() for artist in (*ax.lines, *ax.collections)]
    for i, text in enumerate(texts):
        assert not any(text.overlaps(mark) for mark in marks)
        assert not any(text.overlaps(other) for other in texts[:i])


def test_an_arm_may_have_a_baseline_of_its_own(tmp_path, no_charts):
    """As with ab.py's --match: the arm then has two verdicts, each with its own differences."""
    r = realistic(('base', 'wide', 'base_wide'))
    matched, = comparisons_of([r['arms'][2], r['arms'][1]])
    r['comparisons'] = [c | {'level': 0.01} for c in (r['comparisons'][0], matched)]
    page = read(r, tmp_path)
    assert {(row[0][0], row[1][0]) for row in page.tables[0][1:]} == {
        ('base', 'baseline'), ('wide', 'better'), ('wide against base_wide', 'better'),
        ('base_wide', 'matched baseline')}
    assert '99 % interval' in page.words('p')
    for row, base in zip(figures.forest_plot(read_report(r)).rows, ('base_wide', 'base')):
        assert row.comparison.baseline == base
        assert np.mean(row.differences) == pytest.approx(row.comparison.mean)


def test_seeds_that_were_not_run_are_no_failures(tmp_path, no_charts):
    r = realistic()
    r['arms'][1]['runs'][4] = dict(seed=5, status='missing')
    r['plan']['looks'] = '5,10'                                  # as typed
    page = read(r, tmp_path)
    assert 'planned at 5,10 seeds' in page.words('p')
    assert 'soft_window: 1 of 5 seeds were not run.' in page.words('p')
    assert ('id', 'failed') not in page.attributes


def test_the_plan_is_told(tmp_path, no_charts):
    """The page names the match and the learning rates tried, and neither if the study had none."""
    r = realistic(('base', 'wide'))
    assert 'match' not in plan_of(read(r, tmp_path)) and 'Learning rates' not in plan_of(read(r, tmp_path))
    tried = {'base': {'0.5': 1.5, '1': 1.4703}, 'wide': {'0.5': None, '1': 1.48},
             'astray': {'0.5': None, '1': None}}
    r['plan'] |= dict(match='params', lr_sweep={'seed': 11337, 'losses': tried})
    page = read(r, tmp_path)
    assert 'the same number of parameters (match=params)' in plan_of(page) and 'seed 11337' in plan_of(page)
    assert [[cell for cell, _ in row] for row in page.tables[-1]] == [
        ['arm', '0.5 ×', '1 ×'], ['base', '1.5000', '1.4703 ←'], ['wide', '–', '1.4800 ←'],
        ['astray', '–', '–']]


def plan_of(page):
    """The last section's text."""
    return page.text.split('<section id="statistics"')[1].split('</section>')[0]


def test_arms_share_a_warning(tmp_path, no_charts):
    r = realistic()
    for arm in r['arms']:
        arm['checks'] = dict(status='skipped', lines=[], why=None)
    assert 'All arms: leak suite: skipped.' in read(r, tmp_path).words('p')


def test_statistics_without_layers():
    r = dict(arms=[dict(name='x', stats={'gate': {'iters': [0, 5], 'layers': [0.5, 0.75]}})])
    ((_, (chart,)),) = figures.build_diagnostics(read_report(r))
    assert [(s.label, s.y) for s in chart.series] == [('gate', [0.5, 0.75])]


def test_sections_in_their_order(tmp_path, no_charts):
    page = read(troubled(), tmp_path)
    order = ['verdicts', 'price', 'figures', 'diagnostics', 'samples', 'arms', 'failed', 'runs',
             'environment', 'recipe', 'command', 'statistics']
    assert [attributes['id'] for tag, attributes in page.elements if tag == 'section'] == order
    assert [attributes['href'][1:] for tag, attributes in page.elements if tag == 'a'] == order
    for said in ('did not see the same batches', 'did not start equal', 'soft_window: 2 of 5 runs',
                 'declared leak, top-k', 'loss NaN at'):
        assert said in page.words()


def paths_of(value, at=()):
    """Returns the path of every part of a report."""
    if isinstance(value, list):
        value = dict(enumerate(value[:2]))
    for key, x in value.items() if isinstance(value, dict) else ():
        yield (*at, key)
        yield from paths_of(x, (*at, key))


def test_any_part_may_be_missing(tmp_path, monkeypatch):
    """With each part missing, None, or not a finite number, a page comes out all the same."""
    svg_of, draw_svg = {}, figures.draw_svg

    def draw_once(chart, prefix):
        """Most parts change no chart, or one."""
        numbers = pickle.dumps(chart)
        if numbers not in svg_of:
            svg_of[numbers] = draw_svg(chart, prefix)
        return svg_of[numbers]
    monkeypatch.setattr(figures, 'draw_svg', draw_once)
    whole = realistic(('base', 'soft_window'), n=2)
    for arm in whole['arms']:                           # what is only longer takes time
        arm['position_loss'], arm['sample'] = arm['position_loss'][:8], arm['sample'][:80]
    whole['arms'][1]['stats'] = {'gate': {'iters': [0, 1, 2], 'layers': [[1, 2], [3, 4], [5, 6]]}}
    places = [at for at in paths_of(whole) if not {'sample', 'position_loss'} & set(at[:-1]) and len(at) < 6]
    assert len(places) > 100
    for at in places:
        for value in (None, 'NaN') if isinstance(lookup(whole, at), float) else (None,):
            r = copy.deepcopy(whole)
            lookup(r, at[:-1])[at[-1]] = value
            if value is None and isinstance(lookup(r, at[:-1]), dict):
                lacking = copy.deepcopy(r)
                del lookup(lacking, at[:-1])[at[-1]]
                write_html(lacking, tmp_path / 'lacking.html')
            if isinstance(lookup(r, at[:-1]), dict) or value:
                write_html(r, tmp_path / 'none.html')


def lookup(value, at):
    for key in at:
        value = value[key]
    return value


# -----------------------------------------------------------------------------
# charts

def test_colors_follow_the_page_into_the_dark(page):
    """Each color of a chart is a variable that the page has for light and for dark."""
    style = page.words('style')
    light, dark = (set(re.findall(r'(--[\w-]+):', scheme)) for scheme in style.split('@media')[:2])
    assert light == dark
    colors = [color for name, value in page.attributes if name in ('style', 'fill', 'stroke')
              for color in re.findall(r'(?:color|fill|stroke):\s*([^;]+)', value)]
    assert set(colors) <= {'none'} | {f'var({name})' for name in light}
    # they are found by their values
    assert len(set(figures.COLORS.values())) == len(figures.COLORS) == len(light)


def test_charts_are_sharp_and_small(page):
    """Text has 12 units of 360; numbers are finite, to a tenth.

    A page's size suits the numbers that it holds.
    """
    for tag, attributes in page.elements:
        if tag == 'svg':
            assert attributes['viewbox'].startswith('0 0 360 ') and attributes['aria-label']
        for name in {'d', 'x', 'y', 'width', 'height', 'points'} & attributes.keys():
            assert 'nan' not in attributes[name] and 'inf' not in attributes[name]
            assert not re.search(r'\d\.\d\d', attributes[name])
    assert 'svg text { font-size: 12px' in page.words('style')
    data = [text for tag, text in page.texts if tag == 'script'][0]
    assert len(page.text) < 30_000 + 4 * len(data)


def test_seeds_are_shown_on_demand(realistic_page):
    """Each chart of means has a box that shows its seeds; the forest plot always shows them."""
    page = realistic_page
    boxes = [attributes['id'] for tag, attributes in page.elements if tag == 'input']
    labels = [attributes['for'] for tag, attributes in page.elements if tag == 'label']
    assert boxes == labels and len(boxes) == 3
    # arms of the losses, of the differences, of the training losses
    assert page.attributes.count(('class', 'seed')) == 5 + 4 + 5
    style = page.words('style')
    assert '.seed { display: none }' in style
    assert '.each-seed:checked ~ svg .seed { display: inline }' in style


def test_forest_plot_says_its_numbers(realistic_page):
    drawn = realistic_page.words('text')
    for c in realistic()['comparisons']:
        assert f'{c["arm"]}{c["mean"]:+.4f} [{c["interval"][0]:+.4f}, {c["interval"][1]:+.4f}]' in drawn


def test_what_is_drawn_are_the_numbers():
    """The lines of a chart go through its series; runs are thin lines of their own, with gaps between."""
    chart = figures.loss_chart(read_report(realistic()), 'val', '')
    (ax,), lines = chart.draw().axes, {}
    for line in ax.lines:
        lines.setdefault(line.get_gid(), []).append(line.get_ydata())
    assert [list(y) for y in lines[None]] == [s.y for s in chart.series]
    assert [list(y[np.isfinite(y)]) for y in lines['seed']] == [list(np.ravel(s.seeds)) for s in chart.series]


def test_page_without_matplotlib(realistic_page, tmp_path, monkeypatch):
    """The rest of the page is there, and one line says what is missing."""
    monkeypatch.setitem(sys.modules, 'matplotlib.figure', None)
    page = read(realistic(), tmp_path)
    assert page.words('p').count('pip install matplotlib') == 1 and 'svg' not in page.tags
    assert page.tables == realistic_page.tables
    with pytest.raises(ImportError):
        write_plots(realistic(), tmp_path)
    assert 'matplotlib' not in read({}, tmp_path).words('p')        # nothing to draw


def test_settings_of_the_user_change_no_chart():
    """Settings of matplotlib, as in a matplotlibrc. And a chart drawn twice is the same."""
    import matplotlib
    chart = figures.loss_chart(read_report(realistic()), 'val', '')
    svg = figures.draw_svg(chart, 'a')
    with matplotlib.rc_context({'svg.fonttype': 'path', 'font.size': 30, 'lines.marker': 'x'}):
        assert figures.draw_svg(chart, 'a') == svg


@pytest.mark.parametrize('name', ['troubled', 'minimal', 'empty'])
def test_charts_as_png(name, tmp_path):
    """One for each chart of the page."""
    report = STUDIES[name]()
    written = write_plots(report, tmp_path / 'plots')
    assert len(set(written)) == len(written) and all(path.parent == tmp_path / 'plots' for path in written)
    assert all(path.read_bytes().startswith(b'\x89PNG') for path in written)
    assert len(written) == read(report, tmp_path).tags.count('svg')
    assert bool(written) == ('curve' in (report.get('arms') or [{}])[0])


@pytest.mark.parametrize('low, high', [
    (0, 1), (-0.013, 0.02), (1.4612, 1.4705), (0, 2000), (5.9, 9.15), (6.0e7, 7.2e7), (-1e-6, 1e-6),
    (4000.1, 4000.9)])
def test_ticks_are_round_distinct_and_within(low, high):
    diagonal = figures.Series('', 0, [low, high], [low, high])
    chart = figures.Chart('', '', '', '', [diagonal], y_range=(low, high))
    (ax,) = chart.draw().axes
    for axis in ax.xaxis, ax.yaxis:
        values, texts = axis.get_majorticklocs(), [label.get_text() for label in axis.get_majorticklabels()]
        begin, end = axis.get_view_interval()
        assert 2 <= len(values) <= 6 and len(set(texts)) == len(texts)
        assert all(begin - 1e-9 * (end - begin) <= v <= end + 1e-9 * (end - begin) for v in values)
        shown = [float(x.replace(',', '').replace('−', '-').replace(' M', 'e6')) for x in texts]
        assert shown == pytest.approx(values, rel=1e-9, abs=1e-12)


def test_a_point_between_gaps_is_seen():
    """A diagnostic that has a number only now and then is no line."""
    nan = math.nan
    chart = figures.Chart('', '', '', '', [figures.Series('', 1, [0, 1, 2, 3, 4], [nan, 7, nan, 1, 2])])
    (line,) = chart.draw().axes[0].lines
    assert line.get_marker() == 'o' and list(line.get_markevery()) == [1]


# -----------------------------------------------------------------------------
# the numbers of the charts

def test_position_bins_average_all_positions():
    """A difference that is the same everywhere is so in every bin; the last position counts."""
    arms = [dict(name='base', baseline=True, position_loss=[2.0] * 200),
            dict(name='x', position_loss=[2.5] * 199 + [9.0])]
    (s,) = figures.position_chart(read_report(dict(arms=arms))).series
    assert s.y[:-1] == [0.5] * (len(s.y) - 1) and s.y[-1] > 0.5 and s.x[0] == 1 and s.x[-1] <= 200


def test_costs_that_agree_make_no_chart():
    r = read_report(realistic(('base', 'a')))
    assert figures.cost_chart(r, 'step_ms') and figures.cost_chart(r, 'flops_per_token') is None


def test_unfinished_runs_do_not_move_the_mean():
    """Nor does the beginning of a run that stopped or diverged."""
    val = [[2.0, 1.0], [4.0, 3.0], [100.0], [100.0, 'NaN'], [100.0, None]]
    curve = dict(iters=[0, 10], val=val, seeds=[1, 2, 3, 4, 5])
    r = dict(arms=[dict(name='base', baseline=True, curve=curve)])
    (s,) = figures.loss_chart(read_report(r), 'val', '').series
    assert (s.y, s.low, s.high, len(s.seeds)) == ([3, 2], [2, 1], [4, 3], 2)


def test_difference_curve_is_paired():
    """With seeds in another order and iterations that only partly agree."""
    base_curve = dict(iters=[0, 10, 20], val=[[4, 3, 2], [5, 4, 3]], seeds=[1, 2])
    curve = dict(iters=[0, 20, 40], val=[[5, 2.5, 1], [4, 1.5, 1]], seeds=[2, 1])
    r = dict(arms=[dict(name='base', baseline=True, curve=base_curve), dict(name='x', curve=curve)])
    (s,) = figures.difference_chart(read_report(r)).series
    assert s.x == [0, 20] and s.y == [0, -0.5] and s.low == s.high == s.y


def test_the_null_arm_is_paired_wherever_it_is_drawn():
    """It has some of the baseline's seeds: against the mean of all of them, their choice would look like an effect."""
    r = realistic(('base', 'alibi', 'null'), n=8)
    base, _, null = r['arms']
    null |= dict(variant='perturb', runs=null['runs'][:3],
                 curve=base['curve'] | {name: base['curve'][name][:3] for name in ('val', 'train', 'seeds')})
    r['comparisons'] = [c | dict(test='Welch') for c in r['comparisons'] if c['arm'] == 'alibi']
    chart = figures.difference_chart(read_report(r))
    drawn = {s.label: s for s in chart.series}
    assert np.all(np.array(drawn['null'].y) == 0) and 'null: at the same seeds' in chart.note
    assert drawn['alibi'].y[-1] == pytest.approx(np.mean(r['arms'][1]['curve']['val'], 0)[-1]
                                                 - np.mean(base['curve']['val'], 0)[-1])
    assert [s.label for s in figures.position_chart(read_report(r)).series] == ['alibi']


def test_prices_have_the_intervals_of_the_study(tmp_path, no_charts):
    r = realistic(n=2)
    for arm in r['arms']:
        arm['price'] |= dict(step_ms_interval=[arm['price']['step_ms'] - 0.11, arm['price']['step_ms'] + 0.12])
    cells = rows_of(read(r, tmp_path).tables[2])
    assert cells['base']['ms a step'][0] == '5.9 [5.79, 6.02]'
    assert cells['alibi']['ms a step'][0].startswith('7.2 [7.09, 7.32]')


def test_an_eager_run_compiles_nothing(tmp_path, no_charts):
    r = realistic(n=2)
    assert 's to compile' in read(r, tmp_path).words('th')
    r['environment']['compile'] = False
    assert 's to compile' not in read(r, tmp_path).words('th')


def test_why_there_is_no_sample_is_said(tmp_path, no_charts):
    r = realistic(n=2)
    r['arms'][1] |= dict(sample=None, no_sample='IndexError: string index out of range')
    said = read(r, tmp_path).words('p')
    assert 'soft_window: no sample: IndexError: string index out of range. Its losses count all the same.' in said


def test_an_arm_far_off_does_not_flatten_the_others():
    r = read_report(realistic(('base', 'a', 'b', 'c', 'd', 'far_off')))
    forest = figures.forest_plot(r)
    assert forest.reach < 0.1 < max(row.comparison.mean for row in forest.rows) and 'Arrow' in forest.note
    assert 'far_off' in figures.difference_chart(r).note
    arrows = [line for line in forest.draw().axes[0].lines if line.get_marker() == '>']
    assert len(arrows) == 1 and arrows[0].get_xdata() == [forest.reach] and not arrows[0].get_clip_on()


def test_equal_to_the_bit_without_delta(tmp_path):
    """An A/A study whose arms are equal to the bit is drawn, though its axes have no natural size."""
    r = realistic(('base', 'same'))
    r['arms'][1] |= {key: r['arms'][0][key] for key in ('runs', 'curve', 'position_loss', 'price')}
    r['comparisons'], r['plan']['delta'] = comparisons_of(r['arms']), None
    assert 'nan' not in read(r, tmp_path).text.split('<script')[0].lower()
