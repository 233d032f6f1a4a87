"""core/data and data/*/prepare.py: the right tokens, every target once, no half-written set."""
import hashlib
import importlib.util
import json
import os
import pickle
import random
import runpy
import shutil
import signal
import subprocess
import sys
import threading
import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

import core.data
from core.data import dataset, identity, prepare
from core.data.dataset import Dataset, find_set
from core.data.prepare import prepare_bytes, prepare_chars, prepare_files, write_set
from core.data.tokenizer import Tokenizer, gpt2_bpe, read_meta
from core.errors import Stop

REPO = Path(__file__).resolve().parents[2]
INPUT = REPO / 'data/shakespeare_char/input.txt'
SHA256 = {'input.txt': '86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed',
          'train.bin': '6ec305602a99ac2802745a134e1f5e33e2231b4855525b00b9aebb730ac2626f',
          'val.bin': 'd37d30cc0c8327c270d493299c3dca54135f6d5f1c9ef60cda78076e311204b1'}
FILES = ('train.bin', 'val.bin', 'meta.json')


def refused(call, *args, **kwargs):
    """Returns the one line with which a call stops."""
    with pytest.raises(Stop) as stop:
        call(*args, **kwargs)
    assert '\n' not in str(stop.value)
    assert stop.value.code == 2
    return str(stop.value)


def make(folder, train, val=None, meta=None):
    """Makes a data set of ids below 100; without meta it is one of GPT-2 tokens."""
    folder.mkdir(exist_ok=True)
    np.asarray(train, '<u2').tofile(folder / 'train.bin')
    np.asarray(train if val is None else val, '<u2').tofile(folder / 'val.bin')
    if meta is not None:
        (folder / 'meta.json').write_text(json.dumps(meta))
    return str(folder)


@pytest.fixture
def counting(tmp_path):
    return make(tmp_path / 'counting', np.arange(1000), np.arange(1000, 1200))


@pytest.fixture
def repo(tmp_path, monkeypatch):
    """Gives a repository of its own to the test, so that nothing is written into ours."""
    root = tmp_path / 'repo'
    root.mkdir()
    (root / 'core').symlink_to(REPO / 'core')
    # what the repository holds, not the gigabytes that may have been prepared in it
    for prepare_py in (REPO / 'data').glob('*/prepare.py'):
        (root / 'data' / prepare_py.parent.name).mkdir(parents=True)
        shutil.copy(prepare_py, root / 'data' / prepare_py.parent.name)
    shutil.copy(INPUT, root / 'data/shakespeare_char')
    monkeypatch.setattr(core.data, 'ROOT', root)
    monkeypatch.setattr(dataset, 'DATA', root / 'data')
    # a prepare.py that runs in this process has no arguments
    monkeypatch.setattr(sys, 'argv', ['prepare.py'])
    return root


def script(path, *args):
    return subprocess.run([sys.executable, path, *map(str, args)], capture_output=True, text=True, cwd='/')


# ---- preparing

def test_shakespeare_is_the_known_corpus_and_splits(tmp_path, capsys):
    assert hashlib.sha256(INPUT.read_bytes()).hexdigest() == SHA256['input.txt']
    text = INPUT.read_text()
    for _ in range(2):                          # running it again changes nothing
        prepare_chars(text, tmp_path)
        assert {p.name for p in tmp_path.iterdir()} == set(FILES)
        for name in ('train.bin', 'val.bin'):
            assert hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() == SHA256[name]
    assert capsys.readouterr().out.splitlines()[0].endswith('1,003,854 + 111,540 tokens, 65 characters')
    meta = json.loads((tmp_path / 'meta.json').read_text())
    assert meta['kind'] == 'char' and meta['vocab_size'] == 65 and meta['chars'] == ''.join(sorted(set(text)))
    train, val = (np.fromfile(tmp_path / f'{split}.bin', '<u2') for split in ('train', 'val'))
    assert (len(train), len(val)) == (1_003_854, 111_540)
    assert ''.join(meta['chars'][i] for i in [*train, *val]) == text


def test_shipped_text_is_prepared_on_first_use(repo, capsys):
    folder = find_set('shakespeare_char')
    assert folder == repo / 'data/shakespeare_char'
    out = capsys.readouterr().out
    assert out == 'prepared data/shakespeare_char: 1,003,854 + 111,540 tokens, 65 characters\n'
    assert hashlib.sha256((folder / 'train.bin').read_bytes()).hexdigest() == SHA256['train.bin']
    assert find_set('shakespeare_char') == folder and capsys.readouterr().out == ''


@pytest.mark.parametrize('name', ['shakespeare', 'shakespeare_char', 'text', 'openwebtext', 'code'])
def test_a_copy_of_a_folder_prepares_its_own_text(repo, monkeypatch, capsys, name):
    """cp -r data/shakespeare data/mine, then a text of one's own: never the other text, whoever runs the script."""
    fake_tiktoken(monkeypatch, lambda name: Letters())
    mine = repo / 'data/mine'
    shutil.copytree(repo / 'data' / name, mine)
    prepare = lambda: runpy.run_path(str(mine / 'prepare.py'), run_name='__main__')
    # shakespeare_char brings a text along, the others have none, and what is downloaded is never one's own
    (mine / 'input.txt').unlink(missing_ok=True)
    if name not in ('openwebtext', 'code'):
        with pytest.raises(SystemExit) as end:
            prepare()
        assert end.value.code == 2 and not (mine / 'train.bin').exists()
    (mine / 'input.txt').write_text('my own text ' * 20)
    if name in ('openwebtext', 'code'):
        with pytest.raises(SystemExit) as end:
            prepare()
        assert end.value.code == 2 and 'python data/text/prepare.py data/mine/input.txt' in capsys.readouterr().err
        return
    monkeypatch.setattr(sys, 'argv', ['train.py', '--dataset=mine'])
    set_ = Dataset('mine', 4)
    assert set_.tokenizer.decode([*set_.tokens['train'], *set_.tokens['val']]) == 'my own text ' * 20
    assert sys.argv == ['train.py', '--dataset=mine']


