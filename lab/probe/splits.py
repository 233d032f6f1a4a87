"""Ways to split the tokens of a text: by class of character, position, confidence and repetition."""
from dataclasses import dataclass

import numpy as np

from core.data.tokenizer import GPT2_TOKENS, gpt2_bpe

VOWELS = frozenset('aeiouAEIOU')
CLASSES = ('speaker: first letter', 'speaker: the rest', 'first letter of a line', 'first letter of a word',
           'vowel in a word', 'consonant in a word', 'other letter in a word', 'digit', 'space', 'line break',
           'apostrophe or hyphen', 'end of a sentence', 'other punctuation', 'beyond ASCII')
WORD_CLASSES = ('word after a space', 'word at the start of a line', 'continued word', 'number', 'space', 'line break',
                'punctuation', 'beyond ASCII')
FIFTHS = 5              # groups by confidence, of equally many targets
REPEATS = 'context is new', 'context seen, then this token', 'context seen, then other tokens'


@dataclass
class Split:
    """A partition of targets."""
    title: str
    names: tuple
    index: np.ndarray           # (windows, T): of each target's name; -1 for no target

    def parts(self, values):
        """Returns the sum of values (windows, T) in each part over the number of all targets, (names,).

        The parts sum to the mean of the values.
        """
        at = self.index >= 0
        return np.bincount(self.index[at], values[at], len(self.names)) / at.sum()

    def means(self, values):
        """Returns the mean of values (windows, T) in each part, (names,); NaN for an empty one."""
        with np.errstate(invalid='ignore', divide='ignore'):
            return self.parts(values) / self.shares

    @property
    def shares(self):
        """The share of targets in each part, (names,)."""
        return self.parts(np.ones(self.index.shape))

    def present(self):
        """Returns the Split without parts that have no target."""
        shares = self.shares
        at = np.flatnonzero(shares)
        new = np.full(len(self.names) + 1, -1)
        new[at] = np.arange(len(at))
        return Split(self.title, tuple(self.names[i] for i in at), new[self.index])


# -----------------------------------------------------------------------------
# classes

def by_class(tokens, tokenizer):
    """Returns the Split of tokens (windows, T + 1) by what kind of character, or of GPT-2's tokens, a target is."""
    if tokenizer.kind == 'ids':
        index, names = np.zeros_like(tokens[:, 1:]), ('all ids',)
    elif tokenizer.kind == 'gpt2':
        index, names = word_classes(tokens, token_texts(tokenizer)), WORD_CLASSES
    else:
        index, names = character_classes(tokens, token_texts(tokenizer)), CLASSES
    return Split('class', names, np.where(tokens[:, 1:] < 0, -1, index)).present()


def token_texts(tokenizer):
    """Returns the text of each id; bytes of a longer character are U+FFFD."""
    if tokenizer.kind == 'gpt2':
        bpe = gpt2_bpe()
        known = [bpe.decode_single_token_bytes(i).decode(errors='replace') for i in range(GPT2_TOKENS)]
        # ids that only pad the vocabulary
        return known + [''] * (tokenizer.vocab_size - len(known))
    if tokenizer.kind == 'char':
        return list(tokenizer.chars)
    if tokenizer.kind == 'bytes':
        return [chr(i) if i < 128 else '\ufffd' for i in range(tokenizer.vocab_size)]
    return [f'{i} ' for i in range(tokenizer.vocab_size)]


def character_classes(tokens, texts):
    """Returns an index into CLASSES for each target of tokens (windows, T + 1), whose ids have these texts."""
    n = {name: i for i, name in enumerate(CLASSES)}
    alone = np.array([n[class_alone(c)] for c in texts])
    letter = np.array([c.isalpha() for c in texts])
    # an apostrophe or hyphen goes on with a word
    joins = np.array([c in "'’-" for c in texts])
    line_break = np.array([c == '\n' for c in texts])
    last, this = tokens[:, :-1], tokens[:, 1:]
    found = alone[this]
    starts_line = letter[this] & line_break[last]
    found[letter[this] & ~letter[last] & ~joins[last]] = n['first letter of a word']
    found[starts_line] = n['first letter of a line']
    for row, ids in zip(found, tokens):
        for start, end in speaker_lines(''.join(texts[i] if i >= 0 else '\n' for i in ids)):
            row[start - 1] = n['speaker: first letter']
            row[start:end - 1] = n['speaker: the rest']
    return found


