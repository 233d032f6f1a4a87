"""Chinese poems of the 7th to 13th century, 311,675 of them, 70 MB, one token per byte, three to a character.

Fetches them with npm, checks the package by its SHA-256, and writes input.txt, train.bin, val.bin and
meta.json. readme.md says whose collection it is.
"""
import json
import re
import sys
import tarfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).absolute().parents[2]))

from core.data.archives import Archive
from core.data.documents import prepare_documents
from core.data.prepare import no_arguments
from core.errors import run_main

HERE = Path(__file__).absolute().parent
SHA256 = '75c29fdcfb80f31d975ed6c61c5f6051a8cb53d3d6069e7eb8aa2e2ede8098c8'
ARCHIVES = [Archive('npm', 'chinese-poetry', '2.0.1', 85_464_664,
                    '25b549e46919c3a0569db6b68ddc96956b04a484ea4518ad2bbd4f137e307e86')]


def documents(tarball):
    """Yields the Tang and Song poems of the package, each as its title, its author and its lines."""
    with tarfile.open(tarball) as files:
        for file in files:
            if not re.search(r'/quantangshi/poet\.(tang|song)\.\d+\.json$', file.name):
                continue
            for poem in json.load(files.extractfile(file)):
                lines = [line.strip() for line in poem['paragraphs'] if line.strip()]
                if lines:
                    yield '\n'.join([poem['title'].strip(), poem['author'].strip(), *lines])


def main():
    no_arguments(__doc__)
    prepare_documents(HERE, ARCHIVES, documents, SHA256)


if __name__ == '__main__':
    run_main(main)
