"""Shows what modules put out, by name, and how large it is: probe.py activations --out_dir=out-surprise

    from lab.probe.activations import open_runs, watch
    run, = open_runs('out-surprise')
    acts = watch(run, run.encode('ROMEO:'), '*.mlp')
"""
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from configurator import FilePath
from core.errors import Stop
from core.run.files import write_atomic
from lab.probe.hooks import eager, matching, record
from lab.probe.options import RunOptions, folder_of, open_from, read_options
from lab.probe.page import Cell, Page, Section, Table
from lab.probe.runs import open_runs  # noqa: F401 for notebooks
from lab.probe.seeds import by_arm, most_different, over_seeds
from lab.report.figures import Chart, Series

MADE_BY = 'probe.py activations'        # in the metadata of the files that this command may replace
PARTS = {'attn': 'attention', 'mlp': 'MLP', 'block': 'whole block'}


@dataclass
class Options(RunOptions):
    """Options of probe.py activations."""
    names: str = '*'                    # of modules: patterns with commas between, such as *.mlp,lm_head
    text: str = ''                      # whose activations are saved; '': a window of the validation split
    save: FilePath = ''                 # a .safetensors file for them; '': none


class Sizes(NamedTuple):
    """Root mean squares of what a run computes over windows of the validation split."""
    windows: int                # how many
    modules: dict               # {module's name: number}
    depths: list                # names of the residual stream's stages: 'embedding', 'layer 0' ...
    stream: np.ndarray          # (depths,)
    positions: np.ndarray       # (depths, T)
    updates: dict               # {'attn', 'mlp', 'block': (depths - 1,)}: over the stream before the block


def main(argv):
    """Returns the Page, and the folder that it goes to."""
    o = read_options(Options, argv)
    if o.save:
        check_replaceable(Path(o.save))
    runs = open_from(o)
    arms, study, run = by_arm(runs), len(runs) > 1, runs[0]
    patterns = [name.strip() for name in o.names.split(',') if name.strip()]
    if not patterns:
        raise Stop('names=: allowed: patterns of modules\' names with commas between, such as *.mlp,lm_head')
    # what may be refused comes first
    for one in runs:
        matching(one.model, *patterns)
    texts = [one.encode(o.text) if o.text else next(one.windows(1))[0] for one in runs]
    acts = [watch(one, idx, *patterns) for one, idx in zip(runs, texts, strict=True)]

    saved = []
    if o.save:
        tensors = {}
        for one, idx, found in zip(runs, texts, acts, strict=True):
            prefix = f'{one.arm}/seed_{one.seed}/' if study else ''
            tensors |= {prefix + name: x for name, x in ({'tokens': idx} | found).items()}
        save_activations(Path(o.save), tensors, dict(out_dir=o.out_dir, iteration=str(run.iteration)))
        saved = [f'{len(tensors)} tensors are in {o.save}, by name.']
    sizes = {arm: [measure(one, patterns, o.windows) for one in seeds] for arm, seeds in arms.items()}
    shapes = {name: tuple(x.shape) for found in acts for name, x in found.items()}
    which = f'{len(runs)} runs' if study else f'at iteration {run.iteration:,}'
    subtitle = (f'{o.out_dir}, {which}; sizes are root mean squares over {sizes[run.arm][0].windows} windows '
                f'of the validation split of {run.options["dataset"]}')
    sections = [Section('The residual stream', [*stream_charts(sizes, study), update_table(sizes)]),
                Section('By module', [module_table(sizes, shapes, study)])]
    title = f'Activations of {", ".join(list(arms)[:4])}{" ..." * (len(arms) > 4)}'
    seeds = {arm: [one.seed for one in some] for arm, some in arms.items()}
    sentences = [*stream_sentences(sizes, seeds), *saved]
    return Page('activations', title, subtitle, sentences, sections), folder_of(o)


# -----------------------------------------------------------------------------
# one pass

def watch(run, idx, *patterns):
    """Returns {module's name: what it puts out} of a pass over idx (B, T), for modules whose names match.

    A list of residual streams (B, T, C) is one tensor (B, T, n, C); what is no tensor is left out.
    """
    with record(run.model, *patterns) as found:
        run.logits(idx)
    return {name: x for name, x in ((name, as_tensor(x)) for name, x in found.items()) if x is not None}


def as_tensor(x):
    """Returns a tensor, or a list of tensors of one shape stacked as a third dimension; None for others."""
    if isinstance(x, list) and x and all(torch.is_tensor(y) and y.shape == x[0].shape for y in x):
        x = torch.stack(x, dim=2)
    return x.detach() if torch.is_tensor(x) else None


# -----------------------------------------------------------------------------
# sizes

