"""Studies with seeds=auto: what is trained, and that nothing but the losses of planned looks decides."""
import json
import math
from pathlib import Path

import numpy as np
import pytest
from helpers import TINY, flags

import ab
from configurator import arguments, construct, options_of, parse_known
from core.errors import Stop
from core.run.files import write_json
from lab.study import waves
from lab.study.arm import null_arm, parse_arms
from lab.study.results import build_report, judge_study, load_runs
from lab.study.store import run_state, write_identity
from lab.study.study import Findings, Study

pytestmark = pytest.mark.usefixtures('somewhere_else')
BASE = 1.5, 0.01        # mean and sd of the baseline's losses


class Trainer:
    """Stands in for Runner: a run's loss is drawn from its arm's mean and sd, and never trained."""

    def __init__(self, study, losses, at_once=1, failing=()):
        # losses: {arm: (mean, sd)}; failing: (arm, n) of runs that fail, by their order
        self.study, self.losses, self.at_once, self.failing = study, losses, at_once, failing
        self.trained = []

    def width(self, arm):
        return self.at_once

    def train(self, arm_seeds):
        for arm, seed in arm_seeds:
            if self.study.state(arm, seed) == 'new':
                self.trained.append((arm.name, seed))
                write_run(self.study, arm, seed, *self.losses[arm.name],
                          fails=(arm.name, self.study.seeds_of(arm).index(seed)) in self.failing)


def write_run(study, arm, seed, mean, sd, fails=False):
    folder = study.run_folder(arm, seed)
    if fails:
        return write_json(folder / 'failed.json', dict(status='failed', reason='out of memory'))
    loss = float(np.random.default_rng([seed, len(arm.name)]).normal(mean, sd))
    result = dict(val_loss=loss, train_loss=loss, seconds=1.0)
    write_json(folder / 'ab.json', dict(seed=seed, result=result, windows=[loss] * 12, positions=[loss] * 16,
                                        init={}, batches='', sample=None))
    lines = [json.dumps(dict(iter=i, val_loss=loss + 1 - i / 12, train_loss=None)) for i in (0, 12)]
    (folder / 'log.jsonl').write_text('\n'.join(lines) + '\n')


def study_of(data, variants='alibi', null=False, **options):
    options = TINY | dict(dataset=data, variants=variants, null=null) | options
    known, given = options_of(ab.Options), arguments(flags(**options))
    o = construct(ab.Options, parse_known(known, given))
    arms = parse_arms(o, [g for g in given if g.name not in known])
    arms += [null_arm(arms[0])] if null else []
    study = Study(Path('out-ab/s'), arms, o, {}, Findings('', None, '', {}))
    waves.plan_looks(study)
    return study


def trained(study, losses, **options):
    trainer = Trainer(study, losses, **options)
    waves.train_in_waves(study, trainer)
    study.save()
    return trainer


def store_baseline(data, n):
    """Puts n runs of the baseline into the store, as an earlier study would have left them."""
    study = study_of(data)
    for seed in range(1337, 1337 + n):
        write_run(study, study.baseline, seed, *BASE)


def counts(trainer):
    names = [name for name, _ in trainer.trained]
    return {name: names.count(name) for name in dict.fromkeys(names)}


def test_an_arm_that_is_decided_trains_no_further(data, capsys):
    store_baseline(data, 40)
    study = study_of(data, 'alibi,rope')
    trainer = trained(study, dict(base=BASE, alibi=(1.42, 0.01), rope=BASE))
    # two runs of the baseline are added to those that are stored
    assert counts(trainer) == dict(base=2, alibi=4, rope=16)
    assert 'alibi is decided at 4 runs: better' in capsys.readouterr().out
    verdicts = judge_study(study, load_runs(study))
    assert (verdicts['alibi'].verdict, verdicts['rope'].verdict) == ('better', "can't tell")
    assert verdicts['alibi'].n_base == 42


def test_runs_of_arms_are_independent_of_the_baselines(data):
    """No seed is in both, or the arms' runs would go together with some of the baseline's and not with others."""
    store_baseline(data, 10)
    study = study_of(data)
    assert not {*study.seeds['base']} & {*study.seeds['alibi']} and study.seeds['base'][:10] == list(range(1337, 1347))
    assert study_of(data, paired=True).seeds['base'] == study_of(data, paired=True).seeds['alibi']


