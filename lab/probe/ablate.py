"""Measures what the loss owes to heads, layers or gates, by taking each away: probe.py ablate --what=heads

Two ways. Zero: a head, attention's or the MLP's update, or a gate, is 0; a whole block hands on its input. Mean: it
is its mean over other windows of the split, so that only what depends on the text is lost; a model has never seen
zeros there, and what it loses by them may be no more than a constant.
"""
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch

from core.errors import Stop
from core.training.evaluation import batch_rows, token_losses
from lab.probe.hooks import eager, heads_of
from lab.probe.neutral import hand_on, neutral_run, own_modules, parts, put_out_nothing, sample_tokens
from lab.probe.options import RunOptions, folder_of, open_from, read_options
from lab.probe.page import Maps, Page, Panel, Section, Table, number
from lab.probe.seeds import Mean, by_arm, over_seeds
from lab.report.figures import Chart, Series
from lab.stats import text_interval

WAYS = 'zero', 'mean'


@dataclass
class Options(RunOptions):
    what: Literal['heads', 'layers', 'gates'] = 'heads' # what is taken away, one at a time


class Site(NamedTuple):
    """What can be taken away: a module's output, or channels of its first input, as far as it is not idle."""
    layer: int | None           # None: of no layer
    label: str                  # within the layer
    module: str                 # its name in the model
    idle: object                # f(inputs, output) as in own_modules()
    channels: tuple | None = None # of the input, (first, after the last); None: the whole output

    @property
    def title(self):
        return self.label if self.layer is None else f'layer {self.layer} {self.label}'


# -----------------------------------------------------------------------------
# what there is

def head_sites(run):
    """Returns (Sites of the heads, sentences on layers that have none): slices of what c_proj takes in.

    A layer has them where that is, to the bit, what attend() puts out, (B, nh, T, hs), side by side.
    """
    sites, without, model = [], [], eager(run.model)
    found = heads_of(run, sample_tokens(run))
    for layer in range(len(model.transformer.h)):
        attn = f'transformer.h.{layer}.attn'
        if attn not in found:
            without.append(f'{run.arm}: layer {layer} has no heads that can be taken away, because what c_proj takes '
                           'in is not the heads\' outputs side by side.')
            continue
        n = found[attn]
        hs = model.get_submodule(attn).c_proj.in_features // n
        sites += [Site(layer, f'head {i}', f'{attn}.c_proj', put_out_nothing, (i * hs, (i + 1) * hs)) for i in range(n)]
    return sites, without


def layers_of(run):
    """Returns (Sites of each block's attention, MLP and of the whole block, sentences on what was left out)."""
    blocks = range(len(eager(run.model).transformer.h))
    sites = [Site(i, label, f'transformer.h.{i}{end}', idle) for i in blocks for label, end, idle in (
        ('attention', '.attn', put_out_nothing), ('MLP', '.mlp', put_out_nothing), ('block', '', hand_on))]
    found = mean_updates(run, sites, [sample_tokens(run)])
    return ([site for site in sites if site in found],
            [f'{run.arm}: {site.title} was left out, because it puts out more than one tensor, or never runs.'
             for site in sites if site not in found])


def gates_of(run):
    """Returns Sites of the modules that the baseline does not have."""
    sites = []
    for name, idle in own_modules(run).items():
        *_, layer, rest = ['', None, name]
        if name.startswith('transformer.h.'):
            _, _, layer, rest = name.split('.', 3)
        sites.append(Site(layer and int(layer), rest, name, idle))
    return sites


# -----------------------------------------------------------------------------
# taking away

@contextmanager
def ablated(model, sites, means=None):
    """A context in which sites are idle, or with means, {Site: tensor}, idle plus their mean update."""
    def change(site, x, y):
        idle = site.idle(x, y)
        return idle if means is None else idle + means[site].to(y.dtype)

    def before(site, x):
        y = x[0].clone()
        part = y[..., slice(*site.channels)]
        part.copy_(change(site, x, part))
        return y, *x[1:]

    model = eager(model)
    with ExitStack() as stack:
        for site in sites:
            module = model.get_submodule(site.module)
            if site.channels is None:
                hook = module.register_forward_hook(lambda m, x, y, site=site: change(site, x, y))
            else:
                hook = module.register_forward_pre_hook(lambda m, x, site=site: before(site, x))
            stack.callback(hook.remove)
        yield


