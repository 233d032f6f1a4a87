"""Judges the arms in Records: each alone, as a study of one idea with seeds=auto, and by Holm among all.

An arm is compared with the runs of the baseline of the same recipe and the same version, which are all used at
each look: their number is no outcome of the arm. Two versions are never pooled, nor two kinds of device. Of an
arm that several versions have trained, the newest counts that has trained the runs of the first look.
"""
import math
from dataclasses import dataclass

import numpy as np

from core.assemble import variant_names
from lab import stats
from lab.sequential import LOOKS, Design, follow, judge
from lab.study.waves import MIN_BASELINE
from lab.verdicts.collect import todays_options
from lab.verdicts.records import DIVERGED, FAILED, Arm, Records

# ab.py's defaults
DELTA, ALPHA = 0.005, 0.05
# the recipes that are shown, with no other option than the text
SHAKESPEARE, SINGLE_EPOCH = 'config/ab_shakespeare_char.py', 'config/ab_text.py'


@dataclass
class Row:
    """An arm's verdict on one recipe."""
    arm: Arm
    # better, worse, equivalent, can't tell; diverged, failed: all runs; refused; no baseline
    word: str
    comparison: stats.Comparison | None = None # None: there is nothing to compare
    p: float = 1.0          # of a difference: the smallest so far at all looks that the runs reach
    side: int = 0           # what p speaks for: 1 worse, -1 better
    tost_p: float = 1.0     # of equivalence
    stands: bool = False    # the verdict also holds by Holm's correction among all arms of the recipe

    @property
    def difference(self):
        """The estimated difference; of too few runs the plain one; inf if all diverged; None if there is none."""
        if self.word == 'diverged':
            return math.inf
        c = self.comparison
        return c and (c.raw_mean if c.mean is None else c.mean)

    @property
    def ended(self):
        """The number of runs that have a loss or diverged."""
        return len(losses_of(self.arm))

    def lost(self, how):
        """Returns how many runs diverged, or failed."""
        return sum(str(loss).startswith(how) for loss in self.arm.runs.values())


@dataclass
class Results:
    """Verdicts on the variants that are here."""
    records: Records
    variants: list      # all that are here
    recipes: list       # Shakespeare's first, then by the number of variants trained on them
    rows: dict          # {recipe's id: {variant: Row}}, of variants with their default options
    others: list        # (recipe, Row), of variants with other options
    left_out: int       # arms of other recipes, older versions, or variants that are not here

    @property
    def texts(self):
        """The recipes of a single epoch."""
        return [recipe for recipe in self.recipes if recipe.config == SINGLE_EPOCH]

    @property
    def main(self):
        """The two recipes of the large table: Shakespeare, and the text that most variants were trained on."""
        return [recipe for recipe in self.recipes if recipe.config == SHAKESPEARE] + self.texts[:1]

    def row(self, recipe, variant):
        return self.rows[recipe.id].get(variant)

    def over_texts(self):
        """Returns {variant: Rows with a difference} of those that have several."""
        found = {}
        for variant in self.variants:
            rows = [row for recipe in self.recipes if (row := self.row(recipe, variant))]
            found[variant] = [row for row in rows if row.difference is not None]
        return {variant: rows for variant, rows in found.items() if len(rows) > 1}


def judge_all(records):
    """Returns the Results of Records."""
    variants, recipes, rows, others, used = variant_names(), shown_recipes(records), {}, [], 0
    for recipe in recipes:
        # Rows of one way to train, by several versions
        default, other = {}, {}
        for row in judge_recipe(records, recipe.id):
            arm = row.arm
            if arm.variant in variants and is_default(arm, recipe):
                default.setdefault(arm.variant, []).append(row)
            elif arm.variant in variants:
                other.setdefault((arm.variant, *sorted(arm.options.items())), []).append(row)
        rows[recipe.id] = {variant: newest(same) for variant, same in default.items()}
        others += [(recipe, newest(same)) for same in other.values()]
        used += len(default) + len(other)
    recipes.sort(key=lambda recipe: (recipe.config != SHAKESPEARE, -len(rows[recipe.id]), recipe.text))
    arms = sum(not records.is_baseline(arm) for arm in records.arms.values())
    return Results(records, variants, recipes, rows, others, arms - used)


def is_default(arm, recipe):
    """Returns True if a variant has the options that it has by default today; it may have got more since then."""
    today = todays_options(arm.variant, recipe)
    return all(name in today and today[name] == value for name, value in arm.options.items())


def shown_recipes(records):
    """Returns a recipe for each text; of config files that were edited, the one that was used last."""
    def last_use(recipe):
        return max((arm.created for arm in records.arms.values() if arm.recipe == recipe.id), default='')

    forms = {}
    for recipe in records.recipes.values():
        plain = recipe.given.keys() <= {'dataset'} and recipe.options['variant'] == 'base'
        if plain and recipe.config in (SHAKESPEARE, SINGLE_EPOCH):
            forms.setdefault((recipe.config, recipe.text), []).append(recipe)
    return [max(same, key=last_use) for same in forms.values()]


def judge_recipe(records, recipe):
    """Returns the Rows of all arms on a recipe (its id), except baselines."""
    arms = [arm for arm in records.arms.values() if arm.recipe == recipe and not records.is_baseline(arm)]
    rows = [judge_arm(arm, records.baseline(recipe, arm.version)) for arm in arms]
    judged = [row for row in rows if row.comparison]
    if judged:
        ps, tost_ps = (stats.holm([getattr(row, name) for row in judged]) for name in ('p', 'tost_p'))
        for row, p, tost_p in zip(judged, ps, tost_ps):
            side = dict(better=-1, worse=1, diverged=1).get(row.word)
            row.stands = p < ALPHA and row.side == side or tost_p < ALPHA and row.word == 'equivalent'
    return rows


def judge_arm(arm, baseline):
    """Returns the Row of an arm beside a baseline's Arm, None if there is none; without Holm's correction."""
    losses, base = losses_of(arm), losses_of(baseline) if baseline else {}
    if not losses:
        return Row(arm, 'refused' if arm.refused else 'failed')
    if len(base) < 2:
        return Row(arm, 'no baseline')
    design = Design('welch', LOOKS, len(base))
    c = judge({'': base, arm.variant: losses}, design, DELTA, ALPHA, plan=False).comparisons[arm.variant]
    if len(base) < MIN_BASELINE:
        return Row(arm, "can't tell", c)
    row = Row(arm, 'diverged' if all(map(math.isinf, losses.values())) else c.verdict, c)
    # those after the verdict, too
    path = follow(*(np.array([list(runs.values())]) for runs in (base, losses)), design, DELTA)
    if path.looks:
        row.p, row.side, row.tost_p = float(path.p[0, -1]), int(path.side[0, -1]), float(path.tost_p[0, -1])
    return row


def losses_of(arm):
    """Returns {seed: loss} in the order of seeds, inf if a run diverged; failed runs are left out."""
    ended = {int(seed): loss for seed, loss in arm.runs.items() if not str(loss).startswith(FAILED)}
    return {seed: math.inf if ended[seed] == DIVERGED else ended[seed] for seed in sorted(ended)}


def newest(rows):
    """Returns the Row that counts, of Rows of one arm in several versions."""
    return max(rows, key=lambda row: (row.ended >= LOOKS[0], row.arm.created, row.arm.version))
