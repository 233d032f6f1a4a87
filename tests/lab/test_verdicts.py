"""docs/verdicts.md says what the runs in docs/verdicts.json say: planted effects, flips, failures, and bad files."""
import dataclasses
import math
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers import TINY, call, forks, shipped_variants

import ab
from core.errors import BAD_INPUT
from core.run.files import read_json, write_json
from lab.study import pool
from lab.study.store import code_hash
from lab.verdicts import __main__ as script, rows
from lab.verdicts.collect import add_study, file_hash, todays_options
from lab.verdicts.page import page
from lab.verdicts.records import Arm, Recipe, Records, Version, digest, read_records, recipe_id, rounded, write_records
from lab.verdicts.rows import SHAKESPEARE, SINGLE_EPOCH, judge_all, judge_recipe
from model import GPTConfig, load_classes

HERE = 'alibi', 'relu2', 'rmsnorm', 'rope'
SD = 0.006


@pytest.fixture(autouse=True)
def four_variants(monkeypatch):
    monkeypatch.setattr(rows, 'variant_names', lambda: list(HERE))


class Table:
    """Records made up run by run."""

    def __init__(self):
        self.records, self.rng = Records(), np.random.default_rng(0)

    def recipe(self, text='shakespeare_char', config=SHAKESPEARE, **options):
        options = dict(dataset=text, variant='base', max_iters=2000) | options
        model_args = dataclasses.asdict(GPTConfig())
        given = {} if config == SHAKESPEARE else dict(dataset=text)
        recipe = Recipe(recipe_id('d', options, model_args), config, given, 'd', options, model_args)
        return self.records.recipes.setdefault(recipe.id, recipe)

    def version(self, code='c', torch='2.11.0', device='NVIDIA H200, bfloat16'):
        version = Version(digest([code, torch, device]), code, torch, device, 'c6f375c63204de6e+')
        return self.records.versions.setdefault(version.id, version)

    def losses(self, mean, n, seed):
        return {str(seed + i): rounded(x) for i, x in enumerate(mean + SD * self.rng.standard_normal(n))}

    def base(self, recipe, version, mean=1.45, n=24):
        return self.put(Arm(recipe.id, version.id, 'base', {}, '', '2026-12-01T12:00:00Z', self.losses(mean, n, 1337)))

    def arm(self, variant, recipe, version, mean, n=8, created='2026-12-01T12:00:00Z', options=None, **fields):
        options = todays_options(variant, recipe) | (options or {})
        fields = dict(runs=self.losses(mean, n, 101337)) | fields
        return self.put(Arm(recipe.id, version.id, variant, options, file_hash(variant), created, **fields))

    def put(self, arm):
        self.records.arms[arm.key] = arm
        return arm

    def row(self, variant, text='Shakespeare'):
        r = judge_all(self.records)
        recipe = next(recipe for recipe in r.recipes if text in ('Shakespeare', recipe.text))
        return r.row(recipe, variant)


@pytest.fixture
def table():
    return Table()


@pytest.fixture
def shakespeare(table):
    """A recipe and a version with 24 runs of the baseline."""
    both = table.recipe(), table.version()
    table.base(*both)
    return both


def line_of(text, variant):
    """Returns a variant's cells in the table of all variants."""
    line, = [line for line in text.splitlines() if line.startswith(f'| <a id="{variant}"></a>')]
    return line.replace('\xa0', ' ').removeprefix('| ').removesuffix(' |').split(' | ')


# -----------------------------------------------------------------------------
# verdicts

def test_planted_effects_are_found_and_sorted(table, shakespeare):
    for variant, effect in dict(rope=0.03, alibi=-0.03).items():
        table.arm(variant, *shakespeare, 1.45 + effect)
    table.arm('relu2', *shakespeare, 1.45, n=3)
    text = page(table.records)
    assert re.findall(r'<a id="(\w+)">', text) == ['alibi', 'relu2', 'rope', 'rmsnorm']
    words = [line_of(text, variant)[2].split('<br>')[0] for variant in HERE]
    assert words == ['**better**', "can't tell", 'not measured', '**worse**']
    for variant, effect in dict(rope=0.03, alibi=-0.03).items():
        low, high = table.row(variant).comparison.interval
        assert low < effect < high
    # three runs reach no look: a difference without an interval, no chance
    _, difference, verdict, *_ = line_of(text, 'relu2')
    assert re.fullmatch(r'[+-]\.\d{4}', difference) and verdict == "can't tell<br>3 runs"
    assert '**Shakespeare: 3 of 4 variants are measured: 1 better, 1 worse, 1 can\'t tell.**' in text
    assert 'The best: `alibi` (-.0' in text and 'luck would call up to 0.2 of them' in text.replace('\n', ' ')


