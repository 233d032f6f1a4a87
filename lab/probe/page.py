"""The result of a probe: sentences, then sections of tables, charts, pictures and texts. Written to a terminal, as
PNGs and as one page that opens anywhere, with the report's colors, tables and charts."""
import base64
import io
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from core.errors import Stop
from core.run.files import write_atomic
from lab.report.labels import printable
from lab.study.words import align

HERE = Path(__file__).parent
LINE = '#d1570a'        # the report's c2


class Cell(NamedTuple):
    """A cell of a table: its text, and the number that its column is sorted by, None for a text."""
    text: str
    value: float | None = None


class Table(NamedTuple):
    """A table; titles: of its columns; rows: lists of Cells or texts, the first of which names the row."""
    title: str
    titles: list
    rows: list
    note: str = ''
    kind: str = 'table'


class Text(NamedTuple):
    """Lines as they are, in a fixed width."""
    title: str
    text: str
    note: str = ''
    kind: str = 'text'


class Texts(NamedTuple):
    """Texts side by side; texts: [(name, text)]."""
    title: str
    texts: list
    note: str = ''
    kind: str = 'texts'


class Tokens(NamedTuple):
    """A text with a color behind each token; values from -1 (better's color) over 0 (none) to 1 (worse's)."""
    title: str
    tokens: list                # texts
    values: list                # floats
    hints: list                 # what is shown on a token that is pointed at
    note: str = ''
    kind: str = 'tokens'


class Panel(NamedTuple):
    """One map of Maps; values: (rows, columns), NaN for none; line: the column to mark in each row."""
    title: str
    values: np.ndarray
    line: np.ndarray | None = None

    def marks(self):
        """Returns the line's [(x, y)] in cells, from the upper left corner; y is its row's upper edge."""
        return [(x + 0.5, y) for y, x in enumerate(self.line.tolist()) if 0 <= x <= self.values.shape[1] - 1]


