"""Folk tunes, 12,963 of them in ABC notation, 4.3 MB, one token per byte.

Fetches them with pip, checks the package by its SHA-256, and writes input.txt, train.bin, val.bin and
meta.json. readme.md says from which collections they are.
"""
import re
import sys
from pathlib import Path
from zipfile import ZipFile

sys.path.insert(0, str(Path(__file__).absolute().parents[2]))

from core.data.archives import Archive
from core.data.documents import decode, prepare_documents
from core.data.prepare import no_arguments
from core.errors import run_main

HERE = Path(__file__).absolute().parent
SHA256 = '7d7e8667d188024726b2f9d2d4b408d6ea25e4d08fe396eee548cdc4d910735f'
ARCHIVES = [
    Archive('pip', 'music21', '10.5.1', 20_118_992,
            'dc3309498c4c95cebdf8d4f20c868deb6b63bce1d929cad4f51a7ccc982987b1')]


def documents(wheel):
    """Yields the tunes of all .abc files of the package's corpus, without comments and empty lines."""
    archive = ZipFile(wheel)
    for name in archive.namelist():
        if '/corpus/' in name and name.endswith('.abc'):
            # a tune begins with its number, X:1; what stands before the first is about the collection
            for tune in re.split('^(?=X:)', decode(archive.read(name)), flags=re.MULTILINE)[1:]:
                lines = (line.rstrip() for line in tune.split('\n'))
                yield '\n'.join(line for line in lines if line and not line.startswith('%'))


def main():
    no_arguments(__doc__)
    prepare_documents(HERE, ARCHIVES, documents, SHA256)


if __name__ == '__main__':
    run_main(main)
