"""The table of the variants is made from their files, which have all that it needs."""
import re
import statistics

import pytest
from helpers import ROOT, call, shipped_variants

from core.errors import BAD_INPUT
from model import load_classes
from variants import __main__ as catalogue

VARIANTS = shipped_variants()
mine = pytest.mark.parametrize('name', VARIANTS)

GOOD = '''
    """Doubles | what attention says.

    Source: github.com/somebody/something,
    the second file.

        y = 2 y

    Claim: none, an example.
    Expect: nothing.
    Control: `alibi` has
    less of it.
    Logged: `gate`, as it is.
    """
    from dataclasses import dataclass
    import torch
    import torch.nn as nn
    import model
    from configurator import Positive
    NEUTRAL = dict(twice=1.0)
    LEAKS = [(dict(twice=3.0), 'it says so')]
    @dataclass
    class GPTConfig(model.GPTConfig):
        twice: Positive | None = 2.0 # how much, or | none
    class Block(model.Block):
        def __init__(self, config, classes, layer):
            super().__init__(config, classes, layer)
            self.more = nn.Parameter(torch.zeros(1000))
'''


def test_the_page_is_current(monkeypatch):
    monkeypatch.setattr(catalogue, 'variant_names', lambda: VARIANTS)
    text = (catalogue.FOLDER / 'README.md').read_text(encoding='utf-8')
    assert text == catalogue.readme(), 'run python -m variants'


@mine
def test_every_file_says_what_the_table_needs(name):
    doc = catalogue.parse_docstring(name)
    assert re.search(r'arxiv|github\.com/', doc['Source'], re.IGNORECASE), doc['Source']
    assert isinstance(load_classes(name).files[0].NEUTRAL, dict)


def test_a_variant_is_a_page():
    texts = [(catalogue.FOLDER / f'{name}.py').read_text(encoding='utf-8') for name in VARIANTS]
    assert statistics.median(len(text.splitlines()) for text in texts) <= 60


def test_the_model_names_no_variant():
    source = (ROOT / 'model.py').read_text(encoding='utf-8')
    source = source.replace(load_classes.__doc__, '') # which has to show a sum of two
    assert [name for name in VARIANTS if re.search(rf'\b{name}\b', source)] == []


def write(drop, monkeypatch, tmp_path, text):
    drop('mine', text)
    monkeypatch.setattr(catalogue, 'FOLDER', tmp_path)
    monkeypatch.setattr(catalogue, 'variant_names', lambda: ['mine'])
    return call(catalogue.main)


def test_a_row_and_a_section_for_each(drop, monkeypatch, tmp_path):
    assert write(drop, monkeypatch, tmp_path, GOOD).code == 0
    lines = (tmp_path / 'README.md').read_text(encoding='utf-8').splitlines()
    row, = [line for line in lines if line.startswith('| [')]
    assert row == (r'| [`mine`](mine.py) [verdict](../docs/verdicts.md#mine) | Doubles \| what attention says. | Block '
                   '| github.com/somebody/something, the second file. '
                   '| none, an example. | `alibi` has less of it. | 28 | +6,000 |')
    assert {'### mine', 'Expect: nothing.', 'Logged: `gate`, as it is.',
            'Declared to leak in training, `twice=3.0`: it says so.',
            r'| `twice` | 2.0 | float in (0, inf) \| None | how much, or \| none |'} <= set(lines)


def test_what_was_measured_may_stand_in_place_of_what_was_expected(drop, monkeypatch, tmp_path):
    assert write(drop, monkeypatch, tmp_path, GOOD.replace('Expect: nothing.', 'Measured: worse by .1.')).code == 0
    text = (tmp_path / 'README.md').read_text(encoding='utf-8')
    assert '\nMeasured: worse by .1.\n' in text and 'Expect' not in text


@pytest.mark.parametrize('old, new, says', [
    ('Expect: nothing.', '', 'its docstring has no line that begins with "Expect: "'),
    ('Claim: none, an example.', '', 'its docstring has no line that begins with "Claim: "'),
    ('Control: `alibi` has', 'Control:\n\n    alibi has', 'its docstring has no line that begins with "Control: "'),
    ('says.\n', 'says.\n    And more.\n', 'its docstring must begin with the idea, one line')])
def test_what_is_missing_is_said(drop, monkeypatch, tmp_path, old, new, says):
    ended = write(drop, monkeypatch, tmp_path, GOOD.replace(old, new))
    assert ended.line(BAD_INPUT).startswith(f'variants/mine.py: {says}')
    assert not (tmp_path / 'README.md').exists()