def test_equal_losses_are_equivalent(table, shakespeare):
    table.arm('rmsnorm', *shakespeare, 1.45, n=16)
    row = table.row('rmsnorm')
    assert row.word == 'equivalent' and max(map(abs, row.comparison.interval)) < 0.006


@pytest.mark.parametrize('other', [dict(device='NVIDIA A100, bfloat16'), dict(torch='2.13.0'), dict(code='d')])
def test_another_device_torch_or_code_is_never_compared(table, shakespeare, other):
    recipe, _ = shakespeare
    version = table.version(**other)
    # far from the first version's baseline, beside its own
    table.arm('rope', recipe, version, 1.6)
    assert table.row('rope').word == 'no baseline'
    table.base(recipe, version, 1.6)
    assert abs(table.row('rope').difference) < 2 * SD and table.row('rope').comparison.n_base == 24
    text = page(table.records)
    assert re.search('<sup>[ab]</sup>', line_of(text, 'rope')[2])
    assert '| a | Shakespeare |' in text and '| b | Shakespeare |' in text


def test_the_newest_version_with_a_verdict_in_reach_counts(table, shakespeare):
    recipe, old = shakespeare
    new = table.version(code='new')
    table.base(recipe, new)
    table.arm('rope', recipe, old, 1.42)
    late = table.arm('rope', recipe, new, 1.48, n=3, created='2026-12-02T12:00:00Z')
    assert table.row('rope').word == 'better'
    late.runs = table.losses(1.48, 4, 101337)
    assert table.row('rope').word == 'worse'
    assert '1 more arm in it is of other recipes, older versions' in page(table.records)


@pytest.mark.parametrize('n, word', [(1, 'no baseline'), (7, "can't tell"), (8, 'better')])
def test_few_runs_of_the_baseline_decide_nothing(table, n, word):
    both = table.recipe(), table.version()
    table.base(*both, n=n)
    table.arm('rope', *both, 1.4)
    assert table.row('rope').word == word and table.row('rope').stands == (word == 'better')
    assert line_of(page(table.records), 'rope')[1].startswith('-.0') == (n > 1)


def test_what_holm_leaves_is_not_bold(table, shakespeare):
    """A difference that a study of one idea may find, beside twelve that do nothing."""
    recipe, version = shakespeare
    for i in range(12):
        table.arm('relu2', recipe, version, 1.45, options=dict(number=i))
    alone, sure = table.arm('rope', recipe, version, 1.45), table.arm('alibi', recipe, version, 1.42)
    alone.runs = {str(101337 + i): 1.45 + x for i, x in enumerate((0.009, 0.014, 0.002, 0.017, 0.01, 0.012))}
    found = {row.arm.variant: row for row in judge_recipe(table.records, recipe.id)}
    assert (found['rope'].word, found['rope'].stands) == ('worse', False)
    assert (found['alibi'].word, found['alibi'].stands) == ('better', True) and sure
    # without the others it stands
    table.records.arms = {key: arm for key, arm in table.records.arms.items() if arm.variant != 'relu2'}
    assert all(row.stands for row in judge_recipe(table.records, recipe.id))


