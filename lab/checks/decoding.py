"""Checks that decoding, token by token with a cache, gives what evaluation gives."""
from functools import partial

import torch

from core.rng import seed_cpu
from lab.checks.failures import Failed, Leak, require
from lab.checks.locate import first_difference_in_decoding
from lab.checks.models import ITERATIONS, iteration, logits_of, tokens
from lab.checks.precision import float64_throughout
from lab.checks.state import State
from model import Step


@torch.no_grad()
def stateless(model):
    """Checks that a pass leaves nothing that changes the next one. In training, buffers may."""
    was_training, start = model.training, State(model)
    try:
        # a model with buffers may remember passes in training, so only evaluation is checked
        for training in [False] if list(model.buffers()) else [False, True]:
            remembers_nothing(model.train(training))
    finally:
        start.restore()
        model.train(was_training)


def remembers_nothing(model):
    """Checks that tokens have the same logits after a pass with other ones, which has fewer rows."""
    def run(idx):
        # the same noise in each pass
        seed_cpu(0)
        return model(idx, idx)[0]

    idx = tokens(model, seed=1)
    base, before = run(idx), State(model)
    try:
        run(tokens(model, 2, seed=2))
        change = (run(idx) - base).abs().max().item()
    # what was left may not even fit
    except RuntimeError:
        change = float('nan')
        if not before.changes():
            raise
    left = ', '.join([place.name for place in before.changes()][:3]) or 'what is in no attribute'
    require(change == 0, f'stateless: {left} outlives a pass, and with it the logits of the same tokens are others '
            f'({change:.1e}): keep it in step.state(layer, name, initial), which each text begins anew', Leak)


@torch.no_grad()
def cached_decoding(model, its=ITERATIONS, cuts=None, atol=1e-9):
    """Checks that passes with a cache give the logits of one full pass.

    cuts: for each iteration, the number of tokens of each pass. By default single tokens, chunks, and a few
    tokens after a long context. atol: relative to 1 + the largest logit.
    """
    model.eval()
    idx = tokens(model, 2)
    T = idx.size(1)
    if cuts is None:
        cuts = [1] * T, [5] + [1] * 4 + [3] * 2 + [1] * (T - 15), [T - 4, 3, 1]
    for it, sizes in zip(its, cuts):
        full = logits_of(model, idx, it) # (B, T, vocab_size)
        # without targets a model computes logits for the last position only
        with float64_throughout(model):
            last, _ = model(idx, step=Step(it=iteration(it)))
        off = (last - full[:, -1:]).abs().max().item()
        require(off <= atol, f'decoding: without targets, other last logits than with them: off by {off:.1e}, '
                f'{atol:.0e} is allowed')
        # one dict per layer, filled by each pass for the next
        cache, done = [{} for _ in model.transformer.h], 0
        for size in sizes:
            new, before = idx[:, done:done + size], [dict(layer) for layer in cache]
            # only the first pass may rely on positions that start at 0
            pos = None if done == 0 else torch.arange(done, done + size).expand(2, -1)

            def run(idx, cache, pos=pos, it=it):
                with float64_throughout(model):
                    return model(idx, idx, Step(pos, iteration(it), cache))[0]

            off = (run(new, cache) - full[:, done:done + size]).abs().max().item()
            most = atol * (1 + full.abs().max().item())
            if off > most:
                full_pass, part = partial(logits_of, model, it=it), partial(run, cache=before)
                where = first_difference_in_decoding(model, idx, done, size, full_pass, part)
                raise Failed(f'decoding: {size} tokens after {done} in the cache: logits off by {off:.1e} from one '
                             f'full pass, {most:.0e} is allowed, {where}: what it needs of earlier tokens comes '
                             'from step.extend() or step.state(), and positions from step.pos')
            done += size


@torch.no_grad()
def greedy_generation(model):
    """Checks that generate() gives the tokens of a loop without a cache, beyond block_size too."""
    model.eval()
    idx, size = tokens(model, 2, 5), model.config.block_size
    generated = model.generate(idx, size + 3, temperature=0)
    # the last seven tokens come after the context has outgrown block_size
    for _ in range(size + 3):
        logits, _ = model(idx[:, -size:])
        idx = torch.cat((idx, logits[:, -1].argmax(-1, keepdim=True)), dim=1)
    require(torch.equal(generated, idx), 'generating: greedy tokens differ from those without a cache')
