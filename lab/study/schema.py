"""The format of report.json: each object has the fields of a dataclass here, explained beside them.

The top object is a Report. Losses are in nats per token. Numbers that are not finite are the strings "NaN",
"Infinity" and "-Infinity". A report of losses from a file (--from_csv) has less to say than one of a study:
it leaves out fields whose default is ABSENT.
"""
from dataclasses import dataclass, fields, is_dataclass

from lab.blocked import CellDifference, Over
from lab.stats import ABSENT, Comparison


@dataclass
class Plan:
    """All that was fixed before the first run."""
    seeds: list[int]
    delta: float                # differences below it count as equivalent
    alpha: float                # how often a study of ideas that do nothing may say that one does something
    looks: str | None           # '5,10': verdicts at these numbers of seeds; None: only at the end
    metric: str                 # the loss that is judged, in words
    match: str = ABSENT         # params, flops, time: each arm has a baseline equal in this; or none
    lr_sweep: dict | None = ABSENT # seed, losses {arm: {factor on the learning rate: loss, None: failed}}
    design: str | None = ABSENT # which test was fixed beforehand, and why, in a sentence
    test: str = ABSENT          # welch or paired, of a study with seeds=auto
    unit: str = ABSENT          # of losses from a file; '': unknown. ABSENT: nats
    higher_is_better: bool = ABSENT # of a file: True: differences above zero are better. ABSENT: False
    stored: dict = ABSENT       # runs of the baseline: before (in the store), new (trained for this study)


@dataclass
class Checks:
    """Findings of the checks before training, of one arm."""
    status: str                 # ok, declared leak, or skipped
    lines: list[str]            # 'check: what it found'
    why: str | None             # the variant's declared reason why it leaks in training


@dataclass
class Price:
    """The costs of an arm, timed in turn with the other arms. None: unknown on this device."""
    step_ms: float              # a training step of one micro-batch
    step_ratio: float           # to the baseline's step: the median over rounds in which both were timed
    flops_ratio: float          # flops_per_token over the baseline's
    forward_flops_per_token: float
    flops_per_token: float      # forward and backward
    peak_bytes: int | None      # device memory that a step needs beside the weights
    decode_tokens_per_s: float  # one row, with the cache
    compile_seconds: float      # seconds of the first step
    step_ms_interval: list | None = ABSENT      # 95 %; None: too few rounds
    step_ratio_interval: list | None = ABSENT   # 95 %


@dataclass
class RunSummary:
    """One run, an arm with a seed, however it ended. None: unknown, as the losses of a failed run."""
    seed: int
    status: str                 # done, diverged, failed or missing
    val_loss: float | None      # after the last iteration: verdicts rest on this
    reason: str | None = ABSENT         # why it diverged or failed
    best_val_loss: float | None = ABSENT # the lowest of its evaluations; no verdict uses it
    best_iter: int | None = ABSENT      # the iteration of that evaluation
    train_loss: float | None = ABSENT   # after the last iteration
    seconds: float | None = ABSENT      # of training and evaluation
    init_hash: str | None = ABSENT      # of the initial values of all its parameters
    batch_hash: str | None = ABSENT     # of where its batches' rows begin
    bits_per_byte: float | None = ABSENT # val_loss per byte of text; None: the data set does not say its length
    cell: str = ABSENT          # its name, in a study over texts and options


@dataclass
class Curve:
    """Losses of the runs that are done, at each evaluation."""
    iters: list[int]
    val: list[list[float]]      # [run][evaluation]
    train: list[list[float | None]] # [run][evaluation], of windows of the training split; None: not evaluated
    seeds: list[int]            # of the runs


@dataclass
class LossAtCost:
    """A loss read off an arm's mean curve, before its end."""
    loss: float
    iters: int                  # the iteration at which it was read off, rounded down


