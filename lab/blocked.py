"""Verdicts over texts, learning rates and sizes: cells are blocks, and each holds runs of the baseline and of every arm.

A cell is a text with levels of other factors. The difference of an arm in cell c is modelled as

    d_c = mu + sum_f slope_f (log2 level_cf - centre_f) + u_text + e_c,   u_text ~ N(0, tau^2)

with texts as a sample of texts, and factors as fixed. The verdict is about mu, the mean over texts at the centre of the
design. Differences are arm - baseline, in the losses' unit, nats per token; lower losses are better.

Arrays may have leading dimensions, which are studies: what is tested by simulation is what judges.
"""
from dataclasses import dataclass, field


@dataclass
class Cell:
    """One block of the design; before it is trained, losses are empty."""
    text: str
    levels: dict = field(default_factory=dict)  # {factor: level}: {'learning_rate': 0.5, 'n_embd': 256}
    losses: dict = field(default_factory=dict)  # {arm: [loss of each run]}, inf: diverged; a failed run is left out


@dataclass
class CellDifference:
    """An arm in one cell. None: a run of either arm is missing, or all diverged."""
    text: str
    levels: dict
    n: int                          # runs of the arm that count
    n_base: int                     # and of the baseline
    bad: dict                       # base, var: runs that diverged
    difference: float | None = None # of the means
    se: float | None = None         # None: nothing to estimate it from


@dataclass
class TextDifference:
    """An arm on one text, at the centre of the other factors."""
    text: str
    cells: int                      # that it rests on
    difference: float
    se: float | None                # of the runs; None: nothing to estimate it from


@dataclass
class Slope:
    """How much the difference changes with each doubling of a factor."""
    slope: float
    interval: list
    p: float


@dataclass
class MeanOverTexts:
    """The mean of an arm's differences over texts; with one text, on that text."""
    n_texts: int
    mean: float
    se: float                       # Hartung and Knapp's
    df: int                         # of its t: texts - 1; with one text those of the error
    interval: list                  # level 1 - alpha
    p: float                        # two-sided, of no difference
    tost_p: float                   # of the two one-sided tests for equivalence
    # None with one text
    tau: float | None = None        # sd between texts, beyond the runs' noise; Paule and Mandel's
    tau_interval: list | None = None    # by Q-profile; [0, 0]: not even 0 is large enough
    prediction: list | None = None  # of the difference on a new text; None with fewer than 3 texts
    p_new_better: float | None = None   # chance that a new text's difference is below 0
    same_sign: float | None = None  # chance that it has the sign of the mean


@dataclass
class Optimum:
    """An arm's best learning rate on one text, at fixed levels of the other factors."""
    arm: str
    text: str
    levels: dict                    # without the learning rate
    rate: float                     # 2^x at the minimum of the parabola, or the best rate of the grid
    loss: float                     # there
    edge: str | None = None         # lowest, highest: the best rate of the grid is its edge; the optimum may lie beyond


@dataclass
class OwnBest:
    """The arm at its own best learning rate less the baseline at its own best."""
    over: MeanOverTexts
    texts: list[TextDifference]
    optima: list[Optimum]           # the arm's and the baseline's
    by_parabola: int                # pairs of optima that are minima of parabolas
    by_grid: int                    # pairs that are the best rates of the grid, as one of the two is at its edge
    tuned: list                     # texts with pairs by parabola only


@dataclass
class Speedup:
    """Baseline's size or length over what the arm needs for the same loss; below 1: the arm needs more."""
    factor: str
    method: str                     # power law, or interpolation
    factors: dict                   # {text: speedup}
    bounds: dict                    # {text: 'at least' or 'at most'}, where the curve does not reach so far
    mean: float | None              # geometric, over the texts without bounds
    interval: list | None           # over texts; None with fewer than 3
    floor: dict | None = None       # power law: {text: loss that no size or length gets below}
    alpha: dict | None = None       # power law: {text: exponent}


@dataclass
class AtLength:
    """The mean over texts at one length of training."""
    length: float
    over: MeanOverTexts
    holm_p: float                   # for all lengths
    change: float | None = None     # mean of (difference at the longest - difference here)
    change_p: float | None = None   # two-sided, after Holm's correction


@dataclass
class ArmOver:
    """The verdict on one arm."""
    over: MeanOverTexts | None      # None: no text has a cell with runs of both
    cells: list[CellDifference]
    texts: list[TextDifference]
    slopes: dict[str, Slope]        # {factor: slope}, of factors whose levels are numbers above 0
    error: str                      # what the cells' errors come from: seeds, residual, or none
    bad: dict                       # base, var: runs that diverged
    p: float | None = None          # of over.p and the numbers of diverged runs
    side: int = 0                   # what p speaks for: 1 worse, -1 better
    shrunk: float | None = None     # the expected mean, as most ideas do little
    shrunk_interval: list | None = None
    p_better: float | None = None   # chance that the true mean is below 0
    p_within: float | None = None   # chance that it is within +-delta
    holm_p: float | None = None     # p after Holm's correction for all arms
    tost_holm_p: float | None = None
    verdict: str = ''               # better, worse, equivalent or can't tell
    signs: dict = field(default_factory=dict)   # better, worse: numbers of texts whose difference lies there
    own_best: OwnBest | None = None
    speedups: dict[str, Speedup] = field(default_factory=dict)  # {size or length factor: speedup}
    lengths: list[AtLength] = field(default_factory=list)       # from the shortest to the longest
    early: str = ''                 # better or worse at a shorter length, where the longest says the opposite
    refused: dict = field(default_factory=dict) # {own_best, speedup, ...: a sentence on why it cannot be estimated}


@dataclass
class Over:
    """Arms compared with one baseline over texts and other factors."""
    baseline: str
    texts: list
    factors: dict                   # {factor: levels}
    delta: float
    alpha: float
    arms: dict[str, ArmOver]


def design(texts, factors, cells=None):
    """Returns the Cells of a design, without losses: in the order of texts, each with levels of all factors.

    factors: {factor: levels}. cells: by default all combinations; fewer form a Latin square or its like: each text
    sees each level of each factor equally often, and pairs of levels come as evenly as they can. Possible are
    multiples of (number of texts) x (least common multiple of the factors' numbers of levels); Stop for others.
    The same arguments give the same design.
    """
    raise NotImplementedError


def judge(cells, baseline, delta=0.005, alpha=0.05, rate=None, sizes=(), length=None):
    """Returns the verdicts of Cells with losses, as Over.

    rate, sizes, length: the names of factors that are a learning rate, a size and a length of training. With a
    length, the verdict is about the longest; shorter ones tell whether it is early. Levels may be what they are in
    an option (n_embd) or what a speedup should be in (numbers of parameters). Raises Stop where cells make no sense.
    """
    raise NotImplementedError