def measure(run, patterns=('*',), limit=0):
    """Returns the Sizes of a run; patterns: of the modules that are in .modules. limit: windows; 0: all."""
    named = dict(eager(run.model).named_modules())
    blocks = [f'transformer.h.{layer}' for layer in range(run.model.config.n_layer)]
    parts = [name for block in blocks for name in (f'{block}.attn', f'{block}.mlp') if name in named]
    totals, windows = {}, 0

    def add(kind, name, x, is_text):
        x = as_tensor(x)
        if x is not None:
            total = totals.setdefault((kind, name), [0, 0])
            for i, new in enumerate(squares(x, is_text)):
                total[i] = total[i] + new

    for idx, targets in run.windows(limit):
        with ExitStack() as stack:
            ins = stack.enter_context(record(run.model, *blocks, inputs=True))
            outs, inside, chosen = (stack.enter_context(record(run.model, *names))
                                    for names in (blocks, parts, patterns))
            run.logits(idx)
        is_text, windows = targets != -1, windows + len(idx)
        for kind, found in ('in', ins), ('out', outs), ('part', inside), ('chosen', chosen):
            for name, x in found.items():
                add(kind, name, x, is_text)
        for name, y in outs.items():
            x, y = as_tensor(ins[name]), as_tensor(y)
            # a block may add streams
            if x.shape == y.shape:
                add('update', name, y - x, is_text)

    # {(kind, name): (T,) or (1,)} and {(kind, name): number}
    by_position = {key: (total / count.clamp(min=1)).sqrt().numpy() for key, (total, count) in totals.items()}
    rms = {key: float((total.sum() / count.sum()).sqrt()) for key, (total, count) in totals.items()}
    order = [name for kind, name in rms if kind == 'out']
    before = np.array([rms['in', name] for name in order])
    part_of = lambda name, part: name.replace(':', f'.{part}:') if ':' in name else f'{name}.{part}'
    updates = {part: np.array([rms.get(('part', part_of(name, part)), np.nan) for name in order]) / before
               for part in ('attn', 'mlp')}
    updates['block'] = np.array([rms.get(('update', name), np.nan) for name in order]) / before
    stages = [('in', order[0]), *(('out', name) for name in order)]
    T = run.model.config.block_size
    return Sizes(windows, {name: x for (kind, name), x in rms.items() if kind == 'chosen'},
                 ['embedding', *map(in_words, order)], np.array([rms[stage] for stage in stages]),
                 np.array([np.broadcast_to(by_position[stage], T) for stage in stages]), updates)


def squares(x, is_text):
    """Returns sums over rows of the mean square of x (B, T, ...), and how many tokens are in each: (T,) each.

    is_text (B, T): False for tokens that do not count. Of x without positions it is one sum: (1,) each.
    """
    x = x.double().square()
    if x.shape[:2] != is_text.shape:
        return x.sum()[None].cpu(), torch.tensor([x.numel()])
    return (x.flatten(1).unflatten(1, (x.size(1), -1)).mean(-1) * is_text).sum(0).cpu(), is_text.sum(0).cpu()


def in_words(block):
    """Returns a block's name in words: 'layer 2', or when it runs again 'layer 2 (3)'."""
    name, _, call = block.removeprefix('transformer.h.').partition(':')
    return f'layer {name} ({call})' if call else f'layer {name}'


# -----------------------------------------------------------------------------
# what is said and drawn

def stream_sentences(sizes, seeds):
    """Returns what the residual stream does, and how arms' differ; sizes, seeds: a list for each arm."""
    (base, first), *others = sizes.items()
    start, end = (over_seeds([s.stream[i] for s in first]) for i in (0, -1))
    lines = [f'{base}: the residual stream goes from {short(start, 3)} at the embedding to {short(end, 3)} '
             f'after the last of {len(first[0].stream) - 1} blocks (root mean square).']
    updates = np.array([s.updates['block'] for s in first]) # (seeds, blocks)
    if not np.isnan(updates).all():
        i = int(np.nanargmax(updates.mean(0)))
        lines.append(f'{base}: the largest update, relative to what enters the block, is that of '
                     f'{first[0].depths[i + 1]}: {short(over_seeds(updates[:, i]), 3)} times as large.')
    for arm, found in others:
        theirs, ours = (dict(zip(seeds[a], s, strict=True)) for a, s in ((base, first), (arm, found)))
        lines.append(difference_sentence(arm, base, theirs, ours))
    return lines


def difference_sentence(arm, base, theirs, ours):
    """Returns in what an arm's stream differs most from the baseline's; theirs, ours: {seed: Sizes}."""
    words = ('the stream after the last block', 'attention\'s updates relative to the stream',
             'the MLP\'s updates relative to the stream')
    numbers = lambda s: np.array([s.stream[-1], np.nanmean(s.updates['attn']), np.nanmean(s.updates['mlp'])])
    percents = np.array([100 * (numbers(ours[s]) / numbers(theirs[s]) - 1) for s in ours if s in theirs])
    if len(percents) < 2:
        return f'{arm}: fewer than two seeds in common with {base}, so no difference has an interval.'
    best, d, sure = most_different(percents, np.ones(len(words)))
    how_sure = f'{len(percents)} seeds; 95 % for all {len(words)} that were compared, together'
    size = f'{words[best]}: {d.mean[best]:+.1f} ± {d.half[best]:.1f} % ({how_sure}).'
    if sure:
        return f'{arm} differs from {base} most in the size of {size}'
    return f'{arm}: sizes do not differ for sure from {base}\'s. Nearest to it comes {size}'


