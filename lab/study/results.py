"""Results of a study: load_runs() reads its run folders once, and pure functions turn them into a report."""
import dataclasses
import hashlib
import math
import statistics
from dataclasses import dataclass, field

import torch

from core.run.files import from_json
from lab import sequential, stats
from lab.study.schema import (
    ArmResult,
    Checks,
    Curve,
    LossAtCost,
    Pairing,
    Plan,
    Price,
    Report,
    ReportedComparison,
    RunSummary,
)
from lab.study.store import DONE, FAILED, logged_evaluations, read_run
from lab.study.study import is_null
from lab.study.words import text_table, verdict_sentence
from lab.suspicion import suspicions

# runs of a baseline that stands beside a single arm, such as one trained as long
MIN_MATCHED = 5
METRIC = 'validation loss after the last iteration, whole split, nats per token'


@dataclass
class RunResult:
    """One run, however it ended. Only a run that is done has losses; reason is for the others."""
    arm: str
    seed: int
    status: str                     # done, diverged, failed or missing
    reason: str | None = None       # why it diverged or failed
    val_loss: float | None = None   # after the last iteration
    train_loss: float | None = None
    bits_per_byte: float | None = None
    seconds: float | None = None
    init: dict | str | None = None  # {parameter: hash of its initial values}; a hash of all, before the store
    batch_hash: str | None = None
    windows: list = field(default_factory=list)     # loss of each validation window, in order
    positions: list = field(default_factory=list)   # loss at each position of the context
    sample: str | None = None
    no_sample: str | None = None    # why there is none, though it was tried
    checks: list | None = None      # of its trained model: [[check, what it found, why it failed or '']]
    evaluations: list = field(default_factory=list) # from its log: [{iter, val_loss, train_loss, stats.NAME}]


def load_runs(study):
    """Returns a RunResult for each run of a study. With seeds=auto, those that there are."""
    if study.design is None:
        return [load_run(study, arm, seed) for arm in study.arms for seed in study.seeds_of(arm)]
    # the store may hold more runs than this study may look at
    design, last = study.design, study.options.max_seeds
    most = dict.fromkeys(study.seeds, last)
    most[study.baseline.name] = baseline_runs(design, last)
    most |= {match.name: baseline_runs(match_design(design), last) for match in study.matches.values()}
    runs = []
    for arm in study.arms:
        ended = set(study.ended(arm)[:most[arm.name]])
        failed = [seed for seed in study.seeds_of(arm) if study.state(arm, seed) == 'failed']
        runs += [load_run(study, arm, seed) for seed in study.seeds_of(arm) if seed in {*ended, *failed}]
    return runs


def load_run(study, arm, seed):
    """Returns the RunResult of one run, from its folder."""
    folder = study.run_folder(arm, seed)
    # a run that is done counts, even if an earlier try failed
    if record := read_run(folder / DONE, 'result', 'init', 'batches', 'windows', 'positions', 'sample'):
        result = record['result']
        # older records do not have them
        evaluations = record.get('evaluations') or logged_evaluations(folder)
        return RunResult(
            arm.name, seed, 'done', val_loss=result['val_loss'], train_loss=result['train_loss'],
            bits_per_byte=result.get('bits_per_byte'),
            seconds=result['seconds'], init=record['init'], batch_hash=record['batches'],
            windows=record['windows'], positions=record['positions'], sample=record['sample'],
            no_sample=record.get('no_sample'), checks=record.get('checks'),
            evaluations=[from_json(line) for line in evaluations])
    # one that diverged or failed
    if failure := read_run(folder / FAILED, 'status', 'reason'):
        return RunResult(arm.name, seed, failure['status'], failure['reason'])
    return RunResult(arm.name, seed, 'missing')


def done_runs(runs, arm):
    return [run for run in runs if run.arm == arm and run.status == 'done']


def mean_columns(rows):
    """Returns the mean of each column, for rows of equal length; None where a column has None."""
    return [None if None in column else sum(column) / len(column) for column in zip(*rows)]


# -----------------------------------------------------------------------------
# the verdicts

def final_losses(runs, arm):
    """Returns {seed: final loss} of an arm, inf if the run diverged; failed and missing runs are left out."""
    return {run.seed: run.val_loss if run.status == 'done' else math.inf
            for run in runs if run.arm == arm and run.status in ('done', 'diverged')}


def verdicts_of(study, runs, plan=True):
    """Returns a study's Verdicts: arms against its baseline, then arms against their matched baselines.

    All arms against the baseline are one family, all against matched ones another. plan: also simulate how
    many runs would settle what is open.
    """
    return judge_looks(study, runs, plan) if study.design else compare_fixed(study, runs)


