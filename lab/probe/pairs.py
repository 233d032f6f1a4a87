"""Pairs of prompts that differ in what the answer depends on: given, or many of a task."""
import random
import re
from collections import Counter, defaultdict
from itertools import permutations
from typing import NamedTuple

import torch

from core.data.brackets import LETTERS
from core.errors import Stop

CONTEXT = 12            # characters of text before a speaker's name
KNOWN = 3               # letters of the name that are given
LEAST = 20              # speeches of a name that a model can have learned
SURE = 0.9              # of those names that begin alike must go on alike
READ = 4_000_000        # tokens in which speakers are looked for
FEW = ('this set has too few speakers, whose names stand on lines of their own after an empty one and end in a colon; '
       'shakespeare_char has')


class Pairs(NamedTuple):
    """Prompts in pairs; a model answers the first token to clean ones and the second to corrupt ones."""
    clean: torch.Tensor         # (N, T)
    corrupt: torch.Tensor       # (N, T)
    answers: torch.Tensor       # (N, 2), tokens
    labels: list                # of the T positions
    what: str                   # what it is about, a sentence


def given_pair(runs, clean, corrupt, answers=''):
    """Returns the Pairs, one, of two texts and of 'a,b', by default the first run's most likely next tokens."""
    run, *_ = runs
    ids = [run.encode(text) for text in (clean, corrupt)]
    if ids[0].size(1) != ids[1].size(1):
        raise Stop(f'clean has {ids[0].size(1)} tokens and corrupt has {ids[1].size(1)}: they must be equally long, so '
                   'that each position has its like')
    if torch.equal(*ids):
        raise Stop('clean and corrupt are the same text')
    if answers:
        # an answer may be a comma
        first, _, second = answers[1:].partition(',')
        both = [one_token(run, 'answers', text) for text in (answers[0] + first, second)]
    else:
        both = [int(run.logits(x)[0, -1].argmax()) for x in ids]
    names = [show(run, token) for token in both]
    if both[0] == both[1]:
        raise Stop(f'answers={",".join(names)}: must be two; '
                   + ('name them' if answers else 'the model goes on alike after clean and corrupt: name two'))
    what = f'Clean {clean!r} goes on with {names[0]}, corrupt {corrupt!r} with {names[1]}.'
    return Pairs(*ids, torch.tensor([both], device=ids[0].device), labels_of(run, *ids), what)


def pairs_of_task(run, task, n, seed=0):
    """Returns the Pairs, n, of a task's name. Stop if the run's tokens cannot write it."""
    texts, what, names = TASKS[task](run, n, random.Random(seed)) # noqa: S311
    try:
        clean, corrupt = ([run.tokenizer.encode(text) for text in some] for some in list(zip(*texts))[:2])
        answers = [[one_token(run, f'task={task}', answer) for answer in both] for _, _, *both in texts]
    except Stop as refusal:
        raise Stop(f'task={task}: {str(refusal).removeprefix(f"task={task}: ")}') from None
    # of most pairs each position has its like
    T = Counter(map(len, clean)).most_common(1)[0][0]
    whole = [i for i in range(len(texts)) if len(clean[i]) == len(corrupt[i]) == T]
    if T > run.model.config.block_size:
        raise Stop(f'task={task}: has {T} tokens, more than the block_size of {run.folder}')
    device = run.machine.device
    clean, corrupt, answers = (torch.tensor([some[i] for i in whole], device=device)
                               for some in (clean, corrupt, answers))
    labels = labels_of(run, clean, corrupt)
    for position, name in names.items():
        labels[position] = name
    return Pairs(clean, corrupt, answers, labels, what)


def one_token(run, name, text):
    """Returns the token of a text; Stop, with the name of what has it, if it is not exactly one."""
    ids = run.tokenizer.encode(text)
    if len(ids) != 1:
        raise Stop(f'{name}: {text!r} is {len(ids)} tokens; allowed: one each')
    return ids[0]


def labels_of(run, clean, corrupt):
    """Returns a label for each position: its token, 'a/b' or in many pairs ? where they differ, · for others."""
    labels = []
    for a, b in zip(clean.T.tolist(), corrupt.T.tolist()):
        if len(set(a)) == len(set(b)) == 1:
            labels.append(show(run, a[0]) if a == b else f'{show(run, a[0])}/{show(run, b[0])}')
        else:
            labels.append('?' if all(x != y for x, y in zip(a, b)) else '·')
    return labels


def show(run, token):
    """Returns a token's text, with marks for spaces and line breaks."""
    return run.tokenizer.decode([token]).replace('\n', '↵').replace(' ', '␣')


# -----------------------------------------------------------------------------
# tasks: f(run, n, draw) returns ([(clean, corrupt, answer, other answer)], what it is about, {position: name})

def text_of(run, task):
    """Returns the text of both splits. Stop if its tokens are not characters."""
    if run.tokenizer.kind not in ('char', 'bytes'):
        raise Stop(f'task={task}: needs a set whose tokens are characters or bytes')
    return (run.tokenizer.decode(run.data.tokens[split][:READ].tolist()) for split in ('train', 'val'))


