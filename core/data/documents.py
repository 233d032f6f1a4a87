"""Makes a set of many documents from archives, for data/code, prose, smiles, poems and abc."""
import hashlib
import re

import numpy as np
from tqdm import tqdm

from core.data import short_path
from core.data.archives import fetch
from core.data.prepare import folder_lock, prepare_bytes
from core.errors import Stop
from core.run.files import sha256, write_atomic


def prepare_documents(folder, archives, documents, digest, end='\n\n', store=None):
    """Writes input.txt, all documents(*paths of the archives) in one, and its set with one token per byte.

    digest: the SHA-256 of that text; end: as for join(); store: the folder that keeps the archives, else
    folder/archives. Stop if an archive cannot be had, and for any other text.
    """
    text, store = folder / 'input.txt', store or folder / 'archives'
    folder.mkdir(exist_ok=True)
    store.mkdir(exist_ok=True)
    with folder_lock(store):
        if not text.is_file():
            paths = [fetch(archive, store) for archive in archives]
            progress = tqdm(documents(*paths), desc='reading', unit=' documents', leave=False, disable=None)
            joined = join(progress, end.encode())
            if (found := hashlib.sha256(joined).hexdigest()) != digest:
                raise Stop(f'{short_path(text)} is not written: its SHA-256 would be {found}, not {digest}')
            write_atomic(text, joined)
        elif (found := sha256(text)) != digest:
            where = short_path(folder)
            raise Stop(f'{where}/input.txt has SHA-256 {found}, not {digest}: remove it, or for a text of your own '
                       f'run python data/text/prepare.py {where}/input.txt --tokenizer=bytes --out={where}')
    prepare_bytes([text], folder)


def join(documents, end):
    """Returns documents as one text in UTF-8: each once, in the order of their SHA-256, `end` after each.

    So every part of it is a random sample of the whole. Documents are stripped of line breaks around them.
    """
    texts, digests, whole = [], bytearray(), bytearray()
    for document in documents:
        if text := document.strip('\n').encode():
            texts.append(text)
            digests += hashlib.sha256(text).digest()
    # np.unique sorts the digests, and tells where each is first
    for n in np.unique(np.frombuffer(digests, 'S32'), return_index=True)[1]:
        whole += texts[n] + end
    return whole


def decode(raw):
    """Returns the text of a file that is UTF-8, else code page 437 or Latin-1, with \\n as its line breaks."""
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        # in Latin-1 0x80 to 0x9f are control characters, which no text has
        text = raw.decode('cp437' if re.search(b'[\x80-\x9f]', raw) else 'latin-1')
    return text.replace('\r\n', '\n').replace('\r', '\n')
