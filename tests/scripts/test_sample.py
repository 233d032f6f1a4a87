"""Sampling from a run folder: which checkpoint, which text, and messages for impossible requests."""
import io
import json
import math
import sys
from types import SimpleNamespace

import pytest
import torch
from helpers import ROOT, TINY, call, shakespeare, shell

import sample
import train
from core.data.prepare import prepare_bytes, prepare_chars
from core.data.tokenizer import Tokenizer
from core.device.machine import machine
from core.errors import BAD_INPUT, NO_CHECKPOINT
from core.rng import key
from core.run.folder import RunFolder
from model import Step, build

RULE = '\n---------------\n'


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return shakespeare(tmp_path_factory.mktemp('data'))


@pytest.fixture(scope='module')
def trained(data, tmp_path_factory):
    """Gives a run folder, trained so long that letters are not equally likely."""
    out = tmp_path_factory.mktemp('trained')
    options = dict(dataset=data, out_dir=out, variant='surprise+soft_window', max_iters=40, learning_rate=3e-2)
    assert call(train.main, **TINY | options).code == 0
    return out


@pytest.fixture
def draw(trained):
    """draw(start='All:') returns the samples, and asserts that stdout holds nothing else."""
    def samples(**options):
        options = dict(out_dir=trained, num_samples=2, max_new_tokens=40, device='cpu') | options
        done = call(sample.main, **options)
        assert done.code == 0, done.err
        *texts, end = done.out.split(RULE)
        assert end == ''
        return texts
    return samples


def refuse(code, **options):
    return call(sample.main, **dict(num_samples=1, max_new_tokens=5, device='cpu') | options).line(code)


# -- the text

def test_as_many_samples_as_asked(draw):
    texts = draw(num_samples=3, start='All:')
    assert [len(text) for text in texts] == [4 + 40] * 3        # far beyond block_size 16
    assert all(text.startswith('All:') for text in texts)
    assert len(set(texts)) == 3


def test_the_same_seed_draws_the_same(draw):
    texts = draw(num_samples=3, seed=5)
    assert texts == draw(num_samples=3, seed=5) != draw(num_samples=3, seed=6)


def test_temperature_0_is_greedy(draw, trained):
    first, second = draw(temperature=0, seed=1)
    assert [first, second] == draw(temperature=0, seed=2) and first == second
    assert first in draw(top_k=1, seed=3)                       # the likeliest alone


def test_what_is_drawn(draw, trained):
    """The text equals that of a plain loop without a cache, well past block_size."""
    model, tokenizer, _, state = sample.open_run(trained, device='cpu')
    generator, it = torch.Generator().manual_seed(key(3, 'sample')), torch.tensor(float(state['step']))
    idx = torch.tensor([tokenizer.encode('\n')] * 10)
    for _ in range(60):
        logits, _ = model(idx[:, -16:], step=Step(it=it))
        logits = logits[:, -1] / 0.7
        logits[logits < logits.topk(20).values[:, [-1]]] = -math.inf
        idx = torch.cat((idx, torch.multinomial(logits.softmax(-1), 1, generator=generator)), dim=1)
    texts = draw(seed=3, temperature=0.7, top_k=20, num_samples=10, max_new_tokens=60)
    assert texts == [tokenizer.decode(row) for row in idx.tolist()]


def test_top_k_0_and_more_than_there_are_are_no_limit(draw):
    assert draw(top_k=0) == draw(top_k=52) == draw(top_k=1000) != draw(top_k=2)


def test_narrow_choices_are_narrow(draw):
    greedy = draw(temperature=0)
    assert draw(top_p=1e-6) == draw(min_p=1.0) == greedy
    assert draw(top_p=0.999999, min_p=0.0) != greedy


def test_the_start(draw, tmp_path):
    (tmp_path / 'prompt.txt').write_text('ROMEO:\nO', encoding='utf-8')
    assert draw(start=f"FILE:{tmp_path / 'prompt.txt'}") == draw(start='ROMEO:\nO')
    # nothing to go on from: a new line, nanoGPT's default
    assert draw(start='') == draw(start='\n') == draw()
    # a byte order mark is no part of the text, as in preparing
    (tmp_path / 'windows.txt').write_bytes('\ufeffROMEO:\r\nO'.encode())
    assert draw(start=f"FILE:{tmp_path / 'windows.txt'}") == draw(start='ROMEO:\nO')
    long = 'First Citizen:\nBefore we proceed any further, hear me speak.\n'
    assert all(text.startswith(long) for text in draw(start=long))


