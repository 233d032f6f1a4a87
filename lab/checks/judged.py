"""Checks of the very model that is judged: its shape, batch, dtype, dropout and iterations, on its device.

A leak may need any of these: a layer or a position that small models lack, rows of 64, bfloat16, an iteration
past a warm-up. Every check runs on weights of which none is 0 or neutral, or on trained ones.
"""
import contextlib
import dataclasses
from dataclasses import dataclass, replace
from functools import partial

import torch

from core.device.machine import Machine
from core.rng import generator
from core.training.evaluation import batch_rows, token_losses
from lab.checks.decoding import cached_decoding
from lab.checks.failures import Leak, require
from lab.checks.locate import first_difference
from lab.checks.models import different_tokens, iteration
from lab.checks.precision import EPS, Float64, float64_copy, is_rounding, largest_change
from lab.checks.settings import leak_reason
from lab.checks.state import State, same, same_circumstances
from model import Step

# Chunks, tiles and blocks of code end at multiples of these
BLOCKS = 16, 32, 48, 64, 128, 256
# FLOPs of a check on a CPU, some seconds of two cores; elsewhere no check is cut short
CPU_FLOPS = dict(evaluation=1e12, training=0.2e12, iterations=0.2e12, few_rows=0.05e12)


@dataclass
class Case:
    """A model in the circumstances in which it is judged."""
    model: torch.nn.Module
    machine: Machine
    idx: torch.Tensor           # tokens (B, T), B as in evaluation and training
    max_iters: int
    training: bool = False
    eps: float = 0.0            # a few times the relative rounding error of its products
    wide: bool = False          # float64, whatever the machine's dtype

    @property
    def mode(self):
        return 'training' if self.training else 'evaluation'

    def iteration(self, it):
        return iteration(it).to(self.idx.device)

    def logits(self, idx, it=None, targets=None, seed=0, restore=True):
        """Returns the logits of all positions (B, T, V), as evaluation or training computes them.

        Evaluation is given no targets unless a check asks for it. restore: the pass leaves no trace.
        """
        model, it = self.model.train(self.training), self.iteration(self.max_iters if it is None else it)
        # evaluation asks for statistics and has no gradient
        step = Step(it=it) if self.training else Step(it=it, stats={}, all_positions=True)
        if self.training and targets is None:
            targets = random_tokens(idx, model.config.vocab_size, 'targets')
        circumstances = same_circumstances(model, seed) if restore else contextlib.nullcontext()
        with (torch.set_grad_enabled(self.training), circumstances,
              Float64() if self.wide else self.machine.precision()):
            logits, _ = model(idx, targets, step)
        return logits.detach()

    def in_float64(self):
        """Returns the case with a copy of the model in float64."""
        # Apple's GPUs have no float64
        device = 'cpu' if self.machine.type == 'mps' else self.idx.device
        model = float64_copy(self.model, device)
        return replace(self, model=model, idx=self.idx.to(device), eps=EPS['float64'], wide=True)


def case_of(model, machine, idx, max_iters, training=False):
    """Returns the Case of a model on its machine."""
    name = 'tf32' if machine.type == 'cuda' and machine.dtype == 'float32' else machine.dtype
    return Case(model, machine, idx.to(machine.device), max_iters, training, EPS[name])


def random_tokens(idx, vocab_size, seed):
    """Returns random tokens in the shape and on the device of idx."""
    return torch.randint(vocab_size, idx.shape, generator=generator(seed, 'tokens')).to(idx.device)


def others(case, seed=0):
    """Returns tokens (B, T) each of which differs from the case's."""
    return different_tokens(case.idx.cpu(), case.model.config.vocab_size, seed).to(case.idx.device)


@torch.no_grad()
def move_weights(model, sign=1.0, seed=0):
    """Moves every weight away from where it starts, so that no gate is shut and nothing is neutral.

    Matrices get noise of variance 1 / (4 columns); vectors and scalars move by .5 to 1, down or up. sign=-1
    moves everything the other way, which opens what the first move has shut.
    """
    for name, p in model.named_parameters():
        # drawn on the CPU: the same noise on every device
        g = generator(seed, 'move', name)
        noise = torch.randn(p.shape, generator=g)
        if p.ndim >= 2:
            noise = noise * 0.5 / p.size(-1) ** 0.5
        else:
            noise = torch.sign(noise) * (0.5 + 0.5 * torch.rand(p.shape, generator=g))
        p += sign * noise.to(p)


# -----------------------------------------------------------------------------
# swaps

