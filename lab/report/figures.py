"""Charts of a report: the data of each, and one drawing of each by matplotlib, saved as SVG and as PNG.

A chart is 360 units wide, about a phone's width in pixels, so text of 12 units is readable there. Its colors
are those of the light page, from page.css. In the SVG each color becomes its variable again, so that the dark
page can change it; this is why no two variables may have the same color.
"""
import contextlib
import io
import re
import warnings
from dataclasses import dataclass
from math import ceil, floor, log2, log10, sqrt
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import numpy as np
from scipy.stats import t as student

from lab.report import sentences
from lab.report.labels import (
    COSTS,
    format_ends,
    format_number,
    format_si,
    printable,
    shorten,
    verdict_class,
    with_minus_signs,
)

CSS = Path(__file__).with_name('page.css').read_text(encoding='utf-8')
LIGHT = CSS[CSS.index(':root'):CSS.index('@media')]
COLORS = dict(re.findall(r'--(\w+): *(#[0-9a-f]{6})', LIGHT))  # by variable
# what differs from matplotlib's defaults
STYLE = {
    'svg.fonttype': 'none',             # text stays text
    'font.size': 12,
    'text.parse_math': False,           # a $ in a name is a dollar
    'lines.linewidth': 2,
    'lines.markeredgewidth': 0,
    'axes.labelpad': 7,
    'lines.solid_capstyle': 'round',
    'legend.frameon': False,
}
WIDTH, HEIGHT = 360, 250
LEFT, TOP, RIGHT, BOTTOM = 50, 22, 340, 208     # of the axes, from the upper left corner
ROW, STRIP = 42, 22                             # heights of a forest plot's row, and of its intervals


# -----------------------------------------------------------------------------
# charts as data, which know how to draw themselves

class LegendEntry(NamedTuple):
    """A line of a legend, for the page and for the PNG."""
    label: str
    color: str                          # one of COLORS
    dashed: bool
    alpha: float


@dataclass
class Series:
    """A curve or a dot of a chart; low and high are as long as x, or empty."""
    label: str
    index: int                  # of the arm, 0 the baseline, for its color
    x: list
    y: list                     # NaN: a gap
    low: list = ()              # the lower edge of a band, or for a dot the end of its bar
    high: list = ()
    seeds: list = ()            # the y values of each seed
    alpha: float = 1.0

    @property
    def legend_entry(self):
        return LegendEntry(self.label, *arm_style(self.index), self.alpha)


@dataclass
class Chart:
    """A chart of lines, or of dots with bars."""
    name: str                   # of its PNG
    title: str
    x_label: str                # with units
    y_label: str
    series: list
    note: str = ''
    log: bool = False           # x axis in powers of two
    dots: bool = False          # a dot with a bar for each series, in place of lines
    delta: float | None = None  # not None: draws a line at 0 and a band of +-delta
    y_range: tuple | None = None # None: all of the series
    layers: bool = False        # the series are the layers of a model, in order
    whole: bool = False         # x is a count, with ticks at whole numbers

    @property
    def span(self):
        return 1                # row of the page's grid of charts

    @property
    def has_seeds(self):
        return any(s.seeds for s in self.series)

    @property
    def legend(self):
        # layers are shades of one color, so the first and the last are enough
        shown = self.series[:1] + self.series[1:][-1:] if self.layers else self.series
        return [s.legend_entry for s in shown]

    def draw(self):
        """Returns the chart as a matplotlib Figure."""
        figure, ax = new_figure(HEIGHT, LEFT, TOP, RIGHT, BOTTOM)
        # drawn first, so that it lies below the series
        if self.delta is not None:
            ax.axhspan(-self.delta, self.delta, color=COLORS['delta'], alpha=0.19, linewidth=0)
            ax.axhline(0, color=COLORS['soft'], linewidth=1)
        draw_series = draw_dot if self.dots else draw_line
        for s in self.series:
            draw_series(ax, s)

        # lines run from edge to edge; dots keep away from the edges
        ax.margins(x=0.12 if self.dots else 0, y=0.06)
        if self.y_range:
            low, high = self.y_range
            room = 0.06 * (high - low) or 0.1 * abs(low) or 1.0
            ax.set_ylim(low - room, high + room)
        if self.log:
            set_log_ticks(ax)
        else:
            set_ticks(ax.xaxis, 4, self.whole)
        set_ticks(ax.yaxis, 5)
        ax.grid(axis='y', color=COLORS['rule'], linewidth=1)
        ax.set_axisbelow(True)
        # the unit stands above its axis, because beside it, turned, it would take width from the curves
        figure.text(4 / WIDTH, 1 - 11 / HEIGHT, self.y_label, color=COLORS['soft'])
        ax.set_xlabel(self.x_label, color=COLORS['soft'])
        return figure