def stream_charts(sizes, study):
    """Returns Charts of the residual stream by layer and position, and of updates; of one run, by part."""
    arms = list(sizes.items())
    depth = [curve(arm, n if study else 1, [s.stream for s in found]) for n, (arm, found) in enumerate(arms)]
    charts = [Chart('stream_by_layer', 'Residual stream by layer', 'blocks passed; 0: the embedding',
                    'root mean square', depth, whole=True)]
    (_, first), *_ = arms
    if study:
        positions = [curve(arm, n, [s.positions[-1] for s in found]) for n, (arm, found) in enumerate(arms)]
        title = 'Residual stream by position, after the last block'
        updates = [curve(arm, n, [s.updates['block'] for s in found]) for n, (arm, found) in enumerate(arms)]
    else:
        s, fade = first[0], 0.7 / (len(first[0].depths) - 1)
        positions = [Series(name, 1, list(range(len(y))), y.tolist(), alpha=0.3 + fade * i)
                     for i, (name, y) in enumerate(zip(s.depths, s.positions, strict=True))]
        title = 'Residual stream by position'
        updates = [curve(PARTS[part], n, [y]) for n, (part, y) in enumerate(s.updates.items(), 1)]
    charts.append(Chart('stream_by_position', title, 'position, 0 is the first', 'root mean square',
                        positions, layers=not study))
    shown = [line for line in updates if not np.isnan(line.y).all()]
    if shown:
        title = f'Updates{" of whole blocks," * study} relative to the stream'
        charts.append(Chart('updates', title, 'block, 0 is the first', 'share of what enters the block',
                            shown, whole=True))
    return charts


def curve(label, index, values):
    """Returns the Series of a mean over seeds with its band; values: an array (n,) for each seed."""
    d, x = over_seeds(values), list(range(len(values[0])))
    if len(values) == 1:
        return Series(label, index, x, d.mean.tolist())
    return Series(label, index, x, d.mean.tolist(), (d.mean - d.half).tolist(), (d.mean + d.half).tolist(),
                  [list(one) for one in values])


def update_table(sizes):
    """Returns the Table of updates by layer, arms below each other."""
    rows = []
    for i in range(max(len(found[0].depths) for found in sizes.values()) - 1):
        for arm, found in sizes.items():
            if i + 1 < len(found[0].depths):
                title = f'{found[0].depths[i + 1]}{f", {arm}" * (len(sizes) > 1)}'
                rows.append([title, cell([s.stream[i] for s in found]),
                             *(cell([s.updates[part][i] for s in found]) for part in PARTS)])
    return Table('Updates relative to the stream', ['block', 'stream before it', *PARTS.values()], rows,
                 'Each part\'s output over what enters its block, both as root mean squares; of the whole '
                 'block, what it changes. A variant may scale an output before it is added.')


def module_table(sizes, shapes, study):
    """Returns the Table of modules in the order of their calls: shapes of one row, sizes over windows."""
    rows = []
    for name in dict.fromkeys(name for found in sizes.values() for name in found[0].modules):
        means = [cell([s.modules.get(name, np.nan) for s in found]) for found in sizes.values()]
        rows.append([name, 'x'.join(map(str, shapes[name])), *means])
    titles = list(sizes) if study else ['root mean square']
    return Table('What modules put out', ['module', 'shape', *titles], rows,
                 'The shape is of one row, (1, T, channels) as a rule; name:2 is a module\'s second call.')


def cell(values):
    """Returns the Cell of a mean over seeds."""
    d = over_seeds(values)
    return Cell('–') if np.isnan(d.mean) else Cell(short(d), float(d.mean))


def short(d, digits=4):
    """Returns a Mean of any size as text, with its interval."""
    return f'{d.mean:.{digits}g}' if np.isnan(d.half) else f'{d.mean:.{digits}g} ± {d.half:.2g}'


# -----------------------------------------------------------------------------
# the file

def check_replaceable(path):
    """Stop unless path is a name for a .safetensors file that is not there, or was saved by this command."""
    if path.suffix != '.safetensors':
        raise Stop(f'save={path}: allowed: a name that ends in .safetensors')
    if path.exists() and not saved_here(path):
        raise Stop(f'save={path}: is there already, and this command has not made it; choose another name')


def saved_here(path):
    """Returns True if a file was saved by this command, and not, say, a model's checkpoint."""
    try:
        with safe_open(path, 'pt') as f:
            return (f.metadata() or {}).get('made_by') == MADE_BY
    # a folder, or another kind of file
    except (OSError, SafetensorError):
        return False


def save_activations(path, tensors, about):
    """Writes {name: tensor} as one safetensors file, whole or not at all; about: its metadata, {name: text}."""
    # each its own memory: a module may put out what it was given
    tensors = {name: x.detach().cpu().contiguous().clone() for name, x in tensors.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, save(tensors, about | dict(made_by=MADE_BY)))
