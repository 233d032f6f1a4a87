"""Token sets: data/<set>/train.bin and val.bin (uint16, little-endian), and meta.json, which says what the ids mean."""
import difflib
import hashlib
import json
import os
import pickle
import runpy
import sys
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import torch

from core import ROOT
from core.errors import Stop
from core.rng import generator

DATA = ROOT / 'data'
SPLITS = ('train', 'val')
RESIDENT = CHECKED = 2 << 30    # bytes: int32 tokens up to here live on the device, files up to here are read through
AHEAD = 64                      # iterations whose batches are drawn and sent to the device together
META_LIMIT = 1 << 20            # bytes: 65,536 characters, escaped, take less


def show(path):
    """The path as one would type it in the repository, or whole when it lies elsewhere."""
    return (path.relative_to(ROOT) if path.is_relative_to(ROOT) else path).as_posix()


# ---- writing a set

@contextmanager
def locked(folder):
    """One writer at a time: all ranks of a first run find the set missing. Not every system can lock a folder."""
    handle = None
    try:
        with suppress(ImportError, OSError):
            import fcntl
            handle = os.open(folder, os.O_RDONLY)
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        if handle is not None:
            os.close(handle)


def write(path, chunks):
    """Writes arrays or bytes. When it returns, with their number of bytes, they are on the disk."""
    with open(path, 'wb') as f:
        f.writelines(chunks)
        f.flush()
        os.fsync(f.fileno())
        return f.tell()


def write_set(folder, splits, meta):
    """Writes {split: arrays of token ids} and meta. Killed anywhere, it leaves the old set, the new one, or none."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise Stop(f'{show(folder)} is not a folder') from None
    names = [*(f'{split}.bin' for split in SPLITS), 'meta.json']
    with locked(folder):
        try:
            n = {split: write(folder / f'{split}.bin.tmp', (np.asarray(ids, '<u2') for ids in splits[split])) // 2
                 for split in SPLITS}
            text = json.dumps({**meta, 'tokens': n}).encode()
            write(folder / 'meta.json.tmp', [text])
        except BaseException:                   # a full disk should not stay full of half a set
            for name in names:
                (folder / f'{name}.tmp').unlink(missing_ok=True)
            raise
        # An old meta.json must not describe new tokens, so it goes first, unless it says the same. Until the new one
        # has its name, meta.json.tmp tells find() that this set is unfinished.
        meta_json = folder / 'meta.json'
        if meta_json.exists() and meta_json.read_bytes() != text:
            meta_json.unlink()
        for name in names:
            os.replace(folder / f'{name}.tmp', folder / name)
    what = f'{meta["vocab_size"]:,} characters' if meta['kind'] == 'char' else 'GPT-2 BPE'
    print(f'prepared {show(folder)}: {n["train"]:,} + {n["val"]:,} tokens, {what}', flush=True)


def read_text(path):
    try:
        return path.read_text(encoding='utf-8-sig')     # drops the byte order mark that some editors write
    except UnicodeDecodeError as error:
        raise Stop(f'{show(path)} is not UTF-8 text: byte {error.start:,} is {error.object[error.start]:#x}') from None
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise Stop(f'{show(path)}: {error.strerror}') from None


def prepare_chars(text, folder):
    """Every character a token, ids in order of code point; the first 90 % to train on."""
    if len(text) < 2:
        raise Stop(f'{len(text)} characters of text: too few for {show(folder)}, both splits need one')
    codes = np.frombuffer(text.encode('utf-32-le'), '<u4')
    seen = np.zeros(sys.maxunicode + 1, bool)
    seen[codes] = True
    if seen.sum() > 1 << 16:
        raise Stop(f'{seen.sum():,} different characters: uint16 tokens can tell 65,536 apart')
    ids = (seen.cumsum() - 1)[codes]
    cut = int(len(text) * 0.9)
    chars = ''.join(map(chr, np.flatnonzero(seen)))
    write_set(folder, {'train': [ids[:cut]], 'val': [ids[cut:]]}, dict(kind='char', vocab_size=len(chars), chars=chars))


def gpt2_bpe():
    try:
        import tiktoken
        return tiktoken.get_encoding('gpt2')
    except ImportError:
        raise Stop('GPT-2 tokens need tiktoken: pip install tiktoken') from None
    except (OSError, ValueError) as error:      # requests' errors are OSErrors; a damaged download is a ValueError
        raise Stop(f'tiktoken could not download the GPT-2 vocabulary ({type(error).__name__}): '
                   'run this once with a network, it keeps a copy') from None


# ---- finding a set

def find(dataset):
    """The folder of a set: a name in data/ or a path. Text that is shipped with us is prepared on first use."""
    folders = {f.name: f for f in DATA.iterdir() if f.is_dir()}
    folder = folders.get(dataset, Path(os.path.abspath(dataset)))
    if not folder.is_dir():
        sets = sorted(name for name, f in folders.items() if (f / 'prepare.py').exists() or (f / 'train.bin').exists())
        close = difflib.get_close_matches(dataset, sets, n=1)
        raise Stop(f'--dataset={dataset}: neither a set in {show(DATA)} ({", ".join(sets)}) nor a folder'
                   + (f'; did you mean {close[0]}?' if close else ''))
    unfinished = (folder / 'meta.json.tmp').exists() and not (folder / 'meta.json').exists()
    if all((folder / f'{split}.bin').is_file() for split in SPLITS) and not unfinished:
        return folder
    script = folder / 'prepare.py'
    # only our own scripts run unasked: a folder from elsewhere is data, and data is never executed
    if folder.parent == DATA and script.exists() and (folder / 'input.txt').exists():
        runpy.run_path(str(script), run_name='__main__')    # in this process: another would import torch again, seconds
        return folder
    own = script.exists() and folder != DATA / 'text'
    raise Stop(f'{show(folder)} is not prepared: run python '
               + (show(script) if own else f'{show(DATA / "text/prepare.py")} FILE... --out={show(folder)}'))


class PlainUnpickler(pickle._Unpickler):
    """Numbers, strings, containers. Python's own class: C's reserves as much memory as a crafted file asks for."""

    def find_class(self, module, name):
        raise Stop(f'it wants to run code ({module}.{name})')


def read_meta(folder):
    """meta.json, or the meta.pkl of a set that nanoGPT prepared, or {}: then the tokens are GPT-2's."""
    path = next((p for p in (folder / 'meta.json', folder / 'meta.pkl') if p.is_file()), None)
    if path is None:
        return {}
    if (size := path.stat().st_size) > META_LIMIT:
        raise Stop(f'{show(path)} has {size:,} bytes, more than the {META_LIMIT:,} that any vocabulary needs')
    try:
        with open(path, 'rb') as f:
            if path.suffix == '.json':
                meta = json.load(f)
            else:
                old = PlainUnpickler(f).load()
                chars = ''.join(old['itos'][i] for i in range(len(old['itos'])))
                meta = dict(kind='char', vocab_size=old['vocab_size'], chars=chars)
        Tokenizer.from_meta(meta)
    except Stop as refusal:
        raise Stop(f'{show(path)} is refused: {refusal}') from None
    except Exception as error:                  # crafted or torn files can raise anything while they are parsed
        raise Stop(f'{show(path)} does not hold a vocabulary ({type(error).__name__})') from None
    return meta