def mean_updates(run, sites, batches):
    """Returns {Site: its mean update over the positions of all batches of tokens (B, T)}, float32.

    Sites that do not run, or put out anything else than one tensor (B, T, ...), are not in it.
    """
    sums, counts = {}, {}

    def add(site, x, y):
        if torch.is_tensor(y) and torch.is_tensor(idle := site.idle(x, y)) and y.shape[:2] == shape:
            sums[site] = sums.get(site, 0) + (y - idle).double().sum((0, 1))
            counts[site] = counts.get(site, 0) + shape.numel()

    def cut(site, x):
        return x[0][..., slice(*site.channels)]

    model = eager(run.model)
    with ExitStack() as stack:
        for site in sites:
            module = model.get_submodule(site.module)
            if site.channels is None:
                hook = module.register_forward_hook(lambda m, x, y, site=site: add(site, x, y))
            else:
                hook = module.register_forward_pre_hook(lambda m, x, site=site: add(site, x, cut(site, x)))
            stack.callback(hook.remove)
        for idx in batches:
            shape = idx.shape
            run.logits(idx)
    return {site: (sums[site] / counts[site]).float() for site in sites if site in sums}


def two_sets_of_windows(run, limit):
    """Returns tokens and targets (W, T) of windows to judge on, and tokens (V, T) of others, for means.

    Of twice `limit` windows spread over the validation split every second one; only whole ones. Stop without two.
    """
    x, y = map(torch.cat, zip(*run.windows(2 * limit)))
    whole = (y != -1).all(1)
    if whole.sum() < 2:
        raise Stop(f'{run.folder}: the validation split has {int(whole.sum())} whole windows of '
                   f'{run.model.config.block_size} tokens; one to judge on and another for means are needed')
    x, y = x[whole], y[whole]
    return x[::2], y[::2], x[1::2]


def window_losses(run, x, y):
    """Returns the mean loss of each window of tokens and targets (W, T), in nats, float64 (W,)."""
    rows = batch_rows(run.machine, run.data, run.options['batch_size'])
    found = [token_losses(run.logits(a), b).double().mean(1) for a, b in zip(x.split(rows), y.split(rows))]
    return torch.cat(found).cpu().numpy()


class Effects(NamedTuple):
    """What taking things away does to one run; losses are by window, in nats."""
    sites: list
    loss: np.ndarray            # (W,), of the whole model
    changes: dict               # way -> (sites, W): the loss without the site minus that with it
    together: dict              # way -> (W,): the same without all of them


def ablate(run, sites, windows=64):
    """Returns the Effects of taking each Site of a run away, and all of them together."""
    x, y, others = two_sets_of_windows(run, windows)
    means = mean_updates(run, sites, others.split(batch_rows(run.machine, run.data, run.options['batch_size'])))
    loss = window_losses(run, x, y)

    def change(some, way):
        if way == 'mean' and not means.keys() >= set(some):
            return np.full_like(loss, np.nan)
        with ablated(run.model, some, means if way == 'mean' else None):
            return window_losses(run, x, y) - loss

    return Effects(sites, loss, {way: np.array([change([site], way) for site in sites]) for way in WAYS},
                   {way: change(outermost(sites), way) for way in WAYS})


def outermost(sites):
    """Returns the sites that are not within another one."""
    names = [site.module for site in sites if site.channels is None]
    return [s for s in sites if not any(s.module.startswith(name + '.') for name in names)]


def take_out(run, windows=64):
    """Returns ({how: change of the loss (W,)}, sentences): without the variant, and without each part of a sum."""
    x, y, _ = two_sets_of_windows(run, windows)
    loss, found, refused = window_losses(run, x, y), {}, []
    names = list(parts(run))
    for part in [None, *names] if len(names) > 1 else [None]:
        try:
            other, how = neutral_run(run, part)
        except Stop as refusal:
            refused.append(f'{refusal}.' if str(refusal).startswith(run.arm) else f'{run.arm}: {refusal}.')
        else:
            found[how] = window_losses(other, x, y) - loss
    return found, refused


