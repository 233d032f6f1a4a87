"""A study: arms, the seeds that each may be trained with, and how they will be judged.

Its folder, out-ab/NAME/, has study.json, from which --report writes the report again, price.json,
price_matched.json, the report and its plots. Its runs are in the store (store.py), which all studies share;
those of studies from before the store are in out-ab/NAME/ARM/seed_N/. A run's folder has train.py's files and
one of these:

    task.json       the run has begun
    ab.json         it is done: what results.py reads
    failed.json     it diverged or failed, and why
"""
import contextlib
import dataclasses
import json
import math
from dataclasses import dataclass, field
from pathlib import Path

from core.data.dataset import Dataset
from core.errors import Stop
from core.run.files import free_name, read_json, write_json
from core.run.folder import RunFolder
from lab.study.arm import Arm
from lab.study.cells import StudyCell, first_of_each_shape
from lab.study.store import DONE, FAILED, RUNS, STARTED, run_state, store_key, write_identity

# in a study with seeds=auto, arms have other seeds than the baseline, so that their runs are independent of
# all the baseline's that are stored
ARM_SEEDS = 100_000
# runs that fail (out of memory, a crash) are replaced by the next seed; an arm with more of them is given up
SPARE_SEEDS = 8


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
    design: str | None = None   # the sentence that says which test was fixed beforehand, and why
    stored: dict | None = None  # runs of the baseline: before, in the store; new, trained by this study


