"""The table of verdicts: docs/verdicts.md, from the runs in docs/verdicts.json.

    python -m lab.verdicts                      writes the page
    python -m lab.verdicts add out-ab/NAME...   takes the runs of these studies first
    python -m lab.verdicts refused out-ab/NAME VARIANT WHY   records that ab.py refuses it, in that study's recipe
    python -m lab.verdicts --check              whether the page is what the file says
    python -m lab.verdicts --claims             what was claimed and expected of those that are decided
"""
import sys

from core import ROOT
from core.errors import Stop, run_main
from core.run.files import write_atomic
from lab.verdicts.collect import add_refusal, add_study
from lab.verdicts.page import page
from lab.verdicts.records import FILE, read_records, write_records
from lab.verdicts.rows import judge_all
from lab.verdicts.sentences import outcome, title
from variants.__main__ import parse_docstring

PAGE = ROOT / 'docs/verdicts.md'


def add(records, folders):
    """Takes studies into Records, and says what of their runs is new."""
    for folder in folders:
        added = add_study(records, folder)
        print(f'{folder}: {added.arms} arms, {added.new} new runs; {added.equal} runs are here already, '
              'equal to the last digit')
        for line in added.differ:
            print(f'{folder}: {line}')


def claims_text(records):
    """Returns what was claimed and expected of the variants that are decided, those that contradict it first."""
    r, found = judge_all(records), []
    for recipe in r.main:
        for variant, row in r.rows[recipe.id].items():
            if row.word in ('better', 'worse', 'equivalent'):
                doc, claim = parse_docstring(variant), records.claims.get(variant)
                result = outcome(claim, row) if claim else 'none of the loss'
                lines = [f'{variant}, {title(recipe)}: {row.word}, {row.difference:+.4f}; its claim: {result}',
                         *(f'    {label}: {doc[label]}' for label in ('Claim', 'Expect', 'Measured') if label in doc)]
                found.append((result != 'does not', variant, '\n'.join(lines)))
    return '\n'.join(text for *_, text in sorted(found))


def main():
    command, *rest = sys.argv[1:] or ['write']
    records = read_records()
    if command == '--claims' and not rest:
        return print(claims_text(records))
    if command == 'add' and rest:
        add(records, rest)
    elif command == 'refused' and len(rest) == 3:
        add_refusal(records, *rest)
    elif command not in ('write', '--check') or rest:
        raise Stop(f'{" ".join(sys.argv[1:])}: takes add out-ab/NAME..., refused out-ab/NAME VARIANT WHY, --check, '
                   '--claims, or nothing')
    text = page(records)
    if command == '--check':
        if not PAGE.exists() or PAGE.read_text(encoding='utf-8') != text:
            raise Stop('docs/verdicts.md: is not what docs/verdicts.json says: run python -m lab.verdicts')
        return print('docs/verdicts.md: is what docs/verdicts.json says')
    if command != 'write':
        write_records(records, FILE)
    write_atomic(PAGE, text.encode())
    print(f'docs/verdicts.md: {len(records.arms)} arms, {sum(len(arm.runs) for arm in records.arms.values())} runs')


if __name__ == '__main__':
    run_main(main)
