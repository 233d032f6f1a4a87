"""Takes the runs and prices of studies, which ab.py has left in out-ab/, into Records.

A study's folder says which arms it has; their runs lie beside it, in the store. All stored runs of an arm are
taken, not only those that the study looked at. What is there already stays as it is.
"""
import os
from dataclasses import asdict, dataclass, field
from math import isfinite
from pathlib import Path

from configurator import construct
from core import ROOT
from core.errors import Stop
from core.run.files import read_json, to_json
from lab.study.results import time_ratio_of
from lab.study.store import DONE, FAILED as FAILURE, code_hash, read_run, run_state
from lab.verdicts.records import DIVERGED, FAILED, Arm, Recipe, Records, Version, digest, recipe_id, rounded
from model import load_classes


@dataclass
class Added:
    """What became of the runs of a study."""
    arms: int = 0
    new: int = 0
    equal: int = 0              # there before, with the same loss to the last digit
    differ: list = field(default_factory=list) # lines about those with another one, which are left out


def add_study(records, folder):
    """Takes a study into Records, and returns what was Added. Stop if the folder holds no study with a store."""
    folder = Path(folder)
    study = read_json(folder / 'study.json')
    if study is None:
        raise Stop(f'{folder}: holds no study: there is no study.json')
    try:
        created, git = study['extra']['created'], study['extra']['environment']['git']
        keys = {arm['name']: arm['key'] for arm in study['arms']}
        # baselines made for one arm, and the noise floor, whose seeds are the baseline's
        left_out = {'null', *(match['name'] for match in study['pairs'].values())}
        # each cell of a study over texts and options has a baseline; (names of arms, {option: level})
        groups = [(list(cell['arms'].values()), cell['levels']) for cell in study.get('cells', [])]
        groups = groups or [([name for name in keys if name not in left_out], {})]
        if not all(keys[name] for names, _ in groups for name in names):
            raise Stop(f'{folder}: is a study from before the store, whose runs do not say what code they are of')
    except (KeyError, TypeError, AttributeError):
        raise Stop(f'{folder}/study.json: is not what this ab.py writes') from None

    prices, doubts, added = read_json(folder / 'price.json') or {}, suspicions_in(folder), Added()
    for names, levels in groups:
        stored = [StoredArm(folder.absolute().parent / 'runs' / keys[name]) for name in names]
        baseline = stored[0]
        recipe, version = recipe_of(baseline, levels), version_of(baseline, git)
        # one recipe may be called by several names, of which the plainest stays
        known = records.recipes.get(recipe.id, recipe)
        records.recipes[recipe.id] = min(known, recipe, key=lambda same: len(same.given))
        records.versions.setdefault(version.id, version)
        for name, arm in zip(names, stored):
            merge(records, added, Arm(
                recipe.id, version.id, arm.variant, arm.options_beside(baseline), arm.file_beside(baseline), created,
                arm.runs(), price_of(name, names[0], arm, prices), doubts.get(name, [])))
    return added


def suspicions_in(folder):
    """Returns {arm: sentences} of a study's report, {} if it has none yet."""
    report = read_json(folder / 'report.json') or {}
    return {c['arm']: c.get('suspicions', []) for c in report.get('comparisons', [])}


def merge(records, added, entry):
    """Takes an arm's runs into the entry that Records have of it, and counts them.

    What is there stays, so that no choice depends on a loss; a run that failed gives way to one that did not.
    """
    there = records.arms.setdefault(entry.key, entry)
    added.arms += 1
    if there is entry:
        added.new += len(entry.runs)
        return
    there.price, there.suspicions = there.price or entry.price, there.suspicions or entry.suspicions
    for seed, loss in entry.runs.items():
        before = there.runs.get(seed, FAILED)
        if loss == before:
            added.equal += 1
        elif str(before).startswith(FAILED):
            there.runs[seed] = loss
            added.new += 1
        else:
            added.differ.append(f'{entry.variant}, seed {seed}: {loss} here, {before} there, which is kept')
    # it has been trained since
    there.refused = there.refused if not there.runs else ''


def add_refusal(records, folder, variant, why):
    """Records why ab.py refused a variant; folder: a study of the same recipe by the same code, added before."""
    study = Records()
    add_study(study, folder)
    (recipe,), (version,) = study.recipes.values(), study.versions.values()
    if recipe.id not in records.recipes or version.id not in records.versions:
        raise Stop(f'{folder}: add it first')
    created = min(arm.created for arm in study.arms.values())
    entry = Arm(recipe.id, version.id, variant, todays_options(variant, recipe), file_hash(variant), created, {},
                refused=' '.join(why.split()))
    if entry.key in records.arms and records.arms[entry.key].runs:
        raise Stop(f'{variant}: has runs in {recipe.id}')
    records.arms[entry.key] = entry


