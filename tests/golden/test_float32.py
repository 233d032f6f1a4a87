"""The sources' numbers in float32, as models train: the comparison of test_golden.py with that precision."""
import golden_common
import golden_parts
import golden_stream
import pytest
import torch
from golden_common import Golden
from test_golden import FILES, SOURCES, covered, kind

# older kinds have parts that need float64, FORMAT.md says which
VARIANTS = golden_parts.SOURCES | golden_stream.SOURCES


MINE = [p for p in FILES if covered(p) and kind(p)[0] in VARIANTS]


@pytest.mark.parametrize('path', MINE, ids=lambda p: p.stem)
def test_float32(path, monkeypatch):
    monkeypatch.setattr(golden_common, 'TOLERANCE', 5e-5)
    for c in torch.nn.Module, torch.Tensor:
        monkeypatch.setattr(c, 'double', c.float)
    variant, level = kind(path)
    SOURCES[variant].levels[level](Golden(path), SOURCES[variant])
