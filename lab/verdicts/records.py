"""The format of docs/verdicts.json, from which docs/verdicts.md is made: losses, prices, and what they are of.

    claims      {variant: what its source says of the loss at equal steps}, read from the docstrings' claims
    recipes     texts and options of baselines
    versions    code, torch and devices that trained
    arms        a variant with its options, on a recipe, by a version: its runs and its price

Each entry is a line, so that a change can be read and merged by git. The file is checked whenever it is read.
"""
import hashlib
import json
import re
from dataclasses import asdict, dataclass, field, fields
from math import isfinite
from pathlib import Path

from core import ROOT
from core.errors import Stop
from core.run.files import write_atomic

FILE = ROOT / 'docs/verdicts.json'
# of a loss at equal steps, beside the baseline's; equal: as good
CLAIMS = 'lower', 'equal', 'higher'
# fields of an Arm
OPTIONAL = 'price', 'suspicions', 'refused'
# enough that two losses with the same digits are, with near certainty, equal to the bit
DIGITS = 10
# without a loss
DIVERGED, FAILED = 'diverged', 'failed: '


@dataclass
class Recipe:
    """What a baseline is trained on and how: config files, and options in full."""
    id: str             # dataset and eight digits of a hash of data, options and model_args
    config: str         # config files, separated by commas
    given: dict         # options from the command line, {name: value}
    data: str           # the data set's hash
    options: dict       # train.py's that change what is computed
    model_args: dict    # the baseline's

    @property
    def text(self):
        return self.options['dataset']


@dataclass
class Version:
    """What trained. Losses of two versions are never compared."""
    id: str             # eight digits of a hash of code, torch and device
    code: str           # hash of all files that the baseline's training runs
    torch: str
    device: str         # its kind and the dtype: NVIDIA H200, bfloat16
    git: str            # the commit, + if files differed from it


@dataclass
class Arm:
    """One way to train; the baseline is the arm with the recipe's own variant and no options."""
    recipe: str         # its id
    version: str        # its id
    variant: str
    options: dict       # all options of the variant, and others in which it differs from the recipe
    file: str           # hash of what the variant's file computes; of the baseline: ''
    created: str        # UTC, of the study that it came with: 2026-01-31T12:00:00Z
    runs: dict          # {seed: loss in nats, 'diverged' or 'failed: WHY'}
    price: dict = field(default_factory=dict) # {}, or the fields of PRICE
    suspicions: list = field(default_factory=list) # sentences of a report: why its effect should not be believed
    refused: str = ''   # why ab.py's checks refused it; then it has no runs

    @property
    def key(self):
        return self.recipe, self.variant, json.dumps(self.options, sort_keys=True), self.version, self.file


# an arm's and the baseline's, timed in turn
PRICE = dict(
    step_ms=float, base_step_ms=float,      # of one micro-batch
    ratio=float, interval=list,             # of the two: the median over rounds, and 95 %
    peak_bytes=int, base_peak_bytes=int,    # memory that a step needs beside the weights
    params=int, base_params=int)
# null on a CPU, or after too few rounds
UNKNOWN = 'interval', 'peak_bytes', 'base_peak_bytes'


@dataclass
class Records:
    """All that docs/verdicts.json holds."""
    claims: dict = field(default_factory=dict)
    recipes: dict = field(default_factory=dict)     # {id: Recipe}
    versions: dict = field(default_factory=dict)    # {id: Version}
    arms: dict = field(default_factory=dict)        # {key: Arm}

    def baseline(self, recipe, version):
        """Returns the Arm of a recipe's baseline, ids given; None if there is none of this version."""
        return next((arm for arm in self.arms.values() if (arm.recipe, arm.version) == (recipe, version)
                     and self.is_baseline(arm)), None)

    def is_baseline(self, arm):
        return arm.variant == self.recipes[arm.recipe].options['variant'] and not arm.options


def digest(obj, digits=8):
    """Returns a hash of what JSON can hold."""
    return hashlib.sha256(json.dumps(obj, sort_keys=True).encode()).hexdigest()[:digits]


def recipe_id(data, options, model_args):
    return f'{options["dataset"]}-{digest([data, options, model_args])}'


def rounded(loss):
    """Returns a loss as the file keeps it."""
    return float(f'{loss:.{DIGITS}g}')


# -----------------------------------------------------------------------------
# the file

def write_records(records, path=FILE):
    """Writes Records, an entry a line, sorted: in whichever order studies were added, the file is the same."""
    lines = {
        'claims': [f'{json.dumps(name)}: {json.dumps(claim)}' for name, claim in sorted(records.claims.items())],
        'recipes': [line_of(entry) for _, entry in sorted(records.recipes.items())],
        'versions': [line_of(entry) for _, entry in sorted(records.versions.items())],
        'arms': [line_of(arm) for _, arm in sorted(records.arms.items())],
    }
    parts = []
    for name, entries in lines.items():
        first, last = '{}' if name == 'claims' else '[]'
        parts.append('\n'.join([f'"{name}": {first}', ',\n'.join(entries), last] if entries else
                               [f'"{name}": {first}{last}']))
    write_atomic(Path(path), ('{\n' + ',\n'.join(parts) + '\n}\n').encode())


def line_of(entry):
    """Returns an entry as JSON on one line, without the optional fields of an arm that are empty."""
    d = {name: value for name, value in asdict(entry).items() if value or name not in OPTIONAL}
    if 'runs' in d:
        d['runs'] = dict(sorted(d['runs'].items(), key=lambda run: int(run[0])))
    return json.dumps(d)