@dataclass
class ArmResult:
    """One way to train, and its runs. None: unknown, as prices with --price=False."""
    name: str
    variant: str | None         # a file in variants/, or several: a+b
    baseline: bool              # others are compared with it
    options: dict               # what sets it apart from the recipe, {option: text}
    runs: list[RunSummary]      # one per seed of the plan
    params: int | None = ABSENT
    checks: Checks = ABSENT
    price: Price | None = ABSENT
    curve: Curve = ABSENT
    stats: dict = ABSENT        # the variant's: {name: {iters, layers [evaluation][layer]}}, means over seeds
    position_loss: list[float] | None = ABSENT # at each position of the context, mean over seeds
    loss_at_equal_time: LossAtCost | None = ABSENT # once it took the baseline's whole time; None: no dearer
    loss_at_equal_flops: LossAtCost | None = ABSENT # the same in training FLOPs
    sample: str | None = ABSENT # text of one of its models
    no_sample: str | None = ABSENT # why there is none, though it was tried


@dataclass(kw_only=True)
class ReportedComparison(Comparison):
    """An arm compared with a baseline: the fields of lab.stats.Comparison, and these."""
    arm: str
    baseline: str               # the study's, or the one made for this arm
    words: str                  # the verdict in a sentence
    level: float                # of the tests and the interval: alpha, or less at several looks
    text_interval: list | None = ABSENT # interval of the mean over other text of the same kind, same seeds
    suspicions: list = ABSENT   # sentences: why this effect should not be believed without a look
    step_equivalents: float | None = ABSENT # baseline iterations that the mean is worth; above 0: saved


@dataclass
class ReportedCell:
    """A combination of levels, one of each factor of --over, and the runs that were trained there."""
    name: str                   # 'python, lr x0.5, n_embd 384'
    text: str                   # its data set
    levels: dict                # {factor: level as typed}, without the data set
    losses: dict                # {arm: [loss of each run]}, Infinity: diverged; failed runs are left out
    differences: dict[str, CellDifference] # {arm: its difference here}


@dataclass
class ReportedOver:
    """A study over texts and options: a comparison's mean and interval are then those over texts."""
    factors: dict               # {factor: [level as typed]}
    cells: list[ReportedCell]
    verdicts: Over              # lab/blocked.py; there x0.5 is 0.5, and a single size is the factor parameters
    words: dict                 # {arm: [sentence]} on what a comparison's words leave out


@dataclass
class Pairing:
    """Evidence that runs of one seed can be compared: equal batches, equal initial values."""
    batches_equal: bool         # all arms of a seed saw the same batches
    init_equal: bool            # the parameters that all arms share started equal
    note: str                   # init_equal in words


@dataclass
class Report:
    """The whole of report.json."""
    name: str                   # the study's folder in out-ab/
    command: str                # the command that made the study
    config: str | None          # config files, separated by commas
    created: str                # UTC: 2026-01-31T12:00:00Z
    plan: Plan
    environment: dict           # versions, git (commit, + if files differ), data (hash), device, dtype, ...
    arms: list[ArmResult]       # the baseline first, those made for one arm last
    comparisons: list[ReportedComparison] # with the study's baseline, then with matched baselines
    tables: list[str]           # text for a terminal; arms compared on the same seeds share a table
    recipe: dict = ABSENT       # all options of the baseline, train.py's and the model's
    paired: Pairing | None = ABSENT
    noise_floor: dict | None = ABSENT # of --null: n, mean, sd of differences that only rounding makes
    over: ReportedOver = ABSENT # of --over; an arm then has its runs in all cells, and no curves


def to_dict(x):
    """Returns x with each dataclass, in lists and dicts too, as a dict without its ABSENT fields."""
    if is_dataclass(x):
        values = {f.name: getattr(x, f.name) for f in fields(x)}
        return {name: to_dict(value) for name, value in values.items() if value is not ABSENT}
    if isinstance(x, dict):
        return {name: to_dict(value) for name, value in x.items()}
    return [to_dict(value) for value in x] if isinstance(x, (list, tuple)) else x