def test_signs_over_texts(table, shakespeare):
    _, version = shakespeare
    table.records.claims = dict(rope='lower', alibi='higher', relu2='equal')
    effects = dict(rope=(-0.03, 0.03, -0.03), alibi=(0.03, 0.03, None), relu2=(0.0, 0.0, None))
    texts = table.recipe(), *(table.recipe(text, SINGLE_EPOCH) for text in ('python', 'poems'))
    for i, recipe in enumerate(texts):
        table.base(recipe, version)
        for variant, planted in effects.items():
            if planted[i] is not None:
                arm = table.arm(variant, recipe, version, 1.45 + planted[i])
                # an estimate on either side of zero, and nothing decided
                if variant == 'relu2':
                    losses = [1.45 + (-1) ** i * x for x in (0.01, -0.004, 0.006, -0.002)]
                    arm.runs = {str(101337 + n): loss for n, loss in enumerate(losses)}
    text = page(table.records)
    over = text[text.index('## Over texts'):text.index('## Claims')]
    line = next(line for line in over.splitlines() if line.startswith('| `rope`'))
    assert re.findall(r'[-+]\.0|\*\*\w+', line) == ['-.0', '**better', '+.0', '**worse', '-.0', '**better', '**flips']
    assert '| signs differ |' in next(line for line in over.splitlines() if line.startswith('| `relu2`'))
    # the large table shows all of it
    assert '`alibi`' not in over
    assert 'Of 3 variants measured on more than one text, 1 is better on one and worse on another: `rope`.' in text
    assert 'these keep their sign: 1 of 2 on python, 1 of 1 on poems.' in text.replace('\n', ' ')
    claims = text[text.index('## Claims'):]
    assert re.search(r'\| `rope` \|.*\| lower \| holds \| does not \|', claims)
    assert re.search(r'\| `alibi` \|.*\| higher \| holds \| holds \|', claims)
    assert re.search(r'\| `relu2` \|.*\| equal \| open \| open \|', claims)
    assert 'on Shakespeare: of 1 that are measured, 1 better here (`rope`)' in text


def test_failures_are_shown(table, shakespeare):
    memory = 'failed: out of memory: 2.00 GiB'
    table.arm('alibi', *shakespeare, 0, runs={str(101337 + i): 'diverged' for i in range(5)})
    table.arm('relu2', *shakespeare, 0, runs={'101337': memory, '101338': memory})
    table.arm('rmsnorm', *shakespeare, 0, runs={}, refused='leak: suffix swap')
    some = table.arm('rope', *shakespeare, 1.42, suspicions=['all of it is at one position'])
    some.runs |= {'101337': 'diverged', '101338': memory}
    text = page(table.records)
    assert line_of(text, 'alibi')[1:3] == ['', '**diverged**<br>5 runs<br>5 diverged']
    assert line_of(text, 'relu2')[2] == 'failed<br>0 runs<br>2 failed'
    assert line_of(text, 'rmsnorm')[2].startswith('refused')
    # with more bad runs than the baseline it is never better
    assert line_of(text, 'rope')[2].startswith("can't tell ‡<br>P >.99, 7 runs<br>1 diverged<br>1 failed")
    assert '- `relu2`, Shakespeare: 2 runs failed: out of memory: 2.00 GiB' in text
    assert '- `rmsnorm`, Shakespeare: refused: leak: suffix swap' in text
    assert '- `rope`, Shakespeare: ‡ all of it is at one position' in text
    assert "1 can't tell, 1 diverged, 1 failed, 1 refused.**" in text
    # those that have a difference come first
    assert re.findall(r'<a id="(\w+)">', text) == ['rope', 'alibi', 'relu2', 'rmsnorm']


def test_other_options_and_other_recipes_are_no_row_of_the_variant(table, shakespeare):
    recipe, version = shakespeare
    table.arm('rope', recipe, version, 1.42, options=dict(rope_base=5e5))
    swept = table.recipe(learning_rate=3e-3)
    swept.given = dict(learning_rate=3e-3)
    table.base(swept, version)
    table.arm('alibi', swept, version, 1.42, created='2026-12-03T12:00:00Z')
    text = page(table.records)
    assert line_of(text, 'rope')[2] == line_of(text, 'alibi')[2] == 'not measured'
    assert '| `rope rope_base=500000.0` | Shakespeare | -.0' in text and '1 more arm in it is of other recipes' in text