@pytest.mark.parametrize('name', ['shakespeare', 'shakespeare_char', 'text', 'openwebtext', 'code', 'prose'])
def test_a_prepare_script_explains_itself_and_takes_no_other_option(repo, monkeypatch, capsys, name):
    for argument, code in ('--help', 0), ('-h', 0), ('--hlep', 2):
        monkeypatch.setattr(sys, 'argv', ['prepare.py', argument])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(repo / 'data' / name / 'prepare.py'), run_name='__main__')
        out, err = capsys.readouterr()
        assert end.value.code == code
        assert len(out.splitlines()) > 1 and err == '' if code == 0 else out == '' and err.startswith('--hlep')
    assert not (repo / 'data' / name / 'train.bin').exists()


def test_a_failed_preparation_is_one_line(repo, capsys):
    (repo / 'data/shakespeare_char/input.txt').write_bytes(b'caf\xe9')
    with pytest.raises(SystemExit) as stopped:
        find_set('shakespeare_char')
    assert stopped.value.code == 2
    assert capsys.readouterr().err == 'data/shakespeare_char/input.txt is not UTF-8 text: byte 3 is 0xe9\n'


def test_a_script_in_a_foreign_folder_is_never_run(repo, tmp_path):
    foreign = tmp_path / 'foreign'
    foreign.mkdir()
    (foreign / 'input.txt').write_text('text')
    (foreign / 'prepare.py').write_text(f'open({str(tmp_path / "ran")!r}, "w")')
    assert 'not prepared' in refused(find_set, str(foreign))
    assert not (tmp_path / 'ran').exists()


# A script that kills itself with SIGKILL at the k-th dangerous call: amid the tokens, at an fsync, at a rename,
# or not at all.
KILLED = '''
import os, signal, sys
from pathlib import Path
import numpy as np
from core.data import prepare
root = Path(sys.argv[1])
def bomb(call):
    def wrapped(*args):
        global left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*args)
    return wrapped
os.fsync, os.replace, np.asarray = bomb(os.fsync), bomb(os.replace), bomb(np.asarray)
for old in ('fresh', 'over'):
    for point in range(1, 10):
        pid = os.fork()
        if pid == 0:
            left = point
            splits = {'train': [[1] * 5000, [2] * 5000], 'val': [[3] * 100]}
            prepare.write_set(root / f'{old}{point}', splits, dict(kind='char', vocab_size=4, chars='abcd'))
            os._exit(0)
        status = os.waitpid(pid, 0)[1]
        print(os.WTERMSIG(status) if os.WIFSIGNALED(status) else 'end')
'''


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='needs fork and SIGKILL')
def test_a_killed_preparation_leaves_no_half_set(tmp_path):
    new = {'train': np.repeat([1, 2], 5000), 'val': np.full(100, 3)}
    write_set(tmp_path / 'done', {s: [ids] for s, ids in new.items()}, dict(kind='char', vocab_size=4, chars='abcd'))
    after = {name: (tmp_path / 'done' / name).read_bytes() for name in FILES}
    for point in range(1, 10):                  # an older set of other text, but of the same size
        make(tmp_path / f'over{point}', np.zeros(10000), np.zeros(100), dict(kind='char', vocab_size=1, chars='x'))
    before = {name: (tmp_path / 'over1' / name).read_bytes() for name in FILES}

    done = subprocess.run([sys.executable, '-c', KILLED, str(tmp_path)], capture_output=True, text=True, cwd=REPO)
    assert [line for line in done.stdout.splitlines() if 'prepared' not in line] == ['9'] * 18, done.stderr
    outcomes = []
    for old in ('fresh', 'over'):
        for point in range(1, 10):
            folder = tmp_path / f'{old}{point}'
            files = {name: (folder / name).read_bytes() for name in FILES if (folder / name).exists()}
            for name, content in files.items():
                assert content in (before[name], after[name]), f'{folder.name}: half of {name}'
            try:
                find_set(str(folder))
                assert files in (before, after), f'{folder.name}: a mixture passes for a set'
                outcomes.append('set')
            except Stop:
                outcomes.append('none')
            write_set(folder, {s: [ids] for s, ids in new.items()}, dict(kind='char', vocab_size=4, chars='abcd'))
            assert {p.name: p.read_bytes() for p in folder.iterdir()} == after
    assert outcomes == ['none'] * 9 + ['set'] * 6 + ['none'] * 3


def test_a_preparation_that_fails_cleans_up(tmp_path):
    def tokens():
        yield [1, 2, 3]
        raise OSError('no space')
    with pytest.raises(OSError, match='no space'):
        write_set(tmp_path, {'train': tokens(), 'val': [[1]]}, dict(kind='gpt2', vocab_size=50257))
    assert list(tmp_path.iterdir()) == []


def test_a_link_that_somebody_has_put_there_is_not_followed(tmp_path):
    victim = tmp_path / 'victim'
    victim.write_text('mine')
    for name in FILES:
        (tmp_path / 'set').mkdir(exist_ok=True)
        (tmp_path / 'set' / f'{name}.tmp').symlink_to(victim)
    prepare_chars('to be or not to be', tmp_path / 'set')
    assert victim.read_text() == 'mine'
    assert {p.name for p in (tmp_path / 'set').iterdir() if not p.is_symlink()} == set(FILES)


@pytest.mark.skipif(os.name == 'nt', reason='needs POSIX signals')
@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_leaves_nothing_behind(tmp_path, number):
    """In the middle of the tokens, in a process of its own: one line, 128 + signal, no file."""
    code = f'''
import os, sys
from pathlib import Path
from core.data.prepare import write_set
from core.errors import run_main
def tokens():
    yield [1] * 100_000
    os.kill(os.getpid(), {number:d})
    while True:
        yield [2]
run_main(lambda: write_set(Path(sys.argv[1]), dict(train=tokens(), val=[[1]]), dict(kind='gpt2', vocab_size=50257)))
'''
    done = subprocess.run([sys.executable, '-c', code, str(tmp_path)], capture_output=True, text=True, cwd=REPO)
    assert done.returncode == 128 + number
    assert done.stderr == ('interrupted\n' if number == signal.SIGINT else f'stopped by {number.name}\n')
    assert list(tmp_path.iterdir()) == []


