"""Shows when a model learned to repeat what it has seen, and by which heads: probe.py induction --out_dir=...

It is given random tokens, twice. Only the second time can they be predicted, by a head that looks for an earlier
occurrence of the present token and copies the one after it: an induction head, which forms late and at once
(arXiv 2209.11895). Of a run with spaced checkpoints, --keep=log, all of its training is looked at.
"""
from contextlib import contextmanager
from dataclasses import dataclass, replace as with_fields
from typing import NamedTuple

import numpy as np
import torch

from configurator import Count, Whole
from core.errors import Stop
from core.rng import generator
from core.run.checkpoint import load_model_tensors, model_tensors, step_of
from core.run.folder import RunFolder
from core.training.evaluation import token_losses
from lab.probe.hooks import attention_patterns, eager, heads_of, record, replace
from lab.probe.options import RunOptions, folder_of, open_from, read_options
from lab.probe.page import Maps, Page, Panel, Section, Table, number
from lab.probe.seeds import by_arm, over_seeds
from lab.report.figures import COLORS, Chart, Series, arm_style

# an induction head gives at least this share of its attention to the token after the earlier occurrence, and half
# of what the best head gives; even attention over 48 tokens gives .02
LEAST_SCORE = 0.1
# nats: a model whose second half is not easier than the first by more has learned no repetition
LEAST_GAIN = 0.1
# models of all runs together that are looked at: a minute, where each takes .2 s
MODELS = 300


@dataclass
class Options(RunOptions):
    windows: Count = 16                 # sequences of repeated random tokens
    checkpoints: Count = 40             # of a run at most, spread over the logarithm of the iteration
    seed: Whole = 1337                  # of the random tokens


class Scores(NamedTuple):
    """What an attention module's heads do on repeated tokens, arrays (heads,)."""
    induction: np.ndarray       # attention from a token to the one after its earlier occurrence: prefix matching
    previous: np.ndarray        # attention to the token before, which an induction head needs below it
    copying: np.ndarray         # nats that the head adds to the logit of the right token, over the mean; NaN: undefined


class Look(NamedTuple):
    """What a model does on repeated tokens."""
    first: float                # loss in the first half, nats
    second: float               # loss in the second half
    scores: dict                # {attention module's name: Scores}


class Drop(NamedTuple):
    """The octave of iterations, from `start` to twice that, in which second - first half fell most."""
    start: float
    nats: float


# -----------------------------------------------------------------------------
# one model

def repeated_tokens(run, rows=16, seed=1337):
    """Returns random tokens twice, (rows, 2 * half): half a context, in which no token is twice if there are enough."""
    half, known = run.model.config.block_size // 2, run.tokenizer.known
    if half < 4:
        raise Stop(f'block_size={run.model.config.block_size}: induction needs a context of at least 8')
    draw = generator(seed, 'repeated')
    if known >= half:
        once = torch.rand(rows, known, generator=draw).argsort(1)[:, :half]
    else:
        once = torch.randint(known, (rows, half), generator=draw)
    return once.repeat(1, 2).to(run.machine.device)


@torch.no_grad()
def losses(run, idx):
    """Returns the mean losses (first, second half) in nats, without the first token of each."""
    return mean_losses(run.logits(idx), idx)


def mean_losses(logits, idx):
    """Returns what losses() returns, of logits (B, T, V)."""
    half = idx.size(1) // 2
    nats = token_losses(logits[:, :-1], idx[:, 1:]).double() # (B, 2 * half - 1), of token 1, 2, ...
    return nats[:, :half - 1].mean().item(), nats[:, half:].mean().item()


def look(run, idx, direct=True):
    """Returns the Look at a model; direct=False leaves out what copying() finds, which takes several passes."""
    half = idx.size(1) // 2
    with attention_patterns(run.model) as patterns:
        logits = run.logits(idx)
    # queries of the second half whose next token is known
    t, found, added = torch.arange(half, 2 * half - 1), {}, copying(run, idx) if direct else {}
    for name, weights in patterns.items(): # (B, heads, T, Tk)
        # a variant may attend to more than the tokens
        if weights.size(-1) == idx.size(1):
            induction, previous = (weights[:, :, t, keys].double().mean((0, 2)).cpu().numpy()
                                   for keys in (t - half + 1, t - 1))
            found[name] = Scores(induction, previous, added.get(name, np.full(len(induction), np.nan)))
    return Look(*mean_losses(logits, idx), found)


