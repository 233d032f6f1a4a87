"""Shows which tokens of a text a model finds hard, or harder than another: probe.py tokens --versus=FOLDER."""
from dataclasses import dataclass

import numpy as np
import torch

from configurator import Count, FilePath
from core.errors import Stop
from lab.probe.charts import Bars
from lab.probe.options import RunOptions, folder_of, open_from, read_options
from lab.probe.page import Page, Section, Table, Tokens, number
from lab.probe.runs import open_runs
from lab.probe.scores import Scores, check_same_text, text_losses, validation_scores, validation_tokens
from lab.probe.seeds import by_arm, difference, over_seeds, paired_by_seed
from lab.probe.splits import by_class, by_position, token_texts
from lab.report.figures import Chart, Series

MOST_SHOWN = 20_000     # tokens of a text: more make a page that browsers scroll badly


@dataclass
class Options(RunOptions):
    windows: Count = 256                # of the validation split that are looked at, spread over it
    versus: FilePath = ''               # another run folder: colors show the difference of loss to it
    arm: str = ''                       # of a study: the arm whose text is colored; '': the first
    text: str = ''                      # the text to color; '': a stretch of the validation split
    length: Count = 600                 # tokens of that stretch
    start: float = 0.5                  # where it begins, as a share of the split


def main(argv):
    """Returns the Page, and the folder that it goes to."""
    o = read_options(Options, argv)
    runs = open_from(o)
    arms = by_arm(runs)
    if o.versus:
        other = open_runs(o.versus, o.ckpt, o.device, 'float32' if o.dtype == 'auto' else o.dtype, o.variant)
        if len(arms) > 1 or len(by_arm(other)) > 1:
            raise Stop(f'versus={o.versus}: compares two runs; a study\'s arms are compared with its own baseline')
        # out-a/x and out-b/x have one name
        names = [run.arm if other[0].arm != runs[0].arm else str(run.folder) for run in (*other, *runs)]
        arms = dict(zip(names, ([other[0]], runs)))
    names = list(arms)
    shown = o.arm or names[min(1, len(names) - 1)]
    if shown not in arms:
        raise Stop(f'arm={o.arm}: no such arm; there are {", ".join(names)}')
    check_same_text([run for of_arm in arms.values() for run in of_arm])

    first = runs[0]
    scores = {arm: [validation_scores(run, o.windows) for run in of_arm] for arm, of_arm in arms.items()}
    tokens = validation_tokens(first, o.windows)
    ids = encoded(first, o)
    base = names[0] if shown != names[0] else None
    losses = {arm: np.mean([text_losses(run, ids) for run in arms[arm]], 0) for arm in (base, shown) if arm}
    splits = [by_class(tokens, first.tokenizer), by_position(tokens)]
    sections = [
        Section('The text', [colored_text(first.tokenizer, ids, losses, shown, base)]),
        Section('Foreseen', [accuracy_table(arms, scores)],
                'Teacher-forced: each token given the true ones before it. ± is the 95 % interval over seeds.'),
        *(Section(f'By {split.title}', [split_table(split, arms, scores), *split_charts(split, arms, scores)])
          for split in splits)]
    page = Page('tokens', f'Tokens of {" and ".join(names)}' if len(names) < 4 else f'Tokens of {len(names)} arms',
                f'{tokens_in_words(tokens)} of {first.options["dataset"]}, validation split; '
                + ', '.join(f'{arm}: {len(of_arm)} run{"s" * (len(of_arm) > 1)}' for arm, of_arm in arms.items()),
                list(sentences(arms, scores, splits[0])), sections)
    return page, folder_of(o)


def tokens_in_words(tokens):
    """Returns how many targets and windows tokens (windows, T + 1) have, in words."""
    return f'{(tokens[:, 1:] >= 0).sum():,} tokens in {len(tokens):,} windows'


