"""Shows where an arm's difference to the baseline comes from: probe.py why out-ab/NAME.

Its difference is split over tokens, and its variant's module is taken out of the trained models.
"""
import math
from dataclasses import dataclass, replace as change
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from configurator import DeviceOptions, FilePath, Whole
from core.assemble import name_of
from core.errors import Stop
from core.run.files import read_json
from lab.probe.charts import Bars
from lab.probe.neutral import build_like, model_of_idle_modules, neutral_run, parts, sample_tokens
from lab.probe.options import folders_first, read_options
from lab.probe.page import Cell, Page, Section, Table, number
from lab.probe.runs import open_runs
from lab.probe.scores import check_same_text, validation_scores, validation_tokens
from lab.probe.seeds import Mean, by_arm, difference, paired_by_seed
from lab.probe.splits import by_class, by_confidence, by_position, by_repetition
from lab.report.labels import count, format_ends, format_number
from model import build

DECIDED = 'better', 'worse', 'equivalent'


@dataclass
class Options(DeviceOptions):
    ckpt: str = 'latest'                # best, latest, or a step; verdicts are about the latest
    variant: str = 'base'               # only of arms whose variant is a file: its path, which you thereby trust
    windows: Whole = 256                # of the validation split that are looked at, spread over it; 0: all
    arm: str = ''                       # one arm, decided or not; all: each; '': those that are decided
    ngram: Whole = 0                    # tokens of a context that may repeat; 0: 3 characters or bytes, else 2 tokens
    to: FilePath = ''                   # folder for the page and its PNGs; '': probe in the study's folder


def main(argv):
    """Returns the Page, and the folder that it goes to."""
    folders, rest = folders_first(argv)
    o = read_options(Options, rest)
    if len(folders) != 1:
        raise Stop(f'{" ".join(folders)}: name one study')
    folder = Path(folders[0])
    pairs = pairs_to_explain(folder, o.arm)
    names = list(dict.fromkeys(name for pair in pairs for name in (pair.base, pair.arm)))
    runs = open_runs(folder, o.ckpt, o.device, 'float32' if o.dtype == 'auto' else o.dtype, o.variant, names)
    check_same_text(runs)
    arms = by_arm(runs)
    tokens = validation_tokens(runs[0], o.windows)
    n = o.ngram or (3 if runs[0].tokenizer.kind in ('char', 'bytes') else 2)
    if n >= tokens.shape[1]:
        raise Stop(f'ngram={n}: must be below {tokens.shape[1]}')
    scored = {run.folder: validation_scores(run, o.windows) for run in runs}
    sections, sentences = [], []
    for number_of_pair, pair in enumerate(pairs):
        of_arm, of_base, paired = paired_by_seed(arms[pair.arm], arms[pair.base])
        gap = Gap(*([scored[run.folder].nats for run in some] for some in (of_arm, of_base)), paired)
        sure = np.mean([scored[run.folder].sure for run in of_base], 0)
        splits = [by_class(tokens, runs[0].tokenizer), by_position(tokens),
                  by_confidence(sure, f'confidence of {pair.base}'), by_repetition(tokens, n)]
        taken = [take_out(gap, of_arm, part, o.windows) for part in parts_to_take_out(of_arm[0])]
        brought = brought_along(of_arm[0], of_base[0])
        sentences += explain(pair, gap, splits, taken, brought)
        sections += [
            Section(f'{pair.arm} without its module', [*removal_items(pair, gap, taken, number_of_pair),
                                                        brought_table(brought, pair)]),
            Section(f'Where {pair.arm} differs',
                    [item for i, split in enumerate(splits)
                     for item in split_items(split, gap, pair, f'why_{number_of_pair}_{i}')], how_split(n, gap))]
    found = ', '.join(f'{arm}: {count(len(arms[arm]), "run")}' for arm in names)
    title = f'Why: {pairs[0].arm}' if len(pairs) == 1 else f'Why: {len(pairs)} arms of {folder.name}'
    text = f'{(tokens[:, 1:] >= 0).sum():,} tokens in {len(tokens):,} windows of the validation split'
    return Page('why', title, f'{text}; {found}', sentences, sections), Path(o.to or folder / 'probe')


class Pair(NamedTuple):
    """An arm, what it is compared with, and what the study says of it."""
    arm: str
    base: str
    said: str                   # '' for no verdict


