"""Token sets: data/<set>/train.bin, val.bin (uint16, little-endian), and meta.json with the ids' meaning."""
from core import ROOT

DATA = ROOT / 'data'
SPLITS = ('train', 'val')


def short_path(path):
    """Returns the path relative to the repository, or the whole path if it lies elsewhere, as text."""
    return (path.relative_to(ROOT) if path.is_relative_to(ROOT) else path).as_posix()
