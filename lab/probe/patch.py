"""Finds where a model keeps what its answer depends on, by causal tracing: probe.py patch --clean=... --corrupt=...

The model reads a corrupt prompt, and what it computes at one place is replaced by what it computes there for a clean
one. The place has what the answer depends on as far as this restores the difference between the logits of the clean
answer and of the corrupt one: 0 is the corrupt prompt's difference, 1 the clean one's.

Source: Meng et al., "Locating and Editing Factual Associations in GPT", arXiv 2202.05262; the difference of logits:
Wang et al., arXiv 2211.00593.
"""
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from scipy.stats import t as student

from configurator import Count, Whole
from core.data.tokenizer import Tokenizer
from core.device.machine import machine
from core.errors import Stop
from lab.probe.ablate import head_sites, names_of
from lab.probe.hooks import eager
from lab.probe.options import RunOptions, folder_of, open_from, read_options
from lab.probe.page import Cell, Maps, Page, Panel, Section, Table
from lab.probe.pairs import TASKS, given_pair, pairs_of_task
from lab.probe.runs import Run
from lab.probe.seeds import Mean, by_arm, over_seeds
from model import build_gpt2

PARTS = dict(stream='Residual stream', attention='Attention', mlp='MLP')
ROWS = 256              # of a batch


@dataclass
class Options(RunOptions):
    clean: str = ''                     # a prompt, and
    corrupt: str = ''                   # one of as many tokens that another answer belongs to
    answers: str = ''                   # both answers, a token each: a,b; '': the model's own likeliest
    task: Literal['', 'speakers', 'names', 'brackets', 'quotes',
                  'indirect_object'] = '' # in place of prompts: many pairs
    pairs: Count = 32                   # of a task
    seed: Whole = 0                     # of a task's pairs
    init_from: str = 'resume'           # resume reads out_dir; or gpt2, gpt2-medium, gpt2-large, gpt2-xl


# -----------------------------------------------------------------------------
# patching

class Place(NamedTuple):
    """Where a pass is patched: a module's output, its first input, or channels (first, after the last) of that."""
    part: str                   # stream, attention, mlp or heads
    row: int                    # of the map: the layer, of the stream the layers before
    module: str
    inputs: bool = False
    channels: tuple | None = None


def places_of(run):
    """Returns (Places of the stream, attention, MLPs and heads, sentences on those that there are not)."""
    layers = range(len(eager(run.model).transformer.h))
    kept, sites_of_heads = {}, head_sites(run)[0]
    places = [Place('stream', 0, 'transformer.h.0', inputs=True)]
    places += [Place('stream', i + 1, f'transformer.h.{i}') for i in layers]
    places += [Place(part, i, f'transformer.h.{i}.{name}') for part, name in (('attention', 'attn'), ('mlp', 'mlp'))
               for i in layers]
    places += [Place('heads', site.layer, site.module, True, site.channels) for site in sites_of_heads]
    with watched(run, places, kept) as routed:
        run.logits(torch.zeros(1, run.model.config.block_size, dtype=torch.long, device=run.machine.device))

    def whole(p):
        return p in kept and all(map(torch.is_tensor, kept[p])) and (p.part == 'stream' or p.row not in routed)

    sentences = []
    if routed:
        layers_routed = ', '.join(map(str, sorted(routed)))
        sentences.append(f'{run.arm}: layers {layers_routed} compute for a part of the positions, so that only the '
                         'stream is patched there.')
    if not all(map(whole, places[:len(layers) + 1])):
        sentences.append(f'{run.arm}: what goes from block to block is not one tensor, so the stream is not patched.')
    if len({site.layer for site in sites_of_heads}) < len(layers):
        sentences.append(f'{run.arm}: in some layers what c_proj takes in is not the heads\' outputs side by side, so '
                         'that these have no heads to patch.')
    return list(filter(whole, places)), sentences


