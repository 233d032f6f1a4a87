"""Python source of five packages, 49 MB, one token per byte.

Fetches them with pip, checks each by its SHA-256, and writes input.txt, train.bin, val.bin and meta.json.
readme.md says which they are.
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
SHA256 = 'f0352c7fc14c925e763ca73781edce993ed6bd991e8282873cdfb84b787fef5b'
ARCHIVES = [
    Archive('pip', 'django', '5.1.4', 8_276_471,
            '236e023f021f5ce7dee5779de7b286565fdea5f4ab86bae5338e3f7b69896cf0'),
    Archive('pip', 'jax', '0.4.35', 2_158_621,
            'fa99e909a31424abfec750019a6dd36f6acc18a6e7d40e2c0086b932cc351325'),
    Archive('pip', 'networkx', '3.4.2', 1_723_263,
            'df5d4365b724cf81b8c6a7312509d0c22386097011ad1abe274afd5e9d3bbc5f'),
    Archive('pip', 'sympy', '1.13.3', 6_189_483,
            '54612cf55a62755ee71824ce692986f23c88ffa77207b30c1368eda4a7060f73'),
    Archive('pip', 'twisted', '24.11.0', 3_188_667,
            'fe403076c71f04d5d2d789a755b687c5637ec3bcd3b2b8252d76f2ba65f54261')]


def documents(*wheels):
    """Yields the Python files of wheels, without the comment at their head, which as a rule is a licence.

    Only those that people write and read: of 200 to 200,000 bytes, all ASCII, no line longer than 300.
    """
    for wheel in map(ZipFile, wheels):
        for entry in wheel.infolist():
            if not entry.filename.endswith('.py') or not 200 <= entry.file_size <= 200_000:
                continue
            source = decode(wheel.read(entry))
            lines = source.split('\n')
            if source.isascii() and max(map(len, lines)) <= 300:
                yield re.sub(r'\A(#.*\n|\n)+', '', '\n'.join(line.expandtabs().rstrip() for line in lines))


def main():
    no_arguments(__doc__)
    prepare_documents(HERE, ARCHIVES, documents, SHA256)


if __name__ == '__main__':
    run_main(main)