def read_records(path=FILE):
    """Returns the Records in the file, none if there is no file. Stop if anything in it is not as it must be."""
    path = Path(path)
    name = path.relative_to(ROOT) if path.is_relative_to(ROOT) else path
    if not path.exists():
        return Records()
    try:
        found = json.loads(path.read_bytes(), object_pairs_hook=without_doubles)
    except json.JSONDecodeError as error:
        raise Stop(f'{name}:{error.lineno}: is not JSON: {error.msg}') from None
    # a name that is there twice, or bytes that are no text
    except (ValueError, RecursionError) as error:
        raise Stop(f'{name}: is not JSON: {error}') from None
    kinds = dict(claims=dict, recipes=list, versions=list, arms=list)
    if not isinstance(found, dict) or found.keys() != kinds.keys():
        raise Stop(f'{name}: must be an object of {", ".join(kinds)}')
    for part, kind in kinds.items():
        check_value(f'{name}: {part}', found[part], kind)

    records = Records(found['claims'])
    for variant, claim in records.claims.items():
        if claim not in CLAIMS:
            raise Stop(f'{name}: claims: {variant}={claim}: takes {", ".join(CLAIMS)}')
    for part, cls in dict(recipes=Recipe, versions=Version, arms=Arm).items():
        for i, entry in enumerate(found[part]):
            where = f'{name}: {part}[{i}]'
            entry = checked(cls, entry, where)
            check = dict(recipes=check_recipe, versions=check_version, arms=check_arm)[part]
            check(records, entry, where)
            entries, key = getattr(records, part), entry.key if cls is Arm else entry.id
            if key in entries:
                raise Stop(f'{where}: is there twice')
            entries[key] = entry
    return records


def without_doubles(pairs):
    """Returns a dict of (name, value) pairs; ValueError if a name is there twice, as after a careless merge."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f'{next(name for name in names if names.count(name) > 1)} is there twice in one object')
    return found


# -----------------------------------------------------------------------------
# the checks

def check_value(what, value, kind):
    """Stop unless a value is of a type: of floats ints will do, a bool is neither."""
    allowed = (int, float) if kind is float else kind
    if not isinstance(value, allowed) or isinstance(value, bool) or kind is float and not isfinite(value):
        words = {str: 'text', dict: 'an object', list: 'a list', float: 'a number', int: 'an int'}
        raise Stop(f'{what}={json.dumps(value)[:80]}: takes {words[kind]}')


def checked(cls, entry, where):
    """Returns an entry of the file, a dict, as an object of its class, which says what fields there must be."""
    check_value(where, entry, dict)
    known = {f.name: f.type for f in fields(cls)}
    needed = [f.name for f in fields(cls) if f.name not in OPTIONAL]
    if wrong := next((name for name in entry if name not in known), None):
        raise Stop(f'{where}: {wrong}: no such field; there are {", ".join(known)}')
    if missing := next((name for name in needed if name not in entry), None):
        raise Stop(f'{where}: has no {missing}')
    for name, value in entry.items():
        check_value(f'{where}: {name}', value, known[name])
    return cls(**entry)


def check_recipe(records, recipe, where):
    for name in 'dataset', 'variant', 'max_iters':
        if name not in recipe.options:
            raise Stop(f'{where}: options has no {name}')
    if recipe.id != (right := recipe_id(recipe.data, recipe.options, recipe.model_args)):
        raise Stop(f'{where}: id={recipe.id}: its data and options are those of {right}')


def check_version(records, version, where):
    if version.id != (right := digest([version.code, version.torch, version.device])):
        raise Stop(f'{where}: id={version.id}: its code, torch and device are those of {right}')


def check_arm(records, arm, where):
    where = f'{where}, {arm.variant}'
    for name, known in dict(recipe=records.recipes, version=records.versions).items():
        if getattr(arm, name) not in known:
            raise Stop(f'{where}: {name}={getattr(arm, name)}: not one of {", ".join(known) or "none"}')
    if not re.fullmatch(r'\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ', arm.created):
        raise Stop(f'{where}: created={arm.created}: takes a time such as 2026-01-31T12:00:00Z')
    for seed, loss in arm.runs.items():
        if not re.fullmatch(r'0|[1-9]\d*', seed):
            raise Stop(f'{where}: runs: {seed}: takes seeds')
        if not (is_finite(loss) or loss == DIVERGED or isinstance(loss, str) and loss.startswith(FAILED)):
            raise Stop(f'{where}: seed {seed}: {json.dumps(loss)}: takes a finite loss, "{DIVERGED}" or "{FAILED}WHY"')
    for sentence in arm.suspicions:
        check_value(f'{where}: suspicions', sentence, str)
    if arm.refused and arm.runs:
        raise Stop(f'{where}: refused={arm.refused}: but it has runs')
    if arm.price and arm.price.keys() != PRICE.keys():
        raise Stop(f'{where}: price: must have {", ".join(PRICE)}')
    for name, value in arm.price.items():
        if value is not None or name not in UNKNOWN:
            check_value(f'{where}: price: {name}', value, PRICE[name])
    interval = arm.price.get('interval')
    if interval is not None and not (len(interval) == 2 and all(map(is_finite, interval))):
        raise Stop(f'{where}: price: interval={json.dumps(interval)}: takes two numbers')


def is_finite(x):
    return isinstance(x, (int, float)) and not isinstance(x, bool) and isfinite(x)