def encoded(run, o):
    """Returns the ids of the text to color: that of --text, or a stretch of the validation split."""
    if o.text:
        ids = run.tokenizer.encode(o.text)
        if not 2 <= len(ids) <= MOST_SHOWN:
            raise Stop(f'text of {len(ids)} tokens: allowed: 2 to {MOST_SHOWN:,}')
        return ids
    if not 0 <= o.start < 1:
        raise Stop(f'start={o.start}: must be at least 0 and below 1')
    val = run.data.tokens['val']
    length = min(o.length, len(val) - 1, MOST_SHOWN)
    start = int(o.start * (len(val) - length))
    return torch.as_tensor(val[start:start + length]).long().tolist()


def colored_text(tokenizer, ids, losses, shown, base):
    """Returns the Tokens of a text; losses: {arm: (L - 1,)}, base: the arm that `shown` is compared with, or None."""
    texts = [text.replace('\n', '↵\n') or '·' for text in (token_texts(tokenizer)[i] for i in ids)]
    if base is None:
        values, what = losses[shown], 'loss'
    else:
        values, what = losses[shown] - losses[base], f'loss of {shown} minus loss of {base}'
    # what lies beyond is as dark
    most = float(np.quantile(abs(values), 0.98)) or 1.0
    hints = [f'{text!r}: ' + ', '.join(f'{arm} {x[i]:.3f}' for arm, x in losses.items()) + ' nats'
             + (f', {values[i]:+.3f}' if base else '') for i, text in enumerate(texts[1:])]
    note = f'Color: {what}, in nats; darkest from {most:.2f} on. Point at a token for its numbers.'
    if base:
        note = f'Red: {shown} is worse, green: better. {note}'
    return Tokens(f'{shown}: {what}', texts, [0.0, *(values / most).clip(-1, 1).tolist()],
                  ['the first token: nothing to foresee it from', *hints], note)


# -----------------------------------------------------------------------------
# numbers over seeds

def compared(arms, values, arm, comparisons=1):
    """Returns the Mean difference of an arm to the first one; values: {arm: [an array for each of its runs]}.

    comparisons: as for seeds.difference().
    """
    base = next(iter(arms))
    of_arm, of_base, paired = paired_by_seed(arms[arm], arms[base])
    at = [[values[name][arms[name].index(run)] for run in some] for name, some in ((arm, of_arm), (base, of_base))]
    return difference(*at, paired, comparisons)


def accuracy_table(arms, scores):
    """Returns the Table of means over all targets; scores: {arm: [the Scores of each run]}."""
    base, rows = next(iter(arms)), []
    titles = ['', 'loss, nats', 'difference, nats', 'top 1, %', 'difference, points', 'top 5, %',
              'difference, points']
    means = {arm: [(s.nats, 100 * s.top1, 100 * s.top5) for s in map(Scores.means, found)]
             for arm, found in scores.items()}
    for arm in arms:
        mean = over_seeds(means[arm])
        d = compared(arms, means, arm)
        row = [arm]
        for i, digits in enumerate((4, 2, 2)):
            row += [number(mean.mean[i], digits), with_interval(d, i, digits) if arm != base else '']
        rows.append(row)
    if len(arms) == 1:
        rows = [[row[0], *row[1::2]] for row in rows]
        titles = [titles[0], *titles[1::2]]
    return Table('Loss and accuracy', titles, rows, f'Differences are to {base}.' if len(arms) > 1 else '')


def with_interval(mean, i, digits=4):
    """Returns the Cell of entry i of a Mean, with a sign and its interval."""
    text = type(mean)(mean.mean[i], mean.half[i], mean.n).text(digits, '+')
    return number(mean.mean[i])._replace(text='–' if np.isnan(mean.mean[i]) else text)


