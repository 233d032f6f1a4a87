"""TinyStories, short stories in simple English written by GPT-3.5 and GPT-4, read from the Hugging Face Hub:

    python data/tinystories/prepare.py [--tokens=33000000] [--tokenizer=bytes] [--source=PATH]

tokens: how many to train on; val gets a twentieth as many from the set's validation split
tokenizer: bytes, 256 ids that every text has in common; or gpt2, which needs tiktoken
source: a copy of the data, a file or folder of parquet or JSON lines with a column `text`

Needs datasets. It reads no more of the 2 GB than it uses; a run that was stopped begins anew.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).absolute().parents[2]))

from core.data.hub import Source, prepare_source
from core.errors import run_main

HERE = Path(__file__).absolute().parent
TINYSTORIES = Source('TinyStories', 'roneneldan/TinyStories', config=None,
                     revision='f54c09fd23315a6f9c86f9dc80f725de7d8f9c64', licence='CDLA-Sharing-1.0')


def main():
    prepare_source(HERE, __doc__, TINYSTORIES)


if __name__ == '__main__':
    run_main(main)