class ForestRow(NamedTuple):
    """An arm in the forest plot."""
    title: str
    comparison: object
    differences: list           # arm minus baseline: one per seed, or per run where seeds are not paired


@dataclass
class ForestPlot:
    """The plot of all intervals; its attributes from name on are those of a Chart."""
    rows: list
    delta: float
    reach: float                # the axis is -reach to +reach; intervals beyond it end in an arrow
    note: str
    x_label: str
    name: str = 'differences'
    title: str = 'Difference to the baseline'
    legend: tuple = ()          # none, because the rows have names
    has_seeds: bool = False     # False: seeds are always drawn, so the page has no box for them

    @property
    def span(self):
        # as many rows of the page's grid as it is high; a chart with its title and note takes about 430 units
        return max(1, round(ROW * len(self.rows) / 430))

    def draw(self):
        """Returns the plot as a matplotlib Figure: one row per arm, its text above its interval."""
        bottom = ROW * len(self.rows) + 4
        figure, ax = new_figure(bottom + 42, 10, 0, WIDTH - 10, bottom)
        ax.set_xlim(-self.reach, self.reach)
        ax.set_ylim(bottom, 0)
        for i, row in enumerate(self.rows):
            self.draw_row(ax, row, ROW * i)
        set_ticks(ax.xaxis, 4)
        ax.set_yticks([])
        ax.set_xlabel(self.x_label, color=COLORS['soft'])
        return figure

    def draw_row(self, ax, row, y):
        """Draws one arm: name and numbers, below them the interval over seeds, the seeds, the one over text.

        y: the row's upper edge. Nothing lies on anything else, except on a strip with zero and +-delta.
        """
        c, color = row.comparison, COLORS[verdict_class(row.comparison.verdict)]
        numbers = with_minus_signs(f'{format_number(c.mean, sign="+")} {format_ends(c.interval)}'.strip())
        name = label_text(shorten(row.title, 47 - len(numbers)))
        from_left = ax.get_yaxis_transform()            # x from 0 to 1, y in rows
        ax.text(0, y + 10, name, transform=from_left, color=COLORS['ink'], weight='bold', gid='name')
        ax.text(1, y + 10, numbers, transform=from_left, color=COLORS['soft'], ha='right')
        top, bottom = y + 15, y + 15 + STRIP
        ax.fill_between([-self.delta, self.delta], top, bottom, color=COLORS['delta'], alpha=0.25,
                        linewidth=0)
        ax.plot([0, 0], [top, bottom], color=COLORS['soft'], linewidth=1)

        def plot(x, below, *marker, **style):
            """Plots at x, clipped to the axis, `below` the strip's upper edge; markers stay whole."""
            x = np.clip(x, -self.reach, self.reach)
            ax.plot(x, np.full_like(x, top + below), *marker, color=color, clip_on=False, **style)
        low, high = c.interval or (c.mean, c.mean)
        if low < high:
            plot([low, high], 6, linewidth=3)
        if low < -self.reach:
            plot([low], 6, '<', markersize=9)
        if high > self.reach:
            plot([high], 6, '>', markersize=9)
        if abs(c.mean) <= self.reach:
            plot([c.mean], 6, 'o', markersize=9)
        seeds = [d for d in row.differences if abs(d) <= self.reach]
        plot(seeds, 14, 'o', markersize=3.6, markeredgewidth=1, markerfacecolor='none')
        # the interval over text: a thin dashed line
        if c.text_interval and c.text_interval[0] < self.reach and c.text_interval[1] > -self.reach:
            plot(c.text_interval, 19.5, linewidth=1, dashes=(3, 3))


def arm_style(index):
    """Returns (color, dashed) of an arm by its index: c0 for the baseline, then seven colors, then dashed."""
    return (f'c{(index - 1) % 7 + 1}' if index else 'c0'), index > 7


# -----------------------------------------------------------------------------
# which charts a report has

def build_charts(r):
    """Returns the charts that the report has numbers for, in the page's order, without diagnostics."""
    charts = [
        forest_plot(r),
        loss_chart(r, 'val', 'Validation loss'),
        difference_chart(r),
        cost_chart(r, 'step_ms'),
        cost_chart(r, 'flops_per_token'),
        position_chart(r),
        loss_chart(r, 'train', 'Training loss'),
    ]
    return [chart for chart in charts if chart]


