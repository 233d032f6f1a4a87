"""Tiny Shakespeare in GPT-2's tokens, 301,966 + 36,059 of them, to fine-tune GPT-2 on. Needs tiktoken.

An input.txt beside this file is prepared in its place, and in a copy of this folder nothing else.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).absolute().parents[2]))

from core.data.prepare import no_arguments, read_text, write_set
from core.data.tokenizer import gpt2_bpe
from core.errors import run_main

HERE = Path(__file__).absolute().parent


def main():
    no_arguments(__doc__)
    bpe, own = gpt2_bpe(), HERE / 'input.txt'
    # a copy of this folder is another set
    is_shakespeare = HERE.name == 'shakespeare' and not own.exists()
    text = read_text(HERE.parent / 'shakespeare_char' / 'input.txt' if is_shakespeare else own)
    cut = int(len(text) * 0.9)
    splits = {'train': [bpe.encode_ordinary(text[:cut])], 'val': [bpe.encode_ordinary(text[cut:])]}
    # the text's length, for bits per byte
    meta = dict(kind='gpt2', vocab_size=bpe.n_vocab, bytes=dict(val=len(text[cut:].encode())))
    write_set(HERE, splits, meta)


if __name__ == '__main__':
    run_main(main)
