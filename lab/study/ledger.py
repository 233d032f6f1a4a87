"""Every comparison ever made here, nulls and failures included: many studies find something by luck, and this
says how many."""
import json

from core.run.files import to_json

COMPARISON_FIELDS = 'arm', 'baseline', 'n', 'mean', 'interval', 'holm_p', 'verdict'


def add_to_ledger(report, out):
    """Puts a study's comparisons into out/ledger.jsonl, which outlives the study's folder, and writes
    out/LEDGER.md.

    report: a schema.Report.
    """
    failed = {arm.name: sum(run.status != 'done' for run in arm.runs) for arm in report.arms}
    comparisons = [{name: getattr(c, name) for name in COMPARISON_FIELDS} for c in report.comparisons]
    entry = dict(name=report.name, created=report.created, command=report.command,
                 seeds=len(report.plan.seeds), failed=failed, comparisons=comparisons)
    entry = json.loads(json.dumps(to_json(entry)))
    # the same study may be reported once more
    known = [(e['name'], e['comparisons']) for e in ledger_entries(out)]
    if (entry['name'], entry['comparisons']) not in known:
        with open(out / 'ledger.jsonl', 'a', encoding='utf-8') as f:
            f.write(json.dumps(entry) + '\n')
    (out / 'LEDGER.md').write_text(ledger_text(out) + '\n', encoding='utf-8')


def ledger_entries(out):
    path = out / 'ledger.jsonl'
    lines = path.read_text(encoding='utf-8').splitlines() if path.exists() else []
    return [json.loads(line) for line in lines]


def ledger_text(out):
    """Returns the ledger as Markdown, a row a comparison."""
    # a row a comparison, or one for a study that had too few runs for any
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
    return str(x).replace('|', '\\|').replace('\n', ' ')
