"""Writes docs/verdicts.md from Records: the table of all variants, texts, claims, and how it was made."""
import math
import statistics
import textwrap
from collections import Counter

from lab.report.labels import count
from lab.sequential import LOOKS
from lab.study.waves import MIN_BASELINE
from lab.study.words import format_chance, format_interval, short_number
from lab.timing import ratio_text
from lab.verdicts.collect import file_hash, todays_options
from lab.verdicts.records import DIVERGED, FAILED
from lab.verdicts.rows import ALPHA, DELTA, SHAKESPEARE, SINGLE_EPOCH, judge_all, losses_of
from lab.verdicts.sentences import agreement, headline, outcome, title, verb
from variants.__main__ import markdown_table, parse_docstring

INTRO = """
What each file of [variants/](../variants/README.md) did to the loss, nulls and failures included, from the runs in
[verdicts.json](verdicts.json). `python -m lab.verdicts` makes this page."""

LEGEND = f"""
Beside a variant, what its [source](#claims) **claims** of the loss at equal steps: lower, equal or higher. Then **the
difference**: its loss less the baseline's, in nats per token, on the validation split after the last iteration, with a
95 % interval over seeds, corrected for stopping early; below zero is better. **verdict**: of each row alone, as
`python ab.py` judges a single idea: *better* or *worse* at a level of {100 * ALPHA:g} % over all looks; *equivalent*:
shown to be within ±{DELTA:g}; *can't tell*: neither. **Bold**: it also stands by Holm's correction among all rows of
the recipe. **P**: the chance that the variant is better, if most ideas do little. **runs**: those that have a loss or
diverged; a letter says [what trained them](#what-was-trained). **time** and **memory**: of a training step, over the
baseline's. †: the file computes something else by now. ‡: not to be believed without a look, see below."""

RULES = f"""
- Every row is judged as a study of its own by [lab/sequential.py](../lab/sequential.py): a variant's runs in the order
  of their seeds, at {', '.join(map(str, LOOKS))} of them, against all runs of the baseline, unpaired and without equal
  variances. A verdict once reached stays, whatever later runs say.
- Runs of a baseline are pooled over studies within one recipe, text, version of the code, PyTorch and kind of device.
  Losses of two versions are never compared. Of a variant that several have trained, the newest with four runs counts.
- Runs that diverged rank last. Runs that failed have no rank, and are counted. Against fewer than {MIN_BASELINE} runs
  of the baseline nothing is decided.
- All of this is about one model and one schedule on these texts, at the learning rate that suits the baseline."""

AGAIN = f"""
One command trains a row again, with the same seeds; another compares its losses with these to the last digit:

```sh
python ab.py {SHAKESPEARE} --variants=NAME
python ab.py {SINGLE_EPOCH} --variants=NAME --dataset=TEXT
python -m lab.verdicts add out-ab/ab_shakespeare_char-NAME
```"""


def page(records):
    """Returns the whole text of docs/verdicts.md."""
    r = judge_all(records)
    parts = ['# Verdicts', prose(INTRO), *map(prose, headline(r)), '## All variants', main_table(r), prose(LEGEND),
             *remarks(r), *other_options(r), *texts(r), *claims(r), '## How it was judged', RULES.strip(),
             AGAIN.strip(), *trained(r)]
    return '\n\n'.join(parts) + '\n'


def prose(text):
    """Returns a paragraph in lines of the width of other pages."""
    return textwrap.fill(text.strip(), 130, break_long_words=False, break_on_hyphens=False)


# -----------------------------------------------------------------------------
# the table of all variants

def main_table(r):
    """Returns the table of all variants, by their difference in the first recipe in which they have one."""
    head = ['variant']
    for recipe in r.main:
        head += [title(recipe), 'verdict']
    head.append('time, memory')
    names = sorted(r.variants, key=lambda variant: order([r.row(recipe, variant) for recipe in r.main]))
    return markdown_table(head, [main_row(r, variant) for variant in names])


def order(rows):
    """Returns what variants are sorted by: the measured, those that failed, those not measured."""
    found = [row.difference for row in rows if row and row.difference is not None]
    return not found, found[:1], not any(rows)


