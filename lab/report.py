"""What ab.py found, for people: report.html, one file that opens anywhere; the same figures as PNGs; a table for the terminal.

The input is report.json as a dict. Every block of it may be missing, and NaN and Infinity come as strings: num() and the
.get() in Comparison and price() take care of both. Names and texts come from users: el() escapes all that is not Raw.
"""
import html
import json
import re
import textwrap
from dataclasses import dataclass, field
from math import ceil, floor, isfinite, log2, log10, nan, sqrt
from pathlib import Path

import numpy as np
from scipy.stats import t as student

from lab.stats import MIN_SEEDS

WORDS = {'better': 'helps', 'worse': 'hurts', 'screen': 'screen only'} # lab.stats' verdicts as an answer to "does it help?"
COSTS = {   # field of arm['price']: title, its ratio's field, the number in words
    'step_ms': ('ms a step', 'step_ratio', lambda x: f'{x:.3g}' if x < 1000 else f'{x:.0f}'),
    'forward_flops_per_token': ('forward FLOPs a token', None, lambda x: si(x)),
    'flops_per_token': ('training FLOPs a token', 'flops_ratio', lambda x: si(x)),
    'params': ('parameters', None, lambda x: si(x)),
    'peak_bytes': ('peak memory', None, lambda x: f'{x / 2 ** 20:,.0f} MiB'),
    'decode_tokens_per_s': ('tokens/s decoding', None, lambda x: f'{x:,.0f}'),
    'compile_seconds': ('s to compile', None, lambda x: f'{x:.3g}'),
}

EQUAL = {'loss_at_equal_time': "loss at the baseline's time", 'loss_at_equal_flops': "loss at the baseline's FLOPs"}

# -----------------------------------------------------------------------------
# reading the report

def num(x):
    """x as a finite float, or None: missing, NaN, Infinity, or not a number at all."""
    try:
        x = None if isinstance(x, bool) else float(x)
    except (TypeError, ValueError):
        return None
    return x if x is not None and isfinite(x) else None


def dec(x, digits=4, sign=''):
    """-0.0024; what is too small for that as -1e-07; a dash where there is no number."""
    x = num(x)
    return '–' if x is None else f'{x:{sign}.{digits}f}' if not x or abs(x) >= 0.5 * 10 ** -digits else f'{x:{sign}.0e}'


def p_text(p):
    return dec(p, 3) if num(p) is None or p >= 0.001 else '<0.001'