def test_what_is_concluded_does_not_depend_on_the_machine(data, tmp_path, monkeypatch):
    """Machines that train one run at a time, or eight, conclude the same of the same losses."""
    found = []
    for at_once in 1, 8:
        (tmp_path / str(at_once)).mkdir()
        monkeypatch.chdir(tmp_path / str(at_once))
        study = study_of(data, 'alibi,rope')
        trained(study, dict(base=BASE, alibi=(1.48, 0.01), rope=(1.51, 0.01)), at_once=at_once)
        c = judge_study(study, load_runs(study))
        found.append({name: (c[name].verdict, c[name].decided_at) for name in c})
    assert found[0] == found[1] and found[0]['alibi'][0] == 'better'


def test_failed_runs_are_replaced_and_too_many_give_up(data, capsys):
    failing = [('alibi', 1), ('alibi', 2), *(('rope', n) for n in range(30))]
    study = study_of(data, 'alibi,rope')
    trainer = trained(study, dict(base=BASE, alibi=(1.42, 0.01), rope=BASE), failing=failing)
    assert counts(trainer)['alibi'] == 6 and len(study.ended(study.arms[1])) == 4
    assert 'rope is given up' in capsys.readouterr().out


def test_a_study_that_goes_on_keeps_its_plan(data, capsys):
    """Runs that others store meanwhile, and more seeds, change no look that was planned."""
    losses = dict(base=BASE, alibi=(1.496, 0.01))
    study = study_of(data)
    trained(study, losses)
    then = judge_study(study, load_runs(study))['alibi']
    for seed in range(2000, 2030):
        write_run(study, study.baseline, seed, 1.6, 0.01)
    again = study_of(data)
    assert again.design == study.design
    assert vars(judge_study(again, load_runs(again))['alibi']) == vars(then)
    more = study_of(data, max_seeds=24)
    trainer = trained(more, losses)
    assert counts(trainer)['alibi'] == 8 and len(more.ended(more.arms[1])) == 24
    # an edited recipe is another study
    assert saved(study_of(data, learning_rate=0.1)) is None


def saved(study):
    return waves.saved_plan(study)


def test_the_budget_ends_a_study(data, capsys, monkeypatch):
    now = iter(range(0, 10**6, 40))
    monkeypatch.setattr(waves.time, 'monotonic', lambda: next(now))
    trainer = trained(study_of(data, budget='2m'), dict(base=BASE, alibi=BASE))
    assert 'budget=2m is spent, and alibi undecided' in capsys.readouterr().out
    assert counts(trainer)['alibi'] < 16
    assert waves.parse_budget('') == math.inf and waves.parse_budget('1.5h') == 5400
    for text in '10', '0m', 'm', '-3m', '5 m':
        with pytest.raises(Stop, match='takes a time such as'):
            waves.parse_budget(text)


def test_the_null_arm_is_a_noise_floor_and_in_no_family(data):
    study = study_of(data, 'alibi', null=True)
    trained(study, dict(base=BASE, alibi=(1.46, 0.01), null=(1.5, 0.001)))
    report = build_report(study, load_runs(study))
    assert [c.arm for c in report.comparisons] == ['alibi'] and report.noise_floor['n'] == waves.NULL_SEEDS
    alone = study_of(data, '', null=True)
    trained(alone, dict(base=BASE, null=BASE))
    assert build_report(alone, load_runs(alone)).noise_floor['n'] == waves.NULL_SEEDS


def test_a_run_of_the_store_says_how_far_it_is(tmp_path):
    write_identity(tmp_path, 'base-1', dict(code='x'))
    assert run_state(tmp_path / 'base-1/7') == 'new'
    for name, content, state in (('task.json', {}, 'partial'), ('failed.json', dict(status='diverged'), 'diverged'),
                                 ('ab.json', {}, 'done')):
        write_json(tmp_path / 'base-1/7' / name, content)
        assert run_state(tmp_path / 'base-1/7') == state