def test_a_variant_that_has_got_an_option_since_then_keeps_its_row(table, shakespeare):
    recipe, version = shakespeare
    old = table.arm('rope', recipe, version, 1.42)
    del table.records.arms[old.key]
    old.options, old.file = {name: value for name, value in old.options.items() if name != 'positions'}, 'older'
    table.put(old)
    text = page(table.records)
    assert line_of(text, 'rope')[2].startswith('**better**') and '†' in line_of(text, 'rope')[0]
    assert '## Other options' not in text
    table.arm('rope', recipe, version, 1.48, created='2026-12-03T12:00:00Z')
    assert line_of(page(table.records), 'rope')[2].startswith('**worse**')


def test_prices(table, shakespeare):
    price = dict(step_ms=4.6, base_step_ms=4.2, ratio=1.0957, interval=[1.09, 1.1], peak_bytes=150, base_peak_bytes=100,
                 params=1, base_params=1)
    table.arm('rope', *shakespeare, 1.45, price=price)
    table.arm('alibi', *shakespeare, 1.45, price=price | dict(peak_bytes=None, interval=None))
    text = page(table.records)
    assert [line_of(text, v)[3] for v in HERE] == ['1.10x', '', '', '1.10x<br>1.50x']


VARIANT = '''
    """Nothing. Source: none."""
    import model
    class MLP(model.MLP):
        """Its units."""
        def hidden(self, x, step):
            return super().hidden(x, step)  # as they are
'''


@pytest.mark.parametrize('old, new, changed', [
    ('Source: none.', 'Source: me.', False), ('Its units.', 'Units,\n        its own.', False), ('# as', '# so', False),
    ('super().hidden(x, step)', 'super().hidden(x, step) * 2', True)])
def test_a_file_that_computes_something_else_by_now_is_marked(drop, table, shakespeare, monkeypatch, old, new, changed):
    drop('mine', VARIANT)
    monkeypatch.setattr(rows, 'variant_names', lambda: ['mine'])
    table.arm('mine', *shakespeare, 1.45)
    assert '†' not in ' '.join(line_of(page(table.records), 'mine'))
    file = Path(load_classes('mine').files[0].__file__)
    file.write_text(file.read_text(encoding='utf-8').replace(old, new))
    # a process reads each file once
    code_hash.cache_clear()
    assert ('†' in line_of(page(table.records), 'mine')[0]) == changed


# -----------------------------------------------------------------------------
# the file

def test_the_page_is_current(monkeypatch):
    monkeypatch.setattr(rows, 'variant_names', shipped_variants)
    assert script.PAGE.read_text(encoding='utf-8') == page(read_records()), 'run python -m lab.verdicts'


def test_a_file_of_one_line_an_arm_in_any_order(table, shakespeare, tmp_path):
    table.records.claims = dict(rope='lower')
    arms = [table.arm(variant, *shakespeare, 1.45, n=2) for variant in ('rope', 'alibi')]
    arms[0].runs['9'] = 'diverged'
    write_records(table.records, tmp_path / 'a.json')
    found = read_records(tmp_path / 'a.json')
    assert found == table.records
    found.arms = dict(reversed(found.arms.items()))
    write_records(found, tmp_path / 'b.json')
    text = (tmp_path / 'a.json').read_text()
    assert text == (tmp_path / 'b.json').read_text()
    assert len([line for line in text.splitlines() if '"runs"' in line]) == 3
    assert '"9": "diverged", "101337": ' in text
    assert read_records(tmp_path / 'none.json') == Records() and page(Records()).startswith('# Verdicts')