def judge_study(study, runs):
    """Returns {arm: its Comparison with the study's baseline}, of those that can be compared."""
    baselines = [v for v in verdicts_of(study, runs, plan=False) if v.baseline == study.baseline.name]
    return {arm: c for v in baselines for arm, c in v.comparisons.items()}


def judge_looks(study, runs, plan):
    """Returns the Verdicts of a study with seeds=auto, judged at the looks that were planned."""
    o, losses = study.options, {arm.name: final_losses(runs, arm.name) for arm in study.arms}
    arms = [arm.name for arm in study.judged_arms()]
    found = []
    # an arm without two runs cannot be compared
    arms = [arm for arm in arms if len(losses[arm]) > 1]
    if arms:
        of_arms = {name: losses[name] for name in (study.baseline.name, *arms)}
        found.append(sequential.judge(of_arms, study.design, o.delta, o.alpha, plan=plan))
    matched = []
    for arm, match in study.matches.items():
        if arm in arms and len(losses[match.name]) > 1:
            pair = {match.name: losses[match.name], arm: losses[arm]}
            # each has a baseline of its own, so the level is divided in place of Holm's correction
            level = o.alpha / len(study.matches)
            matched.append(sequential.judge(pair, match_design(study.design), o.delta, level, plan=plan))
    return found + matched


def match_design(design):
    """Returns the design of an arm against a baseline made for it alone, which has about as many runs."""
    return dataclasses.replace(design, baseline_runs=tuple(max(MIN_MATCHED, n) for n in design.plan))


def baseline_runs(design, n):
    """Returns the number of the baseline's runs that an arm of n runs is compared with."""
    if design.test == 'paired':
        return n
    return max(count for look, count in zip(design.plan, design.baseline_plan) if look <= max(n, design.plan[0]))


def compare_fixed(study, runs):
    """Returns the Verdicts of a study with a number of seeds fixed beforehand.

    Arms with other seeds than the rest, because runs failed or an early look decided, get Verdicts of their
    own.
    """
    # arms grouped by their seeds
    by_seeds = {}
    for arm in study.judged_arms():
        by_seeds.setdefault(tuple(final_losses(runs, arm.name)), []).append(arm.name)
    with_baseline = [[study.baseline.name, *arms] for arms in by_seeds.values()]
    with_match = [[study.matches[arm.name].name, arm.name] for arm in study.arms if arm.name in study.matches]
    found = []
    for family in with_baseline, with_match:
        all_verdicts = [v for arms in family if (v := compare_on_common_seeds(study, runs, arms))]
        if len(all_verdicts) > 1:
            comparisons = [c for v in all_verdicts for c in v.comparisons.values()]
            stats.decide(comparisons, study.options.delta, min(v.level for v in all_verdicts))
        found += all_verdicts
    return found


def compare_on_common_seeds(study, runs, arms, seeds=None):
    """Returns the Verdicts on arms, the baseline first, over the seeds that all have; None below two.

    seeds: only these, at a look.
    """
    losses = {arm: final_losses(runs, arm) for arm in arms}
    seeds = study.seeds_of(study.baseline) if seeds is None else seeds
    common = [seed for seed in seeds if all(seed in losses[arm] for arm in arms)]
    if len(common) < 2:
        return None
    losses = {arm: {seed: losses[arm][seed] for seed in common} for arm in arms}
    return stats.compare_arms(losses, delta=study.options.delta, alpha=study.options.alpha, looks=study.looks)


def noise_floor(study, runs):
    """Returns dict(n, mean, sd) of the null arm's differences from the baseline at the same seeds, or None."""
    null = next((arm for arm in study.arms if is_null(arm)), None)
    if null is None:
        return None
    base, moved = (final_losses(runs, arm.name) for arm in (study.baseline, null))
    d = [moved[seed] - base[seed] for seed in moved if math.isfinite(moved[seed] - base.get(seed, math.inf))]
    return dict(n=len(d), mean=statistics.mean(d), sd=statistics.stdev(d)) if len(d) > 1 else None


# -----------------------------------------------------------------------------
# what the report says of an arm

def summarize_run(run):
    """Returns the RunSummary of a RunResult."""
    best = min(run.evaluations, key=lambda e: e['val_loss'], default={})
    return RunSummary(run.seed, run.status, run.val_loss, run.reason, best.get('val_loss'), best.get('iter'),
                      run.train_loss, run.seconds, init_digest(run.init), run.batch_hash, run.bits_per_byte)