# -----------------------------------------------------------------------------
# over windows or seeds

def mean_of(changes):
    """Returns the Mean of changes, a list of (W,), one for each run: over seeds, or of one run over its text."""
    if len(changes) > 1:
        return over_seeds([c.mean() for c in changes])
    found = text_interval(changes[0]) if np.isfinite(changes[0]).all() else None
    return Mean(changes[0].mean(), (found['high'] - found['low']) / 2 if found else np.nan, 1)


def ranked(effects):
    """Returns the Effects with each layer's sites in the order of what their means cost, under their ranks."""
    cost = effects.changes['mean'].mean(1)
    order = sorted(range(len(cost)), key=lambda i: (effects.sites[i].layer, -cost[i]))
    layers = [effects.sites[i].layer for i in order]
    sites = [effects.sites[i]._replace(label=f'head of rank {n - layers.index(layers[n]) + 1}')
             for n, i in enumerate(order)]
    return effects._replace(sites=sites, changes={way: values[order] for way, values in effects.changes.items()})


class Summary(NamedTuple):
    """An arm's Effects in means over its runs."""
    arm: str
    sites: list
    loss: Mean
    changes: dict               # way -> [Mean of each site]
    together: dict              # way -> Mean
    curves: dict                # way -> [(sites,) of each run]


def summarise(arm, found):
    """Returns the Summary of an arm's Effects, one for each run, whose sites correspond."""
    # by way: of each site the changes (W,) of all runs
    changes = {way: list(zip(*(e.changes[way] for e in found), strict=True)) for way in WAYS}
    return Summary(arm, found[0].sites, mean_of([e.loss for e in found]),
                   {way: [mean_of(c) for c in changes[way]] for way in WAYS},
                   {way: mean_of([e.together[way] for e in found]) for way in WAYS},
                   {way: [e.changes[way].mean(1) for e in found] for way in WAYS})


# -----------------------------------------------------------------------------
# the page

def main(argv):
    """Returns the Page, and the folder that it goes to."""
    o = read_options(Options, argv)
    runs = open_from(o)
    make = gates_page if o.what == 'gates' else parts_page
    page = make(o, by_arm(runs))
    page.sentences.append(interval_sentence(runs))
    return page, folder_of(o)


def interval_sentence(runs):
    many = max(len(some) for some in by_arm(runs).values())
    if many > 1:
        return (f'Intervals are 95 %, each by itself, over {many} seeds. A negative change is a lower loss, so '
                'that the model is better without.')
    return ('Intervals are 95 %, each by itself, over the text of this one run, in blocks of windows; they say nothing '
            'about other seeds. A negative change is a lower loss, so that the model is better without.')


def parts_page(o, arms):
    """Returns the Page on heads or layers, but for its last sentence."""
    find, summaries, left_out = head_sites if o.what == 'heads' else layers_of, [], []
    for arm, runs in arms.items():
        found = []
        for run in runs:
            sites, without = find(run)
            left_out += [text for text in without if text not in left_out]
            found.append(ablate(run, sites, o.windows) if sites else None)
        if all(found):
            # a head's number means nothing in another seed
            found = [ranked(e) for e in found] if o.what == 'heads' and len(found) > 1 else found
            summaries.append(summarise(arm, found))
    if not summaries:
        raise Stop(left_out[0] if left_out else f'{o.out_dir}: nothing to take away')
    sentences = [text for summary in summaries for text in sentences_on(summary, o.what)] + left_out
    several = any(len(runs) > 1 for runs in arms.values())
    note = ('A head\'s number means nothing in another seed, so the heads of a layer are in the order of what they '
            'cost in each run; ranks come from the same numbers, which makes the first of equal heads look better '
            'than the last.') if several and o.what == 'heads' else ''
    tables = Section('Change of the loss, in nats', [table_of(summaries)], note)
    pictures = Section('Pictures', [maps_of(summaries, o.what), chart_of(summaries, o.what)])
    where = f'{o.out_dir}, {o.windows} windows of the validation split; means over {o.windows} others'
    return Page(f'ablate_{o.what}', f'Loss without each of the {o.what}', where, sentences, [tables, pictures])


