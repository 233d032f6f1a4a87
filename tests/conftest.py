"""For every test: the scripts import from a checkout, and a variant can be dropped in for one test."""
import importlib
import os
import sys
import textwrap

import pytest
import torch

if not torch.cuda.is_available(): # Triton, if there at all, must know before its first import that it is to interpret
    os.environ.setdefault('TRITON_INTERPRET', '1')


@pytest.fixture(autouse=True)
def the_same_path_for_every_test(monkeypatch):
    """A prepare.py puts its own repository in front of the path, in a test a copy in a temporary folder."""
    monkeypatch.setattr(sys, 'path', list(sys.path))


@pytest.fixture
def drop(tmp_path, monkeypatch):
    """drop('mine', source): a file variants/mine.py beside the others until the test ends."""
    import core.assemble
    import variants

    present, dropped = core.assemble.variant_names, []
    monkeypatch.setattr(variants, '__path__', [*variants.__path__, str(tmp_path)])
    monkeypatch.setattr(core.assemble, 'variant_names', lambda: sorted({*present(), *dropped}))

    def write(name, source):
        (tmp_path / f'{name}.py').write_text(textwrap.dedent(source))
        dropped.append(name)
        importlib.invalidate_caches()

    yield write
    for name in dropped:
        sys.modules.pop(f'variants.{name}', None)
