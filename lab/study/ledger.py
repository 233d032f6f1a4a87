"""The ledger: every comparison ever made here, nulls and failures included.

Of many studies, some find something by luck; the ledger says how many were made.
"""
import json

from filelock import FileLock

from core.run.files import to_json

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
            with open(out / 'ledger.jsonl', 'a', encoding='utf-8') as f:
                f.write(json.dumps(entry) + '\n')
        (out / 'LEDGER.md').write_text(ledger_text(out) + '\n', encoding='utf-8')


def ledger_entries(out):
    """Returns the ledger's entries, dicts in the order in which they were added."""
    path = out / 'ledger.jsonl'
    lines = path.read_text(encoding='utf-8').splitlines() if path.exists() else []
    return [json.loads(line) for line in lines]


def ledger_text(out):
    """Returns the ledger as Markdown, one row per comparison."""
    # a study with too few runs for any comparison has one row too
    entries = ledger_entries(out)
    titles = ('study', 'when', 'arm', 'against', 'seeds', 'difference', '95 % interval', 'p (Holm)',
              'verdict', 'failed runs')
    rows = [titles, ['---'] * len(titles)]
    for e in entries:
        when = e['created'][:16].replace('T', ' ')
        for c in e['comparisons']:
            mean = '' if c['mean'] is None else f'{c["mean"]:+.4f}'
            interval = '{:+.4f} to {:+.4f}'.format(*c['interval']) if c['interval'] else ''
            p = '' if c['holm_p'] is None else f'{c["holm_p"]:.3f}'
            rows.append((e['name'], when, c['arm'], c['baseline'], c['n'], mean, interval, p, c['verdict'],
                         e['failed'].get(c['arm'], '')))
        if not e['comparisons']:
            arms, failed = ', '.join(e['failed']), sum(e['failed'].values())
            rows.append((e['name'], when, arms, '', '', '', '', '', 'none: too few runs', failed))
    total = f"{sum(len(e['comparisons']) for e in entries)} comparisons in {len(entries)} studies"
    lines = ['| ' + ' | '.join(map(markdown_cell, row)) + ' |' for row in rows]
    return '\n'.join(['# Ledger', '', total, '', *lines])


def markdown_cell(x):
    """Returns x as text that does not end a table's cell."""
    return str(x).replace('|', '\\|').replace('\n', ' ')
