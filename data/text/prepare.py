"""Your own text, one token per character, or per byte:

    python data/text/prepare.py FILE... [--tokenizer=bytes] [--out=data/NAME]

Characters come from UTF-8 files; bytes from any file, and are 256 ids whatever it holds. The files are joined in
the order given; without one it is the input.txt beside this file.
Train with --dataset=text, or --dataset=NAME.
"""
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).absolute().parents[2]))

from core.data.prepare import arguments, prepare_bytes, prepare_files
from core.errors import Stop, run_main

HERE = Path(__file__).absolute().parent
TOKENIZERS = dict(char=prepare_files, bytes=prepare_bytes)


def main():
    files, out, tokenizer = [], HERE, 'char'
    for argument in arguments(__doc__):
        if argument.startswith('--out=') and argument != '--out=':
            out = Path(os.path.abspath(os.path.expanduser(argument.removeprefix('--out='))))
        elif argument.startswith('--tokenizer='):
            tokenizer = argument.removeprefix('--tokenizer=')
        elif argument.startswith('-'):
            raise Stop(f'{argument} is no option of this script, which has --out=FOLDER and --tokenizer=char or bytes')
        else:
            files.append(Path(argument))
    if tokenizer not in TOKENIZERS:
        raise Stop(f"--tokenizer={tokenizer}: allowed: {', '.join(TOKENIZERS)}")
    if not files and (HERE / 'input.txt').exists():
        files = [HERE / 'input.txt']
    if not files:
        raise Stop('which text? python data/text/prepare.py FILE... [--tokenizer=bytes] [--out=data/NAME]')
    TOKENIZERS[tokenizer](files, out)


if __name__ == '__main__':
    run_main(main)