def si(x):
    """10.6 M"""
    step = min(max(int(log10(abs(x)) // 3), 0), 5) if x else 0
    return f'{x / 1000 ** step:.4g} {" kMGTP"[step]}'.strip()


def ratio(x):
    """1.31, 1.008, 1"""
    return f'{x:.3f}'.rstrip('0').rstrip('.')


class Comparison:
    """One of report['comparisons']: the only place that knows lab.stats' names of fields."""

    def __init__(self, c):
        self.arm, self.against, self.n = c.get('arm'), c.get('baseline'), c.get('n')
        self.verdict = WORDS.get(c.get('verdict'), c.get('verdict') or 'no verdict')
        self.mean, self.sd, self.rho, self.mde = (num(c.get(key)) for key in ('mean', 'sd', 'rho', 'mde'))
        self.p, self.holm_p, self.flip_p = (num(c.get(key)) for key in ('p', 'holm_p', 'flip_p'))
        self.p_improve, self.steps = num(c.get('p_improve')), num(c.get('step_equivalents'))
        self.wins = f'{c["wins"]}/{self.n}' if c.get('wins') is not None and self.n else '–'
        self.interval = pair(c.get('interval'))
        self.text_interval = pair(c.get('text_interval'))
        self.why = self.reasons(c)

    def reasons(self, c):
        """What lab.stats' words say beyond the verdict and its difference."""
        first, *rest = re.sub(r'(?<!\d)\.(?=\d)', '0.', c.get('words') or '').split('; ') # .0024, as there, is 0.0024 here
        said = [first.partition(', ')[2] if first.startswith(c.get('verdict') or ' ') else first, *rest]
        need = [num(c[key]) for key in ('seeds_difference', 'seeds_equivalence') if num(c.get(key))]
        if need and not c.get('words'):
            said = [f'about {max(min(need) - (self.n or 0), 1):.0f} more seeds would settle it']
        if self.verdict == WORDS['screen'] and not any('seeds' in x for x in said):
            said += [f'{MIN_SEEDS} seeds give a verdict']
        return '; '.join(x for x in said if x)


def pair(x):
    """(low, high) of [low, high] or {low, high}, or None."""
    low, high = (x.get('low'), x.get('high')) if isinstance(x, dict) else x if x else (None, None)
    return None if num(low) is None or num(high) is None else (num(low), num(high))


def arms_of(report):
    return report.get('arms') or []


def baseline_of(report):
    return next((arm for arm in arms_of(report) if arm.get('baseline')), None)


def verdicts(report):
    """(number, arm, its Comparison, what to call them, the verdict), in the order of the arms. An arm with a baseline of its own,
    as of the same number of parameters, has two; one without any comparison has None."""
    found, first = {}, (baseline_of(report) or {}).get('name')
    for c in map(Comparison, report.get('comparisons') or []):
        found.setdefault(c.arm, []).append(c)
    others = {c.against for every in found.values() for c in every} - {None, first}
    for number, arm in enumerate(arms_of(report)):
        name = arm.get('name')
        for c in found.get(name) or [None]:
            title = f'{name} against {c.against}' if c and c.against in others else name
            word = 'baseline' if arm.get('baseline') else c.verdict if c else 'matched baseline' if name in others else 'no verdict'
            yield number, arm, c, title, word


def plan_of(report):
    """seeds, delta, metric, and percent: the level of the intervals, '' if unknown because of several looks."""
    plan = report.get('plan') or {}
    told = [num(x.get('level')) for x in (plan, *(report.get('comparisons') or [])) if num(x.get('level'))]
    level = told[0] if told else None if plan.get('looks') else num(plan.get('alpha')) or 0.05
    return plan | dict(seeds=plan.get('seeds') or [], delta=num(plan.get('delta')), level=level,
                       percent=f'{100 * (1 - level):.3g} % ' if level else '',
                       metric=plan.get('metric') or 'final validation loss, nats')


def losses(arm):
    """{seed: final loss in nats} of the runs that came to their end."""
    return {run.get('seed'): num(run.get('val_loss')) for run in arm.get('runs') or []
            if run.get('status') == 'done' and num(run.get('val_loss')) is not None}


def mean_of(arm):
    """(mean, sd) of the final losses; None where there are too few."""
    x = list(losses(arm).values())
    return (float(np.mean(x)) if x else None), (float(np.std(x, ddof=1)) if len(x) > 1 else None)


def level_of(arm, between=' ± '):
    """'1.4703 ± 0.0023', mean and standard deviation."""
    mean, sd = mean_of(arm)
    return dec(mean) + (f'{between}{dec(sd)}' if sd is not None else '')


def finished(arm):
    """'4/5', runs that came to their end."""
    return f'{len(losses(arm))}/{len(arm.get("runs") or [])}'


def price(report, arm, key):
    """(value, times the baseline's) of one of COSTS; each None if unknown."""
    def value(a):
        return num(a.get('params') if key == 'params' else (a.get('price') or {}).get(key)) if a else None
    mine, base, times = value(arm), value(baseline_of(report)), COSTS[key][1]
    given = num((arm.get('price') or {}).get(times)) if times else None
    return mine, given if given is not None else mine / base if mine is not None and base else None


def grid(rows, width=None):
    """(rows, width) floats, NaN where a row is short or holds no number."""
    width = max(map(len, rows), default=0) if width is None else width
    return np.array([[nan if i >= len(row) or num(row[i]) is None else num(row[i]) for i in range(width)] for row in rows]
                    ).reshape(len(rows), width)


def curve(arm, which='val'):
    """(iterations, {seed: losses (N,)}); a run that did not come to its end is NaN from there on."""
    c = arm.get('curve') or {}
    rows, iters = c.get(which) or [], [num(i) for i in c.get('iters') or []]
    return iters, dict(zip(c.get('seeds') or range(len(rows)), grid(rows, len(iters))))


# -----------------------------------------------------------------------------
# figures, as data: drawn as SVG in the page and by matplotlib beside it

@dataclass
class Series:
    label: str
    color: int                  # 0 is the baseline's; see COLORS
    x: list
    y: list                     # NaN: a gap
    low: list | None = None     # a band, or for dots a bar
    high: list | None = None
    each: list = field(default_factory=list)    # a line a seed
    alpha: float = 1.0


@dataclass
class Figure:
    name: str                   # of the PNG
    title: str
    x: str                      # labels with units
    y: str
    series: list
    note: str = ''
    log: bool = False           # x axis
    dots: bool = False
    delta: float | None = None  # not None: a line at 0 and a band of +-delta
    within: tuple | None = None # y range; None: all of the series
    layers: bool = False        # the series are the layers of a model, in order


@dataclass
class Forest:
    rows: list                  # (name, Comparison, color, differences per seed)
    delta: float
    percent: str
    reach: float                # the axis is -reach to +reach; intervals beyond it end in an arrow
    name: str = 'differences'
    title: str = 'Difference to the baseline'
    x: str = 'nats; below zero the arm is better'


def reach(sizes, least):
    """How far an axis goes so that one arm far out does not flatten the others: at most four times the median size."""
    sizes = sorted(x for x in sizes if x) or [least]
    return 1.1 * max(least, min(sizes[-1], 4 * sizes[len(sizes) // 2])) or 1e-4 # all equal to the bit, and no delta


def seeds_summary(lines):
    """mean, lowest, highest (N,) over the seeds whose lines are whole, or over all if none is; and how many they are."""
    lines = np.array(list(lines))
    whole = lines[~np.isnan(lines).any(1)] if lines.size else lines
    lines = whole if len(whole) else lines
    empty = np.isnan(lines).all(0) if len(lines) else np.zeros(0, bool)
    safe = np.where(empty, 0.0, lines)
    parts = [np.where(empty, nan, f(safe, axis=0)) for f in (np.nanmean, np.nanmin, np.nanmax)] if len(lines) else [[]] * 3
    return *(list(p) for p in parts), len(lines)


def later(iters, values, share=0.3):
    """Values after the first part of the run, where arms can be told apart."""
    return [v for i, v in zip(iters, values) if v == v and i >= share * max(iters)]


def loss_figure(report, which, title):
    """Mean over seeds and their range, an arm a line."""
    series, low, high = [], [], []
    for color, arm in enumerate(arms_of(report)):
        iters, lines = curve(arm, which)
        if not lines:
            continue
        mean, lowest, highest, n = seeds_summary(lines.values())
        series.append(Series(arm.get('name'), color, iters, mean, lowest, highest, list(lines.values())))
        low += [v for v in lowest if v == v]
        high.append(max(later(iters, highest), default=nan))
    if not series or not low:
        return None
    top = min(np.nanmax(high), min(low) + 2 * max(high[0] - min(low), 0.01)) if high[0] == high[0] else max(low)
    return Figure(f'loss_{which}', title, 'iteration', 'nats', series, within=(min(low), top), note='Mean over the seeds that '
                  'came to their end; shaded: lowest to highest. Cut off above, where arms look alike.')


def difference_figure(report):
    """Arm minus baseline at the same seed and iteration: mean, and its t interval."""
    base, plan, series, sizes = baseline_of(report), plan_of(report), [], []
    for color, arm in enumerate(arms_of(report)):
        if base is None or arm is base:
            continue
        (iters, lines), (base_iters, base_lines) = curve(arm), curve(base)
        common = [i for i in iters if i in base_iters]
        d = {seed: np.array([lines[seed][iters.index(i)] - base_lines[seed][base_iters.index(i)] for i in common])
             for seed in lines if seed in base_lines}
        if not d or not common:
            continue
        whole = [x for x in d.values() if not np.isnan(x).any()] or list(d.values())
        mean, *_, n = seeds_summary(whole)
        half = student.ppf(1 - (plan['level'] or 0.05) / 2, n - 1) / sqrt(n) if n > 1 else 0 # of the interval, in sd
        wide = half * np.std(whole, axis=0, ddof=min(n - 1, 1))
        series.append(Series(arm.get('name'), color, common, mean, list(mean - wide), list(mean + wide), list(d.values())))
        sizes.append(max((abs(m) + (w if w == w else 0) for i, m, w in zip(common, mean, wide)
                          if m == m and i >= 0.2 * max(common)), default=0))
    if not series:
        return None
    size = reach(sizes, 1.5 * (plan['delta'] or 0))
    gone = [str(s.label) for s in series if min(map(abs, later(s.x, s.y)), default=0) > size]
    return Figure('difference', 'Difference to the baseline, while training', 'iteration', 'nats', series, delta=plan['delta'] or 0,
                  within=(-size, size), note=f'Same seed, same batches. Shaded: {plan["percent"]}interval of the mean at each '
                  'iteration, not for all of them at once. Grey: ±delta.' + f' Outside the axis: {", ".join(gone)}.' * bool(gone))


def cost_figure(report, key):
    """Final loss against one of COSTS."""
    series = []
    for color, arm in enumerate(arms_of(report)):
        (mean, _), (cost, _), x = mean_of(arm), price(report, arm, key), list(losses(arm).values())
        if mean is not None and cost is not None:
            series.append(Series(arm.get('name'), color, [cost], [mean], [min(x)], [max(x)]))
    costs = [s.x[0] for s in series]
    if not series or max(costs) < 1.02 * min(costs):    # nothing to choose between
        return None
    return Figure(f'loss_{key}', f'Final loss against {COSTS[key][0]}', COSTS[key][0], 'nats', series, dots=True,
                  note='Mean, and lowest to highest seed. Lower and further left is better.')


def position_figure(report):
    """Loss difference by position in the context, means over positions that are neighbours on a logarithmic axis."""
    base, series = baseline_of(report), []
    reference = grid([base.get('position_loss') or []])[0] if base else []
    edges = sorted({round(2 ** (k / 4)) for k in range(4 * ceil(log2(len(reference) + 1)) + 1)}) if len(reference) else []
    for color, arm in enumerate(arms_of(report)):
        here = grid([arm.get('position_loss') or []])[0]
        if arm is base or not len(here) or len(here) != len(reference):
            continue
        bins = [(a, min(b, len(here) + 1)) for a, b in zip(edges, edges[1:]) if a <= len(here)]
        series.append(Series(arm.get('name'), color, [sqrt(a * (b - 1)) for a, b in bins],
                             [float(np.mean((here - reference)[a - 1:b - 1])) for a, b in bins]))
    return Figure('position', 'Difference by position in the context', 'position, 1 is the first', 'nats', series, log=True,
                  delta=0, note='Mean over seeds. An idea that uses the past better falls to the right.') if series else None


def stat_figures(report):
    """(arm, Figure) of the variants' own diagnostics, a line a layer."""
    every = [(arm, name, s) for arm in arms_of(report) for name, s in (arm.get('stats') or {}).items()]
    for k, (arm, name, s) in enumerate(every): # k: two names may differ only in what no file name can hold
        rows, iters = (s or {}).get('layers') or [], [num(i) for i in (s or {}).get('iters') or []]
        layers = grid([row if isinstance(row, list) else [row] for row in rows]).T # (layers, iterations)
        if np.isfinite(layers).any() and len(iters) == layers.shape[1]:
            fade = 0.7 / max(len(layers) - 1, 1)
            lines = [Series(f'layer {i}' if len(layers) > 1 else name, 1, iters, list(y), alpha=1 - fade * i)
                     for i, y in enumerate(layers)]
            safe = re.sub(r'[^A-Za-z0-9_-]+', '_', f'stat_{k}_{arm.get("name")}_{name}')[:80]
            yield arm, Figure(safe, str(name), 'iteration', '', lines, layers=True)


def forest(report):
    plan, names, rows = plan_of(report), {arm.get('name'): arm for arm in arms_of(report)}, []
    for color, arm, c, title, _ in verdicts(report):
        if c and c.mean is not None:
            mine, other = losses(arm), losses(names.get(c.against) or baseline_of(report) or {})
            rows.append((title, c, color, [mine[s] - other[s] for s in mine if s in other]))
    sizes = [max(map(abs, c.interval or (c.mean,))) for _, c, *_ in rows]
    return Forest(rows, plan['delta'] or 0, plan['percent'], reach(sizes, 1.5 * (plan['delta'] or 0))) if rows else None


def figures(report):
    """All but the forest and the diagnostics, those that the report has numbers for."""
    made = (loss_figure(report, 'val', 'Validation loss'), difference_figure(report), cost_figure(report, 'step_ms'),
            cost_figure(report, 'flops_per_token'), position_figure(report), loss_figure(report, 'train', 'Training loss'))
    return [figure for figure in made if figure]


def limits(figure):
    """(x low, x high), (y low, y high) of the axes."""
    def span(values, pad):
        values = [v for v in values if v is not None and v == v] or [0.0]
        low, high = min(values), max(values)
        room = pad * (high - low) or (0.0 if high > low else abs(low) * 0.1 or 1.0)
        return low - room, high + room
    every = [v for s in figure.series for ys in (s.y, s.low or [], s.high or []) for v in ys] + [0.0] * (figure.delta is not None)
    return span([v for s in figure.series for v in s.x], 0.12 if figure.dots else 0), span(figure.within or every, 0.06)


def ticks(low, high, most=5):
    """Round numbers from low to high, and how to print them."""
    raw = (high - low) / most
    size = 10.0 ** floor(log10(raw))
    step = next(m * size for m in (1, 2, 5, 10) if m * size >= raw * 0.999)
    digits = max(0, -floor(log10(step) + 1e-9))
    whole = range(ceil(low / step - 1e-9), floor(high / step + 1e-9) + 1)
    return [(k * step, f'{k * step:,.{digits}f}' if high < 1e6 else si(k * step)) for k in whole]


def log_ticks(low, high):
    powers = range(ceil(log2(low) - 1e-9), floor(log2(high) + 1e-9) + 1)
    return [(2.0 ** k, f'{2 ** k}') for k in powers if k % (len(powers) // 6 + 1) == 0]


# -----------------------------------------------------------------------------
# HTML and SVG

class Raw(str):
    """Markup that may go into the page as it is."""


VOID = {'meta', 'input'}


def esc(x):
    """Text for the page. What is not Raw is escaped; control characters, which HTML does not allow, go."""
    return x if isinstance(x, Raw) else html.escape(re.sub(r'[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]', '\ufffd', str(x)))


def el(tag, *inside, **attributes):
    """<tag attributes>inside</tag>; class_ is class, stroke_width is stroke-width; what is None is left out."""
    given = ''.join(f' {key.rstrip("_").replace("_", "-")}="{esc(str(v))}"' for key, v in attributes.items() if v is not None)
    return Raw(f'<{tag}{given}>' + ('' if tag in VOID else ''.join(esc(x) for x in inside if x is not None) + f'</{tag}>'))


def draw(tag, *inside, **attributes):
    """el() for drawings: numbers to a tenth of a unit."""
    return el(tag, *inside, **{key: f'{v:.1f}' if isinstance(v, float) else v for key, v in attributes.items()})


def minus(x):
    """A minus sign in place of a hyphen before a number. For numbers only: names keep their hyphens."""
    return re.sub(r'(?<![\w.])-(?=\d)', '−', x)


def together(x):
    """No line ends between a number and what follows it."""
    return re.sub(r'(?<=[\d×]) (?=[%×(\w])', '\xa0', x)


def cut(name, most):
    name = str(name)
    return name if len(name) <= most else name[:most - 1] + '…'


def path(points, **attributes):
    """A line through (x, y); NaN interrupts it, and a point alone is a dot."""
    d, pen = '', 'M'
    for x, y in points:
        d += '' if y != y else f'{pen}{x:.1f} {min(max(y, -999), 9999):.1f}' + 'h0' * (pen == 'M')
        pen = 'M' if y != y else 'L'
    return el('path', d=d, fill='none', stroke='currentColor', **attributes) if d else None


def scale(low, high, start, end, log=False):
    f = log2 if log else float
    return lambda v: start + (f(v) - f(low)) / (f(high) - f(low)) * (end - start)


def line(x1, y1, x2, y2, kind):
    return draw('line', x1=x1, y1=y1, x2=x2, y2=y2, class_=kind)


def words(text, x, y, anchor='middle', kind='label'):
    return draw('text', text, x=x, y=y, text_anchor=anchor, class_=kind)


def svg(figure, number):
    """A Figure at 360 units, about as many pixels on a phone: text of 12 units is readable there."""
    W, H, left, top, right, bottom = 360, 250, 50, 22, 350, 208
    (x0, x1), (y0, y1) = limits(figure)
    sx, sy = scale(x0, x1, left, right, figure.log), scale(y0, y1, bottom, top)
    parts = [el('clipPath', el('rect', x=left, y=top, width=right - left, height=bottom - top), id=f'clip{number}')]
    for v, text in ticks(y0, y1):
        parts += [line(left, sy(v), right, sy(v), 'grid'), words(minus(text), left - 6, sy(v) + 4, 'end')]
    for v, text in log_ticks(x0, x1) if figure.log else ticks(x0, x1, 4):
        parts += [line(sx(v), bottom, sx(v), bottom + 4, 'axis'),
                  words(minus(text), sx(v), bottom + 17, 'end' if sx(v) > right - 12 else 'middle')]
    parts += [line(left, bottom, right, bottom, 'axis'), words(figure.x, (left + right) / 2, H - 5),
              words(figure.y, 4, 11, 'start')]
    marks = []
    if figure.delta is not None:
        height = sy(-figure.delta) - sy(figure.delta)
        marks += [draw('rect', x=left, width=right - left, y=sy(figure.delta), height=height, class_='delta'),
                  line(left, sy(0), right, sy(0), 'zero')]
    marks += [series_svg(s, sx, sy, figure.dots) for s in figure.series]
    return el('svg', *parts, el('g', *marks, clip_path=f'url(#clip{number})'), viewBox=f'0 0 {W} {H}', role='img',
              aria_label=figure.title)


def series_svg(s, sx, sy, dots):
    at, parts = [sx(x) for x in s.x], []
    if s.low and dots:
        parts += [path([(x, sy(a)), (x, sy(b))], stroke_width=1.5) for x, a, b in zip(at, s.low, s.high)]
    elif s.low:
        whole = [(x, a, b) for x, a, b in zip(at, s.low, s.high) if a == a and b == b]
        edge = [(x, sy(b)) for x, _, b in whole] + [(x, sy(a)) for x, a, _ in reversed(whole)]
        parts += [el('polygon', points=' '.join(f'{x:.1f},{min(max(y, -999), 9999):.1f}' for x, y in edge), class_='band')]
    if s.each:
        parts += [el('g', *(path([(x, sy(y)) for x, y in zip(at, ys)], stroke_width=0.8) for ys in s.each), class_='seed')]
    if dots:
        parts += [draw('circle', cx=x, cy=sy(y), r=4, fill='currentColor') for x, y in zip(at, s.y)]
    else:
        parts += [path([(x, sy(y)) for x, y in zip(at, s.y)], class_='line')]
    return el('g', *parts, class_=color_class(s.color), opacity=f'{s.alpha:.2f}')


def color_class(i):
    """The baseline's, or one of seven; dashed the second time round."""
    return 'c0' if not i else f'c{(i - 1) % 7 + 1}' + ' dash' * (i > 7)


def forest_svg(figure):
    """A row an arm: name and numbers on a line of text, the interval below it, so that no text can meet another."""
    W, left, right, row, end = 360, 10, 350, 46, figure.reach
    bottom = row * len(figure.rows) + 8
    sx = scale(-end, end, left, right)
    parts = [draw('rect', x=sx(-figure.delta), width=sx(figure.delta) - sx(-figure.delta), y=0, height=bottom, class_='delta')]
    for i, (name, c, color, each) in enumerate(figure.rows):
        y, (low, high) = row * i + 33, c.interval or (c.mean, c.mean)
        numbers = minus(f'{dec(c.mean, sign="+")} [{dec(low, sign="+")}, {dec(high, sign="+")}]')
        a, b = (sx(min(max(v, -end), end)) for v in (low, high))
        marks = [path([(a, y), (b, y)], stroke_width=3)] if a < b else []
        marks += [el('path', d=f'M{x - 7 * way:.1f} {y - 6}l{9 * way} 6l{-9 * way} 6z', fill='currentColor')
                  for x, way, out in ((a, -1, low < -end), (b, 1, high > end)) if out]
        marks += [draw('circle', cx=sx(d), cy=y, r=2.2, class_='one') for d in each if abs(d) <= end]
        if abs(c.mean) <= end:
            marks += [draw('circle', cx=sx(c.mean), cy=y, r=5, fill='currentColor')]
        if c.text_interval:
            marks += [path([(sx(min(max(v, -end), end)), y + 9) for v in c.text_interval], stroke_dasharray='3 3')]
        parts += [line(sx(0), y - 11, sx(0), y + 13, 'zero'),           # not through the numbers
                  words(cut(name, 47 - len(numbers)), left, y - 17, 'start', 'name'), words(numbers, right, y - 17, 'end'),
                  el('g', *marks, class_=color_class(color))]
    for v, text in ticks(-end, end, 4):
        parts += [line(sx(v), bottom, sx(v), bottom + 4, 'axis'), words(minus(text), sx(v), bottom + 17)]
    parts += [line(left, bottom, right, bottom, 'axis'), words(figure.x, W / 2, bottom + 36)]
    return el('svg', *parts, viewBox=f'0 0 {W} {bottom + 42}', role='img', aria_label=figure.title)


def shown(figure, number):
    """A <figure>: title, a box to show each seed, the drawing, the legend, the note."""
    keys, box = figure.series, []
    if figure.layers:                       # shades of one color: the first and the last say enough
        keys = keys[:1] + keys[1:][-1:]
    if any(s.each for s in figure.series):
        box = [el('input', type='checkbox', id=f'each{number}', class_='each'), el('label', 'each seed', for_=f'each{number}')]
    legend = [el('li', el('i', class_=color_class(s.color), style=f'opacity:{s.alpha:.2f}'), s.label) for s in keys]
    return el('figure', el('h3', figure.title), *box, svg(figure, number),
              el('figcaption', el('ul', *legend, class_='legend'), figure.note))


def table(head, rows, sort=False):
    """A cell: text, or (text, value), which sorts by the value and keeps its every digit. The first column names the row."""
    def numeric(x):
        return isinstance(x, tuple) and not isinstance(x[1], str)

    def cell(x):
        text, value = x if isinstance(x, tuple) else (x, None)
        return el('td', minus(text) if numeric(x) else text, class_='number' if numeric(x) else None, data_v=value)
    lines = [el('tr', el('th', el('span', row[0]), scope='row', data_v=row[0]), *map(cell, row[1:])) for row in rows]
    titles = [el('th', title, scope='col', class_='number' if rows and numeric(rows[0][i]) else None)
              for i, title in enumerate(head)]
    return el('div', el('table', el('thead', el('tr', *titles)), el('tbody', *lines), class_='sort' if sort else None),
              class_='scroll', tabindex='0')


def listed(d):
    """A dict as a list of terms; dicts within it in one line."""
    def flat(v):
        if isinstance(v, dict):
            return ', '.join(f'{key} {flat(x)}' for key, x in v.items())
        return ', '.join(map(flat, v)) if isinstance(v, list) else '–' if v is None else str(v)
    return el('dl', *(el('div', el('dt', key), el('dd', flat(v))) for key, v in d.items()))


# -----------------------------------------------------------------------------
# what is said

def answer(c, percent):
    """The verdict's difference, interval and what is missing, without the arm's name."""
    said = 'no mean difference' if c.mean is None else f'{dec(c.mean, sign="+")} nats'
    if c.interval:
        said += f', {percent}interval {dec(c.interval[0], sign="+")} to {dec(c.interval[1], sign="+")}'
    return f'{said}, {c.why}' if c.why.startswith('at ') else f'{said}, {c.n} seeds' + (f'; {c.why}' if c.why else '')


def price_words(report, arm):
    """The price in a line, what is known of it: the baseline's in units, the others' times the baseline's."""
    said, base = [], mean_of(baseline_of(report) or {})[0]
    for key, (title, _, show) in COSTS.items():
        value, times = price(report, arm, key)
        if value is not None and key not in ('forward_flops_per_token', 'compile_seconds'): # those are in the table
            said.append(f'{show(value)} {title}' if times is None or arm.get('baseline') else f'{ratio(times)} x {title}')
    for key, title in EQUAL.items():
        loss = None if arm.get('baseline') else num((arm.get(key) or {}).get('loss'))
        if loss is not None:
            said.append(f'{title}: {dec(loss)}' + (f' ({dec(loss - base, sign="+")})' if base is not None else ''))
    return ' · '.join(said)


def failures(report):
    """(arm, seed, status, reason) of the runs that ended badly."""
    return [(arm.get('name'), run.get('seed'), str(run.get('status')), run.get('reason') or '–')
            for arm in arms_of(report) for run in arm.get('runs') or [] if run.get('status') not in ('done', 'missing')]


def warnings(report):
    """What a reader must know before the verdicts: unpaired runs, runs that failed, leaks, checks that were not made."""
    paired = report.get('paired') or {}
    if paired.get('batches_equal') is False:
        yield 'The arms did not see the same batches: differences between seeds are not paired.'
    if paired.get('init_equal') is False:
        yield 'Parameters that the arms share did not start equal.'
    for arm in arms_of(report):
        runs, checks = arm.get('runs') or [], arm.get('checks') or {}
        if gone := sum(run.get('status') not in ('done', 'missing') for run in runs):
            yield f'{arm.get("name")}: {gone} of {len(runs)} runs did not come to their end; see failed runs.'
        if gone := sum(run.get('status') == 'missing' for run in runs):
            yield f'{arm.get("name")}: {gone} of {len(runs)} seeds were not run.'
        if checks.get('status') not in ('ok', None):
            yield f'{arm.get("name")}: leak suite: {checks["status"]}' + (f', {checks["why"]}' if checks.get('why') else '') + '.'


def explained(report):
    """How the statistics work, in sentences."""
    plan, paired = plan_of(report), report.get('paired') or {}
    level = f'{plan["level"]:.3g}' if plan['level'] else 'the level of a look'
    several = ", after Holm's correction for several arms," if len(report.get('comparisons') or []) > 1 else ''
    delta = f'±{plan["delta"]:g} nats' if plan['delta'] else '±delta'
    yield (f'Measured: {plan["metric"]}. Seeds: {", ".join(map(str, plan["seeds"])) or "–"}. The loss at the end decides, not the '
           'best one on the way: picking the best of many evaluations rewards luck.')
    yield ('A difference is arm minus baseline at the same seed, below zero better. Runs of one seed share their batches and the '
           "initial values of the parameters that both arms have. The interval is Student's t over the seeds: where the mean of "
           'many such seeds plausibly lies. A run counts as one observation, however much text it is evaluated on.')
    yield (f'Helps and hurts: p of the paired t test is below {level}{several} and the exact sign-flip test, which assumes no '
           f'normal distribution, agrees. Equivalent: two one-sided tests show that the difference is within {delta}, set in '
           'advance. Can\'t tell: neither is shown; this is not "no effect". '
           f'Screen only: with fewer than {MIN_SEEDS} seeds not even the sign is to be trusted.')
    if plan.get('looks'):
        looks = plan['looks'] if isinstance(plan['looks'], str) else ', '.join(map(str, plan['looks']))
        yield (f'Looks were planned at {looks} seeds; each tests at a stricter level, so that all '
               'together err as rarely as one test would.')
    yield ('The interval over text says how far the difference could move on other text of the same kind, with these seeds. '
           "Steps: the baseline's iterations that the difference is worth at the end of its curve. ") + (paired.get('note') or '')


# -----------------------------------------------------------------------------
# the page

CSS = """
:root{color-scheme:light dark;--bg:#fff;--ink:#1c1e21;--soft:#5f656d;--rule:#dfe2e6;--panel:#f6f7f8;--delta:#8a919930;
--helps:#18794e;--hurts:#c2330f;--equivalent:#2f6fb5;--open:#6b7178;
--c0:#5f656d;--c1:#0b6bcb;--c2:#d1570a;--c3:#128a5f;--c4:#a8479b;--c5:#a37b00;--c6:#0b93b0;--c7:#c0304f}
@media(prefers-color-scheme:dark){:root{--bg:#15171a;--ink:#e6e8eb;--soft:#9aa1aa;--rule:#30353b;--panel:#1d2024;--delta:#aab2bb30;
--helps:#4cc38a;--hurts:#ff8a65;--equivalent:#7db8f5;--open:#a5acb5;
--c0:#a5acb5;--c1:#6cb2ff;--c2:#ff9a52;--c3:#4cc79a;--c4:#e08bd4;--c5:#e0bb45;--c6:#4fd0ea;--c7:#ff8095}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:72rem;padding:2rem 1rem 5rem;background:var(--bg);color:var(--ink);
font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;overflow-wrap:break-word}
h1{font-size:1.7rem;line-height:1.2;margin:0}
h2{font-size:1.15rem;margin:3rem 0 .8rem;padding-top:.8rem;border-top:1px solid var(--rule)}
h3{font-size:.95rem;margin:0 0 .3rem}section>h3{margin-top:1.8rem}
p,li,dl{max-width:46rem}.soft,figcaption,nav{color:var(--soft);font-size:.875rem}
nav a{margin-right:.9rem;white-space:nowrap}a{color:inherit}
.answers{list-style:none;padding:0;margin:1.6rem 0 1rem}
.answers li{border-left:4px solid;padding:.1rem 0 .1rem .9rem;margin:0 0 1.3rem}
.answers p{margin:0;font-variant-numeric:tabular-nums}.answers p:first-child,b{color:var(--ink)}
.answers p+p{font-size:.875rem;color:var(--soft)}strong{font-weight:650}
.helps{color:var(--helps)}.hurts{color:var(--hurts)}.equivalent{color:var(--equivalent)}.open{color:var(--open)}
.warning{border-left:4px solid var(--hurts);background:var(--panel);padding:.5rem .9rem;margin:.4rem 0}
.scroll{overflow-x:auto;max-width:100%}table{border-collapse:collapse;font-size:.875rem;font-variant-numeric:tabular-nums}
th,td{padding:.4rem .7rem;text-align:left;vertical-align:top;border-bottom:1px solid var(--rule);white-space:nowrap}
thead th{color:var(--soft);font-weight:500;vertical-align:bottom}tbody th{font-weight:600}th.number,td.number{text-align:right}
th:first-child{position:sticky;left:0;background:var(--bg);padding-left:0}
tbody th span{display:block;width:max-content;max-width:9rem;white-space:normal;overflow-wrap:anywhere}td details{margin:0}
.sort thead th[tabindex]{cursor:pointer}[aria-sort=ascending]:after{content:" ↑"}[aria-sort=descending]:after{content:" ↓"}
.figures{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(21rem,100%),1fr));gap:2.2rem 1.6rem}
figure{margin:0;max-width:30rem;min-width:0}figcaption{margin-top:.4rem}svg{display:block;width:100%;height:auto;overflow:visible}
svg text{font-size:12px;fill:var(--soft);font-variant-numeric:tabular-nums}svg .name{fill:var(--ink);font-weight:600}
.grid{stroke:var(--rule)}.axis,.zero{stroke:var(--soft)}.delta{fill:var(--delta)}.band{fill:currentColor;opacity:.16}
path{stroke-linecap:round;stroke-linejoin:round}.line{stroke-width:2}.dash .line{stroke-dasharray:5 4}
.one{fill:var(--bg);stroke:currentColor}.seed{display:none;opacity:.75}label{font-size:.875rem;color:var(--soft)}
.each:checked~svg .seed{display:inline}.each:checked~svg .band{display:none}
.legend{list-style:none;padding:0;margin:.2rem 0;display:flex;flex-wrap:wrap;gap:.1rem 1rem;color:var(--ink)}.legend li{min-width:0}
.legend i{display:inline-block;width:1rem;border-top:3px solid;vertical-align:middle;margin-right:.4rem}
.legend i.dash{border-top-style:dashed}
.samples{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(20rem,100%),1fr));gap:1.4rem}.samples div{min-width:0}
pre{background:var(--panel);padding:.8rem;margin:0;border-radius:4px;overflow:auto;max-height:26rem;white-space:pre-wrap;
font:.8rem/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}
dl{margin:0;font-size:.875rem}dt{color:var(--soft)}dd{margin:0;min-width:0;font-variant-numeric:tabular-nums}
dl div{display:grid;grid-template-columns:minmax(6rem,11rem) 1fr;gap:1rem;padding:.25rem 0;border-bottom:1px solid var(--rule)}
details{margin:1rem 0}summary{cursor:pointer}
""" + ''.join(f'.c{i}{{color:var(--c{i})}}' for i in range(8))

JS = """
for (const table of document.querySelectorAll('.sort'))
  table.querySelectorAll('thead th').forEach((th, column) => {
    const sort = () => {
      const down = th.getAttribute('aria-sort') === 'ascending', rows = [...table.tBodies[0].rows];
      const key = row => { const v = row.cells[column].dataset.v; return v === undefined ? null : v === '' || isNaN(v) ? v : +v; };
      rows.sort((a, b) => { const x = key(a), y = key(b);
        return x === null ? (y === null ? 0 : 1) : y === null ? -1 : (x < y ? -1 : x > y ? 1 : 0) * (down ? -1 : 1); });
      for (const other of table.querySelectorAll('th')) other.removeAttribute('aria-sort');
      th.setAttribute('aria-sort', down ? 'descending' : 'ascending');
      table.tBodies[0].append(...rows);
    };
    th.tabIndex = 0; th.onclick = sort; th.onkeydown = e => { if (e.key === 'Enter') sort(); };
  });
"""
COLUMNS = {
    'd': 'arm minus baseline, mean over seeds, in nats', 'ms ×, FLOPs ×': "training cost, times the baseline's",
    'n': 'runs that came to their end / runs planned', 'loss': 'mean ± standard deviation over seeds',
    'wins': 'seeds at which the arm is lower', 'p': 'of the paired t test, or of ranks where a run diverged',
    'Holm': 'p, corrected for several arms', 'flip p': 'of the exact sign-flip test', 'sd of d': 'over seeds',
    'rho': 'correlation of the arms over seeds; above zero, pairing pays',
    'P(imp)': 'chance that a run of the arm is below a run of the baseline',
    'MDE80': 'the difference that 4 of 5 such studies would find',
    'other text': 'interval of d over text', 'steps': 'baseline iterations that d is worth; minus: lost',
}


def kind(verdict):
    return verdict if verdict in ('helps', 'hurts', 'equivalent') else 'open'


def header(report):
    """Title, and an answer for each arm."""
    plan, items = plan_of(report), []
    for _, arm, c, title, word in verdicts(report):
        cost, level = price_words(report, arm) if title == arm.get('name') else '', level_of(arm) # said once
        said = together(minus(answer(c, plan['percent']))) if c else f'{level}, {finished(arm)} runs'
        items.append(el('li', el('p', el('strong', word, class_=kind(word)), ' ', el('b', title), ': ', said),
                        el('p', together(minus(cost).replace(' x ', ' × '))) if cost else None, class_=kind(word)))
    about = [report.get('config'), f'{len(plan["seeds"])} seeds' if plan['seeds'] else None, plan['metric'], report.get('created')]
    return el('header', el('h1', report.get('name') or 'A/B report'),
              el('p', ' · '.join(str(x) for x in about if x), class_='soft'),
              el('ul', *items, class_='answers'), *(el('p', text, class_='warning') for text in warnings(report)))


def exact(x, digits=4, sign=''):
    """A cell with a number."""
    return dec(x, digits, sign), num(x)


def exact_pair(x):
    return ', '.join(dec(v, sign='+') for v in x) if x else '–', x and x[0]


def verdict_table(report):
    """The answer and the price first, so that a phone shows them."""
    plan, rows = plan_of(report), []
    for _, arm, c, title, word in verdicts(report):
        c = c or Comparison({})
        rows.append([
            title, (el('strong', word, class_=kind(word)), str(word)), exact(c.mean, sign='+'), exact_pair(c.interval),
            *(exact(price(report, arm, key)[1], 3) for key in ('step_ms', 'flops_per_token')), (finished(arm), len(losses(arm))),
            (level_of(arm), mean_of(arm)[0]), (c.wins, num(c.wins.split('/')[0])),
            *((p_text(p), p) for p in (c.p, c.holm_p, c.flip_p)), exact(c.sd), exact(c.rho, 2), exact(c.p_improve, 2), exact(c.mde),
            exact_pair(c.text_interval), exact(c.steps, 0, '+')])
    titles = ['arm', 'verdict', 'd', f'{plan["percent"]}interval', 'ms ×', 'FLOPs ×', 'n', 'loss', 'wins', 'p', 'Holm', 'flip p',
              'sd of d', 'rho', 'P(imp)', 'MDE80', 'other text', 'steps']
    return [table(titles, rows, sort=True), el('details', el('summary', 'What the columns mean'), listed(COLUMNS))] if rows else []


def price_table(report):
    arms, rows = arms_of(report), []
    used = [key for key in COSTS if any(price(report, arm, key)[0] is not None for arm in arms)]
    equal = [key for key in EQUAL if any(arm.get(key) for arm in arms)]
    for arm in arms:
        row = [arm.get('name')]
        for key in used:
            value, times = price(report, arm, key)
            shows = '–' if value is None else COSTS[key][2](value) + (f' ({ratio(times)} ×)' if times is not None else '')
            row.append((shows, value))
        for e in (arm.get(key) or {} for key in equal):
            row.append((dec(e.get('loss')) + (f' at {e["iters"]}' if e.get('iters') is not None else ''), num(e.get('loss'))))
        rows.append(row)
    note = el('p', "Losses at the baseline's time or FLOPs are read off the arm's own curve; its schedule was not made to end "
              'there, so they are too high.', class_='soft') if equal else None
    titles = ['arm', *(COSTS[key][0] for key in used), *map(EQUAL.get, equal)]
    return [table(titles, rows, sort=True), note] if used or equal else []


def arms_table(report):
    """Options, and what the leak suite found."""
    rows = []
    for arm in arms_of(report):
        checks = arm.get('checks') or {}
        status = checks.get('status') or '–'
        if checks.get('lines'):
            status = el('details', el('summary', status), *(el('div', text) for text in checks['lines']))
        options = ', '.join(f'{key}={v}' for key, v in (arm.get('options') or {}).items())
        rows.append([arm.get('name'), arm.get('variant') or '–', options or '–', status, checks.get('why') or '–'])
    return [table(['arm', 'variant', 'options', 'leak suite', 'why'], rows)] if rows else []


def runs_table(report):
    rows = [[arm.get('name'), (str(run.get('seed')), num(run.get('seed'))), run.get('status') or '–',
             *(exact(run.get(key), digits) for key, digits in (('val_loss', 4), ('best_val_loss', 4), ('best_iter', 0),
                                                               ('train_loss', 4), ('seconds', 1))),
             run.get('init_hash') or '–', run.get('batch_hash') or '–'] for arm in arms_of(report) for run in arm.get('runs') or []]
    titles = ['arm', 'seed', 'status', 'final loss', 'best', 'at', 'train loss', 'seconds', 'initial values', 'batches']
    return [el('details', el('summary', f'All {len(rows)} runs'), table(titles, rows, sort=True))] if rows else []


def plots(report):
    """Every figure of the report's own; then those of the variants, under their names."""
    trees, stats, drawn = forest(report), list(stat_figures(report)), []
    if trees:
        note = f'Thick: {trees.percent}interval over seeds; rings: each seed; grey: ±delta, the least difference that matters.'
        dashed = ' Dashed: interval over text.' * any(c.text_interval for _, c, *_ in trees.rows)
        drawn = [el('figure', el('h3', trees.title), forest_svg(trees), el('figcaption', note + dashed))]
    drawn += [shown(figure, i) for i, figure in enumerate(figures(report))]
    own = []
    for name in dict.fromkeys(arm.get('name') for arm, _ in stats):
        mine = [shown(figure, f'_{i}') for i, (arm, figure) in enumerate(stats) if arm.get('name') == name]
        own += [el('h3', name), el('div', *mine, class_='figures')]
    return [el('div', *drawn, class_='figures')] if drawn else [], own


def page(report):
    """(id, title, contents) of the sections in their order."""
    drawn, own = plots(report)
    samples = [el('div', el('h3', arm.get('name')), el('pre', arm['sample'])) for arm in arms_of(report) if arm.get('sample')]
    gone, recipe = failures(report), report.get('recipe')
    yield 'verdicts', 'Verdicts', verdict_table(report)
    yield 'price', 'Price', price_table(report)
    yield 'figures', 'Figures', drawn
    yield 'diagnostics', "The variants' own diagnostics", own
    yield 'samples', 'Samples', [el('div', *samples, class_='samples')] if samples else []
    yield 'arms', 'Arms and leak suite', arms_table(report)
    yield 'failed', 'Failed runs', [table(['arm', 'seed', 'status', 'reason'], gone)] if gone else []
    yield 'runs', 'Runs', runs_table(report)
    yield 'environment', 'Environment', [listed(report['environment'])] if report.get('environment') else []
    yield 'recipe', 'Recipe', [el('details', el('summary', "The baseline's options"), listed(recipe))] if recipe else []
    yield 'command', 'Command', [el('pre', report['command'])] if report.get('command') else []
    yield 'statistics', 'How the statistics work', [el('p', text) for text in explained(report)]


def write_html(report, path):
    """The report as one file that needs nothing else, not even a network."""
    sections = [(key, title, inside) for key, title, inside in page(report) if inside]
    data = json.dumps(report, default=str)  # ASCII; < and & could end or change the script
    for character in '<>&':
        data = data.replace(character, f'\\u{ord(character):04x}')
    policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'" # whatever a name holds, nothing is loaded
    title = report.get('name') or 'A/B report'
    head = el('head', el('meta', charset='utf-8'), el('meta', http_equiv='Content-Security-Policy', content=policy),
              el('meta', name='viewport', content='width=device-width, initial-scale=1'), el('title', title), el('style', Raw(CSS)))
    body = el('body', header(report), el('nav', *(el('a', title, href=f'#{key}') for key, title, _ in sections)),
              *(el('section', '\n', el('h2', title), *inside, id=key) for key, title, inside in sections),
              el('script', Raw(data), type='application/json', id='report'), el('script', Raw(JS)))
    Path(path).write_text(f'<!DOCTYPE html>\n{el("html", head, body, lang="en")}\n', encoding='utf-8')


# -----------------------------------------------------------------------------
# PNGs, and the terminal

COLORS = '#5f656d #0b6bcb #d1570a #128a5f #a8479b #a37b00 #0b93b0 #c0304f'.split() # as --c0 to --c7 above


def plain(name):
    """A name for matplotlib: no mathematics, and none that it would leave out of a legend."""
    return ' ' + re.sub(r'[\x00-\x1f\x7f\ud800-\udfff]', '\ufffd', str(name)).replace('$', r'\$')


def write_plots(report, folder):
    """The page's figures as PNGs; their paths. ImportError without matplotlib, an extra."""
    from matplotlib.figure import Figure as Canvas
    folder, written = Path(folder), []
    folder.mkdir(parents=True, exist_ok=True)
    for figure in [forest(report), *figures(report), *(figure for _, figure in stat_figures(report))]:
        if figure is None:
            continue
        tree = isinstance(figure, Forest)
        canvas = Canvas(figsize=(6.4, 1.4 + 0.45 * len(figure.rows) if tree else 4), layout='constrained')
        ax = canvas.add_subplot()
        (plot_forest if tree else plot)(figure, ax)
        ax.set_title(plain(figure.title), loc='left', fontsize=11)
        ax.set_xlabel(figure.x)
        ax.spines[['top', 'right']].set_visible(False)
        written.append(folder / f'{figure.name}.png')
        canvas.savefig(written[-1], dpi=150)
    return written


def color_of(i):
    return COLORS[int(color_class(i)[1])]


def plot(figure, ax):
    """A Figure on matplotlib's axes."""
    handles = []
    for s in figure.series:
        if figure.dots:
            bars = [np.subtract(s.y, s.low), np.subtract(s.high, s.y)]
            handles.append(ax.errorbar(s.x, s.y, bars, fmt='o', color=color_of(s.color)))
        else:
            if s.low:
                ax.fill_between(s.x, s.low, s.high, color=color_of(s.color), alpha=0.16, linewidth=0)
            handles += ax.plot(s.x, s.y, '--' if s.color > 7 else '-', color=color_of(s.color), alpha=s.alpha)
    if figure.log:
        ax.set_xscale('log', base=2)
        ax.xaxis.set_major_formatter('{x:g}')
    if figure.delta is not None:
        ax.axhspan(-figure.delta, figure.delta, color='0.6', alpha=0.2, linewidth=0)
        ax.axhline(0, color='0.4', linewidth=0.8)
    if figure.within or figure.dots:
        ax.set_ylim(limits(figure)[1])
    ax.set_ylabel(figure.y)
    ax.legend(handles, [plain(cut(s.label, 40)) for s in figure.series], frameon=False, fontsize=8)


def plot_forest(figure, ax):
    """A Forest on matplotlib's axes."""
    ax.axvspan(-figure.delta, figure.delta, color='0.6', alpha=0.2, linewidth=0)
    ax.axvline(0, color='0.4', linewidth=0.8)
    for i, (_, c, color, each) in enumerate(figure.rows):
        color, out = color_of(color), abs(c.mean) > figure.reach
        ax.plot(c.interval or (c.mean, c.mean), [i, i], color=color, linewidth=2.5)
        ax.plot(each, [i] * len(each), 'o', color=color, markersize=3.5, markerfacecolor='white')
        ax.plot(np.clip(c.mean, -figure.reach, figure.reach), i, '<>'[c.mean > 0] if out else 'o', color=color, clip_on=False)
        if c.text_interval:
            ax.plot(c.text_interval, [i + 0.25] * 2, '--', color=color, linewidth=1)
    ax.set_yticks(range(len(figure.rows)), [plain(cut(row[0], 30)) for row in figure.rows])
    ax.set_ylim(len(figure.rows) - 0.4, -0.6)
    ax.set_xlim(-figure.reach, figure.reach)


def text(report, width=132):
    """The table for the terminal; below it the words and the price of each arm, then what a reader must know."""
    plan, said = plan_of(report), []
    rows = [['variant', 'n', 'loss', f'd [{plan["percent"]}t]', 'Holm', 'wins', 'ms x', 'FLOPs x', 'verdict']]
    for _, arm, c, title, word in verdicts(report):
        cost, c = price_words(report, arm) if title == arm.get('name') else '', c or Comparison({})
        span = f' [{dec(c.interval[0], sign="+")}, {dec(c.interval[1], sign="+")}]' if c.interval else ''
        rows.append([visible(title), finished(arm), level_of(arm, '±'), dec(c.mean, sign='+') + span, p_text(c.holm_p), c.wins,
                     *(dec(price(report, arm, key)[1], 3) for key in ('step_ms', 'flops_per_token')), word])
        said += [f'{title}: {word}' + (f', {answer(c, plan["percent"])}' if c.arm else '')]
        said += [f'    price: {cost}'] if cost else []
    widths = [max(map(len, column)) for column in zip(*rows)]
    widths[0] = max(min(widths[0], width - sum(widths[1:]) - 2 * len(widths)), 8)
    lines = ['  '.join(cut(cell, w).ljust(w) for cell, w in zip(row, widths)).rstrip() for row in rows]
    for paragraph in [*said, *warnings(report)]:
        lines += textwrap.wrap(visible(paragraph), width, subsequent_indent='    ', break_on_hyphens=False)
    return '\n'.join(lines)


def visible(name):
    """No control codes for a terminal."""
    return ''.join(character if character.isprintable() else '?' for character in str(name))
