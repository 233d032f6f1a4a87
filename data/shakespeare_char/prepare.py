"""Tiny Shakespeare, one token per character: writes train.bin, val.bin and meta.json beside this file.

In a copy of this folder it prepares the copy's own input.txt.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).absolute().parents[2]))

from core.data.prepare import no_arguments, prepare_files
from core.errors import run_main

HERE = Path(__file__).absolute().parent


def main():
    no_arguments(__doc__)
    prepare_files([HERE / 'input.txt'], HERE)


if __name__ == '__main__':
    run_main(main)