def pairs_to_explain(folder, arm):
    """Returns the Pairs of a study: those that are decided, or of an arm, decided or not; 'all': of each.

    Stop if there is none.
    """
    study, report = (read_json(folder / f'{name}.json') for name in ('study', 'report'))
    if study is None or not study.get('arms'):
        raise Stop(f'{folder}: is not the folder of a study, as out-ab/NAME')
    found = {}
    for c in (report or {}).get('comparisons', []):
        said = f'{c["verdict"]}, {format_number(c.get("mean"), sign="+")} {format_ends(c.get("interval"))} nats'
        found[c['arm'], c['baseline']] = Pair(c['arm'], c['baseline'], said), c['verdict']
    base, *others = [one['name'] for one in study['arms']]
    if arm and arm != 'all':
        return [pair for pair, _ in found.values() if pair.arm == arm] or [Pair(arm, base, '')]
    pairs = [pair for pair, verdict in found.values() if arm == 'all' or verdict in DECIDED]
    if not pairs and arm == 'all':
        pairs = [Pair(other, base, '') for other in others]
    if not pairs:
        what = 'no arm is decided' if report else f'no report.json: python ab.py --report {folder} writes it'
        raise Stop(f'{folder}: {what}; --arm=NAME looks into one anyway, --arm=all into each of {", ".join(others)}')
    return pairs


# -----------------------------------------------------------------------------
# an arm's difference

@dataclass
class Gap:
    """Losses of tokens of an arm's runs and of the baseline's, [(windows, T)] each, NaN where there is no target."""
    arm: list
    base: list
    paired: bool                # both of the same seeds, in one order

    def whole(self, comparisons=1):
        """Returns the Mean of the difference of the mean loss, arm - baseline."""
        return difference(*([np.nanmean(x) for x in both] for both in (self.arm, self.base)), self.paired, comparisons)

    def parts(self, split, comparisons=1):
        """Returns the Mean of each part of a Split in the difference, (names,): they sum to the whole."""
        at = split.index >= 0
        sums = ([split.parts(np.where(at, x, 0.0)) for x in both] for both in (self.arm, self.base))
        return difference(*sums, self.paired, comparisons)

    def inside(self, split):
        """Returns the Mean difference a token of each part, (names,)."""
        means = ([split.means(np.nan_to_num(x)) for x in both] for both in (self.arm, self.base))
        return difference(*means, self.paired)


class Removal(NamedTuple):
    """What is left of an arm's difference once a part of its variant is taken out of its trained models."""
    part: str                   # its name
    how: str                    # it was taken out; or why it could not be
    left: Mean | None = None    # arm without it - baseline
    half: Mean | None = None    # the same less half of the arm's difference
    nats: list = ()             # losses of tokens without it, as in Gap


def parts_to_take_out(run):
    """Returns the names of a variant's files, and None for all together if there are several."""
    names = list(parts(run))
    return [*names, None] if len(names) > 1 else names


def take_out(gap, runs, part, windows):
    """Returns the Removal of a part, None for all, from an arm's Runs."""
    name = part or 'all of them'
    try:
        found = [without(run, part) for run in runs]
    except Stop as why:
        return Removal(name, str(why))
    nats = [validation_scores(other, windows).nats for other, _ in found]
    means, arm, base = ([float(np.nanmean(x)) for x in some] for some in (nats, gap.arm, gap.base))
    left = difference(means, base, gap.paired)
    half = difference(np.array(means) - np.array(arm) / 2, np.array(base) / 2, gap.paired)
    return Removal(name, found[0][1], left, half, nats)


def without(run, part):
    """Returns a Run whose model lacks a part of its variant, and how. Stop if that is not defined.

    As neutral_run(); but where the baseline has other shapes, as of a variant that brings a wider MLP along, the
    rest stays and only the part's own modules are taken out.
    """
    try:
        return neutral_run(run, part)
    except Stop as why:
        if 'changes nothing' in str(why):
            raise
        files = [file for file in run.model.classes.files if part in (None, name_of(file))]
        for take in (by_neutral_options, idle_modules):
            if other := take(run, files):
                return other
        raise


def by_neutral_options(run, files):
    """Returns the run with those options of NEUTRAL that keep the shapes of trained tensors, and how; or None."""
    base = build_like(run, 'base').state_dict()
    trained, variant = run.model.state_dict(), run.options['variant']
    given = vars(run.model.config)
    fits = {}
    for name, value in {k: v for file in files for k, v in getattr(file, 'NEUTRAL', {}).items()}.items():
        other = build(variant, run.seed, **given | {name: value}).state_dict()
        if all(other[key].shape == x.shape for key, x in trained.items() if key in base and key in other):
            fits[name] = value
    if not fits:
        return None
    model = build(variant, run.seed, **given | fits).to(run.machine.device).eval()
    # what the baseline lacks starts as NEUTRAL's options say
    model.load_state_dict({key: trained[key] if key in base and key in trained else x
                           for key, x in model.state_dict().items()})
    return changed(run, model, f'{", ".join(f"{k}={v}" for k, v in fits.items())} in the trained model')


