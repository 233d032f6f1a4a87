"""The gate of a loop: its memory, its account of levels, and, by simulation, what a stream keeps."""
import json
import multiprocessing
import re
import subprocess
import sys
from collections import Counter
from contextlib import contextmanager
from dataclasses import asdict, replace
from math import comb, inf

import numpy as np
import pytest
from helpers import ROOT
from scipy.stats import binom, mannwhitneyu

from core.errors import BAD_INPUT, OUT_OF_MEMORY, Stop, run_main
from lab import sequential
from lab.sequential import Design
from lab.study import gate as lab_gate
from lab.study.gate import (
    LOOKS,
    Idea,
    Rules,
    Stream,
    chance_to_be_kept,
    gate,
    level_left,
    print_decision,
    rank_test,
    replay,
    share_won,
    weight,
)

RULES = Rules('base', delta=0.005)
SD = 0.01
BASE = {seed: float(loss) for seed, loss in enumerate(np.random.default_rng(5).normal(1.5, SD, 40))}


def trainer(better_by=0.0, seed=0, runs=16, base=BASE, sd=SD, most=16):
    """Returns train_to of an arm that is better by this many sds, and a list of the numbers it was asked for."""
    losses = np.random.default_rng((7, seed)).normal(1.5 - better_by * sd, sd, runs)
    asked = []

    def train_to(n):
        asked.append(n)
        return {'base': base, 'mine': {1000 + k: float(x) for k, x in enumerate(losses[:min(n, most)])}}
    return train_to, asked


def idea(key='a', **fields):
    return Idea('mine', key, **fields)


@pytest.fixture
def stream(tmp_path):
    return Stream(tmp_path / 'out-ab/gate.jsonl')


def lines(stream):
    return [json.loads(line) for line in stream.path.read_text().splitlines()]


# -----------------------------------------------------------------------------
# one idea

def test_a_large_improvement_is_kept_and_costs_no_level(stream):
    train_to, asked = trainer(better_by=3)
    decision = gate(idea(stored=40, price=1.1, folder='out-ab/x'), stream, train_to, RULES)
    assert decision.decision == 'keep' and decision.verdict == 'better' and decision.exit_code == 0
    assert decision.p <= decision.level == pytest.approx(0.025 / 3.9319, rel=1e-3)
    assert decision.runs == asked[-1] < 16 and asked == list(LOOKS[:len(asked)])
    assert decision.difference == pytest.approx(-0.03, abs=0.012) and decision.p_better > 0.99
    assert (decision.baseline_runs, decision.stored, decision.price) == (40, 40, 1.1)
    assert decision.level_left == 0.05
    # the share is free for the next idea
    assert gate(idea('b'), stream, trainer(seed=3)[0], RULES).level == decision.level


def test_a_worse_idea_costs_four_runs_and_no_level(stream):
    decision = gate(idea(), stream, trainer(better_by=-2)[0], RULES)
    assert (decision.decision, decision.runs, decision.level_left) == ('drop', 4, 0.05)
    assert decision.exit_code == 10 and 'no better than the baseline; this costs no level' in decision.words


def test_an_idea_that_does_nothing_but_starts_well_costs_its_share(stream):
    for seed in range(20):
        decision = gate(idea(str(seed)), stream, trainer(seed=seed)[0], RULES)
        assert decision.decision != 'keep'
        if decision.level_left < 0.05:
            break
    assert decision.level_left == pytest.approx(0.05 * (1 - 1 / 3.9319), rel=1e-3)
    level = gate(idea('next'), stream, trainer(-2)[0], RULES).level
    assert level == pytest.approx(0.025 * 2 ** -1.3 / 3.9319, rel=1e-3)


def test_an_idea_that_diverges_is_dropped(stream):
    decision = gate(idea(), stream, lambda n: {'base': BASE, 'mine': dict.fromkeys(range(1000, 1000 + n), inf)}, RULES)
    assert (decision.decision, decision.runs, decision.difference) == ('drop', 4, None)
    json.loads(json.dumps(asdict(decision), allow_nan=False))