@contextmanager
def watched(run, places, kept):
    """A context that fills kept, {Place: [what is there in each of its calls]}.

    Yields a set that gets the layers whose attention sees another selection of positions than the model.
    """
    routed = set()

    def keep(place, x):
        kept.setdefault(place, []).append(x)

    def look(layer, args):
        if len(args) > 1 and not getattr(args[1], 'from_zero', True):
            routed.add(layer)

    model = eager(run.model)
    with ExitStack() as stack:
        for place in places:
            module = model.get_submodule(place.module)
            if place.inputs:
                hook = module.register_forward_pre_hook(lambda m, x, p=place: keep(p, x[0]))
            else:
                hook = module.register_forward_hook(lambda m, x, y, p=place: keep(p, y))
            stack.callback(hook.remove)
            if place.part == 'attention':
                hook = module.register_forward_pre_hook(lambda m, x, layer=place.row: look(layer, x))
                stack.callback(hook.remove)
        yield routed


@contextmanager
def patched(run, place, values, where):
    """A context in which a place has values, one tensor for each of its calls, where `where` is True.

    where: (R, T), the positions of each row.
    """
    calls = iter(values)

    def change(x):
        new = next(calls)
        mask = where.view(*where.shape, *[1] * (x.ndim - 2))
        if place.channels is None:
            return torch.where(mask, new, x)
        x, part = x.clone(), slice(*place.channels)
        x[..., part] = torch.where(mask, new[..., part], x[..., part])
        return x

    module = eager(run.model).get_submodule(place.module)
    if place.inputs:
        hook = module.register_forward_pre_hook(lambda m, x: (change(x[0]), *x[1:]))
    else:
        hook = module.register_forward_hook(lambda m, x, y: change(y))
    try:
        yield
    finally:
        hook.remove()


class Traced(NamedTuple):
    """Differences of logits, the clean answer's minus the corrupt one's after the last token, in nats, (N, ...)."""
    clean: np.ndarray           # (N,)
    corrupt: np.ndarray         # (N,)
    parts: dict                 # part -> (N, rows, T), NaN where there is no place
    everywhere: dict            # part -> (N, rows), all positions at once
    heads: np.ndarray           # (N, layers, heads), all positions at once


