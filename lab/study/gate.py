"""The gate of a loop: of a stream of ideas it keeps those that help, and rarely one that does nothing.

Each idea is an arm against the stored runs of the baseline, judged at growing numbers of runs. The chance
that a stream keeps any idea that does nothing is at most alpha, however long it is:

level       The k-th share of alpha is k^-1.3 / zeta(1.3) of it. An idea takes the largest share that is free
            (alpha spending), before it trains, and is tested at half of it.
keep        p <= level, one-sided, by the test of lab/look.py, which allows other variances, and by an exact
            rank test, which allows any distribution of the noise; each look has a part of the level. The
            share is free again, as in the fallback procedure (Wiens and Dmitrienko 2005).
drop        At the first look, above the baseline in most of the pairs of a run of each. Half of the ideas
            that do nothing end here, at no cost, so the others may cost twice their level (discarding: Tian
            and Ramdas 2021, "Online control of the familywise error rate").
            Later: worse, equivalent, or a chance of less than FUTILE to be kept; this costs the share.
undecided   The runs or the budget are used up.

The stream is a file of one JSON record a line: claim, decision, release. A share that was claimed stays taken
until its idea is judged, so a crash cannot lose the account, and the same idea goes on with its own claim.
"""
import dataclasses
import json
import math
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

try:
    import scipy
# ab.py says what to install
except ImportError:
    scipy = None
from filelock import FileLock

from core.errors import DROP, KEEP, UNDECIDED, Stop
from core.run.environment import timestamp
from core.run.files import to_json
from lab.sequential import LOOKS, Design, comparison_at, follow, word_at
from lab.study.lines import append_line, read_lines

DECAY = 1.3         # about the largest levels near the 50th idea; 1.2 has more at the 100th, less at the first
PASSING = 0.5       # of ideas that do nothing, how many pass the first look
FUTILE = 0.1        # halves the runs of ideas that do nothing
EXIT_CODES = dict(keep=KEEP, drop=DROP, undecided=UNDECIDED)


@dataclass
class Idea:
    """An arm that asks to be kept."""
    name: str                   # of the arm
    key: str                    # a hash of all that arm and baseline compute, without seeds
    command: str = ''           # that asked
    stored: int = 0             # runs of the baseline that were stored before
    price: float | None = None  # time of an iteration over the baseline's
    folder: str | None = None   # of the report


@dataclass
class Rules:
    """Settings of the tests of ideas; losses in nats."""
    baseline: str               # the arm's name
    delta: float = 0.005        # differences below it count as equivalent
    alpha: float = 0.05         # of the verdict in words, on this idea alone
    looks: tuple = LOOKS


@dataclass
class Decision:
    """Answer of the gate, which it prints as JSON. Differences are arm - baseline, in nats; None: unknown."""
    decision: str               # keep, drop or undecided
    name: str
    number: int                 # of the idea in its stream, from 1
    level: float                # p has to be this small
    words: str = ''             # the reason, a sentence
    verdict: str = "can't tell" # on this idea alone: better, worse, equivalent, can't tell
    p: float | None = None      # one-sided, for better, over all looks
    runs: int = 0               # of the arm
    baseline_runs: int = 0      # that it was compared with
    stored: int = 0             # of these, how many were stored before
    difference: float | None = None
    interval: list | None = None
    shrunk: float | None = None # the difference, corrected for being selected
    p_better: float | None = None
    price: float | None = None  # time of an iteration over the baseline's
    level_left: float = 0.0     # of the stream's alpha
    seconds: float = 0.0
    time: str = ''              # UTC, when it was decided
    folder: str | None = None   # of the report
    tried: dict | None = None   # decision, number and time, if the answer is an earlier one

    @property
    def exit_code(self):
        return EXIT_CODES[self.decision]


# -----------------------------------------------------------------------------
# the stream's memory

@dataclass
class Claim:
    """An idea's place in a stream."""
    number: int                 # of the idea, from 1
    share: int                  # k: which share of alpha it has
    level: float                # of its test


