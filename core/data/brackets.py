"""A synthetic text of nested brackets and quotes, in which whatever opens is closed: data/brackets."""
import random

KINDS = '()', '[]', '{}', '""', "''"
LETTERS = 'abcdefgh'
DEEPEST = 3             # open at once


def write_lines(characters, seed=0):
    """Returns at least so many characters of lines, the same for the same seed."""
    draw = random.Random(seed).random # noqa: S311
    lines, length = [], 0
    while length < characters:
        lines.append(write_part(draw, []) + '\n')
        length += len(lines[-1])
    return ''.join(lines)


def write_part(draw, within):
    """Returns letters, and as often as not a group with more letters behind it, again and again.

    draw() returns a number from 0 to 1; within: the kinds that are open. A quote is not within its own kind, where it
    would close it.
    """
    text = write_letters(draw)
    kinds = [kind for kind in KINDS if kind[0] != kind[1] or kind not in within]
    while len(within) < DEEPEST and draw() < 0.5:
        kind = pick(draw, kinds)
        text += kind[0] + write_part(draw, [*within, kind]) + kind[1] + write_letters(draw)
    return text


def write_letters(draw):
    """Returns one to three letters."""
    return ''.join(pick(draw, LETTERS) for _ in range(1 + int(3 * draw())))


def pick(draw, some):
    return some[int(draw() * len(some))]
