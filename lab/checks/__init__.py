"""What must hold for every variant, as functions: each raises Failed, by its own name, where it does not.

They take a model, or a variant's name and options, know no variant, and need torch and the model code alone, so that
other programs can use them. All models are small, on the CPU, without dropout, in float64 where it matters.
"""
import contextlib
import math
import time
from functools import partial
from itertools import combinations
from random import Random
from typing import Literal, NamedTuple, get_args, get_origin

import torch
import torch.nn.functional as F
from safetensors.torch import load as load_tensors, save as save_tensors

from configurator import options_of, parse_option
from core.errors import Stop
from core.rng import generator, seed_cpu
from core.run.checkpoint import load_model_tensors, model_tensors
from model import GPTConfig, Step, build, load_classes

SMALL = dict(block_size=32, vocab_size=65, n_layer=2, n_head=3, n_embd=24)
ITS = 0, 3, 1000 # iterations at which schedules are looked at


class Failed(AssertionError):
    pass


class Leak(Failed):
    pass


def require(ok, text, failure=Failed):
    if not ok:
        raise failure(text)


# -- models and inputs

def small(variant='base', shake=0.0, seed=1, dtype=torch.float64, **options):
    model = build(variant, seed, **SMALL | options).to(dtype)
    shake_weights(model, shake)
    return model


@torch.no_grad()
def shake_weights(model, scale, seed=0, only=None):
    """Adds noise by the parameter's name: what two models share stays shared. Initial weights hide much, zeros most."""
    for name, p in model.named_parameters():
        if scale and (only is None or name in only):
            p += scale * torch.randn(p.shape, generator=generator(seed, 'shake', name), dtype=torch.float64).to(p.dtype)


def tokens(model, B=3, T=None, seed=0):
    c = model.config
    return torch.randint(c.vocab_size, (B, T or c.block_size), generator=generator(seed, 'tokens'))


def others(idx, vocab_size, seed):
    """Tokens that all differ from idx."""
    return (idx + torch.randint(1, vocab_size, idx.shape, generator=generator(seed, 'others'))) % vocab_size


def at(it):
    return torch.tensor(float(it))


@contextlib.contextmanager
def same_circumstances(model):
    """Noise by a fixed seed, and buffers, which training may update, put back afterwards."""
    before = [(b, b.clone()) for b in model.buffers()]
    seed_cpu(0)
    try:
        yield
    finally:
        with torch.no_grad():
            for b, old in before:
                b.copy_(old)


def logits_of(model, idx, it=0):
    """Logits of every position (B, T, V)."""
    with same_circumstances(model):
        return model(idx, idx, Step(it=at(it)))[0]


def hold_inputs(model):
    """(held, hook): what comes out of wte until hook.remove(), as inputs with a gradient."""
    held = []

    def as_input(module, args, out):
        held.append(out.detach().requires_grad_())
        return held[-1]
    return held, model.transformer.wte.register_forward_hook(as_input)


def allowed(GPTConfig, options):
    """Whether the small model takes values of the right type together."""
    with contextlib.suppress(Stop):
        return bool(GPTConfig(**SMALL | options))


def choices(variant):
    """{option of the variant: values to look at}: the default, other words, a switch turned, a number doubled and 0."""
    found, core_options = {}, options_of(GPTConfig)
    VariantConfig = load_classes(variant).GPTConfig
    for name, option in options_of(VariantConfig).items():
        if name in core_options:
            continue
        default, kinds = option.default, (option.kind, *get_args(option.kind))
        words = [word for kind in kinds if get_origin(kind) is Literal for word in get_args(kind)]
        if words:
            tries = [[word] for word in words]
        elif isinstance(default, bool):
            tries = [[not default]]
        elif isinstance(default, str):
            tries = []
        else:
            tries = [[2 * default, default / 2], [0]] if default else [[4, 0.5]]
        found[name] = [default]
        for values in tries: # of each, the first that is allowed
            for value in values:
                with contextlib.suppress(Stop):
                    if parse_option(option, value, '') != default and allowed(VariantConfig, {name: value}):
                        found[name].append(value)
                        break
    return found


