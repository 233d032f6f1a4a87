"""Tiny Shakespeare, a character a token: writes train.bin, val.bin and meta.json beside this file."""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).absolute().parents[2]))

from core.data.dataset import prepare_chars, read_text
from core.errors import run

HERE = Path(__file__).absolute().parent

if __name__ == '__main__':
    run(lambda: prepare_chars(read_text(HERE / 'input.txt'), HERE))
