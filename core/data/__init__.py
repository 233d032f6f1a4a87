"""Token sets: data/<set>/train.bin, val.bin, and meta.json with the ids' meaning and the files' SHA-256.

The ids are uint16, little-endian; or uint32, if meta.json has "dtype": "uint32".
"""
from core import ROOT
from core.errors import printable

DATA = ROOT / 'data'
SPLITS = ('train', 'val')


def short_path(path):
    """Returns the path relative to the repository, or the whole path if it lies elsewhere, as text."""
    return printable((path.relative_to(ROOT) if path.is_relative_to(ROOT) else path).as_posix())
