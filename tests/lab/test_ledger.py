"""The ledger outlives whatever happens to its file; every other line is still read."""
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest

from lab.study.ledger import COMPARISON_FIELDS, add_to_ledger, ledger_entries, ledger_text


def report(name, mean=-0.01, interval=(-0.02, -0.005)):
    comparison = dict.fromkeys(COMPARISON_FIELDS) | dict(arm='a', baseline='base', n=5, mean=mean, verdict='better',
                                                         interval=list(interval), holm_p=0.01)
    arms = [SimpleNamespace(name=arm, runs=[]) for arm in ('base', 'a')]
    return SimpleNamespace(name=name, created='2026-01-31T12:00:00Z', command='python ab.py', arms=arms,
                           plan=SimpleNamespace(seeds=[1, 2]), comparisons=[SimpleNamespace(**comparison)])


def names(out):
    return [entry['name'] for entry in ledger_entries(out)]


@pytest.fixture
def out(tmp_path):
    for name in 'one', 'two', 'three':
        add_to_ledger(report(name), tmp_path)
    return tmp_path


@pytest.mark.parametrize('bad', [b'{"name"', b'[]', b'null', b'{}', b'\xff\xfe', b'1',
                                 b'{"name": "x", "comparisons": [1]}'])
def test_a_bad_line_costs_itself_alone(out, capsys, bad):
    path = out / 'ledger.jsonl'
    lines = path.read_bytes().splitlines()
    path.write_bytes(b'\n'.join([lines[0], bad, *lines[1:]]) + b'\n')
    assert names(out) == ['one', 'two', 'three']
    assert f'warning: skipped {path}:2: is damaged' in capsys.readouterr().err
    add_to_ledger(report('four'), out)
    assert names(out) == ['one', 'two', 'three', 'four'] and '4 comparisons in 4 studies' in ledger_text(out)


def test_a_line_that_was_cut_short_takes_no_other_with_it(out, capsys):
    path = out / 'ledger.jsonl'
    path.write_bytes(path.read_bytes()[:-20])
    assert names(out) == ['one', 'two'] and f'{path}:3: was cut short' in capsys.readouterr().err
    add_to_ledger(report('four'), out)
    capsys.readouterr()
    assert names(out) == ['one', 'two', 'four'] and not capsys.readouterr().err


def test_flipped_bits_are_named(out, capsys):
    path, rng = out / 'ledger.jsonl', np.random.default_rng(0)
    whole, entries = path.read_bytes(), ledger_entries(out)
    for at in rng.integers(len(whole), size=100):
        damaged = bytearray(whole)
        damaged[at] ^= 1 << rng.integers(8)
        path.write_bytes(damaged)
        left = ledger_entries(out)
        assert len(left) < 3 and all(entry in entries for entry in left) and str(path) in capsys.readouterr().err, at


def test_lines_of_earlier_versions_are_read(out):
    path = out / 'ledger.jsonl'
    entries = ledger_entries(out)
    path.write_text(''.join(json.dumps(entry) + '\n' for entry in entries))
    assert ledger_entries(out) == entries


@pytest.mark.parametrize('x, shown', [(1e300, '+1e+300'), (math.inf, '+inf'), (math.nan, '+nan'),
                                      (-12345.5, '-12345.5000')])
def test_losses_without_measure_have_a_row(tmp_path, x, shown):
    add_to_ledger(report('far', x, (x, x)), tmp_path)
    assert f'| {shown} | {shown} to {shown} |' in ledger_text(tmp_path)
    # and what is there is known again
    add_to_ledger(report('far', x, (x, x)), tmp_path)
    assert names(tmp_path) == ['far']
