"""OpenWebText in GPT-2's tokens, about 9 billion to train on.

Source: https://huggingface.co/datasets/Skylion007/openwebtext
Needs datasets, tiktoken and some 100 GB of disk, 18 of them here, the rest in the cache of datasets.
"""
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).absolute().parents[2]))

import numpy as np

from core.data.hub import END, load, refuse_own_text
from core.data.prepare import no_arguments, write_set
from core.data.tokenizer import gpt2_bpe
from core.errors import run_main

HERE = Path(__file__).absolute().parent

# The commit that holds all 8,013,769 documents as parquet. Earlier ones need a dataset script, which
# `datasets` no longer runs, and their automatic refs/convert/parquet stops at the first 5 GB.
REVISION = '79d93d786212f7344586290adb811d4ae6a1762c'
PROCESSES = max(1, (os.cpu_count() or 1) // 2)


def shards(documents, size=10_000):
    """Yields arrays of token ids, `size` documents each, since nine billion tokens do not fit in memory."""
    for start in range(0, len(documents), size):
        yield np.concatenate(documents[start:start + size]['ids'])


def main():
    no_arguments(__doc__)
    refuse_own_text(HERE, 'OpenWebText')
    bpe = gpt2_bpe()

    def tokenize(row):
        # uint16, because int64 would take four times the space in the cache
        ids = np.array([*bpe.encode_ordinary(row['text']), END], np.uint16)
        return {'ids': ids, 'bytes': len(row['text'].encode())}

    documents = load('OpenWebText', 'Skylion007/openwebtext', revision=REVISION, split='train', num_proc=PROCESSES)
    splits = documents.train_test_split(test_size=0.0005, seed=2357, shuffle=True)
    splits = splits.map(tokenize, remove_columns=['text'], num_proc=PROCESSES, desc='tokenizing')
    splits = splits.with_format('numpy')
    # the text's length, for bits per byte
    meta = dict(kind='gpt2', vocab_size=bpe.n_vocab, bytes=dict(val=int(sum(splits['test']['bytes']))))
    write_set(HERE, {'train': shards(splits['train']), 'val': shards(splits['test'])}, meta)


if __name__ == '__main__':
    run_main(main)
