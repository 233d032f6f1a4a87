"""The ledger: every comparison ever made here, nulls and failures included.

Of many studies, some find something by luck; the ledger says how many were made.
"""
import json

from filelock import FileLock

from core.run.files import to_json, warn, write_atomic
from lab.study.lines import append_line, read_lines

# fields of lab.stats.Comparison and its report that an entry keeps
COMPARISON_FIELDS = 'arm', 'baseline', 'n', 'mean', 'interval', 'holm_p', 'verdict'


def add_to_ledger(report, out):
    """Adds a study's comparisons to out/ledger.jsonl, which outlives its folder, and writes out/LEDGER.md.

    report: a schema.Report. out: the Path of out-ab.
    """
    failed = {arm.name: sum(run.status in ('failed', 'diverged') for run in arm.runs) for arm in report.arms}
    comparisons = [{name: getattr(c, name) for name in COMPARISON_FIELDS} for c in report.comparisons]
    entry = dict(name=report.name, created=report.created, command=report.command,
                 seeds=len(report.plan.seeds), failed=failed, comparisons=comparisons)
    # as it will be read back, so that the two can be compared
    entry = json.loads(json.dumps(to_json(entry)))
    # another study may end at the same time
    with FileLock(out / '.ledger.lock'):
        # a study that is reported twice with one result is listed once
        known = [(e['name'], e['comparisons']) for e in ledger_entries(out)]
        if (entry['name'], entry['comparisons']) not in known:
            append_line(out / 'ledger.jsonl', entry)
        write_atomic(out / 'LEDGER.md', f'{ledger_text(out)}\n'.encode())


def ledger_entries(out):
    """Returns the ledger's entries, dicts in the order in which they were added. Warns of damaged lines."""
    path, entries = out / 'ledger.jsonl', []
    for n, entry in read_lines(path):
        # what has no rows is no entry
        try:
            rows_of(entry)
            entries.append(entry)
        except (ValueError, TypeError, KeyError, AttributeError):
            warn(f'skipped {path}:{n}: is damaged, or not an entry of the ledger')
    return entries


def ledger_text(out):
    """Returns the ledger as Markdown, one row per comparison."""
    entries = ledger_entries(out)
    titles = ('study', 'when', 'arm', 'against', 'seeds', 'difference', '95 % interval', 'p (Holm)',
              'verdict', 'failed runs')
    rows = [titles, ['---'] * len(titles), *(row for e in entries for row in rows_of(e))]
    total = f"{sum(len(e['comparisons']) for e in entries)} comparisons in {len(entries)} studies"
    lines = ['| ' + ' | '.join(map(markdown_cell, row)) + ' |' for row in rows]
    return '\n'.join(['# Ledger', '', total, '', *lines])


def rows_of(entry):
    """Returns the rows of an entry, tuples: one per comparison, or one that says that there are none."""
    name, when, failed = entry['name'], entry['created'][:16].replace('T', ' '), entry['failed']
    rows = [(name, when, c['arm'], c['baseline'], c['n'], number(c['mean'], '+'),
             ' to '.join(number(x, '+') for x in c['interval'] or ()), number(c['holm_p'], digits=3), c['verdict'],
             failed.get(c['arm'], ''))
            for c in entry['comparisons']]
    # a study with too few runs for any comparison
    return rows or [(name, when, ', '.join(failed), '', '', '', '', '', 'none: too few runs', sum(failed.values()))]


def number(x, sign='', digits=4):
    """Returns x with this many decimals, or 1e+300 where those would make it long; '' for None."""
    if x is None:
        return ''
    # JSON has words for what is not finite
    x = float(x)
    return f'{x:{sign}.{digits}f}' if abs(x) < 1e6 else f'{x:{sign}.4g}'


def markdown_cell(x):
    """Returns x as text that does not end a table's cell."""
    return str(x).replace('|', '\\|').replace('\n', ' ')