class Stream:
    """The ideas of a loop, in a file that processes share. alpha: the chance to keep a useless one."""

    def __init__(self, path, alpha=0.05):
        self.path, self.alpha = Path(path), alpha

    def claim(self, idea):
        """Returns the idea's Claim, made now or before. Stop if the file is not this stream's."""
        with self._locked() as records:
            claims, _ = replay(records)
            if idea.key not in claims:
                taken = {claim.share for claim in claims.values()}
                share = next(k for k in range(1, len(taken) + 2) if k not in taken)
                number = 1 + max((r['number'] for r in records if r['event'] == 'claim'), default=0)
                claims[idea.key] = Claim(number, share, PASSING * self.alpha * weight(share))
                self._append('claim', idea, alpha=self.alpha, command=idea.command,
                             **dataclasses.asdict(claims[idea.key]))
            return claims[idea.key]

    def release(self, idea):
        """Gives the idea's claim back; right only while nobody has seen a loss of it."""
        with self._locked():
            self._append('release', idea)

    def decide(self, idea, claim, decision, free, final):
        """Adds a Decision, with its time and the level that is left; returns it, or an earlier one.

        free: its share may be claimed again. final: the answer to whoever asks again.
        """
        with self._locked() as records:
            # the same idea in two processes: the first has decided
            if (earlier := final_decision(records, idea.key)) is not None:
                return earlier
            decision.time = timestamp()
            record = dict(share=claim.share, free=free, final=final) | dataclasses.asdict(decision)
            claims, _ = replay([*records, dict(event='decision', key=idea.key) | record])
            record['level_left'] = decision.level_left = level_left(claims, self.alpha)
            self._append('decision', idea, **record)
        return decision

    def tried(self, idea):
        """Returns the Decision on this very idea, or None; one that ran out of budget is none."""
        with self._locked() as records:
            claims, _ = replay(records)
            decision = final_decision(records, idea.key)
            if decision is not None:
                decision.level_left = level_left(claims, self.alpha)
            return decision

    @contextmanager
    def _locked(self):
        """A context in which no other process reads or writes the stream; gives its records."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(self.path.with_name(f'.{self.path.name}.lock')):
            yield self._read()

    def _read(self):
        records = []
        for n, record in read_lines(self.path):
            try:
                known = record['event'] in ('claim', 'decision', 'release') and record['key']
                # a record lacks nothing that is asked of it later
                replay([record])
            except (TypeError, KeyError):
                known = False
            if not known:
                raise Stop(f'{self.path}:{n}: is not a record of a stream of ideas; restore the line, or '
                           'move the file away, which starts a new stream')
            if record.get('alpha', self.alpha) != self.alpha:
                raise Stop(f'alpha={self.alpha}: {self.path} spends {record["alpha"]} on its stream, as its '
                           'first idea said')
            records.append(record)
        return records

    def _append(self, event, idea, **fields):
        record = dict(event=event, key=idea.key) | dict(name=idea.name, time=timestamp()) | fields
        # on the disk before the first run: a claim is a promise
        append_line(self.path, record)


def replay(records):
    """Returns {key: Claim} of the shares that are taken, and {key: record} of the last decisions."""
    claims, decided = {}, {}
    for record in records:
        key, event = record['key'], record['event']
        if event == 'release' or event == 'decision' and record['free']:
            claims.pop(key, None)
        # a decision keeps its claim, also one that another process has given back meanwhile
        else:
            claims[key] = Claim(record['number'], record['share'], record['level'])
        if event == 'decision':
            decided[key] = record
    return claims, decided


def final_decision(records, key):
    """Returns the Decision that settled an idea, marked as an earlier one; None if there is none."""
    record = replay(records)[1].get(key)
    if record is None or not record['final']:
        return None
    names = [field.name for field in dataclasses.fields(Decision)]
    decision = Decision(**{name: record[name] for name in names})
    decision.tried = {name: record[name] for name in ('decision', 'number', 'time')}
    decision.seconds = 0.0
    return decision


def weight(share):
    """Returns how much of a stream's alpha its k-th share is; all of them add up to 1."""
    return share ** -DECAY / float(scipy.special.zeta(DECAY))


def level_left(claims, alpha):
    """Returns the part of alpha that no claim has taken."""
    return alpha * (1 - sum(weight(claim.share) for claim in claims.values()))


# -----------------------------------------------------------------------------
# one idea

def gate(idea, stream, train_to, rules):
    """Returns the Decision on an idea, after as few runs as it takes.

    train_to: trains the arm until n runs have ended, fewer only where the budget ends, and returns
    {arm: {seed: loss}} of the arm and of all stored runs of the baseline, inf for a run that diverged.
    rules: Rules. A Stop of train_to is passed on; the claim stays, unless no run of the arm was judged yet.
    """
    began = time.monotonic()
    if (earlier := stream.tried(idea)) is not None:
        return earlier
    claim = stream.claim(idea)
    decision = Decision('undecided', idea.name, claim.number, claim.level, stored=idea.stored,
                        price=idea.price, folder=idea.folder)
    free = False
    for look in rules.looks:
        try:
            losses = train_to(look)
        except Stop:
            # it could not be trained at all
            if not decision.runs:
                stream.release(idea)
            raise
        # in the order of seeds, also those of earlier studies: one look after the other
        arm, base = (np.array([losses[name][seed] for seed in sorted(losses[name])], float)
                     for name in (idea.name, rules.baseline))
        if len(arm) < look:
            break
        free = judge_look(base, arm[:look], decision, rules)
        if decision.decision != 'undecided':
            break
    if decision.runs:
        estimate_difference(base, arm[:decision.runs], decision, rules)
    # after the last look there is nothing left to ask for
    final = decision.decision != 'undecided' or decision.runs == rules.looks[-1]
    if not final:
        decision.words = f'undecided: the budget ended after {decision.runs} runs; the same command goes on'
    decision.seconds = time.monotonic() - began
    return stream.decide(idea, claim, decision, free, final)


