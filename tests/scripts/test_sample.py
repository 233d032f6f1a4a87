"""Sampling from a run folder: which checkpoint, which text, and messages for impossible requests."""
import json
import math

import pytest
import torch
from helpers import ROOT, TINY, call, shakespeare, shell

import sample
import train
from core.data.prepare import prepare_chars
from core.errors import BAD_INPUT, NO_CHECKPOINT
from core.rng import key
from core.run.folder import RunFolder
from model import Step

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
    """draw(start='All:') returns the samples, without the options that are listed first."""
    def samples(**options):
        options = dict(out_dir=trained, num_samples=2, max_new_tokens=40, device='cpu') | options
        done = call(sample.main, **options)
        assert (done.code, done.err) == (0, '')
        *texts, end = done.out.split(f'{list(options)[-1]} = ')[-1].split('\n', 1)[1].split(RULE)
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
    long = 'First Citizen:\nBefore we proceed any further, hear me speak.\n'
    assert all(text.startswith(long) for text in draw(start=long))


def test_a_start_beyond_block_size_counts_from_its_end(draw):
    """Only the last 16 characters are seen, so what is before them changes nothing."""
    one, other = (draw(start=head + 'hear me speak.\nAll:') for head in ('', 'First Citizen:\n'))
    assert one == [text.removeprefix('First Citizen:\n') for text in other]


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


def test_a_folder_without_a_newline_in_its_characters(tmp_path):
    """If the vocabulary lacks the default start, one line tells the user to set another."""
    prepare_chars('abracadabra ' * 50, tmp_path / 'data')
    assert call(train.main, **TINY | dict(dataset=tmp_path / 'data', out_dir=tmp_path / 'run', max_iters=1)).code == 0
    assert r"'\n'" in refuse(BAD_INPUT, out_dir=tmp_path / 'run')
    done = call(sample.main, out_dir=tmp_path / 'run', start='abra', device='cpu', max_new_tokens=30, num_samples=1)
    assert done.code == 0 and set(done.out.split('\n')[-3]) <= set('abrcd ')


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
