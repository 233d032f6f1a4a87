"""Small models on the CPU, tokens for them, and weights that let a leak show."""
import torch

from core.rng import generator, seed_cpu
from lab.checks.precision import float64_throughout
from lab.checks.state import same_circumstances
from model import Step, build

SMALL = dict(block_size=32, vocab_size=65, n_layer=2, n_head=3, n_embd=24)
# for schedules: the first iteration, one within a warmup, the last of a run
ITERATIONS = 0, 3, 1000


# -----------------------------------------------------------------------------
# models

def small(variant='base', shake=0.0, seed=1, dtype=torch.float64, **options):
    """Returns a small model, its weights shaken by noise of scale `shake`; the rest is as for build()."""
    model = build(variant, seed, **SMALL | options).to(dtype)
    model.schedule_iters = ITERATIONS[-1]
    shake_weights(model, shake)
    return model


@torch.no_grad()
def shake_weights(model, scale, seed=0, only=None):
    """Adds Gaussian noise of this standard deviation to all parameters, or to those named in `only`.

    Initial weights hide leaks, and zeros hide most. The noise depends on (seed, parameter name) alone, so
    parameters that are equal in two models stay equal.
    """
    if not scale:
        return
    for name, p in model.named_parameters():
        if only is None or name in only:
            # drawn in float64, so that models of any dtype get the same
            noise = torch.randn(p.shape, generator=generator(seed, 'shake', name), dtype=torch.float64)
            p += scale * noise.to(p.dtype)


def train_small(variant, steps=30, seed=1, **options):
    """Returns a small model after some AdamW steps on random tokens: gates have moved, buffers are filled."""
    model = small(variant, 0.0, seed, **options).train()
    # the learning rate is large on purpose: few steps should move the weights far
    optimizer = model.configure_optimizers(0.1, 0.03, (0.9, 0.95), 'cpu')
    for it in range(steps):
        idx = tokens(model, 4, seed=(seed, 'train', it))
        seed_cpu(it)
        _, loss = model(idx[:, :-1], idx[:, 1:], Step(it=iteration(it)))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    return model


# -----------------------------------------------------------------------------
# what goes in

def tokens(model, B=3, T=None, seed=0):
    """Returns random tokens (B, T); T is block_size by default."""
    c = model.config
    return torch.randint(c.vocab_size, (B, T or c.block_size), generator=generator(seed, 'tokens'))


def different_tokens(idx, vocab_size, seed):
    """Returns random tokens, each different from the one at its place in idx."""
    # never 0, so no token stays what it is
    offset = torch.randint(1, vocab_size, idx.shape, generator=generator(seed, 'others'))
    return (idx + offset) % vocab_size


def iteration(it):
    """Returns the iteration as Step takes it, a 0-d float tensor."""
    return torch.tensor(float(it))


# -----------------------------------------------------------------------------
# what comes out

def frozen_rng_and_buffers(model):
    """Returns a context that seeds the noise of a pass, and restores the buffers, which training may update."""
    return same_circumstances(model, buffers_only=True)


def logits_of(model, idx, it=0):
    """Returns the logits of all positions, (B, T, vocab_size), at iteration it."""
    with same_circumstances(model), float64_throughout(model):
        logits, _ = model(idx, idx, Step(it=iteration(it)))
    return logits


def capture_embeddings(model):
    """Turns each output of wte into a leaf until hook.remove(). Returns (leaves, hook); leaves grows."""
    leaves = []

    def as_leaf(module, args, out):
        leaves.append(out.detach().requires_grad_())
        return leaves[-1]
    return leaves, model.transformer.wte.register_forward_hook(as_leaf)


def uses_rng(model):
    """Returns True if a pass in training draws random numbers."""
    with frozen_rng_and_buffers(model):
        # the generator's state changes with the first draw
        before = torch.get_rng_state()
        model.train()(tokens(model))
        return not torch.equal(torch.get_rng_state(), before)
