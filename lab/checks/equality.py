"""Checks that numbers are the same: on the fast path, compiled, with NEUTRAL, and after a checkpoint."""
import math

import torch
from safetensors.torch import load as load_tensors, save as save_tensors

from core.rng import generator
from core.run.checkpoint import load_model_tensors, model_tensors
from lab.checks.failures import Failed, line_of_variant, require
from lab.checks.models import (
    ITERATIONS,
    capture_embeddings,
    frozen_rng_and_buffers,
    iteration,
    logits_of,
    shake_weights,
    small,
    tokens,
    uses_rng,
)
from lab.checks.precision import float64_throughout
from lab.checks.settings import neutral_options
from model import Step

# what one graph asks for
COMPILES = 'in forward no print, no .item(), no Python branch on a tensor, no attribute written'


# -----------------------------------------------------------------------------
# how equal two results are

def rms(x):
    return x.double().square().mean().sqrt().item()


def assert_close(name, got, want, tol, floor=0.0):
    """Checks that the RMS of got - want is at most tol times that of want, or times floor if larger."""
    off, scale = rms(got - want), rms(want)
    is_close = math.isfinite(off) and off <= tol * max(scale, floor)
    require(is_close, f'{name}: off by {off:.1e}, size {scale:.1e}, {tol:.0e} of it is allowed')


def assert_grads_close(name, got, want, tol):
    """Checks dicts {parameter: gradient}, each as assert_close does."""
    # a gradient that is zero except for rounding is measured against a thousandth of all gradients' RMS
    floor = 1e-3 * torch.stack([g.double().square().mean() for g in want.values()]).mean().sqrt().item()
    for parameter in want:
        assert_close(f'{name}: the gradient of {parameter}', got[parameter], want[parameter], tol, floor)


def outputs_and_grads(model, idx, it=0, seed=0):
    """Returns logits (B, T, vocab_size), the loss, and {name: gradient} of parameters and embedded tokens.

    What is differentiated is the loss plus the logits times a random cotangent.
    """
    leaves, hook = capture_embeddings(model)
    model.zero_grad()
    # backward as well, because a buffer that is put back before it may be one that the gradient needs
    with frozen_rng_and_buffers(model), float64_throughout(model):
        logits, loss = model(idx, idx, Step(it=iteration(it)))
        # a random cotangent, because a plain sum is blind to what a final softmax cancels
        cotangent = torch.randn(logits.shape, generator=generator(seed, 'cotangent'), dtype=torch.float64)
        ((logits * cotangent.to(logits.dtype)).sum() / len(idx) + loss).backward()
    hook.remove()
    grads = {}
    # a parameter that the loss does not reach has gradient 0
    for name, p in model.named_parameters():
        grads[name] = torch.zeros_like(p) if p.grad is None else p.grad.clone()
    grads |= {f'input {i}': x.grad for i, x in enumerate(leaves)}
    return logits.detach(), loss.detach(), grads


# -----------------------------------------------------------------------------
# speed changes nothing

def fast_path(model, impl, T, tol):
    """Checks that attn=impl gives the logits and all gradients of attn=math. Raises Stop if impl refuses."""
    idx = tokens(model, 2, T)
    results = {}
    for attn in 'math', impl:
        model.config.attn = attn
        results[attn] = outputs_and_grads(model, idx)
    want, _, want_grads = results['math']
    got, _, got_grads = results[impl]
    assert_close(f'fast path: logits by {impl} at T={T}', got, want, tol)
    assert_grads_close(f'fast path: {impl} at T={T}', got_grads, want_grads, tol)


