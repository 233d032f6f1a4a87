"""Checks that decoding, token by token with a cache, gives what evaluation gives."""
import torch

from core.rng import seed_cpu
from lab.checks.failures import require
from lab.checks.models import ITERATIONS, iteration, logits_of, tokens
from lab.checks.precision import float64_throughout
from model import Step


@torch.no_grad()
def stateless(model):
    """Checks that a pass leaves nothing behind for the next one. In training, buffers may."""
    was_training = model.training
    # a model with buffers may remember passes in training, so only evaluation is checked
    for training in [False] if list(model.buffers()) else [False, True]:
        model.train(training)
        a, b = tokens(model, seed=1), tokens(model, seed=2)
        results = []
        for idx in a, b, a:
            # the same noise in each pass
            seed_cpu(0)
            logits, _ = model(idx, idx)
            results.append(logits)
        require(torch.equal(results[0], results[2]),
                'stateless: the same tokens give other logits after another batch')
    model.train(was_training)


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
        require(torch.allclose(last, full[:, -1:], rtol=0, atol=atol),
                'decoding: without targets, other last logits')
        # one dict per layer, filled by each pass for the next
        cache, done = [{} for _ in model.transformer.h], 0
        for size in sizes:
            new = idx[:, done:done + size]
            # only the first pass may rely on positions that start at 0
            pos = None if done == 0 else torch.arange(done, done + size).expand(2, -1)
            with float64_throughout(model):
                logits, _ = model(new, new, Step(pos, iteration(it), cache))
            off = (logits - full[:, done:done + size]).abs().max().item()
            text = f'{size} tokens after {done} in the cache: logits off by {off:.1e} from one full pass'
            require(off <= atol * (1 + full.abs().max().item()), f'decoding: {text}')
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
