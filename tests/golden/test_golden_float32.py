"""The same comparisons in float32, where 5e-5 is what FORMAT.md grants."""
import golden_common
import pytest
import torch
from golden_common import Golden
from test_golden import FILES, SOURCES, kind
from torch import nn

KINDS = 'bigram', 'diff', 'diff2', 'engram', 'mtp', 'mtp_weighted', 'smear', 'value_embed'


@pytest.mark.parametrize('path', [p for p in FILES if kind(p)[0] in KINDS], ids=lambda p: p.stem)
def test_golden_in_float32(path, monkeypatch):
    # what golden_common casts to float64
    monkeypatch.setattr(torch.Tensor, 'double', torch.Tensor.float)
    monkeypatch.setattr(nn.Module, 'double', nn.Module.float)
    monkeypatch.setattr(golden_common, 'TOLERANCE', 5e-5)
    variant, level = kind(path)
    source = SOURCES[variant]
    source.levels[level](Golden(path), source)