def test_runs_that_are_there_already_are_looked_at_in_turn(stream):
    """An arm with 16 stored runs gets the decision, and the numbers, of one that is trained now."""
    train_to, _ = trainer(better_by=2)
    now = gate(idea('now'), stream, train_to, RULES)
    stored = gate(idea('stored'), stream, lambda n: train_to(16), RULES)
    assert now.decision == 'keep' and (now.runs, now.p, now.difference) == (stored.runs, stored.p, stored.difference)


# -----------------------------------------------------------------------------
# memory

def test_an_idea_that_was_tried_costs_nothing(stream):
    first = gate(idea(), stream, trainer(-2)[0], RULES)
    before = stream.path.read_bytes()
    again = gate(idea(), stream, lambda n: pytest.fail('trained again'), RULES)
    assert again.tried == dict(decision='drop', number=1, time=first.time) and first.tried is None
    assert replace(again, tried=None, seconds=0) == replace(first, seconds=0)
    assert stream.path.read_bytes() == before


def test_an_idea_that_ran_out_of_budget_goes_on_with_its_claim(stream):
    first = gate(idea(), stream, trainer(better_by=1.2, seed=2, most=5)[0], RULES)
    assert (first.decision, first.runs, first.exit_code) == ('undecided', 5, 11)
    assert 'the budget ended after 5 runs' in first.words
    other = gate(idea('b'), stream, trainer(-2)[0], RULES)
    again = gate(idea(), stream, trainer(better_by=1.2, seed=2)[0], RULES)
    assert again.runs > 5 and (again.number, again.level) == (first.number, first.level)
    assert other.number == 2 and other.level < first.level


def test_a_claim_outlives_a_crash(stream):
    """Between claim and decision nothing is lost: others get other shares, the idea itself gets its own."""
    def crash(n):
        raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        gate(idea(), stream, crash, RULES)
    other = gate(idea('b'), stream, trainer(-2)[0], RULES)
    assert other.level < 0.5 * weight(1) * 0.05 and other.level_left == pytest.approx(0.05 * (1 - weight(1)))
    again = gate(idea(), stream, trainer(-2)[0], RULES)
    assert again.number == 1 and again.level == 0.5 * 0.05 * weight(1) and again.level_left == 0.05


def test_a_kill_while_writing_loses_no_claim(stream):
    first = stream.claim(idea())
    with open(stream.path, 'ab') as f:
        f.write(b'{"event": "claim", "key": "b", "num')
    assert stream.claim(idea('c')).share == 2 and stream.claim(idea()) == first
    assert [record['key'] for record in lines(stream)] == ['a', 'c']


def test_an_idea_that_cannot_be_trained_costs_nothing(stream):
    def fail(n):
        raise Stop('out of memory', OUT_OF_MEMORY)
    with pytest.raises(Stop, match='out of memory'):
        gate(idea(), stream, fail, RULES)
    assert stream.claim(idea('b')).share == 1


def test_an_idea_that_fails_after_a_look_keeps_its_claim(stream):
    """Else an idea that begins badly could be given up for free."""
    train_to, _ = trainer(better_by=1.2, seed=2)

    def fail_later(n):
        if n > 4:
            raise Stop('out of memory', OUT_OF_MEMORY)
        return train_to(n)
    with pytest.raises(Stop):
        gate(idea(), stream, fail_later, RULES)
    assert stream.claim(idea('b')).share == 2


def test_one_idea_in_two_processes_is_decided_once(stream):
    train_to, _ = trainer(better_by=3)

    def meanwhile(n):
        gate(idea(), stream, trainer(-2)[0], RULES)
        return train_to(n)
    assert gate(idea(), stream, meanwhile, RULES).tried['decision'] == 'drop'
    assert Counter(record['event'] for record in lines(stream)) == dict(claim=1, decision=1)


