"""Checks that every parameter learns from the reported loss, and that no model predicts random tokens."""
import math

import torch
import torch.nn.functional as F

from core.rng import generator, seed_cpu
from lab.checks.failures import Leak, require
from lab.checks.models import iteration, shake_weights, small, tokens
from model import Step, build

# (T, seed) of each training on uniform tokens
RUNS = (8, 1), (8, 2), (8, 3), (8, 4), (32, 5)


def trains(variant, **options):
    """Checks that 20 AdamW steps lower the loss on their batch, and that every parameter learns."""
    model = small(variant, dtype=torch.float32, **options)
    idx = tokens(model, 4)
    x, y = idx[:, :-1], idx[:, 1:]
    optimizer = model.configure_optimizers(0.1, 1e-2, (0.9, 0.95), 'cpu')
    grouped = [id(p) for group in optimizer.param_groups for p in group['params']]
    for name, p in model.named_parameters():
        require(grouped.count(id(p)) == 1, f'trains: {name} is in {grouped.count(id(p))} optimizer groups')

    # 20 steps on the same four rows; every variant gains several times the 0.5 nats asked for
    before = model.eval()(x, y)[1].item()
    model.train()
    for it in range(20):
        optimizer.zero_grad(set_to_none=True)
        _, loss = model(x, y, Step(it=iteration(it)))
        loss.backward()
        for name, p in model.named_parameters():
            require(p.grad is not None, f'trains: {name} has no gradient')
            require(p.grad.isfinite().all(), f'trains: the gradient of {name} is not finite')
        optimizer.step()
    after = model.eval()(x, y)[1].item()
    require(after < before - 0.5, f'trains: loss {before:.3f} before, {after:.3f} after 20 steps')

    # a gate may happen to be shut, so only a gradient that is 0 at three different weights counts as dead
    model, dead = small(variant, shake=0.3, dtype=torch.float32, **options).train(), None
    for it in range(3):
        model.zero_grad()
        _, loss = model(x, y, Step(it=iteration(it)))
        loss.backward()
        now = {name for name, p in model.named_parameters() if not p.grad.any()}
        dead = now if dead is None else dead & now
        shake_weights(model, 0.1, seed=it + 1)
    require(not dead, f'trains: the gradient is 0 for {", ".join(sorted(dead))}')


@torch.no_grad()
def plain_loss(model):
    """Checks that evaluation's loss is the plain cross entropy: no auxiliary losses, no targets of -1."""
    model.eval()
    idx = tokens(model)
    targets = torch.where(tokens(model, seed=1) < 20, -1, tokens(model, seed=2))
    logits, loss = model(idx, targets)
    log_probs = logits.log_softmax(-1).gather(-1, targets.clamp(min=0)[..., None])[..., 0] # (B, T)
    want = -log_probs[targets >= 0].mean()
    require((loss - want).abs() <= 1e-9 * want,
            f'plain loss: evaluation reports {loss.item():.9g} where the cross entropy of its logits is '
            f'{want.item():.9g}: what else is to be learned goes through step.loss(), in training')


def below_chance(variant, T=8, steps=800, seed=1, vocab=16, **options):
    """Trains on fresh uniform tokens, which a model can predict only by seeing them.

    Returns (training, evaluation): how far the mean loss is below ln(vocab), in standard errors, over the
    last third of training and in evaluation after it.
    """
    c = dict(block_size=32, vocab_size=vocab, n_layer=2, n_head=2, n_embd=32) | options
    model, losses = build(variant, seed, **c), {True: [], False: []}
    model.schedule_iters = steps
    optimizer = model.configure_optimizers(0.0, 1e-2, (0.9, 0.99), 'cpu')
    for it in range(steps + 100):
        training = it < steps
        # 512 tokens per step, whatever T is: (512 / T, T + 1)
        idx = torch.randint(vocab, (512 // T, T + 1), generator=generator(seed, 'uniform', it))
        x, y = idx[:, :-1], idx[:, 1:]
        seed_cpu(it)
        with torch.set_grad_enabled(training):
            logits, loss = model.train(training)(x, y, Step(it=iteration(it)))
        # from the logits, because a variant's training loss may include auxiliary losses
        if it >= steps * 2 // 3:
            losses[training].append(F.cross_entropy(logits.flatten(0, 1), y.flatten()).item())
        if training:
            # warmup for 20 steps, constant to the middle, then linear decay to 0
            for group in optimizer.param_groups:
                group['lr'] = 1e-2 * group.get('lr_scale', 1.0) * min(1, (it + 1) / 20, 2 - 2 * it / steps)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()

    def standard_errors(losses):
        gain = math.log(vocab) - torch.tensor(losses, dtype=torch.float64)
        return (gain.mean() / (gain.std() / len(gain) ** 0.5)).item()
    return standard_errors(losses[True]), standard_errors(losses[False])


def uniform_tokens(variant, runs=RUNS, errors=4, declared=None, **options):
    """Checks that no loss is below chance by 4 standard errors in any of the runs.

    Sees every kind of leak that a model learns to use, through choices, targets or state too. A top-k over
    the row is learned in every second run, sooner in short rows. With a declared leak only evaluation must
    be at chance. Returns True if training was below chance.
    """
    seen = False
    for T, seed in runs:
        train, evaluation = below_chance(variant, T, seed=seed, **options)
        for mode, below in dict(evaluation=evaluation, training=train).items():
            text = f'loss of uniform tokens, T={T}, seed {seed}, is below ln V by {below:.1f} standard errors'
            may_be_below = declared and mode == 'training'
            require(may_be_below or below < errors, f'uniform tokens: {mode} {text}', Leak)
        seen = seen or train >= errors
    return seen
