"""Every comparison ever made here, nulls and failures included: many studies find something by luck, and this says how many."""
import json

from core.run.files import to_json


def add(report, out):
    """Puts a study's comparisons into out/ledger.jsonl, which outlives the study's folder, and writes out/LEDGER.md."""
    entry = dict(name=report['name'], created=report['created'], command=report['command'], seeds=len(report['plan']['seeds']),
                 failed={arm['name']: sum(run['status'] != 'done' for run in arm['runs']) for arm in report['arms']},
                 comparisons=[{n: c.get(n) for n in ('arm', 'baseline', 'n', 'mean', 'interval', 'holm_p', 'verdict')}
                              for c in report['comparisons']])
    entry = json.loads(json.dumps(to_json(entry)))
    known = [(e['name'], e['comparisons']) for e in entries(out)]
    if (entry['name'], entry['comparisons']) not in known: # the same study, reported once more
        with open(out / 'ledger.jsonl', 'a', encoding='utf-8') as f:
            f.write(json.dumps(entry) + '\n')
    (out / 'LEDGER.md').write_text(text(out) + '\n', encoding='utf-8')


def entries(out):
    path = out / 'ledger.jsonl'
    return [json.loads(line) for line in path.read_text(encoding='utf-8').splitlines()] if path.exists() else []


def text(out):
    """The ledger as Markdown, a row a comparison."""
    head = 'study', 'when', 'arm', 'against', 'seeds', 'difference', '95 % interval', 'p (Holm)', 'verdict', 'failed runs'
    rows, studies = [head, ['---'] * len(head)], entries(out)
    for study in studies:
        when = study['created'][:16].replace('T', ' ')
        for c in study['comparisons']:
            interval = '{:+.4f} to {:+.4f}'.format(*c['interval']) if c['interval'] else ''
            mean, p = (form.format(x) if x is not None else '' for form, x in (('{:+.4f}', c['mean']), ('{:.3f}', c['holm_p'])))
            rows.append((study['name'], when, c['arm'], c['baseline'], c['n'], mean, interval, p, c['verdict'],
                         study['failed'].get(c['arm'], '')))
        if not study['comparisons']:
            rows.append((study['name'], when, ', '.join(study['failed']), '', '', '', '', '', 'none: too few runs',
                         sum(study['failed'].values())))
    cell = lambda x: str(x).replace('|', '\\|').replace('\n', ' ')
    said = f"{sum(len(study['comparisons']) for study in studies)} comparisons in {len(studies)} studies"
    return '\n'.join(['# Ledger', '', said, '', *('| ' + ' | '.join(map(cell, row)) + ' |' for row in rows)])
