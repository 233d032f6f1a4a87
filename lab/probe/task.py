"""Small synthetic tasks, judged as every study is: probe.py task --task=recall --variants=canon,rope

    induction   random tokens with a period that differs from row to row: go on with it (arXiv 2209.11895)
    copy        random tokens, a delay, a sign: repeat them (arXiv 2402.01032)
    recall      pairs of a key and a value, then keys: give their values (multi-query associative recall, 2312.04927)

A task is a set of examples, of which the loss is judged only where the answer is known; it is written into
out-tasks/TASK. The arms are trained on it by ab.py, with a small recipe that its options change, and are judged by
its tests, in its words; the models stay, so that probe.py looks into them too.
"""
import math
from pathlib import Path
from typing import NamedTuple

import torch

from core.data.prepare import write_set
from core.data.tokenizer import read_meta
from core.rng import generator
from core.run.files import read_json
from lab.probe.page import Page, Section, Table
from lab.probe.runs import open_runs
from lab.probe.seeds import by_arm, over_seeds

OUT = Path('out-tasks')
EXAMPLES = dict(train=32768, val=512)
# of all tasks; about 30 ms an iteration on one slow core
RECIPE = dict(device='cpu', compile=False, n_layer=2, n_head=4, n_embd=64, dropout=0.0, batch_size=32,
              gradient_accumulation_steps=1, learning_rate=3e-3, min_lr=3e-4, beta2=0.99, warmup_iters=50,
              eval_interval=100, curve_iters=4, log_interval=10, always_save_checkpoint=False, save_best=False)
# the first token of each example, and the sign of a copy
START, SIGN = 0, 1


class Examples(NamedTuple):
    """Examples of a task."""
    tokens: torch.Tensor            # (n, T + 1)
    judged: range                   # positions 0 .. T - 1 of the targets that count
    vocab_size: int


# -----------------------------------------------------------------------------
# the tasks

def draw_once(n, count, vocab, draw):
    """Returns (n, count) random numbers below vocab, none of them twice in a row."""
    return torch.rand(n, vocab, generator=draw).argsort(1)[:, :count]


def induction(n, draw, T=32, vocab=32):
    """Returns Examples of random tokens with a period of T / 8 to T / 2, judged where each has come before.

    As periods differ, no head finds the earlier occurrence by its distance alone.
    """
    period = torch.randint(T // 8, T // 2 + 1, (n, 1), generator=draw)
    once = 1 + draw_once(n, T // 2, vocab - 1, draw)
    tokens = once.gather(1, torch.arange(T) % period)
    return Examples(with_start(tokens), range(T // 2 + 1, T), vocab)


def copy(n, draw, count=12, delay=24, vocab=32):
    """Returns Examples of `count` random tokens, a delay of empty ones, the sign, and the tokens again."""
    tokens = torch.randint(2, vocab, (n, count), generator=draw)
    empty, sign = torch.full((n, delay - 1), START), torch.full((n, 1), SIGN)
    T = 2 * count + delay
    return Examples(with_start(torch.cat((tokens, empty, sign, tokens), 1)), range(T - count, T), vocab)


def recall(n, draw, pairs=6, asked=10, vocab=32):
    """Returns Examples of pairs of a key and a value, then of more of the same pairs, whose values are judged.

    An example has 2 to `pairs` keys: those of few are learned first, and teach the others. A key may come again: if
    each came once, what has been said would tell what is left.
    """
    keys = 1 + draw_once(n, pairs, vocab // 2 - 1, draw)
    values = torch.randint(vocab // 2, vocab, (n, pairs), generator=draw)
    count = torch.randint(2, pairs + 1, (n, 1), generator=draw)
    # all keys in turn, then any of them
    order = torch.cat((torch.arange(pairs) % count, (torch.rand(n, asked, generator=draw) * count).long()), 1)
    both = torch.stack((keys.gather(1, order), values.gather(1, order)), 2) # (n, pairs + asked, 2)
    # after the start, keys are at odd positions, where the target is their value
    return Examples(with_start(both.flatten(1)), range(2 * pairs + 1, 2 * (pairs + asked), 2), vocab)


def with_start(tokens):
    """Returns tokens (n, T) with a first one before them, (n, T + 1)."""
    return torch.cat((torch.full((len(tokens), 1), START), tokens), 1)


TASKS = dict(induction=induction, copy=copy, recall=recall)
# iterations after which a model that can do the task does it
ITERATIONS = dict(induction=1000, copy=500, recall=1000)


def write_task(task, folder):
    """Writes a task's set of examples, the same each time, unless it is there; returns its T, inputs of an example."""
    splits, about = {}, dict(name=task, examples=EXAMPLES)
    for split, n in EXAMPLES.items():
        examples = TASKS[task](n, generator('task', task, split))
        splits[split] = [examples.tokens.flatten().numpy()]
    length = examples.tokens.size(1)
    meta = dict(kind='ids', vocab_size=examples.vocab_size, task=about,
                rows=dict(length=length, judged=list(examples.judged)))
    there = read_meta(folder)
    if any(there.get(name) != value for name, value in meta.items()):
        write_set(folder, splits, meta)
    return length - 1


# -----------------------------------------------------------------------------
# the page

def recipe_of(task):
    """Returns the options of train.py and of the model with which a task is learned; writes its set."""
    folder, n = OUT / task, ITERATIONS[task]
    return RECIPE | dict(block_size=write_task(task, folder), dataset=str(folder), max_iters=n, lr_decay_iters=n)


def page_of(folder, task, with_models):
    """Returns the Page of a study of a task that has ended; with_models: its runs kept their checkpoints."""
    report = read_json(folder / 'report.json')
    rows, accuracies = [], {}
    if with_models:
        runs = by_arm(open_runs(folder))
        accuracies = {arm: over_seeds([accuracy(run) for run in of_arm]) for arm, of_arm in runs.items()}
    for arm in report['arms']:
        losses = [run['val_loss'] for run in arm['runs'] if run['val_loss'] is not None]
        right = accuracies.get(arm['name'])
        rows.append([arm['name'], str(len(losses)), over_seeds(losses).text(4) if losses else '–',
                     percent(right) if right else '–'])
    words = [f'{c["arm"]}: {c["words"]}' for c in report['comparisons']]
    return Page('task', f'{task}: {", ".join(arm["name"] for arm in report["arms"])}', f'study {folder}', words, [
        Section('What each arm can do', [Table('On new examples', ['arm', 'runs', 'loss, nats', 'answers right'], rows,
                f'Means over seeds, with 95 % intervals. A guess is right once in {chance(task)}.')],
                f'{folder}/report.html has the verdicts, the curves and every run.')])


def accuracy(run):
    """Returns the share of judged targets that a model gives the largest logit."""
    right = [(run.logits(x).argmax(-1) == y)[y != -1] for x, y in run.windows()]
    return torch.cat(right).float().mean().item()


def percent(mean):
    """Returns '97.2 % ± 1.3'."""
    return f'{100 * mean.mean:.1f} %' + ('' if math.isnan(mean.half) else f' ± {100 * mean.half:.1f}')


def chance(task):
    """Returns how many answers there are to choose from."""
    examples = TASKS[task](2000, generator('chance'))
    return len(examples.tokens[:, [i + 1 for i in examples.judged]].unique())
