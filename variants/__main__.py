"""Writes variants/README.md, the table of all variants, from their files.

    python -m variants.__main__
"""
import inspect
import re
from dataclasses import fields
from pathlib import Path

import torch

from configurator import construct_checked, options_of
from core.assemble import variant_names
from core.errors import Stop, run_main
from model import SLOTS, GPTConfig, load_classes

FOLDER = Path(__file__).parent / 'variants'
MODEL = dict(block_size=256, vocab_size=65, n_layer=6, n_head=6, n_embd=384) # that of config/train_shakespeare_char.py
LABELS = 'Source', 'Claim', 'Expect', 'Control' # and Logged, where there is something
INTRO = """# Variants

One file, one idea, or the control of one. This page is made from the files, by `python -m variants.__main__`; each says the rest in its
docstring: the formula, how its source differs, and which option gives the source's form.

**claim** is what the source says of itself. It is not a finding of this repository, and mostly not one about models of this size;
what we expect here stands below, with the options. **control** is what to train beside it, to know whether the gain is the idea's:
a simpler known method, or the same mechanism with its point taken out. **parameters** are those it adds to the model of
config/train_shakespeare_char.py, {base:,} without position embeddings. **changes** are the classes of model.py that it subclasses;
two variants go together (`--variant=a+b`) where they change different methods.
"""


def described(name):
    """{'idea': ..., 'Source': ..., ...} from the file's docstring; Stop where something is missing."""
    paragraphs = inspect.cleandoc(load_classes(name).files[0].__doc__ or '').split('\n\n')
    if not paragraphs[0] or '\n' in paragraphs[0]:
        raise Stop(f'variants/{name}.py: its docstring must begin with the idea, one line and then an empty one')
    found = dict(idea=paragraphs[0])
    for paragraph in paragraphs[1:]:
        label = None
        for line in paragraph.split('\n'):
            if start := re.match(rf"({'|'.join(LABELS)}|Logged): *", line):
                label = start[1]
                found[label] = line[start.end():]
            elif label:
                found[label] += ' ' + line.strip()
    for label in LABELS:
        if not found.get(label):
            raise Stop(f'variants/{name}.py: its docstring has no line that begins with "{label}: "')
    return found


def num_params(name):
    classes = load_classes(name)
    with torch.device('meta'):
        return classes.GPT(construct_checked(classes.GPTConfig, MODEL), classes).num_params()


def table(head, rows):
    cell = lambda x: str(x).replace('|', r'\|')
    return '\n'.join('| ' + ' | '.join(map(cell, row)) + ' |' for row in [head, ['---'] * len(head), *rows])


def summary(name, base):
    said, file = described(name), load_classes(name).files[0]
    slots = [slot.__name__ for slot in SLOTS[1:] if slot.__name__ in vars(file)]
    more = num_params(name) - base
    lines = len((FOLDER / f'{name}.py').read_text(encoding='utf-8').splitlines())
    return (f'[`{name}`]({name}.py)', said['idea'], ', '.join(slots) or 'options only', said['Source'], said['Claim'],
            said['Control'], lines, f'{more:+,}' if more else 0)


def details(name):
    said, classes = described(name), load_classes(name)
    text = [f'### {name}', said['idea'], f"Expect: {said['Expect']}"]
    if 'Logged' in said:
        text.append(f"Logged: {said['Logged']}")
    text += [f"Declared to leak in training, {', '.join(f'`{option}={value}`' for option, value in rule.items())}: {why}."
             for rule, why in getattr(classes.files[0], 'LEAKS', [])]
    core_options = {f.name for f in fields(GPTConfig)}
    own = [o for o in options_of(classes.GPTConfig).values() if o.name not in core_options]
    if own:
        text.append(table(['option', 'default', 'allowed', 'meaning'],
                          [(f'`{o.name}`', o.default, o.allowed, o.meaning) for o in own]))
    return '\n\n'.join(text)


def page():
    """The whole text of variants/README.md."""
    names, base = variant_names(), num_params('base')
    head = 'variant', 'idea', 'changes', 'source', 'claim', 'control', 'lines', 'parameters'
    return '\n\n'.join([INTRO.format(base=base).strip(), table(head, [summary(name, base) for name in names]),
                        '## What to expect, and the options', *map(details, names)]) + '\n'


def main():
    text = page()
    (FOLDER / 'README.md').write_text(text, encoding='utf-8', newline='\n')
    print(f'variants/README.md: {len(variant_names())} variants')


if __name__ == '__main__':
    run_main(main)