def claim_ten(path, first):
    for k in range(10):
        Stream(path).claim(idea(f'{first}-{k}'))


def test_processes_claim_different_shares(stream):
    context = multiprocessing.get_context('fork' if sys.platform != 'win32' else 'spawn')
    processes = [context.Process(target=claim_ten, args=(stream.path, n)) for n in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    claims = [record for record in lines(stream) if record['event'] == 'claim']
    assert sorted(c['share'] for c in claims) == sorted(c['number'] for c in claims) == list(range(1, 41))


def test_the_shares_of_a_stream_are_its_alpha():
    shares = np.arange(1, 2_000_001, dtype=float)
    tail = 2_000_000.5 ** -0.3 / 0.3 / 3.93194921181 # of the sum, as an integral
    assert sum(map(weight, shares[:10])) + np.sum(weight(10.0) * (shares[10:] / 10) ** -1.3) + tail == pytest.approx(1)
    claims, _ = replay([dict(event='claim', key=k, number=k, share=k, level=0) for k in range(1, 101)])
    assert 0.01 < level_left(claims, 0.05) < 0.05


@pytest.mark.parametrize('line, says', [
    ('{"event": "claim"', 'gate.jsonl:1: is not a record of a stream of ideas'),
    ('[]', 'gate.jsonl:1: is not a record of a stream of ideas'),
    ('{"event": "guess", "key": "a"}', 'gate.jsonl:1: is not a record of a stream of ideas'),
    ('{"event": "claim", "key": "a", "number": 1, "share": 1, "level": 0.01, "alpha": 0.1}',
     'gate.jsonl spends 0.1 on its stream')])
def test_a_stream_of_others_is_one_line(stream, line, says):
    stream.path.parent.mkdir()
    stream.path.write_text(line + '\n')
    with pytest.raises(Stop, match=says) as stop:
        gate(idea(), stream, trainer()[0], RULES)
    assert stop.value.code == BAD_INPUT and '\n' not in str(stop.value)
    assert stream.path.read_text() == line + '\n'


def test_damage_moves_no_level(stream, capsys):
    """Whatever byte of the stream is flipped, or wherever it is cut, nobody gets a share that is taken."""
    for name in 'abc':
        stream.claim(idea(name))
    stream.release(idea('b'))
    rng, whole = np.random.default_rng(0), stream.path.read_bytes()
    for at in rng.integers(len(whole), size=100):
        damaged = bytearray(whole)
        damaged[at] ^= 1 << rng.integers(8)
        stream.path.write_bytes(damaged)
        # the last line may look cut short
        try:
            stream.tried(idea('d'))
            assert f'warning: {stream.path}' in capsys.readouterr().err, at
        except Stop as stop:
            assert str(stop).startswith(f'{stream.path}:') and stop.code == BAD_INPUT
    # a line break alone is no loss
    stream.path.write_bytes(whole[:-1])
    assert stream.claim(idea('d')).share == 2 and stream.path.read_bytes().startswith(whole)


# -----------------------------------------------------------------------------
# the answer

FIELDS = ('decision name number level words verdict p runs baseline_runs stored difference interval shrunk p_better '
          'price level_left seconds time folder tried').split()


@pytest.mark.parametrize('better_by, most, name, code', [(3, 16, 'keep', 0), (-3, 16, 'drop', 10),
                                                         (1.2, 5, 'undecided', 11)])
def test_the_answer_is_an_exit_code_and_a_last_line_of_json(stream, capsys, better_by, most, name, code):
    decision = gate(idea(), stream, trainer(better_by, seed=2, most=most)[0], RULES)
    assert print_decision(decision) == code
    words, answer = capsys.readouterr().out.splitlines()
    answer = json.loads(answer)
    assert list(answer) == FIELDS and answer['decision'] == name and words == answer['words']
    with pytest.raises(SystemExit) as end:
        run_main(lambda: sys.exit(decision.exit_code))
    assert end.value.code == code


# -----------------------------------------------------------------------------
# its statistics

def test_the_rank_test_is_exact():
    rng = np.random.default_rng(0)
    arm, base = rng.normal(size=5), rng.normal(size=8)
    assert rank_test(arm, base) == pytest.approx(mannwhitneyu(arm, base, alternative='less', method='exact').pvalue)
    assert rank_test(base[:4] - 9, base) == pytest.approx(1 / comb(12, 4))
    # ties, and runs of both arms that diverged, count against the arm
    tied, apart = (np.array([1, 1, inf]), np.array([1, 2, inf])), (np.array([3, 3, 9]), np.array([1, 4, 8]))
    assert rank_test(*tied) == rank_test(*apart)
    assert share_won(np.array([1.0, inf]), np.array([1.0, 2.0, inf])) == pytest.approx((0.5 + 1 + 1 + 0.5) / 6)


def test_the_chance_to_be_kept_is_that_of_simulation():
    """Of ideas whose difference is unknown beforehand, seen after 6 runs."""
    rng, level, n, studies = np.random.default_rng(1), 0.002, 6, 20_000
    true = rng.uniform(-6, 6, studies)
    base, arm = rng.normal(size=(2000, 40))[:, None], rng.normal(size=(2000, 10, 16)) - true.reshape(2000, 10, 1)
    won = (arm[..., :n, None] < base[..., None, :]).mean((-1, -2)).ravel()
    later = ((base.mean(-1) - arm.mean(-1)).ravel() / np.sqrt(1 / 16 + 1 / 40)) > 2.878
    for low, high in ((0.7, 0.75), (0.8, 0.85), (0.88, 0.92)):
        here = (low <= won) & (won < high)
        foreseen = np.mean([chance_to_be_kept(w, n, 40, 16, level) for w in won[here]])
        assert later[here].mean() == pytest.approx(foreseen, abs=0.08)


# -----------------------------------------------------------------------------
# docs/agents.md

STUB = '''
import json, pathlib, sys
name = sys.argv[3].removeprefix('--variant=')
assert sys.argv[1:3] == ['gate', 'recipe.py'] and sys.argv[4:] == ['--json']
assert 'class MLP(model.MLP)' in pathlib.Path('variants', f'{name}.py').read_text()
print('training')
decision, code = dict(mlp_relu=('drop', 10), mlp_silu=('keep', 0), mlp_mish=('undecided', 11)).get(name, (None, 5))
if decision is None:
    sys.exit('out of memory') if code == 1 else (print('out of memory', file=sys.stderr), sys.exit(code))
print(json.dumps(dict(decision=decision, words=f'{decision}: {name}')))
sys.exit(code)
'''


def code_of_the_docs():
    """Returns loop.py and propose.py."""
    text = (ROOT / 'docs/agents.md').read_text(encoding='utf-8')
    return re.findall(r'^```python\n(.*?)^```$', text, re.DOTALL | re.MULTILINE)


def test_the_loop_of_the_docs_runs(tmp_path):
    (tmp_path / 'variants').mkdir()
    for name, text in zip(('loop.py', 'propose.py', 'ab.py'), [*code_of_the_docs(), STUB], strict=True):
        (tmp_path / name).write_text(text)
    loop, _ = code_of_the_docs()
    assert len(loop.splitlines()) <= 30
    run = [subprocess.run([sys.executable, 'loop.py', 'recipe.py'], cwd=tmp_path, capture_output=True, text=True)
           for _ in range(2)]
    assert [r.returncode for r in run] == [0, 0], run
    # the second time all is remembered
    assert run[0].stdout.splitlines() == ['mlp_relu: drop: mlp_relu', 'mlp_silu: keep: mlp_silu',
                                          'mlp_mish: undecided: mlp_mish', 'mlp_softplus: out of memory', '']
    assert run[1].stdout == ''
    assert [file.name for file in (tmp_path / 'variants').glob('*.py')] == ['mlp_silu.py']


# -----------------------------------------------------------------------------
# streams, simulated with the code that ships

class InMemory(Stream):
    """A Stream that writes no file."""

    def __init__(self, alpha=0.05):
        super().__init__('', alpha)
        self.records = []

    @contextmanager
    def _locked(self):
        yield self.records

    def _append(self, event, idea, **fields):
        self.records.append(dict(event=event, key=idea.key) | fields)


def loop(monkeypatch, base, ideas):
    """Returns the Decisions on a stream of ideas, (n, 16) losses, against runs of the baseline, (n_base,)."""
    # the statistics of all ideas in one call, and no estimates, are what 100,000 ideas have time for
    rules, design = Rules('base', delta=1e-9), Design('welch', LOOKS, len(base))
    paths = sequential.follow(np.broadcast_to(base, (len(ideas), len(base))), ideas, design, rules.delta)

    def follow(base, arm, design, delta):
        k = LOOKS.index(arm.shape[1]) + 1
        looks = [look.of(i) for look in paths.looks[:k]]
        return sequential.Path(looks, *(x[i:i + 1, :k] for x in (paths.p, paths.side, paths.tost_p)))
    monkeypatch.setattr(lab_gate, 'follow', follow)
    monkeypatch.setattr(lab_gate, 'estimate_difference', lambda *args: None)
    stream, decisions, stored = InMemory(), [], dict(enumerate(base))
    for i, losses in enumerate(ideas):
        train_to = lambda n, losses=losses: dict(base=stored, mine=dict(enumerate(losses[:n])))
        decisions.append(gate(idea(str(i)), stream, train_to, rules))
    return decisions


@pytest.mark.slow
def test_of_100_ideas_that_do_nothing_a_loop_keeps_one_in_5_percent_of_cases(monkeypatch):
    rng, streams, kept, runs, held = np.random.default_rng(0), 1000, 0, 0, []
    for _ in range(streams):
        decisions = loop(monkeypatch, rng.standard_normal(40), rng.standard_normal((100, 16)))
        kept += any(d.decision == 'keep' for d in decisions)
        runs += sum(d.runs for d in decisions)
        held.append(decisions[-1].level)
    runs /= 100 * streams
    print(f'{kept / streams:.3f} of streams keep an idea; {runs:.2f} runs an idea, the last level {np.mean(held):.1e}')
    assert kept <= binom.ppf(0.99, streams, 0.05)
    assert runs < 5


@pytest.mark.slow
@pytest.mark.parametrize('at', [0, 30, 99])
def test_an_improvement_by_two_sds_is_kept_anywhere_in_a_stream(monkeypatch, at):
    rng, streams, kept, runs = np.random.default_rng(at), 300, 0, []
    for _ in range(streams):
        ideas = rng.standard_normal((at + 1, 16))
        ideas[at] -= 2
        decision = loop(monkeypatch, rng.standard_normal(40), ideas)[at]
        kept += decision.decision == 'keep'
        runs.append(decision.runs)
    print(f'number {at + 1}: {kept / streams:.3f} are kept, after {np.mean(runs):.1f} runs')
    assert kept / streams >= 0.8


@pytest.mark.slow
@pytest.mark.parametrize('noise, sd', [('normal', 1), ('normal', 3), ('exponential', 1)])
def test_an_idea_that_does_nothing_is_kept_at_its_level_at_most(monkeypatch, noise, sd):
    """Also one that is noisier, at which a rank test fails, and in skewed noise, at which a t test fails."""
    rng, streams = np.random.default_rng(1), 1500
    draw = rng.standard_normal if noise == 'normal' else lambda size: rng.exponential(size=size) - 1
    kept = sum(loop(monkeypatch, draw(40), sd * draw((1, 16)))[0].decision == 'keep' for _ in range(streams))
    level = 0.05 * weight(1) / 2
    print(f'{noise} noise, sd {sd}: {kept / streams:.4f} are kept at level {level:.4f}')
    assert kept <= binom.ppf(0.99, streams, level)
