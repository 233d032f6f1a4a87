"""The report that ab.py writes for people: report.html, which opens anywhere, and its charts as PNGs.

read.py         report.json -> one object in which no field is missing
sentences.py    the sentences of the page
tables.py       its tables
figures.py      its charts, each drawn once by matplotlib
labels.py       numbers, costs and verdicts as short texts
page.html.j2    the page, from top to bottom
page.css        its colors and layout
page.js         sorting its tables

report.json's format is lab/study/schema.py. Texts come from users: the template escapes them, and the page's
content security policy forbids it to load anything.
"""
from functools import cache
from pathlib import Path

from core.errors import Stop
from lab.report import figures, sentences, tables
from lab.report.labels import printable
from lab.report.read import read_report

HERE = Path(__file__).parent


def write_html(report, path):
    """Writes the page as one file that needs nothing else, not even a network.

    report: report.json, a dict.
    """
    r = read_report(report)
    charts, diagnostics = figures.build_charts(r), figures.build_diagnostics(r)
    svg = draw_all(charts + [chart for _, arm_charts in diagnostics for chart in arm_charts])
    if svg is None:
        # without matplotlib one line stands in for all charts
        charts, diagnostics = charts or diagnostics, []
    verdicts, statistics_of_arms = tables.verdict_table(r), tables.statistics_table(r)
    page = load_template().render(
        r=r, report=report,
        subtitle=sentences.subtitle(r), tally=sentences.tally(r), groups=sentences.answer_groups(r),
        noise=sentences.noise_sentence(r), warnings=list(sentences.warning_sentences(r)),
        most_warnings=sentences.MOST_WARNINGS,
        verdicts=verdicts, statistics_of_arms=statistics_of_arms,
        columns=tables.column_meanings(verdicts, statistics_of_arms),
        prices=tables.price_table(r), equal_cost_note=sentences.equal_cost_note(r),
        charts=charts, diagnostics=diagnostics, svg=svg, no_charts=sentences.NO_CHARTS,
        cells=tables.cells_table(r), arms=tables.arms_table(r),
        failed=tables.failed_table(r), runs=tables.runs_table(r),
        plan=sentences.plan_sentences(r), sweep=tables.sweep_table(r),
        statistics=sentences.statistics_sentences(r))
    Path(path).write_text(page, encoding='utf-8')


def write_plots(report, folder):
    """Writes the page's charts as PNGs and returns their paths. ImportError without matplotlib."""
    r, folder = read_report(report), Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    diagnostics = [chart for _, arm_charts in figures.build_diagnostics(r) for chart in arm_charts]
    return [figures.write_png(chart, folder) for chart in figures.build_charts(r) + diagnostics]


def draw_all(charts):
    """Returns {chart's name: <svg>}; None without matplotlib."""
    from markupsafe import Markup
    try:
        # numbered, because all SVGs of a page share one namespace of ids
        return {chart.name: Markup(figures.draw_svg(chart, f'chart{i}')) # noqa: S704 names in it are escaped
                for i, chart in enumerate(charts)}
    except ImportError:
        return None


@cache
def load_template():
    """Returns the template page.html.j2, with page.css and page.js in it. Stop without jinja2."""
    try:
        from jinja2 import Environment, FileSystemLoader, StrictUndefined
        from markupsafe import Markup
    except ImportError:
        raise Stop('report.html needs jinja2: pip install jinja2') from None
    environment = Environment(loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined,
                              trim_blocks=True, lstrip_blocks=True, finalize=printable_if_text)
    # StrictUndefined: a misspelt name in the template is an error, not an empty text
    environment.filters['flat_text'] = tables.flat_text
    # for tojson, which escapes <, > and &
    environment.policies['json.dumps_kwargs'] = {'default': str}
    css, js = (Markup((HERE / name).read_text(encoding='utf-8')) # noqa: S704
               for name in ('page.css', 'page.js'))
    return environment.get_template('page.html.j2', globals=dict(css=css, js=js))


def printable_if_text(x):
    """Returns the value of a template's expression, texts without characters that HTML cannot hold."""
    return printable(x) if type(x) is str else x