@pytest.mark.parametrize('old, new, says', [
    ('"arms": [', '"arms": ', r':\d+: is not JSON: '),
    ('"arms": [', '"more": 1, "arms": [', ': must be an object of claims, recipes, versions, arms'),
    ('{"rope": "lower"}', '[]', ': claims=[]: takes an object'),
    ('"lower"', '"best"', ': claims: rope=best: takes lower, equal, higher'),
    ('"variant": "rope", ', '', ': arms[1]: has no variant'),
    ('"variant": "rope"', '"variant": 1', ': arms[1]: variant=1: takes text'),
    ('"variant": "rope"', '"varaint": "rope"', ': arms[1]: varaint: no such field'),
    ('"101337": 1.', '"101337": NaN, "1": 1.', ': arms[1], rope: seed 101337: NaN: takes a finite loss, "diverged" or'),
    ('"101337": 1.', '"101337": true, "1": 1.', ': arms[1], rope: seed 101337: true: takes a finite loss'),
    ('"101337": 1.', '"101337": "1.4", "1": 1.', ': arms[1], rope: seed 101337: "1.4": takes a finite loss'),
    ('"101337": 1.', '"seed 1": 1.', ': arms[1], rope: runs: seed 1: takes seeds'),
    ('"101337": 1.', '"101338": 1.', ': is not JSON: 101338 is there twice in one object'),
    ('2026-12-01T12:00:00Z", "runs": {"101', '1 Dec", "runs": {"101', ': arms[1], rope: created=1 Dec: takes a time'),
    ('"torch": "2.11.0"', '"torch": "2.13.0"', ': versions[0]: id='),
    ('"max_iters": 2000', '"max_iters": 5000', ': recipes[0]: id=shakespeare_char-'),
    ('"price": {', '"price": {"ms": 3, ', ': arms[1], rope: price: must have step_ms, base_step_ms, ratio'),
    ('"ratio": 1.1', '"ratio": null', ': arms[1], rope: price: ratio=null: takes a number'),
    ('"interval": [1.0, 1.2]', '"interval": [1.0]', ': arms[1], rope: price: interval=[1.0]: takes two numbers'),
])
def test_a_file_edited_by_hand_is_one_line(table, shakespeare, tmp_path, monkeypatch, old, new, says):
    price = dict(step_ms=4.6, base_step_ms=4.2, ratio=1.1, interval=[1.0, 1.2], peak_bytes=150, base_peak_bytes=100,
                 params=1, base_params=1)
    table.records.claims = dict(rope='lower')
    table.arm('rope', *shakespeare, 1.45, n=2, price=price)
    path = tmp_path / 'v.json'
    write_records(table.records, path)
    text = path.read_text().replace('{\n"rope": "lower"\n}', '{"rope": "lower"}')
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))
    monkeypatch.setattr(script, 'read_records', lambda: read_records(path))
    line = call(script.main).line(BAD_INPUT)
    assert re.match(re.escape(str(path)) + (says if '\\d' in says else re.escape(says)), line), line


def test_an_arm_that_is_there_twice(table, shakespeare, tmp_path):
    table.arm('rope', *shakespeare, 1.45, n=2)
    path = tmp_path / 'v.json'
    write_records(table.records, path)
    line = next(line for line in path.read_text().splitlines() if '"rope"' in line)
    path.write_text(path.read_text().replace(line, f'{line},\n{line}'))
    with pytest.raises(Exception, match=r'v.json: arms\[2\]: is there twice'):
        read_records(path)
    path.write_text(path.read_text().replace('"recipe": "', '"recipe": "x'))
    with pytest.raises(Exception, match=r'v.json: arms\[0\], base: recipe=x.*: not one of shakespeare_char-'):
        read_records(path)


# -----------------------------------------------------------------------------
# from studies

def run_study(name):
    """Trains rope and the baseline on two seeds each, by a config file of another name than ours."""
    ended = call(ab.main, 'mine.py', variants='rope', name=name, dropout=0.1, check=False, price=False, jobs=1, seeds=2)
    assert ended.code == 0, ended


@pytest.fixture(scope='module')
def trained(data, tmp_path_factory):
    """The folder of a study, trained once."""
    small = TINY | dict(max_iters=2, lr_decay_iters=2, eval_interval=2, log_interval=1, save_best=False,
                        always_save_checkpoint=False, dataset=str(data))
    folder = tmp_path_factory.mktemp('study')
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.chdir(folder)
        monkeypatch.setattr(pool, 'SPAWN', forks())
        monkeypatch.setattr(ab, 'write_page', lambda report, folder: None)
        Path('mine.py').write_text('\n'.join(f'{name} = {value!r}' for name, value in small.items()))
        run_study('one')
    return folder


@pytest.fixture
def study(trained, tmp_path, monkeypatch):
    """A copy of it, in the present folder: out-ab/one."""
    shutil.copytree(trained, tmp_path / 'copy')
    monkeypatch.chdir(tmp_path / 'copy')


def stored(folder, arm):
    """Returns an arm's folder in the store."""
    arms = read_json(f'{folder}/study.json')['arms']
    return Path('out-ab/runs') / next(a['key'] for a in arms if a['name'] == arm)