def test_two_preparations_at_once_take_turns(tmp_path):
    code = 'import sys; from pathlib import Path; from core.data.prepare import prepare_chars as p\n' \
           'for n in range(12): p("ab" * (100000 + n % 2), Path(sys.argv[1]))'
    both = [subprocess.Popen([sys.executable, '-c', code, str(tmp_path / 'set')], cwd=REPO, stdout=subprocess.DEVNULL)
            for _ in range(2)]
    assert [p.wait() for p in both] == [0, 0]
    assert {p.name for p in (tmp_path / 'set').iterdir()} == set(FILES)
    assert len(Dataset(str(tmp_path / 'set'), 8).tokens['train']) == 180001


def test_text_of_your_own(repo, tmp_path):
    one, two, out = tmp_path / 'first part.txt', tmp_path / 'zweiter Teil.txt', tmp_path / 'my set'
    one.write_bytes('\ufeffnaïve '.encode())    # with a byte order mark
    two.write_bytes('Übergröße 漢字 😀\r\n'.encode())
    run = script(repo / 'data/text/prepare.py', one, two, f'--out={out}')
    assert (run.returncode, run.stderr) == (0, '')
    text = 'naïve Übergröße 漢字 😀\n'
    mine = Dataset(str(out), 2)
    assert mine.tokenizer.decode([*mine.tokens['train'], *mine.tokens['val']]) == text
    assert mine.tokenizer.encode(text) == [*mine.tokens['train'], *mine.tokens['val']]
    assert mine.vocab_size == len(set(text))


def test_pieces_of_a_file_are_the_whole(tmp_path, monkeypatch):
    """Wherever the pieces end, within a character or between CR and LF, and from a pipe, which is read once."""
    one, two, pipe = tmp_path / 'one.txt', tmp_path / 'two.txt', tmp_path / 'pipe'
    text = 'naïve\r\nÜber\rgröße 漢字 😀\n'
    one.write_bytes(('\ufeff' + text).encode())
    two.write_bytes(text.encode())
    prepare_chars((text * 3).replace('\r\n', '\n').replace('\r', '\n'), tmp_path / 'whole')
    os.mkfifo(pipe)
    for size in 1, 2, 3, 7, 1000:
        monkeypatch.setattr(prepare, 'PIECE', size)
        writer = threading.Thread(target=pipe.write_bytes, args=(text.encode(),))
        writer.start()
        prepare_files([one, pipe, two], tmp_path / 'pieces')
        writer.join()
        for name in FILES:
            assert (tmp_path / 'pieces' / name).read_bytes() == (tmp_path / 'whole' / name).read_bytes()
        size = len(text.encode())
        for bad, where in (text.encode() + b'\xff', f'byte {size} is 0xff'), (b'\xef\xbb\xbf\xc3', 'byte 3 is 0xc3'):
            two.write_bytes(bad)
            assert refused(prepare_files, [one, two], tmp_path / 'none').endswith(f'is not UTF-8 text: {where}')
        two.write_bytes(text.encode())


def test_bytes_of_any_file(repo, tmp_path):
    """Latin-1, a NUL, CR LF: the bytes as they are, 90 % of them to train on, one byte a token."""
    one, two, out = tmp_path / 'one.txt', tmp_path / 'two.bin', tmp_path / 'set'
    one.write_bytes(b'caf\xe9\r\n')
    two.write_bytes(bytes(range(256)))
    run = script(repo / 'data/text/prepare.py', one, two, '--tokenizer=bytes', f'--out={out}')
    assert (run.returncode, run.stderr) == (0, '')
    assert run.stdout == f'prepared {out}: 235 + 27 tokens, bytes\n'
    assert read_meta(out).items() >= dict(kind='bytes', vocab_size=256).items()
    mine, whole = Dataset(str(out), 2), one.read_bytes() + two.read_bytes()
    assert bytes(mine.tokens['train'].tolist()) == whole[:235] and bytes(mine.tokens['val'].tolist()) == whole[235:]
    assert mine.bytes_per_token == 1.0 and mine.vocab_size == 256


@settings(deadline=None, max_examples=50)
@given(pieces=st.lists(st.binary(max_size=9), min_size=1, max_size=4), size=st.integers(1, 5))
def test_bytes_in_pieces_are_the_whole(tmp_path_factory, pieces, size):
    folder, whole = tmp_path_factory.mktemp('bytes'), b''.join(pieces) + b'..'
    for n, piece in enumerate([*pieces, b'..']):
        (folder / str(n)).write_bytes(piece)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare, 'PIECE', size)
        prepare_bytes([folder / str(n) for n in range(len(pieces) + 1)], folder / 'set')
    train, val = (np.fromfile(folder / f'set/{split}.bin', '<u2').tolist() for split in ('train', 'val'))
    assert bytes(train + val) == whole and len(train) == int(0.9 * len(whole))


def test_a_large_text_is_prepared_in_little_memory(tmp_path):
    """18 million characters, some of which Python keeps in four bytes each: 75 MB in one piece, of which 4 are used."""
    (tmp_path / 'input.txt').write_text('abc def 😀\n' * 1_800_000, encoding='utf-8')
    tracemalloc.start()
    try:
        prepare_files([tmp_path / 'input.txt'], tmp_path / 'set')
        assert tracemalloc.get_traced_memory()[1] < 120e6
    finally:
        tracemalloc.stop()
    assert (tmp_path / 'set/train.bin').stat().st_size == 2 * 16_200_000


def test_text_stops_with_one_line(repo, tmp_path, monkeypatch, capsys):
    empty, latin = tmp_path / 'empty.txt', tmp_path / 'latin.txt'
    empty.touch()
    latin.write_bytes(b'abc\xe9')
    for args, words in (((), 'which text?'), ((empty,), '0 characters'), ((latin,), 'byte 3 is 0xe9'),
                        ((tmp_path / 'nope.txt',), 'No such file'), ((tmp_path,), 'Is a directory'),
                        ((INPUT, '--outt=x'), '--outt=x is no option'),
                        ((empty, '--tokenizer=bytes'), '0 bytes of text'), ((INPUT, '--tokenizer=bpe'), 'char, bytes'),
                        ((INPUT, f'--out={latin}'), 'is not a folder')):
        monkeypatch.setattr(sys, 'argv', ['prepare.py', *map(str, args)])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(repo / 'data/text/prepare.py'), run_name='__main__')
        out, err = capsys.readouterr()
        assert end.value.code == 2 and out == ''
        assert words in err and err.count('\n') == 1
    assert not (repo / 'data/text/train.bin').exists()