def idle_modules(run, files):
    """Returns the run with the modules idle that no other part of the variant has, and how; or None."""
    rest = '+'.join(written for name, written in parts(run).items() if name not in map(name_of, files)) or 'base'
    try:
        other, how = model_of_idle_modules(run, ' and '.join(map(name_of, files)), rest)
    except Stop:
        return None
    return changed(run, other.model, how)


def changed(run, model, how):
    """Returns the run with another model, and how it was made; None if it computes the same."""
    other = change(run, model=model)
    idx = sample_tokens(run)
    return None if torch.equal(run.logits(idx), other.logits(idx)) else (other, how)


def brought_along(run, base):
    """Returns [(tensor's name without its layer, shape in the baseline, in the arm, parameters more, layers)]."""
    both = [{name: tuple(p.shape) for name, p in one.model.named_parameters()} for one in (base, run)]
    found = {}
    for name in dict.fromkeys([*both[0], *both[1]]):
        a, b = (shapes.get(name) for shapes in both)
        if a != b:
            key = '.'.join('*' if word.isdigit() else word for word in name.split('.')), a, b
            found[key] = found.get(key, 0) + 1
    return [(*key, n * (size_of(key[2]) - size_of(key[1])), n) for key, n in found.items()]


def size_of(shape):
    """Returns the number of a shape's elements, 0 for None."""
    return 0 if shape is None else math.prod(shape)


# -----------------------------------------------------------------------------
# the page

def how_split(n, gap):
    """Returns the note on the splits."""
    seeds = ('paired by seed' if gap.paired else 'of unpaired seeds with unequal variances, as Welch\'s')
    return ('A part is the sum of the differences of its tokens over the number of all tokens, so parts sum to the '
            f'whole. Red: the arm is worse. ±: 95 % interval of each by itself, {seeds}; in the '
            f'sentences on top, of all parts of a split together. Repetition: whether the '
            f'{n} tokens before a token were in its window before, and whether it was among those that followed.')


def split_items(split, gap, pair, name):
    """Returns the Table and the Bars of a Split."""
    found, inside, whole = gap.parts(split), gap.inside(split), gap.whole()
    rows = []
    for i, part in enumerate(split.names):
        rows.append([part, number(100 * split.shares[i], 1), with_interval(found, i), share(found.mean[i], whole.mean),
                     with_interval(inside, i)])
    total = found.mean.sum()
    rows.append(['sum', number(100 * split.shares.sum(), 1), with_interval(Mean(total, whole.half, whole.n)),
                 share(total, whole.mean), ''])
    off = abs(total - whole.mean)
    note = (f'The parts hold {100 * split.shares.sum():.4g} % of the tokens; their sum and the whole differ by '
            f'{off:.0e} nats.')
    titles = [split.title, 'tokens, %', 'part of the difference, nats', 'of the whole, %', 'difference a token, nats']
    bars = [(part, found.mean[i], found.half[i]) for i, part in enumerate(split.names)]
    return [Bars(name, f'{pair.arm} minus {pair.base}, by {split.title}', 'part of the difference, nats', bars),
            Table(f'{pair.arm} by {split.title}', titles, rows, note)]


def share(part, whole):
    """Returns the Cell of a part's share of the whole in percent."""
    # + 0.0 turns -0 into 0
    return number(np.round(100 * part / whole) + 0.0 if whole else np.nan, 0)


def with_interval(mean, i=(), digits=4):
    """Returns the Cell of entry i of a Mean, with a sign and its interval."""
    value = np.asarray(mean.mean)[i]
    if np.isnan(value):
        return Cell('–')
    return Cell(Mean(value, np.asarray(mean.half)[i], mean.n).text(digits, '+'), float(value))


