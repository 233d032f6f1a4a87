"""Tiny Shakespeare in GPT-2's tokens, 301,966 + 36,059 of them, to fine-tune GPT-2 on. Needs tiktoken."""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).absolute().parents[2]))

from core.data.prepare import read_text, write_set
from core.data.tokenizer import gpt2_bpe
from core.errors import run_main

HERE = Path(__file__).absolute().parent


def main():
    bpe = gpt2_bpe()
    text = read_text(HERE.parent / 'shakespeare_char' / 'input.txt')
    cut = int(len(text) * 0.9)
    splits = {'train': [bpe.encode_ordinary(text[:cut])], 'val': [bpe.encode_ordinary(text[cut:])]}
    # the text's length, for bits per byte
    meta = dict(kind='gpt2', vocab_size=bpe.n_vocab, bytes=dict(val=len(text[cut:].encode())))
    write_set(HERE, splits, meta)


if __name__ == '__main__':
    run_main(main)
