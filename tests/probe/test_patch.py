"""probe.py patch: where a model keeps what its answer depends on."""
import numpy as np
import pytest
import torch
from helpers import call, shakespeare, shipped_variants
from test_ablate import made

import probe
from core.data.brackets import KINDS, write_lines
from core.data.prepare import prepare_chars
from lab.probe import patch
from lab.probe.pairs import Pairs, given_pair, labels_of, pairs_of_task
from lab.probe.patch import Traced, by_rank, mean_over, patched, places_of, restored, trace, watched


@pytest.fixture(scope='module')
def text(tmp_path_factory):
    return shakespeare(tmp_path_factory.mktemp('text'))


@pytest.fixture(scope='module')
def brackets(tmp_path_factory):
    folder = tmp_path_factory.mktemp('brackets')
    prepare_chars(write_lines(3000), folder)
    return folder


def random_pairs(run, n=2, T=5):
    draw = torch.Generator().manual_seed(4)
    clean, corrupt = (torch.randint(run.tokenizer.vocab_size, (n, T), generator=draw) for _ in range(2))
    answers = torch.tensor([[1, 2]] * n)
    return Pairs(clean, corrupt, answers, labels_of(run, clean, corrupt), 'Nothing.')


def test_clean_into_clean_changes_nothing_and_clean_everywhere_is_clean(text):
    run = made(text, dtype=torch.float32)
    given = random_pairs(run)
    places, without = places_of(run)
    assert (len(places), without) == (3 + 2 + 2 + 4, [])
    same = trace(run, given._replace(corrupt=given.clean))
    assert all(np.array_equal(values, np.broadcast_to(same.clean[:, None, None], values.shape))
               for values in [*same.parts.values(), same.heads])
    found = trace(run, given)
    share, _ = restored(found, found.everywhere['stream'])
    assert np.array_equal(share, [1, 1, 1]) and not np.array_equal(found.clean, found.corrupt)
    # after the last layer the last position is all that counts
    assert np.array_equal(found.parts['stream'][:, 2, -1], found.clean)
    assert np.array_equal(found.parts['stream'][:, 2, :-1], found.corrupt[:, None].repeat(4, 1))


def test_a_patch_is_what_a_pass_by_hand_makes(text):
    run = made(text)
    clean, corrupt, answers, *_ = random_pairs(run, 1)
    found = trace(run, random_pairs(run, 1))
    block, other = run.model.transformer.h

    def by_hand(idx, change=lambda name, y: y):
        x, step = run.model.embed(idx, step := started(run, idx)), step
        x = block(change('embeddings', x), step)
        x = change('first', x)
        y = change('attention', other.attn(other.ln_1(x), step))
        x = x + y
        x = x + change('mlp', other.mlp(other.ln_2(x), step))
        first, second = run.model.lm_head(run.model.transformer.ln_f(x))[0, -1][answers[0]]
        return (first - second).item()

    kept = {}
    with torch.no_grad():
        assert by_hand(clean, lambda name, y: kept.setdefault(name, y)) == pytest.approx(found.clean[0], abs=1e-9)
        for name, part, row in (('embeddings', 'stream', 0), ('first', 'stream', 1), ('attention', 'attention', 1),
                                ('mlp', 'mlp', 1)):
            for position in range(5):
                def put(here, y, name=name, position=position):
                    if here == name:
                        y = y.clone()
                        y[:, position] = kept[name][:, position]
                    return y
                got = found.parts[part][0, row, position]
                assert got == pytest.approx(by_hand(corrupt, put), abs=1e-9), (name, position)


def started(run, idx):
    step = run.step()
    step.pos = torch.arange(idx.size(1))[None]
    return step


def test_a_head_is_patched_as_its_share_of_attention(text):
    run = made(text)
    # with one head that does anything, that head is its layer's attention
    with torch.no_grad():
        run.model.transformer.h[1].attn.c_proj.weight[:, :8] = 0
    found = trace(run, random_pairs(run))
    np.testing.assert_allclose(found.heads[:, 1, 1], found.everywhere['attention'][:, 1], atol=1e-9)
    np.testing.assert_allclose(found.heads[:, 1, 0], found.corrupt, atol=1e-9)
    ranked = by_rank(found)
    assert set(ranked.heads[0, 1]) == set(found.heads[0, 1])
    share, _ = restored(ranked, ranked.heads)
    assert (np.diff(share, axis=1) <= 0).all()


def test_hooks_go_after_an_exception(text):
    run = made(text)
    given = random_pairs(run)
    kept, (places, _) = {}, places_of(run)
    with watched(run, places, kept):
        plain = run.logits(given.clean)
    for place in places:
        with pytest.raises(ZeroDivisionError), patched(run, place, kept[place], torch.ones(2, 5, dtype=torch.bool)):
            raise ZeroDivisionError
    assert torch.equal(run.logits(given.clean), plain)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in run.model.modules())