def todays_options(variant, recipe):
    """Returns what Arm.options are of a variant with its defaults, on a Recipe."""
    today = asdict(construct(load_classes(variant).GPTConfig, recipe.model_args))
    return to_json({name: value for name, value in today.items()
                    if name not in recipe.model_args or value != recipe.model_args[name]})


class StoredArm:
    """An arm's folder in the store."""

    def __init__(self, folder):
        self.folder, self.identity = folder, read_json(folder / 'identity.json')
        if self.identity is None:
            raise Stop(f'{folder}: the runs of this study are not there; its store belongs beside it')
        self.settings = self.identity['options'] | self.identity['model_args']
        self.variant = self.identity['options']['variant']
        self.run_folders = sorted((path for path in folder.glob('*/') if path.name.isdigit()),
                                  key=lambda path: int(path.name))

    def run_config(self):
        """Returns the config.json of its first run that has one; {} if none has."""
        return next(filter(None, (read_json(path / 'config.json') for path in self.run_folders)), {})

    def runs(self):
        """Returns {seed: loss, 'diverged' or 'failed: WHY'} of the runs that have ended."""
        found = {}
        for path in self.run_folders:
            state = run_state(path)
            if state == 'done':
                loss = float(read_run(path / DONE, 'result')['result']['val_loss'])
                found[path.name] = rounded(loss) if isfinite(loss) else DIVERGED
            elif state == 'diverged':
                found[path.name] = DIVERGED
            elif state == 'failed':
                why = str(read_run(path / FAILURE, 'status', 'reason')['reason'])
                found[path.name] = FAILED + ' '.join(why.split())[:200]
        return found

    def options_beside(self, baseline):
        """Returns the options in which it differs from the baseline, and those that only its variant has."""
        return {name: value for name, value in self.settings.items()
                if name != 'variant' and (name not in baseline.settings or baseline.settings[name] != value)}

    def file_beside(self, baseline):
        """Returns a hash of what its variant's files compute, '' of the baseline."""
        own = {name: code for name, code in self.identity['code'].items() if name not in baseline.identity['code']}
        return digest(own) if own else ''


def recipe_of(baseline, levels):
    """Returns the Recipe of a StoredArm; levels: {option: level} of a cell, as --over has them."""
    identity, origin = baseline.identity, baseline.run_config().get('origin', {})
    data, options, model_args = identity['data'], identity['options'], identity['model_args']
    # 'config/x.py:12' of each option that a file sets
    files = [place.rpartition(':')[0] for place in origin.values() if ':' in place]
    given = {name: value for name, value in baseline.settings.items() if origin.get(name) == 'command line'}
    given |= {name: baseline.settings[name] for name, level in levels.items() if level != 'x1'}
    if options['variant'] == 'base':
        given.pop('variant', None)
    return Recipe(recipe_id(data, options, model_args), ', '.join(dict.fromkeys(files)), given, data, options,
                  model_args)


def version_of(baseline, git):
    """Returns the Version of a StoredArm; git: the study's commit, None outside of a checkout."""
    identity = baseline.identity
    code, torch, device = digest(identity['code'], 16), identity['torch'], identity['device']
    return Version(digest([code, torch, device]), code, torch, device, git or 'unknown')


def price_of(name, baseline, arm, prices):
    """Returns an arm's price in the form of records.PRICE, {} if it was not timed; prices: price.json."""
    results = prices.get('results', {})
    # names are those of the study's last start
    if name == baseline or not {name, baseline} <= results.keys() or prices['identity'].get(name) != arm.identity:
        return {}
    mine, base = results[name], results[baseline]
    interval = mine.get('step_ratio_interval')
    return dict(step_ms=short(mine['step_ms']), base_step_ms=short(base['step_ms']),
                ratio=short(time_ratio_of(mine, base)), interval=interval and [short(x) for x in interval],
                peak_bytes=mine['peak_bytes'], base_peak_bytes=base['peak_bytes'],
                params=mine['params'], base_params=base['params'])


def short(x):
    """Returns a time or a ratio with five digits, more than any timing repeats."""
    return float(f'{x:.5g}')


def file_hash(variant):
    """Returns a hash of what a variant's files compute, as StoredArm.file_beside() does."""
    paths = [Path(file.__file__) for file in load_classes(variant).files]
    return digest({os.path.relpath(path, ROOT): code_hash(path) for path in paths})
