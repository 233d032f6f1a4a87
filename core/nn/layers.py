"""Selects the layers that an idea applies to."""


def in_every_nth(layer, n):
    """Returns True if `layer`, counted from 0, is an n-th one: all for n=1, 1, 3, ... for n=2, none for n=0."""
    return n > 0 and (layer + 1) % n == 0