def test_more_characters_than_uint16_holds(tmp_path):
    text = ''.join(map(chr, [*range(0xd800), *range(0xe000, 0x13000)]))
    assert '75,776 different characters' in refused(prepare_chars, text, tmp_path)


@pytest.mark.parametrize('name', ['shakespeare', 'openwebtext'])
def test_missing_tokenizer_is_one_line(repo, name, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, 'tiktoken', None)
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(repo / 'data' / name / 'prepare.py'), run_name='__main__')
    err = capsys.readouterr().err
    assert end.value.code == 2 and 'pip install tiktoken' in err and err.count('\n') == 1


def fake_tiktoken(monkeypatch, get_encoding):
    monkeypatch.setitem(sys.modules, 'tiktoken', SimpleNamespace(get_encoding=get_encoding))


class Letters:
    """A stand-in for tiktoken's encoding: a token is a letter."""
    n_vocab = 50257

    def encode_ordinary(self, text):
        return list(map(ord, text))

    def encode(self, text, allowed_special):
        return list(map(ord, text))

    def decode_bytes(self, ids):
        return ''.join(map(chr, ids)).encode()


def test_no_network_for_the_tokenizer_is_one_line(monkeypatch):
    def get_encoding(name):
        raise ConnectionError('unreachable\nfor many reasons')
    fake_tiktoken(monkeypatch, get_encoding)
    assert 'could not download' in refused(gpt2_bpe)


def test_bpe_sets_are_written_whole(repo, monkeypatch):
    fake_tiktoken(monkeypatch, lambda name: Letters())
    (repo / 'data/shakespeare_char/input.txt').write_text('to be or not to bé', encoding='utf-8')
    runpy.run_path(str(repo / 'data/shakespeare/prepare.py'), run_name='__main__')
    plays = Dataset('shakespeare', 1)
    assert plays.tokenizer.meta == dict(kind='gpt2', vocab_size=50257)
    assert plays.tokenizer.decode([*plays.tokens['train'], *plays.tokens['val'], 50300]) == 'to be or not to bé'
    assert plays.bytes_per_token == 1.5         # its last two letters are three bytes
    assert plays.tokenizer.encode('be') == [98, 101]

    spec = importlib.util.spec_from_file_location('owt', repo / 'data/openwebtext/prepare.py')
    owt = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(owt)

    class Documents(list):                      # slices as a table of `datasets` does
        def __getitem__(self, rows):
            return {'ids': [np.array(ids, np.uint16) for ids in super().__getitem__(rows)]}
    documents = Documents([[5, 6, 50256], [50256], [7, 50256], [65535], [8, 9, 50256]])
    for size in (1, 2, 5, 100):
        write_set(repo / 'data/openwebtext', {'train': owt.shards(documents, size), 'val': [[1, 2]]},
                  dict(kind='gpt2', vocab_size=50257))
        assert np.fromfile(repo / 'data/openwebtext/train.bin', '<u2').tolist() == sum(list.__iter__(documents), [])


# ---- finding, and what the ids mean

def test_unknown_sets_are_named(repo):
    line = refused(find_set, 'nope')
    assert line == ('--dataset=nope: neither a set in data (abc, brackets, code, fineweb_edu, openwebtext, poems, '
                    'prose, shakespeare, shakespeare_char, smiles, text, tinystories) nor a folder')
    assert refused(find_set, 'shakespear_char').endswith('did you mean shakespeare_char?')
    assert refused(find_set, 'openwebtext') == ('data/openwebtext is not prepared: run python '
                                                'data/openwebtext/prepare.py')
    assert refused(find_set, 'code') == 'data/code is not prepared: run python data/code/prepare.py'
    assert refused(find_set, 'text').endswith('run python data/text/prepare.py FILE... --out=data/text')
    (repo / 'data/mine').mkdir()
    assert refused(find_set, 'mine').endswith('run python data/text/prepare.py FILE... --out=data/mine')


def test_characters_round_trip_and_unknown_ones_are_named():
    letters = Tokenizer.from_meta(dict(kind='char', vocab_size=4, chars='\nabc', tokens={}))
    assert letters.meta == dict(kind='char', vocab_size=4, chars='\nabc')
    assert Tokenizer.from_meta(json.loads(json.dumps(letters.meta))).encode('cab\n') == [3, 1, 2, 0]
    assert letters.decode([3, 1, 2, 0]) == 'cab\n' and letters.encode('') == []
    line = refused(letters.encode, 'aé\tb😀')
    assert "'\\t', 'é', '😀'" in line and "'abc'" in line
    assert len(refused(letters.encode, ''.join(map(chr, range(1000, 9000))))) < 300


BYTES = Tokenizer.from_meta(dict(kind='bytes', vocab_size=256))


@settings(deadline=None)
@given(text=st.text(), cuts=st.lists(st.integers(0, 40)))
def test_text_is_the_same_again_from_bytes_however_they_are_cut(text, cuts):
    ids = BYTES.encode(text)
    assert ids == list(text.encode()) and BYTES.decode(ids) == text
    decode, edges = BYTES.decoder(), [0, *sorted(cuts), len(ids)]
    assert ''.join(decode(ids[a:b]) for a, b in zip(edges, edges[1:])) == text


@settings(deadline=None)
@given(raw=st.binary(max_size=12))
def test_any_bytes_have_a_text(raw):
    """Bytes that are not UTF-8 are U+FFFD; of a character cut short at the end nothing is shown."""
    shown, decode = BYTES.decode(list(raw)), BYTES.decoder()
    whole = raw.decode(errors='replace')
    assert shown == whole or shown + '\ufffd' == whole
    assert ''.join(decode([byte]) for byte in raw) == shown
    # a line break ends whatever was begun
    assert BYTES.decode([*raw, 10]) == (raw + b'\n').decode(errors='replace')