def test_a_study_is_taken_once(study):
    records = Records()
    assert dataclasses.astuple(add_study(records, 'out-ab/one')) == (2, 4, 0, [])
    write_records(records, 'a.json')
    assert dataclasses.astuple(add_study(records, 'out-ab/one')) == (2, 0, 4, [])
    write_records(records, 'b.json')
    assert Path('a.json').read_bytes() == Path('b.json').read_bytes() and read_records('a.json') == records

    recipe, = records.recipes.values()
    assert (recipe.config, recipe.given) == ('mine.py', dict(dropout=0.1)) and recipe.options['max_iters'] == 2
    base, rope = sorted(records.arms.values(), key=lambda arm: arm.variant)
    assert records.is_baseline(base) and rope.options == todays_options('rope', recipe)
    assert rope.file == file_hash('rope')
    losses = {run['seed']: run['val_loss'] for arm in read_json('out-ab/one/report.json')['arms'] for run in arm['runs']
              if arm['name'] == 'rope'}
    assert {int(seed): loss for seed, loss in rope.runs.items()} == {s: rounded(x) for s, x in losses.items()}


@pytest.mark.slow
def test_a_run_trained_again_has_the_same_last_digit(study, monkeypatch):
    records = Records()
    add_study(records, 'out-ab/one')
    monkeypatch.setattr(pool, 'SPAWN', forks())
    monkeypatch.setattr(ab, 'write_page', lambda report, folder: None)
    shutil.rmtree('out-ab/runs')
    run_study('two')
    assert dataclasses.astuple(add_study(records, 'out-ab/two')) == (2, 0, 4, [])


def test_another_loss_is_said_and_left_out(study):
    """A run that failed gives way to one that did not."""
    records = Records()
    add_study(records, 'out-ab/one')
    first, = [dict(arm.runs) for arm in records.arms.values() if arm.variant == 'rope']
    path = stored('out-ab/one', 'rope') / '1337/ab.json'
    record = read_json(path)
    write_json(path, record | dict(result=record['result'] | dict(val_loss=record['result']['val_loss'] + 1e-6)))
    added = add_study(records, 'out-ab/one')
    assert (added.new, added.equal) == (0, 3) and len(added.differ) == 1
    assert added.differ[0].startswith('rope, seed 1337: ') and added.differ[0].endswith('which is kept')
    rope, = [arm for arm in records.arms.values() if arm.variant == 'rope']
    assert rope.runs == first
    rope.runs['1337'] = 'failed: killed'
    assert add_study(records, 'out-ab/one').new == 1 and rope.runs['1337'] != first['1337']


def test_failed_and_diverged_runs_and_a_price_are_taken(study):
    folder = stored('out-ab/one', 'rope')
    for seed, status in dict(enumerate(('diverged', 'failed'), 1337)).items():
        (folder / f'{seed}/ab.json').unlink()
        write_json(folder / f'{seed}/failed.json', dict(status=status, reason='out of\nmemory'))
    price = dict(step_ms=2.0, step_ratio=1.000004, step_ratio_interval=[0.9, 1.1], peak_bytes=None, params=7)
    identity = {name: read_json(stored('out-ab/one', name) / 'identity.json') for name in ('base', 'rope')}
    write_json('out-ab/one/price.json', dict(identity=identity, results=dict(base=price, rope=price)))
    report = read_json('out-ab/one/report.json')
    report['comparisons'] = [dict(arm='rope', suspicions=['too good'])]
    write_json('out-ab/one/report.json', report)
    records = Records()
    add_study(records, 'out-ab/one')
    base, rope = sorted(records.arms.values(), key=lambda arm: arm.variant)
    assert rope.runs == {'1337': 'diverged', '1338': 'failed: out of memory'}
    assert rope.price == dict(step_ms=2.0, base_step_ms=2.0, ratio=1.0, interval=[0.9, 1.1], peak_bytes=None,
                              base_peak_bytes=None, params=7, base_params=7)
    assert base.price == {} and rope.suspicions == ['too good']
    # of another arm of the same name
    identity['rope']['torch'] = '1.0'
    write_json('out-ab/one/price.json', dict(identity=identity, results=dict(base=price, rope=price)))
    add_study(again := Records(), 'out-ab/one')
    assert not any(arm.price for arm in again.arms.values())