@pytest.mark.parametrize('variant', [pytest.param(name, marks=[] if name == 'loop' else pytest.mark.slow)
                                     for name in shipped_variants()])
def test_every_variant_can_be_patched(variant, text):
    run = made(text, variant)
    given = random_pairs(run)
    same, found = trace(run, given._replace(corrupt=given.clean)), trace(run, given)
    for values in [*same.parts.values(), same.heads]:
        there = ~np.isnan(values)
        assert np.array_equal(values[there], np.broadcast_to(same.clean[:, None, None], values.shape)[there])
    last = restored(found, found.everywhere['stream'])[0][-1]
    assert last == 1 or variant in ('attnres', 'loop')


def test_layers_that_choose_positions_are_patched_in_the_stream_alone(text):
    places, (sentence,) = places_of(made(text, 'mod'))
    assert {(p.part, p.row) for p in places} == {('stream', 0), ('stream', 1), ('stream', 2), ('attention', 0),
                                                 ('mlp', 0), ('heads', 0)}
    assert sentence == ('mod: layers 1 compute for a part of the positions, so that only the stream is patched there.')
    assert 'not one tensor' in places_of(made(text, 'attnres'))[1][0]


def test_shares_are_of_means_with_intervals_over_pairs_or_seeds():
    clean, corrupt = np.array([2.0, 4.0, 6.0]), np.array([0.0, -2.0, 0.0])
    half = Traced(clean, corrupt, {}, {}, np.zeros((3, 0, 0)))
    share, error = restored(half, corrupt + 0.5 * (clean - corrupt))
    assert share == 0.5 and error == pytest.approx(0, abs=1e-12)
    share, error = restored(half, np.array([2.0, -2.0, 3.0]))
    assert share == pytest.approx(5 / 14) and error > 0.1
    many = mean_over([half, half], lambda t: t.corrupt)
    assert (many.mean, many.half, many.n) == (0, 0, 2)
    # simulated: 95 % of the intervals over pairs have the share that the pairs are drawn with
    draw, inside = np.random.default_rng(0), 0
    for _ in range(500):
        whole = draw.uniform(1, 3, 30)
        gain = whole * draw.normal(0.4, 0.3, 30)
        m = mean_over([Traced(whole, np.zeros(30), {}, {}, None)], lambda t, gain=gain: gain)
        inside += abs(m.mean - 0.4) < m.half
    assert 0.92 < inside / 500 < 0.98


def test_lines_of_brackets_close_what_they_open():
    assert write_lines(2000) == write_lines(2000) != write_lines(2000, seed=1)
    closes = {kind[0]: kind[1] for kind in KINDS}
    for line in write_lines(2000).splitlines():
        open_ = []
        for c in line:
            if open_ and c == open_[-1]:
                open_.pop()
            elif c in closes:
                open_.append(closes[c])
            else:
                assert c.isalpha()
        assert not open_, line


@pytest.mark.parametrize('task', ['brackets', 'quotes'])
def test_pairs_differ_in_what_was_opened_last(brackets, task):
    run = made(brackets)
    given = pairs_of_task(run, task, 20)
    assert given.clean.shape == (20, 10) and given.labels[3] == 'outer' and given.labels[6] == 'inner'
    for a, b, (x, y) in zip(given.clean.tolist(), given.corrupt.tolist(), given.answers.tolist()):
        a, b, x, y = map(run.tokenizer.decode, (a, b, [x], [y]))
        assert [i for i in range(10) if a[i] != b[i]] == [6]
        assert a[6] + x in KINDS and b[6] + y in KINDS


def test_speakers_are_those_of_the_text(tmp_path):
    line = lambda name: f'\n\n{name}:\nWhat?'
    prepare_chars(''.join(map(line, ['ROMEO', 'CAMILLO', 'ROSS'] * 40)), tmp_path)
    run = made(tmp_path, block_size=16)
    given = pairs_of_task(run, 'names', 10)
    said = {(run.tokenizer.decode(row[-5:]), run.tokenizer.decode([answer]))
            for row, (answer, _) in zip(given.clean.tolist(), given.answers.tolist())}
    # of ROSS another letter is the last one
    assert said == {('\n\nROM', 'E'), ('\n\nCAM', 'I')} and given.labels[-5:] == ['↵', '↵', '1st', '2nd', '3rd']