def sentences_on(s, what):
    """Yields the sentences on an arm's heads or layers."""
    groups = {'heads': s.sites} if what == 'heads' else {
        'attention and MLPs': [site for site in s.sites if site.label != 'block'],
        'blocks': [site for site in s.sites if site.label == 'block']}
    for name, sites in groups.items():
        here = [i for i, site in enumerate(s.sites) if site in sites]
        if not here:
            continue
        first = max(here, key=lambda i: s.changes['mean'][i].mean)
        mean, zero = s.changes['mean'][first], s.changes['zero'][first]
        sure = '' if np.isnan(mean.half) or mean.mean > mean.half else ', which may be nothing'
        yield (f'{s.arm}: of the {name} {s.sites[first].title} matters most. At its mean the loss changes by '
               f'{mean.text(sign="+")} nats, {100 * mean.mean / s.loss.mean:.1f} % of {s.loss.mean:.4f}{sure}; at zero '
               f'by {zero.text(sign="+")}.')
    means = s.changes['mean']
    if not np.isnan(means[0].half):
        matter, harm = (sum(sign * m.mean > m.half for m in means) for sign in (1, -1))
        yield f'{s.arm}: at their means {matter} of {len(means)} have an interval above 0, and {harm} one below 0.'
    away, total = s.together['mean'], sum(m.mean for m in means)
    if what == 'heads':
        yield (f'{s.arm}: these numbers do not add up. One at a time the heads cost {total:.4f} nats in sum, all '
               f'together {away.text()}{explain(total, away)}.')
    else:
        yield (f'{s.arm}: these numbers do not add up: attention and MLP are in the block, and what one layer lacks '
               'others replace, or lack too.')


def explain(total, away):
    """Returns why the sum of single changes is not that of all together, if the Mean `away` is surely another."""
    if not abs(away.mean - total) > away.half:
        return ''
    return (', because where one is missing others stand in' if away.mean > total else
            ', because each takes with it what others make of its output')


def table_of(summaries):
    """Returns the Table of all sites by arm and way."""
    rows, several = {}, len(summaries) > 1
    columns = [(s, way) for s in summaries for way in WAYS]
    for s in summaries:
        for site in s.sites:
            rows.setdefault(site[:2], [site.title] + [number(np.nan)] * len(columns))
    for i, (s, way) in enumerate(columns):
        for site, mean in zip(s.sites, s.changes[way], strict=True):
            rows[site[:2]][1 + i] = cell(mean)
    together = ['all together', *(cell(s.together[way]) for s, way in columns)]
    titles = [f'{s.arm}, {way}' if several else way for s, way in columns]
    by_layer = [rows[key] for key in sorted(rows, key=lambda key: key[0])]
    return Table('One at a time', ['without', *titles], [*by_layer, together],
                 'zero: nothing in its place, or a block\'s input. mean: its mean over other windows.')


def cell(mean):
    """Returns the Cell of a Mean."""
    return number(mean.mean, sign='+')._replace(text=mean.text(sign='+') if np.isfinite(mean.mean) else '–')


def maps_of(summaries, what):
    """Returns the Maps of all sites, layer by head or part."""
    panels = []
    for s in summaries:
        labels = list(dict.fromkeys(site.label for site in s.sites))
        for way in WAYS:
            values = np.full((1 + max(site.layer for site in s.sites), len(labels)), np.nan)
            for site, mean in zip(s.sites, s.changes[way], strict=True):
                values[site.layer, labels.index(site.label)] = mean.mean
            panels.append(Panel(f'{s.arm}, {way}', values))
    several = 'rank' in summaries[0].sites[0].label
    names = names_of(panels, several)
    if what == 'heads':
        across = 'heads of the layer by rank' if several else 'head'
    else:
        across, names = 'what is taken away', names | dict(x_names=labels) if names else {}
    return Maps(f'ablate_{what}', 'Change of the loss, in nats', panels, across, 'layer', signed=True, **names)


