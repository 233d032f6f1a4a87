"""Writes token sets from data sets of the Hugging Face Hub, for data/*/prepare.py, document by document."""
import hashlib
import logging
import os
from contextlib import contextmanager, suppress
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from core.data import SPLITS, short_path
from core.data.prepare import arguments, write_pieces
from core.data.tokenizer import gpt2_bpe
from core.errors import Stop
from core.run.files import warn

END = 50256             # <|endoftext|>, after every document of GPT-2's tokens
SEPARATOR = '\n\n'      # after every document of bytes
TOKENS = 33_000_000     # of train, unless --tokens says otherwise
PART = 20               # val has 1/PART as many tokens, and without a validation split 1/PART of the documents
BATCH = 256             # documents that are read at a time


class Source(NamedTuple):
    """A data set at the Hub that has a split `train` with a column `text`."""
    title: str          # for messages
    path: str           # owner/name
    config: str | None  # one of the set's configurations, if it has several
    revision: str       # the commit
    licence: str


def prepare_source(folder, doc, source):
    """Writes the set of a source's first documents, or of those of a copy, that the command line asks for.

    doc: the script's docstring, for --help. Stop unless both splits get the two tokens that a set needs.
    """
    given = options(doc, tokens=str(TOKENS), tokenizer='bytes', source='')
    tokens, kind = whole_number('tokens', given['tokens'], least=2 * PART), given['tokenizer']
    if kind not in ('bytes', 'gpt2'):
        raise Stop(f'--tokenizer={kind}: allowed: bytes, gpt2')
    refuse_own_text(folder, source.title)
    bpe = gpt2_bpe() if kind == 'gpt2' else None
    if copy := given['source']:
        name, origin = f'--source={copy}', dict(source=copy)
        splits = open_copy(name, copy)
    else:
        name = source.title
        origin = dict(source=source.path, config=source.config, revision=source.revision,
                      licence=source.licence)
        splits = load(name, source.path, source.config, revision=source.revision, streaming=True)
    meta = dict(kind=kind, vocab_size=bpe.n_vocab if bpe else 256, **origin,
                documents=dict.fromkeys(SPLITS, 0))
    if bpe:
        # the text's length, for bits per byte
        meta['bytes'] = dict(val=0)
    write_pieces(folder, pieces(name, splits, dict(train=tokens, val=tokens // PART), bpe, meta), meta)


def pieces(name, splits, asked, bpe, meta):
    """Yields pairs of a split and a document's ids, until each split has as many as asked for or none are left.

    The end of a document that is longer than what is left goes nowhere. Counts the documents, and of GPT-2's
    tokens the bytes of val, in meta.
    """
    left = dict(asked)
    with tqdm(total=sum(left.values()), unit=' tokens', unit_scale=True, leave=False, disable=None) as bar:
        for split, text in documents(name, splits, left):
            # of two splits from one stream one is full first
            if not left[split]:
                continue
            if bpe:
                ids = np.array([*bpe.encode_ordinary(text), END], np.uint16)[:left[split]]
            else:
                ids = np.frombuffer((text + SEPARATOR).encode(), np.uint8)[:left[split]]
            left[split] -= len(ids)
            meta['documents'][split] += 1
            if bpe and split == 'val':
                meta['bytes']['val'] += len(bpe.decode_bytes(ids[ids != END].tolist()))
            bar.update(len(ids))
            yield split, ids
    train, val = (asked[split] - left[split] for split in SPLITS)
    if min(train, val) < 2:
        raise Stop(f'{name} has {train:,} tokens for train and {val:,} for val: too few, both need 2')
    if left['train']:
        warn(f'{name} ends after {train:,} of {asked["train"]:,} tokens')


# -----------------------------------------------------------------------------
# documents

def load(name, *args, **kwargs):
    """Returns load_dataset(*args, **kwargs); Stop if `datasets` is missing, or cannot have the data.

    name: of the data, for messages.
    """
    try:
        from datasets import load_dataset
    except ImportError:
        raise Stop(f'{name} needs datasets: pip install datasets') from None
    # they log each attempt to reach a server, and errors before they raise them
    for library in 'datasets', 'huggingface_hub':
        logging.getLogger(library).setLevel(logging.CRITICAL)
    with one_line_errors(name):
        return load_dataset(*args, **kwargs)


@contextmanager
def one_line_errors(name):
    """A context that turns errors of `datasets` into a Stop."""
    try:
        yield
    except (Stop, MemoryError):
        raise
    # of the network, of file formats, of half a dozen libraries: they have no class in common
    except Exception as error:
        reason = ': '.join([type(error).__name__, *str(error).splitlines()[:1]])[:300]
        raise Stop(f'{name} could not be read: {reason}') from None


def open_copy(name, source):
    """Returns {split: stream of rows} of a file or folder of parquet or JSON lines; Stop if it is none."""
    path = Path(os.path.abspath(os.path.expanduser(source)))
    # load_dataset() would look for it at the Hub
    if not path.exists():
        raise Stop(f'{name}: there is no such file or folder')
    folder, file = (path, None) if path.is_dir() else (path.parent, path.name)
    splits = load(name, str(folder), data_files=file, streaming=True)
    if any(stream.info.builder_name == 'text' for stream in splits.values()):
        raise Stop(f'{name}: plain text does not say where documents end; parquet and JSON lines do')
    return splits


def documents(name, splits, left):
    """Yields pairs of a split and a text while there is room in left, {split: tokens that it still takes}.

    Without a validation split the text's SHA-256 decides, so that equal texts go together, and none changes
    sides when a longer set is made.
    """
    if 'train' not in splits:
        raise Stop(f'{name} has no split train, only {", ".join(splits)}')
    if 'validation' in splits:
        for split, stream in ('train', splits['train']), ('val', splits['validation']):
            for text in takewhile(lambda text, split=split: left[split], texts(name, stream)):
                yield split, text
    else:
        for text in takewhile(lambda text: any(left.values()), texts(name, splits['train'])):
            digest = hashlib.sha256(text.encode()).digest()
            yield 'train' if int.from_bytes(digest) % PART else 'val', text


def texts(name, stream):
    """Yields the documents of a stream that are not blank, without line breaks around them."""
    with one_line_errors(name):
        for rows in stream.iter(BATCH):
            if 'text' not in rows:
                raise Stop(f'{name} has no column text, only {", ".join(rows)}')
            for text in rows['text']:
                if not isinstance(text, str | None):
                    raise Stop(f'{name}: its column text holds {type(text).__name__}, not text')
                if text and text.strip():
                    yield text.strip('\n')


# -----------------------------------------------------------------------------
# options

def options(doc, **defaults):
    """Returns {name: text} of a prepare.py's options, --name=value all of them; Stop at anything else."""
    given = dict(defaults)
    for argument in arguments(doc):
        name, _, value = argument.removeprefix('--').partition('=')
        if not argument.startswith('--') or name not in defaults or not value:
            raise Stop(f'{argument}: this script takes {", ".join(f"--{name}=..." for name in defaults)}; '
                       '--help says what they do')
        given[name] = value
    return given


def whole_number(name, text, least):
    """Returns an option's whole number, which may be written 1e9; Stop if it is none, or below the least."""
    with suppress(ValueError):
        number = float(text)
        if number.is_integer() and number >= least:
            return int(number)
    raise Stop(f'--{name}={text}: allowed: a whole number from {least} on, like 10000000 or 1e9')


def refuse_own_text(folder, title):
    """Raises Stop if an input.txt lies in the folder, which then is a copy of a set's, for another text."""
    if (folder / 'input.txt').exists():
        where = short_path(folder)
        raise Stop(f'{where} has an input.txt, but this script prepares {title}; for a text of your own '
                   f'run python data/text/prepare.py {where}/input.txt --out={where}')
