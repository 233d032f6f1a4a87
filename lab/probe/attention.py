"""Shows what each head of attention looks at: probe.py attention --out_dir=out-soft_window --text="ROMEO:"

    from lab.probe.attention import draw_patterns, open_runs, watch
    run, = open_runs('out-surprise')
    draw_patterns(*watch(run, run.encode('ROMEO:')))[0].draw()
"""
import re
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from core.errors import Stop
from lab.probe.hooks import attention_patterns, eager
from lab.probe.options import RunOptions, folder_of, open_from, read_options
from lab.probe.page import Cell, Maps, Page, Panel, Section, Table, Text
from lab.probe.runs import Run, open_runs  # noqa: F401 open_runs is for notebooks
from lab.probe.seeds import by_arm, most_different, over_seeds
from lab.report.figures import Chart, Series
from model import CausalSelfAttention

# what is measured of a head: title, digits, unit, and how a difference of it reads
MEASURES = {
    'distance': ('distance, tokens', 2, ' tokens', 'how far back heads look'),
    'entropy': ('entropy, nats', 3, ' nats', 'how widely they spread (entropy)'),
    'spread': ('entropy, of the most', 3, '', 'entropy as a share of the most possible'),
    'first': ('on the first token', 3, '', 'the weight on the first token'),
    'previous': ('on the previous token', 3, '', 'the weight on the previous token'),
    'own': ('on itself', 3, '', 'the weight on the token itself'),
}
# a head is of a kind if one of its measures is at least this
KINDS = {'previous': ('previous-token heads', 0.5, 'more than half of the weight on the token before'),
         'first': ('first-token (sink) heads', 0.5, 'more than half on the first'),
         'spread': ('broad heads', 0.9, 'an entropy of at least 90 % of the most possible')}
FROM = 2                    # from the third token on, the first, the previous and the own token are three
# logged under these names: how far back a query looks, in tokens
IN_TOKENS = 'window', 'span', 'distance'
NAMED = 40                  # tokens of a text that are written beside maps
DRAWN = 6                   # arms whose maps are on the page


@dataclass
class Options(RunOptions):
    """Options of probe.py attention."""
    text: str = ''                      # whose patterns are drawn; '': a window of the validation split


class Drawn(NamedTuple):
    """A run whose patterns are drawn: what watch() returns for tokens (1, T), with names if they are few."""
    run: Run
    idx: torch.Tensor
    names: list
    patterns: dict
    logged: list


class Logged(NamedTuple):
    """A tensor that a variant logged by step.stat()."""
    name: str
    place: str                  # where in the model, in words
    module: str                 # that logged it
    value: torch.Tensor         # (B, heads, T), with 1 for what it does not depend on


def main(argv):
    """Returns the Page, and the folder that it goes to."""
    o = read_options(Options, argv)
    arms = by_arm(open_from(o))
    runs = [run for seeds in arms.values() for run in seeds]
    if (T := min(run.model.config.block_size for run in runs)) <= FROM:
        raise Stop(f'block_size={T}: attention is measured from the third token on; allowed: 3 or more')
    # what is drawn comes first, because a text may be refused
    texts = [(run, text_of(run, o.text)) for run, *_ in list(arms.values())[:DRAWN]]
    drawn = [Drawn(run, idx, token_names(run, idx) if o.text else (), *watch(run, idx)) for run, idx in texts]
    found = {(run.arm, run.seed): measure(run, o.windows) for run in runs}
    heads = {arm: [found[arm, run.seed][0] for run in seeds] for arm, seeds in arms.items()}
    logged = {arm: [found[arm, run.seed][1] for run in seeds] for arm, seeds in arms.items()}

    study = len(runs) > 1
    base = next(iter(arms))
    pairs = {arm: pair(arms[base], heads[base], seeds, heads[arm])
             for arm, seeds in arms.items() if arm != base}
    base_mean = np.mean([all_heads(h) for h in heads[base]], axis=0)
    sentences = kinds_of_one(heads[base][0])
    if study:
        sentences = [in_short(base, heads[base]),
                     *(differs_most(arm, base, base_mean, *pair) for arm, pair in pairs.items())]
    run, rows = runs[0], len(next(iter(heads[base][0].values())))
    subtitle = (f'{o.out_dir}, {counted(runs)}; measured over {rows} windows of the validation split of '
                f'{run.options["dataset"]}, from the third token of each on')
    tables = [difference_table(pairs, base)] if pairs else []
    sections = [Section('In numbers', [*tables, layer_table(heads), kind_table(heads)]),
                pattern_section(drawn, o.text, study), *logged_sections(logged, drawn, study),
                Section('Head by head', [head_table(heads, study)])]
    title = f'Attention of {", ".join(list(arms)[:4])}{" ..." * (len(arms) > 4)}'
    return Page('attention', title, subtitle, sentences, sections), folder_of(o)