def names_of(panels, several):
    """Returns the names of layers and heads, or ranks of heads, for Maps of Panels that are all of one shape."""
    shapes = {panel.values.shape for panel in panels}
    if len(shapes) > 1:
        return {}
    layers, heads = shapes.pop()
    return dict(y_names=list(map(str, range(layers))), x_names=[str(i + several) for i in range(heads)])


def chart_of(summaries, what):
    """Returns the Chart of changes, the largest first in each run."""
    series = []
    one = len(summaries) == 1
    for i, s in enumerate(summaries):
        for j, way in enumerate(WAYS[::-1] if one else ['mean']):
            label, index = (way, 1 + j) if one else (s.arm, i)
            series.append(series_of(label, index, s.curves[way], s.changes[way]))
    ways = 'at zero and at its mean' if one else 'at its mean'
    return Chart(f'ablate_{what}_sorted', 'By importance, the largest first', 'rank', 'nats', series,
                 f'What the loss changes by without one of the {what}, {ways}; bands are 95 % intervals.')


def series_of(label, index, curves, means):
    """Returns a Series of changes by rank: of runs' curves (sites,) each sorted, or of one run's Means."""
    x = list(range(1, len(means) + 1))
    if len(curves) > 1:
        m = over_seeds([np.sort(curve)[::-1] for curve in curves])
        return Series(label, index, x, list(m.mean), list(m.mean - m.half), list(m.mean + m.half),
                      seeds=[np.sort(curve)[::-1] for curve in curves])
    means = sorted(means, key=lambda m: -m.mean)
    half = [0.0 if np.isnan(m.half) else m.half for m in means]
    return Series(label, index, x, [m.mean for m in means], [m.mean - h for m, h in zip(means, half)],
                  [m.mean + h for m, h in zip(means, half)])


def gates_page(o, arms):
    """Returns the Page on what variants add, but for its last sentence."""
    tables, sentences, left_out = [], [], []
    # the baseline of a study adds nothing
    for arm, runs in {arm: runs for arm, runs in arms.items() if len(arms) == 1 or parts(runs[0])}.items():
        outs, found = [], []
        for run in runs:
            out, refused = take_out(run, o.windows)
            left_out += refused if run is runs[0] else []
            outs.append(out)
            sites = gates_of(run)
            found += [ablate(run, sites, o.windows)] if sites else []
        rows = [(how, mean_of([out[how] for out in outs]), Mean(np.nan, np.nan, 0))
                for how in outs[0] if all(how in out for out in outs)]
        sentences += [f'{arm}: {how}: the loss changes by {m.text(sign="+")} nats.' for how, m, _ in rows]
        if found:
            s = summarise(arm, found)
            rows += zip([site.title for site in s.sites], s.changes['zero'], s.changes['mean'], strict=True)
            sentences += gate_sentences(s)
        if rows:
            tables.append(Table(arm, ['what', 'taken out, or nothing in its place', 'its mean in its place'],
                                [[what, cell(zero), cell(mean)] for what, zero, mean in rows],
                                'By layer: modules that the baseline does not have.'))
    if not tables:
        raise Stop(left_out[0].removesuffix('.') if left_out else f'{o.out_dir}: no arm adds anything')
    if sentences:
        sentences.append('The rest of a model has been trained beside what is taken out, so this is how much the model '
                         'relies on it, not how much worse one trained without it would be.')
    where = f'{o.out_dir}, {o.windows} windows of the validation split; means over {o.windows} others'
    return Page('ablate_gates', 'Loss without what variants add', where, sentences + left_out,
                [Section('Change of the loss, in nats', tables)])


def gate_sentences(s):
    """Yields sentences on the modules that an arm's variant adds."""
    means = [m for m in zip(s.changes['mean'], s.sites) if np.isfinite(m[0].mean)]
    if means:
        most, site = max(means, key=lambda m: m[0].mean)
        yield (f'{s.arm}: of its {len(s.sites)} modules {site.title} depends most on the text: at its mean the loss '
               f'changes by {most.text(sign="+")} nats.')
        yield f'{s.arm}: with all of them at their means it changes by {s.together["mean"].text(sign="+")} nats.'