def copying(run, idx):
    """Returns {attention module's name: (heads,)}: what each adds to the right token's logit in the second half.

    It is the direct path, from c_proj to the logits, to first order, less the mean over the vocabulary. {} where
    the residual stream is not the sum of what embeddings, attention and MLPs put out, or heads are not apart.
    """
    model, half, heads = eager(run.model), idx.size(1) // 2, heads_of(run, idx)
    blocks = [f'transformer.h.{i}' for i in range(len(model.transformer.h))]
    with record(model, 'transformer.ln_f', *(f'{name}.c_proj' for name in heads), blocks[0], inputs=True) as taken, \
            record(model, *(f'{b}.attn' for b in blocks), *(f'{b}.mlp' for b in blocks)) as given:
        run.logits(idx)
    x, parts = taken['transformer.ln_f'], [given.get(f'{b}.{part}') for b in blocks for part in ('attn', 'mlp')]
    if not heads or any(p is None or p.shape != x.shape for p in parts):
        return {}
    whole = taken[blocks[0]] + sum(parts)
    if not torch.allclose(whole, x, rtol=1e-3, atol=1e-3):
        return {}
    # the gradient of the right token's logit, over the mean, by the last residual stream
    t = torch.arange(half, 2 * half - 1)
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        logits = model.logits(model.transformer.ln_f(x), run.step())[:, t] # (B, half - 1, V)
        right = logits.gather(-1, idx[:, t + 1, None])[..., 0] - logits.mean(-1)
        slope, = torch.autograd.grad(right.sum(), x) # (B, T, C)
    found = {}
    for name, n in heads.items():
        proj, y = model.get_submodule(f'{name}.c_proj'), taken[f'{name}.c_proj'][:, t]
        if not isinstance(proj, torch.nn.Linear):
            continue
        # a bias belongs to no head
        by_channel = y * (slope[:, t] @ proj.weight.detach()) # (B, half - 1, C)
        found[name] = by_channel.double().mean((0, 1)).view(n, -1).sum(1).cpu().numpy()
    return found


@contextmanager
def without_heads(run, heads, counts):
    """A context in which heads, [(attention module's name, head)], put out 0: slices of what c_proj takes in.

    counts: heads_of(run, ...).
    """
    def silence(mine, n):
        def change(y): # (B, T, C)
            y = y.clone()
            y.unflatten(-1, (n, -1))[:, :, mine] = 0
            return y
        return change

    names = {name for name, _ in heads}
    changes = {f'{name}.c_proj': silence([h for other, h in heads if other == name], counts[name]) for name in names}
    with replace(run.model, changes, inputs=True):
        yield


def induction_heads(look):
    """Returns [(attention module's name, head)] of a Look's induction heads, the best first."""
    scored = sorted(((score, name, head) for name, scores in look.scores.items()
                     for head, score in enumerate(scores.induction)), reverse=True)
    return [(name, head) for score, name, head in scored if score >= max(LEAST_SCORE, scored[0][0] / 2)]


def loss_without(run, idx, look, heads):
    """Returns the second half's loss without heads, and without as many others of these layers, of the lowest scores.

    Heads of a layer below may serve induction too: they move the token before to where it is looked for.
    """
    counts = heads_of(run, idx)
    heads = [head for head in heads if head[0] in counts]
    layers = {name for name, _ in heads}
    others = sorted((score, name, h) for name, scores in look.scores.items() if name in layers
                    for h, score in enumerate(scores.induction) if (name, h) not in heads)
    found = []
    for chosen in heads, [(name, h) for _, name, h in others[:len(heads)]]:
        with without_heads(run, chosen, counts):
            found.append(losses(run, idx)[1])
    return found


# -----------------------------------------------------------------------------
# a run's training