def test_speakers_have_an_empty_line_before_them(tmp_path):
    prepare_chars('\n\nROMEO:\nHow now?\nRose, we are,\nHere.' * 40, tmp_path)
    run = made(tmp_path, block_size=16)
    given = pairs_of_task(run, 'speakers', 10)
    assert given.labels[-3:] == ['↵/,', '↵', 'first']
    for a, b, (x, y) in zip(given.clean.tolist(), given.corrupt.tolist(), given.answers.tolist()):
        a, b, x, y = map(run.tokenizer.decode, (a, b, [x], [y]))
        assert a[:-3] == b[:-3] and a[-3:-1] == '\n\n' and b[-3:-1] == ',\n' and a[-1] == b[-1]
        assert x.isupper() and y.islower()


class Words:
    """A tokenizer with a token for each word and comma, as GPT-2's has for these."""
    kind, vocab_size = 'gpt2', 99

    def __init__(self):
        self.words = []

    def encode(self, text):
        found = text.replace(',', ' ,').split()
        self.words += [w for w in found if w not in self.words]
        return [self.words.index(w) for w in found]

    def decode(self, ids):
        return ' '.join(self.words[i] for i in ids)


def test_indirect_objects_on_a_small_model_of_gpt2s_shape(text):
    run = made(text, vocab_size=99, block_size=16, bias=True)
    run.tokenizer = Words()
    given = pairs_of_task(run, 'indirect_object', 6)
    assert given.labels == 'When first and second went to the place , giver gave a thing to'.split()
    for a, b, (answer, other) in zip(given.clean.tolist(), given.corrupt.tolist(), given.answers.tolist()):
        # who gives is named twice, and the answer once
        assert a.count(answer) == 1 and a.count(other) == 2 and b.count(answer) == 2 and a[:9] == b[:9]
    assert trace(run, given).heads.shape == (6, 2, 2)


def test_the_command_writes_a_page(brackets, tmp_path, monkeypatch):
    runs = [made(brackets, variant, seed) for variant in ('base', 'canon') for seed in (1, 2)]
    monkeypatch.setattr(patch, 'open_from', lambda o: runs[:1] if o.clean else runs)
    ended = call(probe.main, 'patch', clean='ab(c', corrupt='ab[c', answers='),]', to=tmp_path)
    assert ended.code == 0, ended
    assert "Clean 'ab(c' goes on with ), corrupt 'ab[c' with ]." in ended.out and 'has no interval' in ended.out
    assert 'after layer 1  +1.00' in ended.out and 'layer 1 head 1' in ended.out
    assert {p.name for p in tmp_path.iterdir()} == {'patch.html', *(f'patch_{p}.png' for p in (*patch.PARTS, 'heads'))}
    assert '(/[' in (tmp_path / 'patch.html').read_text()
    page, _ = patch.main(['--task=brackets', '--pairs=4'])
    assert page.name == 'patch_brackets' and page.sentences[-1] == 'Intervals are 95 % over 2 seeds.'
    assert any(text.startswith('canon: after clean prompts the clean answer is ahead by ') for text in page.sentences)
    assert [panel.title for panel in page.sections[0].items[0].panels] == ['base', 'canon']


def test_bad_input_is_one_line(brackets, text, monkeypatch):
    monkeypatch.setattr(patch, 'open_from', lambda o: [made(brackets, block_size=16)])

    def line(**options):
        ended = call(probe.main, 'patch', **options)
        assert ended.code == 2, ended
        return ended.err.splitlines()[-1]
    assert line() == ('name --clean=TEXT and --corrupt=TEXT, or --task=NAME with one of speakers, names, brackets, '
                      'quotes, indirect_object')
    assert line(clean='a') == 'name both --clean=TEXT and --corrupt=TEXT'
    assert line(clean='ab', corrupt='abc').startswith('clean has 2 tokens and corrupt has 3: they must be equally long')
    assert line(clean='ab', corrupt='ab') == 'clean and corrupt are the same text'
    assert line(clean='ab', corrupt='aX').startswith("not among the 17 characters of this set: 'X'")
    assert line(clean='ab', corrupt='ac', answers='ab,c') == "answers: 'ab' is 2 tokens; allowed: one each"
    assert line(clean='ab', corrupt='ac', answers='b,b').startswith('answers=b,b: must be two')
    assert line(task='speakers').startswith('task=speakers: this set has too few speakers')
    assert line(task='indirect_object').startswith('task=indirect_object: not among the 17 characters')
    monkeypatch.setattr(patch, 'open_from', lambda o: [made(text)])
    assert line(task='brackets').startswith('task=brackets: not among the 52 characters')


def test_default_answers_are_the_models_own(brackets):
    run = made(brackets)
    given = given_pair([run], 'ab(', 'ab[')
    assert given.answers.tolist() == [[run.logits(x)[0, -1].argmax().item() for x in (given.clean, given.corrupt)]]
    assert given.labels == ['a', 'b', '(/[']
