"""The sources' own numbers: our code computes what the code of each idea computed, forward and backward.

FORMAT.md says what the files hold. GOLDEN_DIR names another folder of the same format. Nothing here knows the
files in it: sizes, options and seeds come from a file's meta, and its arrays say what to compare.
"""
import importlib
import os
from pathlib import Path

import pytest
from golden_common import Config, Golden

FOLDER = Path(os.environ.get('GOLDEN_DIR', Path(__file__).parent))
FILES = sorted(FOLDER.glob('*.npz'))
FAMILIES = sorted(path.stem for path in Path(__file__).parent.glob('golden_*.py') if path.stem != 'golden_common')
SOURCES = {name: source for family in FAMILIES for name, source in importlib.import_module(family).SOURCES.items()}


def kind(path):
    variant, level, _ = path.stem.split('__')
    return variant, level


def covered(path):
    variant, level = kind(path)
    return variant in SOURCES and level in SOURCES[variant].levels


@pytest.mark.parametrize('path', [p for p in FILES if covered(p)], ids=lambda p: p.stem)
def test_golden(path, monkeypatch):
    variant, level = kind(path)
    golden, source = Golden(path), SOURCES[variant]
    assert (golden.meta['variant'], golden.meta['level']) == (variant, level)
    assert golden.meta.get('constants', {}) == source.constants
    extra = (monkeypatch,) if level == 'generate' else ()
    config = golden.config
    source.levels[level](golden, source, *extra)
    assert config.unread == set(), 'fields of the file\'s config of which nobody knows if they matter'


def test_every_file_is_covered():
    assert FILES, f'{FOLDER} holds no .npz file'
    assert [p.name for p in FILES if not covered(p)] == []


def test_a_field_that_nobody_reads_is_noticed():
    config = Config(dict(bias=True, variance=2.0, device='cpu'))
    assert config['bias'] and config.unread == {'variance'}
    # what becomes our options is checked by build()
    assert dict(config, more=1)['variance'] == 2.0 and config.unread == set()
    with pytest.raises(AssertionError, match='variance=2.0: our code has 1.0 alone'):
        config.only(bias=True, variance=1.0)