def test_bytes_of_a_command_line_and_beyond_the_256():
    assert BYTES.encode(os.fsdecode(b'caf\xe9')) == list(b'caf\xe9') and BYTES.start() == [10]
    assert BYTES.decode([*b'caf\xc3\xa9', 300]) == 'café' and BYTES.known == 256
    assert BYTES.decode(list('é…😀'.encode())[:-1]) == 'é…' and BYTES.decode(list(b'caf\xe9!')) == 'caf\ufffd!'
    assert 'of bytes it must be 256' in refused(Tokenizer.from_meta, dict(kind='bytes', vocab_size=300))


@pytest.mark.parametrize('text', [
    '', '[]', '7', 'null', '{}', '{"kind": "char"}', '{"kind": "bytes", "vocab_size": 3}', '[' * 100000,
    '{"kind": ["char"], "vocab_size": 1, "chars": "a"}',
    '{"kind": "char", "vocab_size": 3, "chars": "ab"}', '{"kind": "char", "vocab_size": 2, "chars": "aa"}',
    '{"kind": "char", "vocab_size": 2, "chars": ["a", "b"]}', '{"kind": "char", "vocab_size": "2", "chars": "ab"}',
    '{"kind": "char", "vocab_size": true, "chars": "a"}', '{"kind": "gpt2", "vocab_size": 0}',
    '{"kind": "gpt2", "vocab_size": 65537}', '{"kind": "gpt2", "vocab_size": 1e9}', '{"kind": "gpt2"}'])
def test_nonsense_in_meta_json_is_refused(tmp_path, text):
    (tmp_path / 'meta.json').write_text(text)
    assert 'meta.json' in refused(read_meta, tmp_path)


@pytest.mark.parametrize('name', ['meta.json', 'meta.pkl'])
def test_a_huge_meta_is_not_even_opened(tmp_path, name):
    with open(tmp_path / name, 'wb') as f:
        f.truncate(1 << 34)
    assert '17,179,869,184 bytes' in refused(read_meta, tmp_path)


def test_meta_pkl_of_nanogpt_is_read(tmp_path):
    chars = '\n !abé'
    meta = dict(vocab_size=6, itos=dict(enumerate(chars)), stoi={c: i for i, c in enumerate(chars)})
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        (tmp_path / 'meta.pkl').write_bytes(pickle.dumps(meta, protocol))
        assert read_meta(tmp_path) == dict(kind='char', vocab_size=6, chars=chars)
    name = make(tmp_path, [0, 1, 2, 3, 4, 5])
    assert Dataset(name, 2).tokenizer.decode([3, 5]) == 'aé'


class Payload:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return open, (str(self.marker), 'w')


def test_a_pickle_that_wants_to_run_code_is_refused(tmp_path):
    marker, good = tmp_path / 'ran', dict(vocab_size=1, itos={0: 'a'}, stoi={'a': 0})
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        for bad in (Payload(marker), good | dict(extra=Payload(marker)), good | dict(vocab_size=Payload(marker))):
            (tmp_path / 'meta.pkl').write_bytes(pickle.dumps(bad, protocol))
            line = refused(read_meta, tmp_path)
            assert 'meta.pkl' in line and 'wants to run code' in line and not marker.exists()
    pickle.loads(pickle.dumps(Payload(marker))).close()
    assert marker.exists()                      # the payload is a real one


@pytest.mark.parametrize('content', [
    b'', b'junk', pickle.dumps([1]), pickle.dumps({}), pickle.dumps(dict(vocab_size=2, itos={0: 'a'})),
    pickle.dumps(dict(vocab_size=2, itos={0: 'a', 1: 'a'})), pickle.dumps(dict(vocab_size=2, itos={0: 'a', 2: 'b'})),
    pickle.dumps(dict(vocab_size=1, itos={0: 7})), pickle.dumps(dict(vocab_size=2, itos='ab'))[:-9],
    b'\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7f.', b'\x80\x04\x95\xff\xff\xff\xff\xff\x00\x00\x00.'])
def test_nonsense_in_meta_pkl_is_refused(tmp_path, content):
    (tmp_path / 'meta.pkl').write_bytes(content)
    assert 'meta.pkl' in refused(read_meta, tmp_path)


def test_a_small_pickle_cannot_ask_for_much_memory(tmp_path):
    (tmp_path / 'meta.pkl').write_bytes(b'\x80\x04Nr\xff\xff\xff\x03.')     # C's unpickler would take 1 GiB
    tracemalloc.start()
    try:
        refused(read_meta, tmp_path)
        assert tracemalloc.get_traced_memory()[1] < 50 << 20
    finally:
        tracemalloc.stop()


def test_meta_json_wins_over_meta_pkl_and_without_either_tokens_are_gpt2s(tmp_path, capsys):
    name = make(tmp_path, [0, 1, 2])
    bare = Dataset(name, 2)
    assert bare.tokenizer.meta == dict(kind='gpt2', vocab_size=50304) and bare.vocab_size == 50304
    (tmp_path / 'meta.pkl').write_bytes(b'junk')
    (tmp_path / 'meta.json').write_text('{"kind": "char", "vocab_size": 3, "chars": "xyz"}')
    assert Dataset(name, 2).tokenizer.decode([0, 2]) == 'xz'
    assert capsys.readouterr() == ('', '')


def test_a_prepare_py_that_exits_is_one_line(repo):
    (repo / 'data/shakespeare_char/prepare.py').write_text('exit()\n')
    assert refused(find_set, 'shakespeare_char') == 'data/shakespeare_char/prepare.py: calls exit()'


# ---- what was prepared is what is read