@dataclass
class Study:
    """Arms, their seeds, and their folder. Stop if an arm's data set is too short for a window."""
    folder: Path
    arms: list[Arm]             # the baseline first
    options: object             # ab.py's Options
    seeds: dict                 # {arm's name: its seeds, in the order in which they are trained}
    findings: Findings
    matches: dict = field(default_factory=dict) # {arm's name: its matched baseline, also one of the arms}
    design: object | None = None # lab.sequential.Design; None: a number of seeds fixed beforehand
    in_store: bool = True       # False for a study from before the store, whose runs lie in its own folder
    # with --over; arms are then those of all cells, the first cell's baseline first
    cells: list[StudyCell] = field(default_factory=list)

    def __post_init__(self):
        # raises Stop if a data set is too short for a window
        for windows in dict.fromkeys((arm.options.dataset, arm.model_args['block_size']) for arm in self.arms):
            Dataset(*windows)
        names = {arm.options.dataset for arm in self.arms}
        self.data_hashes = {name: Dataset(name, 1).hash for name in names}

    def lock(self):
        """Locks the folder as long as this process lives: a second ab.py there is refused, by a Stop."""
        self._lock = RunFolder(self.folder)
        self._lock.lock()

    @property
    def baseline(self):
        return self.arms[0]

    @property
    def looks(self):
        """The numbers of seeds at which there are verdicts; []: only at the end."""
        return parse_numbers(self.options.looks, 'looks', int) if self.options.looks else []

    def judged_arms(self):
        """Returns the arms that verdicts are about: without the baselines and the null arm."""
        others = {match.name for match in self.matches.values()} | {self.baseline.name}
        return [arm for arm in self.arms if arm.name not in others and not is_null(arm)]

    def is_first_of_shape(self, arm):
        """Returns False if the arm's cell differs from an earlier one in text, rates and the like alone."""
        first = [one.name for cell in first_of_each_shape(self.cells) for one in cell.arms.values()]
        return not self.cells or arm.name in first

    def seeds_of(self, arm):
        """Returns the seeds that an arm may be trained with, in their order."""
        return self.seeds[arm.name]

    def shared_parameters(self):
        """Returns the sorted names of parameters that all arms have with equal shapes; these start equal."""
        # {name: shape} of each arm
        first, *others = ({n: p.shape for n, p in arm.meta_model().named_parameters()} for arm in self.arms)
        shared = [n for n, shape in first.items() if all(other.get(n) == shape for other in others)]
        return sorted(shared)

    # -- runs

    def key(self, arm):
        """Returns the name of an arm's folder in the store; '' for a study from before the store."""
        if not arm.key and self.in_store:
            identity = self.identity(arm)
            arm.key = store_key(arm.options.variant, identity)
            write_identity(RUNS, arm.key, identity)
        return arm.key

    def run_folder(self, arm, seed):
        key = self.key(arm)
        return RUNS / key / str(seed) if key else self.folder / arm.folder / f'seed_{seed}'

    def identity(self, arm):
        """Returns arm.identity() as JSON gives it back, to be compared with a file's."""
        return json.loads(json.dumps(arm.identity(self.data_hashes[arm.options.dataset])))

    def state(self, arm, seed):
        """Returns new, partial, done, diverged or failed."""
        return run_state(self.run_folder(arm, seed))

    def lacks_checkpoints(self, arm, seed):
        """Returns True for a run that is done, whose checkpoints this study keeps and another has deleted."""
        keep, run = self.options.keep_checkpoints, RunFolder(self.run_folder(arm, seed))
        there = run.checkpoints() and (keep != 'log' or run.spaced())
        return bool(keep) and not there and self.state(arm, seed) == 'done'

    def ended(self, arm):
        """Returns the seeds of the arm's runs that have a loss or diverged, in their order."""
        return [seed for seed in self.seeds_of(arm) if self.state(arm, seed) in ('done', 'diverged')]

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
        for arm in self.arms:
            self.key(arm)
        arms = [arm.as_dict() for arm in self.arms]
        matches = {name: match.as_dict() for name, match in self.matches.items()}
        design = self.design and dataclasses.asdict(self.design)
        cells = [cell.as_dict() for cell in self.cells]
        write_json(self.folder / 'study.json', dict(options=options, extra=extra, seeds=self.seeds, arms=arms,
                                                    pairs=matches, design=design, cells=cells))

    def archive_other(self):
        """Moves another study that is in the folder to previous/, or previous.1/ ...; returns that folder, or None.

        It is another if one of its arms is missing here, or has another identity: edited code, or other options.
        """
        saved = read_json(self.folder / 'study.json')
        mine = {arm.name: self.key(arm) for arm in self.arms}
        if saved is None or all(mine.get(arm.get('name')) == arm.get('key', '') for arm in saved.get('arms', [])):
            return None
        previous = free_name(self.folder / 'previous')
        previous.mkdir()
        # prices say themselves which arms they are of; study.json comes last, so that a kill leaves nothing behind
        for path in sorted(self.folder.iterdir(), key=lambda path: path.name == 'study.json'):
            if not path.name.startswith(('.', 'previous', 'price')):
                path.rename(previous / path.name)
        return previous

    @classmethod
    def from_dict(cls, folder, d, Options):
        """Returns the study of a study.json, the dict d; Options: ab.py's. Stop if d does not fit."""
        from lab.sequential import Design
        try:
            arms = [Arm.from_dict(arm) for arm in d['arms']]
            by_name = {arm.name: arm for arm in arms}
            matches = {name: by_name[match['name']] for name, match in d['pairs'].items()}
            # before the store, all arms had the same seeds
            seeds = d['seeds']
            seeds = seeds if isinstance(seeds, dict) else {arm.name: seeds for arm in arms}
            design = d.get('design')
            # JSON has lists
            design = design and Design(**{k: tuple(v) if isinstance(v, list) else v for k, v in design.items()})
            study = cls(folder, arms, read_options(d['options'], Options), seeds, Findings(**d['extra']), matches,
                        design, in_store='design' in d,
                        cells=[StudyCell.from_dict(cell, by_name) for cell in d.get('cells', [])])
        # edited by hand, or written by a version with other options
        except (IndexError, KeyError, TypeError, AttributeError):
            raise Stop(f'{folder}/study.json: is not what this ab.py writes; '
                       'the command that made the study writes it anew') from None
        # some file systems do not tell a from A
        folders = [arm.folder.casefold() for arm in arms]
        shared = [arm.name for arm, name in zip(arms, folders) if folders.count(name) > 1]
        if shared and not study.in_store:
            raise Stop(f'{folder}: arms {" and ".join(shared)} have one folder, so that their runs are mixed up; '
                       'the command that made the study trains it anew')
        return study


def is_null(arm):
    """Returns True for the arm that --null=True adds."""
    return arm.name == 'null' and 'perturb_scale' in arm.model_args


def read_options(saved, Options):
    """Returns ab.py's Options from those in a file, which may be of an earlier version."""
    known = {f.name for f in dataclasses.fields(Options)}
    return Options(**{name: value for name, value in saved.items() if name in known})


def parse_numbers(text, name, kind):
    """Returns the positive numbers in text, 'a,b,c'. Stop with the option's name if there are others."""
    with contextlib.suppress(ValueError):
        numbers = [kind(x) for x in text.split(',')]
        if all(0 < x < math.inf for x in numbers):
            return numbers
    raise Stop(f'{name}={text}: takes positive numbers with commas between them')
