"""Converts text to token ids and back, by characters, bytes or GPT-2's BPE; meta.json says which a set has.

A set with ids of another tokenizer has {"vocab_size": N}; its text is the numbers.
"""
import codecs
import pickle
import re

from core.data import short_path
from core.errors import Stop
from core.run.files import BrokenSeal, unseal

META_LIMIT = 1 << 20            # bytes: more than 65,536 escaped characters take
MOST_IDS = 1 << 20              # of a set with a tokenizer of its own
GPT2_TOKENS = 50257             # further ids, up to 50,303, only pad the matrices to a round size


class Tokenizer:
    """Converts text to token ids and back; `meta` describes it completely, and is kept in checkpoints."""

    def __init__(self, kind, vocab_size, chars=''):
        self.kind, self.vocab_size, self.chars = kind, vocab_size, chars
        # the ids that have a text; a model may have more, to pad its matrices, and none of those may be drawn
        self.known = min(vocab_size, GPT2_TOKENS) if kind == 'gpt2' else vocab_size
        self.meta = dict(kind=kind, vocab_size=vocab_size, **(dict(chars=chars) if kind == 'char' else {}))

    @classmethod
    def from_meta(cls, meta):
        """Returns the tokenizer that meta describes; Stop unless every field is sound."""
        # the file may come from anywhere
        kinds = 'char', 'bytes', 'gpt2', 'ids'
        # without characters, the ids are the user's own
        default = 'ids' if isinstance(meta, dict) and 'chars' not in meta else None
        if not isinstance(meta, dict) or meta.get('kind', default) not in kinds:
            raise Stop('the tokenizer\'s kind must be "char", "bytes", "gpt2" or "ids"')
        kind, size, chars = meta.get('kind', default), meta.get('vocab_size'), meta.get('chars', '')
        largest = MOST_IDS if kind == 'ids' else 1 << 16
        if type(size) is not int or not 1 <= size <= largest:
            raise Stop(f'the tokenizer\'s vocab_size must be a whole number from 1 to {largest:,}')
        if kind == 'bytes' and size != 256:
            raise Stop(f'the tokenizer\'s vocab_size is {size:,}; of bytes it must be 256')
        if kind == 'char' and not (isinstance(chars, str) and len(chars) == len(set(chars)) == size):
            raise Stop(f'the tokenizer\'s chars must be {size:,} different characters, '
                       'as its vocab_size says')
        return cls(kind, size, chars if kind == 'char' else '')

    def encode(self, text):
        """Returns the list of token ids; Stop if the set lacks a character."""
        # bytes of a command line that are not UTF-8 come as surrogates, and become what they were
        if self.kind == 'bytes':
            return list(text.encode(errors='surrogateescape'))
        if self.kind == 'gpt2':
            return gpt2_bpe().encode(text, allowed_special={'<|endoftext|>'})
        if self.kind == 'ids':
            numbers = [int(word) if re.fullmatch('[0-9]{1,9}', word) else -1 for word in text.split()]
            if not all(0 <= i < self.vocab_size for i in numbers):
                raise Stop(f'this set has no characters, only ids: numbers from 0 to {self.vocab_size - 1}')
            return numbers
        ids = {c: i for i, c in enumerate(self.chars)}
        if unknown := sorted(set(text) - set(ids)):
            some = ''.join(filter(str.isprintable, self.chars))[:24]
            listed = ', '.join(map(repr, unknown[:8])) + (' ...' if len(unknown) > 8 else '')
            raise Stop(f'not among the {self.vocab_size} characters of this set: {listed}; '
                       f'it knows, for example, {some!r}')
        return [ids[c] for c in text]

    def start(self):
        """Returns the ids of a line break, to begin a text with; [0] in a set that has none."""
        return self.encode('\n') if self.kind in ('bytes', 'gpt2') or '\n' in self.chars else [0]

    def decode(self, ids):
        """Returns the text of a list of token ids."""
        return self.decoder()(ids)

    def decoder(self):
        """Returns a function like decode() for a text that comes in pieces.

        Bytes and GPT-2's tokens may end within a character, which then comes whole with the next piece, or not
        at all after the last: nobody knows what it would have been. Bytes that are not UTF-8 are U+FFFD.
        """
        if self.kind == 'char':
            return lambda ids: ''.join(self.chars[i] for i in ids)
        if self.kind == 'ids':
            return lambda ids: ''.join(f'{i} ' for i in ids)
        utf8 = codecs.getincrementaldecoder('utf-8')('replace')
        # further ids of a padded vocabulary have no text
        if self.kind == 'bytes':
            return lambda ids: utf8.decode(bytes(i for i in ids if i < 256))
        bpe = gpt2_bpe()
        return lambda ids: utf8.decode(bpe.decode_bytes([i for i in ids if i < GPT2_TOKENS]))


def gpt2_bpe():
    """Returns tiktoken's GPT-2 encoding, which is downloaded once; Stop if it cannot be had."""
    try:
        import tiktoken
        return tiktoken.get_encoding('gpt2')
    except ImportError:
        raise Stop('GPT-2 tokens need tiktoken: pip install tiktoken') from None
    except (OSError, ValueError) as error:
        # requests' errors are OSErrors; a damaged download is a ValueError
        raise Stop(f'tiktoken could not download the GPT-2 vocabulary ({type(error).__name__}): '
                   'run this once with a network, it keeps a copy') from None


def read_meta(folder):
    """Returns the content of meta.json or nanoGPT's meta.pkl, {} without either; Stop if it is not valid."""
    path = next((p for p in (folder / 'meta.json', folder / 'meta.pkl') if p.is_file()), None)
    if path is None:
        return {}
    if (size := path.stat().st_size) > META_LIMIT:
        raise Stop(f'{short_path(path)} has {size:,} bytes, '
                   f'more than the {META_LIMIT:,} that any vocabulary needs')
    try:
        with open(path, 'rb') as f:
            meta = read_sealed(f.read()) if path.suffix == '.json' else read_pickle(f)
        Tokenizer.from_meta(meta)
    except Stop as refusal:
        raise Stop(f'{short_path(path)} is refused: {refusal}') from None
    # parsing a damaged or malicious file can raise anything
    except Exception as error:
        raise Stop(f'{short_path(path)} does not hold a vocabulary ({type(error).__name__})') from None
    return meta


def read_sealed(raw):
    """Returns meta from the bytes of meta.json; Stop if they are not as they were sealed. Older ones have no seal."""
    try:
        return unseal(raw, required=False)
    except BrokenSeal:
        raise Stop('it does not match its SHA-256; prepare the set again') from None


def read_pickle(file):
    """Returns meta from nanoGPT's meta.pkl: vocab_size and, of characters, itos {id: character} and stoi."""
    meta = PlainUnpickler(file).load()
    if meta.keys() == {'vocab_size'}:
        return meta
    chars = ''.join(meta['itos'][i] for i in range(len(meta['itos'])))
    return dict(kind='char', vocab_size=meta['vocab_size'], chars=chars)


class PlainUnpickler(pickle._Unpickler):
    """Reads only numbers, strings and containers, so that no pickle can run code.

    It extends the unpickler in Python: the one in C reserves as much memory as a malicious file asks for.
    """

    def find_class(self, module, name):
        raise Stop(f'it wants to run code ({module}.{name})')