def test_the_noise_floor_and_matched_baselines_are_no_arms(study):
    saved = read_json('out-ab/one/study.json')
    _, rope = saved['arms']
    saved['arms'] += [rope | dict(name='null'), rope | dict(name='base (time of rope)')]
    write_json('out-ab/one/study.json', saved | dict(pairs=dict(rope=saved['arms'][-1])))
    assert add_study(Records(), 'out-ab/one').arms == 2


def test_each_cell_of_a_study_over_options_is_a_recipe(study):
    """Whichever is added first, a cell at the plain recipe is the plain recipe."""
    saved = read_json('out-ab/one/study.json')
    arms = dict(base='base', rope='rope')
    cell = dict(name='tiny, lr x2', text='tiny', levels=dict(learning_rate='x2'), arms=arms)
    for levels, given in (dict(learning_rate='x1'), {}), (dict(learning_rate='x2'), dict(learning_rate=0.01)):
        write_json('out-ab/one/study.json', saved | dict(cells=[cell | dict(levels=levels)]))
        records = Records()
        assert add_study(records, 'out-ab/one').new == 4
        recipe, = records.recipes.values()
        assert recipe.given == dict(dropout=0.1) | given
    write_json('out-ab/one/study.json', saved)
    add_study(records, 'out-ab/one')
    recipe, = records.recipes.values()
    assert recipe.given == dict(dropout=0.1)


def test_the_command_writes_both_files(study, monkeypatch):
    monkeypatch.setattr(script, 'PAGE', Path('page.md').absolute())
    monkeypatch.setattr(script, 'FILE', Path('v.json').absolute())
    monkeypatch.setattr(script, 'read_records', lambda: read_records('v.json'))
    assert call(script.main, '--check').line(BAD_INPUT).endswith('run python -m lab.verdicts')
    done = call(script.main, 'add', 'out-ab/one')
    assert 'out-ab/one: 2 arms, 4 new runs; 0 runs are here already' in done.out and done.code == 0
    assert call(script.main, '--check').code == 0
    assert call(script.main, 'refused', 'out-ab/one', 'alibi', 'it leaks').code == 0
    refused, = [arm for arm in read_records('v.json').arms.values() if arm.refused]
    assert (refused.variant, refused.runs, refused.refused) == ('alibi', {}, 'it leaks')
    for args, says in ((['out-ab/one'], 'takes add out-ab/NAME...'), (['add'], 'takes add out-ab/NAME...'),
                       (['add', 'nowhere'], 'nowhere: holds no study'), (['add', 'out-ab/runs'], 'holds no study'),
                       (['refused', 'out-ab/one', 'rope', 'x'], 'rope: has runs in ')):
        assert says in call(script.main, *args).line(BAD_INPUT)
    # its store was left behind
    stored('out-ab/one', 'rope').rename('elsewhere')
    assert 'its store belongs beside it' in call(script.main, 'add', 'out-ab/one').line(BAD_INPUT)


# -----------------------------------------------------------------------------
# luck

@pytest.mark.slow
def test_tables_of_ideas_that_do_nothing():
    """Of rows that do nothing at most 5 % are called better or worse, and any of a table is bold in 5 % of tables."""
    found, bold, tables, size = 0, 0, 200, 8
    for seed in range(tables):
        table = Table()
        table.rng = np.random.default_rng(seed)
        recipe, version = table.recipe(), table.version()
        table.base(recipe, version)
        for i in range(size):
            table.arm('rope', recipe, version, 1.45, n=16, options=dict(number=i))
        judged = [row for row in judge_recipe(table.records, recipe.id) if row.word in ('better', 'worse')]
        found, bold = found + len(judged), bold + any(row.stands for row in judged)
    print(f'\n| better or worse {found / tables / size:.4f} | any in bold {bold / tables:.4f} |')
    assert found / tables / size < 0.05 + 3 * math.sqrt(0.05 * 0.95 / tables / 2)
    assert bold / tables < 0.05 + 3 * math.sqrt(0.05 * 0.95 / tables)