class Tokenizer:
    """Text to token ids and back; `meta` says it all and goes into checkpoints."""

    def __init__(self, kind, vocab_size, chars=''):
        self.kind, self.vocab_size, self.chars = kind, vocab_size, chars
        self.meta = dict(kind=kind, vocab_size=vocab_size, **(dict(chars=chars) if kind == 'char' else {}))

    @classmethod
    def from_meta(cls, meta):
        """Meta comes out of files that others may have made, so every field is checked."""
        if not isinstance(meta, dict) or meta.get('kind') not in ('char', 'gpt2'):
            raise Stop('the tokenizer\'s kind must be "char" or "gpt2"')
        kind, size, chars = meta['kind'], meta.get('vocab_size'), meta.get('chars', '')
        if type(size) is not int or not 1 <= size <= 1 << 16:
            raise Stop('the tokenizer\'s vocab_size must be a whole number from 1 to 65,536')
        if kind == 'char' and not (isinstance(chars, str) and len(chars) == len(set(chars)) == size):
            raise Stop(f'the tokenizer\'s chars must be {size:,} different characters, as its vocab_size says')
        return cls(kind, size, chars if kind == 'char' else '')

    def encode(self, text):
        if self.kind == 'gpt2':
            return gpt2_bpe().encode(text, allowed_special={'<|endoftext|>'})
        ids = {c: i for i, c in enumerate(self.chars)}
        if unknown := sorted(set(text) - set(ids)):
            some = ''.join(filter(str.isprintable, self.chars))[:24]
            raise Stop(f'not among the {self.vocab_size} characters of this set: {", ".join(map(repr, unknown[:8]))}'
                       f'{" ..." if len(unknown) > 8 else ""}; it knows, for example, {some!r}')
        return [ids[c] for c in text]

    def decode(self, ids):
        if self.kind == 'gpt2':                 # 50,257 to 50,303 only pad the matrices to a round size
            return gpt2_bpe().decode([i for i in ids if i < 50257])
        return ''.join(self.chars[i] for i in ids)


# ---- reading a set

