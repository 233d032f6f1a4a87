"""Selects the layers that an idea applies to."""


def in_every_nth(layer, n):
    """Returns True for every n-th layer, counted from 0: all if n=1, layers 1, 3, ... if n=2, none if n=0."""
    return n > 0 and (layer + 1) % n == 0