def text_of(run, text=''):
    """Returns the tokens (1, T) of a text, without one of a window of the validation split."""
    return run.encode(text) if text else next(run.windows(1))[0]


def counted(runs):
    """Returns how many runs there are, in words."""
    return f'{len(runs)} runs' if len(runs) > 1 else f'at iteration {runs[0].iteration:,}'


# -----------------------------------------------------------------------------
# one pass

def watch(run, idx):
    """Returns {module's name: patterns (B, heads, T, T)} by layer, and [Logged], of a pass over idx (B, T).

    A pattern's row is NaN where a token did not come to the module, as where a variant routes them.
    """
    stats, positions = {}, {}
    with attention_patterns(run.model, positions) as found, stat_owners(run.model, stats) as owners:
        run.logits(idx, stats=stats)
    T = idx.size(1)
    patterns = {name: by_token(found[name], *positions[name], T).cpu() for name in sorted(found, key=place)}
    attends = {n for n, m in eager(run.model).named_modules() if isinstance(m, CausalSelfAttention)}
    logged = []
    for name, values in stats.items():
        before = []
        for module, value in zip(owners[name], values, strict=True):
            before.append(module)
            n_head = run.model.config.n_head if module in attends else 0
            logged.append(Logged(name, words_of(module, before.count(module)), module,
                                 heads_and_positions(value.float().cpu(), *idx.shape, n_head)))
    return patterns, logged


def by_token(weights, pos_q, pos_k, T):
    """Returns weights (B, nh, S, Sk) of queries at pos_q (B, S) and keys at pos_k (B, Sk) as (B, nh, T, T).

    Rows without a query are NaN; positions from T on hold no token.
    """
    B, nh, S, _ = weights.shape
    if S == T and torch.equal(pos_q, torch.arange(T, device=pos_q.device).expand(B, T)):
        return weights
    full = weights.new_zeros(B, T + 1, T + 1, nh)
    row, q, k = torch.arange(B, device=weights.device)[:, None, None], pos_q.clamp(max=T), pos_k.clamp(max=T)
    full[row, q[:, :, None], k[:, None, :]] = weights.permute(0, 2, 3, 1)
    absent = torch.ones(B, T + 1, dtype=torch.bool, device=weights.device).scatter(1, q, False)
    full[absent] = torch.nan
    return full[:, :T, :T].permute(0, 3, 1, 2)


@contextmanager
def stat_owners(model, stats):
    """A context that collects which modules log: {stat's name: [module's name, for each tensor of stats]}."""
    owners, running = {}, []

    # what has no owner was logged since the last call began or ended, by the module that was running
    def take_over():
        for stat, values in stats.items():
            known = owners.setdefault(stat, [])
            known += [running[-1]] * (len(values) - len(known))

    def begin(name):
        take_over()
        running.append(name)

    def end():
        take_over()
        running.pop()

    with ExitStack() as stack:
        for name, module in eager(model).named_modules():
            name = name or 'model'
            stack.callback(module.register_forward_pre_hook(lambda m, args, name=name: begin(name)).remove)
            stack.callback(module.register_forward_hook(lambda *_: end()).remove)
        yield owners


def heads_and_positions(value, B, T, n_head):
    """Returns a logged tensor as (B, heads, T), 1 for what it does not depend on, the mean over all else.

    n_head: 0 where no dimension is that of heads.
    """
    rows = value.ndim > 1 and value.size(0) == B
    value = value if rows else value[None]
    axes = range(1, value.ndim)
    t = next((i for i in axes if rows and value.size(i) == T), None)
    h = next((i for i in axes if i != t and value.size(i) == n_head), None)
    others = [i for i in axes if i not in (t, h)]
    value = value.mean(others, keepdim=True) if others else value
    value = value.permute(0, *([] if h is None else [h]), *([] if t is None else [t]), *others)
    return value.reshape(len(value), 1 if h is None else n_head, 1 if t is None else T)