class Dataset:
    """Both splits of a set, in batches for training and in windows for evaluation."""

    def __init__(self, name, block_size, device='cpu'):
        self.folder, self.block_size, self.device = find(name), block_size, torch.device(device)
        self.names = {split: f'{show(self.folder)}/{split}.bin' for split in SPLITS}     # for messages
        meta = read_meta(self.folder)
        self.tokenizer = Tokenizer.from_meta(meta) if meta else Tokenizer('gpt2', 50304)   # nanoGPT's padded size
        self.vocab_size = self.tokenizer.vocab_size
        bins = {split: self._open(split) for split in SPLITS}
        self._check(bins, meta.get('tokens'))
        self.hash = fingerprint(self.folder)
        self.tokens = {split: ids if 4 * len(ids) > RESIDENT else torch.from_numpy(ids.astype(np.int32)).to(self.device)
                       for split, ids in bins.items()}
        self.span = torch.arange(block_size + 1, device=self.device)
        self.ahead = {}                         # (split, size, seed) -> (iteration, starts of the AHEAD batches from there on)

    def _open(self, split):
        size = (path := self.folder / f'{split}.bin').stat().st_size
        if size % 2:
            raise Stop(f'{self.names[split]} has {size:,} bytes, an odd number: it was cut short or is not uint16')
        if size < 4:
            raise Stop(f'{self.names[split]} has {size // 2} tokens: there is nothing to predict')
        return np.memmap(path, '<u2', mode='r')

    def _check(self, bins, expected):
        short = min(SPLITS, key=lambda split: len(bins[split]))
        n, T = len(bins[short]), self.block_size
        if n < T + 1:
            raise Stop(f'{self.names[short]} has {n} tokens, block_size {T} needs at least {T + 1}: '
                       f'set block_size to at most {n - 1}')
        for split, ids in bins.items():
            if isinstance(expected, dict) and expected.get(split) != len(ids):
                raise Stop(f'{self.names[split]} has {len(ids)} tokens, not as many as meta.json says: '
                           'prepare the set again')
            if ids.nbytes <= CHECKED:           # what is larger is checked batch by batch
                self._check_ids(split, ids)

    def _check_ids(self, split, ids):
        if (top := int(ids.max())) >= self.vocab_size:
            raise Stop(f'{self.names[split]} holds token {top}, but vocab_size is {self.vocab_size}')

    def _send(self, tensor):
        if self.device.type == 'cuda':          # pinned: neither side waits for the copy
            return tensor.pin_memory().to(self.device, non_blocking=True)
        return tensor.to(self.device)

    def _rows(self, split, starts):             # starts (B,) on the CPU -> (B, T+1) tokens on the device
        tokens, last = self.tokens[split], len(self.tokens[split]) - 1      # past the end the last token stands in
        if torch.is_tensor(tokens):
            return tokens[(self._send(starts)[:, None] + self.span).clamp(max=last)]
        rows = tokens[np.minimum(starts.numpy()[:, None] + np.arange(self.block_size + 1), last)]
        self._check_ids(split, rows)
        return self._send(torch.from_numpy(rows.astype(np.int32)))

    def starts(self, split, it, size, seed):
        """Where the rows of the batch begin that (seed, split, it) names on every machine."""
        return torch.randint(len(self.tokens[split]) - self.block_size, (size,), generator=generator(seed, 'batch', split, it))

    def batch(self, split, it, size, seed, rank=0, world=1):
        """X, Y (size / world, T): this rank's rows of a batch."""
        mine, tokens = slice(rank * size // world, (rank + 1) * size // world), self.tokens[split]
        if torch.is_tensor(tokens):
            rows = tokens.unfold(0, self.block_size + 1, 1)[self._starts_on_device(split, it, size, seed)[mine]]
        else:
            rows = self._rows(split, self.starts(split, it, size, seed)[mine])
        return rows[:, :-1].long(), rows[:, 1:].long()

    def _starts_on_device(self, split, it, size, seed):
        """starts(), drawn and sent AHEAD iterations at a time: one by one they would take longer than a small model's step."""
        first, name = it - it % AHEAD, (split, size, seed)
        if self.ahead.get(name, (None,))[0] != first:
            starts = torch.stack([self.starts(split, n, size, seed) for n in range(first, first + AHEAD)])
            self.ahead[name] = first, self._send(starts)
        return self.ahead[name][1][it - first]

    def count_windows(self, split):
        return (len(self.tokens[split]) - 2) // self.block_size + 1

    def windows(self, split, size, limit=0):
        """Yields X, Y (at most size, T) and the number of targets; every token but the first is a target once.

        Past the end of the split X is 0 and Y is -1, which cross entropy is told to ignore. A limit takes that many
        windows, evenly spaced and always the same."""
        total, count, T = len(self.tokens[split]) - 1, self.count_windows(split), self.block_size
        chosen = torch.arange(count)
        if 0 < limit < count:
            chosen = (2 * torch.arange(limit) + 1) * count // (2 * limit)
        for starts in (chosen * T).split(size):
            rows, left = self._rows(split, starts), total - starts          # left (B,): targets from here to the end
            past = self.span[:T] >= self._send(left)[:, None]
            yield (rows[:, :-1].long().masked_fill_(past, 0), rows[:, 1:].long().masked_fill_(past, -1),
                   int(left.clamp(max=T).sum()))


def fingerprint(folder):
    """Of the sizes and of 16 MiB of each split, spread evenly: cheap, and enough to see that data changed."""
    digest = hashlib.sha256()
    for split in SPLITS:
        with open(folder / f'{split}.bin', 'rb') as f:
            digest.update(f'{split} {(size := f.seek(0, os.SEEK_END))}\n'.encode())
            for piece in range(16):
                f.seek(piece * max(1 << 20, size // 16))
                digest.update(f.read(1 << 20))
    return digest.hexdigest()[:16]