def build_diagnostics(r):
    """Returns [(arm, [Chart])] of arms whose variants log diagnostics: one line per layer, fading."""
    found, number = [], 0
    for arm in r.arms:
        charts = []
        for name, (iters, layers) in arm.diagnostics.items():
            fade = 0.7 / max(len(layers) - 1, 1)
            labels = [f'layer {i}' for i in range(len(layers))] if len(layers) > 1 else [name]
            lines = [Series(label, 1, iters, list(values), alpha=1 - fade * i)
                     for i, (label, values) in enumerate(zip(labels, layers))]
            # numbered, because two names may differ only in characters that no file name can hold
            file_name = re.sub(r'[^A-Za-z0-9_-]+', '_', f'stat_{number}_{arm.name}_{name}')[:80]
            charts.append(Chart(file_name, name, 'iteration', '', lines, layers=True))
            number += 1
        if charts:
            found.append((arm, charts))
    return found


def axis_reach(sizes, least):
    """Returns how far an axis goes: at most 4 times the median size, so that no outlier flattens the rest."""
    sizes = sorted(x for x in sizes if x) or [least]
    # 1e-4: for arms that are equal to the bit, where there is no delta
    return 1.1 * max(least, min(sizes[-1], 4 * sizes[len(sizes) // 2])) or 1e-4


def late_values(s, values):
    """Returns those values of a series that come after 30 % of the run, where arms can be told apart."""
    return [y for x, y in zip(s.x, values) if x >= 0.3 * s.x[-1]]


def over_seeds(arm, x, curves):
    """Returns a Series of curves (seeds, x): their mean, and the range as a band."""
    mean, low, high = (list(f(curves, axis=0)) for f in (np.mean, np.min, np.max))
    return Series(arm.name, arm.index, x, mean, low, high, seeds=curves)


def loss_chart(r, split, title):
    """Returns the Chart of the losses on a split, val or train; None without any."""
    series = [over_seeds(arm, arm.iters, list(arm.curves[split].values()))
              for arm in r.drawn if arm.curves[split]]
    if not series:
        return None
    # up to the highest loss after the start, but an arm that goes astray cannot stretch the axis far
    low = min(min(s.low) for s in series)
    first_loss = series[0].high[0]
    high = min(max(max(late_values(s, s.high)) for s in series), low + 2 * max(first_loss - low, 0.01))
    return Chart(f'loss_{split}', title, 'iteration', 'nats', series,
                 sentences.LOSS_NOTE + sentences.drawn_note(r), y_range=(low, high))


def paired_differences(arm, base, alpha):
    """Returns a Series of arm minus baseline by seed and iteration, with t intervals; None without any."""
    iters, at, base_at = common_iters(arm, base)
    curves, base_curves = arm.curves['val'], base.curves['val']
    d = [curves[seed][at] - base_curves[seed][base_at] for seed in curves if seed in base_curves]
    if not d or not iters:
        return None
    # d: n arrays (iters,); the band shows the interval of the mean, not the range
    s, n = over_seeds(arm, iters, d), len(d)
    half = student.ppf(1 - alpha / 2, n - 1) / sqrt(n) * np.std(d, axis=0, ddof=1) if n > 1 else 0
    s.low, s.high = list(np.subtract(s.y, half)), list(np.add(s.y, half))
    return s


def unpaired_differences(arm, base, alpha):
    """Returns a Series of the arm's mean minus the baseline's, with Welch's intervals; None without any."""
    iters, at, base_at = common_iters(arm, base)
    var = [values[at] for values in arm.curves['val'].values()]
    ref = [values[base_at] for values in base.curves['val'].values()]
    if min(len(var), len(ref)) < 2 or not iters:
        return None
    mean = np.mean(var, axis=0) - np.mean(ref, axis=0)
    # (iters,): squared standard errors, Welch and Satterthwaite's degrees of freedom
    a, b = (np.var(runs, axis=0, ddof=1) / len(runs) for runs in (var, ref))
    # 1e-30: runs that are equal to the bit, as before the first step, have an interval of no width
    df = (a + b) ** 2 / (a ** 2 / (len(var) - 1) + b ** 2 / (len(ref) - 1) + 1e-30)
    half = student.ppf(1 - alpha / 2, np.maximum(df, 1)) * np.sqrt(a + b)
    return Series(arm.name, arm.index, iters, list(mean), list(mean - half), list(mean + half))


def common_iters(arm, base):
    """Returns the iterations at which both were evaluated, and where those are among each one's."""
    iters = [i for i in arm.iters if i in base.iters]
    return iters, [arm.iters.index(i) for i in iters], [base.iters.index(i) for i in iters]


def difference_chart(r):
    """Returns the Chart of the differences to the baseline while training; None without any.

    Runs are paired by their seeds only where the verdicts pair them.
    """
    unpaired = {c.arm for c in r.comparisons if not c.paired and c.test != 'rank sum'}

    def differences(arm):
        # the null arm is the baseline with the same seeds, and says nothing without them
        kind = unpaired_differences if unpaired and not arm.null else paired_differences
        return kind(arm, r.base, r.plan.level or 0.05)
    others = [arm for arm in r.drawn if r.base and arm is not r.base]
    series = [s for arm in others if (s := differences(arm))]
    if not series:
        return None
    sizes = [max(map(abs, late_values(s, s.low) + late_values(s, s.high))) for s in series]
    reach = axis_reach(sizes, 1.5 * r.plan.delta)
    outside = [s.label for s in series if min(map(abs, late_values(s, s.y))) > reach]
    null = [arm.name for arm in others if arm.null and unpaired]
    note = sentences.difference_note(r.plan.percent, not unpaired, null, outside) + sentences.drawn_note(r)
    return Chart('difference', 'Difference to the baseline, while training', 'iteration', 'nats', series,
                 note, delta=r.plan.delta, y_range=(-reach, reach))


def cost_chart(r, field):
    """Returns the Chart of final losses against one of COSTS; None if the arms cost the same."""
    series = [Series(arm.name, arm.index, [arm.costs[field][0]], [arm.mean],
                     [min(arm.losses.values())], [max(arm.losses.values())])
              for arm in r.drawn if arm.losses and arm.costs[field][0] is not None]
    # costs less than 2 % apart leave nothing to choose between
    costs = [s.x[0] for s in series]
    if not series or max(costs) < 1.02 * min(costs):
        return None
    title = COSTS[field].title
    return Chart(f'loss_{field}', f'Final loss against {title}', title, 'nats', series,
                 sentences.COST_NOTE + sentences.drawn_note(r), dots=True)


def position_chart(r):
    """Returns the Chart of loss differences by position, means over logarithmic bins; None without any."""
    n, series = len(r.base.position_loss) if r.base else 0, []
    # four bins per octave; the last one ends with position n
    edges = sorted({round(2 ** (k / 4)) for k in range(4 * ceil(log2(n + 1)) + 1)})
    bins = [(a, min(b, n + 1)) for a, b in zip(edges, edges[1:]) if a <= n]
    for arm in r.drawn:
        # of the null arm there is a mean alone, over other seeds than the baseline's
        if arm is not r.base and not arm.null and len(arm.position_loss) == n > 0:
            d = np.array(arm.position_loss, float) - np.array(r.base.position_loss, float)
            series.append(Series(arm.name, arm.index, [sqrt(a * (b - 1)) for a, b in bins],
                                 [float(np.mean(d[a - 1:b - 1])) for a, b in bins]))
    if not series:
        return None
    return Chart('position', 'Difference by position in the context', 'position, 1 is the first', 'nats',
                 series, sentences.POSITION_NOTE + sentences.drawn_note(r), log=True, delta=0)


def forest_plot(r):
    """Returns the ForestPlot of all comparisons with a mean, sorted by verdict; None without any."""
    losses = {arm.name: arm.losses for arm in r.arms}
    rows = [ForestRow(title, c, run_differences(arm.losses, losses.get(c.baseline, {}), c.paired))
            for arm, c, title, _ in r.verdicts if c.mean is not None]
    if not rows:
        return None
    intervals = [row.comparison.interval or [row.comparison.mean] for row in rows]
    reach = axis_reach([max(map(abs, ends)) for ends in intervals], 1.5 * r.plan.delta)
    over_text = any(row.comparison.text_interval for row in rows)
    beyond = any(abs(end) > reach for ends in intervals for end in ends)
    note = sentences.forest_note(r, [row.comparison.paired for row in rows], over_text, beyond)
    side = f'{"above" if r.plan.higher_is_better else "below"} zero the arm is better'
    x_label = f'{r.plan.unit}; {side}' if r.plan.unit else side
    return ForestPlot(rows, r.plan.delta, reach, note, label_text(shorten(x_label, 60)))


def run_differences(losses, base, paired):
    """Returns each loss minus the baseline's at the same seed, or if not paired minus the baseline's mean.

    losses, base: {seed: loss}.
    """
    if paired:
        return [x - base[seed] for seed, x in losses.items() if seed in base]
    return [x - np.mean(list(base.values())) for x in losses.values() if base]


# -----------------------------------------------------------------------------
# drawing

def new_figure(height, left, top, right, bottom):
    """Returns (Figure, Axes) without a frame; lengths are in units, from the upper left corner."""
    from matplotlib.figure import Figure
    # an inch has 72 units
    figure = Figure(figsize=(WIDTH / 72, height / 72))
    # the page's own background shows through
    figure.patch.set_visible(False)
    ax = figure.add_axes((left / WIDTH, 1 - bottom / height, (right - left) / WIDTH, (bottom - top) / height))
    ax.patch.set_visible(False)
    ax.spines[['left', 'top', 'right']].set_visible(False)
    ax.spines['bottom'].set_color(COLORS['soft'])
    ax.tick_params(color=COLORS['soft'], labelcolor=COLORS['soft'], width=1, length=4)
    ax.tick_params(axis='y', length=0, pad=6)
    return figure, ax


def set_log_ticks(ax):
    """Makes the x axis logarithmic, with ticks at powers of two."""
    from matplotlib.ticker import LogLocator, NullLocator
    ax.set_xscale('log', base=2)
    ax.xaxis.set_major_locator(LogLocator(base=2, numticks=6))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter('{x:g}')


def set_ticks(axis, most, whole=False):
    """Sets ticks at round numbers within the axis, `most` intervals at most: 0.005, 2,000 or 66 M.

    whole: at whole numbers alone.
    """
    from matplotlib.ticker import MaxNLocator
    low, high = sorted(axis.get_view_interval())
    ticks = MaxNLocator(most, steps=[1, 2, 5, 10], integer=whole).tick_values(low, high)
    digits = max(0, -floor(log10(ticks[1] - ticks[0]) + 1e-9))
    # as many digits as tell two ticks apart; + 0.0 turns -0 into 0
    ticks = [round(x, digits) + 0.0 for x in ticks]
    # MaxNLocator goes one tick beyond the axis at each end
    room = 1e-9 * (high - low)
    ticks = [x for x in ticks if low - room <= x <= high + room]
    labels = [f'{x:,.{digits}f}' if max(-low, high) < 1e6 else format_si(x) for x in ticks]
    axis.set_ticks(ticks, [with_minus_signs(label) for label in labels])


def draw_line(ax, s):
    """Draws a line with its band, and a thin line per seed, which the page shows on demand."""
    name, dashed = arm_style(s.index)
    if s.low:
        ax.fill_between(s.x, s.low, s.high, color=COLORS[name], alpha=0.16, linewidth=0, gid='band')
    if s.seeds:
        # one path for all seeds, with gaps between them
        x = np.concatenate([[*s.x, np.nan] for _ in s.seeds])
        y = np.concatenate([[*values, np.nan] for values in s.seeds])
        ax.plot(x, y, color=COLORS[name], linewidth=0.8, alpha=0.75, gid='seed')
    # a point between two gaps makes no line, so it gets a dot
    there = np.isfinite([np.nan, *s.y, np.nan])
    alone = np.flatnonzero(there[1:-1] & ~there[:-2] & ~there[2:])
    ax.plot(s.x, s.y, '--' if dashed else '-', color=COLORS[name], alpha=s.alpha,
            marker='o' if len(alone) else None, markevery=list(alone), markersize=3)


def draw_dot(ax, s):
    """Draws a dot with its bar."""
    name, _ = arm_style(s.index)
    ax.plot(s.x * 2, [*s.low, *s.high], color=COLORS[name], linewidth=1.5)
    ax.plot(s.x, s.y, 'o', color=COLORS[name], markersize=8)


def label_text(name):
    """Returns a user's text on one line, for matplotlib."""
    return printable(' '.join(name.split()))


# -----------------------------------------------------------------------------
# SVG and PNG. ImportError without matplotlib

@contextlib.contextmanager
def page_style():
    """Sets matplotlib's STYLE, whatever the user's own settings are."""
    import matplotlib.style
    with matplotlib.style.context(['default', STYLE]), warnings.catch_warnings():
        # about characters that matplotlib's font lacks: a browser has them, a PNG shows boxes
        warnings.filterwarnings('ignore', 'Glyph')
        yield


def draw_svg(chart, prefix):
    """Returns the chart as an <svg> for a page. prefix: of its ids, different for each chart of a page."""
    file = io.StringIO()
    with page_style():
        chart.draw().savefig(file, format='svg')
    # safe to parse: matplotlib wrote it, and escapes names
    (svg,) = slim_svg(ElementTree.fromstring(file.getvalue()), prefix, {}) # noqa: S314
    svg.attrib = {'viewBox': svg.attrib['viewBox'], 'role': 'img', 'aria-label': printable(chart.title)}
    return ElementTree.tostring(svg, encoding='unicode')


# an artist's gid becomes a class, for page.css
CLASSES = 'seed', 'band', 'name'
VARIABLES = {color: f'var(--{name})' for name, color in COLORS.items()}


def slim_svg(element, prefix, ids):
    """Returns [element] with page.css's variables as colors and numbers to a tenth, or its parts, or [].

    Namespaces are dropped; an empty group gives [], and one without attributes gives its children. ids: those
    given so far, {matplotlib's: the page's}.
    """
    def in_page(old):
        return ids.setdefault(old, f'{prefix}-{len(ids)}')

    tag = element.tag.rpartition('}')[2]
    # matplotlib's style has the selector *, which would reach the whole page
    if tag in ('metadata', 'style'):
        return []
    attributes = {}
    for name, text in element.attrib.items():
        # a group's id is an artist's gid or a number; other ids have references, as clip paths and markers
        name = name.rpartition('}')[2]
        if name == 'id':
            if tag != 'g':
                attributes['id'] = in_page(text)
            elif text in CLASSES:
                attributes['class'] = text
        elif name == 'href':
            attributes['href'] = f'#{in_page(text.removeprefix("#"))}'
        elif name == 'clip-path':
            attributes[name] = f'url(#{in_page(text[5:-1])})'
        elif name == 'style':
            attributes[name] = slim_style(text)
        # matplotlib rotates each text, mostly by -0 degrees
        elif not (name == 'transform' and text.startswith('rotate(-0 ')):
            text = re.sub(r'-?\d+\.\d+', lambda x: f'{float(x[0]):.1f}'.removesuffix('.0'), text)
            attributes[name] = re.sub(r'\s*([MLCQz])\s*', r'\1', text) if name == 'd' else text

    # groups without attributes are replaced by their children
    children = [part for child in element for part in slim_svg(child, prefix, ids)]
    if tag in ('g', 'defs') and not children:
        return []
    if tag == 'g' and not attributes:
        return children
    slim = ElementTree.Element(tag, attributes)
    slim.text = element.text if tag == 'text' else None
    slim.extend(children)
    return [slim]


def slim_style(text):
    """Returns a style attribute with variables as colors; page.css sets its fonts, caps and joins."""
    rules = re.findall(r'([\w-]+): *([^;]+)', text)
    return ';'.join(f'{name}:{VARIABLES.get(x, x)}' for name, x in rules
                    if not name.startswith('font') and name not in ('stroke-linecap', 'stroke-linejoin'))


def write_png(chart, folder):
    """Writes the chart with its title and legend as a PNG, and returns its path."""
    path = folder / f'{chart.name}.png'
    with page_style():
        figure = chart.draw()
        # a PNG has no box to show seeds on demand
        for artist in figure.findobj(lambda artist: artist.get_gid() == 'seed'):
            artist.set_visible(False)
        add_title_and_legend(figure, chart)
        figure.savefig(path, dpi=200, bbox_inches='tight', facecolor=COLORS['bg'])
    return path


def add_title_and_legend(figure, chart):
    """Adds the title and legend, outside the figure; bbox_inches='tight' makes room for them."""
    from matplotlib.lines import Line2D
    figure.patch.set_visible(True)
    height = 72 * figure.get_figheight()
    title = label_text(shorten(chart.title, 50))
    figure.text(4 / WIDTH, 1 + 8 / height, title, color=COLORS['ink'], weight='bold')
    # two columns of names that fit
    keys = [Line2D([], [], color=COLORS[key.color], linestyle='--' if key.dashed else '-', alpha=key.alpha)
            for key in chart.legend]
    if keys:
        legend = figure.legend(keys, [''] * len(keys), loc='upper left', bbox_to_anchor=(0, 0), ncols=2,
                               fontsize=10)
        # set here, because matplotlib leaves out labels that begin with an underscore
        for text, key in zip(legend.get_texts(), chart.legend):
            text.set(text=label_text(shorten(key.label, 24)), color=COLORS['ink'])