def place(name):
    """Returns (layer, map) of a pattern's name: (2, 1) for 'transformer.h.2.attn', (2, 3) for '...attn:3'."""
    name, _, call = name.partition(':')
    return int(re.search(r'\.(\d+)\.', name)[1]), int(call or 1)


def words_of(module, nth=1):
    """Returns a module's name in words: 'layer 2', 'layer 2 mlp', 'model'; nth: which of its calls."""
    name = re.sub(r'^transformer\.h\.(\d+)\.?(attn$)?', r'layer \1 ', module).strip()
    return name if nth == 1 else f'{name} ({nth})'


def head_name(name, head):
    """Returns 'L2 H0', or of a module that attends more than once 'L2 map 3 H0'."""
    layer, n = place(name)
    return f'L{layer} {f"map {n} " if n > 1 else ""}H{head}'


# -----------------------------------------------------------------------------
# measures

def measure(run, limit=0):
    """Returns what heads look at over windows of the validation split, and the means of what is logged.

    They are {pattern's name: (windows, heads, 6)}, NaN where a window has no query, and
    {(name, place): (heads,)}. limit: how many windows; 0: all.
    """
    found, logged, rows = {}, {}, 0
    for x, y in run.windows(limit):
        patterns, stats = watch(run, x)
        for name, weights in patterns.items():
            found.setdefault(name, []).append(measure_heads(weights, (y != -1).cpu()))
        for stat in stats:
            key = stat.name, stat.place
            logged[key] = logged.get(key, 0) + len(x) * stat.value.mean((0, 2)).double()
        rows += len(x)
    heads = {name: torch.cat(parts) for name, parts in found.items()}
    return heads, {key: total / rows for key, total in logged.items()}


def measure_heads(weights, is_text):
    """Returns the MEASURES (B, nh, 6) of weights (B, nh, T, T): means over queries from the third on.

    is_text (B, T): False for queries that do not count. Weights count by size, as shares of their row's sum.
    """
    size = weights.double().abs()
    share = size / size.sum(-1, keepdim=True)
    i = torch.arange(weights.size(-1))
    entropy = -torch.xlogy(share, share).sum(-1) # (B, nh, T)
    values = torch.stack((
        (share * (i[:, None] - i)).sum(-1),
        entropy,
        entropy / torch.log(i + 1.0),
        share[..., 0],
        F.pad(share.diagonal(-1, -2, -1), (1, 0)),
        share.diagonal(0, -2, -1)), dim=2) # (B, nh, 6, T)
    counts = is_text & (i >= FROM)
    return values.masked_fill(~counts[:, None, None], torch.nan).nanmean(-1)


def by_layer(heads):
    """Returns {layer: the mean of its heads' measures (6,)}, of all windows."""
    layers = {}
    for name, values in heads.items():
        layers.setdefault(place(name)[0], []).append(values.nanmean(0)) # (nh, 6)
    return {layer: torch.cat(parts).nanmean(0).numpy() for layer, parts in layers.items()}


def all_heads(heads):
    """Returns the mean of all heads' measures (6,)."""
    return torch.cat([values.nanmean(0) for values in heads.values()]).nanmean(0).numpy()


def kinds(heads):
    """Returns {kind's measure: [(value, head's name)]} of heads that are of the kind, the clearest first."""
    found = {}
    for measure, (_, least, _) in KINDS.items():
        at = list(MEASURES).index(measure)
        all_ = [(float(v), head_name(name, head)) for name, values in heads.items()
                for head, v in enumerate(values.nanmean(0)[:, at])]
        found[measure] = sorted((pair for pair in all_ if pair[0] >= least), reverse=True), max(all_)
    return found