def init_digest(init, names=None):
    """Returns one hash of a run's initial values, of all its parameters or of these; None if it is unknown."""
    # before the store, a run kept a single hash
    if init is None or isinstance(init, str):
        return init
    text = ' '.join(init[name] for name in sorted(init) if names is None or name in names)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def curve_of(done):
    """Returns the Curve of an arm's runs that are done."""
    # all runs of an arm are evaluated at the same iterations
    iters = [e['iter'] for e in done[-1].evaluations] if done else []
    val, train = ([[e.get(name) for e in run.evaluations] for run in done] for name in ('val_loss', 'train_loss'))
    return Curve(iters, val, train, [run.seed for run in done])


def stats_of(done, iters):
    """Returns {name: dict(iters, layers [evaluation][layer])} of a variant's statistics, means over runs."""
    names = sorted({name for run in done for e in run.evaluations for name in e if name.startswith('stats.')})
    found = {}
    for name in names:
        rows = [[e[name] for e in run.evaluations] for run in done] # [run][evaluation][layer]
        layers = torch.tensor(rows, dtype=torch.float64).mean(0).tolist() # [evaluation][layer]
        found[name.removeprefix('stats.')] = dict(iters=iters, layers=layers)
    return found


def loss_at_cost(curve, ratio):
    """Returns the LossAtCost of an arm: its mean loss once it has cost what the baseline costs in all.

    ratio: its cost per step over the baseline's; returns None if the arm is not dearer. The loss is read off
    the arm's curve and is too high, because its schedule was not made to end there.
    """
    if not curve.val or ratio <= 1:
        return None
    # the iteration at which the arm has cost as much as the baseline at its end
    iters, losses = curve.iters, mean_columns(curve.val)
    at = iters[-1] / ratio
    # linear between the evaluations before and after
    i = max(n for n, it in enumerate(iters) if it <= at)
    j = min(i + 1, len(iters) - 1)
    share = (at - iters[i]) / (iters[j] - iters[i]) if j > i else 0.0
    return LossAtCost(losses[i] + share * (losses[j] - losses[i]), math.floor(at))


def arm_result(study, arm, runs):
    """Returns the ArmResult of an arm from the study's runs."""
    done = done_runs(runs, arm.name)
    curve = curve_of(done)
    result = ArmResult(
        name=arm.name, variant=arm.options.variant, baseline=arm is study.baseline, options=arm.given,
        runs=[summarize_run(run) for run in runs if run.arm == arm.name],
        curve=curve, stats=stats_of(done, curve.iters),
        position_loss=mean_columns([run.positions for run in done]) if done else None,
        checks=Checks('skipped', [], None), params=None, price=None,
        loss_at_equal_time=None, loss_at_equal_flops=None,
        sample=next((run.sample for run in done if run.sample), None),
        no_sample=next((run.no_sample for run in done if run.no_sample), None))
    # checks and prices exist only if the user wanted them
    if found := (study.findings.checks or {}).get(arm.name):
        result.checks = Checks(**found)
    prices = study.findings.prices or {}
    if price := prices.get(arm.name):
        baseline = prices[study.baseline.name]
        time_ratio, flops_ratio = time_ratio_of(price, baseline), price['flops_per_token'] / baseline['flops_per_token']
        result.params = price['params']
        result.price = Price(price['step_ms'], time_ratio, flops_ratio, price['forward_flops_per_token'],
                             price['flops_per_token'], price['peak_bytes'], price['decode_tokens_per_s'],
                             compile_seconds=price['first_step_seconds'],
                             step_ms_interval=price.get('step_ms_interval'),
                             step_ratio_interval=price.get('step_ratio_interval'))
        result.loss_at_equal_time = loss_at_cost(curve, time_ratio)
        result.loss_at_equal_flops = loss_at_cost(curve, flops_ratio)
    return result


# -----------------------------------------------------------------------------
# the report

def build_report(study, runs):
    """Returns the schema.Report of a study from its RunResults."""
    findings, baseline = study.findings, study.baseline
    verdicts = verdicts_of(study, runs)
    prices = findings.prices or {}
    return Report(
        name=study.folder.name, command=findings.command, config=findings.config, created=findings.created,
        plan=plan_of(study, runs), environment=findings.environment,
        recipe=dataclasses.asdict(baseline.options) | baseline.model_args,
        arms=[arm_result(study, arm, runs) for arm in study.arms],
        comparisons=[report_comparison(study, runs, v, arm) for v in verdicts for arm in v.comparisons],
        tables=[text_table(v, price_columns(v, prices), sentences=sentences(study, v)) for v in verdicts],
        paired=Pairing(**findings.paired) if findings.paired else None, noise_floor=noise_floor(study, runs))


def sentences(study, verdicts):
    """Returns {arm: its verdict in words}, which name the baseline if it was made for the arm."""
    against = {}
    for arm, match in study.matches.items():
        if match.name == verdicts.baseline:
            ratio = match.options.max_iters / study.baseline.options.max_iters
            how = dict(params='as wide', flops=f'of as many FLOPs ({ratio:.2f}x the iterations)',
                       time=f'trained as long ({ratio:.2f}x the iterations)')[study.options.match]
            against[arm] = f'against a baseline {how}: '
    return {arm: against.get(arm, '') + verdict_sentence(c, verdicts) for arm, c in verdicts.comparisons.items()}


