"""A chart of differences by part: a bar with its interval for each."""
from dataclasses import dataclass

import numpy as np

from lab.report.figures import COLORS, WIDTH, label_text, new_figure, set_ticks
from lab.report.labels import shorten, with_minus_signs

ROW = 36                # units: a name, below it a bar


@dataclass
class Bars:
    """Bars to both sides of 0, green below it and red above; each with its interval, NaN for none."""
    name: str               # of its PNG
    title: str
    x_label: str            # with units
    rows: list              # of (name, value, half the width of its interval)
    note: str = ''
    digits: int = 4
    legend: tuple = ()
    has_seeds: bool = False

    def draw(self):
        """Returns the chart as a matplotlib Figure."""
        bottom = ROW * len(self.rows) + 4
        figure, ax = new_figure(bottom + 42, 10, 0, WIDTH - 10, bottom)
        ends = [abs(value) + np.nan_to_num(half) for _, value, half in self.rows]
        reach = 1.05 * max(ends, default=0) or 1.0
        ax.set_xlim(-reach, reach)
        ax.set_ylim(bottom, 0)
        ax.plot([0, 0], [0, bottom], color=COLORS['soft'], linewidth=1)
        from_left = ax.get_yaxis_transform()            # x from 0 to 1, y in rows
        for i, (name, value, half) in enumerate(self.rows):
            y, color = ROW * i, COLORS['worse' if value > 0 else 'better']
            numbers = f'{value:+.{self.digits}f}' + ('' if np.isnan(half) else f' ± {half:.{self.digits}f}')
            ax.text(0, y + 10, label_text(shorten(name, 47 - len(numbers))), transform=from_left, color=COLORS['ink'])
            ax.text(1, y + 10, with_minus_signs(numbers), transform=from_left, color=COLORS['soft'], ha='right')
            ax.fill_between([0, value], y + 17, y + 29, color=color, alpha=0.45, linewidth=0)
            if not np.isnan(half):
                ax.plot([value - half, value + half], [y + 23, y + 23], color=color, linewidth=2)
        set_ticks(ax.xaxis, 4)
        ax.set_yticks([])
        ax.set_xlabel(self.x_label, color=COLORS['soft'])
        return figure