def test_a_start_beyond_block_size_counts_from_its_end(draw, trained):
    """Only the last 16 characters are seen, so what is before them changes nothing, and the user is told."""
    one, other = (draw(start=head + 'hear me speak.\nAll:') for head in ('', 'First Citizen:\n'))
    assert one == [text.removeprefix('First Citizen:\n') for text in other]
    done = call(sample.main, out_dir=trained, device='cpu', max_new_tokens=2, num_samples=1, start='All:\n' * 200_000)
    assert (done.code, done.out[:1_000_000]) == (0, 'All:\n' * 200_000)
    assert 'start has 1,000,000 tokens, of which the model sees the last 16\n' in done.err


def test_stdout_holds_the_samples_and_stderr_the_options(trained):
    done = call(sample.main, out_dir=trained, device='cpu', max_new_tokens=5, num_samples=1, start='All:')
    assert done.code == 0 and done.out.startswith('All:') and done.out.endswith(RULE)
    assert done.err.splitlines()[-1] == "start = 'All:' (command line)"


@pytest.mark.parametrize('dtype', ['float32', 'float16', 'bfloat16'])
def test_a_temperature_as_low_as_it_may_be_is_greedy(draw, dtype):
    greedy = draw(temperature=0, dtype=dtype)
    for temperature in 1e-5, 1e-40, 5e-324:
        assert draw(temperature=temperature, dtype=dtype) == greedy


def test_what_the_start_cannot_be(trained, tmp_path):
    line = refuse(BAD_INPUT, out_dir=trained, start='café')
    assert "'é'" in line and 'not among the 52 characters' in line
    assert refuse(BAD_INPUT, out_dir=trained, start='FILE:nope.txt') == 'start=FILE:nope.txt: No such file or directory'
    (tmp_path / 'latin').write_bytes(b'caf\xe9')
    assert refuse(BAD_INPUT, out_dir=trained, start=f"FILE:{tmp_path / 'latin'}").endswith('is not UTF-8 text')


@pytest.mark.parametrize('options, says', [
    (dict(temperature=-1), '--temperature=-1: '), (dict(num_samples=0), '--num_samples=0: '),
    (dict(top_p=2), '--top_p=2: '), (dict(n_layer=3), '--n_layer=3: no such option'),
    (dict(init_from='nope'), 'init_from=nope: allowed: '),
    (dict(ckpt='newest'), "checkpoint 'newest': allowed are 'latest', 'best' and a step")])
def test_bad_options(trained, options, says):
    assert refuse(BAD_INPUT, out_dir=trained, **options).startswith(says)


def test_a_text_without_line_breaks_in_a_padded_vocabulary(tmp_path):
    """Samples begin with what the set has, unless a start is given, and no id is drawn that has no text."""
    prepare_chars('abracadabra ' * 50, tmp_path / 'data')
    options = dict(dataset=tmp_path / 'data', out_dir=tmp_path / 'run', max_iters=1, vocab_size=512)
    assert call(train.main, **TINY | options).code == 0
    for start, said in (dict(), True), (dict(start=''), True), (dict(start='abra'), False):
        done = call(sample.main, out_dir=tmp_path / 'run', device='cpu', max_new_tokens=30, num_samples=3, **start)
        texts = done.out.split(RULE)[:-1]
        begin = start.get('start') or ' '
        assert done.code == 0 and len(texts) == 3
        assert all(text.startswith(begin) and len(text) == len(begin) + 30 and set(text) <= set('abrcd ')
                   for text in texts)
        assert ("this set has no line break, so the samples go on from ' '\n" in done.err) == said
    assert r"'\n'" in refuse(BAD_INPUT, out_dir=tmp_path / 'run', start='\n')


def test_a_model_of_bytes(tmp_path):
    """It trains, goes on where it was stopped, says bits per byte, and any start is a start."""
    (tmp_path / 'latin').write_bytes('naïve café\n'.encode('latin-1') * 200)
    prepare_bytes([tmp_path / 'latin'], tmp_path / 'data')
    options = TINY | dict(dataset=tmp_path / 'data', out_dir=tmp_path / 'run', max_iters=4, eval_interval=2)
    assert call(train.main, **options).code == 0
    assert call(train.main, **options | dict(init_from='resume', max_iters=8)).code == 0
    result = json.loads((tmp_path / 'run/result.json').read_text())
    assert result['bits_per_byte'] == pytest.approx(result['val_loss'] / math.log(2))
    done = call(sample.main, out_dir=tmp_path / 'run', device='cpu', num_samples=2, max_new_tokens=30, start='漢é')
    texts = done.out.split(RULE)[:-1]
    assert done.code == 0 and len(texts) == 2 and all(text.startswith('漢é') for text in texts)


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Bytes:
    """A stand-in for tiktoken's encoding: a token is a byte, so that characters have several."""
    def encode(self, text, allowed_special=()):
        return list(text.encode())

    def decode_bytes(self, ids):
        return bytes(ids)