def split_table(split, arms, scores):
    """Returns the Table of a Split: a row for each part, arms beside each other, with differences to the first."""
    base, others = next(iter(arms)), list(arms)[1:]
    nats = {arm: [split.means(s.nats) for s in found] for arm, found in scores.items()}
    means = {arm: over_seeds(found).mean for arm, found in nats.items()}
    gaps = {arm: compared(arms, nats, arm) for arm in others}
    top1 = over_seeds([100 * split.means(s.top1) for s in scores[base]]).mean
    titles = [split.title, 'tokens, %', f'top 1 of {base}, %', f'{base}, nats']
    titles += [title for arm in others for title in (f'{arm}, nats', f'{arm} minus {base}')]
    rows = []
    for i, name in enumerate(split.names):
        row = [name, number(100 * split.shares[i], 1), number(top1[i], 1), number(means[base][i])]
        for arm in others:
            row += [number(means[arm][i]), with_interval(gaps[arm], i)]
        rows.append(row)
    return Table(f'Loss by {split.title}', titles, rows, 'Means over the tokens of the row.')


def split_charts(split, arms, scores):
    """Returns charts of a Split: lines over positions; bars of differences to the first arm over classes."""
    nats = {arm: np.array([split.means(s.nats) for s in found]) for arm, found in scores.items()}
    if split.title == 'position':
        lines = []
        for i, (arm, found) in enumerate(nats.items()):
            mean, half, _ = over_seeds(found)
            band = {} if len(found) < 2 else dict(low=list(mean - half), high=list(mean + half))
            lines.append(Series(arm, i, middles(split.names), list(mean), **band))
        return [Chart('tokens_position', 'Loss by position', 'position in the context', 'nats', lines,
                      'Shaded: 95 % interval over seeds.' if any(s.low for s in lines) else '', log=True)]
    charts = []
    for i, arm in enumerate(list(arms)[1:]):
        d = compared(arms, nats, arm)
        rows = sorted(zip(split.names, d.mean, d.half), key=lambda row: row[1])
        charts.append(Bars(f'tokens_{split.title}_{i}', f'{arm} minus {next(iter(arms))}',
                           'nats a token of the class; below 0 the arm is better', rows))
    return charts


def middles(names):
    """Returns the geometric mean of the ends of each name '5 to 8'."""
    ends = [[int(x) for x in name.split(' to ')] for name in names]
    return [float(np.sqrt(pair[0] * pair[-1])) for pair in ends]


def sentences(arms, scores, split):
    """Yields what the numbers say; split: by class."""
    base = next(iter(arms))
    for arm in arms:
        mean = over_seeds([(s.nats, 100 * s.top1, 100 * s.top5) for s in map(Scores.means, scores[arm])]).mean
        yield (f'{arm}: {mean[0]:.4f} nats a token; the true token is its first choice for {mean[1]:.1f} %, '
               f'among its first five for {mean[2]:.1f} %.')
    if len(arms) == 1:
        nats = over_seeds([split.means(s.nats) for s in scores[base]]).mean
        parts = over_seeds([split.parts(s.nats) for s in scores[base]]).mean
        hard, most = np.nanargmax(nats), np.argmax(parts)
        yield f'Hardest: {split.names[hard]}, {nats[hard]:.2f} nats a token.'
        yield (f'Most of the loss: {split.names[most]}, {100 * parts[most] / parts.sum():.0f} % of it '
               f'from {100 * split.shares[most]:.0f} % of the tokens.')
    for arm in list(arms)[1:]:
        parts = {name: [split.parts(s.nats) for s in found] for name, found in scores.items()}
        # the most striking class is picked, so all must hold together
        d = compared(arms, parts, arm, comparisons=len(split.names))
        whole = compared(arms, {name: [[s.means().nats] for s in found] for name, found in scores.items()}, arm)
        i = int(np.argmin(d.mean) if whole.mean[0] < 0 else np.argmax(d.mean))
        yield (f'{arm} minus {base}: {whole.mean[0]:+.4f}{plus_minus(whole.half[0])} nats a token; of this '
               f'{d.mean[i]:+.4f}{plus_minus(d.half[i])} at: {split.names[i]} '
               f'({100 * split.shares[i]:.0f} % of the tokens).')


def plus_minus(half, digits=4):
    """Returns ' ± .0012', '' where there is no interval."""
    return '' if np.isnan(half) else f' ± {half:.{digits}f}'
