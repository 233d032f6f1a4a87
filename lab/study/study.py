"""A study: arms x seeds. A run's folder, out-ab/NAME/ARM/seed_N/, has train.py's files and these:

    task.json       the run has begun: its identity, all that it depends on
    ab.json         it is done: what results.py reads
    failed.json     it diverged or failed, and why

The study's folder has study.json, from which --report writes the report again, price.json,
price_matched.json, the report and its plots.
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

# the file that exists says how far a run is
STARTED, DONE, FAILED = 'task.json', 'ab.json', 'failed.json'


@dataclass
class Findings:
    """The circumstances of a study, and what was found out apart from its runs."""
    command: str
    config: str | None          # config files, separated by commas
    created: str                # UTC: 2026-01-31T12:00:00Z
    environment: dict           # versions, git, data (hash), device, dtype, compile
    checks: dict | None = None  # {arm: dict(status, lines, why)} of the leak suite
    sweep: dict | None = None   # seed, losses {arm: {factor on the learning rate: loss}}
    prices: dict | None = None  # {arm: numbers of lab/timing.py}
    paired: dict | None = None  # batches_equal, init_equal, note


@dataclass
class Study:
    """Arms x seeds and their folder. Stop if an arm's data set is too short for a window."""
    folder: Path
    arms: list[Arm]             # the baseline first
    options: object             # ab.py's Options
    seeds: list[int]
    findings: Findings
    matches: dict = field(default_factory=dict) # {arm's name: its matched baseline, also one of the arms}

    def __post_init__(self):
        # raises Stop if the data set is too short for a window
        Dataset(self.baseline.options.dataset, self.baseline.model_args['block_size'])
        names = {arm.options.dataset for arm in self.arms}
        self.data_hashes = {name: Dataset(name, 1).hash for name in names}

    @property
    def baseline(self):
        return self.arms[0]

    @property
    def looks(self):
        """The numbers of seeds at which there are verdicts; []: only at the end."""
        return parse_numbers(self.options.looks, 'looks', int) if self.options.looks else []

    def arms_without_matches(self):
        """Returns the arms that the user named, the baseline first."""
        matches = {match.name for match in self.matches.values()}
        return [arm for arm in self.arms if arm.name not in matches]

    def shared_parameters(self):
        """Returns the sorted names of parameters that all arms have with equal shapes; these start equal."""
        # {name: shape} of each arm
        first, *others = ({n: p.shape for n, p in arm.meta_model().named_parameters()} for arm in self.arms)
        shared = [n for n, shape in first.items() if all(other.get(n) == shape for other in others)]
        return tuple(sorted(shared))

    # -- runs

    def run_folder(self, arm, seed):
        return self.folder / arm.folder / f'seed_{seed}'

    def identity(self, arm):
        """Returns arm.identity() as JSON gives it back, to be compared with a file's."""
        return json.loads(json.dumps(arm.identity(self.data_hashes[arm.options.dataset])))

    def state(self, arm, seed):
        """Returns new, partial, done or failed. Stop if the folder holds a run with another identity."""
        folder = self.run_folder(arm, seed)
        # in this order, because a run that has ended still has its task.json
        for name, state in (DONE, 'done'), (FAILED, 'failed'), (STARTED, 'partial'):
            if (record := read_json(folder / name)) is not None:
                if what := first_difference(record['identity'], self.identity(arm)):
                    raise Stop(f'{folder} was run with another {what}; --redo=True trains it again, '
                               '--name=NAME starts a new study')
                return state
        return 'new'

    def ended(self, arm, seed):
        """Returns True if the run is done or failed, whatever its identity."""
        return any((self.run_folder(arm, seed) / name).exists() for name in (DONE, FAILED))

    def forget(self, arm, seed):
        """Makes a run new again; when it starts, train.py moves the old files to previous/."""
        for name in DONE, FAILED, STARTED:
            (self.run_folder(arm, seed) / name).unlink(missing_ok=True)

    # -- study.json

    def save(self):
        """Writes study.json, from which from_dict() makes the study again."""
        # the file calls findings extra and matches pairs, so that older studies can be read
        options, findings = dataclasses.asdict(self.options), dataclasses.asdict(self.findings)
        extra = {name: found for name, found in findings.items() if found is not None or name == 'config'}
        arms = [arm.as_dict() for arm in self.arms]
        matches = {name: match.as_dict() for name, match in self.matches.items()}
        write_json(self.folder / 'study.json',
                   dict(options=options, extra=extra, seeds=self.seeds, arms=arms, pairs=matches))

    @classmethod
    def from_dict(cls, folder, d, Options):
        """Returns the study of a study.json, the dict d; Options: ab.py's. Stop if d does not fit."""
        try:
            arms, options = [Arm.from_dict(arm) for arm in d['arms']], Options(**d['options'])
            by_name = {arm.name: arm for arm in arms}
            matches = {name: by_name[match['name']] for name, match in d['pairs'].items()}
            return cls(folder, arms, options, d['seeds'], Findings(**d['extra']), matches)
        # edited by hand, or written by a version with other options
        except (IndexError, KeyError, TypeError):
            raise Stop(f'{folder}/study.json: is not what this ab.py writes; '
                       'the command that made the study writes it anew') from None


def first_difference(old, new, path=''):
    """Returns the first difference of two identities, in words; None if they are equal."""
    for name in sorted(old.keys() | new.keys()):
        a, b = old.get(name), new.get(name)
        # a difference in code names the file; one in an option shows both values
        if isinstance(a, dict) and isinstance(b, dict):
            if found := first_difference(a, b, f'{name}: ' if name == 'code' else ''):
                return found
        elif a != b:
            return f'{path}{name}' if path else f'{name} ({a} then, {b} now)'
    return None


def parse_numbers(text, name, kind):
    """Returns the positive numbers in text, 'a,b,c'. Stop with the option's name if there are others."""
    with contextlib.suppress(ValueError):
        numbers = [kind(x) for x in text.split(',')]
        if all(0 < x < math.inf for x in numbers):
            return numbers
    raise Stop(f'{name}={text}: takes positive numbers with commas between them')


def write_json(path, obj):
    """Writes obj as one line of JSON, atomically; creates the folder."""
    # atomic, because the process may be killed at any time
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, json.dumps(to_json(obj)).encode() + b'\n')
