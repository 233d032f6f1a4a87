"""The sentences on top of docs/verdicts.md, computed from Results."""
from collections import Counter

from lab.report.labels import count
from lab.study.words import short_number
from lab.verdicts.rows import ALPHA, SHAKESPEARE

# what verdicts say of a claim; all others leave it open
OUTCOMES = dict(lower=dict(better='holds', equivalent='does not', worse='does not', diverged='does not'),
                equal=dict(better='holds', equivalent='holds', worse='does not', diverged='does not'),
                higher=dict(better='does not', equivalent='does not', worse='holds', diverged='holds'))
NAMED = 3       # the best are named


def title(recipe):
    return 'Shakespeare' if recipe.config == SHAKESPEARE else recipe.text


def outcome(claim, row):
    """Returns holds, does not or open, of a claim and a Row."""
    return OUTCOMES[claim].get(row.word, 'open')


def agreement(rows):
    """Returns flips, if verdicts contradict each other; signs differ, if only estimates do; or agree."""
    words = {row.word for row in rows}
    if 'better' in words and words & {'worse', 'diverged'}:
        return 'flips'
    return 'signs differ' if len({row.difference < 0 for row in rows}) > 1 else 'agree'


def headline(r):
    """Yields the paragraphs that say what came out."""
    if not r.recipes:
        yield f'**{count(len(r.variants), "variant")}, none of them measured yet.**'
    for recipe in r.main:
        yield of_recipe(r, recipe)
    yield from of_claims(r)
    yield from of_texts(r)


def of_recipe(r, recipe):
    """Returns how many variants are measured on a recipe and decided, and how many luck would decide."""
    rows = r.rows[recipe.id].values()
    words = Counter(row.word for row in rows)
    found = ', '.join(f'{words[word]} {word}' for word in (
        'better', 'worse', 'equivalent', "can't tell", 'diverged', 'failed', 'refused', 'no baseline') if words[word])
    best = sorted((row for row in rows if row.word == 'better'), key=lambda row: row.difference)[:NAMED]
    named = ', '.join(f'`{row.arm.variant}` ({short_number(row.difference, sign="+")})' for row in best)
    judged = sum(row.comparison is not None for row in rows)
    decided = [row for row in rows if row.word in ('better', 'worse', 'diverged')]
    return (f'**{title(recipe)}: {len(rows)} of {len(r.variants)} variants are measured: {found}.** '
            + f'The best: {named}. ' * bool(best) +
            f'If none of the {judged} that were judged did anything, luck would call up to {ALPHA * judged:.1f} of '
            f'them better or worse; {len(decided)} {verb(decided)}, and {sum(row.stands for row in decided)} of these '
            f'also by a test that allows luck {100 * ALPHA:g} % for all of them together.')


def of_claims(r):
    """Yields for each recipe how many claims of a lower loss hold."""
    for recipe in r.main:
        names = dict(holds=[], open=[]) | {'does not': []}
        for variant, claim in sorted(r.records.claims.items()):
            if claim == 'lower' and (row := r.row(recipe, variant)):
                names[outcome(claim, row)].append(f'`{variant}`')
        words = dict(holds='better here', **{'does not': 'not better'}, open='open')
        parts = [f'{len(names[key])} {word} ({", ".join(names[key])})' for key, word in words.items() if names[key]]
        if parts:
            total = sum(map(len, names.values()))
            yield f'Claims of a lower loss, on {title(recipe)}: of {total} that are measured, {"; ".join(parts)}.'


def of_texts(r):
    """Yields which verdicts flip between texts, and how many of Shakespeare's signs hold on each text."""
    over = r.over_texts()
    flips = [f'`{variant}`' for variant, rows in over.items() if agreement(rows) == 'flips']
    if over:
        yield (f'Of {count(len(over), "variant")} measured on more than one text, {len(flips)} {verb(flips)} better on '
               f'one and worse on another{": " * bool(flips)}{", ".join(flips)}.')
    if kept := list(of_signs(r)):
        yield f'Of the variants that Shakespeare calls better or worse, these keep their sign: {", ".join(kept)}.'


def of_signs(r):
    """Yields for each text how many of Shakespeare's verdicts keep their sign there: '3 of 4 on python'."""
    first = [recipe for recipe in r.recipes if recipe.config == SHAKESPEARE]
    for recipe in r.texts if first else []:
        pairs = [(row, other) for variant, row in r.rows[first[0].id].items() if row.word in ('better', 'worse')
                 and (other := r.row(recipe, variant)) and other.difference is not None]
        if pairs:
            kept = sum((row.difference < 0) == (other.difference < 0) for row, other in pairs)
            yield f'{kept} of {len(pairs)} on {title(recipe)}'


def verb(things):
    return 'is' if len(things) == 1 else 'are'