def changed(raw, rng, flips, cuts):
    """Yields bytes with one bit flipped, and bytes cut short."""
    for _ in range(flips):
        bit = rng.randrange(len(raw) * 8)
        yield raw[:bit // 8] + bytes([raw[bit // 8] ^ 1 << bit % 8]) + raw[bit // 8 + 1:]
    yield from (raw[:rng.randrange(len(raw))] for _ in range(cuts))


@pytest.mark.parametrize('name', FILES)
def test_damage_to_a_set_is_noticed(tmp_path, name):
    text = INPUT.read_text(encoding='utf-8')[:4000]
    prepare_chars(text, tmp_path)
    path, rng = tmp_path / name, random.Random(name)
    raw = path.read_bytes()
    for damaged in changed(raw, rng, 100, 20):
        path.write_bytes(damaged)
        line = refused(Dataset, str(tmp_path), 8)
        assert name in line
    path.write_bytes(raw)
    assert Dataset(str(tmp_path), 8).tokenizer.decode(Dataset(str(tmp_path), 8).tokens['train'].tolist()) == text[:3600]


def test_damage_to_a_large_file_is_noticed_at_its_ends_and_in_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(identity, 'READ_WHOLE', 0)
    monkeypatch.setattr(identity, 'FORGET', 0)
    path, size = tmp_path / 'train.bin', 8 << 20
    np.random.default_rng(1).integers(0, 256, size, np.uint8).tofile(path)
    record, hashed = identity.identity(path), []
    sample_hash = identity.sample_hash
    monkeypatch.setattr(identity, 'sample_hash', lambda path: hashed.append(path) or sample_hash(path))
    assert identity.is_the_same(path, record) and identity.is_the_same(path, record)
    assert len(hashed) == 1                     # of the same size and time it is the same file
    block = (size - identity.BLOCK) * 20 // (identity.BLOCKS - 1)
    for at in 0, size - 1, block:
        with open(path, 'r+b') as f:
            f.seek(at)
            byte = f.read(1)
            f.seek(at)
            f.write(bytes([byte[0] ^ 1]))
        os.utime(path, ns=(at, at))
        assert not identity.is_the_same(path, record), at
        with open(path, 'r+b') as f:
            f.seek(at)
            f.write(byte)
    os.truncate(path, size - 1)
    assert not identity.is_the_same(path, record)


@pytest.mark.parametrize('files', [7, [], {}, {'train.bin': 1}, {'train.bin': {'bytes': '7200'}}])
def test_a_record_of_files_that_nobody_wrote_is_refused(tmp_path, files):
    meta = dict(kind='char', vocab_size=3, chars='abc', files=files)
    assert 'has changed since' in refused(Dataset, make(tmp_path, [0, 1, 2], None, meta), 2)


def test_a_text_that_is_not_the_prepared_one_is_refused(repo, capsys):
    """A copied folder with another input.txt would train on the old tokens."""
    folder = repo / 'data/mine'
    shutil.copytree(repo / 'data/shakespeare_char', folder)
    Dataset('mine', 8)
    (folder / 'input.txt').write_text('to be or not to be\n' * 100)
    assert refused(Dataset, 'mine', 8) == ('data/mine/input.txt is not the text of train.bin: run python '
                                           'data/mine/prepare.py, or remove it')
    script(folder / 'prepare.py')
    assert len(Dataset('mine', 8).tokens['train']) == 1710
    # one that was put there later
    prepare_chars('abc' * 100, repo / 'data/other')
    Dataset('other', 8)
    (repo / 'data/other/input.txt').write_text('cab')
    assert 'data/other/input.txt is not the text' in refused(Dataset, 'other', 8)


def test_a_newer_text_beside_an_older_set_is_said(tmp_path, capsys):
    name = make(tmp_path, [0, 1, 2], None, dict(kind='char', vocab_size=3, chars='abc'))
    (tmp_path / 'input.txt').write_text('cab')
    Dataset(name, 2)
    assert capsys.readouterr().err == ''
    os.utime(tmp_path / 'train.bin', (1, 1))
    Dataset(name, 2)
    assert 'input.txt is newer than train.bin' in capsys.readouterr().err


# ---- ids of other tokenizers

def test_ids_of_ones_own(tmp_path):
    ids = np.random.default_rng(1).integers(0, 500, 1000)
    for name, write in [('json', lambda f: (f / 'meta.json').write_text('{"vocab_size": 500}')),
                        ('pkl', lambda f: (f / 'meta.pkl').write_bytes(pickle.dumps(dict(vocab_size=500))))]:
        make(tmp_path / name, ids)
        write(tmp_path / name)
        set_ = Dataset(str(tmp_path / name), 8)
        assert set_.tokenizer.meta == dict(kind='ids', vocab_size=500) and set_.bytes_per_token is None
        assert set_.tokenizer.decode([3, 499]) == '3 499 ' and set_.tokenizer.encode(' 3\n499 ') == [3, 499]
        assert set_.tokenizer.start() == [0]
        for text in 'a', '500', '-1', '1.5', '9' * 5000:
            assert 'only ids: numbers from 0 to 499' in refused(set_.tokenizer.encode, text)


def test_uint32_is_read_where_meta_json_says_so(tmp_path):
    ids = np.random.default_rng(1).integers(0, 100_000, 2000).astype('<u4')
    for split in 'train', 'val':
        ids.tofile(tmp_path / f'{split}.bin')
    (tmp_path / 'meta.json').write_text('{"vocab_size": 100000, "dtype": "uint32"}')
    assert Dataset(str(tmp_path), 8).tokens['train'].tolist() == ids.tolist()
    os.truncate(tmp_path / 'val.bin', 7998)
    assert 'no multiple of 4' in refused(Dataset, str(tmp_path), 8)
    (tmp_path / 'meta.json').write_text('{"vocab_size": 100000, "dtype": "float32"}')
    assert 'dtype must be one of uint16, uint32' in refused(Dataset, str(tmp_path), 8)


def test_a_set_without_meta_json_whose_ids_are_not_gpt2s_is_refused(tmp_path):
    rng = np.random.default_rng(1)
    line = refused(Dataset, make(tmp_path / 'characters', rng.integers(0, 65, 2000)), 8)
    assert 'its ids end at 64' in line and '{"vocab_size": 65}' in line
    wide = rng.integers(0, 50257, 2000).astype('<u4').view('<u2')
    line = refused(Dataset, make(tmp_path / 'wide', wide), 8)
    assert 'as in uint32' in line and '"dtype": "uint32"' in line
    Dataset(make(tmp_path / 'gpt2', rng.integers(0, 50257, 2000)), 8)


# ---- reading

def test_unusable_splits_are_refused(tmp_path):
    ten = make(tmp_path / 'ten', range(10), range(100))
    assert refused(Dataset, ten, 64) == (f'{ten}/train.bin has 10 tokens, block_size 64 needs at least 65: '
                                         'set block_size to at most 9')
    assert Dataset(ten, 9).batch('train', 0, 3, 0)[1].tolist() == [list(range(1, 10))] * 3
    assert 'val.bin has 5 tokens' in refused(Dataset, make(tmp_path / 'five', range(10), range(5)), 64)
    assert 'train.bin has 10 tokens, block_size 10 needs at least 11' in refused(Dataset, ten, 10)
    assert 'train.bin has 0 tokens: there is nothing' in refused(Dataset, make(tmp_path / 'none', []), 64)
    assert 'val.bin has 1 tokens: there is nothing' in refused(Dataset, make(tmp_path / 'one', range(9), [1]), 64)
    with open(tmp_path / 'ten/val.bin', 'ab') as f:
        f.write(b'x')
    assert 'val.bin has 201 bytes, an odd number' in refused(Dataset, ten, 4)


def test_a_set_that_was_cut_short_by_whole_tokens_is_refused(tmp_path):
    prepare_chars('abc' * 100, tmp_path)
    Dataset(str(tmp_path), 4)
    os.truncate(tmp_path / 'train.bin', 200)
    assert 'train.bin has 100 tokens, not as many as meta.json says' in refused(Dataset, str(tmp_path), 4)


def test_a_token_beyond_the_vocabulary_is_found_before_it_is_used(tmp_path, monkeypatch):
    meta = dict(kind='char', vocab_size=3, chars='abc')
    bad = make(tmp_path / 'bad', [0, 1, 2, 0], [0, 1, 3, 0], meta)
    assert refused(Dataset, bad, 2) == f'{bad}/val.bin holds token 3, but vocab_size is 3'
    Dataset(make(tmp_path / 'good', [0, 1, 2, 0], None, meta), 2)
    # as with files too large to read through: each batch is looked at
    monkeypatch.setattr(dataset, 'CHECKED', 0)
    monkeypatch.setattr(dataset, 'RESIDENT', 0)
    large = Dataset(bad, 2)
    large.batch('train', 0, 9, 0)
    assert 'holds token 3' in refused(large.batch, 'val', 0, 9, 0)
    assert 'holds token 3' in refused(lambda: list(large.windows('val', 9)))


def test_the_hash_sees_any_change(tmp_path):
    sets = [(range(50), range(50)), (range(50), range(49)), ([*range(49), 7], range(50)),
            (range(50), [7, *range(1, 50)])]
    hashes = {Dataset(make(tmp_path / str(i), *s), 4).hash for i, s in enumerate(sets)}
    assert len(hashes) == 4
    again = make(tmp_path / 'again', *sets[0])
    assert Dataset(again, 4).hash in hashes
    large = np.zeros((4, 12 << 20), '<u2')      # 24 MiB a row: only pieces of each are read
    large[1, 0] = large[2, (12 << 20) * 15 // 16] = 1
    seen = set()
    for ids in (*large[:3], large[3, 1:]):
        ids.tofile(tmp_path / 'again/train.bin')
        seen.add(dataset.fingerprint(tmp_path / 'again'))
    assert len(seen) == 4


def test_batches_are_slices_of_the_split(counting):
    ds = Dataset(counting, 8)
    for split, first, last in (('train', 0, 999), ('val', 1000, 1199)):
        X, Y = ds.batch(split, 3, 4000, 1)
        assert X.shape == Y.shape == (4000, 8) and X.dtype == Y.dtype == torch.int64
        assert X.is_contiguous() and Y.is_contiguous()
        assert (Y == X + 1).all() and (X == X[:, :1] + torch.arange(8)).all()
        starts = set(X[:, 0].tolist())          # every valid start can be drawn, the last included
        assert min(starts) == first and max(starts) == last - 8
        assert len(X) > len(starts) > 0.9 * (last - 8 - first)      # with replacement


def test_a_batch_depends_on_its_key_alone(counting):
    ds = Dataset(counting, 8)
    X, Y = ds.batch('train', 5, 16, 1)
    torch.rand(3)
    list(ds.windows('val', 4))
    ds.batch('train', 6, 16, 1)
    for again in (ds, Dataset(counting, 8)):
        assert all(map(torch.equal, again.batch('train', 5, 16, 1), (X, Y)))
    assert not torch.equal(ds.batch('train', 6, 16, 1)[0], X)
    assert not torch.equal(ds.batch('train', 5, 16, 2)[0], X)
    # both splits alike: the split is part of the key
    same = Dataset(make(Path(counting), range(1000)), 8)
    assert not torch.equal(same.batch('val', 5, 16, 1)[0], X)


@pytest.mark.parametrize('size, world', [(8, 2), (12, 3), (4, 4), (5, 1), (7, 3)])
def test_ranks_share_out_the_batch_of_one_process(counting, size, world):
    ds = Dataset(counting, 8)
    parts = [ds.batch('train', 9, size, 4, rank, world) for rank in range(world)]
    for whole, part in zip(ds.batch('train', 9, size, 4), zip(*parts, strict=True), strict=True):
        assert torch.equal(torch.cat(part), whole)
    assert size % world or {len(x) for x, _ in parts} == {size // world}


@pytest.mark.parametrize('n', [9, 10, 16, 17, 18, 64, 65, 66])
@pytest.mark.parametrize('size', [1, 3, 100])
def test_windows_cover_every_target_once(tmp_path, n, size):
    ids = np.random.default_rng(0).permutation(n)
    ds = Dataset(make(tmp_path / 'set', ids), 8)
    seen, count = [], 0
    for X, Y, targets in ds.windows('val', size):
        assert X.shape == Y.shape and X.shape[1] == 8 and 0 < len(X) <= size
        real = Y != -1
        assert torch.equal(targets, real.sum(1)) and (X[~real] == 0).all()
        following = {int(a): int(b) for a, b in zip(ids[:-1], ids[1:], strict=True)}
        assert all(following[int(x)] == y for x, y in zip(X[real], Y[real], strict=True))
        seen += Y[real].tolist()
        count += len(X)
    assert seen == ids[1:].tolist()             # in order, each once
    assert count == ds.count_windows('val') == -(-(n - 1) // 8)


def test_limited_windows_are_spread_evenly_and_always_the_same(counting):
    ds = Dataset(counting, 8)                   # 125 windows in train, the last of 7 targets
    whole = torch.cat([X for X, _, _ in ds.windows('train', 50)])
    assert len(whole) == 125
    for limit in (1, 2, 7, 124):
        some = torch.cat([X for X, _, _ in ds.windows('train', 3, limit)])[:, 0]
        assert len(some) == limit == len(set(some.tolist()))
        assert torch.equal(some, torch.cat([X for X, _, _ in ds.windows('train', 50, limit)])[:, 0])
        gaps = [*(some[1:] - some[:-1]).div(8).tolist()]
        assert all(abs(gap - 125 / limit) < 1 for gap in gaps)
        assert abs(some[0] / 8 - (124 - some[-1] / 8)) <= 1         # as far from the start as from the end
    for limit in (0, 125, 1000):
        assert torch.equal(torch.cat([X for X, _, _ in ds.windows('train', 50, limit)]), whole)


def test_the_length_of_a_token_is_that_of_its_text(tmp_path):
    text = 'aé→😀' * 30 + 'naïve'
    prepare_chars(text, tmp_path / 'chars')
    val = text[int(0.9 * len(text)):]
    assert Dataset(str(tmp_path / 'chars'), 2).bytes_per_token == pytest.approx(len(val.encode()) / len(val))
    gpt2 = dict(kind='gpt2', vocab_size=50257)
    assert Dataset(make(tmp_path / 'gpt2', range(100), range(50), gpt2), 8).bytes_per_token is None
    for length, expected in (200, 4.0), ('200', None), (-1, None):
        set_ = make(tmp_path / 'gpt2', range(100), range(50), gpt2 | dict(bytes=dict(val=length)))
        assert Dataset(set_, 8).bytes_per_token == expected


def both_ways(name, device, monkeypatch):
    resident = Dataset(name, 8, device)
    monkeypatch.setattr(dataset, 'RESIDENT', 0)
    streamed = Dataset(name, 8, device)
    assert torch.is_tensor(resident.tokens['train']) and not torch.is_tensor(streamed.tokens['train'])
    return resident, streamed


def test_streaming_gives_what_resident_tokens_give(counting, monkeypatch):
    resident, streamed = both_ways(counting, 'cpu', monkeypatch)
    assert all(map(torch.equal, resident.batch('train', 2, 16, 3), streamed.batch('train', 2, 16, 3)))
    for a, b in zip(resident.windows('val', 3), streamed.windows('val', 3), strict=True):
        assert all(map(torch.equal, a, b))


@pytest.mark.gpu
def test_gpu_gets_the_same_data_without_waiting(counting, monkeypatch):
    cpu = Dataset(counting, 8)
    resident, streamed = both_ways(counting, 'cuda', monkeypatch)
    resident.batch('train', 0, 16, 3)           # first use may wait: it allocates pinned memory
    list(resident.windows('val', 3))
    torch.cuda.set_sync_debug_mode('error')
    try:
        batch, windows = resident.batch('train', 2, 16, 3), list(resident.windows('val', 3))
    finally:
        torch.cuda.set_sync_debug_mode('default')
    for other in (batch, streamed.batch('train', 2, 16, 3)):
        for a, b in zip(cpu.batch('train', 2, 16, 3), other, strict=True):
            assert b.is_cuda and torch.equal(a, b.cpu())
    for other in (windows, streamed.windows('val', 3)):
        for a, b in zip(cpu.windows('val', 3), other, strict=True):
            assert torch.equal(a[0], b[0].cpu()) and torch.equal(a[1], b[1].cpu()) and torch.equal(a[2], b[2])


# -- sets of examples

ROWS = dict(kind='ids', vocab_size=100, rows=dict(length=5, judged=[1, 3]))


def test_examples_are_read_whole_and_judged_where_they_say(tmp_path):
    ds = Dataset(make(tmp_path / 'rows', np.arange(50), np.arange(50, 85), ROWS), 4)
    X, Y = ds.batch('train', 3, 64, 1)
    assert (X[:, 0] % 5 == 0).all() and set(X[:, 0].tolist()) == set(range(0, 50, 5))
    assert torch.equal(X, X[:, :1] + torch.arange(4))
    assert torch.equal(Y, torch.where(torch.tensor([False, True, False, True]), X + 1, -1))
    windows = list(ds.windows('val', 3))
    X, Y, n = map(torch.cat, zip(*windows, strict=True))
    assert X[:, 0].tolist() == list(range(50, 85, 5)) and len(X) == ds.count_windows('val') == 7
    assert torch.equal(Y[:, [1, 3]], X[:, [1, 3]] + 1) and (Y[:, [0, 2]] == -1).all() and n.tolist() == [2] * 7
    assert torch.cat([x for x, _, _ in ds.windows('val', 3, 2)])[:, 0].tolist() == [55, 75]
    # the same tokens, judged elsewhere, are another set
    other = make(tmp_path / 'other', np.arange(50), np.arange(50, 85), ROWS | dict(rows=dict(length=5, judged=[3])))
    text = make(tmp_path / 'text', np.arange(50), np.arange(50, 85), dict(kind='ids', vocab_size=100))
    assert len({ds.hash, Dataset(other, 4).hash, Dataset(text, 4).hash}) == 3
    # whoever asks what the set is needs no context
    assert Dataset(str(tmp_path / 'rows'), 1).hash == ds.hash
    assert 'set block_size to 4' in refused(Dataset, str(tmp_path / 'rows'), 3)


@pytest.mark.parametrize('rows', [5, {}, dict(length=4, judged=[1]), dict(length=5, judged=[4]),
                                  dict(length=5, judged=[]), dict(length=1, judged=[0]), dict(length='5', judged=[1])])
def test_bad_rows_are_one_line(tmp_path, rows):
    folder = make(tmp_path / 'bad', np.arange(50), meta=ROWS | dict(rows=rows))
    assert 'meta.json: rows must be' in refused(Dataset, folder, 4)
