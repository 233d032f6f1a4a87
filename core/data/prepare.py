"""Writes token sets, for data/*/prepare.py."""
import codecs
import io
import os
import sys
from contextlib import ExitStack, contextmanager, suppress
from functools import partial

import numpy as np
from filelock import lock_descriptor

from core.data import SPLITS, short_path
from core.data.identity import identity
from core.errors import Stop
from core.run.files import seal

PIECE = 1 << 22         # bytes of a file that are in memory at a time


def arguments(doc):
    """Returns the arguments of a prepare.py; prints its docstring and exits if --help is among them."""
    if {'-h', '--help'} & set(sys.argv[1:]):
        print(doc.strip())
        raise SystemExit(0)
    return sys.argv[1:]


def no_arguments(doc):
    """Stop if a prepare.py was given arguments; otherwise as arguments()."""
    if args := arguments(doc):
        raise Stop(f'{args[0]}: this script takes no arguments; --help says what it does')


def prepare_chars(text, folder):
    """Writes a set with one token per character, ids in order of code points; 90 % of the text is train."""
    prepare_pieces(lambda: [text], folder)


def prepare_files(paths, folder):
    """Writes the set of prepare_chars() for the text of files, one after the other, in little memory."""
    prepare_pieces(pieces_of(paths, read_pieces), folder)


def prepare_bytes(paths, folder):
    """Writes a set with one token per byte of files, whatever they hold; 90 % of the bytes are train."""
    pieces = pieces_of(paths, read_raw)
    length = sum(map(len, pieces()))
    ids = lambda: (np.frombuffer(piece, np.uint8) for piece in pieces())
    write_split(folder, ids, length, dict(kind='bytes', vocab_size=256))


def pieces_of(paths, read):
    """Returns a function that yields read(path) of one file after the other, each time that it is called."""
    # a pipe can be read once only
    sources = [partial(read, path) if path.is_file() else list(read(path)).copy for path in paths]
    return lambda: (piece for source in sources for piece in source())


def prepare_pieces(pieces, folder):
    """Writes the set of prepare_chars() for a text in pieces, which each call of pieces() gives from the beginning."""
    # a table over all of Unicode: which characters occur, and by counting them the id of each
    seen, length = np.zeros(sys.maxunicode + 1, bool), 0
    for codes in map(code_points, pieces()):
        seen[codes] = True
        length += len(codes)
    if seen.sum() > 1 << 16:
        raise Stop(f'{seen.sum():,} different characters: uint16 tokens can tell 65,536 apart')
    table = (seen.cumsum() - 1).astype('<u2')
    chars = ''.join(map(chr, np.flatnonzero(seen)))
    ids = lambda: (table[code_points(piece)] for piece in pieces())
    write_split(folder, ids, length, dict(kind='char', vocab_size=len(chars), chars=chars))


def write_split(folder, ids, length, meta):
    """Writes a set of `length` tokens, which each call of ids() yields as arrays; the first 90 % are train."""
    if length < 2:
        unit = 'bytes' if meta['kind'] == 'bytes' else 'characters'
        raise Stop(f'{length} {unit} of text: too few for {short_path(folder)}, both splits need one')
    cut = int(length * 0.9)

    def part(start, stop):
        """Yields the ids from start to stop, an array at a time."""
        at = 0
        for piece in ids():
            yield piece[max(start - at, 0):max(stop - at, 0)]
            at += len(piece)
    write_set(folder, {'train': part(0, cut), 'val': part(cut, length)}, meta)


def code_points(text):
    """Returns the code points of a text, uint32."""
    return np.frombuffer(text.encode('utf-32-le'), '<u4')


def read_text(path):
    """Returns the text of a UTF-8 file without a byte order mark; Stop if it cannot be read or decoded."""
    return ''.join(read_pieces(path))


def read_pieces(path):
    """Yields the text of read_text() in pieces."""
    utf8, end = io.IncrementalNewlineDecoder(codecs.getincrementaldecoder('utf-8-sig')(), translate=True), 0
    try:
        for raw in read_raw(path):
            end += len(raw)
            yield utf8.decode(raw, final=not raw)
    except UnicodeDecodeError as error:
        # the error's bytes end where those read so far end
        at = end - len(error.object) + error.start
        raise Stop(f'{short_path(path)} is not UTF-8 text: '
                   f'byte {at:,} is {error.object[error.start]:#x}') from None


def read_raw(path):
    """Yields the bytes of a file in pieces, of which only the last is empty; Stop if it cannot be read."""
    try:
        with open(path, 'rb') as f:
            raw = None
            while raw != b'':
                raw = f.read(PIECE)
                yield raw
    except OSError as error:
        raise Stop(f'{short_path(path)}: {error.strerror}') from None


def write_set(folder, splits, meta):
    """Writes {split: arrays of token ids} and meta. A kill leaves the old set, the new one, or none."""
    write_pieces(folder, ((split, ids) for split in SPLITS for ids in splits[split]), meta)


def write_pieces(folder, pieces, meta):
    """Writes the set of write_set() from pairs of a split and an array; reads meta after the last of them."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise Stop(f'{short_path(folder)} is not a folder') from None
    names = [*(f'{split}.bin' for split in SPLITS), 'meta.json']
    with folder_lock(folder):
        try:
            with ExitStack() as stack:
                bins = {split: stack.enter_context(new_file(folder / f'{split}.bin.tmp')) for split in SPLITS}
                for split, ids in pieces:
                    bins[split].write(np.asarray(ids, '<u2'))
                tokens = {split: file.tell() // 2 for split, file in bins.items()}
            files = {f'{split}.bin': identity(folder / f'{split}.bin.tmp') for split in SPLITS}
            # the text that lies beside the set, so that a change of it is noticed
            source = folder / 'input.txt'
            files |= {'input.txt': identity(source)} if source.is_file() else {}
            text = seal({**meta, 'dtype': 'uint16', 'tokens': tokens, 'files': files})
            with new_file(folder / 'meta.json.tmp') as file:
                file.write(text)
        except BaseException:
            # half a set must not fill a disk
            for name in names:
                (folder / f'{name}.tmp').unlink(missing_ok=True)
            raise
        # An old meta.json must not describe new tokens, so it is removed first, unless it is the same. Until
        # the new one has its name, meta.json.tmp tells find_set() that the set is unfinished.
        meta_json = folder / 'meta.json'
        if meta_json.exists() and meta_json.read_bytes() != text:
            meta_json.unlink()
        for name in names:
            os.replace(folder / f'{name}.tmp', folder / name)
    kind = dict(char=f'{meta["vocab_size"]:,} characters', bytes='bytes', gpt2='GPT-2 BPE',
                ids=f'{meta["vocab_size"]:,} ids')[meta['kind']]
    sizes = f'{tokens["train"]:,} + {tokens["val"]:,} tokens'
    print(f'prepared {short_path(folder)}: {sizes}, {kind}', flush=True)


@contextmanager
def new_file(path):
    """A context with a new file for bytes, which are on the disk itself at its end."""
    path.unlink(missing_ok=True)
    # mode x does not follow a link that somebody has put there
    with open(path, 'xb') as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def folder_lock(folder):
    """A context that one process enters at a time: on a first run, all ranks find the set missing."""
    handle = None
    try:
        # some systems cannot open or lock a folder, and there nobody waits
        with suppress(OSError):
            handle = os.open(folder, os.O_RDONLY)
            lock_descriptor(handle)
        yield
    finally:
        if handle is not None:
            os.close(handle)