def plan_of(study, runs):
    """Returns the Plan of a study."""
    o = study.options
    seeds = sorted({run.seed for run in runs}) if study.design else study.seeds_of(study.baseline)
    plan = Plan(seeds, o.delta, o.alpha, o.looks or None, METRIC, o.match, study.findings.sweep)
    if study.design:
        plan.design, plan.test = study.findings.design, study.design.test
        plan.looks = ', '.join(str(n) for n in study.design.plan if n <= o.max_seeds)
        plan.stored = study.findings.stored
    return plan


def report_comparison(study, runs, verdicts, arm):
    """Returns an arm's ReportedComparison: its Comparison, the interval over text, and its worth in steps."""
    c = verdicts.comparisons[arm]
    baseline_runs, arm_runs = done_runs(runs, verdicts.baseline), done_runs(runs, arm)
    # with paired seeds, those that are done in both arms
    if study.design is None or study.design.test == 'paired':
        common = {run.seed for run in baseline_runs} & {run.seed for run in arm_runs}
        baseline_runs, arm_runs = ([run for run in both if run.seed in common] for both in (baseline_runs, arm_runs))
    text = steps = None
    doubts = [f'its trained model: {name}: {why}' for run in arm_runs for name, _, why in run.checks or () if why]
    # the mean over runs, for each validation window
    if baseline_runs and arm_runs:
        baseline_windows, arm_windows = (mean_columns([run.windows for run in both])
                                         for both in (baseline_runs, arm_runs))
        differences = [a - b for a, b in zip(arm_windows, baseline_windows)]
        text = stats.text_interval(differences, alpha=study.options.alpha)
        text = text and [text['low'], text['high']]
        losses = [statistics.mean(run.val_loss for run in both) for both in (arm_runs, baseline_runs)]
        positions = [mean_columns([run.positions for run in both]) for both in (baseline_runs, arm_runs)]
        doubts += suspicions(losses[0] - losses[1], losses[1], *positions, text, c.interval)
    # by the slope of the baseline's mean curve at its end
    if c.mean is not None:
        curve = curve_of(baseline_runs)
        steps = stats.step_equivalents(c.mean, curve.iters, mean_columns(curve.val))
    return ReportedComparison(
        **vars(c), arm=arm, baseline=verdicts.baseline, words=sentences(study, verdicts)[arm],
        level=verdicts.level, text_interval=text, step_equivalents=steps, suspicions=doubts)


def price_columns(verdicts, prices):
    """Returns {title: {arm: text}} for the text table: the arms' costs over the baseline's."""
    baseline = prices.get(verdicts.baseline)
    if not baseline:
        return {}
    arms = [arm for arm in verdicts.arms if arm in prices]
    return {'ms x': {arm: f'{time_ratio_of(prices[arm], baseline):.2f}' for arm in arms},
            'FLOP x': {arm: f'{prices[arm]["flops_per_token"] / baseline["flops_per_token"]:.2f}' for arm in arms}}


def time_ratio_of(price, baseline):
    """Returns an arm's time of a step over the baseline's: the median over rounds, where it was measured so."""
    return price.get('step_ratio', price['step_ms'] / baseline['step_ms'])


def check_pairing(study, runs):
    """Returns the Pairing of the arms' runs, and prints one line per seed that arms share."""
    # a baseline that is trained longer has other batches
    iterations = study.baseline.options.max_iters
    paired = {arm.name for arm in study.arms if not is_null(arm) and arm.options.max_iters == iterations}
    shared = study.shared_parameters()
    batches_equal = init_equal = True
    for seed in dict.fromkeys(run.seed for run in runs):
        # one hash per seed if all arms saw the same
        done = [run for run in runs if run.seed == seed and run.status == 'done' and run.arm in paired]
        batches, inits = {run.batch_hash for run in done}, {init_digest(run.init, shared) for run in done}
        batches_equal, init_equal = batches_equal and len(batches) <= 1, init_equal and len(inits) <= 1
        if len(done) > 1:
            words = ['equal' if len(hashes) == 1 else 'NOT EQUAL' for hashes in (batches, inits)]
            print(f'seed {seed}: batches {words[0]} in {len(done)} arms ({min(batches)}), '
                  f'initial values of {len(shared)} shared parameters {words[1]} ({min(inits)})')
    note = f'{len(shared)} parameters that all arms share start equal' if init_equal else 'initial values differ'
    return Pairing(batches_equal, init_equal, note)
