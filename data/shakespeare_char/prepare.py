"""Tiny Shakespeare, one token per character: writes train.bin, val.bin and meta.json beside this file."""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).absolute().parents[2]))

from core.data.prepare import prepare_chars, read_text
from core.errors import run_main

HERE = Path(__file__).absolute().parent

if __name__ == '__main__':
    run_main(lambda: prepare_chars(read_text(HERE / 'input.txt'), HERE))
