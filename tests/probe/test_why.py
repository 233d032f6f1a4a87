"""probe.py why: parts sum to the difference, and what a gain does not come from is not named as its cause."""
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import call

import probe
from core.errors import Stop
from lab.probe import open_runs, why
from lab.probe.scores import validation_scores, validation_tokens
from lab.probe.seeds import Mean, difference, paired_by_seed
from lab.probe.splits import by_class, by_confidence, by_position, by_repetition
from model import build

WINDOWS = 100


@pytest.fixture(scope='module')
def runs(study):
    found = {}
    for run in open_runs(study, 'latest', 'cpu', 'float32', variant=str(study.parent / 'planted.py')):
        found.setdefault(run.arm, []).append(run)
    return found


@pytest.fixture(scope='module')
def nats(runs):
    return {arm: [validation_scores(run, WINDOWS).nats for run in of_arm] for arm, of_arm in runs.items()}


@pytest.mark.parametrize('paired', [True, False])
def test_parts_sum_to_the_whole_and_hold_every_token(runs, nats, paired):
    first = runs['base'][0]
    tokens = validation_tokens(first, WINDOWS)
    sure = np.mean([validation_scores(run, WINDOWS).sure for run in runs['base']], 0)
    base = nats['base'] if paired else nats['base'][:2]
    for arm in 'bigram', 'planted':
        gap = why.Gap(nats[arm], base, paired)
        by_hand = (np.mean([np.nanmean(x) for x in nats[arm]]) - np.mean([np.nanmean(x) for x in base]))
        assert gap.whole().mean == pytest.approx(by_hand, abs=1e-12) and np.isfinite(gap.whole().half)
        for split in (by_class(tokens, first.tokenizer), by_position(tokens), by_confidence(sure),
                      by_repetition(tokens, 2)):
            parts = gap.parts(split)
            assert abs(parts.mean.sum() - by_hand) < 1e-9, split.title
            assert split.shares.sum() == pytest.approx(1) and len(split.names) > 1
            assert np.isfinite(parts.half).all()
            # a part is its tokens' share times their difference
            assert split.shares @ gap.inside(split).mean == pytest.approx(by_hand)


def test_a_gain_that_the_module_makes_goes_with_it(runs, nats):
    # every weight but the table's is the baseline's
    gap = why.Gap(nats['bigram'], nats['base'], True)
    removal = why.take_out(gap, runs['bigram'], 'bigram', WINDOWS)
    assert gap.whole().mean < -0.02 and abs(removal.left.mean) < 1e-6
    said = why.removal_sentence(removal, gap.whole(), why.Pair('bigram', 'base', ''), [])
    assert 'goes with bigram: without bigram the difference is ' in said and 'not the cause' not in said


@pytest.mark.parametrize('neutral', [True, False])
def test_a_gain_of_a_wider_mlp_is_not_put_down_to_the_module(runs, nats, monkeypatch, neutral):
    # by NEUTRAL's options that fit its weights, or without NEUTRAL by its own modules
    if not neutral:
        monkeypatch.delattr(runs['planted'][0].model.classes.files[0], 'NEUTRAL')
    gap = why.Gap(nats['planted'], nats['base'], True)
    removal = why.take_out(gap, runs['planted'], 'planted', WINDOWS)
    assert ('gate=False' if neutral else 'modules of its own') in removal.how
    whole = gap.whole()
    assert whole.mean < -0.02 and removal.left.mean < 0.9 * whole.mean
    brought = why.brought_along(runs['planted'][0], runs['base'][0])
    said = why.removal_sentence(removal, whole, why.Pair('planted', 'base', ''), brought)
    assert said.startswith('planted is not the cause: without planted the difference is -0.')
    assert 'brings along: transformer.h.*.mlp.c_fc.weight is 1024 × 16, in base 64 × 16' in said


WIDE = """
import torch
import torch.nn as nn
import model
from dataclasses import dataclass

NEUTRAL = dict(start=0.0)


@dataclass
class GPTConfig(model.GPTConfig):
    start: float = 0.5      # of what is learnt


class MLP(model.MLP):
    def __init__(self, config, classes, layer):
        super().__init__(config, classes, layer)
        self.c_fc = classes.Linear(config, config.n_embd, 8 * config.n_embd)
        self.c_proj = classes.Linear(config, 8 * config.n_embd, config.n_embd)
        self.more = nn.Parameter(torch.full((), config.start))

    def forward(self, x, step):
        return super().forward(x, step) + self.more * x
"""


def test_a_parameter_of_its_own_is_neutral_and_the_wider_mlp_stays(runs, drop):
    drop('wide', WIDE)
    base = runs['base'][0]
    model = build('wide', **vars(base.model.config)).eval()
    # it was trained to another value
    torch.nn.init.constant_(model.transformer.h[0].mlp.more, 0.7)
    run = replace(base, model=model, options=base.options | dict(variant='wide'))
    other, how = why.without(run, 'wide')
    assert how == 'start=0.0 in the trained model' and model.transformer.h[0].mlp.more == torch.tensor(0.7)
    torch.nn.init.constant_(model.transformer.h[0].mlp.more, 0.0)
    idx = torch.arange(12)[None]
    assert torch.equal(other.logits(idx), run.logits(idx))


