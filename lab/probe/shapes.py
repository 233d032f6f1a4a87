"""Prints the shape of every tensor in one forward pass, nested by module: probe.py shapes --variant=NAME."""
import dataclasses
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from configurator import Count, FilePath, configure
from lab.probe.page import Page, Section, Text
from model import Step, build, load_classes

# a small model says as much as a large one, and lines stay short
SIZES = dict(block_size=16, vocab_size=65, n_layer=2, n_head=4, n_embd=64, dropout=0.0)


@dataclass
class Options:
    variant: str = 'base'               # a variant, or the path of its file
    rows: Count = 2                     # B
    to: FilePath = 'out-shapes'         # folder for the page


class Call(NamedTuple):
    """A module's part in the pass. Shapes are tuples; parameters are the module's own, {name: shape}."""
    name: str
    kind: str
    taken: list
    given: list
    parameters: dict

    @property
    def depth(self):
        return self.name.count('.') + 1 if self.name else 0


def main(argv):
    """Returns the Page, and the folder that it goes to; model options such as --n_layer are allowed, too."""
    config = configure(Options, load_classes, argv, say=lambda text: print(text, file=sys.stderr, flush=True))
    o, sizes = config.options, SIZES | config.model_args
    model = build(o.variant, **sizes)
    lines = shape_lines(trace(model, torch.zeros(o.rows, model.config.block_size, dtype=torch.long)))
    where = ' '.join(f'{n}={sizes[n]}' for n in ('block_size', 'n_layer', 'n_head', 'n_embd', 'vocab_size'))
    count = f'{model.get_num_params(non_embedding=False):,} parameters'
    print('\n'.join(lines))
    page = Page('shapes', f'Shapes of {o.variant}', f'B={o.rows} {where}', [f'{count} in {len(lines)} modules'],
                [Section('One forward pass', [Text('in the order of calls', '\n'.join(lines),
                                                   'A module\'s own parameters are after the bar.')])])
    return page, Path(o.to)


@torch.no_grad()
def trace(model, idx):
    """Returns the Calls of a pass in evaluation, in the order in which they begin."""
    calls = []

    def begin(name, module, args):
        parameters = {n: tuple(p.shape) for n, p in module.named_parameters(recurse=False)}
        calls.append([name, type(module).__name__, shapes(args), None, parameters])
        stack_of_open.append(len(calls) - 1)

    def end(module, args, y):
        calls[stack_of_open.pop()][3] = shapes([y])

    stack_of_open = []
    with ExitStack() as stack:
        for name, module in model.named_modules():
            hook = module.register_forward_pre_hook(lambda m, args, name=name: begin(name, m, args))
            stack.callback(hook.remove)
            stack.callback(module.register_forward_hook(end).remove)
        model.eval()(idx, step=Step(all_positions=True))
    return [Call(*call) for call in calls]


def shapes(values):
    """Returns the shapes of all tensors in values, tuples and dataclasses opened."""
    found = []
    for x in values:
        if torch.is_tensor(x):
            found.append(tuple(x.shape))
        elif isinstance(x, tuple | list):
            found += shapes(x)
        elif dataclasses.is_dataclass(x):
            found += shapes(vars(x).values())
    return found


def shape_lines(calls):
    """Returns a line for each Call, indented by its depth: 'attn CausalSelfAttention (2, 16, 64) -> (2, 16, 64)'."""
    rows = [('  ' * call.depth + f'{call.name.rpartition(".")[2] or "model"} {call.kind}',
             f'{in_words(call.taken)} -> {in_words(call.given)}',
             ', '.join(f'{name} {in_words([shape])}' for name, shape in call.parameters.items())) for call in calls]
    left, middle = (max(len(row[i]) for row in rows) for i in (0, 1))
    return [f'{a:<{left}}  {b:<{middle}}{"  | " + c if c else ""}'.rstrip() for a, b, c in rows]


def in_words(found):
    """Returns shapes as text."""
    return ' '.join(f'({", ".join(map(str, shape))})' for shape in found) or '()'