def removal_items(pair, gap, taken, number_of_pair):
    """Returns the Bars and the Table of what was taken out."""
    whole = gap.whole()
    rows = [['nothing', with_interval(whole), '', 'the arm as it was trained']]
    for one in taken:
        if one.left is None:
            rows.append([one.part, '–', '–', f'not taken out: {one.how}'])
        else:
            rows.append([one.part, with_interval(one.left), with_interval(cost(gap, one)), one.how])
    note = ('The trained models as they are, without what their variant adds; nothing is trained again. What the rest '
            'has learnt to expect of it is missing, too: so a gain that goes does not prove where it came from, but '
            'a gain that stays cannot have come from what was taken out.')
    titles = ['what', f'difference to {pair.base}, nats', 'what taking it out costs, nats', 'how']
    table = Table(f'Taken out of {pair.arm}', titles, rows, note)
    bars = [('as it was trained', whole.mean, whole.half)]
    bars += [(f'without {one.part}', one.left.mean, one.left.half) for one in taken if one.left is not None]
    chart = Bars(f'why_{number_of_pair}_without', f'{pair.arm} minus {pair.base}, with and without',
                 'difference, nats a token', bars)
    return [chart, table]


def cost(gap, removal):
    """Returns the Mean of what taking a part out adds to the arm's loss: always of the same runs, so paired."""
    return difference(*([np.nanmean(x) for x in both] for both in (removal.nats, gap.arm)), paired=True)


def brought_table(brought, pair):
    """Returns the Table of parameters in which the arm differs from the baseline."""
    rows = [[name, shape_in_words(a), shape_in_words(b), Cell(str(layers), layers), Cell(f'{more:+,}', more)]
            for name, a, b, more, layers in brought]
    note = '' if rows else 'None: both have the same parameters.'
    titles = ['tensor', pair.base, pair.arm, 'layers', 'parameters more']
    return Table(f'Parameters in which {pair.arm} differs', titles, rows, note)


def shape_in_words(shape):
    """Returns '512 × 128', 'scalar', or 'none' for None."""
    return 'none' if shape is None else ' × '.join(map(str, shape)) or 'scalar'


def explain(pair, gap, splits, taken, brought):
    """Yields the sentences on an arm."""
    whole = gap.whole()
    said = f' The study says: {pair.said}.' if pair.said else ''
    yield f'{pair.arm} minus {pair.base}: {whole.text(sign="+")} nats a token on these windows.{said}'
    for one in taken:
        yield f'{pair.arm}: {removal_sentence(one, whole, pair, brought)}'
    if not whole.half < abs(whole.mean):
        yield (f'{pair.arm}: over so few seeds or windows the difference is no more than chance, and its parts too; '
               f'--windows=0 looks at all text.')
        return
    clear, open_ = [], []
    for split in splits:
        # the most striking part is picked, so all of a split must hold together
        found = gap.parts(split, comparisons=len(split.names))
        i = int(np.argmax(found.mean * np.sign(whole.mean)))
        if found.half[i] < abs(found.mean[i]):
            clear.append(f'by {split.title}, {split.names[i]} ({found.mean[i]:+.4f} ± {found.half[i]:.4f}, '
                         f'{100 * found.mean[i] / whole.mean:.0f} % from {100 * split.shares[i]:.0f} % of the tokens)')
        else:
            open_.append(split.title)
    if clear:
        yield f'{pair.arm}: the largest part of the difference is {"; ".join(clear)}.'
    if open_:
        yield f'{pair.arm}: no clear place by {" nor by ".join(open_)}, with these seeds.'


def removal_sentence(one, whole, pair, brought):
    """Returns what taking a part out says about the cause of the difference, a Mean."""
    if one.left is None:
        return f'{one.part} cannot be taken out ({one.how}).'
    left = f'without {one.part} the difference is {one.left.text(sign="+")} nats'
    wider = [f'{name} is {shape_in_words(b)}, in {pair.base} {shape_in_words(a)}'
             for name, a, b, _, _ in brought if a is not None and b is not None]
    also = f' It also brings along: {"; ".join(wider)}.' if wider else ''
    if np.isnan(one.left.half):
        return f'{left}; one seed gives no interval.{also}'
    if not whole.half < abs(whole.mean):
        return f'{left}; the difference itself is no more than chance.{also}'
    # below 0: more than half of a gain is left, or less than half of a harm
    low, high = one.half.mean - one.half.half, one.half.mean + one.half.half
    kept = f'{100 * one.left.mean / whole.mean:.0f} %'
    if whole.mean < 0:
        if high < 0:
            return f'{one.part} is not the cause: {left}, so {kept} of the gain stays.{also}'
        if one.left.mean - one.left.half > 0:
            return f'the gain goes with {one.part}: {left}.{also}'
        if low > 0:
            return f'most of the gain goes with {one.part}: {left}.{also}'
        return f'whether the gain goes with {one.part} is open: {left}.{also}'
    if high < 0:
        return f'{one.part} is what makes it worse: {left}, so {kept} of the harm stays.{also}'
    return f'{left}; the rest was trained with it, so this does not say that the harm comes from elsewhere.{also}'
