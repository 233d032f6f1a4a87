"""The figures of a report, as data, and their drawings: SVG for the page, PNGs by matplotlib; and the elements a page is made of.

The data come from what lab.report's read() made of report.json. Names come from users: el() escapes all that is not Raw.
"""
import html
import re
from dataclasses import dataclass
from math import ceil, floor, log2, log10, sqrt

import numpy as np
from scipy.stats import t as student

COLORS = '#5f656d #0b6bcb #d1570a #128a5f #a8479b #a37b00 #0b93b0 #c0304f'.split() # the baseline's, and seven that follow


@dataclass
class Series:
    label: str
    color: int                  # 0 is the baseline's; see COLORS
    x: list
    y: list                     # NaN: a gap
    low: list = ()              # a band, or for dots a bar
    high: list = ()
    each: list = ()             # a line a seed
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
    rows: list                  # (name, comparison, color, differences per seed)
    delta: float
    reach: float                # the axis is -reach to +reach; intervals beyond it end in an arrow
    note: str
    name: str = 'differences'
    title: str = 'Difference to the baseline'
    x: str = 'nats; below zero the arm is better'


# -----------------------------------------------------------------------------
# numbers, and how they are printed

def dec(x, digits=4, sign=''):
    """-0.0024; what is too small for that as -1e-07; a dash where there is no number."""
    return '–' if x is None else f'{x:{sign}.{digits}f}' if not x or abs(x) >= 0.5 * 10 ** -digits else f'{x:{sign}.0e}'


