"""core/data/hub.py and the scripts that read the Hugging Face Hub: every document once, whole, on one side.

With a stand-in for `datasets`, and where it is installed with the library too.
"""
import hashlib
import json
import re
import runpy
import shutil
import sys
import tracemalloc
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import ROOT, call

import core.data
from core.data.dataset import Dataset
from core.data.hub import END, PART, TOKENS
from core.data.tokenizer import gpt2_bpe, read_meta

SETS = 'tinystories', 'fineweb_edu'
COMMIT = '[0-9a-f]{40}'
needs_datasets = pytest.mark.skipif(not find_spec('datasets'), reason='needs pip install datasets')


class Rows(list):
    """A stand-in for a stream of `datasets`, from a list or a generator of texts."""
    info = SimpleNamespace(builder_name='json')

    def iter(self, size):
        for start in range(0, len(self), size):
            rows = self[start:start + size]
            yield {name: [row[name] for row in rows] for name in rows[0]}


def from_files(folder, config=None, data_files=None, streaming=False):
    """A stand-in for load_dataset() of JSON lines."""
    assert streaming and config is None
    files = [Path(folder, data_files)] if data_files else sorted(Path(folder).iterdir())
    split = lambda path: 'validation' if 'validation' in path.name and not data_files else 'train'
    return {split(path): Rows(map(json.loads, path.read_text().splitlines())) for path in files}


@pytest.fixture(params=['stand-in', pytest.param('datasets', marks=needs_datasets)])
def library(request, monkeypatch):
    if request.param == 'stand-in':
        monkeypatch.setitem(sys.modules, 'datasets', SimpleNamespace(load_dataset=from_files))
    return request.param


@pytest.fixture
def hub(monkeypatch):
    """Gives a Hub to the test: a dict of what load_dataset() returns, and was called with."""
    hub = SimpleNamespace(splits={}, calls=[])

    def load_dataset(*args, **kwargs):
        hub.calls.append((args, kwargs))
        if isinstance(hub.splits, Exception):
            raise hub.splits
        return hub.splits
    monkeypatch.setitem(sys.modules, 'datasets', SimpleNamespace(load_dataset=load_dataset))
    return hub


class Letters:
    """A stand-in for tiktoken's encoding: a token is a letter, and é is the largest."""
    n_vocab = 50257

    def encode_ordinary(self, text):
        return [END - 1 if c == 'é' else ord(c) for c in text]

    def decode_bytes(self, ids):
        return ''.join('é' if i == END - 1 else chr(i) for i in ids).encode()


@pytest.fixture
def prepare(tmp_path, monkeypatch):
    """Returns a function that runs data/NAME/prepare.py in a repository of the test's own."""
    monkeypatch.setattr('core.data.hub.gpt2_bpe', Letters)
    root = tmp_path / 'repo'
    monkeypatch.setattr(core.data, 'ROOT', root)

    def run(name, *args, **options):
        shutil.copytree(ROOT / 'data' / name, root / 'data' / name, dirs_exist_ok=True,
                        ignore=shutil.ignore_patterns('*.bin', 'meta.*', '*.tmp'))
        main = runpy.run_path(str(root / 'data' / name / 'prepare.py'))['main']
        return call(main, *args, **options)
    run.root = root
    return run