def pair(base_runs, base_heads, runs, heads):
    """Returns an arm's measures minus the baseline's, by common seed: (n, 6), and {layer: (n, 6)}."""
    base = {run.seed: h for run, h in zip(base_runs, base_heads, strict=True)}
    both = [(h, base[run.seed]) for run, h in zip(runs, heads, strict=True) if run.seed in base]
    layers = {}
    for ours, theirs in both:
        ours, theirs = by_layer(ours), by_layer(theirs)
        for layer in ours.keys() & theirs.keys():
            layers.setdefault(layer, []).append(ours[layer] - theirs[layer])
    # a layer that some runs lack has no mean
    return (np.array([all_heads(a) - all_heads(b) for a, b in both]).reshape(-1, len(MEASURES)),
            {layer: np.array(d) for layer, d in sorted(layers.items()) if len(d) == len(both)})


# -----------------------------------------------------------------------------
# sentences

def in_short(arm, heads):
    """Returns a sentence on the heads of an arm's runs."""
    _, digits, *_ = MEASURES['distance']
    distance = over_seeds([all_heads(run)[0] for run in heads])
    counts = [f'{over_seeds([len(kinds(run)[measure][0]) for run in heads]).text(1)} {title}'
              for measure, (title, *_) in KINDS.items()]
    total = sum(values.size(1) for values in heads[0].values())
    return (f'{arm}: heads look {distance.text(digits)} tokens back in the mean; of {total} there are '
            f'{", ".join(counts)}.')


def differs_most(arm, base, base_mean, differences, layers):
    """Returns a sentence on the measure in which an arm's heads differ most from the baseline's.

    base_mean: the baseline's measures (6,); differences, layers: what pair() returns.
    """
    n = len(differences)
    if n < 2:
        return f'{arm}: fewer than two seeds in common with {base}, so no difference has an interval.'
    # spread is entropy on another scale
    names = [name for name in MEASURES if name != 'spread']
    columns = [list(MEASURES).index(name) for name in names]
    best, d, sure = most_different(differences[:, columns], base_mean[columns])
    relative = np.abs(d.mean / base_mean[columns])
    _, digits, unit, words = MEASURES[names[best]]
    # two digits of the interval
    digits = min(max(digits, 1 - int(np.floor(np.log10(d.half[best] + 1e-12)))), 6)
    size = (f'{words}: {d.mean[best]:+.{digits}f} ± {d.half[best]:.{digits}f}{unit}, '
            f'{100 * relative[best]:.2g} % of {base}\'s {base_mean[columns[best]]:.3g}')
    how_sure = f'{n} seeds; 95 % for all {len(names)} measures together'
    if not sure:
        return (f'{arm}: no measure of its heads differs for sure from {base}\'s. '
                f'Nearest to it comes {size} ({how_sure}).')
    by_layer = {layer: values[:, columns[best]].mean() for layer, values in layers.items()}
    layer = max(by_layer, key=lambda layer: abs(by_layer[layer]), default=None)
    where = '' if layer is None else f', most in layer {layer}: {by_layer[layer]:+.{digits}f}'
    return f'{arm} differs from {base} most in {size}{where} ({how_sure}).'


def kinds_of_one(heads):
    """Returns a sentence for each kind of head, of one run."""
    total, lines = sum(values.size(1) for values in heads.values()), []
    for measure, (found, most) in kinds(heads).items():
        title, _, meaning = KINDS[measure]
        listed = ', '.join(f'{name} ({value:.2f})' for value, name in found[:6])
        more = f' and {len(found) - 6} more' if len(found) > 6 else ''
        which = (f'{len(found)} of {total}: {listed}{more}.' if found else
                 f'none of {total}; nearest is {most[1]} ({most[0]:.2f}).')
        lines.append(f'{title[0].upper()}{title[1:]}, {meaning}: {which}')
    return [*lines, 'This is one run: with another seed heads come in another order, and in other numbers. '
                    'A study\'s folder gives intervals over seeds.']


# -----------------------------------------------------------------------------
# tables

def mean_cells(values, sign=''):
    """Returns the Cells of MEASURES, of values (n, 6), one row for each seed."""
    return [mean_cell(over_seeds(column), digits, sign)
            for column, (_, digits, *_) in zip(np.transpose(values), MEASURES.values(), strict=True)]


def mean_cell(mean, digits, sign=''):
    """Returns the Cell of a Mean of numbers, '–' for NaN."""
    return Cell('–') if np.isnan(mean.mean) else Cell(mean.text(digits, sign), float(mean.mean))


