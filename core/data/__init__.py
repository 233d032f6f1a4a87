"""Token sets: data/<set>/train.bin and val.bin (uint16, little-endian); meta.json says what the ids mean."""
from core import ROOT

DATA = ROOT / 'data'
SPLITS = ('train', 'val')


def short_path(path):
    """Returns the path as one would type it in the repository, whole when it lies elsewhere."""
    return (path.relative_to(ROOT) if path.is_relative_to(ROOT) else path).as_posix()
