"""Your own text, one token per character:

    python data/text/prepare.py FILE... [--out=data/NAME]

The files must be UTF-8, and are joined in the order given; without one it is the input.txt beside this file.
Train with --dataset=text, or --dataset=NAME.
"""
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).absolute().parents[2]))

from core.data.prepare import arguments, prepare_files
from core.errors import Stop, run_main

HERE = Path(__file__).absolute().parent


def main():
    files, out = [], HERE
    for argument in arguments(__doc__):
        if argument.startswith('--out=') and argument != '--out=':
            out = Path(os.path.abspath(os.path.expanduser(argument.removeprefix('--out='))))
        elif argument.startswith('-'):
            raise Stop(f'{argument} is no option of this script; the only one is --out=FOLDER')
        else:
            files.append(Path(argument))
    if not files and (HERE / 'input.txt').exists():
        files = [HERE / 'input.txt']
    if not files:
        raise Stop('which text? python data/text/prepare.py FILE... [--out=data/NAME]')
    prepare_files(files, out)


if __name__ == '__main__':
    run_main(main)