def measure_titles():
    return [title for title, *_ in MEASURES.values()]


def difference_table(pairs, base):
    """Returns the Table of all arms' differences to the baseline, whole and by layer."""
    rows = []
    for arm, (whole, layers) in pairs.items():
        named = {'all heads': whole} | {f'layer {n}': d for n, d in layers.items()}
        rows += [[f'{arm}, {name}', *mean_cells(d, '+')] for name, d in named.items() if len(d)]
    return Table(f'Differences to {base}', ['arm', *measure_titles()], rows,
                 'Seed by seed; 95 % intervals, each by itself, over seeds.')


def layer_table(heads):
    """Returns the Table of means over the heads of each layer; heads: {arm: [one for each seed]}."""
    layers = {arm: [by_layer(h) for h in runs] for arm, runs in heads.items()}
    numbers = sorted({n for runs in layers.values() for run in runs for n in run})
    rows = [[f'layer {n}{f", {arm}" * (len(heads) > 1)}', *mean_cells([run[n] for run in runs])]
            for n in numbers for arm, runs in layers.items() if all(n in run for run in runs)]
    return Table('Means over the heads of a layer', ['layer', *measure_titles()], rows)


def kind_table(heads):
    """Returns the Table of how many heads are of each kind."""
    rows = []
    for arm, runs in heads.items():
        found = [kinds(run) for run in runs]
        total = sum(values.size(1) for values in runs[0].values())
        counts = [over_seeds([len(one[measure][0]) for one in found]) for measure in KINDS]
        rows.append([arm, Cell(str(total), total), *(mean_cell(n, int(len(runs) > 1)) for n in counts)])
    note = '; '.join(f'{title}: {meaning}' for title, _, meaning in KINDS.values())
    return Table('Kinds of heads', ['', 'heads', *(title for title, *_ in KINDS.values())], rows,
                 f'{note[0].upper()}{note[1:]}.')


def head_table(heads, study):
    """Returns the Table of each head; in a study a layer's heads are ordered by distance, in each seed."""
    rows, several = [], len(heads) > 1
    names = sorted({name for runs in heads.values() for name in runs[0]}, key=place)
    for name in names:
        ranks = max(runs[0][name].size(1) for runs in heads.values() if name in runs[0])
        for rank in range(ranks):
            for arm, runs in heads.items():
                if any(name not in run or rank >= run[name].size(1) for run in runs):
                    continue
                values = [run[name].nanmean(0).numpy() for run in runs] # (nh, 6) each
                if study:
                    values = [v[np.argsort(v[:, 0])] for v in values]
                title = f'{head_name(name, "")[:-2]}, no. {rank + 1}' if study else head_name(name, rank)
                rows.append([f'{title}{f", {arm}" * several}', *mean_cells([v[rank] for v in values])])
    note = ('The heads of a layer have no order that seeds share, so they are ordered by how far back they '
            'look: no. 1 looks at what is nearest.' if study else '')
    return Table('Heads', ['head', *measure_titles()], rows, note)


# -----------------------------------------------------------------------------
# patterns and what is logged

def token_names(run, idx):
    """Returns the texts of tokens idx (1, T) with signs for blanks, () where there are too many to write."""
    if idx.size(1) > NAMED:
        return ()
    texts = [run.tokenizer.decode([i]) for i in idx[0].tolist()]
    return [text.replace('\n', '↵').replace(' ', '␣') for text in texts]


def draw_patterns(patterns, logged, names=(), label=''):
    """Returns Maps for each layer of patterns (1, heads, T, T), with marks where logged windows end.

    names: of the tokens; label: in the titles and files' names, as of the arm.
    """
    layers, notes = {}, {}
    for name, weights in patterns.items():
        layer, n = place(name)
        title, (over, lines) = f'map {n}, ' if n > 1 else '', lines_over(name, weights, logged)
        if over:
            notes[layer] = f'Orange marks where the {over} ends, so many tokens back, if that is within the text.'
        elif weights.isnan().any():
            notes[layer] = 'Empty rows: tokens that do not come to this layer.'
        layers.setdefault(layer, []).extend(
            Panel(f'{title}head {h}', w.float().numpy(), lines[h]) for h, w in enumerate(weights[0]))
    return [Maps(slug('attention', label, f'layer_{layer}'), f'{f"{label}, " if label else ""}layer {layer}',
                 panels, 'key', 'query', notes.get(layer, ''), most=1.0, x_names=names, y_names=names)
            for layer, panels in layers.items()]