def main_row(r, variant):
    """Returns a variant's cells."""
    rows = [r.row(recipe, variant) for recipe in r.main]
    stale = ' †' if any(row and row.arm.file != file_hash(variant) for row in rows) else ''
    price = next((row.arm.price for row in rows if row and row.arm.price), {})
    claim = f'<br>claims {r.records.claims[variant]}' if variant in r.records.claims else ''
    return [f'<a id="{variant}"></a>[`{variant}`](../variants/{variant}.py){stale}{claim}',
            *(cell for row in rows for cell in row_cells(r, row)), price_cell(price)]


def row_cells(r, row):
    """Returns a Row's two cells: difference, and verdict with P(better) and runs; None: not measured."""
    if row is None:
        return ['', 'not measured']
    c, lost = row.comparison, dict(diverged=row.lost(DIVERGED), failed=row.lost(FAILED))
    runs = [f'P {format_chance(c.p_better)}'] if c and c.interval else []
    runs.append(count(row.ended, 'run') + version_mark(r.records, row.arm))
    lines = [row_word(row), ', '.join(runs), *(f'{n} {how}' for how, n in lost.items() if n)]
    return [difference_cell(row), '<br>'.join(map(unbroken, lines))]


def row_word(row):
    """Returns a Row's verdict, bold if it stands among all rows, with a mark if it is suspicious."""
    return (f'**{row.word}**' if row.stands else row.word) + ' ‡' * bool(row.arm.suspicions)


def difference_cell(row):
    """Returns a difference, and its interval on a line of its own."""
    if row.difference in (None, math.inf):
        return ''
    interval = row.comparison.interval
    return short_number(row.difference, sign='+') + (f'<br>[{unbroken(format_interval(interval))}]' if interval else '')


def price_cell(price):
    """Returns time and memory over the baseline's; price: {} if they were not measured."""
    if not price:
        return ''
    ratios = [price['ratio']]
    if price['peak_bytes'] and price['base_peak_bytes']:
        ratios.append(price['peak_bytes'] / price['base_peak_bytes'])
    return '<br>'.join(ratio_text(ratio, None) for ratio in ratios)


def unbroken(text):
    return text.replace(' ', '\xa0')


def version_mark(records, arm):
    """Returns the letter of an arm's version, '' if there is only one."""
    known = letters(records)
    return f'<sup>{known[arm.version]}</sup>' if len(known) > 1 else ''


