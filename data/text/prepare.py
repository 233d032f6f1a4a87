"""Your own text, one token per character:

    python data/text/prepare.py FILE... [--out=data/NAME]

The files must be UTF-8, and are joined in the order given. Train with --dataset=text, or --dataset=NAME.
"""
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).absolute().parents[2]))

from core.data.prepare import prepare_chars, read_text
from core.errors import Stop, run_main

HERE = Path(__file__).absolute().parent


def main():
    files, out = [], HERE
    for argument in sys.argv[1:]:
        if argument.startswith('--out=') and argument != '--out=':
            out = Path(os.path.abspath(argument.removeprefix('--out=')))
        elif argument.startswith('-'):
            raise Stop(f'{argument} is no option of this script; the only one is --out=FOLDER')
        else:
            files.append(Path(argument))
    if not files:
        raise Stop('which text? python data/text/prepare.py FILE... [--out=data/NAME]')
    prepare_chars(''.join(map(read_text, files)), out)


if __name__ == '__main__':
    run_main(main)
