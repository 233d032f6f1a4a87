"""FineWeb-Edu, educational pages of the web, of its sample of 10 billion tokens, read from the Hugging Face Hub:

    python data/fineweb_edu/prepare.py [--tokens=33000000] [--tokenizer=bytes] [--source=PATH]

tokens: how many to train on; val gets a twentieth as many from a twentieth of the documents
tokenizer: bytes, 256 ids that every text has in common; or gpt2, which needs tiktoken
source: a copy of the data, a file or folder of parquet or JSON lines with a column `text`

Needs datasets. It reads little more of the 28 GB than it uses; a run that was stopped begins anew.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).absolute().parents[2]))

from core.data.hub import Source, prepare_source
from core.errors import run_main

HERE = Path(__file__).absolute().parent
FINEWEB_EDU = Source('FineWeb-Edu', 'HuggingFaceFW/fineweb-edu', config='sample-10BT',
                     revision='87f09149ef4734204d70ed1d046ddc9ca3f2b8f9', licence='ODC-By-1.0')


def main():
    prepare_source(HERE, __doc__, FINEWEB_EDU)


if __name__ == '__main__':
    run_main(main)
