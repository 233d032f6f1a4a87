"""Lays trained runs side by side: probe.py compare out-a out-b ... A study's folder stands for its arms."""
import statistics
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from configurator import Count, DeviceOptions, FilePath, Whole
from core.errors import Stop
from core.rng import key
from core.run.folder import RunFolder
from lab.probe.options import folders_first, read_options
from lab.probe.page import Cell, Page, Section, Table, Texts, number
from lab.probe.runs import open_runs
from lab.probe.scores import calibration_error, reliability, same_text, validation_scores
from lab.probe.seeds import by_arm, over_seeds
from lab.probe.tokens import accuracy_table, compared, plus_minus
from lab.report.figures import Chart, Series
from lab.report.labels import count, format_si

MOST = 7                # that a chart can show


@dataclass
class Options(DeviceOptions):
    ckpt: str = 'auto'                  # best, latest, or a step; auto: as for sample.py
    variant: str = 'base'               # only of a run whose variant is a file: its path, which you thereby trust
    windows: Count = 256                # of the validation split that are looked at, spread over it
    to: FilePath = ''                   # folder for the page and its PNGs; '': probe in the first folder
    start: str = '\n'                   # what samples go on from
    max_new_tokens: Whole = 300         # tokens of a sample; 0: no samples
    seed: Whole = 1337                  # of all samples


def main(argv):
    """Returns the Page, and the folder that it goes to."""
    folders, rest = folders_first(argv)
    o = read_options(Options, rest)
    groups = open_groups(folders, o)
    names = list(groups)
    runs = [of_group[0] for of_group in groups.values()]
    what = next((what for run in runs[1:] if (what := same_text(runs[0], run))), '')
    scores = {name: [validation_scores(run, o.windows) for run in of_group] for name, of_group in groups.items()}
    bits = {name: [bits_per_byte(run, s) for run, s in zip(groups[name], scores[name])] for name in names}
    quality = [bits_table(bits)] if what else [accuracy_table(groups, scores), bits_table(bits)]
    sections = [
        Section('How good', quality, f'On {o.windows} windows of the validation split, spread over it. Of several '
                                     'seeds the mean, ±: 95 % interval.'),
        Section('Curves', [curves(groups, what)] if any(map(log_of, runs)) else []),
        Section('How well they know what they know', [calibration_table(scores), *calibration_charts(scores)],
                'A model is calibrated if of the tokens that it gives 70 % as its first choice, 70 % are right.'),
        Section('Price', [price_table(groups)], 'ms: the median of the iterations in the log, on whatever trained it.'),
        Section('Options that differ', [options_table(groups)])]
    if o.max_new_tokens:
        sections.insert(3, Section('Samples', [Texts(f'From {o.start!r}, seed {o.seed}', samples(groups, o),
                                                     'Temperature 0.8, from the 200 likeliest tokens.')]))
    page = Page('compare', ' beside '.join(names) if len(names) < 4 else f'{len(names)} beside each other',
                ', '.join(f'{name}: {count(len(groups[name]), "run")}' for name in names),
                list(sentences(groups, scores, bits, what)), sections)
    return page, Path(o.to or Path(folders[0]) / 'probe')


def open_groups(folders, o):
    """Returns {name: [Runs]}: a run folder's, or those of each arm of a study. Stop unless there are 2 to MOST."""
    if len({Path(folder).resolve() for folder in folders}) < len(folders):
        raise Stop(f'{" ".join(folders)}: one of them is named twice')
    groups = {}
    for folder in folders:
        runs = open_runs(folder, o.ckpt, o.device, 'float32' if o.dtype == 'auto' else o.dtype, o.variant)
        for arm, of_arm in by_arm(runs).items():
            # out-a/x and out-b/x have one name
            groups[f'{arm} of {folder}' if arm in groups else arm] = of_arm
    if not 2 <= len(groups) <= MOST:
        raise Stop(f'{" ".join(folders)}: {count(len(groups), "run or arm")}; allowed: 2 to {MOST}')
    return groups


# -----------------------------------------------------------------------------
# loss and calibration

def bits_per_byte(run, scores):
    """Returns the mean loss in bits per byte of text; NaN if the data set does not say how long its text is."""
    per_token = run.data.bytes_per_token
    return scores.means().nats / np.log(2) / per_token if per_token else np.nan


def bits_table(bits):
    """Returns the Table of bits per byte; bits: {name: [of each run]}."""
    rows = [[name, Cell(over_seeds(found).text(), float(np.mean(found)))] for name, found in bits.items()]
    return Table('Bits per byte', ['', 'bits per byte'], rows, 'Of text in UTF-8, whatever the tokens.')


def calibration_table(scores):
    """Returns the Table of calibration; scores: {name: [the Scores of each run]}."""
    rows = []
    for name, found in scores.items():
        error, said, right = (over_seeds([100 * f(s) for s in found]) for f in
                              (lambda s: calibration_error(s.sure, s.top1), lambda s: s.means().sure,
                               lambda s: s.means().top1))
        rows.append([name, Cell(error.text(2), float(error.mean)), number(said.mean, 2), number(right.mean, 2),
                     number(said.mean - right.mean, 2, '+')])
    return Table('Calibration', ['', 'expected calibration error, %', 'probability of the first choice, %',
                                 'first choice right, %', 'overconfident by, %'], rows)