def test_what_is_said_of_a_cause_is_what_the_intervals_say():
    def said(whole, left, half_width=0.01):
        whole, left = Mean(whole, 0.01, 5), Mean(left, half_width, 5)
        half = Mean(left.mean - whole.mean / 2, half_width, 5)
        return why.removal_sentence(why.Removal('it', '', left, half), whole, why.Pair('arm', 'base', ''), [])
    assert said(-0.1, -0.09).startswith('it is not the cause: ') and ', so 90 % of the gain stays' in said(-0.1, -0.09)
    assert said(-0.1, 0.03).startswith('the gain goes with it')
    assert said(-0.1, 0.005).startswith('most of the gain goes with it')
    assert said(-0.1, -0.055).startswith('whether the gain goes with it is open')
    assert said(0.1, 0.01).startswith('it is what makes it worse')
    assert 'does not say that the harm comes from elsewhere' in said(0.1, 0.3)
    assert 'no more than chance' in said(-0.005, 0.3)
    assert 'one seed gives no interval' in said(-0.1, 0.3, np.nan)


def test_what_was_taken_out_leaves_the_runs_as_they_were(runs, nats):
    run = runs['planted'][0]
    weights = {name: p.clone() for name, p in run.model.state_dict().items()}
    why.without(run, 'planted')
    assert all(torch.equal(p, weights[name]) for name, p in run.model.state_dict().items())
    assert np.array_equal(validation_scores(run, WINDOWS).nats, nats['planted'][0], equal_nan=True)


def test_seeds_that_both_have_are_pairs_and_others_are_not():
    def some(*seeds):
        return [SimpleNamespace(seed=seed) for seed in seeds]
    arm, base, paired = paired_by_seed(some(2, 1, 5), some(1, 3, 2))
    assert paired and [[run.seed for run in both] for both in (arm, base)] == [[1, 2], [1, 2]]
    arm, base, paired = paired_by_seed(some(101, 102), some(1, 2, 102))
    assert not paired and len(arm) == 2 and len(base) == 3
    # Welch's interval by hand, where both have as many runs
    x, y = np.array([[1.0], [1.2], [1.5], [0.9]]), np.array([[0.0], [0.1], [-0.1], [0.05]])
    found = difference(x, y, paired=False)
    se = np.sqrt(x.var(ddof=1) / 4 + y.var(ddof=1) / 4)
    assert found.mean[0] == pytest.approx((x - y).mean()) and 2.2 * se < found.half[0] < 3.3 * se
    assert difference(x, y, paired=False, comparisons=5).half > 1.3 * found.half
    assert np.isnan(difference(x[:1], y, paired=False).half).all()


@pytest.mark.slow
def test_unpaired_intervals_hold_the_difference_as_often_as_they_say():
    rng, held = np.random.default_rng(0), 0
    for _ in range(400):
        arm, base = rng.normal(0.5, 0.3, (4, 5)), rng.normal(0, 0.1, (10, 5))
        found = difference(arm, base, paired=False)
        held += (abs(found.mean - 0.5) < found.half).sum()
    assert 0.93 < held / 2000 < 0.985


def test_the_command_says_which_arms_are_decided(study, monkeypatch):
    # they take most of the time
    monkeypatch.setattr('lab.probe.page.write_pngs', lambda charts, folder: [])
    ended = call(probe.main, 'why', study, windows=WINDOWS)
    assert ended.code == 0 and 'bigram minus base' in ended.out and 'planted' not in ended.out
    assert 'The study says: better, -0.1000 [-0.2000, -0.0500] nats.' in ended.out
    page = (study / 'probe/why.html').read_text()
    assert 'bigram by repetition' in page and '<svg' in page
    path = study.parent / 'planted.py'
    monkeypatch.setattr('lab.probe.page.draw_all', lambda charts: None)
    ended = call(probe.main, 'why', study, windows=WINDOWS, arm='planted', variant=path)
    assert 'planted: planted is not the cause: ' in ended.out


def test_bad_input_is_one_line(study, tmp_path):
    assert 'which folder?' in call(probe.main, 'why').line(2)
    assert 'is not the folder of a study' in call(probe.main, 'why', tmp_path).line(2)
    assert 'arm=nothing: no such arm' in call(probe.main, 'why', study, arm='nothing').line(2)
    assert 'if you trust it, add --variant=' in call(probe.main, 'why', study, arm='planted').err
    for folder in 'study', 'report':
        (tmp_path / f'{folder}.json').write_text((study / f'{folder}.json').read_text())
    assert 'keep them with --keep_checkpoints=True' in call(probe.main, 'why', tmp_path).line(4)
    (tmp_path / 'report.json').unlink()
    assert 'no report.json' in call(probe.main, 'why', tmp_path).line(2)
    with pytest.raises(Stop, match='no arm is decided; --arm=NAME looks into one anyway'):
        (tmp_path / 'report.json').write_text('{"comparisons": []} ')
        why.pairs_to_explain(tmp_path, '')