def write(path, texts):
    """Writes documents as JSON lines; returns the path."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(''.join(json.dumps(dict(id=n, text=text)) + '\n' for n, text in enumerate(texts)))
    return path


def tokens(folder, split):
    return np.fromfile(folder / f'{split}.bin', '<u2').tolist()


def text(folder, split):
    return bytes(tokens(folder, split)).decode()


def stories(n, first=0):
    return [f'Story {i}. ' + 'Once upon a time. ' * (1 + i % 5) for i in range(first, first + n)]


# ---- what becomes of documents

TRAIN = ['\nOne.\n\nStill one. \n', '', None, 'Two, é', ' \n ', 'Three' * 30]
VAL = ['Four.', '', 'Fünf é.']


def test_documents_become_bytes(library, prepare, tmp_path):
    """Two line breaks after each, none around it, and nothing of what is empty."""
    write(tmp_path / 'copy/train.jsonl', TRAIN)
    write(tmp_path / 'copy/validation.jsonl', VAL)
    done, folder = prepare('tinystories', source=tmp_path / 'copy', tokens=2000), prepare.root / 'data/tinystories'
    assert text(folder, 'train') == 'One.\n\nStill one. \n\nTwo, é\n\n' + 'Three' * 30 + '\n\n'
    assert text(folder, 'val') == 'Four.\n\nFünf é.\n\n'
    assert done.code == 0 and done.out == 'prepared data/tinystories: 180 + 18 tokens, bytes\n'
    assert done.err == f'warning: --source={tmp_path}/copy ends after 180 of 2,000 tokens\n'
    meta = read_meta(folder)
    assert meta['documents'] == dict(train=3, val=2) and meta['source'] == str(tmp_path / 'copy')
    assert 'revision' not in meta and 'licence' not in meta     # whoever has a copy knows what it is
    assert Dataset(str(folder), 8).bytes_per_token == 1.0
    assert {path.name for path in folder.iterdir()} >= {'train.bin', 'val.bin', 'meta.json'}
    assert not list(folder.glob('*.tmp'))


def test_documents_become_tokens_of_gpt2(library, prepare, tmp_path):
    """Each with <|endoftext|> behind it; bits per byte are of the text alone."""
    write(tmp_path / 'copy/train.jsonl', TRAIN)
    write(tmp_path / 'copy/validation.jsonl', VAL)
    options, folder = dict(source=tmp_path / 'copy', tokenizer='gpt2'), prepare.root / 'data/tinystories'
    assert prepare('tinystories', **options).code == 0
    letters = lambda text: [*Letters().encode_ordinary(text), END]
    assert tokens(folder, 'train') == letters('One.\n\nStill one. ') + letters('Two, é') + letters('Three' * 30)
    assert tokens(folder, 'val') == letters('Four.') + letters('Fünf é.')
    meta = read_meta(folder)
    assert meta['kind'] == 'gpt2' and meta['vocab_size'] == 50257
    assert meta['bytes'] == dict(val=len('Four.Fünf é.'.encode()))
    assert Dataset(str(folder), 8).bytes_per_token == 14 / 14
    # cut within the last document: the bytes of what is there
    assert prepare('tinystories', **options, tokens=240).code == 0
    assert tokens(folder, 'val') == letters('Four.') + letters('Fünf é.')[:6]
    assert read_meta(folder)['bytes'] == dict(val=len('Four.Fünf é'.encode()))


def test_as_many_tokens_as_asked_for(library, prepare, tmp_path):
    """The first documents in their order, the last one cut; a twentieth as many of val, by SHA-256 or of its own."""
    all_of = lambda texts: ''.join(f'{text}\n\n' for text in texts)
    own, by_hash = dict(train=stories(400), val=stories(99, first=400)), dict(train=[], val=[])
    for story in stories(400):
        of_val = int(hashlib.sha256(story.encode()).hexdigest(), 16) % PART == 0
        by_hash['val' if of_val else 'train'].append(story)
    write(tmp_path / 'own/train.jsonl', own['train'])
    write(tmp_path / 'own/validation.jsonl', own['val'])
    one = write(tmp_path / 'one.jsonl', stories(400))
    for name, source, expected in ('tinystories', tmp_path / 'own', own), ('fineweb_edu', one, by_hash):
        folder = prepare.root / 'data' / name
        for asked in 40, 100, 5000:
            done = prepare(name, source=source, tokens=asked)
            assert (done.code, done.err) == (0, '')
            assert text(folder, 'train') == all_of(expected['train'])[:asked]
            assert text(folder, 'val') == all_of(expected['val'])[:asked // PART]
            counts = read_meta(folder)['documents']
            assert counts['train'] == len(text(folder, 'train').removesuffix('\n\n').split('\n\n'))


def test_a_document_is_on_one_side(library, prepare, tmp_path):
    """One in twenty is of val. Equal ones go together, and in a longer set each stays where it was."""
    copy = write(tmp_path / 'copy.jsonl', stories(2000) + stories(2000)[::-1])
    folder = prepare.root / 'data/fineweb_edu'
    sides = {}
    for asked in '4e4', '2_000_000':
        assert prepare('fineweb_edu', source=copy, tokens=asked).code == 0
        before = sides
        # but the last one, which may be cut
        sides = {split: text(folder, split).split('\n\n')[:-1] for split in ('train', 'val')}
        assert not set(sides['train']) & set(sides['val'])
        assert all(set(there) <= set(sides[split]) for split, there in before.items())
    assert sorted(sides['train'] + sides['val']) == sorted(story.strip('\n') for story in 2 * stories(2000))
    # five standard deviations of the share of 2,000
    assert abs(len(set(sides['val'])) / 2000 - 1 / 20) < 5 * (0.05 * 0.95 / 2000) ** 0.5


def test_the_hub_is_asked_for_one_commit_as_a_stream(prepare, hub):
    hub.splits = dict(train=Rows(dict(text=story) for story in stories(400)), validation=Rows([dict(text='val' * 50)]))
    for name, path, config in (('tinystories', 'roneneldan/TinyStories', None),
                               ('fineweb_edu', 'HuggingFaceFW/fineweb-edu', 'sample-10BT')):
        assert prepare(name, tokens=2000).code == 0
        (args, kwargs), meta = hub.calls.pop(), read_meta(prepare.root / 'data' / name)
        assert args == (path, config) and kwargs['streaming'] is True and re.fullmatch(COMMIT, kwargs['revision'])
        assert (meta['source'], meta['config'], meta['revision']) == (path, config, kwargs['revision'])
        page = (ROOT / 'data' / name / 'readme.md').read_text(encoding='utf-8')
        assert meta['licence'].rsplit('-', 1)[0] in page and meta['revision'] in page and path in page


class Endless(Rows):
    """A stream of 4 kB documents that never ends, and counts those it gave."""

    def iter(self, size):
        self.given = 0
        while True:
            rows = [f'{self.given + n} ' + 'word ' * 800 for n in range(size)]
            self.given += size
            yield dict(text=rows)


def test_no_more_is_read_or_held_than_needed(prepare, hub):
    """20 million tokens in a few megabytes, from a source of any length."""
    hub.splits = dict(train=Endless())
    prepare('fineweb_edu', tokens=40) # what is imported stays
    tracemalloc.start()
    try:
        assert prepare('fineweb_edu', tokens='20e6').code == 0
        assert tracemalloc.get_traced_memory()[1] < 8e6
    finally:
        tracemalloc.stop()
    assert hub.splits['train'].given * 4000 < 1.2 * 20e6
    assert (prepare.root / 'data/fineweb_edu/train.bin').stat().st_size == 2 * 20_000_000


def test_the_default_is_one_epoch_of_the_recipe():
    assert TOKENS == 33_000_000


# ---- what goes wrong is one line, and the set from before stays

class Broken(Rows):
    """A stream whose connection is lost after its first documents."""

    def iter(self, size):
        yield dict(text=stories(3))
        raise ConnectionError('Server Disconnected\nfor many reasons')


def test_a_network_that_fails_is_one_line(prepare, hub):
    hub.splits = dict(train=Rows(dict(text=story) for story in stories(99)))
    folder = prepare.root / 'data/fineweb_edu'
    assert prepare('fineweb_edu', tokens=100).code == 0
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    for hub.splits, reason in ((ConnectionError("Couldn't reach it\nat all"), "ConnectionError: Couldn't reach it"),
                               (dict(train=Broken()), 'ConnectionError: Server Disconnected'),
                               (KeyError(), 'KeyError')):
        assert prepare('fineweb_edu').line(2) == f'FineWeb-Edu could not be read: {reason}'
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize('name', [*SETS, 'openwebtext'])
def test_missing_libraries_are_one_line(prepare, monkeypatch, name):
    monkeypatch.setitem(sys.modules, 'tiktoken', SimpleNamespace(get_encoding=lambda name: Letters()))
    monkeypatch.setitem(sys.modules, 'datasets', None)
    assert prepare(name).line(2).endswith(' needs datasets: pip install datasets')
    monkeypatch.setattr('core.data.hub.gpt2_bpe', gpt2_bpe)
    monkeypatch.setitem(sys.modules, 'tiktoken', None)
    args = [] if name == 'openwebtext' else ['--tokenizer=gpt2']
    assert prepare(name, *args).line(2) == 'GPT-2 tokens need tiktoken: pip install tiktoken'
    assert not (prepare.root / 'data' / name / 'train.bin').exists()


@pytest.mark.parametrize('arguments, words', [
    ('--tokens=39', 'from 40 on'), ('--tokens=10M', '--tokens=10M: allowed: a whole number'), ('--tokens=-1', '-1'),
    ('--tokens=1.5', '1.5'), ('--tokens=nan', 'nan'), ('--tokens=inf', 'inf'), ('--tokens=1e999', '1e999'),
    ('--tokens=', '--tokens=:'), ('--tokens', '--tokens:'), ('tokens=50', 'tokens=50:'), ('-h', ''),
    ('--tokenizer=char', 'allowed: bytes, gpt2'), ('--split=train', '--tokens=..., --tokenizer=..., --source=...'),
    ('--source=nowhere', 'no such file or folder'), ('--source=roneneldan/TinyStories', 'no such file or folder')])
def test_options(prepare, hub, arguments, words):
    done = prepare('tinystories', arguments)
    if arguments == '-h':
        assert done.code == 0 and '--tokens=33000000' in done.out
    else:
        assert words in done.line(2) and hub.calls == []


def test_copies_that_cannot_be_used(library, prepare, tmp_path):
    for name, content, words in (
            ('few', dict(text='One document.'), ' has 15 tokens for train and 0 for val: too few, both need 2'),
            ('story', dict(story='Once.'), ' has no column text, only story'),
            ('numbers', dict(text=7), ': its column text holds int, not text')):
        (tmp_path / f'{name}.jsonl').write_text(json.dumps(content) + '\n')
        source = tmp_path / f'{name}.jsonl'
        assert prepare('fineweb_edu', source=source).line(2) == f'--source={source}{words}'
    source = write(tmp_path / 'half/validation.jsonl', VAL).parent
    assert prepare('tinystories', source=source).line(2) == f'--source={source} has no split train, only validation'
    assert not list((prepare.root / 'data/fineweb_edu').glob('*.bin*'))


def test_a_copy_of_the_folder_prepares_no_other_text(prepare, hub):
    for name in SETS:
        (prepare.root / 'data' / name).mkdir(parents=True)
        (prepare.root / 'data' / name / 'input.txt').write_text('my own text')
        assert f'python data/text/prepare.py data/{name}/input.txt --out=data/{name}' in prepare(name).line(2)
    assert hub.calls == []


# ---- what only the library itself can show

@needs_datasets
def test_parquet_as_the_hub_has_it(prepare, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq
    (tmp_path / 'data').mkdir()
    for file, texts in (('train-00000-of-00002-2d5a', TRAIN), ('train-00001-of-00002-5852', ['More.']),
                        ('validation-00000-of-00001-869c', VAL)):
        pq.write_table(pa.table(dict(id=list(map(str, range(len(texts)))), text=texts)),
                       tmp_path / f'data/{file}.parquet')
    (tmp_path / 'README.md').write_text('---\nlicense: cdla-sharing-1.0\n---\n# A card\n')
    folder = prepare.root / 'data/tinystories'
    for source in tmp_path, tmp_path / 'data':
        assert prepare('tinystories', source=source).code == 0
        assert text(folder, 'train').endswith('Three\n\nMore.\n\n') and text(folder, 'val') == 'Four.\n\nFünf é.\n\n'


@needs_datasets
def test_damage_is_one_line(prepare, tmp_path):
    (tmp_path / 'x.parquet').write_bytes(b'PAR1 and nothing else')
    (tmp_path / 'x.jsonl').write_text('{"text": "a"}\n{nonsense\n')
    (tmp_path / 'surrogate.jsonl').write_text(json.dumps(dict(text='\ud800')))
    (tmp_path / 'x.txt').write_text('line\nline\n')
    (tmp_path / 'nothing').mkdir()
    for name, words in (('x.parquet', 'corrupted'), ('x.jsonl', 'JSON'), ('surrogate.jsonl', 'surrogate'),
                        ('x.txt', 'does not say where documents end'), ('nothing', "doesn't contain any data")):
        assert words in prepare('tinystories', source=tmp_path / name).line(2)
    assert not list((prepare.root / 'data/tinystories').glob('*.bin*'))