def calibration_charts(scores):
    """Returns the reliability Chart."""
    # index 14 is dashed, and of a color that MOST runs leave free
    lines = [Series('calibrated', 14, [0.0, 100.0], [0.0, 100.0])]
    for i, (name, found) in enumerate(scores.items()):
        at = [reliability(s.sure, s.top1) for s in found]
        # bins that each seed fills
        enough = np.min([n for *_, n in at], 0) >= 20
        said, right = (100 * np.mean([one[k] for one in at], 0)[enough] for k in (0, 1))
        lines.append(Series(name, i, said.tolist(), right.tolist()))
    return [Chart('compare_calibration', 'Share right, by probability of the first choice',
                  'probability of the first choice, %', '% right', lines,
                  'Below the dashed line: overconfident. Bins of a tenth, those with 20 tokens or more.')]


# -----------------------------------------------------------------------------
# logs

def log_of(run):
    """Returns the evaluations in a run's log."""
    return [line for line in RunFolder(run.folder).read_log() if 'val_loss' in line]


def curves(groups, what):
    """Returns the Chart of validation losses; in bits per byte where tokens differ (`what`, see same_text)."""
    field, unit = ('bits_per_byte', 'bits per byte') if what else ('val_loss', 'nats')
    lines = []
    for i, (name, runs) in enumerate(groups.items()):
        logs = [{line['iter']: line[field] for line in log_of(run) if line.get(field) is not None} for run in runs]
        iters = sorted(set.intersection(*map(set, logs)))
        if iters:
            values = np.array([[log[it] for it in iters] for log in logs])
            band = {} if len(runs) < 2 else dict(low=values.min(0).tolist(), high=values.max(0).tolist())
            lines.append(Series(name, i, iters, values.mean(0).tolist(), **band))
    note = 'Shaded: lowest to highest seed.' if any(line.low for line in lines) else ''
    return Chart('compare_curves', 'Validation loss', 'iteration', unit, lines, note)


def ms_of(run):
    """Returns the median of the milliseconds of a run's iterations; NaN without any in its log."""
    # the first ones compile, or warm up
    found = [line['ms'] for line in RunFolder(run.folder).read_log() if 'ms' in line and line['iter'] > 0]
    return statistics.median(found) if found else np.nan


def price_table(groups):
    """Returns the Table of what runs cost."""
    rows, first = [], None
    for name, runs in groups.items():
        size, ms = runs[0].model.get_num_params(non_embedding=False), over_seeds([ms_of(run) for run in runs])
        first = first or (size, float(ms.mean))
        rows.append([name, Cell(format_si(size), size), number(size / first[0], 3),
                     Cell('–' if np.isnan(ms.mean) else ms.text(1), float(ms.mean)), number(ms.mean / first[1], 2),
                     Cell(f'{runs[0].iteration:,}', runs[0].iteration), runs[0].machine.name])
    titles = ['', 'parameters', '× the first', 'ms an iteration', '× the first', 'iterations', 'looked at on']
    return Table('Price', titles, rows)


def options_table(groups):
    """Returns the Table of the options in which runs differ, without those that say where they run or are kept."""
    skip = {'out_dir', 'init_from', 'device', 'wandb_run_name', 'seed'}
    given = [run[0].options | vars(run[0].model.config) for run in groups.values()]
    names = [name for name in dict.fromkeys(name for options in given for name in options) if name not in skip]
    rows = []
    for name in names:
        values = [str(options.get(name, '–')) for options in given]
        if len(set(values)) > 1:
            rows.append([name, *values])
    return Table('Options', ['option', *groups], rows, '' if rows else 'None.')


# -----------------------------------------------------------------------------
# samples and sentences

def samples(groups, o):
    """Returns [(name, a sample)] of the first run of each."""
    return [(name, sample(runs[0], o.start, o.max_new_tokens, o.seed)) for name, runs in groups.items()]


@torch.no_grad()
def sample(run, start, tokens, seed):
    """Returns text that a Run writes after `start`, as sample.py does at its defaults."""
    prompt = run.tokenizer.encode(start) or run.tokenizer.start()
    idx = torch.tensor([prompt[-run.model.config.block_size:]], device=run.machine.device)
    generator = torch.Generator(run.machine.device).manual_seed(key(seed, 'sample'))
    it = torch.tensor(float(run.iteration), device=run.machine.device)
    with run.machine.precision():
        new = list(run.model.stream(idx, tokens, 0.8, 200, generator=generator, it=it, known=run.tokenizer.known))
    return run.tokenizer.decode(prompt + torch.cat(new, 1)[0].tolist())


def sentences(groups, scores, bits, what):
    """Yields what the numbers say."""
    first = next(iter(groups))
    if what:
        yield f'Their {what} differ, so that they are compared in bits per byte alone.'
        best = min(bits, key=lambda name: np.mean(bits[name]))
        yield 'Bits per byte: ' + ', '.join(f'{name} {np.mean(found):.4f}' for name, found in bits.items()) + \
              (f'; {best} has the fewest.' if np.isfinite(np.mean(bits[best])) else '.')
    else:
        means = {name: [(s.nats, 100 * s.top1) for s in map(type(found[0]).means, found)]
                 for name, found in scores.items()}
        for name in list(groups)[1:]:
            d = compared(groups, means, name)
            one = '; one run each gives no interval' if np.isnan(d.half[0]) else ''
            yield (f'{name} minus {first}: {d.mean[0]:+.4f}{plus_minus(d.half[0])} nats a token, its first choice '
                   f'right for {d.mean[1]:+.2f}{plus_minus(d.half[1], 2)} points of tokens{one}.')
    for name, found in scores.items():
        error = over_seeds([100 * calibration_error(s.sure, s.top1) for s in found])
        over = np.mean([100 * (s.means().sure - s.means().top1) for s in found])
        yield (f'{name}: what it says of its first choice is off by {error.text(1)} points on average, '
               f'{"too sure" if over > 0 else "not sure enough"} by {abs(over):.1f} on the whole.')