def test_on_a_terminal_characters_come_whole_and_control_characters_visibly(monkeypatch, tmp_path):
    """The model always writes é, then an escape character, which would change the terminal's colour."""
    text = 'é\x1b[31m'
    monkeypatch.setitem(sys.modules, 'tiktoken', SimpleNamespace(get_encoding=lambda name: Bytes()))
    model = build('base', n_layer=1, n_head=1, n_embd=8, block_size=8, vocab_size=300)
    monkeypatch.setattr(model, 'stream', lambda idx, n, *args: (torch.tensor([[b], [b]]) for b in text.encode()))
    opened = model, Tokenizer('gpt2', 300), machine('cpu'), dict(step=0)
    monkeypatch.setattr(sample, 'open_run', lambda *args: opened)
    monkeypatch.setattr(sys, 'argv', ['sample.py', '--num_samples=2', '--start=ü'])
    monkeypatch.setattr(sys, 'stdout', screen := Terminal())
    sample.main()
    assert screen.getvalue() == r'üé\x1b[31m' + RULE + r'üé\x1b[31m' + RULE
    monkeypatch.setattr(sys, 'stdout', pipe := io.StringIO())
    sample.main()
    assert pipe.getvalue() == ('ü' + text + RULE) * 2


def test_a_character_cut_short_at_the_end_is_not_shown(monkeypatch):
    """Of bytes, on a terminal and elsewhere: the model writes é and half of an arrow."""
    monkeypatch.setattr(sample, 'open_run', lambda *args: opened)
    monkeypatch.setattr(sys, 'argv', ['sample.py', '--num_samples=2', '--start=ü'])
    model = build('base', n_layer=1, n_head=1, n_embd=8, block_size=8, vocab_size=256)
    monkeypatch.setattr(model, 'stream', lambda idx, n, *args: (torch.tensor([[b], [b]]) for b in b'\xc3\xa9\xe2\x86'))
    opened = model, Tokenizer('bytes', 256), machine('cpu'), dict(step=0)
    for stdout in Terminal(), io.StringIO():
        monkeypatch.setattr(sys, 'stdout', stdout)
        sample.main()
        assert stdout.getvalue() == ('üé' + RULE) * 2


# -- the checkpoint

def test_no_checkpoint(tmp_path):
    line = refuse(NO_CHECKPOINT, out_dir=tmp_path / 'nowhere')
    assert line.startswith(f"out_dir={tmp_path / 'nowhere'}: holds no checkpoint; train first: python train.py")
    assert not (tmp_path / 'nowhere').exists()


@pytest.mark.slow
def test_a_process_of_its_own_ends_in_one_line(tmp_path):
    line = shell(ROOT / 'sample.py', out_dir=tmp_path).line(NO_CHECKPOINT)
    assert line.startswith(f'out_dir={tmp_path}: holds no checkpoint')


@pytest.mark.parametrize('always', [True, False])
def test_best_or_latest_as_the_run_was_told(data, tmp_path, always):
    """The learning rate ruins the model, so that its best is not its latest."""
    out = tmp_path / 'run'
    args = dict(learning_rate=5.0, min_lr=5.0, max_iters=20, eval_interval=2, always_save_checkpoint=always)
    assert call(train.main, **TINY | dict(dataset=data, out_dir=out) | args).code == 0
    evals = {r['iter']: r['val_loss'] for r in RunFolder(out).read_log() if 'val_loss' in r}
    best = min(evals, key=evals.get)
    step = lambda ckpt: sample.open_run(out, ckpt, 'cpu')[3]['step']
    assert best < 20 and step('auto') == (20 if always else best)
    assert (step('best'), step('latest'), step(str(best))) == (best, 20, best)
    texts = {ckpt: call(sample.main, out_dir=out, ckpt=ckpt, device='cpu', max_new_tokens=30).out.split(RULE)[1:]
             for ckpt in ('auto', 'best', 'latest')}
    assert texts['auto'] == texts['latest' if always else 'best'] and texts['best'] != texts['latest']


def test_the_model_is_the_trained_one(data, trained):
    """The model that sampling opens has the validation loss that training wrote down."""
    model, _, m, state = sample.open_run(trained, device='cpu')
    assert not model.training
    loss = train.evaluate(model, train.Dataset(str(data), 16), m, 'val', 4, it=state['step']).loss
    assert loss == json.loads((trained / 'result.json').read_text())['val_loss']
