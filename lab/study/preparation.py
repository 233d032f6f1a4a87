"""Preparations before training: leak checks, learning rates, prices, and matched baselines."""
import dataclasses
from contextlib import suppress

from core import ROOT
from core.errors import Stop
from core.run.files import read_json, write_json
from lab import checks
from lab.study.arm import matched_baseline, scale_lr
from lab.study.cells import first_of_each_shape
from lab.study.pool import WorkerDied
from lab.study.results import load_run
from lab.study.store import RUNS, code_hash, read_or_warn, write_shared
from lab.study.worker import CheckTask, PriceTask
from lab.timing import holds_one, ratio_text


def prepare(study, runner, factors):
    """Prepares what the study's options ask for: fills in study.findings, study.arms and study.matches.

    factors: of the learning rate, to be tried. Raises Stop if an arm leaks, fails or does not fit.
    """
    o, findings = study.options, study.findings
    refuse_idle_arms(study)
    # leak checks first, because they may refuse an arm
    # older commands and studies say True or False
    which = {True: 'all', False: 'none'}.get(o.check, o.check)
    if which != 'none':
        findings.checks = check_arms(study, runner, which)
    # from here on the arms have their final learning rates
    if factors:
        findings.sweep = sweep_lr(study, runner, factors)
    if o.price or o.match in ('flops', 'time'):
        findings.prices = price_arms(study, runner, 'price.json')
    if o.match != 'none':
        study.matches = {arm.name: matched_baseline(study.baseline, arm, o.match, findings.prices)
                         for arm in study.judged_arms()}
        study.arms += study.matches.values()
        # wider baselines are timed, together with all others, because ratios hold within one session; longer
        # ones are the baseline's own model
        if o.price and o.match == 'params':
            findings.prices = price_arms(study, runner, 'price_matched.json')
        elif o.price:
            findings.prices |= {match.name: findings.prices[study.baseline.name]
                                for match in study.matches.values()}
    note_device(study)


def prepare_cells(study, runner):
    """Prepares a study with cells as prepare() does, once for all cells of a shape: text and rates leak nothing."""
    findings, checked, prices = study.findings, {}, {}
    which = {True: 'all', False: 'none'}.get(study.options.check, study.options.check)
    for n, cell in enumerate(first_of_each_shape(study.cells)):
        # the cell's arms as a study of their own, in the same folder
        view = dataclasses.replace(study, arms=list(cell.arms.values()), cells=[])
        refuse_idle_arms(view)
        if which != 'none':
            checked |= check_arms(view, runner, which)
        if study.options.price:
            found = price_arms(view, runner, f'price_{n}.json' if n else 'price.json')
            # a step costs what it does in the other cells of the shape
            for other in study.cells:
                if other.shape == cell.shape:
                    prices |= {other.arms[name].name: found[arm.name] for name, arm in cell.arms.items()}
    findings.checks, findings.prices = checked or None, prices or None
    note_device(study)


def note_device(study):
    """Notes the device's name, dtype and compile, as the workers saw them when they timed the arms."""
    device = read_json(study.folder / 'price.json') or {}
    study.findings.environment |= {name: device[name] for name in ('device', 'dtype', 'compile') if name in device}


def refuse_idle_arms(study):
    """Stop if an arm trains as the baseline does, and its variant computes nothing else either.

    Where options of training differ, a line says that they are all that differs.
    """
    base = study.baseline
    for arm in study.judged_arms():
        o, why = arm.options, None
        # the same attention in another way has another price
        model_args = arm.model_args | dict(attn=base.model_args['attn'])
        if (o.variant, model_args) == (base.options.variant, base.model_args):
            continue
        # a model that crashes is named by its checks, or when it is trained
        with suppress(Exception):
            why = checks.why_idle(o.variant, base.options.variant, model_args, base.model_args, o.max_iters,
                                  o.optimizer)
        if why is None:
            continue
        if dataclasses.replace(o, variant=base.options.variant) == base.options and model_args == arm.model_args:
            raise Stop(f'arm {arm.name} {why}')
        print(f'arm {arm.name} {why}; its options of training are all that differs')


def check_arms(study, runner, which):
    """Returns {arm: dict(status, lines, why)}, the results of its checks.

    which: all, or leaks alone. Raises Stop if an arm fails a check, or has a leak that its variant does not
    declare.
    """
    # what the store knows of this very arm is not looked for again
    found = {arm.name: stored for arm in study.arms if (stored := stored_checks(study, arm, which))}
    if found:
        print(f'checked before, and ok: {", ".join(found)}')
    # filled in the order in which the arms' checks end
    for task, result in runner.run([CheckTask(arm, which) for arm in study.arms if arm.name not in found]):
        arm = task.arm
        if why := failure(result):
            raise Stop(f'arm {arm.name}: its variant cannot be checked: {why}; --check=none trains it unchecked')
        outcomes = result.value # [(check, what it found, why it failed)]
        if failed := [(name, why) for name, _, why in outcomes if why]:
            raise Stop(refusal(arm.name, failed))
        # a leak that the variant declares for these options
        why = checks.leak_reason(arm.options.variant, arm.variant_args)
        lines = [f'{name}: {line}' for name, line, _ in outcomes]
        found[arm.name] = dict(status='declared leak' if why else 'ok', why=why, lines=lines)
        declared = sum('declared' in line for _, line, _ in outcomes)
        if why:
            print(f'leak suite, {arm.name}: declares a leak in training: {why}')
        else:
            also = f', {declared} declared leaks of other options seen' if declared else ''
            print(f'leak suite, {arm.name}: {len(outcomes)} checks ok{also}')
        record = dict(identity=study.key(arm), which=which, code=checks_code(), found=found[arm.name])
        write_shared(checks_file(study, arm), record)
    return {arm.name: found[arm.name] for arm in study.arms}


