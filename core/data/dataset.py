"""Reads token sets: finds one by name, and draws batches and evaluation windows from it."""
import difflib
import hashlib
import json
import os
import runpy
import sys
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from core.data import DATA, SPLITS, short_path
from core.data.identity import is_the_same
from core.data.tokenizer import Tokenizer, read_meta
from core.errors import Stop
from core.rng import generator
from core.run.files import warn

RESIDENT = 2 << 30      # bytes: up to here, tokens live on the device as int32
CHECKED = 2 << 30       # bytes: up to here, whole files are checked for ids beyond the vocabulary
DTYPES = dict(uint16='<u2', uint32='<u4')
AHEAD = 64              # iterations whose batches are drawn and sent to the device together


class Dataset:
    """Both splits of a set, as batches to train on and windows to evaluate on.

    name: as for find_set(); block_size: T, the tokens of a row. Stop if the set cannot be used.

    A set of examples, as those of lab/probe/task.py, has in meta.json {"rows": {"length": T + 1, "judged": [...]}}:
    rows and windows begin where an example does, and only the targets at these positions count, others are -1.
    """

    def __init__(self, name, block_size, device='cpu'):
        self.folder, self.block_size, self.device = find_set(name), block_size, torch.device(device)
        self.names = {split: f'{short_path(self.folder)}/{split}.bin' for split in SPLITS} # for messages
        self.meta = meta = read_meta(self.folder)
        # without a meta the tokens are GPT-2's; like nanoGPT, pad their number to a multiple of 64
        self.tokenizer = Tokenizer.from_meta(meta) if meta else Tokenizer('gpt2', 50304)
        self.vocab_size = self.tokenizer.vocab_size
        # meta.json may come from anywhere
        self.dtype = DTYPES.get(str(meta.get('dtype', 'uint16')))
        if self.dtype is None:
            raise Stop(f"{short_path(self.folder)}/meta.json: dtype must be one of {', '.join(DTYPES)}")
        bins = {split: self._open(split) for split in SPLITS}
        self._check(bins, meta.get('tokens'))
        if meta:
            self._check_files(meta.get('files'))
        else:
            self._check_gpt2(bins['train'])
        # tokens from one start of a row to the next; a text has rows anywhere, and windows side by side
        self.stride, self.ignored, self.judged = 1, None, block_size
        if (rows := meta.get('rows')) is not None:
            self.stride, self.ignored, self.judged = self._read_rows(rows, bins)
        self.hash = fingerprint(self.folder, rows)
        # on the device if they are few enough, else read from the file batch by batch
        resident = lambda ids: torch.from_numpy(ids.astype(np.int32)).to(self.device)
        self.tokens = {split: resident(ids) if 4 * len(ids) <= RESIDENT else ids
                       for split, ids in bins.items()}
        self.span = torch.arange(block_size + 1, device=self.device)
        self.ahead = {} # (split, size, seed) -> (iteration, starts of the AHEAD batches from there on)

    # -- batches

    def batch(self, split, it, size, seed, rank=0, world=1):
        """Returns inputs, targets (size / world, T): this rank's rows of the batch of (seed, split, it)."""
        # every rank draws the whole batch and takes its part, so that `world` does not change the batch
        rank_rows, tokens = slice(rank * size // world, (rank + 1) * size // world), self.tokens[split]
        # a view of every possible row, from which one indexing takes the batch
        if torch.is_tensor(tokens):
            starts = self._starts_on_device(split, it, size, seed)[rank_rows]
            rows = tokens.unfold(0, self.block_size + 1, 1)[starts] # (size / world, T+1)
        else:
            rows = self._rows(split, self.starts(split, it, size, seed)[rank_rows])
        return rows[:, :-1].long(), self._only_judged(rows[:, 1:].long())

    def _only_judged(self, targets):
        """Returns targets (B, T), -1 where those of a set of examples do not count."""
        return targets if self.ignored is None else targets.masked_fill(self.ignored, -1)

    def starts(self, split, it, size, seed):
        """Returns the positions where a batch's rows begin, (size,) on the CPU, the same on every machine."""
        places = (len(self.tokens[split]) - self.block_size - 1) // self.stride + 1
        return self.stride * torch.randint(places, (size,), generator=generator(seed, 'batch', split, it))

    def _starts_on_device(self, split, it, size, seed):
        """Returns starts() on the device, drawn and sent for AHEAD iterations at a time.

        Each iteration alone would take longer than a small model's step.
        """
        first, name = it - it % AHEAD, (split, size, seed)
        if self.ahead.get(name, (None,))[0] != first:
            starts = torch.stack([self.starts(split, n, size, seed) for n in range(first, first + AHEAD)])
            self.ahead[name] = first, self._to_device(starts)
        return self.ahead[name][1][it - first]

    # -- windows

    @cached_property
    def bytes_per_token(self):
        """The mean length of the validation split's tokens, in bytes of UTF-8; None if meta.json does not say it."""
        if self.tokenizer.kind == 'bytes':
            return 1.0
        ids = self._open('val')
        if self.tokenizer.kind == 'char':
            lengths = [len(c.encode(errors='surrogatepass')) for c in self.tokenizer.chars]
            return float(np.bincount(ids, minlength=len(lengths)) @ lengths / len(ids))
        # GPT-2's tokens cannot be counted without its vocabulary, so whoever made them has counted their text
        text = self.meta.get('bytes')
        is_length = isinstance(text, dict) and isinstance(text.get('val'), int) and text['val'] > 0
        return text['val'] / len(ids) if is_length else None

    def count_windows(self, split):
        """Returns the number of windows of a split: ceil((tokens - 1) / T); of examples, how many there are."""
        if self.ignored is not None:
            return len(self.tokens[split]) // self.stride
        return (len(self.tokens[split]) - 2) // self.block_size + 1

    def windows(self, split, size, limit=0):
        """Yields inputs and targets, (at most size, T) each, and each row's number of targets, on the CPU.

        Every token but the first is a target once. Past the end of the split inputs are 0 and targets -1,
        which the cross entropy ignores. limit: how many windows, evenly spaced and always the same; 0: all.
        """
        total, count, T = len(self.tokens[split]) - 1, self.count_windows(split), self.block_size
        stride = T if self.ignored is None else self.stride
        chosen = torch.arange(count)
        if 0 < limit < count:
            # the middle of each of `limit` equal parts
            chosen = (2 * torch.arange(limit) + 1) * count // (2 * limit)
        for starts in (chosen * stride).split(size):
            rows, left = self._rows(split, starts), total - starts # left (B,): targets from here to the end
            past = self.span[:T] >= self._to_device(left)[:, None] # (B, T)
            x, y = rows[:, :-1].long(), rows[:, 1:].long()
            yield x.masked_fill_(past, 0), self._only_judged(y.masked_fill_(past, -1)), left.clamp(max=self.judged)

    def _rows(self, split, starts):
        """Returns the T + 1 tokens from each of starts (B,) on, (B, T + 1); past the end, the last token."""
        tokens, last = self.tokens[split], len(self.tokens[split]) - 1
        if torch.is_tensor(tokens):
            return tokens[(self._to_device(starts)[:, None] + self.span).clamp(max=last)]
        rows = tokens[np.minimum(starts.numpy()[:, None] + np.arange(self.block_size + 1), last)]
        self._check_ids(split, rows)
        return self._to_device(torch.from_numpy(rows.astype(np.int32)))

    def _to_device(self, tensor):
        # the host does not wait for a copy from pinned memory
        if self.device.type == 'cuda':
            return tensor.pin_memory().to(self.device, non_blocking=True)
        return tensor.to(self.device)

    # -- opening

    def _open(self, split):
        """Returns a split's tokens as a read-only memory map; Stop if its size is impossible."""
        path = self.folder / f'{split}.bin'
        size, width = path.stat().st_size, np.dtype(self.dtype).itemsize
        if size % width:
            odd = 'an odd number' if width == 2 else 'no multiple of 4'
            raise Stop(f'{self.names[split]} has {size:,} bytes, {odd}: it was cut short or is not uint{8 * width}')
        if size < 2 * width:
            raise Stop(f'{self.names[split]} has {size // width} tokens: there is nothing to predict')
        return np.memmap(path, self.dtype, mode='r')

    def _check(self, bins, expected):
        """Raises Stop if a split is shorter than a row, not as long as meta.json says, or has unknown ids."""
        shorter = min(SPLITS, key=lambda split: len(bins[split]))
        n, T = len(bins[shorter]), self.block_size
        if n < T + 1:
            raise Stop(f'{self.names[shorter]} has {n} tokens, block_size {T} needs at least {T + 1}: '
                       f'set block_size to at most {n - 1}')
        for split, ids in bins.items():
            if isinstance(expected, dict) and expected.get(split) != len(ids):
                raise Stop(f'{self.names[split]} has {len(ids)} tokens, not as many as meta.json says: '
                           'prepare the set again')
            # larger files are checked batch by batch
            if ids.nbytes <= CHECKED:
                self._check_ids(split, ids)

    def _read_rows(self, rows, bins):
        """Returns the length of examples, which of their targets are ignored, bool (T,), and how many are not."""
        rows, T = rows if isinstance(rows, dict) else {}, self.block_size
        length, judged = rows.get('length'), rows.get('judged')
        if not (type(length) is int and length > 1 and isinstance(judged, list) and judged
                and all(type(i) is int and 0 <= i < length - 1 for i in judged)
                and not any(len(ids) % length for ids in bins.values())):
            raise Stop(f'{short_path(self.folder)}/meta.json: rows must be the length of each example, of which the '
                       'splits hold a whole number, and positions below length - 1 of targets that are judged')
        # who wants to know what a set is asks with a context of 1
        if T not in (1, length - 1):
            raise Stop(f'block_size={T}: each example of {short_path(self.folder)} has {length} tokens: '
                       f'set block_size to {length - 1}')
        ignored = torch.ones(length - 1, dtype=torch.bool)
        ignored[judged] = False
        return length, ignored[:T].to(self.device), len(set(judged))

    def _check_files(self, files):
        """Raises Stop if a file has changed since the set was prepared; warns where meta.json does not say."""
        text = self.folder / 'input.txt'
        if files is None:
            if text.is_file() and text.stat().st_mtime > (self.folder / 'train.bin').stat().st_mtime + 1:
                warn(f'{short_path(text)} is newer than train.bin: '
                     f'if it has changed, run {how_to_prepare(self.folder)}')
            return
        files = files if isinstance(files, dict) else {}
        for split in SPLITS:
            if not is_the_same(self.folder / f'{split}.bin', files.get(f'{split}.bin')):
                raise Stop(f'{self.names[split]} has changed since it was prepared, its SHA-256 is another: '
                           f'run {how_to_prepare(self.folder)}')
        # one that was not there has been put there since
        if text.is_file() and not is_the_same(text, files.get('input.txt')):
            raise Stop(f'{short_path(text)} is not the text of train.bin: run {how_to_prepare(self.folder)}, '
                       'or remove it')

    def _check_gpt2(self, ids):
        """Raises Stop if the ids of a set without a meta.json cannot be GPT-2's."""
        ids = ids[:1 << 20]
        # real text of this length has tokens of more than one byte, which begin at 256
        if len(ids) < 1000 or (top := int(ids.max())) >= 256 and ids[1::2].any():
            return
        found = f'its ids end at {top}' if top < 256 else 'every other id is 0, as in uint32'
        form = f'"vocab_size": {top + 1}' if top < 256 else '"kind": "gpt2", "vocab_size": 50257, "dtype": "uint32"'
        raise Stop(f"{self.names['train']}: without a meta.json tokens are GPT-2's in uint16, but {found}: prepare "
                   f'the set again, or say in meta.json what it is, perhaps {{{form}}}')

    def _check_ids(self, split, ids):
        if (top := int(ids.max())) >= self.vocab_size:
            raise Stop(f'{self.names[split]} holds token {top}, but vocab_size is {self.vocab_size}')


def find_set(name):
    """Returns the folder of a set, given as a name in data/ or a path; Stop if there is none.

    Text that comes with the repository is prepared on first use.
    """
    folders = {f.name: f for f in DATA.iterdir() if f.is_dir()}
    folder = folders.get(name, Path(os.path.abspath(os.path.expanduser(name))))
    if not folder.is_dir():
        is_set = lambda f: (f / 'prepare.py').exists() or (f / 'train.bin').exists()
        sets = sorted(n for n, f in folders.items() if is_set(f))
        close = difflib.get_close_matches(name, sets, n=1)
        raise Stop(f'--dataset={name}: neither a set in {short_path(DATA)} ({", ".join(sets)}) nor a folder'
                   + (f'; did you mean {close[0]}?' if close else ''))
    # a write_set() that was killed while it renamed its files
    unfinished = (folder / 'meta.json.tmp').exists() and not (folder / 'meta.json').exists()
    if all((folder / f'{split}.bin').is_file() for split in SPLITS) and not unfinished:
        return folder
    script = folder / 'prepare.py'
    # only scripts of this repository run unasked: a folder from elsewhere is data, and data is never executed
    if folder.parent == DATA and script.exists() and (folder / 'input.txt').exists():
        # in this process, because another would take seconds to import torch; these arguments are not its own
        arguments, sys.argv = sys.argv, [str(script)]
        try:
            runpy.run_path(str(script), run_name='__main__')
        except SystemExit as end:
            # exit() would end the training with code 0
            if not end.code:
                raise Stop(f'{short_path(script)}: calls exit()') from None
            raise
        finally:
            sys.argv = arguments
        return folder
    raise Stop(f'{short_path(folder)} is not prepared: run {how_to_prepare(folder)}')


def how_to_prepare(folder):
    """Returns the command that prepares a set."""
    script = folder / 'prepare.py'
    if script.exists() and folder != DATA / 'text':
        return f'python {short_path(script)}'
    return f'python {short_path(DATA / "text/prepare.py")} FILE... --out={short_path(folder)}'


def fingerprint(folder, rows=None):
    """Returns a hash of each split's size and of 16 MiB spread evenly over it, enough to notice a change.

    rows: meta.json's, which say what of it is judged.
    """
    digest = hashlib.sha256(b'' if rows is None else json.dumps(rows, sort_keys=True).encode())
    for split in SPLITS:
        with open(folder / f'{split}.bin', 'rb') as f:
            size = f.seek(0, os.SEEK_END)
            digest.update(f'{split} {size}\n'.encode())
            for piece in range(16):
                f.seek(piece * max(1 << 20, size // 16))
                digest.update(f.read(1 << 20))
    return digest.hexdigest()[:16]
