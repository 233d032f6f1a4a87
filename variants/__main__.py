"""Writes variants/README.md, the table of all variants, from their files.

    python -m variants
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

FOLDER = Path(__file__).parent
# the model of config/train_shakespeare_char.py
MODEL_ARGS = dict(block_size=256, vocab_size=65, n_layer=6, n_head=6, n_embd=384)
LABELS = 'Source', 'Claim', 'Expect', 'Control'
# where there is something; what was measured may stand in place of what was expected
OPTIONAL = 'Measured', 'Logged'
INTRO = """# Variants

Each file is one idea, or a control for one. `python -m variants` makes this page from the files, whose docstrings
say the rest: the formula, how it differs from its source, and which option gives the source's form.

**claim** is what the source says of itself, mostly of other models than these; **verdict** leads to what was measured
here, and what we expected stands below, with the options. **control** is what to train beside it, to know whether a
gain comes from the idea: a simpler known method, or the same mechanism without its point.
**parameters** are those it adds to the model of config/train_shakespeare_char.py, which has {base:,} without
position embeddings. **changes** are the classes of model.py that it subclasses; two variants go together
(`--variant=a+b`) where they change different methods.
"""


def parse_docstring(name):
    """Returns {'idea': ..., 'Source': ..., ...} from a variant's docstring; Stop if something is missing."""
    paragraphs = inspect.cleandoc(load_classes(name).files[0].__doc__ or '').split('\n\n')
    if not paragraphs[0] or '\n' in paragraphs[0]:
        raise Stop(f'variants/{name}.py: '
                   'its docstring must begin with the idea, one line and then an empty one')
    found = dict(idea=paragraphs[0])
    for paragraph in paragraphs[1:]:
        # a label's text ends at the next label or at the end of its paragraph
        label = None
        for line in paragraph.split('\n'):
            if start := re.match(rf"({'|'.join(LABELS + OPTIONAL)}): *", line):
                label = start[1]
                found[label] = line[start.end():]
            elif label:
                found[label] += ' ' + line.strip()
    for label in LABELS:
        if not found.get(label) and not (label == 'Expect' and found.get('Measured')):
            raise Stop(f'variants/{name}.py: its docstring has no line that begins with "{label}: "')
    return found


def num_params(name):
    """Returns a variant's number of parameters, without position embeddings; allocates no weights."""
    classes = load_classes(name)
    with torch.device('meta'):
        return classes.GPT(construct_checked(classes.GPTConfig, MODEL_ARGS), classes).get_num_params()


def markdown_table(head, rows):
    """Returns a table in Markdown from its head and rows, lists of cells."""
    lines = []
    for row in [head, ['---'] * len(head), *rows]:
        cells = [str(cell).replace('|', r'\|') for cell in row]
        lines.append('| ' + ' | '.join(cells) + ' |')
    return '\n'.join(lines)


def table_row(name, base_params):
    """Returns the cells of a variant's row in the table of all variants."""
    doc, file = parse_docstring(name), load_classes(name).files[0]
    changes = [slot.__name__ for slot in SLOTS[1:] if slot.__name__ in vars(file)]
    lines = len((FOLDER / f'{name}.py').read_text(encoding='utf-8').splitlines())
    more = num_params(name) - base_params
    return [f'[`{name}`]({name}.py) [verdict](../docs/verdicts.md#{name})', doc['idea'],
            ', '.join(changes) or 'options only', doc['Source'], doc['Claim'], doc['Control'], lines,
            f'{more:+,}' if more else 0]


def section(name):
    """Returns a variant's section below the table: what to expect, what leaks, its options."""
    doc, classes = parse_docstring(name), load_classes(name)
    paragraphs = [f'### {name}', doc['idea']]
    paragraphs += [f'{label}: {doc[label]}' for label in ('Expect', *OPTIONAL) if label in doc]
    for rule, why in getattr(classes.files[0], 'LEAKS', []):
        options = ', '.join(f'`{option}={value}`' for option, value in rule.items())
        paragraphs.append(f'Declared to leak in training, {options}: {why}.')
    core_options = {f.name for f in fields(GPTConfig)}
    own = [o for o in options_of(classes.GPTConfig).values() if o.name not in core_options]
    if own:
        rows = [[f'`{o.name}`', o.default, o.allowed, o.meaning] for o in own]
        paragraphs.append(markdown_table(['option', 'default', 'allowed', 'meaning'], rows))
    return '\n\n'.join(paragraphs)


def readme():
    """Returns the whole text of variants/README.md."""
    names, base_params = variant_names(), num_params('base')
    head = ['variant', 'idea', 'changes', 'source', 'claim', 'control', 'lines', 'parameters']
    parts = [INTRO.format(base=base_params).strip()]
    parts.append(markdown_table(head, [table_row(name, base_params) for name in names]))
    parts.append('## What to expect, and the options')
    parts += [section(name) for name in names]
    return '\n\n'.join(parts) + '\n'


def main():
    text = readme()
    (FOLDER / 'README.md').write_text(text, encoding='utf-8', newline='\n')
    print(f'variants/README.md: {len(variant_names())} variants')


if __name__ == '__main__':
    run_main(main)