def contexts(run, task, val, known):
    """Returns texts of the validation split up to where a speaker's name begins, with room for some of its letters."""
    size = min(CONTEXT, run.model.config.block_size - known)
    found = [val[m.start() - size:m.start()] for m in re.finditer(r'(?<=\n\n)[A-Z]', val) if m.start() >= size]
    if not found or size < 2:
        raise Stop(f'task={task}: {FEW}')
    return found


def speakers(run, n, draw):
    """After an empty line a speaker's name goes on in capitals; after a line break alone a word in small ones."""
    train, val = text_of(run, 'speakers')
    second = [defaultdict(Counter), defaultdict(Counter)]
    for letters, form in zip(second, (r'\n\n([A-Z])([A-Z])', r'[^\n]\n([A-Z])([a-z])')):
        for first, following in re.findall(form, train):
            letters[first][following] += 1
    names, words = second
    both = sorted(c for c in names if min(names[c].total(), words[c].total()) >= LEAST)
    if not both:
        raise Stop(f'task=speakers: {FEW}')
    texts, before = [], contexts(run, 'speakers', val, 1)
    for _ in range(n):
        context, c = draw.choice(before), draw.choice(both)
        answers = [some[c].most_common(1)[0][0] for some in second]
        texts.append((context + c, context[:-2] + ',\n' + c, *answers))
    a, b, first, other = texts[0]
    return texts, (f'A speaker\'s name after an empty line, as in {a[-3:]!r} and then {first!r}; corrupt prompts have '
                   f'a comma and a new line of the same speech, as in {b[-3:]!r} and then {other!r}.'), {-1: 'first'}


def names(run, n, draw):
    """The next letter of a speaker's name after a line break; the letter before it is the same in both."""
    train, val = text_of(run, 'names')
    following = defaultdict(Counter)
    for name in re.findall(r'\n\n([A-Z][A-Za-z ]{2,30}:)\n', train):
        following[name[:KNOWN]][name[KNOWN]] += 1
    sure = {}
    for start, letters in following.items():
        letter, count = letters.most_common(1)[0]
        if letters.total() >= LEAST and count >= SURE * letters.total():
            sure[start] = letter
    both = [(a, b) for a, b in permutations(sorted(sure), 2) if a[-1] == b[-1] and sure[a] != sure[b]]
    if not both:
        raise Stop(f'task=names: {FEW}')
    texts, before = [], contexts(run, 'names', val, KNOWN)
    for _ in range(n):
        (a, b), context = draw.choice(both), draw.choice(before)
        texts.append((context + a, context + b, sure[a], sure[b]))
    a, b, first, second = texts[0]
    return texts, ('The next letter of a speaker\'s name, '
                   f'as in {a[-KNOWN:]!r} and then {first!r}; corrupt prompts have another name\'s beginning with the '
                   f'same last letter, as in {b[-KNOWN:]!r} and then {second!r}.'), {-3: '1st', -2: '2nd', -1: '3rd'}


def closing(kinds, what):
    """Returns the task of closing what was opened last, one of some kinds, within brackets of any kind."""
    def task(run, n, draw):
        texts = []
        letters = lambda count: ''.join(draw.choice(LETTERS) for _ in range(count))
        for _ in range(n):
            a, b = draw.sample(kinds, 2)
            start, middle, end = '\n' + letters(2) + draw.choice('([{'), letters(2), letters(3)
            texts.append((start + middle + a[0] + end, start + middle + b[0] + end, a[1], b[1]))
        first, second = (repr(text.strip()) for text in texts[0][:2])
        return texts, (f'{what} what was opened last, as in {first} and then {texts[0][2]!r}; corrupt: {second} and '
                       f'then {texts[0][3]!r}.'), {3: 'outer', 6: 'inner', 9: 'last'}
    return task


# Wang et al., "Interpretability in the Wild", arXiv 2211.00593: the name that has not been repeated
NAMES = 'Mary John Tom James Paul Mark Anna Kate Sarah Peter David Laura Emma Jack Alice Robert'.split()
PLACES = 'store park school office station hospital garden'.split()
THINGS = 'drink book ring ball letter key gift'.split()


def indirect_object(run, n, draw):
    """The name to which something is given; in corrupt prompts the other one gives."""
    texts = []
    for _ in range(n):
        a, b = draw.sample(NAMES, 2)
        start = f'When {a} and {b} went to the {draw.choice(PLACES)},'
        end = f'gave a {draw.choice(THINGS)} to'
        # in half of the pairs the first name is the answer
        giver, other = draw.sample((a, b), 2)
        texts.append((f'{start} {giver} {end}', f'{start} {other} {end}', f' {other}', f' {giver}'))
    return texts, (f'The indirect object, as in {texts[0][0]!r} and then {texts[0][2]!r}; corrupt: the other one '
                   f'gives, and then {texts[0][3]!r}.'), {1: 'first', 3: 'second', 7: 'place', 9: 'giver', 12: 'thing'}


TASKS = dict(speakers=speakers, names=names, brackets=closing(['()', '[]', '{}'], 'The bracket that closes'),
             quotes=closing(['""', "''"], 'The quote that closes'), indirect_object=indirect_object)
