"""Molecules, 1,936,962 of them in SMILES notation, one a line, 71 MB, one token per byte.

Fetches them with pip, checks the package by its SHA-256, and writes input.txt, train.bin, val.bin and
meta.json. readme.md says whose they are.
"""
import gzip
import sys
from pathlib import Path
from zipfile import ZipFile

sys.path.insert(0, str(Path(__file__).absolute().parents[2]))

from core.data.archives import Archive
from core.data.documents import prepare_documents
from core.data.prepare import no_arguments
from core.errors import run_main

HERE = Path(__file__).absolute().parent
SHA256 = '4180ef251a00a41c2bd071ea75767e4f8a36a56db20483cd284cc6ec8841a298'
ARCHIVES = [
    Archive('pip', 'molsets', '0.3.1', 51_584_291,
            '7f4450e3ebecebe79c3a2a55950c93daddee071120daf64a163d03481e811d34')]


def documents(wheel):
    """Yields the molecules of all three splits of the package, which are no splits here."""
    archive = ZipFile(wheel)
    for split in 'train', 'test', 'test_scaffolds':
        # a table with the columns SMILES,SPLIT
        with gzip.open(archive.open(f'moses/dataset/data/{split}.csv.gz'), 'rt') as rows:
            next(rows)
            for row in rows:
                yield row.partition(',')[0]


def main():
    no_arguments(__doc__)
    prepare_documents(HERE, ARCHIVES, documents, SHA256, end='\n')


if __name__ == '__main__':
    run_main(main)