def judge_look(base, arm, decision, rules):
    """Sets a Decision and its numbers; returns whether its share is free.

    base: (n_base,) losses of the baseline. arm: (n,), of the first n runs of the idea, n a look.
    """
    n, n_base, last = len(arm), len(base), rules.looks[-1]
    design = Design('welch', rules.looks, n_base)
    path = follow(base[None], arm[None], design, rules.delta)
    alone = path.p[0, -1] < rules.alpha, path.tost_p[0, -1] < rules.alpha
    verdict = word_at((base, arm), path, len(path.looks) - 1, design, *alone)

    # each look has a part of the level, in proportion to its runs
    parts = {k: k / sum(rules.looks) for k in rules.looks}
    p = min(1.0, *(better_p(look) / parts[k] for k, look in zip(rules.looks, path.looks)))
    # the rank test is asked only of what would be kept
    if p <= decision.level:
        p = max(p, min(rank_test(arm[:k], base) / parts[k] for k in rules.looks if k <= n))
    decision.p, decision.verdict, decision.runs, decision.baseline_runs = p, verdict, n, n_base

    won, asked, free = share_won(arm, base), f'p {p:.1g}, {decision.level:.1g} is asked', False
    if verdict == 'better' and p <= decision.level:
        decision.decision, decision.words, free = 'keep', f'kept: better after {n} runs ({asked})', True
    elif n == rules.looks[0] and won < PASSING:
        words = f'dropped: its first {n} runs are no better than the baseline; this costs no level'
        decision.decision, decision.words, free = 'drop', words, True
    elif verdict in ('worse', 'equivalent'):
        decision.decision, decision.words = 'drop', f'dropped: {verdict} after {n} runs'
    elif n == last:
        decision.words = f'undecided: all {n} runs are used up ({asked})'
    elif chance_to_be_kept(won, n, n_base, last, parts[last] * decision.level) < FUTILE:
        words = f'dropped: after {n} runs, {last} would hardly show it to be better ({asked})'
        decision.decision, decision.words = 'drop', words
    return free


def estimate_difference(base, arm, decision, rules):
    """Sets the difference of a Decision, and what is to be believed of it; base, arm: as for judge_look."""
    design = Design('welch', rules.looks, len(base))
    path = follow(base[None], arm[None], design, rules.delta)
    # as the estimate sees it, a study stops where an idea is kept
    stop_level = 2 * decision.level
    c = comparison_at((base, arm), path, len(path.looks) - 1, design, rules.delta, rules.alpha, stop_level,
                      plan=False)
    decision.difference, decision.interval = c.mean, c.interval
    decision.shrunk, decision.p_better = c.shrunk, c.p_better


def better_p(look):
    """Returns the one-sided p of one lab.look.Look, for better."""
    (p,), (side,) = look.evidence()
    return float(p / 2 if side < 0 else 1 - p / 2)


def share_won(arm, base):
    """Returns the share of all pairs of a run of each in which the arm's is lower; ties count half.

    For equal distributions it is at least a half in at least half of all cases, whatever they are.
    """
    arm = arm[:, None]
    return float((arm < base).mean() + (arm == base).mean() / 2)


def rank_test(arm, base):
    """Returns the exact one-sided p of the rank-sum test, for better; ties count against the arm."""
    ranks = scipy.stats.rankdata(np.concatenate((arm, base)), 'dense')
    # half a rank makes each tie a loss, and so leaves none between the arms
    return float(scipy.stats.mannwhitneyu(ranks[:len(arm)] + 0.5, ranks[len(arm):], alternative='less',
                                          method='exact').pvalue)


def chance_to_be_kept(won, n, n_base, last, level):
    """Returns the chance that a test at `level` passes at `last` runs, foreseen after n from the share won.

    Of normal losses, that share gives the difference in standard deviations of a run; at `last` runs it will
    be the same, give or take sqrt(1/n - 1/last).
    """
    difference, bar = math.sqrt(2) * scipy.special.ndtri(won), -scipy.special.ndtri(level)
    ahead = difference - bar * math.sqrt(1 / last + 1 / n_base)
    return float(scipy.special.ndtr(ahead / math.sqrt(1 / n - 1 / last)))


# -----------------------------------------------------------------------------
# the answer

def print_decision(decision):
    """Prints the reason, then the Decision as one line of JSON, the last of stdout; returns the exit code."""
    print(decision.words)
    print(json.dumps(to_json(dataclasses.asdict(decision))), flush=True)
    return decision.exit_code
