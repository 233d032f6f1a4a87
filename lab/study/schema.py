"""The format of report.json: an object has the fields of its dataclass here, each explained beside it.

Losses are in nats a token. What is not finite comes as "NaN", "Infinity" or "-Infinity". A report of losses
from a file (--from_csv) knows less than one of a study, and leaves out the fields that are ABSENT by default.
"""
from dataclasses import dataclass, fields, is_dataclass

from lab.stats import ABSENT, Comparison


@dataclass
class Plan:
    """All that was fixed before the first run."""
    seeds: list[int]
    delta: float                # differences below it count as equivalent
    alpha: float                # how often a study of ideas that do nothing may say that one does something
    looks: str | None           # '5,10': verdicts at these numbers of seeds; None: at the end alone
    metric: str                 # the loss that is judged, in words
    match: str = ABSENT         # params, flops, time: a baseline made for each arm equals it in that; or none
    lr_sweep: dict | None = ABSENT # seed, losses {arm: {factor on the learning rate: loss, None: failed}}


@dataclass
class Checks:
    """An arm in the leak suite's fast part."""
    status: str                 # ok, declared leak, or skipped
    lines: list[str]            # 'check: what it found'
    why: str | None             # it leaks in training, as the variant declares


@dataclass
class Price:
    """What an arm costs, timed in turn with the other arms. None: unknown on this device."""
    step_ms: float              # a training step of one micro-batch
    step_ratio: float           # step_ms over the baseline's
    flops_ratio: float          # flops_per_token over the baseline's
    forward_flops_per_token: float
    flops_per_token: float      # forward and backward
    peak_bytes: int | None      # device memory of a step, beside the weights
    decode_tokens_per_s: float  # one row, with the cache
    compile_seconds: float      # the first step


@dataclass
class RunSummary:
    """A seed of an arm, whatever became of it. None: unknown, as the losses of a run that failed."""
    seed: int
    status: str                 # done, diverged, failed or missing
    val_loss: float | None      # after the last iteration: this is judged
    reason: str | None = ABSENT         # why it diverged or failed
    best_val_loss: float | None = ABSENT # the lowest of its evaluations; nothing is judged by it
    best_iter: int | None = ABSENT      # where that was
    train_loss: float | None = ABSENT   # after the last iteration
    seconds: float | None = ABSENT      # of training and evaluation
    init_hash: str | None = ABSENT      # of the initial values that all arms share; None too for the null arm
    batch_hash: str | None = ABSENT     # of where the rows of its batches begin; None too for the null arm


@dataclass
class Curve:
    """Losses of the runs that are done, at each evaluation."""
    iters: list[int]
    val: list[list[float]]      # [run][evaluation]
    train: list[list[float]]    # [run][evaluation], of windows of the training split
    seeds: list[int]            # of the runs


@dataclass
class LossAtCost:
    """A loss read off an arm's mean curve, before its end."""
    loss: float
    iters: int                  # where it was read off, rounded down


@dataclass
class ArmResult:
    """One way to train, and its runs. None: not known, as prices with --price=False."""
    name: str
    variant: str | None         # a file in variants/, or several: a+b
    baseline: bool              # others are compared with it
    options: dict               # what sets it apart from the recipe, {option: text}
    runs: list[RunSummary]      # one a seed of the plan
    params: int | None = ABSENT
    checks: Checks = ABSENT
    price: Price | None = ABSENT
    curve: Curve = ABSENT
    stats: dict = ABSENT        # the variant's: {name: {iters, layers [evaluation][layer]}}, means over seeds
    position_loss: list[float] | None = ABSENT # at each position of the context, mean over seeds
    loss_at_equal_time: LossAtCost | None = ABSENT # at the cost of the baseline in all; None: it is cheaper
    loss_at_equal_flops: LossAtCost | None = ABSENT # the same in training FLOPs
    sample: str | None = ABSENT # text of one of its models


@dataclass(kw_only=True)
class ReportedComparison(Comparison):
    """An arm against a baseline: the fields of lab.stats.Comparison, and these."""
    arm: str
    baseline: str               # the study's, or the one made for this arm
    words: str                  # what follows, in a sentence
    level: float                # of the tests and the interval: alpha, or less at several looks
    text_interval: list | None = ABSENT # of the mean on other text of the same kind, with these seeds
    step_equivalents: float | None = ABSENT # the baseline's iterations that the mean is worth; above 0: saved


@dataclass
class Pairing:
    """Comparisons seed by seed rest on this."""
    batches_equal: bool         # all arms of a seed saw the same batches
    init_equal: bool            # and the parameters that all arms share started equal
    note: str                   # the second in words


@dataclass
class Report:
    name: str                   # the study's folder in out-ab/
    command: str                # the one that made it
    config: str | None          # config files, with commas between them
    created: str                # UTC: 2026-01-31T12:00:00Z
    plan: Plan
    environment: dict           # versions, git (commit, + if files differ), data (hash), device, dtype, ...
    arms: list[ArmResult]       # the baseline first, those made for one arm last
    comparisons: list[ReportedComparison] # with the baseline, then with those made for one arm
    tables: list[str]           # for a terminal: arms that were compared on the same seeds share one
    recipe: dict = ABSENT       # all options of the baseline, train.py's and the model's
    paired: Pairing | None = ABSENT


def to_dict(x):
    """Returns dataclasses, in lists and dicts too, as the dicts that report.json holds."""
    if is_dataclass(x):
        values = {f.name: getattr(x, f.name) for f in fields(x)}
        return {name: to_dict(value) for name, value in values.items() if value is not ABSENT}
    if isinstance(x, dict):
        return {name: to_dict(value) for name, value in x.items()}
    return [to_dict(value) for value in x] if isinstance(x, (list, tuple)) else x
