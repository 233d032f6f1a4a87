"""probe.py compare: calibration is what it says, and only what can be compared is."""

import numpy as np
import pytest
from helpers import TINY, call

import probe
import train
from core.data.prepare import prepare_bytes
from core.run.folder import RunFolder
from lab.probe import open_runs
from lab.probe.compare import ms_of, options_table, sample
from lab.probe.scores import calibration_error, reliability


def test_calibration_error_is_how_far_probabilities_and_shares_are_apart():
    # 100 tokens at 55 %, of which 30 are right; 100 at 95 %, of which 95 are
    sure = np.repeat([[0.55, 0.95]], 100, 0)
    right = np.zeros((100, 2))
    right[:30, 0], right[:95, 1] = 1, 1
    assert calibration_error(sure, right) == pytest.approx((0.25 + 0.0) / 2)
    said, share, n = reliability(sure, right)
    assert (said[5], share[5], n[5], n[0]) == (pytest.approx(0.55), pytest.approx(0.3), 100, 0) and np.isnan(said[0])
    # a probability of 1, and no target
    assert reliability(np.array([1.0, np.nan]), np.array([1.0, np.nan]))[2].tolist() == [0] * 9 + [1]


def test_runs_side_by_side(study, monkeypatch):
    monkeypatch.setattr('lab.probe.page.write_pngs', lambda charts, folder: [])
    one, other = study.parent / 'runs/base-0/1', study.parent / 'runs/bigram-0/2'
    ended = call(probe.main, 'compare', one, other, windows=40, max_new_tokens=20)
    assert ended.code == 0 and '2 minus 1: -0.' in ended.out and 'one run each gives no interval' in ended.out
    assert 'variant' in ended.out and 'bigram_rows' in ended.out
    page = (one / 'probe/compare.html').read_text()
    assert 'class="samples"' in page and 'Validation loss' in page
    # the arms of a study
    monkeypatch.setattr('lab.probe.page.draw_all', lambda charts: None)
    ended = call(probe.main, 'compare', study, windows=40, max_new_tokens=0, variant=study.parent / 'planted.py')
    assert 'bigram minus base: -0.' in ended.out and ' ± 0.' in ended.out


def test_the_price_and_options_are_the_runs(study):
    run, = open_runs(study.parent / 'runs/base-0/1', 'latest', 'cpu', 'float32')
    other, = open_runs(study.parent / 'runs/bigram-0/1', 'latest', 'cpu', 'float32')
    times = [line['ms'] for line in RunFolder(run.folder).read_log() if 'ms' in line and line['iter'] > 0]
    assert min(times) <= ms_of(run) <= max(times)
    names = [row[0] for row in options_table({'a': [run], 'b': [other]}).rows]
    assert names == ['variant', 'bigram', 'bigram_rows']
    assert sample(run, '\n', 30, 1) == sample(run, '\n', 30, 1) != sample(run, '\n', 30, 2)


def test_runs_of_other_tokens_are_compared_in_bits_per_byte_alone(study, tmp_path, monkeypatch):
    monkeypatch.setattr('lab.probe.page.write_pngs', lambda charts, folder: [])
    monkeypatch.setattr('lab.probe.page.draw_all', lambda charts: None)
    one = study.parent / 'runs/base-0/1'
    (tmp_path / 'speak.txt').write_text('speak, speak. ' * 300)
    prepare_bytes([tmp_path / 'speak.txt'], tmp_path / 'bytes')
    options = TINY | dict(max_iters=2, lr_decay_iters=4, eval_interval=2, eval_iters=2)
    assert call(train.main, dataset=tmp_path / 'bytes', out_dir=tmp_path / 'out', **options).code == 0
    ended = call(probe.main, 'compare', one, tmp_path / 'out', windows=20, max_new_tokens=0)
    assert ended.code == 0 and 'Their tokenizers differ, so that they are compared in bits per byte alone.' in ended.out
    assert 'top 1' not in ended.out and 'nats' not in ended.out


def test_bad_input_is_one_line(study, tmp_path):
    base = study.parent / 'runs/base-0/1'
    assert 'which folder?' in call(probe.main, 'compare').line(2)
    assert '1 run or arm; allowed: 2 to 7' in call(probe.main, 'compare', base).line(2)
    assert 'one of them is named twice' in call(probe.main, 'compare', base, base).line(2)
    assert 'holds no checkpoint' in call(probe.main, 'compare', base, tmp_path).line(4)