def kept_steps(run, most=40):
    """Returns the iterations of a run's checkpoints, at most `most`, spread over the logarithm of the iteration."""
    folder = RunFolder(run.folder)
    steps = sorted({step_of(path) for path in (*folder.spaced(), *folder.checkpoints())})
    if len(steps) <= most:
        return steps
    # the nearest to each of evenly spaced places
    places = np.linspace(np.log1p(steps[0]), np.log1p(steps[-1]), most)
    return sorted({steps[int(np.abs(np.log1p(steps) - place).argmin())] for place in places})


def history(run, idx, steps):
    """Returns [Look], one for each of the iterations at which a run's checkpoints were saved; its weights stay."""
    model = eager(run.model)
    before = {name: t.clone() for name, t in model_tensors(model).items()}
    looks = []
    try:
        for step in steps:
            _, tensors, _ = RunFolder(run.folder).load(step, optim=False)
            load_model_tensors(model, tensors)
            looks.append(look(with_fields(run, iteration=step), idx, direct=False))
    finally:
        load_model_tensors(model, before)
    return looks


def find_drop(steps, gaps):
    """Returns the Drop of gaps, second - first half in nats, at iterations; None with less than an octave of them.

    Between iterations, gaps are linear in the logarithm.
    """
    steps, gaps = (np.asarray(x, float)[np.asarray(steps) > 0] for x in (steps, gaps))
    if not len(steps) or steps[-1] < 2 * steps[0]:
        return None
    at = np.log2(steps)
    # where an octave may begin, or end, at a checkpoint
    starts = np.union1d(at, at - 1)
    starts = starts[(starts >= at[0]) & (starts + 1 <= at[-1])]
    fall = np.interp(starts, at, gaps) - np.interp(starts + 1, at, gaps)
    return Drop(float(2 ** starts[fall.argmax()]), float(fall.max()))


# -----------------------------------------------------------------------------
# the page

@dataclass
class DropChart(Chart):
    """A Chart with the octave of each arm's drop marked: (index of the arm, first and last iteration)."""
    drops: list = ()

    def draw(self):
        figure = super().draw()
        for index, start, stop in self.drops:
            figure.axes[0].axvspan(start, stop, color=COLORS[arm_style(index)[0]], alpha=0.12, linewidth=0)
        return figure


