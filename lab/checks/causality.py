"""Checks that no position sees a later one and no row another row, by swapping tokens and by gradients."""
import torch

from core.rng import generator
from lab.checks.failures import Leak, require
from lab.checks.locate import first_difference
from lab.checks.models import (
    ITERATIONS,
    capture_embeddings,
    different_tokens,
    frozen_rng_and_buffers,
    iteration,
    logits_of,
    tokens,
)
from lab.checks.precision import EPS, float64_throughout, is_rounding, largest_change
from lab.checks.state import same_circumstances
from model import Step


@torch.no_grad()
def suffix_swap(model, times=None, seed=0, it=0):
    """Checks that other tokens from t on leave logits before t as they were, for each t in `times`.

    Sees choices, such as a top-k over the row, to which gradients are blind. What rounding explains is no
    change. Every row has its own t, so row_swap must have passed first. Raises Leak, or Failed where logits
    do not depend on their own token.
    """
    T, vocab_size = model.config.block_size, model.config.vocab_size
    if times is None:
        # both ends, the middle and two random places
        random = torch.randint(2, T - 1, (2,), generator=generator(seed, 'times')).tolist()
        times = [1, T // 2, T - 1, *random]
    # each t in four rows of different tokens
    t = torch.tensor(times).repeat(4)[:, None] # (B, 1)
    later = torch.arange(T) >= t # (B, T)
    idx = tokens(model, len(t), seed=seed)
    logits = logits_of(model, idx, it)
    require(logits.isfinite().all(), 'suffix swap: logits are not finite')

    swapped = torch.where(later, different_tokens(idx, vocab_size, seed), idx)
    got = logits_of(model, swapped, it)
    require(got.isfinite().all(), 'suffix swap: logits are not finite')
    change = largest_change(got, logits) # (B, T)
    # before t no logit may change; from t on all must
    leaky = (change * ~later).amax(-1) # (B,)
    run = lambda idx: logits_of(model, idx, it)
    if leaky.any() and not is_rounding(model, EPS['float64'], run, idx, swapped, ~later):
        row = leaky.argmax().item()
        where = first_difference(model, run, idx, swapped, row, t[row].item())
        raise Leak(f'suffix swap: logits before {t[row].tolist()} change with the tokens from there on, {where}, '
                   'more than rounding explains: a position may see earlier ones alone, so pad on the left, and '
                   'mask by step.pos')
    deaf = t[((change == 0) & later).any(-1), 0].tolist()
    require(not deaf, f'suffix swap: some logits from {deaf[:1]} on do not depend on their own token')


@torch.no_grad()
def row_swap(model, seed=0, it=0):
    """Checks that other tokens in all other rows leave a row's logits as they were, but for rounding."""
    idx = tokens(model, 4, seed=seed)
    logits = logits_of(model, idx, it)
    for kept in range(4):
        # other tokens in all rows but one
        swapped = different_tokens(idx, model.config.vocab_size, (seed, kept))
        swapped[kept] = idx[kept]
        change = largest_change(logits_of(model, swapped, it), logits).amax(-1) # (B,)
        run, same_row = lambda idx: logits_of(model, idx, it), idx == swapped
        if change[kept] and not is_rounding(model, EPS['float64'], run, idx, swapped, same_row):
            where = first_difference(model, run, idx, swapped, kept, idx.size(1))
            raise Leak(f'row swap: the logits of row {kept} change with the other rows, {where}, more than rounding '
                       'explains: no row may be averaged, normalised or ranked with others')
        require((change > 0).sum() >= 3, 'row swap: some logits do not depend on their own row')


def jacobian(model, seed=0, it=0):
    """Checks that logits at t have gradient 0 for later inputs and other rows, but not for their own input.

    Returns the number of earlier inputs that have a gradient; it may be 0 where a gate is shut.
    """
    idx = tokens(model, seed=seed)
    # the gradients as well, because a buffer that is put back before them may be one that they need
    with frozen_rng_and_buffers(model), float64_throughout(model):
        leaves, hook = capture_embeddings(model)
        logits, _ = model(idx, idx, Step(it=iteration(it)))
        hook.remove()
        require(leaves, 'Jacobian: the tokens do not pass through transformer.wte')
        return count_earlier(logits, leaves, seed)


def count_earlier(logits, leaves, seed):
    """Returns how many earlier inputs the logits (B, T, V) at four positions depend on; see jacobian()."""
    (B, T, vocab_size), earlier = logits.shape, 0
    for t in (0, 1, T // 2, T - 1):
        # a random cotangent, so that the gradients of several logits cannot cancel
        row = t % B
        other_rows = torch.arange(B) != row
        cotangent = torch.randn(vocab_size, generator=generator(seed, t), dtype=logits.dtype)
        grads = torch.autograd.grad((logits[row, t] * cotangent).sum(), leaves, retain_graph=True)
        # one leaf per call of wte: a model may embed its tokens more than once
        live = sum(is_more_than_rounding(grad).any(-1) for grad in grads) > 0 # (B, T)
        require(not live[row, t + 1:].any(), f'Jacobian: logits at {t} depend on later inputs', Leak)
        require(not live[other_rows].any(), f'Jacobian: logits of row {row} depend on other rows', Leak)
        require(live[row, t], f'Jacobian: logits at {t} do not depend on their own input')
        earlier += live[row, :t].sum().item()
    return earlier


def is_more_than_rounding(grad):
    """Returns a mask of what in a gradient is not 0 but for rounding, as Fourier transforms leave it."""
    # 2e-12 in float64; smaller leaks are left to the swaps
    return grad.abs() > 1e4 * torch.finfo(grad.dtype).eps * grad.abs().max()


@torch.no_grad()
def blind_to_targets(model):
    """Checks that logits in the model's present mode are the same whatever the targets are."""
    idx = tokens(model)
    logits = []
    for targets in idx, different_tokens(idx, model.config.vocab_size, 'targets'):
        with same_circumstances(model):
            logits.append(model(idx, targets, Step())[0])
    change = (logits[0] - logits[1]).abs().max().item()
    mode = 'training' if model.training else 'evaluation'
    require(change == 0, f'targets: logits in {mode} change with the targets ({change:.1e}): they are the answer, '
            'for the loss alone', Leak)


def causal(model, its=ITERATIONS, looks_back=True):
    """Runs all three checks on the model in its present mode, with new tokens at each iteration.

    looks_back: some position must depend on an earlier one, which not every initial value allows.
    """
    for it in its:
        # rows first, because suffix_swap assumes that they are independent
        row_swap(model, it, it)
        suffix_swap(model, None, it, it)
    earlier = sum([jacobian(model, it, it) for it in its])
    require(earlier or not looks_back, 'Jacobian: no position looks at an earlier one')


def has_leak(make, seeds=range(5)):
    """Returns True if a swap finds a leak, in training mode, in one of the models make(seed=...)."""
    for seed in seeds:
        model = make(seed=seed).train()
        for it in ITERATIONS:
            # no Jacobian: whatever has a gradient changes logits too, and a choice has none
            for check in suffix_swap, row_swap:
                try:
                    check(model, seed=seed, it=it)
                except Leak:
                    return True
    return False


def declared_leak(*makes):
    """Checks that the declared leak shows in a model that one of these functions makes; returns True."""
    require(any(has_leak(make) for make in makes), 'declared leak: no check sees it: is it one?')
    return True