def si(x):
    """10.6 M"""
    step = min(max(int(log10(abs(x)) // 3), 0), 5) if x else 0
    return f'{x / 1000 ** step:.4g} {" kMGTP"[step]}'.strip()


def minus(x):
    """A minus sign in place of a hyphen before a number. For numbers only: names keep their hyphens."""
    return re.sub(r'(?<![\w.])-(?=\d)', '−', x)


def cut(name, most):
    return name if len(name) <= most else name[:most - 1] + '…'


# -----------------------------------------------------------------------------
# figures, as data

def reach(sizes, least):
    """How far an axis goes so that one arm far out does not flatten the others: at most four times the median size."""
    sizes = sorted(x for x in sizes if x) or [least]
    return 1.1 * max(least, min(sizes[-1], 4 * sizes[len(sizes) // 2])) or 1e-4 # all equal to the bit, and no delta


def later(s, ys):
    """Values after the first part of the run, where arms can be told apart."""
    return [y for x, y in zip(s.x, ys) if x >= 0.3 * s.x[-1]]


def over_seeds(arm, x, lines):
    """Mean over the seeds and their range."""
    return Series(arm.name, arm.color, x, *(list(f(lines, axis=0)) for f in (np.mean, np.min, np.max)), each=lines)


def loss_figure(r, which, title):
    series = [over_seeds(arm, arm.iters, list(arm.curves[which].values())) for arm in r.arms if arm.curves[which]]
    if not series:
        return None
    low = min(min(s.low) for s in series)
    top = min(max(max(later(s, s.high)) for s in series), low + 2 * max(series[0].high[0] - low, 0.01)) # not for an arm gone astray
    return Figure(f'loss_{which}', title, 'iteration', 'nats', series, within=(low, top), note='Mean over the seeds that '
                  'came to their end; shaded: lowest to highest. Cut off above, where arms look alike.')


def difference(arm, base, level):
    """Arm minus baseline at the same seed and iteration: mean, and its t interval; None where they have nothing in common."""
    common = [i for i in arm.iters if i in base.iters]
    a, b = ([x.iters.index(i) for i in common] for x in (arm, base))
    lines, theirs = arm.curves['val'], base.curves['val']
    d = [lines[seed][a] - theirs[seed][b] for seed in lines if seed in theirs]
    if not d or not common:
        return None
    s, n = over_seeds(arm, common, d), len(d)
    wide = student.ppf(1 - level / 2, n - 1) / sqrt(n) * np.std(d, axis=0, ddof=1) if n > 1 else 0
    s.low, s.high = list(np.subtract(s.y, wide)), list(np.add(s.y, wide))
    return s


def difference_figure(r):
    found = [difference(arm, r.base, r.plan.level or 0.05) for arm in r.arms if r.base and arm is not r.base]
    series = [s for s in found if s]
    if not series:
        return None
    size = reach([max(map(abs, later(s, s.low) + later(s, s.high))) for s in series], 1.5 * r.plan.delta)
    gone = [s.label for s in series if min(map(abs, later(s, s.y))) > size]
    return Figure('difference', 'Difference to the baseline, while training', 'iteration', 'nats', series, delta=r.plan.delta,
                  within=(-size, size), note=f'Same seed, same batches. Shaded: {r.plan.percent}interval of the mean at each '
                  'iteration, not for all of them at once. Grey: ±delta.' + f' Outside the axis: {", ".join(gone)}.' * bool(gone))


def cost_figure(r, key, title):
    """Final loss against one of lab.report's COSTS."""
    series = [Series(arm.name, arm.color, [arm.costs[key][0]], [arm.mean], [min(arm.losses.values())], [max(arm.losses.values())])
              for arm in r.arms if arm.losses and arm.costs[key][0] is not None]
    costs = [s.x[0] for s in series]
    if not series or max(costs) < 1.02 * min(costs):    # nothing to choose between
        return None
    return Figure(f'loss_{key}', f'Final loss against {title}', title, 'nats', series, dots=True,
                  note='Mean, and lowest to highest seed. Lower and further left is better.')


def position_figure(r):
    """Loss difference by position in the context, means over positions that are neighbours on a logarithmic axis."""
    n, series = len(r.base.position_loss) if r.base else 0, []
    edges = sorted({round(2 ** (k / 4)) for k in range(4 * ceil(log2(n + 1)) + 1)})
    bins = [(a, min(b, n + 1)) for a, b in zip(edges, edges[1:]) if a <= n]
    for arm in r.arms:
        if arm is not r.base and len(arm.position_loss) == n > 0:
            d = np.array(arm.position_loss, float) - np.array(r.base.position_loss, float)
            series.append(Series(arm.name, arm.color, [sqrt(a * (b - 1)) for a, b in bins],
                                 [float(np.mean(d[a - 1:b - 1])) for a, b in bins]))
    return Figure('position', 'Difference by position in the context', 'position, 1 is the first', 'nats', series, log=True,
                  delta=0, note='Mean over seeds. An idea that uses the past better falls to the right.') if series else None


def stat_figures(r):
    """(arm, Figure) of the variants' own diagnostics, a line a layer."""
    every = [(arm, *stat) for arm in r.arms for stat in arm.stats]
    for k, (arm, name, iters, layers) in enumerate(every): # k: two names may differ only in what no file name can hold
        fade = 0.7 / max(len(layers) - 1, 1)
        lines = [Series(f'layer {i}' if len(layers) > 1 else name, 1, iters, list(y), alpha=1 - fade * i)
                 for i, y in enumerate(layers)]
        safe = re.sub(r'[^A-Za-z0-9_-]+', '_', f'stat_{k}_{arm.name}_{name}')[:80]
        yield arm, Figure(safe, name, 'iteration', '', lines, layers=True)


def forest(r):
    rows, losses = [], {arm.name: arm.losses for arm in r.arms}
    for arm, c, title, _ in r.verdicts:
        if c.mean is not None:
            other = losses.get(c.baseline, {})
            rows.append((title, c, arm.color, [arm.losses[s] - other[s] for s in arm.losses if s in other]))
    if not rows:
        return None
    size = reach([max(map(abs, c.interval or [c.mean])) for _, c, *_ in rows], 1.5 * r.plan.delta)
    beyond = any(abs(v) > size for _, c, *_ in rows for v in c.interval or [c.mean])
    return Forest(rows, r.plan.delta, size, f'Thick: {r.plan.percent}interval over seeds; rings: each seed; grey: ±delta, the '
                  'least difference that matters.' + ' Dashed: interval over text.' * any(c.text_interval for _, c, *_ in rows)
                  + ' Arrow: beyond the axis.' * beyond)


# -----------------------------------------------------------------------------
# axes

def limits(figure):
    """(x low, x high), (y low, y high) of the axes."""
    def span(values, pad):
        values = [v for v in values if v == v] or [0.0]
        low, high = min(values), max(values)
        room = pad * (high - low) or (0.0 if high > low else abs(low) * 0.1 or 1.0)
        return low - room, high + room
    every = [v for s in figure.series for ys in (s.y, s.low, s.high) for v in ys] + [0.0] * (figure.delta is not None)
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


def color_class(i):
    """The baseline's, or one of seven; dashed the second time round."""
    return 'c0' if not i else f'c{(i - 1) % 7 + 1}' + ' dash' * (i > 7)


# -----------------------------------------------------------------------------
# elements, and SVG: 360 units wide, about as many pixels on a phone, so that text of 12 units is readable there

class Raw(str):
    """Markup that may go into the page as it is."""


def esc(x):
    """Text for the page. What is not Raw is escaped; control characters, which HTML does not allow, go."""
    return x if isinstance(x, Raw) else html.escape(re.sub(r'[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]', '\ufffd', str(x)))


def el(tag, *inside, **attributes):
    """<tag attributes>inside</tag>; class_ is class, stroke_width is stroke-width; what is None is left out."""
    given = ''.join(f' {key.rstrip("_").replace("_", "-")}="{esc(v)}"' for key, v in attributes.items() if v is not None)
    end = '' if tag in ('meta', 'input') else f'</{tag}>'
    return Raw(f'<{tag}{given}>' + ''.join(esc(x) for x in inside if x is not None) + end)


def draw(tag, *inside, **attributes):
    """el() for drawings: numbers to a tenth of a unit."""
    return el(tag, *inside, **{key: f'{v:.1f}' if isinstance(v, float) else v for key, v in attributes.items()})


def line(x1, y1, x2, y2, kind):
    return draw('line', x1=x1, y1=y1, x2=x2, y2=y2, class_=kind)


def words(text, x, y, anchor='middle', kind='label'):
    return draw('text', text, x=x, y=y, text_anchor=anchor, class_=kind)


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


def svg(figure, number):
    H, left, top, right, bottom = 250, 50, 22, 350, 208
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
    marks = [series_svg(s, sx, sy, figure.dots) for s in figure.series]
    if figure.delta is not None:
        high, low = sy(figure.delta), sy(-figure.delta)
        marks = [draw('rect', x=left, width=right - left, y=high, height=low - high, class_='delta'),
                 line(left, sy(0), right, sy(0), 'zero'), *marks]
    return el('svg', *parts, el('g', *marks, clip_path=f'url(#clip{number})'), viewBox=f'0 0 360 {H}', role='img',
              aria_label=figure.title)


def series_svg(s, sx, sy, dots):
    at, parts = [sx(x) for x in s.x], []
    if dots:
        parts += [path([(x, sy(a)), (x, sy(b))], stroke_width=1.5) for x, a, b in zip(at, s.low, s.high)]
        parts += [draw('circle', cx=x, cy=sy(y), r=4, fill='currentColor') for x, y in zip(at, s.y)]
    else:
        whole = [(x, a, b) for x, a, b in zip(at, s.low, s.high) if a == a and b == b]
        edge = [(x, sy(b)) for x, _, b in whole] + [(x, sy(a)) for x, a, _ in reversed(whole)]
        points = ' '.join(f'{x:.1f},{min(max(y, -999), 9999):.1f}' for x, y in edge)
        parts += [el('polygon', points=points, class_='band')] if edge else []
        each = [path([(x, sy(y)) for x, y in zip(at, ys)], stroke_width=0.8) for ys in s.each]
        parts += [el('g', *each, class_='seed')] if each else []
        parts += [path([(x, sy(y)) for x, y in zip(at, s.y)], class_='line')]
    return el('g', *parts, class_=color_class(s.color), opacity=f'{s.alpha:.2f}')


def forest_svg(figure):
    """A row an arm: name and numbers on a line of text, the interval below it, so that no text can meet another."""
    left, right, row, end = 10, 350, 46, figure.reach
    bottom, sx = row * len(figure.rows) + 8, scale(-end, end, left, right)
    parts = [draw('rect', x=sx(-figure.delta), width=sx(figure.delta) - sx(-figure.delta), y=0, height=bottom, class_='delta')]
    for i, (name, c, color, each) in enumerate(figure.rows):
        low, high = c.interval or (c.mean, c.mean)
        numbers = minus(f'{dec(c.mean, sign="+")} [{dec(low, sign="+")}, {dec(high, sign="+")}]')
        y = row * i + 33
        parts += [line(sx(0), y - 11, sx(0), y + 13, 'zero'),           # not through the numbers
                  words(cut(name, 47 - len(numbers)), left, y - 17, 'start', 'name'), words(numbers, right, y - 17, 'end'),
                  el('g', *forest_marks(c, each, y, sx, end), class_=color_class(color))]
    for v, text in ticks(-end, end, 4):
        parts += [line(sx(v), bottom, sx(v), bottom + 4, 'axis'), words(minus(text), sx(v), bottom + 17)]
    parts += [line(left, bottom, right, bottom, 'axis'), words(figure.x, 180, bottom + 36)]
    return el('svg', *parts, viewBox=f'0 0 360 {bottom + 42}', role='img', aria_label=figure.title)


def forest_marks(c, each, y, sx, end):
    """An interval with its mean, each seed, and the interval over text; an arrow where it goes on beyond the axis."""
    def at(v):
        return sx(min(max(v, -end), end))
    low, high = c.interval or (c.mean, c.mean)
    if low < high:
        yield path([(at(low), y), (at(high), y)], stroke_width=3)
    for v, way in (low, -1), (high, 1):
        if way * v > end:
            yield el('path', d=f'M{at(v) - 7 * way:.1f} {y - 6}l{9 * way} 6l{-9 * way} 6z', fill='currentColor')
    yield from (draw('circle', cx=sx(d), cy=y, r=2.2, class_='one') for d in each if abs(d) <= end)
    if abs(c.mean) <= end:
        yield draw('circle', cx=sx(c.mean), cy=y, r=5, fill='currentColor')
    if c.text_interval:
        yield path([(at(v), y + 9) for v in c.text_interval], stroke_dasharray='3 3')


# -----------------------------------------------------------------------------
# PNGs

def plain(name):
    """A name for matplotlib: no mathematics, and none that it would leave out of a legend."""
    return ' ' + re.sub(r'[\x00-\x1f\x7f\ud800-\udfff]', '\ufffd', name).replace('$', r'\$')


def write_png(figure, folder):
    """A figure's PNG in a folder; its path. ImportError without matplotlib, an extra."""
    from matplotlib.figure import Figure as Canvas
    tree = isinstance(figure, Forest)
    canvas = Canvas(figsize=(6.4, 1.4 + 0.45 * len(figure.rows) if tree else 4), layout='constrained')
    ax = canvas.add_subplot()
    (plot_forest if tree else plot)(figure, ax)
    ax.set_title(plain(figure.title), loc='left', fontsize=11)
    ax.set_xlabel(figure.x)
    ax.spines[['top', 'right']].set_visible(False)
    written = folder / f'{figure.name}.png'
    canvas.savefig(written, dpi=150)
    return written


def color_of(i):
    return COLORS[int(color_class(i)[1])]


def plot(figure, ax):
    """A Figure on matplotlib's axes."""
    for s in figure.series:
        look = dict(color=color_of(s.color), label=plain(cut(s.label, 40)))
        if figure.dots:
            ax.errorbar(s.x, s.y, [np.subtract(s.y, s.low), np.subtract(s.high, s.y)], fmt='o', **look)
        else:
            ax.plot(s.x, s.y, '--' if s.color > 7 else '-', alpha=s.alpha, **look)
            if s.low:
                ax.fill_between(s.x, s.low, s.high, alpha=0.16, linewidth=0, color=look['color'])
    if figure.log:
        ax.set_xscale('log', base=2)
        ax.xaxis.set_major_formatter('{x:g}')
    if figure.delta is not None:
        ax.axhspan(-figure.delta, figure.delta, color='0.6', alpha=0.2, linewidth=0)
        ax.axhline(0, color='0.4', linewidth=0.8)
    if figure.within or figure.dots:
        ax.set_ylim(limits(figure)[1])
    ax.set_ylabel(figure.y)
    ax.legend(frameon=False, fontsize=8)


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