def trace(run, pairs, places=None):
    """Returns what patching each place of a Run, at each position, makes of Pairs: Traced.

    A compiled model is patched in the one below, which has the same weights.
    """
    places = places_of(run)[0] if places is None else places
    N, T = pairs.clean.shape
    layers, numbers = len(eager(run.model).transformer.h), number_heads(places)
    n_head = 1 + max(numbers.values(), default=-1)
    rows = {part: layers + (part == 'stream') for part in PARTS}
    found = Traced(np.zeros(N), np.zeros(N), {part: np.full((N, n, T), np.nan) for part, n in rows.items()},
                   {part: np.full((N, n), np.nan) for part, n in rows.items()}, np.full((N, layers, n_head), np.nan))
    heads = [p for p in places if p.part == 'heads']
    others = [p for p in places if p.part != 'heads']
    # a row for each position, and one for all of them
    where = torch.cat((torch.eye(T), torch.ones(1, T))).bool().to(pairs.clean.device)
    size = max(1, ROWS // (T + 1))
    for first in range(0, N, size):
        some = slice(first, first + size)
        found.clean[some], found.corrupt[some], patches = trace_rows(run, pairs, some, others, where)
        for p, values in patches.items():
            found.parts[p.part][some, p.row], found.everywhere[p.part][some, p.row] = values[:, :-1], values[:, -1]
        # in passes of another shape, in which the same difference is another by rounding
        _, corrupt, patches = trace_rows(run, pairs, some, heads, where[-1:])
        for p, values in patches.items():
            found.heads[some, p.row, numbers[p]] = values[:, 0] + (found.corrupt[some] - corrupt)
    return found


def trace_rows(run, pairs, some, places, where):
    """Returns differences of the pairs in a slice: of clean and of corrupt prompts (n,), and {Place: (n, R) patched}.

    where: (R, T), the positions that are patched in each of R rows.
    """
    # (n R, T)
    clean, corrupt, answers = (x[some].repeat_interleave(len(where), 0) for x in pairs[:3])
    where, R, kept, patches = where.repeat(len(clean) // len(where), 1), len(where), {}, {}

    def difference(idx):
        first, second = run.logits(idx)[:, -1].double().gather(1, answers).T
        return (first - second).view(-1, R).cpu().numpy()

    with watched(run, places, kept):
        of_clean = difference(clean)[:, -1]
    of_corrupt = difference(corrupt)
    for place in places:
        with patched(run, place, kept[place], where):
            # equal rows of a pass are equal up to rounding, which is taken off
            patches[place] = difference(corrupt) + (of_corrupt[:, -1:] - of_corrupt)
    return of_clean, of_corrupt[:, -1], patches


def number_heads(places):
    """Returns {Place: number of the head in its layer}."""
    numbers, layers = {}, [p.row for p in places if p.part == 'heads']
    for i, place in enumerate(p for p in places if p.part == 'heads'):
        numbers[place] = i - layers.index(place.row)
    return numbers


# -----------------------------------------------------------------------------
# over pairs or seeds

def restored(traced, values):
    """Returns the share of the difference that is restored, (...), and its standard error over pairs, NaN for one.

    values: (N, ...) of a Traced. The share is of means over pairs: a pair with hardly a difference counts little.
    """
    whole = (traced.clean - traced.corrupt).reshape(-1, *[1] * (values.ndim - 1))
    gain = values - traced.corrupt.reshape(whole.shape)
    share = gain.mean(0) / whole.mean()
    n = len(values)
    # of a ratio of means, by its linear part
    if n == 1:
        return share, np.full_like(share, np.nan)
    return share, ((gain - share * whole) / whole.mean()).std(0, ddof=1) / np.sqrt(n)


def mean_over(traced, of):
    """Returns the Mean of restored shares of one arm's Traced: over seeds, or of one run over pairs."""
    shares = [restored(t, of(t)) for t in traced]
    if len(shares) > 1:
        return over_seeds([share for share, _ in shares])
    (share, error), n = shares[0], len(traced[0].clean)
    return Mean(share, student.ppf(0.975, n - 1) * error if n > 1 else error, n)


def by_rank(traced):
    """Returns the Traced with the heads of each layer by what they restore, the most first."""
    share, _ = restored(traced, traced.heads)
    order = np.argsort(-np.nan_to_num(share, nan=-np.inf), axis=1)
    return traced._replace(heads=np.take_along_axis(traced.heads, order[None], 2))


# -----------------------------------------------------------------------------
# the page

def main(argv):
    """Returns the Page, and the folder that it goes to."""
    o = read_options(Options, argv)
    if bool(o.task) == bool(o.clean or o.corrupt):
        raise Stop('name --clean=TEXT and --corrupt=TEXT, or --task=NAME with one of ' + ', '.join(TASKS))
    if not o.task and not (o.clean and o.corrupt):
        raise Stop('name both --clean=TEXT and --corrupt=TEXT')
    runs = open_from(o) if o.init_from == 'resume' else [open_gpt2(o)]
    pairs = pairs_of_task(runs[0], o.task, o.pairs, o.seed) if o.task else \
        given_pair(runs, o.clean, o.corrupt, o.answers)
    folder = folder_of(o) if o.to or o.init_from == 'resume' else Path(f'out-{o.init_from}/probe')
    return page_of(o, runs, pairs), folder


def open_gpt2(o):
    """Returns a Run of OpenAI's GPT-2 by --init_from."""
    model = build_gpt2(o.init_from).eval()
    m = machine(o.device, 'float32' if o.dtype == 'auto' else o.dtype, compile=False)
    tokenizer = Tokenizer.from_meta(dict(kind='gpt2', vocab_size=50257))
    return Run(o.init_from, 0, Path(o.init_from), model.to(m.device), tokenizer, m, 0, dict(variant='base', seed=0))


def page_of(o, runs, pairs):
    """Returns the Page of a patch on Runs."""
    arms, sentences, left_out, traced = by_arm(runs), [pairs.what], [], {}
    several = any(len(some) > 1 for some in arms.values())
    for arm, some in arms.items():
        for run in some:
            places, without = places_of(run)
            left_out += [text for text in without if text not in left_out]
            found = trace(run, pairs, places)
            traced.setdefault(arm, []).append(by_rank(found) if several else found)
    for arm, some in traced.items():
        sentences += sentences_on(arm, some, pairs, several)
    sentences += left_out
    sentences.append('Places do not add up: a later one has what an earlier one gave it.')
    sentences.append(interval_sentence(traced, pairs))
    of = f'{len(pairs.clean)} pairs of {pairs.clean.size(1)} tokens' if o.task else f'{o.clean!r} and {o.corrupt!r}'
    file = f'patch_{o.task}' if o.task else 'patch'
    sections = [Section('Where it is', [maps_of(file, part, traced, pairs) for part in PARTS],
                        'Share of the difference of logits that is restored: 0, clear, as after the corrupt prompt; 1 '
                        'as after the clean one. Labels: tokens of both prompts, clean/corrupt where they differ; in '
                        'many pairs · for any token, ? where the two differ.'),
                Section('All positions at once',
                        [table_of(traced), heads_map(file, traced, several), heads_table(traced, several)],
                        'Of the stream, 1 in every layer says that nothing goes around it.')]
    name = o.out_dir if o.init_from == 'resume' else o.init_from
    return Page(file, f'Causal tracing: {o.task or "two prompts"}',
                f'{name}: {of}', sentences, sections)


def sentences_on(arm, traced, pairs, several):
    """Yields the sentences on one arm."""
    clean, corrupt = (over_seeds([some.mean() for some in both]).text(2, '+')
                      for both in zip(*((t.clean, t.corrupt) for t in traced)))
    yield (f'{arm}: after clean prompts the clean answer is ahead by {clean} nats, after corrupt ones by {corrupt}.')
    right = np.mean([((t.clean > 0) & (t.corrupt < 0)).mean() for t in traced])
    if len(pairs.clean) > 1:
        yield f'{arm}: in {100 * right:.0f} % of the pairs each prompt\'s own answer is ahead.'
    apart = [t.clean - t.corrupt for t in traced]
    whole = over_seeds([some.mean() for some in apart] if len(apart) > 1 else apart[0])
    # one pair in one run has no interval
    if not whole.mean > np.nan_to_num(whole.half):
        yield f'{arm}: it does not surely tell the prompts apart, so that there is nothing to find.'
        return
    for part in PARTS:
        share = mean_over(traced, lambda t, part=part: t.parts[part])
        if np.isnan(share.mean).all():
            continue
        if part == 'stream':
            tops = [(row_name(part, i), place_name(pairs, np.nanargmax(m)), np.nanmax(m))
                    for i, m in enumerate(share.mean) if not np.isnan(m).all()]
            said = '; '.join(f'{where} at {label} {top:.2f}' for where, label, top in tops)
            yield f'{arm}: in the stream one position restores at most: {said}.'
        else:
            (row, column), best = most(share)
            name = 'MLP' if part == 'mlp' else part
            yield f'{arm}: {name} restores most in layer {row} at {place_name(pairs, column)}: {best}.'
    share = mean_over(traced, lambda t: t.heads)
    if share.mean.size and not np.isnan(share.mean).all():
        (row, column), best = most(share)
        yield f'{arm}: of the heads, at all positions, layer {row} {head_name(column, several)} restores most: {best}.'


def most(share):
    """Returns where a Mean of arrays is largest, and its text there."""
    at = np.unravel_index(np.nanargmax(share.mean), share.mean.shape)
    best = Mean(share.mean[at], share.half[at], share.n)
    return at, best.text(2) + (', which may be nothing' if best.mean <= best.half else '')


def place_name(pairs, column):
    """Returns a position in words."""
    return f'{pairs.labels[column]} ({column + 1} of {len(pairs.labels)})'


def interval_sentence(traced, pairs):
    many = max(map(len, traced.values()))
    if many > 1:
        return f'Intervals are 95 % over {many} seeds.'
    if len(pairs.clean) > 1:
        return (f'Intervals are 95 % over {len(pairs.clean)} pairs; they say nothing about other seeds.')
    return 'One pair in one run has no interval; --task=NAME has many pairs, and a study has seeds.'


def row_name(part, row):
    if part == 'stream':
        return f'after layer {row - 1}' if row else 'embeddings'
    return f'layer {row}'


def head_name(number, several):
    return f'head of rank {number + 1}' if several else f'head {number}'


def maps_of(file, part, traced, pairs):
    """Returns the Maps of a part, layer by position, a panel for each arm."""
    means = {arm: mean_over(some, lambda t: t.parts[part]).mean for arm, some in traced.items()}
    rows = max(map(len, means.values()))
    # arms of other depths have no names in common
    names = ['in', *map(str, range(rows - 1))] if part == 'stream' else list(map(str, range(rows)))
    return Maps(f'{file}_{part}', PARTS[part], [Panel(arm, m) for arm, m in means.items()], 'position',
                'after which layer; in: embeddings' if part == 'stream' else 'layer', signed=True, most=1.0,
                x_names=pairs.labels, y_names=names if all(len(m) == rows for m in means.values()) else ())


def heads_map(file, traced, several):
    """Returns the Maps of heads, layer by head, a panel for each arm."""
    panels = [Panel(arm, mean_over(some, lambda t: t.heads).mean) for arm, some in traced.items()]
    return Maps(f'{file}_heads', 'Heads', panels, 'heads of the layer by rank' if several else 'head', 'layer',
                signed=True, most=1.0, **names_of(panels, several))


def cell(mean, *at):
    """Returns the Cell of an element of a Mean of arrays."""
    value, half = mean.mean[at], mean.half[at]
    return Cell('–' if np.isnan(value) else Mean(value, half, mean.n).text(2, '+'), None if np.isnan(value) else value)


def table_of(traced):
    """Returns the Table of what each layer restores, all positions at once."""
    columns = [(arm, part, mean_over(some, lambda t, part=part: t.everywhere[part]))
               for arm, some in traced.items() for part in PARTS]
    rows = []
    for row in range(max(len(m.mean) for _, _, m in columns)):
        shift = [(m, row if part == 'stream' else row - 1) for _, part, m in columns]
        rows.append([row_name('stream', row), *(cell(m, i) if 0 <= i < len(m.mean) else '–' for m, i in shift)])
    titles = [f'{arm}, {PARTS[part]}' if len(traced) > 1 else PARTS[part] for arm, part, _ in columns]
    return Table('By layer', ['', *titles], rows, 'Attention and MLP: of the layer that the row is after.')


def heads_table(traced, several):
    """Returns the Table of heads."""
    means = {arm: mean_over(some, lambda t: t.heads) for arm, some in traced.items()}
    layers, heads = (max(m.mean.shape[i] for m in means.values()) for i in (0, 1))
    rows = [[f'layer {i} {head_name(j, several)}',
             *(cell(m, i, j) if i < m.mean.shape[0] and j < m.mean.shape[1] else '–' for m in means.values())]
            for i in range(layers) for j in range(heads)]
    note = 'A head\'s number means nothing in another seed, so they are in the order of what they restore in each run.'
    return Table('By head', ['', *means], rows, note if several else '')
