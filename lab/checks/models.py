"""Small models on the CPU, tokens to feed them, and weights that hide nothing."""
import contextlib

import torch

from core.rng import generator, seed_cpu
from model import Step, build

SMALL = dict(block_size=32, vocab_size=65, n_layer=2, n_head=3, n_embd=24)
# at which schedules are looked at: the first one, one of a warmup, one after it
ITERATIONS = 0, 3, 1000


# -----------------------------------------------------------------------------
# models

def small(variant='base', shake=0.0, seed=1, dtype=torch.float64, **options):
    """Returns a small model, its weights shaken by noise of that scale; variant and options as for build()."""
    model = build(variant, seed, **SMALL | options).to(dtype)
    shake_weights(model, shake)
    return model


@torch.no_grad()
def shake_weights(model, scale, seed=0, only=None):
    """Adds Gaussian noise of this scale to all parameters, or to those named in `only`.

    Initial weights hide much, zeros most. Noise = f(seed, parameter name), so what two models share stays
    shared.
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
    # a learning rate that is large on purpose
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
    """Returns random tokens (B, T), by default of the model's whole context."""
    c = model.config
    return torch.randint(c.vocab_size, (B, T or c.block_size), generator=generator(seed, 'tokens'))


def different_tokens(idx, vocab_size, seed):
    """Returns random tokens of which each one differs from the one in idx."""
    offset = torch.randint(1, vocab_size, idx.shape, generator=generator(seed, 'others'))
    return (idx + offset) % vocab_size


def iteration(it):
    """Returns the iteration as Step wants it, a 0-d tensor."""
    return torch.tensor(float(it))


# -----------------------------------------------------------------------------
# what comes out

@contextlib.contextmanager
def frozen_rng_and_buffers(model):
    """Draws noise from a fixed seed, and restores the buffers afterwards, which a pass in training may update."""
    before = [(b, b.clone()) for b in model.buffers()]
    seed_cpu(0)
    try:
        yield
    finally:
        with torch.no_grad():
            for b, old in before:
                b.copy_(old)


def logits_of(model, idx, it=0):
    """Returns the logits of every position (B, T, vocab_size)."""
    with frozen_rng_and_buffers(model):
        logits, _ = model(idx, idx, Step(it=iteration(it)))
    return logits


def capture_embeddings(model):
    """Makes leaves of all that comes out of wte, until hook.remove(). Returns (leaves, hook)."""
    leaves = []

    def as_leaf(module, args, out):
        leaves.append(out.detach().requires_grad_())
        return leaves[-1]
    return leaves, model.transformer.wte.register_forward_hook(as_leaf)


def uses_rng(model):
    """Returns True if a pass in training draws random numbers."""
    with frozen_rng_and_buffers(model):
        before = torch.get_rng_state()
        model.train()(tokens(model))
        return not torch.equal(torch.get_rng_state(), before)
