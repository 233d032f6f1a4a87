"""probe.py shapes: what goes into and comes out of each module."""
import torch
from helpers import call

import probe
from lab.probe.shapes import trace
from model import build


def test_each_call_has_its_shapes_in_order():
    calls = trace(build(n_layer=1, n_head=2, n_embd=8, block_size=5, vocab_size=7), torch.zeros(3, 5, dtype=torch.long))
    by_name = {c.name: c for c in calls}
    assert calls[0].kind == 'GPT' and calls[0].given == [(3, 5, 7)]
    assert by_name['transformer.h.0.attn.c_attn'][2:] == ([(3, 5, 8)], [(3, 5, 24)], {'weight': (24, 8)})
    names = [c.name for c in calls]
    assert names.index('transformer.wte') < names.index('transformer.h.0.attn') < names.index('lm_head')


def test_the_command_prints_and_writes_them(tmp_path):
    ended = call(probe.main, 'shapes', variant='fractal_heads', n_layer=1, to=tmp_path)
    assert ended.code == 0 and 'attn CausalSelfAttention' in ended.out and '(2, 16, 64) -> (2, 16, 192)' in ended.out
    assert 'Shapes of fractal_heads' in (tmp_path / 'shapes.html').read_text()


def test_bad_input_is_one_line():
    assert call(probe.main, 'shape').line(2) == ('shape: no such command; did you mean shapes?; allowed: '
                                                 + ', '.join(probe.COMMANDS))
    assert 'no file variants/nothing.py' in call(probe.main, 'shapes', variant='nothing').line(2)
