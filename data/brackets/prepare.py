"""Nested brackets and quotes, 500,000 characters of a generator, one token per character.

Writes train.bin, val.bin and meta.json in a second. core/data/brackets.py is the generator, readme.md shows lines.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).absolute().parents[2]))

from core.data.brackets import write_lines
from core.data.prepare import no_arguments, prepare_chars
from core.errors import run_main

HERE = Path(__file__).absolute().parent
CHARACTERS = 500_000


def main():
    no_arguments(__doc__)
    prepare_chars(write_lines(CHARACTERS), HERE)


if __name__ == '__main__':
    run_main(main)
