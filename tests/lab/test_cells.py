"""Studies over texts and options: what --over means, what it refuses, and effects that were planted."""
import dataclasses
import math

import numpy as np
import pytest
from helpers import TINY, flags
from hypothesis import given, settings, strategies

import ab
from configurator import arguments, construct, options_of, parse_known
from core.data.prepare import prepare_chars
from core.errors import Stop
from core.run.files import to_json
from lab.report import figures, write_html
from lab.report.read import read_report
from lab.study.cells import default_seeds, first_of_each_shape, is_scale, parse_over
from lab.study.over import build_over_report
from lab.study.pool import Slot
from lab.study.results import RunResult, load_run
from lab.study.schema import to_dict
from lab.study.study import Findings, Study
from lab.study.worker import TaskGroup, TrainTask, run_task

pytestmark = pytest.mark.usefixtures('somewhere_else')
TEXTS = 'a', 'b', 'c', 'd', 'e'


@pytest.fixture(scope='module')
def texts(tmp_path_factory):
    """Folders of five small texts, each with an alphabet of its own."""
    folder = tmp_path_factory.mktemp('texts')
    for n, name in enumerate(TEXTS):
        prepare_chars(''.join(chr(97 + (i * i + i // 7) % (9 + n)) for i in range(1200)), folder / name)
    return folder


def typed(texts, names=TEXTS):
    return f'dataset={",".join(str(texts / name) for name in names)}'


def parsed(over, **options):
    """Returns the arms and cells of a command, and ab.py's Options."""
    arms = {} if 'arms' in options else dict(variants='alibi')
    typed_flags = arguments(flags(**TINY | arms | options | dict(over=over)))
    known = options_of(ab.Options)
    o = construct(ab.Options, parse_known(known, typed_flags))
    return *ab.parse_cells(o, [g for g in typed_flags if g.name not in known]), o


# -----------------------------------------------------------------------------
# what is typed

NAMES = strategies.text(alphabet='ab_', min_size=1, max_size=5)
LEVELS = strategies.lists(strategies.text(alphabet='ab/._', min_size=1, max_size=5), min_size=2, max_size=4,
                          unique=True)


@settings(max_examples=40)
@given(strategies.dictionaries(NAMES, LEVELS, min_size=1, max_size=3), strategies.sampled_from(['', ' ', '  ']))
def test_factors_are_read_as_they_were_written(factors, space):
    written = f'{space};{space}'.join(f'{space}{name}={f",{space}".join(levels)}' for name, levels in factors.items())
    assert parse_over(f'{written};') == factors


@settings(max_examples=60)
@given(strategies.text(alphabet='ab=,;x01. ', max_size=20))
def test_whatever_is_typed_is_levels_or_one_line(typed):
    try:
        factors = parse_over(typed)
    except Stop as stop:
        assert '\n' not in str(stop) and str(stop).startswith('over')
    else:
        assert all(len(set(levels)) == len(levels) > 1 for levels in factors.values())


def test_a_factor_multiplies_and_a_value_replaces(texts):
    """What belongs together moves together, and x1 leaves an arm as it is."""
    arms, cells, _ = parsed(f'{typed(texts, "ab")}; learning_rate=x0.5,x1; max_iters=x0.5,x1; n_embd=x2,x0.5',
                            arms='base; hot: learning_rate=0.04')
    assert len(cells) == 16 and [arm.name for arm in arms] == ['base', 'hot']
    for cell in cells:
        rate, length = (float(cell.levels[name][1:]) for name in ('learning_rate', 'max_iters'))
        for name, own in ('base', 0.01), ('hot', 0.04):
            o = cell.arms[name].options
            assert (o.learning_rate, o.min_lr) == (rate * own, rate * 0.001)
            assert (o.max_iters, o.lr_decay_iters, o.warmup_iters) == (12 * length, 12 * length, 2 * length)
            # heads keep their 8 channels
            size = {n: cell.arms[name].model_args[n] for n in ('n_embd', 'n_head')}
            assert size == {'x2': dict(n_embd=32, n_head=4), 'x0.5': dict(n_embd=8, n_head=1)}[cell.levels['n_embd']]
    as_it_is = next(cell for cell in cells if {'x1'} == {cell.levels['learning_rate'], cell.levels['max_iters']})
    assert as_it_is.arms['base'].options == arms[0].options
    # each text has its own vocabulary, and its own seeds in all of its cells
    vocabularies = {cell.text: cell.arms['base'].model_args['vocab_size'] for cell in cells}
    assert vocabularies == dict(a=9, b=10)


def test_cells_of_a_text_share_seeds_and_texts_do_not(texts):
    _, cells, o = parsed(f'{typed(texts)}; learning_rate=x0.5,x1,x2')
    seeds = {cell.text: {tuple(other.seeds(o)) for other in cells if other.text == cell.text} for cell in cells}
    assert all(len(found) == 1 for found in seeds.values()) and len(set.union(*seeds.values())) == 5
    # in whichever order and company it comes
    _, others, _ = parsed(typed(texts, 'eb'))
    assert others[0].seeds(dataclasses.replace(o)) == [cell for cell in cells if cell.text == 'e'][0].seeds(o)


def test_a_plain_rate_keeps_the_ratio_of_min_lr(texts):
    _, cells, _ = parsed(f'{typed(texts, "ab")}; learning_rate=0.02,0.005')
    assert [cell.arms['base'].options.min_lr for cell in cells[:2]] == pytest.approx([0.002, 0.0005])


@pytest.mark.parametrize('over, seeds', [
    ('{five}', 2), ('{five}; learning_rate=x0.5,x1,x2', 1), ('learning_rate=x0.5,x1,x2', 2),
    ('{five}; max_iters=x0.5,x1', 2), ('{two}; learning_rate=x0.5,x1', 1), ('{two}; bias=True,False', 1)])
def test_a_second_seed_where_nothing_else_tells_noise(texts, over, seeds):
    _, cells, o = parsed(over.format(five=typed(texts), two=typed(texts, 'ab')), dataset=texts / 'a')
    assert default_seeds(cells) == o.seeds == seeds
    assert parsed(typed(texts), seeds=3)[2].seeds == 3


def test_a_latin_square_sees_every_level_of_every_factor(texts):
    _, cells, _ = parsed(f'{typed(texts)}; learning_rate=x0.5,x1,x2; n_embd=8,16,32', cells=15)
    assert len(cells) == 15
    for text in TEXTS:
        for name in 'learning_rate', 'n_embd':
            assert len({cell.levels[name] for cell in cells if cell.text == text}) == 3


def test_texts_and_rates_are_one_shape(texts):
    _, cells, _ = parsed(f'{typed(texts)}; learning_rate=x0.5,x1; n_embd=8,16')
    assert [cell.levels['n_embd'] for cell in first_of_each_shape(cells)] == ['8', '16']


@pytest.mark.parametrize('over, options, says', [
    ('', {}, 'over=;: names no factor'),
    ('learning_rate', {}, 'over: learning_rate: write option=level,level'),
    ('learning_rate=', {}, 'over: learning_rate=: takes two levels or more'),
    ('learning_rate=x1', {}, 'over: learning_rate=x1: takes two levels or more'),
    ('learning_rate=x1,,x2', {}, 'over: learning_rate=x1,,x2: takes two levels or more'),
    ('learning_rate=x1,x1', {}, 'over: learning_rate=x1,x1: x1 is there twice'),
    ('n_embd=16,16.0', {}, 'over: n_embd=16 and n_embd=16.0: are both 16'),
    ('n_embd=8,16; n_embd=8,32', {}, 'over: n_embd is there twice'),
    ('learning_rate=x1,0.1', {}, 'over: learning_rate=x1,0.1: takes values, or factors such as x0.5, not both'),
    ('learning_rat=x1,x2', {}, 'over: learning_rat=x1,x2: no such option of arm base; did you mean learning_rate?'),
    ('slope=x1,x2', {}, 'over: slope=x1,x2: no such option of arm base'),
    ('learning_rate=low,high', {}, 'over: learning_rate=low: learning_rate takes float in [0, inf)'),
    ('learning_rate=0,0.1', {}, 'over: learning_rate=0: takes values above 0'),
    ('max_iters=0,10', {}, 'over: max_iters=0: takes values above 0'),
    ('learning_rate=x0,x1', {}, 'over: learning_rate=x0 of 0.01 in arm base: takes a factor above 0'),
    ('n_embd=x0.3,x1', {}, 'over: n_embd=x0.3 of 16 in arm base: n_embd takes int in [1, inf)'),
    ('n_embd=15,16', {}, 'cell n_embd 15: arm base: n_head=2: must divide n_embd=15'),
    ('min_lr=x1,x20', {}, 'cell min_lr x20: arm base: min_lr=0.02: is above learning_rate=0.01'),
    ('variant=rope,alibi', {}, 'over: variant=rope,alibi: arms are named by --variants'),
    ('seed=1,2', {}, 'over: seed=1,2: is no factor'),
    ('eval_iters=1,2', {}, 'over: eval_iters=1,2: is no factor'),
    ('n_embd=16,32', dict(arms='base; wide: n_embd=32'), 'over: n_embd=16,32: arm wide has its own, '),
    ('dataset={a},nowhere', {}, 'nowhere'),
    ('dataset={a},{a}/', {}, 'are the same text'),
    ('dataset={a},{b}; n_embd=8,16', dict(cells=3), 'cells=3: 2 texts see each level of n_embd equally often with 4'),
])
def test_what_makes_no_cells_is_one_line(texts, over, options, says):
    with pytest.raises(Stop) as stop:
        parsed(over.format(a=texts / 'a', b=texts / 'b') or ';', **dict(dataset=texts / 'a') | options)
    assert says in str(stop.value) and '\n' not in str(stop.value)


def test_runs_of_one_seed_in_two_cells_are_trained_at_once(texts):
    """Cells of one text differ in their rates alone, so that their runs share code, and have one seed."""
    _, cells, o = parsed('learning_rate=x0.01,x1', dataset=texts / 'a')
    study = study_of(texts, cells, o)
    low, high = (cell.arms['base'] for cell in cells)
    assert low.code_key == high.code_key != cells[0].arms['alibi'].code_key
    tasks = [TrainTask(arm, 1337, str(study.run_folder(arm, 1337))) for arm in (low, high)]
    results = run_task(TaskGroup(tasks), Slot('', 1), {})
    losses = [load_run(study, arm, 1337).val_loss for arm in (low, high)]
    assert [result.value for result in results] == losses and losses[0] > losses[1]


# -----------------------------------------------------------------------------
# what is found in losses

def study_of(texts, cells, o):
    in_cells = [arm for cell in cells for arm in cell.arms.values()]
    seeds = {arm.name: cell.seeds(o) for cell in cells for arm in cell.arms.values()}
    return Study(texts / 'study', in_cells, o, seeds, Findings('python ab.py', None, '2026', {}), cells=cells)


def report_of(texts, over, effect, noise=0.002, lost=(), failed=(), **options):
    """Returns report.json of a study with made up losses.

    effect(cell, number of its text, arm): what it adds to a loss. lost, failed: (cell, arm) of runs that diverged or
    failed.
    """
    _, cells, o = parsed(over, **options)
    study, rng, runs = study_of(texts, cells, o), np.random.default_rng(1), []
    names = list(dict.fromkeys(cell.text for cell in cells))
    for cell in cells:
        for seed in cell.seeds(o):
            for name, arm in cell.arms.items():
                loss = 2 + names.index(cell.text) + noise * rng.standard_normal()
                loss += effect(cell, names.index(cell.text), name)
                where = cell.name, name
                status = 'diverged' if where in lost else 'failed' if where in failed else 'done'
                why = dict(val_loss=loss) if status == 'done' else dict(reason='it was planned')
                runs.append(RunResult(arm.name, seed, status, **why))
    return to_json(to_dict(build_over_report(study, runs)))


def test_a_planted_effect_is_found_with_its_spread(texts):
    """-.03 nats, on some texts more, on some less."""
    spread = [-0.01, -0.005, 0, 0.005, 0.01]
    report = report_of(texts, f'{typed(texts)}; learning_rate=x0.5,x1,x2',
                       lambda cell, text, arm: (spread[text] - 0.03) * (arm == 'alibi'))
    c, a = report['comparisons'][0], report['over']['verdicts']['arms']['alibi']
    assert c['verdict'] == 'better' and c['mean'] == pytest.approx(-0.03, abs=0.002)
    assert c['interval'][0] < -0.03 < c['interval'][1] < 0
    assert 0.004 < a['over']['tau'] < 0.016 and a['over']['prediction'][0] < c['interval'][0]
    low, high = (f'{x:+.4f}'.replace('0.', '.', 1) for x in a['over']['prediction'])
    assert f'on another text we expect {low} to {high}' in c['words'] and c['words'].startswith('better here by .0')
    assert len(report['over']['cells']) == 15 and c['n'] == 15
    assert 'better on 5 of 5 texts' in report['over']['words']['alibi'][0]
    assert report['tables'][0].splitlines()[1].startswith('a, lr x0.5')


def test_nothing_is_found_where_nothing_is(texts):
    report = report_of(texts, typed(texts), lambda cell, text, arm: 0.0, noise=0.0005)
    assert report['comparisons'][0]['verdict'] == 'equivalent'


def test_an_arm_is_judged_at_its_own_best_rate_too(texts):
    """Both losses are valleys as deep, the arm's at another rate, so that at rates they share it seems worse."""
    def valley(cell, text, arm):
        x = math.log2(float(cell.levels['learning_rate'][1:])) - (0.4 if arm == 'alibi' else 0.0)
        return 0.04 * x * x
    report = report_of(texts, f'{typed(texts)}; learning_rate=x0.5,x1,x2', valley, noise=1e-4)
    best = report['over']['verdicts']['arms']['alibi']['own_best']
    assert best['over']['mean'] == pytest.approx(0, abs=5e-4) and best['by_parabola'] == 5
    words = ' '.join(report['over']['words']['alibi'])
    assert 'each at its own best learning rate' in words and 'base at x' in words and 'alibi at x1.3' in words
    assert report['comparisons'][0]['mean'] == pytest.approx(0.04 * 0.4 ** 2, abs=5e-4)


def test_an_effect_that_length_turns_round_is_early(texts):
    def turning(cell, text, arm):
        return (0.01 - 0.15 * (cell.levels['max_iters'] == 'x0.5')) * (arm == 'alibi')
    report = report_of(texts, f'{typed(texts)}; max_iters=x0.5,x1', turning, noise=1e-3)
    c = report['comparisons'][0]
    assert c['verdict'] == 'worse' and 'early: -.1' in c['words'] and ' at x0.5, +.0' in c['words']
    # cells that the verdict is not about are shown all the same
    assert all(cell['differences']['alibi']['difference'] is not None for cell in report['over']['cells'])


def test_a_size_is_judged_in_parameters(texts):
    """The arm has at every size what the baseline has at twice its parameters."""
    sizes = {}

    def power_law(cell, text, arm):
        # on the first text, whose vocabulary stands for all
        own = cell.arms['base'].meta_model().get_num_params()
        params = sizes.setdefault(cell.levels['n_embd'], own)
        return 5 * (params * (2 if arm == 'alibi' else 1)) ** -0.3
    report = report_of(texts, f'{typed(texts, "abc")}; n_embd=8,16,32', power_law, noise=0)
    a = report['over']['verdicts']['arms']['alibi']
    assert report['over']['verdicts']['factors']['parameters'] == sorted(sizes.values())
    assert a['speedups']['parameters']['mean'] == pytest.approx(2, rel=0.1)
    assert 'effective speedup in parameters: 1.' in ' '.join(report['over']['words']['alibi'])


def test_cells_that_diverged_are_named(texts, tmp_path):
    lost = [(f'{text}, lr x2', 'alibi') for text in TEXTS]
    report = report_of(texts, f'{typed(texts)}; learning_rate=x0.5,x1,x2', lambda *cell: 0.0, lost=lost)
    c = report['comparisons'][0]
    assert c['verdict'] != 'better' and 'it diverged in 5 of 15 runs' in c['words']
    assert report['tables'][0].count('diverged 1/1') == 5
    page = page_of(report, tmp_path)
    assert 'alibi: 5 of 15 runs did not come to their end' in page
    # in the plot and in the table
    assert page.count('>diverged</text>') == 5 and page.count('>diverged 1/1<') == 5


def test_runs_that_failed_leave_no_verdict_and_say_so(texts, tmp_path):
    arms = [(f'{text}, lr {rate}', 'alibi') for text in TEXTS for rate in ('x0.5', 'x1', 'x2')]
    report = report_of(texts, f'{typed(texts)}; learning_rate=x0.5,x1,x2', lambda *cell: 0.0, failed=arms)
    c = report['comparisons'][0]
    assert c['words'] == "can't tell; no cell has a run of both arms that ended" and c['mean'] is None
    assert 'alibi: 15 of 15 runs did not come to their end' in page_of(report, tmp_path)


# -----------------------------------------------------------------------------
# the page

def page_of(report, folder):
    write_html(report, folder / 'report.html')
    return (folder / 'report.html').read_text()


def test_the_page_says_and_draws_it(texts, tmp_path):
    report = report_of(texts, f'{typed(texts)}; learning_rate=x0.5,x1,x2',
                       lambda cell, text, arm: -0.03 * (arm == 'alibi'), variants='alibi,rope')
    page = page_of(report, tmp_path)
    head = page[page.index('<header>'):page.index('</header>')]
    assert 'on another text we expect −.' in head and 'better' in head and '15 cells, 45 runs' in head
    assert 'alibi in each cell' in page and 'rope in each cell' in page
    for text in 'mean of 5 texts</', '>another text</', 'at own best rates</', 'lr x0.5</', '>a new text<', '>tau<':
        assert text in page
    # the plot has the numbers of the report, text by text
    for chart, arm in zip(figures.build_charts(read_report(report))[1:], ('alibi', 'rope')):
        over = report['over']['verdicts']['arms'][arm]['over']
        assert [line.label for line in chart.lines[::4]] == [*TEXTS, 'mean of 5 texts'] and len(chart.lines) == 23
        cells = [line.x for line in chart.lines if line.kind == 'cell']
        assert cells == [cell['differences'][arm]['difference'] for cell in report['over']['cells']]
        mean, new = chart.lines[20:22]
        assert [mean.x, mean.low, mean.high] == [over['mean'], *over['interval']]
        assert [new.low, new.high] == over['prediction']


def test_is_scale():
    assert is_scale('x0.5') and is_scale('x2') and not is_scale('xlarge') and not is_scale('2') and not is_scale('x-1')