def main(argv):
    """Returns the Page, and the folder that it goes to."""
    o = read_options(Options, argv)
    runs = open_from(o)
    most = max(2, min(o.checkpoints, MODELS // len(runs)))
    arms, looked = by_arm(runs), {}
    for run in runs:
        idx = repeated_tokens(run, o.windows, o.seed)
        steps = kept_steps(run, most)
        final = look(run, idx)
        if not final.scores:
            raise Stop(f'{run.folder}: its variant has no attention whose patterns can be seen')
        heads = induction_heads(final)
        looked[run.arm, run.seed] = dict(steps=steps, history=history(run, idx, steps), final=final, heads=heads,
                                         ablated=loss_without(run, idx, final, heads))
    found = {arm: [looked[run.arm, run.seed] for run in of_arm] for arm, of_arm in arms.items()}
    half = idx.size(1) // 2
    page = Page('induction', f'Induction in {runs[0].folder if len(runs) == 1 else o.out_dir}',
                f'{o.windows} sequences of {half} random tokens, twice; {len(runs)} run{"s" * (len(runs) > 1)}',
                [sentence for arm in found for sentence in sentences(arm, found[arm])])
    page.sections = [
        Section('When', [*charts(found), transitions(found)],
                'A band is the 95 % interval over seeds; marked is the octave of iterations in which the second '
                'half\'s loss, less the first\'s, falls most.'),
        Section('By which heads', [ablations(found), head_maps(found, arms), head_table(found, arms)],
                'Induction score: attention from a token of the second half to the one after its occurrence in the '
                'first. Previous: attention to the token before. Copying: nats that the head adds, by the direct '
                'path, to the logit of the right token over the mean of all. As the distance is always the same, a '
                'head that looks back by a fixed distance has a high score too, and needs no head below it.')]
    if not any(len(f['steps']) > 2 for f in looked.values()):
        page.sentences.append('There are too few checkpoints to see when: train with --keep=log, '
                              'a study with --keep_checkpoints=log.')
    return page, folder_of(o)


def common_steps(of_arm):
    """Returns the iterations that all runs of an arm have a look at."""
    return sorted(set.intersection(*(set(f['steps']) for f in of_arm)))


def curves(of_arm, value):
    """Returns (steps, over_seeds() of value(look) at each) of an arm, without iteration 0."""
    steps = [s for s in common_steps(of_arm) if s > 0]
    return steps, [[value(f['history'][f['steps'].index(s)]) for s in steps] for f in of_arm]


def series(label, index, of_arm, value, alpha=1.0):
    """Returns the Series of value(look) over iterations."""
    steps, values = curves(of_arm, value)
    mean = over_seeds(values)
    band = len(values) > 1
    return Series(label, index, steps, list(mean.mean), list(mean.mean - mean.half) if band else [],
                  list(mean.mean + mean.half) if band else [], [np.array(v) for v in values] if band else [], alpha)


def best_score(look):
    return max(scores.induction.max() for scores in look.scores.values())


def drops_of(of_arm):
    """Returns the Drops of an arm's runs that have learned to repeat."""
    return [drop for f in of_arm if f['final'].first - f['final'].second > LEAST_GAIN and
            (drop := find_drop(f['steps'], [x.second - x.first for x in f['history']]))]


def mean_start(drops):
    """Returns the Mean of the binary logarithm of where drops begin."""
    return over_seeds([np.log2(drop.start) for drop in drops])


def charts(found):
    """Returns the charts over iterations, [] where checkpoints are too few."""
    drawn = {arm: of_arm for arm, of_arm in found.items() if len([s for s in common_steps(of_arm) if s > 0]) > 1}
    if not drawn:
        return []
    marks = [(index, 2 ** mean_start(drops).mean, 2 ** (1 + mean_start(drops).mean))
             for index, of_arm in enumerate(drawn.values()) if (drops := drops_of(of_arm))]
    one = len(drawn) == 1
    loss = [series('second half' if one else arm, index, of_arm, lambda x: x.second)
            for index, (arm, of_arm) in enumerate(drawn.items())]
    # what cannot be predicted, and so much alike in all arms
    arm, of_arm = next(iter(drawn.items()))
    loss.append(series('first half' if one else f'{arm}, first half', 0, of_arm, lambda x: x.first, 0.4))
    best = [series(arm, index, of_arm, best_score) for index, (arm, of_arm) in enumerate(drawn.items())]
    top = max(max(s.high or s.y) for s in best)
    return [DropChart('induction_loss', 'Loss on tokens that are repeated', 'iteration', 'nats', loss, log=True,
                      drops=marks),
            DropChart('induction_score', 'Largest induction score of a head', 'iteration', 'share of attention', best,
                      log=True, y_range=(0.0, max(0.2, min(top, 1.0))), drops=marks)]


def transitions(found):
    """Returns the Table of when each arm learned to repeat, and how well."""
    rows = []
    for arm, of_arm in found.items():
        drops = drops_of(of_arm)
        start = mean_start(drops) if drops else None
        ends = ('–' if start is None else f'{2 ** start.mean:.0f}' if np.isnan(start.half) else
                f'{2 ** start.mean:.0f} ({2 ** (start.mean - start.half):.0f} to {2 ** (start.mean + start.half):.0f})')
        rows.append([arm, f'{len(drops)} of {len(of_arm)}', ends,
                     over_seeds([drop.nats for drop in drops]).text(3) if drops else '–',
                     over_seeds([f['final'].first for f in of_arm]).text(3),
                     over_seeds([f['final'].second for f in of_arm]).text(3)])
    return Table('The drop', ['arm', 'runs with one', 'octave from iteration', 'fall in it, nats',
                              'first half at the end', 'second half at the end'], rows,
                 'With more seeds, means with 95 % intervals; that of the iteration is of its logarithm.')


def ablations(found):
    """Returns the Table of the second half's loss without induction heads."""
    rows = []
    for arm, of_arm in found.items():
        whole, ablated, others = ([f['final'].second for f in of_arm], *np.array([f['ablated'] for f in of_arm]).T)
        if not any(f['heads'] for f in of_arm):
            rows.append([arm, '0', over_seeds(whole).text(3), '–', '–', '–'])
            continue
        rows.append([arm, f'{np.mean([len(f["heads"]) for f in of_arm]):.1f}', over_seeds(whole).text(3),
                     over_seeds(ablated).text(3), over_seeds(others).text(3),
                     over_seeds(np.subtract(ablated, others)).text(3, '+')])
    return Table('Loss of the second half without heads, nats', ['arm', 'induction heads', 'whole', 'without these',
                 'without as many others', 'difference'], rows,
                 f'An induction head has a score of at least {LEAST_SCORE}, and half of its model\'s best. The others '
                 'are of the same layers, with the lowest scores. Taken away, its slice of what c_proj takes in is 0.')


def title_of(name, head):
    """Returns 'layer 1 head 3' for a head of 'transformer.h.1.attn'; a second map of a module has its number."""
    layer, _, rest = name.removeprefix('transformer.h.').partition('.')
    more = rest.partition(':')[2]
    return f'layer {layer} head {head}' + (f' map {more}' if more else '')


def head_maps(found, arms, most=12):
    """Returns the Maps of induction scores, layers by heads, of up to `most` runs."""
    panels = []
    for arm, of_arm in found.items():
        for run, f in zip(arms[arm], of_arm):
            rows = [scores.induction for scores in f['final'].scores.values()]
            values = np.full((len(rows), max(map(len, rows))), np.nan)
            for row, scores in zip(values, rows):
                row[:len(scores)] = scores
            panels.append(Panel(run.title, values))
    note = f'Of {len(panels)} runs the first {most} are shown.' if len(panels) > most else ''
    return Maps('induction_heads', 'Induction score of every head', panels[:most], 'heads', 'layers', note, most=1.0)


def head_table(found, arms, most=3):
    """Returns the Table of each run's heads with the largest scores."""
    rows = []
    for arm, of_arm in found.items():
        for run, f in zip(arms[arm], of_arm):
            scored = sorted(((s.induction[h], name, h) for name, s in f['final'].scores.items()
                             for h in range(len(s.induction))), reverse=True)
            for _, name, h in scored[:most]:
                s = f['final'].scores[name]
                rows.append([f'{run.title}, {title_of(name, h)}', number(s.induction[h], 3), number(s.previous[h], 3),
                             number(s.copying[h], 2, '+'), 'yes' if (name, h) in f['heads'] else 'no'])
    return Table('Heads with the largest scores', ['head', 'induction', 'previous', 'copying, nats', 'induction head'],
                 rows)


def sentences(arm, of_arm):
    """Yields what was found of an arm."""
    n, drops = len(of_arm), drops_of(of_arm)
    gain = over_seeds([f['final'].first - f['final'].second for f in of_arm])
    of_runs = f' ({n} seeds, 95 % interval)' if n > 1 else ' (one run)'
    learned = gain.mean - (0 if np.isnan(gain.half) else gain.half) > LEAST_GAIN
    if not learned:
        yield (f'{arm} has not learned to repeat: the loss of the first half, less the second\'s, is '
               f'{gain.text(3, "+")} nats{of_runs}.')
        return
    yield f'{arm} repeats what it has seen: the second half is {gain.text(3)} nats easier than the first{of_runs}.'
    if drops:
        start = mean_start(drops).mean
        fall = over_seeds([drop.nats for drop in drops])
        yield (f'{arm} learned it between iterations {2 ** start:.0f} and {2 ** (1 + start):.0f}, where the loss of '
               f'the second half, less the first\'s, fell by {fall.text(3)} nats, {fall.mean / gain.mean:.0%} of '
               'what it gains in the end.')
    counts = [len(f['heads']) for f in of_arm]
    if any(counts):
        whole, ablated, others = ([f['final'].second for f in of_arm], *np.array([f['ablated'] for f in of_arm]).T)
        back = over_seeds(np.subtract(ablated, whole))
        other = over_seeds(np.subtract(others, whole))
        most_common = ', '.join(sorted({title_of(*f['heads'][0]) for f in of_arm if f['heads']})[:4])
        yield (f'{arm} does it by {np.mean(counts):.1f} induction heads of a run, the best being {most_common}: '
               f'without them the second half is {back.text(3)} nats harder, '
               f'{back.mean / gain.mean:.0%} of the gain; without as many others {other.text(3, "+")} nats.')
    else:
        yield f'No single head of {arm} does it: none has an induction score of {LEAST_SCORE}.'