def class_alone(c):
    """Returns the class of a character whose neighbours do not matter."""
    if c == '\n':
        return 'line break'
    if c.isspace():
        return 'space'
    if c.isdigit():
        return 'digit'
    if c.isalpha():
        return ('vowel' if c in VOWELS else 'consonant' if c.isascii() else 'other letter') + ' in a word'
    if not c.isascii():
        return 'apostrophe or hyphen' if c == '’' else 'beyond ASCII'
    return ('end of a sentence' if c in '.!?' else 'apostrophe or hyphen' if c in "'-" else 'other punctuation')


def speaker_lines(text):
    """Yields (start, end) of each line that follows an empty one and ends with a colon, the colon included."""
    at = text.find('\n\n')
    while at >= 0:
        start, end = at + 2, text.find('\n', at + 2)
        if text[end - 1:end] == ':' and end > start:
            yield start, end
        at = text.find('\n\n', at + 1)


def word_classes(tokens, texts):
    """Returns an index into WORD_CLASSES for each target of tokens (windows, T + 1), whose ids have these texts."""
    n = {name: i for i, name in enumerate(WORD_CLASSES)}
    last, this = tokens[:, :-1], tokens[:, 1:]
    found = np.array([n[word_class_alone(text)] for text in texts])[this]
    after_break = np.array([text.endswith('\n') for text in texts])[last]
    found[(found == n['continued word']) & after_break] = n['word at the start of a line']
    return found


def word_class_alone(text):
    """Returns the class of one of GPT-2's tokens whose neighbours do not matter, by its first character."""
    c = text.removeprefix(' ')[:1]
    if '\n' in text:
        return 'line break'
    if not text.strip():
        return 'space'
    if c.isdigit():
        return 'number'
    if c.isalpha():
        return 'word after a space' if text[0] == ' ' else 'continued word'
    return 'punctuation' if c.isascii() else 'beyond ASCII'


# -----------------------------------------------------------------------------
# positions, confidence, repetition

def by_position(tokens):
    """Returns the Split of tokens (windows, T + 1) by the target's place in the context, in octaves."""
    T = tokens.shape[1] - 1
    octave = np.floor(np.log2(np.arange(T) + 1)).astype(int)
    ends = [(2 ** k, min(2 ** (k + 1) - 1, T)) for k in range(octave[-1] + 1)]
    names = tuple(f'{a}' if a == b else f'{a} to {b}' for a, b in ends)
    return Split('position', names, np.where(tokens[:, 1:] < 0, -1, octave))


def by_confidence(sure, title='confidence'):
    """Returns the Split into fifths by the probability of the likeliest token, (windows, T), NaN for no target."""
    known = sure[np.isfinite(sure)]
    ends = np.unique(np.quantile(known, np.arange(1, FIFTHS) / FIFTHS))
    edges = [f'{100 * x:.1f}' for x in (known.min(), *ends, known.max())]
    names = tuple(f'{a} to {b} %' for a, b in zip(edges, edges[1:]))
    index = np.searchsorted(ends, np.nan_to_num(sure), side='right')
    return Split(title, names, np.where(np.isnan(sure), -1, index)).present()


def by_repetition(tokens, n):
    """Returns the Split of tokens (windows, T + 1) by what followed, earlier in the window, after the same n tokens."""
    N, T = len(tokens), tokens.shape[1] - 1
    index = np.zeros((N, T), int)
    for row, ids in zip(index, tokens):
        # contexts[i]: the n tokens before target n + i, an integer for each different one
        grams = np.lib.stride_tricks.sliding_window_view(ids, n)[:-1]
        _, contexts = np.unique(grams, axis=0, return_inverse=True)
        then = {}
        for i, (context, target) in enumerate(zip(contexts.ravel().tolist(), ids[n:].tolist())):
            seen = then.setdefault(context, set())
            row[n - 1 + i] = 0 if not seen else 1 if target in seen else 2
            seen.add(target)
    return Split('repetition', REPEATS, np.where(tokens[:, 1:] < 0, -1, index)).present()
