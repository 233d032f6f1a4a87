"""Which layers an idea touches."""


def in_every_nth(layer, n):
    """Returns True for every n-th layer, counted from 0: n=1 is all, n=2 layers 1, 3, ..., n=0 none."""
    return n > 0 and (layer + 1) % n == 0