def settings(variant):
    """A few settings of the variant's options in which each pair of choices meets, for one option may hide what another
    does. First without the rules that are declared to see the future, then with them for the pairs left."""
    values, draw, rules = choices(variant), Random(variant).choice, leak_rules(variant) # noqa: S311
    pairs = lambda setting: set(combinations(setting.items(), 2)) | set(setting.items())
    met, GPTConfig = set(), load_classes(variant).GPTConfig
    for leaky in False, True:
        while True:
            drawn = [{name: draw(some) for name, some in values.items()} for _ in range(100)]
            drawn = [s for s in drawn if leaky or not any(rule.items() <= s.items() for rule, _ in rules)]
            drawn.sort(key=lambda s: -len(pairs(s) - met))
            best = next((s for s in drawn if pairs(s) <= met or allowed(GPTConfig, s)), {})
            if pairs(best) <= met:
                break
            met |= pairs(best)
            yield {name: value for name, value in best.items() if value != values[name][0]}


def neutral(variant):
    for file in load_classes(variant).files:
        require(isinstance(getattr(file, 'NEUTRAL', None), dict),
                f'neutral: {file.__name__} has no NEUTRAL = dict(option=value), the options that make it the baseline')
    return {name: value for file in load_classes(variant).files for name, value in file.NEUTRAL.items()}


def leak_rules(variant):
    """[(options, why)]: with these the variant says that it sees the future, or other rows, in training."""
    return [rule for file in load_classes(variant).files for rule in getattr(file, 'LEAKS', [])]


def leak_reason(variant, options):
    """The why for these options, None where there is none."""
    values = {name: o.default for name, o in options_of(load_classes(variant).GPTConfig).items()} | options
    return next((why for rule, why in leak_rules(variant) if rule.items() <= values.items()), None)


# -- no position sees a later one, no row another

