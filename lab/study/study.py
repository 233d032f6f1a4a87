"""A study: arms x seeds. A run's folder, out-ab/NAME/ARM/seed_N/, has the files of train.py and these:

    task.json       the run has begun; its identity, all that it depends on
    ab.json         it is done; what results.py reads
    failed.json     it is not, and why

The study's folder has study.json, from which a report is made anew, price.json, price_matched.json, the
report and its plots.
"""
import contextlib
import dataclasses
import json
import math
from dataclasses import dataclass, field
from pathlib import Path

from core.data.dataset import Dataset
from core.errors import Stop
from core.run.files import read_json, to_json, write_atomic
from lab.study.arm import Arm

# how far a run is, by the file that is there
STARTED, DONE, FAILED = 'task.json', 'ab.json', 'failed.json'


@dataclass
class Findings:
    """How a study was made, and what was found out beside its runs."""
    command: str
    config: str | None          # config files, with commas between them
    created: str                # UTC: 2026-01-31T12:00:00Z
    environment: dict           # versions, git, data (hash), device, dtype, compile
    checks: dict | None = None  # {arm: dict(status, lines, why)} of the leak suite
    sweep: dict | None = None   # seed, losses {arm: {factor on the learning rate: loss}}
    prices: dict | None = None  # {arm: numbers of lab/timing.py}
    paired: dict | None = None  # batches_equal, init_equal, note


@dataclass
class Study:
    folder: Path
    arms: list[Arm]             # the baseline first
    options: object             # ab.py's Options
    seeds: list[int]
    findings: Findings
    matches: dict = field(default_factory=dict) # {arm's name: the baseline made for it, one of the arms}

    def __post_init__(self):
        # Stop if the data are too short for a window
        Dataset(self.baseline.options.dataset, self.baseline.model_args['block_size'])
        names = {arm.options.dataset for arm in self.arms}
        self.data_hashes = {name: Dataset(name, 1).hash for name in names}

    @property
    def baseline(self):
        return self.arms[0]

    @property
    def looks(self):
        """The numbers of seeds at which there are verdicts; []: at the end alone."""
        return parse_numbers(self.options.looks, 'looks', int) if self.options.looks else []

    def arms_without_matches(self):
        matches = {match.name for match in self.matches.values()}
        return [arm for arm in self.arms if arm.name not in matches]

    def shared_parameters(self):
        """Returns the parameters that all arms have, in one shape: they start equal, by (seed, name)."""
        # {name: shape} of each arm
        first, *others = ({n: p.shape for n, p in arm.meta_model().named_parameters()} for arm in self.arms)
        shared = [n for n, shape in first.items() if all(other.get(n) == shape for other in others)]
        return tuple(sorted(shared))

    # -- runs

    def run_folder(self, arm, seed):
        return self.folder / arm.folder / f'seed_{seed}'

    def identity(self, arm):
        """Returns arm.identity() as it comes back from a file."""
        return json.loads(json.dumps(arm.identity(self.data_hashes[arm.options.dataset])))

    def state(self, arm, seed):
        """Returns new, partial, done or failed; Stop where the folder holds a run of something else."""
        folder = self.run_folder(arm, seed)
        # in this order: a run that has ended has begun, too
        for name, state in (DONE, 'done'), (FAILED, 'failed'), (STARTED, 'partial'):
            if (record := read_json(folder / name)) is not None:
                if what := first_difference(record['identity'], self.identity(arm)):
                    raise Stop(f'{folder} was run with another {what}; --redo=True trains it again, '
                               '--name=NAME starts a new study')
                return state
        return 'new'

    def ended(self, arm, seed):
        return any((self.run_folder(arm, seed) / name).exists() for name in (DONE, FAILED))

    def forget(self, arm, seed):
        """Makes a run new again; train.py moves what it had trained to previous/."""
        for name in DONE, FAILED, STARTED:
            (self.run_folder(arm, seed) / name).unlink(missing_ok=True)

    # -- study.json

    def save(self):
        # findings are extra and matches are pairs, by which older studies have them
        options, findings = dataclasses.asdict(self.options), dataclasses.asdict(self.findings)
        extra = {name: found for name, found in findings.items() if found is not None or name == 'config'}
        arms = [arm.as_dict() for arm in self.arms]
        matches = {name: match.as_dict() for name, match in self.matches.items()}
        write_json(self.folder / 'study.json',
                   dict(options=options, extra=extra, seeds=self.seeds, arms=arms, pairs=matches))

    @classmethod
    def from_dict(cls, folder, d, Options):
        """Returns the study that its study.json describes; Options: ab.py's."""
        try:
            arms, options = [Arm.from_dict(arm) for arm in d['arms']], Options(**d['options'])
            by_name = {arm.name: arm for arm in arms}
            matches = {name: by_name[match['name']] for name, match in d['pairs'].items()}
            return cls(folder, arms, options, d['seeds'], Findings(**d['extra']), matches)
        # edited, or of a version with other options
        except (IndexError, KeyError, TypeError):
            raise Stop(f'{folder}/study.json: is not what this ab.py writes; '
                       'the command that made the study writes it anew') from None


def first_difference(old, new, path=''):
    """Returns the first thing in which two identities differ, in words; None if they are equal."""
    for name in sorted(old.keys() | new.keys()):
        a, b = old.get(name), new.get(name)
        # of code the file is named, of an option both values
        if isinstance(a, dict) and isinstance(b, dict):
            if found := first_difference(a, b, f'{name}: ' if name == 'code' else ''):
                return found
        elif a != b:
            return f'{path}{name}' if path else f'{name} ({a} then, {b} now)'
    return None


def parse_numbers(text, name, kind):
    """Returns the positive numbers of 'a,b,c', the text of the option name."""
    with contextlib.suppress(ValueError):
        numbers = [kind(x) for x in text.split(',')]
        if all(0 < x < math.inf for x in numbers):
            return numbers
    raise Stop(f'{name}={text}: takes positive numbers with commas between them')


def write_json(path, obj):
    """Writes obj as JSON on one line, in one step; makes the folder."""
    # atomic, because a kill may come at any time
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, json.dumps(to_json(obj)).encode() + b'\n')