@dataclass
class Maps:
    """Small maps side by side, rows by columns of cells, darker for more; signed: 0 is clear, two colors."""
    name: str                   # of the PNG
    title: str
    panels: list                # of Panel
    x_label: str = ''
    y_label: str = ''
    note: str = ''
    signed: bool = False
    most: float | None = None   # the value that is darkest; None: the largest of all panels
    x_names: list = ()          # of the columns, such as tokens; (): none
    y_names: list = ()          # of the rows
    kind: str = 'maps'

    @property
    def limit(self):
        values = np.concatenate([np.abs(panel.values).ravel() for panel in self.panels])
        return self.most or float(np.nanmax(values, initial=0)) or 1.0

    def pictures(self):
        """Returns [(title, data URI of a PNG, a pixel for each cell)], clear where a value is 0; [] without Pillow."""
        try:
            return [(panel.title, data_uri(self.colors(panel.values))) for panel in self.panels]
        # it comes with matplotlib
        except ImportError:
            return []

    def colors(self, values):
        """Returns values (rows, columns) as RGBA bytes."""
        share = np.nan_to_num(values / self.limit).clip(-1, 1)
        # the report's c1 for more, c2 for less
        rgb = np.where((share < 0)[..., None], (0xd1, 0x57, 0x0a), (0x0b, 0x6b, 0xcb))
        # a root shows what is small, too
        return np.dstack((rgb, 255 * np.abs(share) ** (1.0 if self.signed else 0.5))).astype(np.uint8)

    def draw(self):
        """Returns the maps as a matplotlib Figure, eight in a row at most."""
        from matplotlib.figure import Figure
        # names take room
        most, size = (4, 3.2) if self.x_names or self.y_names else (8, 1.6)
        columns = min(len(self.panels), most)
        rows = -(-len(self.panels) // columns)
        figure = Figure(figsize=(size * columns + 0.6, (size + 0.25) * rows + 0.7), layout='constrained')
        axes = figure.subplots(rows, columns, squeeze=False).ravel()
        for ax, panel in zip(axes, self.panels):
            ax.imshow(self.colors(panel.values), aspect='auto', interpolation='nearest')
            ax.set_title(printable(panel.title), fontsize=8)
            if panel.line is not None:
                for x, y in panel.marks():
                    ax.plot([x - 0.5] * 2, [y - 0.5, y + 0.5], color=LINE, linewidth=1, solid_capstyle='butt')
            ax.tick_params(labelsize=6)
            if self.x_names:
                upright = longest(self.x_names) > 1
                ax.set_xticks(range(len(self.x_names)), self.x_names, rotation=90 * upright)
            if self.y_names:
                ax.set_yticks(range(len(self.y_names)), self.y_names)
        for ax in axes[len(self.panels):]:
            ax.set_axis_off()
        figure.suptitle(printable(self.title), fontsize=10)
        figure.supxlabel(self.x_label, fontsize=8)
        figure.supylabel(self.y_label, fontsize=8)
        return figure


class Section(NamedTuple):
    """A part of a page; items: Tables, Texts, Tokens, Maps, and charts of lab/report/figures.py."""
    title: str
    items: list
    note: str = ''


@dataclass
class Page:
    """What a command found."""
    name: str                   # of its files
    title: str
    subtitle: str
    sentences: list             # the answer, one line each
    sections: list = field(default_factory=list)

    def print(self):
        """Prints the sentences, and the tables that fit a terminal."""
        for section in self.sections:
            for item in section.items:
                if isinstance(item, Table):
                    print(f'\n{printable(item.title)}')
                    print('\n'.join(map(printable, align([item.titles, *map(texts, item.rows)]))))
        print()
        for sentence in self.sentences:
            print(printable(sentence))

    def write(self, folder):
        """Writes NAME.html and a PNG for each chart and each Maps into a folder; returns the paths.

        Without matplotlib the page has its tables and maps, and no PNG.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        items = [item for section in self.sections for item in section.items]
        charts = [item for item in items if hasattr(item, 'draw')]
        page = folder / f'{self.name}.html'
        write_atomic(page, self.html().encode())
        return [page, *write_pngs(charts, folder)]

    def html(self):
        """Returns the page."""
        charts = [i for section in self.sections for i in section.items if hasattr(i, 'draw') and not isinstance(i, Maps)]
        return load_template().render(page=self, svg=draw_all(charts), texts=texts, longest=longest)


def longest(names):
    """Returns the number of characters of the longest name, 0 without any."""
    return max(map(len, names), default=0)


def texts(row):
    """Returns the texts of a table's row."""
    return [cell.text if isinstance(cell, Cell) else str(cell) for cell in row]


def number(x, digits=4, sign=''):
    """Returns the Cell of a number, '–' for NaN."""
    return Cell('–' if np.isnan(x) else f'{x:{sign}.{digits}f}', None if np.isnan(x) else float(x))


def data_uri(rgba):
    """Returns RGBA bytes (rows, columns, 4) as a PNG in a data URI."""
    from PIL import Image
    file = io.BytesIO()
    Image.fromarray(rgba).save(file, 'PNG', optimize=True)
    return 'data:image/png;base64,' + base64.b64encode(file.getvalue()).decode()


def draw_all(charts):
    """Returns {chart's name: <svg>}; None without matplotlib."""
    from markupsafe import Markup

    from lab.report import figures
    try:
        # numbered, because all SVGs of a page share one namespace of ids
        return {chart.name: Markup(figures.draw_svg(chart, f'chart{i}')) # noqa: S704 names in it are escaped
                for i, chart in enumerate(charts)}
    except ImportError:
        return None


def write_pngs(charts, folder):
    """Writes charts and Maps as PNGs; returns their paths, none without matplotlib."""
    from lab.report import figures
    paths = []
    try:
        for chart in charts:
            if isinstance(chart, Maps):
                path = folder / f'{chart.name}.png'
                with figures.page_style():
                    chart.draw().savefig(path, dpi=160, facecolor='white')
                paths.append(path)
            else:
                paths.append(figures.write_png(chart, folder))
    except ImportError:
        return []
    return paths


@cache
def load_template():
    """Returns the template of pages, with the report's CSS and JavaScript in it. Stop without jinja2."""
    try:
        from jinja2 import Environment, FileSystemLoader, StrictUndefined
        from markupsafe import Markup
    except ImportError:
        raise Stop('pages need jinja2: pip install jinja2') from None
    environment = Environment(loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined,
                              trim_blocks=True, lstrip_blocks=True,
                              finalize=lambda x: printable(x) if type(x) is str else x)
    report = HERE.parent / 'report'
    css = (report / 'page.css').read_text(encoding='utf-8') + (HERE / 'probe.css').read_text(encoding='utf-8')
    js = (report / 'page.js').read_text(encoding='utf-8')
    return environment.get_template('page.html.j2', globals=dict(css=Markup(css), js=Markup(js))) # noqa: S704