def checks_file(study, arm):
    """Returns the path of what checks have found in an arm."""
    return RUNS / study.key(arm) / 'checks.json'


def checks_code():
    """Returns a hash of the code of the checks."""
    return ' '.join(code_hash(path) for path in sorted(ROOT.glob('lab/checks/*.py')))


def stored_checks(study, arm, which):
    """Returns what these checks have found in this very arm before, or None."""
    saved = read_or_warn(checks_file(study, arm)) or {}
    # older records do not name their identity
    here = saved.get('identity', study.key(arm)) == study.key(arm)
    as_many = saved.get('which') in (which, 'all')
    return saved['found'] if here and as_many and saved['code'] == checks_code() else None


def refusal(arm, failed):
    """Returns the message for the checks that an arm failed, (check, why) each, and prints all but the first."""
    for name, why in failed[1:]:
        print(f'arm {arm}: {name}: {why}')
    name, why = failed[0]
    # what is wrong beside leaks must not turn off the checks for leaks
    if name.startswith(checks.LEAKS):
        advice = 'a leak in training can be declared in LEAKS, --check=none trains without any check'
    else:
        advice = '--check=leaks looks for leaks alone'
    return f'arm {arm}: {name}: {why}; {advice}'


def failure(result):
    """Returns the reason why a task has no value, or its process's exit code; None if it has one."""
    if isinstance(result, WorkerDied):
        return str(result.exitcode)
    return result.reason if result.status != 'done' else None


def price_arms(study, runner, file):
    """Returns {arm: numbers of lab/timing.py}.

    They come from the file if it is about these arms: iterations that were matched to them must not move.
    """
    path = study.folder / file
    identity = {arm.name: study.identity(arm) for arm in study.arms}
    # the same arms and the same code: the same prices
    saved = read_json(path)
    if saved is None or saved.get('identity') != identity:
        # a baseline is trained for minutes by this ratio, so that it is worth some seconds on a noisy machine
        seconds = 5.0 if study.options.match == 'time' else PriceTask.seconds
        (_, result), = runner.run([PriceTask(tuple(study.arms), seconds)])
        if why := failure(result):
            raise Stop(f'timing the arms: {why}')
        saved = dict(identity=identity, status='done', **result.value)
        write_json(path, saved)
    prices = saved['results']
    baseline = prices[study.baseline.name]
    for name, p in prices.items():
        memory = f", {p['peak_bytes'] / 2**20:,.0f} MiB" if p['peak_bytes'] else ''
        slower = '' if p is baseline else f', {ratio_sentence(p, baseline)}'
        print(f"price, {name}: {p['params'] / 1e6:.2f}M parameters, {p['flops_per_token'] / 1e6:.1f} MFLOPs "
              f"a token{memory}, {p['step_ms']:.2f} ms a step{slower}")
    return prices


def ratio_sentence(price, baseline):
    """Returns '1.09x [1.08, 1.11]', a step's time over the baseline's, and whether it can be told from 1."""
    # files that older code wrote have no interval
    interval = price.get('step_ratio_interval')
    ratio = price.get('step_ratio', price['step_ms'] / baseline['step_ms'])
    return ratio_text(ratio, interval) + (', no dearer than can be seen' if holds_one(interval) else '')


def sweep_lr(study, runner, factors):
    """Gives each arm the best of these factors on its learning rate, on a seed that the study does not use.

    Returns the seed and all losses.
    """
    seed, losses, chosen = study.options.first_seed + 10_000, {}, []
    tried = {(arm.name, factor): dataclasses.replace(scale_lr(arm, factor), name=f'{arm.name} lr x{factor:g}')
             for arm in study.arms for factor in factors}
    runner.train([(arm, seed) for arm in tried.values()])
    # the best of each arm; rates that failed do not count
    for arm in study.arms:
        found = {factor: load_run(study, tried[arm.name, factor], seed).val_loss for factor in factors}
        losses[arm.name] = {f'{factor:g}': loss for factor, loss in found.items()}
        present = {factor: loss for factor, loss in found.items() if loss is not None}
        if not present:
            raise Stop(f'lr_sweep: no learning rate works for {arm.name}')
        best = min(present, key=present.get)
        chosen.append(scale_lr(arm, best) if best != 1 else arm)
        lines = ', '.join(f'x{factor:g} {loss:.4f}' for factor, loss in present.items())
        print(f'lr_sweep, {arm.name}: {lines}; x{best:g} is used')
    study.arms[:] = chosen
    return dict(seed=seed, losses=losses)