def letters(records):
    """Returns {version's id: a, b, ...} in the order of their first use."""
    first = {}
    for arm in records.arms.values():
        first[arm.version] = min(arm.created, first.get(arm.version, arm.created))
    ordered = sorted(first, key=lambda version: (first[version], version))
    return {version: chr(ord('a') + i % 26) * (1 + i // 26) for i, version in enumerate(ordered)}


def remarks(r):
    """Yields a list of why runs failed, variants were refused, and effects are suspicious."""
    lines = []
    for recipe in r.recipes:
        for variant, row in sorted(r.rows[recipe.id].items()):
            why = Counter(loss.removeprefix(FAILED) for loss in row.arm.runs.values() if str(loss).startswith(FAILED))
            found = [f'refused: {row.arm.refused}'] if row.arm.refused else []
            found += [f'{count(n, "run")} failed: {reason}' for reason, n in why.items()]
            found += [f'‡ {doubt}' for doubt in row.arm.suspicions]
            lines += [f'- `{variant}`, {title(recipe)}: {line}' for line in found]
    if lines:
        yield '\n'.join(lines)


# -----------------------------------------------------------------------------
# further tables

def other_options(r):
    """Yields the table of variants with other options than their defaults."""
    if not r.others:
        return
    yield '## Other options'
    rows = sorted(r.others, key=lambda pair: (title(pair[0]), order([pair[1]])))
    yield markdown_table(['variant', 'text', 'difference', 'verdict'],
                         [[arm_label(row.arm, recipe), title(recipe), *row_cells(r, row)] for recipe, row in rows])


def arm_label(arm, recipe):
    """Returns an arm's variant, and the options in which it differs from today's defaults."""
    today = todays_options(arm.variant, recipe)
    options = [f'{name}={value}' for name, value in arm.options.items() if today.get(name, ...) != value]
    return f'`{" ".join([arm.variant, *options])}`'


def texts(r):
    """Yields the table of variants over texts, without those of which the large table shows it all."""
    large = [recipe.id for recipe in r.main]
    over = {variant: rows for variant, rows in r.over_texts().items()
            if agreement(rows) != 'agree' or any(row.arm.recipe not in large for row in rows)}
    if not over:
        return
    yield '## Over texts'
    yield prose('Differences and verdicts, bold as above, of variants that were measured on more texts than two, or '
                'whose estimates differ in sign. *flips*: better on one text and worse on another.')
    body = []
    for variant, rows in sorted(over.items(), key=lambda item: statistics.fmean(row.difference for row in item[1])):
        word = agreement(rows)
        body.append([f'`{variant}`', *(text_cell(r.row(recipe, variant)) for recipe in r.recipes),
                     f'**{word}**' if word == 'flips' else word])
    yield markdown_table(['variant', *map(title, r.recipes), ''], body)


def text_cell(row):
    """Returns a Row's difference and verdict in one cell."""
    if row is None:
        return ''
    difference = [] if row.difference in (None, math.inf) else [short_number(row.difference, sign='+')]
    return '<br>'.join([*difference, row_word(row)])


def claims(r):
    """Yields the table of what sources claim, and whether it holds."""
    known = {variant: claim for variant, claim in sorted(r.records.claims.items()) if variant in r.variants}
    if not known:
        return
    yield '## Claims'
    yield prose('What a source claims, of models and texts of its own; what we take it to mean for the loss at equal '
                'steps; and whether that holds here. Sources that claim nothing of the loss are left out.')
    body = []
    for variant, claim in known.items():
        rows = [r.row(recipe, variant) for recipe in r.main]
        body.append([f'`{variant}`', parse_docstring(variant)['Claim'], claim,
                     *(outcome(claim, row) if row else '' for row in rows)])
    yield markdown_table(['variant', 'its source', 'meaning', *map(title, r.main)], body)


def trained(r):
    """Yields the table of recipes and versions."""
    records, rows = r.records, []
    for recipe in r.recipes:
        for version, letter in letters(records).items():
            arms = [arm for arm in records.arms.values() if (arm.recipe, arm.version) == (recipe.id, version)]
            if arms:
                rows.append([letter, title(recipe), f'{recipe.options["max_iters"]:,}',
                             *version_cells(records.versions[version]), days(arms),
                             sum(len(losses_of(arm)) for arm in arms),
                             *baseline_cells(records.baseline(recipe.id, version))])
    if rows:
        yield '## What was trained'
        yield markdown_table(['', 'text', 'iterations', 'device', 'torch', 'commit', 'date', 'runs', "the baseline's",
                              'its loss'], rows)
        yield prose('A + behind a commit: with changes that were not committed. [verdicts.json](verdicts.json) has the '
                    'hash of the code, all options, every seed with its loss, and prices.')
    if r.left_out:
        arms = range(r.left_out)
        yield prose(f'{count(len(arms), "more arm")} in it {verb(arms)} of other recipes, older versions, or variants '
                    'that are not here.')


def version_cells(version):
    dirty = '+' * version.git.endswith('+')
    return [version.device, version.torch, f'`{version.git[:7]}{dirty}`']


def days(arms):
    """Returns the first and the last day of studies."""
    found = sorted({arm.created[:10] for arm in arms})
    return ' to '.join(dict.fromkeys((found[0], found[-1])))


def baseline_cells(baseline):
    """Returns the number of a baseline's runs, and the mean of their losses with its standard deviation."""
    losses = losses_of(baseline) if baseline else {}
    good = [loss for loss in losses.values() if math.isfinite(loss)]
    if len(good) < 2:
        return [len(losses), '']
    return [len(losses), f'{statistics.fmean(good):.4f} ± {short_number(statistics.stdev(good))}']
