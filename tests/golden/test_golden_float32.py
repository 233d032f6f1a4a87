"""The same comparisons in float32, as models train, where 5e-5 is what FORMAT.md grants."""
import golden_common
import golden_differential
import golden_future
import golden_parts
import golden_stream
import golden_tokens
import pytest
import torch
from golden_common import Golden
from test_golden import FILES, SOURCES, covered, kind
from torch import nn

# older kinds have parts that need float64, FORMAT.md says which
FAMILIES = golden_differential, golden_future, golden_parts, golden_stream, golden_tokens
KINDS = {name for family in FAMILIES for name in family.SOURCES}


@pytest.mark.parametrize('path', [p for p in FILES if covered(p) and kind(p)[0] in KINDS], ids=lambda p: p.stem)
def test_golden_in_float32(path, monkeypatch):
    # what golden_common casts to float64
    for c in torch.Tensor, nn.Module:
        monkeypatch.setattr(c, 'double', c.float)
    monkeypatch.setattr(golden_common, 'TOLERANCE', 5e-5)
    variant, level = kind(path)
    SOURCES[variant].levels[level](Golden(path), SOURCES[variant])
