"""Writes token sets, for data/*/prepare.py."""
import json
import os
import sys
from contextlib import contextmanager, suppress

import numpy as np
from filelock import lock_descriptor

from core.data import SPLITS, short_path
from core.errors import Stop


def prepare_chars(text, folder):
    """Writes a set with one token per character, ids in order of code points; 90 % of the text is train."""
    if len(text) < 2:
        raise Stop(f'{len(text)} characters of text: too few for {short_path(folder)}, both splits need one')
    # a table over all of Unicode: which characters occur, and by counting them the id of each
    codes = np.frombuffer(text.encode('utf-32-le'), '<u4')
    seen = np.zeros(sys.maxunicode + 1, bool)
    seen[codes] = True
    if seen.sum() > 1 << 16:
        raise Stop(f'{seen.sum():,} different characters: uint16 tokens can tell 65,536 apart')
    ids = (seen.cumsum() - 1)[codes]
    chars = ''.join(map(chr, np.flatnonzero(seen)))
    cut = int(len(text) * 0.9)
    meta = dict(kind='char', vocab_size=len(chars), chars=chars)
    write_set(folder, {'train': [ids[:cut]], 'val': [ids[cut:]]}, meta)


def read_text(path):
    """Returns the text of a UTF-8 file without a byte order mark; Stop if it cannot be read or decoded."""
    try:
        return path.read_text(encoding='utf-8-sig')
    except UnicodeDecodeError as error:
        raise Stop(f'{short_path(path)} is not UTF-8 text: '
                   f'byte {error.start:,} is {error.object[error.start]:#x}') from None
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise Stop(f'{short_path(path)}: {error.strerror}') from None


def write_set(folder, splits, meta):
    """Writes {split: arrays of token ids} and meta. A kill leaves the old set, the new one, or none."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise Stop(f'{short_path(folder)} is not a folder') from None
    names = [*(f'{split}.bin' for split in SPLITS), 'meta.json']
    with folder_lock(folder):
        try:
            tokens = {}
            for split in SPLITS:
                arrays = (np.asarray(ids, '<u2') for ids in splits[split])
                tokens[split] = write_file(folder / f'{split}.bin.tmp', arrays) // 2
            text = json.dumps({**meta, 'tokens': tokens}).encode()
            write_file(folder / 'meta.json.tmp', [text])
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
    kind = f'{meta["vocab_size"]:,} characters' if meta['kind'] == 'char' else 'GPT-2 BPE'
    sizes = f'{tokens["train"]:,} + {tokens["val"]:,} tokens'
    print(f'prepared {short_path(folder)}: {sizes}, {kind}', flush=True)


def write_file(path, chunks):
    """Writes an iterable of arrays or bytes; returns the number of bytes once they are on the disk itself."""
    with open(path, 'wb') as f:
        f.writelines(chunks)
        f.flush()
        os.fsync(f.fileno())
        return f.tell()


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