@torch.no_grad()
def suffix_swap(model, times=None, seed=0, it=0):
    """Logits before t are the same bits whatever the tokens from t on. Sees choices, to which gradients are blind.
    Each row has a t of its own: that rows do not see each other is for row_swap to say, beforehand."""
    T, vocab = model.config.block_size, model.config.vocab_size
    random = torch.randint(2, T - 1, (2,), generator=generator(seed, 'times')).tolist()
    t = torch.tensor([1, T // 2, T - 1, *random] if times is None else times).repeat(4)[:, None] # (B, 1)
    idx, later = tokens(model, len(t), seed=seed), torch.arange(T) >= t # (B, T)
    logits = logits_of(model, idx, it)
    require(logits.isfinite().all(), 'suffix swap: logits are not finite')
    moved = (logits_of(model, torch.where(later, others(idx, vocab, seed), idx), it) != logits).any(-1) # (B, T)
    leaky, deaf = (t[rows.any(-1), 0].tolist() for rows in (moved & ~later, later & ~moved))
    require(not leaky, f'suffix swap: logits before {leaky[:1]} change with the tokens from there on', Leak)
    require(not deaf, f'suffix swap: some logits from {deaf[:1]} on do not depend on their own token')


@torch.no_grad()
def row_swap(model, seed=0, it=0):
    """A row's logits are the same bits whatever the other rows."""
    idx = tokens(model, 4, seed=seed)
    logits = logits_of(model, idx, it)
    for keep in range(4):
        swapped = others(idx, model.config.vocab_size, (seed, keep))
        swapped[keep] = idx[keep]
        moved = (logits_of(model, swapped, it) != logits).any(-1).any(-1)
        require(not moved[keep], f'row swap: the logits of row {keep} change with the other rows', Leak)
        require(moved.sum() == 3, 'row swap: some logits do not depend on their own row')


def jacobian(model, seed=0, it=0):
    """The gradient of logits at t is exactly 0 for later inputs and other rows, and lives for its own. Returns how many
    earlier inputs have one, which a shut gate may bring to 0."""
    T, past = model.config.block_size, 0
    idx, (held, hook) = tokens(model, seed=seed), hold_inputs(model)
    logits = logits_of(model, idx, it)
    hook.remove()
    require(held, 'Jacobian: the tokens do not pass through transformer.wte')
    for t in (0, 1, T // 2, T - 1):
        row = t % len(idx)
        probe = torch.randn(model.config.vocab_size, generator=generator(seed, t), dtype=logits.dtype)
        grads = torch.autograd.grad((logits[row, t] * probe).sum(), held, retain_graph=True)
        live = sum((grad != 0).any(-1) for grad in grads) > 0 # (B, T)
        require(not live[row, t + 1:].any(), f'Jacobian: logits at {t} depend on later inputs', Leak)
        require(not live[torch.arange(len(idx)) != row].any(), f'Jacobian: logits of row {row} depend on other rows', Leak)
        require(live[row, t], f'Jacobian: logits at {t} do not depend on their own input')
        past += live[row, :t].sum().item()
    return past


def causal(model, its=ITS):
    """All three, for the model as it is, in its present mode, on other tokens at every iteration."""
    for it in its:
        row_swap(model, it, it)
        suffix_swap(model, None, it, it)
    require(sum([jacobian(model, it, it) for it in its]) > 0, 'Jacobian: no position looks at an earlier one')


def leaks(make, seeds=range(5)):
    """Whether any of several models, in training, is seen to look where it must not."""
    for seed in seeds:
        model = make(seed=seed).train()
        for it in ITS:
            for check in suffix_swap, row_swap:
                try:
                    check(model, seed=seed, it=it)
                except Leak:
                    return True
    return False


def trained(variant, steps=30, seed=1, **options):
    """A small model after a few AdamW steps with a large learning rate on random tokens: gates have moved, buffers filled."""
    model = small(variant, 0.0, seed, **options).train()
    optimizer = model.configure_optimizers(0.1, 0.03, (0.9, 0.95), 'cpu')
    for it in range(steps):
        idx = tokens(model, 4, seed=(seed, 'train', it))
        optimizer.zero_grad(set_to_none=True)
        seed_cpu(it)
        model(idx[:, :-1], idx[:, 1:], Step(it=at(it)))[1].backward()
        optimizer.step()
    return model


def below_chance(variant, T=8, steps=800, seed=1, vocab=16, **options):
    """Training on fresh uniform tokens, which nothing can foretell but a look at them: how far the mean loss is below
    ln(vocab), in standard errors, over the last third of training, and in evaluation after it."""
    c = dict(block_size=32, vocab_size=vocab, n_layer=2, n_head=2, n_embd=32) | options
    model, losses = build(variant, seed, **c), {True: [], False: []}
    optimizer = model.configure_optimizers(0.0, 1e-2, (0.9, 0.99), 'cpu')
    for it in range(steps + 100):
        training = it < steps
        idx = torch.randint(vocab, (512 // T, T + 1), generator=generator(seed, 'uniform', it))
        x, y = idx[:, :-1], idx[:, 1:]
        seed_cpu(it)
        with torch.set_grad_enabled(training):
            step = Step(it=at(it))
            logits, loss = model.train(training)(x, y, step)
        if it >= steps * 2 // 3:
            losses[training].append(F.cross_entropy(logits.flatten(0, 1), y.flatten()).item())
        if training:
            for group in optimizer.param_groups: # up, held, and down to 0
                group['lr'] = 1e-2 * group['lr_scale'] * min(1, (it + 1) / 20, 2 - 2 * it / steps)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
    mean = {training: torch.tensor(some, dtype=torch.float64) - math.log(vocab) for training, some in losses.items()}
    return tuple((-m.mean() / (m.std() / len(m) ** 0.5)).item() for m in (mean[True], mean[False]))


def uniform_tokens(variant, runs=((8, 1), (8, 2), (8, 3), (8, 4), (32, 5)), errors=4, declared=None, **options):
    """No loss below chance by 4 standard errors in any run of (T, seed). Sees leaks of any kind, through choices, targets or
    state too, where they are learned: a top-k over the row is in every second run, in short rows sooner than in long ones.
    With a declared leak only evaluation has to be at chance; returns whether training was below."""
    seen = False
    for T, seed in runs:
        train, evaluation = below_chance(variant, T, seed=seed, **options)
        where = f'of uniform tokens, T={T}, seed {seed}, is below ln V by'
        require(evaluation < errors, f'uniform tokens: evaluation loss {where} {evaluation:.1f} standard errors', Leak)
        require(declared or train < errors, f'uniform tokens: training loss {where} {train:.1f} standard errors', Leak)
        seen = seen or train >= errors
    return seen


# -- what is evaluated is what is decoded

@torch.no_grad()
def stateless(model):
    """A pass leaves nothing behind that the next one sees. In training a buffer may."""
    was = model.training
    for training in [False] + [True] * (not list(model.buffers())):
        model.train(training)
        a, b = tokens(model, seed=1), tokens(model, seed=2)
        results = []
        for idx in a, b, a:
            seed_cpu(0)
            results.append(model(idx, idx)[0])
        require(torch.equal(results[0], results[2]), 'stateless: the same tokens give other logits after another batch')
    model.train(was)


@torch.no_grad()
def decoding(model, its=ITS, atol=1e-9):
    """Token by token, in chunks, after a long context: with the cache, the logits of one full pass; each at its iteration."""
    model.eval()
    idx = tokens(model, 2)
    T = idx.size(1)
    for it, sizes in zip(its, ([1] * T, [5] + [1] * 4 + [3] * 2 + [1] * (T - 15), [T - 4, 3, 1])):
        full = logits_of(model, idx, it)
        last, _ = model(idx, step=Step(it=at(it)))
        require(torch.allclose(last, full[:, -1:], rtol=0, atol=atol), 'decoding: without targets, other last logits')
        cache, done = [{} for _ in model.transformer.h], 0
        for size in sizes:
            new = idx[:, done:done + size]
            pos = None if done == 0 else torch.arange(done, done + size).expand(2, -1)
            logits, _ = model(new, new, Step(pos, at(it), cache))
            off = (logits - full[:, done:done + size]).abs().max().item()
            require(off <= atol * (1 + full.abs().max().item()),
                    f'decoding: {size} tokens after {done} in the cache: logits off by {off:.1e} from one full pass')
            done += size


@torch.no_grad()
def generating(model):
    """Greedy generate(), cache and all, past block_size too, is the plain loop over the last block_size tokens."""
    model.eval()
    idx, size = tokens(model, 2, 5), model.config.block_size
    got = model.generate(idx, size + 3, temperature=0)
    for _ in range(size + 3):
        idx = torch.cat((idx, model(idx[:, -size:])[0][:, -1].argmax(-1, keepdim=True)), dim=1)
    require(torch.equal(got, idx), 'generating: greedy tokens differ from those without a cache')


# -- the same numbers

def near(what, got, want, tol, floor=0.0):
    """Relative RMS; floor: below what scale want counts as zero."""
    off, scale = (got - want).double().square().mean().sqrt().item(), want.double().square().mean().sqrt().item()
    require(math.isfinite(off) and off <= tol * max(scale, floor), f'{what}: off by {off:.1e}, size {scale:.1e}')


def near_grads(what, got, want, tol):
    """Each of a dict of gradients; one that is zero but for rounding is measured against a thousandth of the others."""
    floor = 1e-3 * torch.stack([g.double().square().mean() for g in want.values()]).mean().sqrt().item()
    for name in want:
        near(f'{what}: the gradient of {name}', got[name], want[name], tol, floor)


def outputs_and_grads(model, idx, it=0, seed=0):
    """Logits, loss, and gradients, for parameters and embedded tokens, of the loss plus logits times a cotangent."""
    held, hook = hold_inputs(model)
    model.zero_grad()
    with same_circumstances(model):
        logits, loss = model(idx, idx, Step(it=at(it)))
    hook.remove()
    cotangent = torch.randn(logits.shape, generator=generator(seed, 'cotangent'), dtype=torch.float64).to(logits.dtype)
    ((logits * cotangent).sum() / len(idx) + loss).backward()
    grads = {name: torch.zeros_like(p) if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}
    return logits.detach(), loss.detach(), grads | {f'input {i}': x.grad for i, x in enumerate(held)}


def fast_path(model, impl, T, tol):
    """attn=impl gives what attn=math gives, outputs and all gradients."""
    idx = tokens(model, 2, T)
    results = {}
    for attn in 'math', impl:
        model.config.attn = attn
        results[attn] = outputs_and_grads(model, idx)
    (want, _, grads), (got, _, got_grads) = results['math'], results[impl]
    near(f'fast path: logits by {impl} at T={T}', got, want, tol)
    near_grads(f'fast path: {impl} at T={T}', got_grads, grads, tol)


def draws(model):
    """Whether a pass in training draws random numbers."""
    with same_circumstances(model):
        before = torch.get_rng_state()
        model.train()(tokens(model))
        return not torch.equal(torch.get_rng_state(), before)


def neutral_is_base(variant, options, than='base', tol=1e-6, **core_options):
    """With NEUTRAL as options: the baseline's logits, loss and gradients, whatever the weights. An empty NEUTRAL says
    that the variant's own weights do it as they start. For a variant a+b and the NEUTRAL of b, than is a; one that draws
    noise in training would draw other noise there, with b's modules among its own."""
    base, model = small(than, shake=0.3, **core_options), small(variant, **options, **core_options)
    shared = {name: p for name, p in model.named_parameters() if name in dict(base.named_parameters())}
    require(len(shared) == len(list(base.parameters())), f'neutral: {than} has parameters that {variant} lacks')
    shake_weights(model, 0.3, only=None if options else shared)
    with torch.no_grad():
        for name, p in base.named_parameters():
            shared[name].copy_(p)
    idx = tokens(model)
    for training in [False] if draws(base) else [False, True]:
        for it in ITS:
            logits, loss, grads = outputs_and_grads(base.train(training), idx, it)
            own_logits, own_loss, own_grads = outputs_and_grads(model.train(training), idx, it)
            near('neutral: logits', own_logits, logits, tol)
            near('neutral: loss', own_loss, loss, tol)
            near_grads('neutral', own_grads, grads, tol)


def shared_start(variant):
    """What the variant shares with the baseline, under NEUTRAL all of it, starts with the same bits, by seed."""
    base = dict(small('base', seed=7).named_parameters())
    for options in {}, neutral(variant) if variant != 'base' else {}:
        model, other = (dict(small(variant, seed=seed, **options).named_parameters()) for seed in (7, 8))
        for name, p in base.items():
            same = name in model and model[name].shape == p.shape
            require(same or not options, f'shared start: {name} is missing with {options}')
            require(not same or torch.equal(model[name], p), f'shared start: {name} differs from the baseline')
    require(any(not torch.equal(other[name], p) for name, p in model.items()), 'shared start: the seed changes nothing')


def trains(variant, **options):
    """20 AdamW steps lower the loss on their batch; every parameter is in one optimizer group and learns."""
    model = small(variant, dtype=torch.float32, **options)
    idx = tokens(model, 4)
    x, y = idx[:, :-1], idx[:, 1:]
    optimizer = model.configure_optimizers(0.1, 1e-2, (0.9, 0.95), 'cpu')
    grouped = [id(p) for group in optimizer.param_groups for p in group['params']]
    for name, p in model.named_parameters():
        require(grouped.count(id(p)) == 1, f'trains: {name} is in {grouped.count(id(p))} optimizer groups')
    before = model.eval()(x, y)[1].item()
    model.train()
    for it in range(20):
        optimizer.zero_grad(set_to_none=True)
        model(x, y, Step(it=at(it)))[1].backward()
        for name, p in model.named_parameters():
            require(p.grad is not None, f'trains: {name} has no gradient')
            require(p.grad.isfinite().all(), f'trains: the gradient of {name} is not finite')
        optimizer.step()
    after = model.eval()(x, y)[1].item()
    require(after < before - 0.5, f'trains: loss {before:.3f} before, {after:.3f} after 20 steps')
    model, dead = small(variant, shake=0.3, dtype=torch.float32, **options).train(), None
    for it in range(3): # a gate may be shut once
        model.zero_grad()
        model(x, y, Step(it=at(it)))[1].backward()
        now = {name for name, p in model.named_parameters() if not p.grad.any()}
        dead = now if dead is None else dead & now
        shake_weights(model, 0.1, seed=it + 1)
    require(not dead, f'trains: the gradient is 0 for {", ".join(sorted(dead))}')


@torch.no_grad()
def plain_loss(model):
    """In evaluation the loss is the mean cross entropy of the logits, without targets of -1 and auxiliary losses."""
    model.eval()
    idx = tokens(model)
    targets = torch.where(tokens(model, seed=1) < 20, -1, tokens(model, seed=2))
    logits, loss = model(idx, targets)
    right = logits.log_softmax(-1).gather(-1, targets.clamp(min=0)[..., None])[..., 0]
    want = -right[targets >= 0].mean()
    require((loss - want).abs() <= 1e-9 * want, f'plain loss: {loss.item()} where the cross entropy is {want.item()}')


def one_graph(model, its=(0, 1, 2, 500), tol=1e-9):
    """torch.compile makes one graph of the pass, over changing iterations, with eager's losses and gradients."""
    from torch._dynamo.testing import CompileCounterWithBackend  # here, for it takes as long as torch itself to import
    idx = tokens(model, 2)
    torch._dynamo.reset()
    counter, compilations = CompileCounterWithBackend('aot_eager'), set()

    def objective(x, y, it):
        step = Step(it=it)
        _, loss = model(x, y, step)
        return loss, step.losses

    def run(f, it):
        model.zero_grad()
        with same_circumstances(model):
            loss, losses = f(idx, idx, at(it))
        loss.backward()
        return loss.detach(), losses, {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    try:
        compiled = torch.compile(objective, backend=counter, fullgraph=True, dynamic=False)
        for it in its:
            (want, losses, grads), (got, got_losses, got_grads) = run(objective, it), run(compiled, it)
            near('one graph: the loss', got, want, tol)
            require(list(losses) == list(got_losses), 'one graph: other losses than in eager mode')
            near_grads('one graph', got_grads, grads, tol)
            compilations.add(counter.frame_count) # at first the compiler may have made two attempts
            require(len(compilations) == 1, f'one graph: compiled again at iteration {it}')
    except torch._dynamo.exc.TorchDynamoException as error:
        raise Failed(f'one graph: {str(error).strip().splitlines()[0]}') from error
    finally:
        torch._dynamo.reset()


@torch.no_grad()
def round_trip(variant, **options):
    """A checkpoint's bytes into a fresh model: the same logits."""
    model = small(variant, 0.3, 1, torch.float32, **options).eval()
    fresh = small(variant, 0.0, 2, torch.float32, **options).eval()
    data = save_tensors(model_tensors(model))
    idx = tokens(model)
    want = logits_of(model, idx)
    require(not torch.equal(logits_of(fresh, idx), want), 'round trip: another seed and weights give the same logits')
    load_model_tensors(fresh, load_tensors(data))
    require(torch.equal(logits_of(fresh, idx), want), 'round trip: other logits after loading')


# -- all that must hold before anybody believes a variant's loss

SLOW = 'uniform tokens' # how the name of the check begins that takes long


class Outcome(NamedTuple):
    name: str
    said: str           # ok, declared leak seen, LEAK found, FAILED
    why: str            # of the last two
    seconds: float


def suite(variant, fast=False, **options):
    """Yields (name, check) for the variant with these options, and again with those under which it declares a leak.
    check() raises Failed, or returns whether it saw a declared leak. fast: without the one named SLOW."""
    names = [name for name in variant.split('+') if name != 'base']
    for name in names:
        rest = '+'.join(other for other in names if other != name) or 'base'
        yield f'{name} when neutral is {rest}', lambda name=name, rest=rest: neutral_is_base(variant, neutral(name), rest)
    for rule in {}, *(rule for rule, _ in leak_rules(variant)):
        after = ''.join(f', {option}={value}' for option, value in rule.items())
        for name, check in suite_of_one(variant, options | rule):
            if not (fast and name.startswith(SLOW)):
                yield name + after, check


def suite_of_one(variant, options):
    """The part of suite() that looks at one setting of the options."""
    declared = leak_reason(variant, options)
    make = partial(small, variant, **options)
    weights = dict(initial=make, shaken=partial(make, shake=0.3), wild=partial(make, shake=1.0),
                   trained=partial(trained, variant, **options))
    for training in [False] if declared else [False, True]:
        mode = 'training' if training else 'evaluation'
        for name, model in weights.items():
            yield f'causal in {mode}, {name} weights', lambda model=model, training=training: causal(model().train(training))
        yield f'causal in {mode}, across blocks of 128', lambda training=training: suffix_swap(
            make(shake=0.3, block_size=160).train(training), times=(127, 128, 129))
    if declared:
        yield 'leak in training', partial(declared_leak, weights['shaken'], weights['trained'])
    for check in stateless, decoding, generating, one_graph:
        yield check.__name__.replace('_', ' '), lambda check=check: check(make(shake=0.3))
    yield f'{SLOW}, half a minute', partial(uniform_tokens, variant, declared=declared, **options)


def declared_leak(*makes):
    require(any(leaks(make) for make in makes), 'declared leak: no check sees it: is it one?')
    return True


def outcomes(variant, fast=False, **options):
    """Runs suite(); yields an Outcome a check, as they end."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1) # more only get in each other's way in models this small
    try:
        for name, check in suite(variant, fast, **options):
            began, why = time.perf_counter(), ''
            try:
                said = 'declared leak seen' if check() else 'ok'
            except (Failed, Stop) as failure:
                said, why = 'LEAK found' if isinstance(failure, Leak) else 'FAILED', str(failure)
            yield Outcome(name, said, why, time.perf_counter() - began)
    finally:
        torch.set_num_threads(threads)