def lines_over(name, weights, logged):
    """Returns the name of a distance that a module logs, and the key at its end, (heads, T); '' and Nones."""
    _, nh, T, _ = weights.shape
    stat = next((s for s in logged if s.name in IN_TOKENS and s.module == name), None)
    # of routed tokens, what is logged is not by position
    if stat is None or stat.value.size(1) not in (1, nh) or weights.isnan().any():
        return '', [None] * nh
    return stat.name, (torch.arange(T) - stat.value[0]).expand(nh, T).numpy()


def pattern_section(drawn, text, study):
    """Returns the Section of maps, layer by layer, arms below each other."""
    layers = {}
    for d in drawn:
        for maps in draw_patterns(d.patterns, d.logged, d.names, d.run.title if study else ''):
            layers.setdefault(maps.title.rpartition(' ')[2], []).append(maps)
    shown = Text('The text given' if text else 'A window of the validation split',
                 drawn[0].run.tokenizer.decode(drawn[0].idx[0].tolist()))
    return Section('Patterns', [shown, *(maps for layer in layers.values() for maps in layer)],
                   'Each row is a token, and shows which tokens up to itself the head takes values from. '
                   'The color grows with the root of a weight, so that small ones are seen, too.')


def logged_sections(logged, drawn, study):
    """Returns a Section with what variants log: means over windows and seeds, and by position in a text."""
    rows = []
    for arm, runs in logged.items():
        for key in runs[0]:
            values = np.array([run[key].numpy() for run in runs]) # (seeds, heads)
            several = values.shape[1] > 1
            ends = [short_mean(f(values, axis=1)) if several else Cell('–') for f in (np.min, np.max)]
            rows.append([f'{f"{arm}: " * study}{" ".join(key)}', short_mean(values.mean(1)), *ends])
    if not rows:
        return []
    items = [Table('Means over the windows', ['logged', 'mean', 'lowest head', 'highest head'], rows)]
    for d in drawn:
        items += draw_logged(d.patterns, d.logged, d.names, d.run.title if study else '')
    return [Section('What the variant logs', items, 'By position: of the text whose patterns are above.')]


def short_mean(values):
    """Returns the Cell of a mean over seeds with its interval, of any size."""
    d = over_seeds(values)
    return Cell(f'{d.mean:.4g}' if np.isnan(d.half) else f'{d.mean:.4g} ± {d.half:.2g}', float(d.mean))


def draw_logged(patterns, logged, names=(), label=''):
    """Returns a Chart of each thing logged by position, and Maps where heads have their own.

    Without what draw_patterns() has drawn.
    """
    items = []
    for stat in dict.fromkeys(s.name for s in logged):
        found = [s for s in logged if s.name == stat and s.value.size(2) > 1]
        if not found or stat in IN_TOKENS and any(s.module in patterns for s in found):
            continue
        title, fade = f'{label}: {stat}' if label else stat, 0.7 / max(len(found) - 1, 1)
        curves = [s.value[0].mean(0).tolist() for s in found]
        lines = [Series(s.place, 1, list(range(len(y))), y, alpha=1 - fade * i)
                 for i, (s, y) in enumerate(zip(found, curves, strict=True))]
        items.append(Chart(slug('logged', label, stat), f'{title} by position', 'position, 0 is the first',
                           stat, lines, layers=len(lines) > 2))
        if all(s.value.size(1) > 1 for s in found):
            heads, panels = found[0].value.size(1), [Panel(s.place, s.value[0].numpy()) for s in found]
            items.append(Maps(slug('logged', label, stat, 'heads'), f'{title} by head and position', panels,
                              'position', 'head', signed=any((p.values < 0).any() for p in panels),
                              x_names=names, y_names=[f'H{h}' for h in range(heads)]))
    return items


def slug(*parts):
    """Returns a file's name of these parts."""
    return re.sub(r'[^A-Za-z0-9_-]+', '_', '_'.join(filter(None, parts)))[:80]