def one_graph(model, its=(0, 1, 2, 500), tol=1e-9, backend='aot_eager'):
    """Checks that torch.compile makes one graph for all iterations, with eager mode's loss and gradients.

    Backend 'eager' runs Dynamo's trace as it is, in half the time, but does not test AOTAutograd.
    """
    # imported here, because it takes as long as importing torch
    from torch._dynamo.testing import CompileCounterWithBackend
    idx = tokens(model, 2)
    torch._dynamo.reset()
    counter = CompileCounterWithBackend(backend)

    def objective(x, y, it):
        step = Step(it=it)
        _, loss = model(x, y, step)
        return loss, step.losses

    def run(f, it):
        model.zero_grad()
        with frozen_rng_and_buffers(model):
            loss, losses = f(idx, idx, iteration(it))
            loss.backward()
        grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        return loss.detach(), losses, grads

    graphs = None
    try:
        compiled = torch.compile(objective, backend=counter, fullgraph=True, dynamic=False)
        for it in its:
            want, want_losses, want_grads = run(objective, it)
            got, got_losses, got_grads = run(compiled, it)
            assert_close('one graph: the loss', got, want, tol)
            require(list(want_losses) == list(got_losses), 'one graph: other losses than in eager mode')
            assert_grads_close('one graph', got_grads, want_grads, tol)
            # counted from the first call on, for which Dynamo may need two attempts
            graphs = counter.frame_count if graphs is None else graphs
            require(counter.frame_count == graphs, f'one graph: compiled again at iteration {it}: {COMPILES}')
    except torch._dynamo.exc.TorchDynamoException as error:
        raise Failed(f'one graph: {line_of_variant(error)}{str(error).strip().splitlines()[0]}: {COMPILES}') from error
    finally:
        torch._dynamo.reset()


# -----------------------------------------------------------------------------
# the baseline, and other seeds

def neutral_is_base(variant, options, than='base', its=ITERATIONS, tol=1e-6, shake_own=None, **core_options):
    """Checks that a variant with its NEUTRAL as options has the logits, loss and gradients of `than`.

    This must hold at any weights. shake_own: also at any of the variant's own parameters; None: unless NEUTRAL
    is empty; else they keep their initial values. For a variant a+b and the NEUTRAL of b, than is a. If a draws
    noise in training, only evaluation is compared, because b's modules would change the draws.
    """
    base, model = small(than, shake=0.3, **core_options), small(variant, **options, **core_options)
    base_names = dict(base.named_parameters()).keys()
    shared = {name: p for name, p in model.named_parameters() if name in base_names}
    require(len(shared) == len(base_names), f'neutral: {than} has parameters that {variant} lacks')
    for name, p in base.named_parameters():
        require(shared[name].shape == p.shape, f'neutral: {name} is {tuple(shared[name].shape)} where {than} has '
                f'{tuple(p.shape)}: with other widths it is never the baseline, and needs no NEUTRAL')
    # shared parameters get the baseline's values
    shake_own = bool(options) if shake_own is None else shake_own
    shake_weights(model, 0.3, only=None if shake_own else shared)
    with torch.no_grad():
        for name, p in base.named_parameters():
            shared[name].copy_(p)

    # where `than` draws noise in training, only evaluation can be compared
    idx = tokens(model)
    for training in [False] if uses_rng(base) else [False, True]:
        for it in its:
            want_logits, want_loss, want_grads = outputs_and_grads(base.train(training), idx, it)
            got_logits, got_loss, got_grads = outputs_and_grads(model.train(training), idx, it)
            assert_close('neutral: logits', got_logits, want_logits, tol)
            assert_close('neutral: loss', got_loss, want_loss, tol)
            assert_grads_close('neutral', got_grads, want_grads, tol)


def shared_start(variant):
    """Checks that parameters shared with the baseline start equal to the bit.

    With NEUTRAL, all are shared.
    """
    base = dict(small('base', seed=7).named_parameters())
    # without NEUTRAL, the variant may lack a parameter or give it another shape
    for options in {}, neutral_options(variant) if variant != 'base' else {}:
        params = dict(small(variant, seed=7, **options).named_parameters())
        other_seed = dict(small(variant, seed=8, **options).named_parameters())
        for name, p in base.items():
            is_shared = name in params and params[name].shape == p.shape
            require(is_shared or not options, f'shared start: {name} is missing with {options}')
            require(not is_shared or torch.equal(params[name], p),
                    f'shared start: {name} differs from the baseline')
    require(any(not torch.equal(other_seed[name], p) for name, p in params.items()),
            'shared start: the seed changes nothing')


@torch.no_grad()
def round_trip(variant, **options):
    """Checks that a fresh model gives the same logits after loading a checkpoint's bytes."""
    model = small(variant, 0.3, 1, torch.float32, **options).eval()
    fresh = small(variant, 0.0, 2, torch.float32, **options).eval()
    saved = save_tensors(model_tensors(model))
    idx = tokens(model)
    want = logits_of(model, idx)
    # the test means something only if the fresh model differs before loading
    require(not torch.equal(logits_of(fresh, idx), want),
            'round trip: another seed and weights give the same logits')
    load_model_tensors(fresh, load_tensors(saved))
    require(torch.equal(logits_of(fresh, idx), want), 'round trip: other logits after loading')