def edges(T):
    """Returns the positions 1 .. T - 1 at which a leak is most likely to show, the likeliest first."""
    near = {1, 2, T // 2, T - 1} | {m + d for b in BLOCKS for m in range(b, T + 1, b) for d in (-1, 0, 1)}
    return sorted((t for t in near if 0 < t < T), key=lambda t: (t not in (1, T - 1), t % 16 not in (0, 1), t))


def times_of(T, most):
    """Returns up to `most` positions from 1 on: all, or the edges and some more."""
    first = edges(T)[:most]
    rest = [t for t in range(1, T) if t not in first]
    order = torch.randperm(len(rest), generator=generator('times', T)).tolist()
    return first + [rest[i] for i in order][:most - len(first)]


def affordable(case, flops):
    """Returns (rows, positions to swap at): all there are, or on a CPU what takes no more than these FLOPs."""
    B, T = case.idx.shape
    if case.machine.type != 'cpu':
        return B, T - 1
    a_row = 2 * T * sum(p.numel() for p in case.model.parameters())
    affordable_rows = int(flops / a_row)
    # a batch of unchanged rows, then the swapped ones, batch by batch
    B = min(B, max(2, affordable_rows // 2))
    # whole batches
    return B, min(T - 1, B * max(1, round(affordable_rows / B - 1)))


def swap(case, flops, it=None):
    """Checks that no position sees later tokens or another row, at every position that can be afforded.

    Each row of a batch has its own t, from which on its tokens are others: logits before t must stay.
    """
    rows, most = affordable(case, flops)
    case = replace(case, idx=case.idx[:rows])
    times = times_of(case.idx.size(1), most)
    with counted_to(case, counters(case), case.max_iters if it is None else it):
        base = case.logits(case.idx, it)
        require(base.isfinite().all(), f'logits are not finite in {case.mode}')
        for first in range(0, len(times), rows):
            # the last batch is filled up from the beginning
            some = (times[first:first + rows] + times * rows)[:rows]
            swap_at(case, base, some, it, seed=first)


def swap_at(case, base, times, it=None, seed=0):
    """Checks one batch whose rows change from their own t in `times` on; base: the logits of the case's tokens."""
    t = torch.tensor(times, device=case.idx.device)[:, None] # (B, 1)
    later = torch.arange(case.idx.size(1), device=case.idx.device) >= t # (B, T)
    mixed = torch.where(later, others(case, seed), case.idx)
    got = case.logits(mixed, it)
    require(got.isfinite().all(), f'logits are not finite in {case.mode}')
    moved = (got != base).any(-1) # (B, T)
    require(moved[later].any(), f'no logits change with the tokens in {case.mode}')
    if (moved & ~later).any():
        explain(case, mixed, later, it)


def explain(case, mixed, later, it):
    """Raises Leak for a change of logits before t that rounding does not explain.

    Not in the model's own precision, and not in float64 throughout.
    """
    for view in case, case.in_float64():
        mixed, kept = mixed.to(view.idx.device), ~later.to(view.idx.device)
        run = partial(view.logits, it=it)
        size = largest_change(run(mixed), run(view.idx)) * kept # (B, T)
        if size.any() and not is_rounding(view.model, view.eps, run, view.idx, mixed, kept):
            raise Leak(describe_swap(view, mixed, kept, size, it))


def describe_swap(case, mixed, kept, size, it):
    """Returns the message for logits that changed by size (B, T) although their own past was kept (B, T)."""
    # of the rows that change much, the one whose tokens differ from the earliest position on
    largest = size.amax(-1) # (B,)
    row = min((largest > 0.01 * largest.max()).nonzero()[:, 0].tolist(), key=lambda r: int(kept[r].sum()))
    t, T = int(kept[row].sum()), kept.size(1)
    run = partial(case.logits, it=it)
    base, where = run(case.idx), f'in {case.mode}' + ('' if it is None else f' at iteration {it:g}')
    changes = lambda idx: largest_change(run(idx), base)[row, :t] # (t,)

    # only this row's later tokens
    alone = case.idx.clone()
    alone[row] = mixed[row]
    if (change := changes(alone)).any():
        # which token it sees: usually the next one
        seen, idx = f'tokens from {t} on', alone
        for q in dict.fromkeys([*range(t, min(t + 4, T)), T - 1]):
            single = case.idx.clone()
            single[row, q] = mixed[row, q]
            if (by_one := changes(single)).any():
                seen, idx, change = f'token {q}', single, by_one
                break
        first = first_difference(case.model, run, case.idx, idx, row, t)
        return f'position {change.argmax()} sees {seen}, {first} {where}'
    # only the other rows
    rest = mixed.clone()
    rest[row] = case.idx[row]
    first = first_difference(case.model, run, case.idx, rest, row, T)
    return f'row {row} sees other rows of the batch, {first} {where}'


# -----------------------------------------------------------------------------
# iterations, targets, state

def schedule_points(max_iters):
    """Returns iterations at which a schedule may be anywhere: early ones, a regular grid, the end and beyond."""
    grid = {max_iters * k // 16 for k in range(17)}
    return sorted({0, 1, 2, 3, 5, 10, 30, 100, 300, 1000, max_iters - 1, max_iters + 1, 2 * max_iters + 7} | grid)


def iterations(case):
    """Checks a few rows for leaks at many iterations, and with counters as they are then."""
    T, flops = case.idx.size(1), CPU_FLOPS['iterations']
    points = schedule_points(case.max_iters)
    rows = max(1, min(4, affordable(case, flops / len(points))[0]))
    case = replace(case, idx=case.idx[:rows])
    counted, seen = counters(case), case.logits(case.idx)
    for i, it in enumerate(points):
        with counted_to(case, counted, it):
            base = case.logits(case.idx, it)
            # where the logits are those of another iteration, so is everything else
            if i and torch.equal(base, seen):
                continue
            # each iteration has its own positions
            times = times_of(T, T - 1)
            swap_at(case, base, [times[(rows * i + r) % (T - 1)] for r in range(rows)], it, seed=i)
            seen = base


@contextlib.contextmanager
def counted_to(case, counted, it):
    """A context in which what counts passes, counters(case), is as after `it` iterations of training."""
    before = State(case.model)
    try:
        advance(counted, it)
        yield
    finally:
        before.restore()


def counters(case, training=True):
    """Returns {place: change by a pass} of the numbers that change by the same amount with every pass."""
    # what counts in evaluation is a finding of state()
    case = replace(case, training=training, idx=case.idx[:1])
    before, found = State(case.model), []
    try:
        for seed in 0, 1:
            earlier = State(case.model)
            case.logits(others(case, seed), restore=False)
            changes = earlier.changes().items()
            found.append({place: now - then for place, (then, now) in changes if is_number(then, now)})
    finally:
        before.restore()
    first, second = found
    return {place: change for place, change in first.items() if place in second and same(change, second[place])}


def is_number(then, now):
    """Returns True for two numbers, or tensors of numbers of one shape, whose difference means something."""
    if isinstance(then, torch.Tensor) and isinstance(now, torch.Tensor):
        return then.shape == now.shape and then.dtype != torch.bool
    return all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in (then, now))


@torch.no_grad()
def advance(counted, passes):
    """Adds to each counter what so many passes would add."""
    for place, change in counted.items():
        value = getattr(place.owner, place.key)
        if isinstance(value, torch.Tensor):
            value += (change * passes).to(value.dtype)
        else:
            setattr(place.owner, place.key, value + change * passes)


def targets(case):
    """Checks that logits do not depend on targets, which evaluation does not give and training must not show."""
    vocab_size = case.model.config.vocab_size
    case = replace(case, idx=case.idx[:affordable(case, CPU_FLOPS['few_rows'])[0]])
    one, two = (random_tokens(case.idx, vocab_size, seed) for seed in ('one', 'two'))
    # evaluation itself gives none
    base = case.logits(case.idx, targets=one if case.training else None)
    for given in one, two, case.idx:
        got = case.logits(case.idx, targets=given)
        if not torch.equal(got, base):
            size = largest_change(got, base).max().item()
            what = 'with the targets' if case.training else 'when targets are given'
            raise Leak(f'logits change {what} ({size:.1e}) in {case.mode}')


def state(case):
    """Checks that nothing that a pass leaves in the model, or draws, changes the logits of a later pass.

    In training buffers may.
    """
    case = replace(case, idx=case.idx[:min(4, affordable(case, CPU_FLOPS['few_rows'])[0])])
    start = State(case.model)
    try:
        # after a first pass, which may prepare tables
        case.logits(case.idx, restore=False)
        warm, base = State(case.model), case.logits(case.idx)
        unseeded = case.logits(case.idx, seed=1)
        require(case.training or torch.equal(unseeded, base), f'logits in {case.mode} depend on random numbers')
        require(torch.equal(case.logits(case.idx), base), f'the same pass gives other logits in {case.mode}')
        counted = counters(case, case.training)
        for seed in 0, 1:
            case.logits(others(case, seed), restore=False)
        left = warm.changes()
        if case.training:
            left = {place: values for place, values in left.items() if ': buffer ' not in place.name}
        # each on its own: as it is now, then counted far ahead
        for place, (_, now) in left.items():
            for passes in (0, case.max_iters) if place in counted else (0,):
                warm.restore()
                put(place, now)
                advance({place: counted[place]} if passes else {}, passes)
                size = largest_change(case.logits(case.idx), base).max().item()
                require(size == 0, f'{place.name} changes with every pass in {case.mode}, '
                                   f'and the logits with it ({size:.1e})')
    finally:
        start.restore()


@torch.no_grad()
def put(place, value):
    """Gives a place this value, a buffer in place."""
    there = getattr(place.owner, place.key, None)
    if isinstance(there, torch.Tensor) and isinstance(value, torch.Tensor) and there.shape == value.shape:
        there.copy_(value)
    else:
        setattr(place.owner, place.key, value)


def decodes(case):
    """Checks that decoding with a cache gives the logits of one pass, in float64, on the CPU."""
    T = case.model.config.block_size
    # token by token; in longer contexts, pieces that end beside multiples of 16
    sizes = [1] * T if T <= 32 else [T // 2] + [1, 15] * (T // 32)
    sizes[-1] += T - sum(sizes)
    cached_decoding(float64_copy(case.model, 'cpu'), its=[case.max_iters], cuts=[sizes])


@torch.no_grad()
def reports_cross_entropy(case):
    """Checks that the loss that the model reports in evaluation is the cross entropy of its logits."""
    idx = case.idx[:min(4, affordable(case, CPU_FLOPS['few_rows'])[0])]
    given = random_tokens(idx, case.model.config.vocab_size, 'targets')
    with same_circumstances(case.model), case.machine.precision():
        logits, loss = case.model.eval()(idx, given, Step(it=case.iteration(case.max_iters)))
    want, got = token_losses(logits, given).mean().item(), loss.item()
    # half-precision logits have a loss of as many digits
    require(abs(got - want) <= max(1e-4, case.eps) * want,
            f'in evaluation the model reports a loss of {got:.4f}, where the cross entropy of its logits is {want:.4f}')


# -----------------------------------------------------------------------------
# all of them

def list_judged_checks(one, two, m, o, idx):
    """Yields (name, check) for models in the circumstances in which they are judged.

    one, two: the same model twice, or with other weights, so that what one shuts the other opens. m: the
    Machine; o: train.py's Options; idx: tokens (B, T).
    """
    evaluation = case_of(one, m, idx, o.max_iters)
    cases = [case_of(two, m, idx, o.max_iters)]
    yield 'leaks as judged, evaluation', lambda: swap(evaluation, CPU_FLOPS['evaluation'])
    # evaluation must be causal even where training has a leak that the variant declares
    if leak_reason(o.variant, dataclasses.asdict(one.config)) is None:
        cases.append(case_of(two, m, idx[:o.batch_size], o.max_iters, training=True))
        # in the middle of training, where schedules are under way
        yield 'leaks as judged, training', lambda: swap(cases[1], CPU_FLOPS['training'], o.max_iters // 2)
    for case in cases:
        for check in iterations, targets, state:
            yield f'leaks as judged, {check.__name__}, {case.mode}', partial(check, case)
    yield 'decoding as judged', lambda: decodes(evaluation)
    yield 'loss as judged', lambda: reports_cross_entropy(evaluation)


def list_fresh_checks(build_model, m, o, data):
    """Yields (name, check) for models that build_model() returns, their weights moved away from their start.

    m: the Machine; o: train.py's Options; data: the Dataset.
    """
    models = []
    for sign in 1, -1:
        models.append(build_model().to(m.device))
        move_weights(models[-1], sign)
    yield from list_judged_checks(*models, m, o, judged_tokens(m, o, data))


def list_trained_checks(model, m, o, data):
    """Yields (name, check) for a trained model; its weights and its mode stay as they are."""
    was_training = model.training
    try:
        yield from list_judged_checks(model, model, m, o, judged_tokens(m, o, data))
    finally:
        model.train(was_training)


def judged_tokens(m, o, data):
    """Returns tokens (B, T), half of text, half random, B being the larger of training's batch and evaluation's."""
    rows = max(o.batch_size, batch_rows(m, data, o.batch_size))
    windows = torch.cat([x for x, _, _ in data.windows('val', rows, rows)]).to(m.device)
    idx = random_tokens(windows.new_zeros(rows, data.block_size), data.vocab_size, 'judged')
    # every second row is text, as far as there is enough of it
    text = windows[:len(idx[::2])]
    idx[::2][:len(text)] = text
    return idx
