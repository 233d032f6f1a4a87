"""For every test: the scripts import from a checkout, and a variant can be dropped in for one test."""
import importlib
import sys
import textwrap
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))


@pytest.fixture
def drop(tmp_path, monkeypatch):
    """drop('mine', source): a file variants/mine.py beside the others until the test ends."""
    import model

    there, dropped = model.variants, []
    (tmp_path / 'variants').mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(model, 'variants', lambda: sorted({*there(), *dropped}))

    def write(name, source):
        (tmp_path / 'variants' / f'{name}.py').write_text(textwrap.dedent(source))
        dropped.append(name)
        importlib.invalidate_caches()

    yield write
    for name in dropped:
        sys.modules.pop(f'variants.{name}', None)
