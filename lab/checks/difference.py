"""Does an arm compute anything that the baseline does not? A verdict on one that does not is about nothing."""
import dataclasses
from contextlib import suppress

import torch

from configurator import options_of
from core.assemble import defines, short_name
from core.errors import Stop
from lab.checks.judged import move_weights
from lab.checks.models import iteration, tokens
from lab.checks.settings import candidate_values
from lab.checks.state import same_circumstances
from model import SLOTS, GPTConfig, Step, build, load_classes

# relative to the largest number: what another order of sums explains in float64
ROUNDING = 1e-9
# passes in training in which noise that is drawn in one of five must show
DRAWS = 64


def why_idle(variant, baseline, model_args, base_args, max_iters, optimizer='adamw'):
    """Returns 'is the baseline: why', or 'is the same without b: why' for a part of a+b; None if all of it acts.

    Arguments as for is_baseline().
    """
    if why := why_baseline(variant, baseline, model_args, base_args, max_iters, optimizer):
        return f'is the baseline: {why}'
    parts = variant.split('+')
    for part in parts if len(parts) > 1 else ():
        if part in baseline.split('+'):
            continue
        rest = '+'.join(other for other in parts if other != part)
        known = options_of(load_classes(rest).GPTConfig)
        rest_args = {name: value for name, value in model_args.items() if name in known}
        if why := why_baseline(variant, rest, model_args, rest_args, max_iters, optimizer, part):
            return f'is the same without {short_name(part)}: {why}'
    return None


def why_baseline(variant, baseline, model_args, base_args, max_iters, optimizer='adamw', part=None):
    """Returns why a variant's model does what the baseline's does, as is_baseline() sees it; None if it does not.

    The answer names an option that would change it, where one does, or else what the variant defines. part: of
    the variant, that the baseline lacks; None: all of it.
    """
    part = part or variant

    def same(**changed):
        return is_baseline(variant, baseline, model_args | changed, base_args, max_iters, optimizer)

    if not same():
        return None
    name, files, core_options = short_name(part), load_classes(part).files, options_of(GPTConfig)
    own = {n: o for n, o in options_of(load_classes(part).GPTConfig).items() if n not in core_options}
    values = {n: model_args.get(n, o.default) for n, o in own.items()}
    for option, value in values.items():
        for candidate in sum(candidate_values(dataclasses.replace(own[option], default=value)), []):
            # 32 for an int, not 32.0
            candidate = int(candidate) if isinstance(value, int) and candidate == candidate // 1 else candidate
            # not every value is allowed
            with suppress(Stop):
                if not same(**{option: candidate}):
                    sizes = ', '.join(f'{n}={model_args[n]}' for n in ('block_size', 'n_layer', 'n_head', 'dropout'))
                    return f'{name} does nothing with {option}={value} at {sizes}; {option}={candidate} would'
    defined = [f'{slot.__name__}.{method}' for file in files for slot in SLOTS
               if (c := defines(file, slot.__name__)) for method in vars(c) if callable(vars(c)[method])]
    return (f'nothing that {name} defines ({", ".join(defined) or "no method"}) changes logits, loss, gradients, '
            'initial values or the optimizer')


@torch.random.fork_rng(devices=[])
def is_baseline(variant, baseline, model_args, base_args, max_iters, optimizer='adamw', seed=1):
    """Returns True if a variant's model computes and learns what the baseline's does.

    model_args, base_args: fields of their GPTConfigs. Compared are initial values, the optimizer, and with
    moved weights the logits, for one row, and the loss in training, with its noise, and its gradients, for two
    rows, in the middle of training, at its start and its end, on the CPU in float64. Parameters of the variant's
    own count only if they change one of these.
    """
    # whatever computes attention, the definition is the same
    args = (variant, model_args | dict(attn='auto')), (baseline, base_args | dict(attn='auto'))
    for sign in 1, -1:
        models = [build(name, seed, **own) for name, own in args]
        if not same_start(*models) or optimizer_of(models[0], models[1], optimizer) != optimizer_of(
                models[1], models[1], optimizer):
            return False
        for model in models:
            model.schedule_iters = max_iters
            move_weights(model.double(), sign)
        for it in max_iters // 2, 0, max_iters:
            if not same_evaluation(*models, it) or not same_training(*models, it):
                return False
    return True


def same_start(model, base):
    """Returns True if the model has all parameters of the base, with the same initial values."""
    found = dict(model.named_parameters())
    return all(name in found and torch.equal(found[name], p) for name, p in base.named_parameters())


def optimizer_of(model, base, optimizer):
    """Returns the optimizer's type, and {parameter: settings of its group} for those that the base has too."""
    made = model.configure_optimizers(0.1, 1e-3, (0.9, 0.95), 'cpu', optimizer)
    names, shared = {p: name for name, p in model.named_parameters()}, dict(base.named_parameters())
    settings = {names[p]: {key: value for key, value in group.items() if key != 'params'}
                for group in made.param_groups for p in group['params'] if names[p] in shared}
    return type(made), settings


@torch.no_grad()
def same_evaluation(model, base, it):
    """Returns True if two models have the same logits at iteration `it`, as evaluation computes them."""
    idx = tokens(base, 1)
    logits = []
    for m in model, base:
        with same_circumstances(m):
            logits.append(m.eval()(idx, step=Step(it=iteration(it), stats={}, all_positions=True))[0])
    return is_same(*logits)


def same_training(model, base, it):
    """Returns True if two models have the same loss and gradients at iteration `it`, and draw noise to no effect."""
    (loss, grads, drawn), (want, want_grads, want_drawn) = (training_pass(m, it) for m in (model, base))
    if not is_same(loss, want) or not all(name in grads and is_same(grads[name], g) for name, g in want_grads.items()):
        return False
    # noise may come seldom
    for seed in range(1, DRAWS) if not torch.equal(drawn, want_drawn) else ():
        if not is_same(*(training_pass(m, it, seed, backward=False)[0] for m in (model, base))):
            return False
    return True


def training_pass(model, it, seed=0, backward=True):
    """Returns the objective, {parameter: gradient}, and the state of the generator after a pass in training."""
    # two rows, which may mix
    idx = tokens(model, 2, seed=seed)
    with torch.set_grad_enabled(backward), same_circumstances(model, seed):
        loss, _ = model.train().objective(idx, idx.roll(-1, 1), iteration(it))
        drawn = torch.get_rng_state()
        if backward:
            model.zero_grad()
            loss.backward()
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return loss.detach(), grads, drawn


def is_same(got, want):
    """Returns True if two tensors differ by no more than rounding."""
    return got.shape == want.shape and bool((got - want).abs().max() <= ROUNDING * (1 + want.abs().max()))
