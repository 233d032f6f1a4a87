"""probe.py tokens: which losses belong to which tokens, and which tokens to which class."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import call

import probe
from core.data.tokenizer import Tokenizer
from lab.probe import open_runs
from lab.probe.scores import text_losses, validation_scores, validation_tokens
from lab.probe.splits import (
    CLASSES,
    WORD_CLASSES,
    by_class,
    by_position,
    by_repetition,
    character_classes,
    word_classes,
)

TEXT = "so.\n\nROMEO:\nO, it's 3 fair-\nly é! x:\ny"


@pytest.fixture(scope='module')
def run(study):
    return open_runs(study.parent / 'runs/base-0/1', 'latest', 'cpu', 'float32')[0]


def test_each_character_has_its_class():
    chars = sorted(set(TEXT))
    ids = np.array([[chars.index(c) for c in TEXT]])
    names = [CLASSES[i] for i in character_classes(ids, chars)[0]]
    found = dict(zip(enumerate(TEXT[1:]), names))
    by_place = {place + 1: name for (place, _), name in found.items()}

    def at(part, offset=0):
        return by_place[TEXT.index(part) + offset]
    assert at('o.') == 'vowel in a word' and at('.') == 'end of a sentence' and at('\n') == 'line break'
    assert at('ROMEO') == 'speaker: first letter' and {at('ROMEO', i) for i in range(1, 6)} == {'speaker: the rest'}
    assert at('\nO, ') == 'line break'
    assert at('O, ') == 'first letter of a line' and at(', ') == 'other punctuation' and at(' it') == 'space'
    assert at("it's") == 'first letter of a word' and at("it's", 2) == 'apostrophe or hyphen'
    assert at("it's", 3) == 'consonant in a word' and at('3') == 'digit'
    # a line with a colon is a speaker's only after an empty one
    assert at('ly é') == 'first letter of a line' and at('x:', 1) == 'other punctuation'
    assert at('é') == 'first letter of a word'


def test_gpt2_tokens_have_their_classes():
    texts = ['\n', ' the', 'ing', 'And', ' 19', ',', '  ', ' “', ' é', '\ufffd', ' .\n']
    ids = np.array([[2, 0, 3, 2, 1, 4, 5, 6, 7, 8, 9, 10]])
    assert [WORD_CLASSES[i] for i in word_classes(ids, texts)[0]] == [
        'line break', 'word at the start of a line', 'continued word', 'word after a space', 'number', 'punctuation',
        'space', 'beyond ASCII', 'word after a space', 'beyond ASCII', 'line break']


def test_splits_are_partitions_and_parts_sum_to_the_mean():
    tokens = np.random.default_rng(0).integers(0, 5, (6, 33))
    # the last window is cut short
    tokens[-1, 20:] = -1
    values = np.where(tokens[:, 1:] < 0, 0, np.random.default_rng(1).normal(size=(6, 32)))
    for split in by_class(tokens, Tokenizer('char', 5, 'ab \n:')), by_position(tokens), by_repetition(tokens, 2):
        assert ((split.index >= 0) == (tokens[:, 1:] >= 0)).all() and split.shares.sum() == pytest.approx(1)
        assert split.parts(values).sum() == pytest.approx(values.sum() / (tokens[:, 1:] >= 0).sum(), abs=1e-12)
        in_part = split.index == 1
        assert split.means(values)[1] == pytest.approx(values[in_part].mean())
    assert by_position(tokens).names == ('1', '2 to 3', '4 to 7', '8 to 15', '16 to 31', '32')


def test_repetition_is_what_followed_the_same_context_before():
    #          a b c a b c a b d a b d
    tokens = np.array([[0, 1, 2, 0, 1, 2, 0, 1, 3, 0, 1, 3]])
    split = by_repetition(tokens, 2)
    said = [split.names[i].removeprefix('context ') for i in split.index[0]]
    new, this, other = 'is new', 'seen, then this token', 'seen, then other tokens'
    #               b    c    a    b    c     a     b     d      a    b    d
    assert said == [new, new, new, new, this, this, this, other, new, new, this]


def test_losses_of_a_text_are_those_of_each_token_in_its_context(run):
    ids = run.data.tokens['val'][:60].tolist()
    T = run.model.config.block_size
    found = text_losses(run, ids)
    assert len(found) == 59
    by_hand = []
    for start in range(0, 59, 1):
        # the context that begins before it at a multiple of half a context
        first = 0 if start < T else (start - T // 2) // (T // 2) * (T // 2)
        with torch.no_grad():
            logits = run.logits(torch.tensor([ids[first:start + 1]]))[0, -1]
        by_hand.append(F.cross_entropy(logits, torch.tensor(ids[start + 1])).item())
    np.testing.assert_allclose(found, by_hand, atol=1e-5)


def test_scores_of_windows_are_the_evaluations(run):
    s, tokens = validation_scores(run), validation_tokens(run)
    assert (tokens[:, 1:] < 0).sum() == np.isnan(s.nats).sum() > 0
    x = torch.as_tensor(tokens[:1, :-1])
    p = run.logits(x)[0].softmax(-1)
    y = torch.as_tensor(tokens[0, 1:])
    np.testing.assert_allclose(np.exp(-s.nats[0]), p[range(len(y)), y].detach(), rtol=1e-5)
    np.testing.assert_allclose(s.sure[0], p.max(-1).values.detach(), rtol=1e-5)
    assert s.top1[0].tolist() == (p.argmax(-1) == y).tolist()
    rank = (p > p[range(len(y)), y][:, None]).sum(-1)
    assert s.top5[0].tolist() == (rank < 5).tolist()


def test_the_command_colors_a_text_and_tells_runs_apart(study, monkeypatch):
    monkeypatch.setattr('lab.probe.page.write_pngs', lambda charts, folder: [])
    one, other = study.parent / 'runs/base-0/1', study.parent / 'runs/bigram-0/1'
    ended = call(probe.main, 'tokens', out_dir=other, versus=one, windows=40, text='First Citizen:\nSpeak, speak.')
    assert ended.code == 0
    assert 'nats a token; of this' in ended.out
    page = (other / 'probe/tokens.html').read_text()
    assert 'darkest from' in page and 'speaker: the rest' in page and '↵' in page
    # a study has intervals
    monkeypatch.setattr('lab.probe.page.draw_all', lambda charts: None)
    ended = call(probe.main, 'tokens', out_dir=study, windows=40, variant=study.parent / 'planted.py', arm='planted')
    assert ended.code == 0 and 'planted minus base: -0.' in ended.out and ' ± 0.' in ended.out


def test_bad_input_is_one_line(study, tmp_path):
    base = study.parent / 'runs/base-0/1'
    assert 'no such arm; there are 1' in last(call(probe.main, 'tokens', out_dir=base, arm='x'), 2)
    assert 'text of 1 tokens' in last(call(probe.main, 'tokens', out_dir=base, text='a'), 2)
    assert 'not among the' in last(call(probe.main, 'tokens', out_dir=base, text='日本'), 2)
    assert 'start=1.0: must be at least 0' in last(call(probe.main, 'tokens', out_dir=base, start=1.0), 2)
    assert 'compares two runs' in last(call(probe.main, 'tokens', out_dir=study, versus=base,
                                            variant=study.parent / 'planted.py'), 2)
    assert 'holds no checkpoint' in last(call(probe.main, 'tokens', out_dir=tmp_path / 'none'), 4)


def last(ended, code):
    """Returns the line with which a command ends that fails with this code, after its options."""
    assert ended.code == code, ended
    return ended.err.splitlines()[-1]
