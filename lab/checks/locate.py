"""Finds the module in which two passes with different tokens part, by hooks."""
import torch

from lab.checks.state import short


def first_difference(model, run, one, two, row, end):
    """Returns where the row's activations before `end` first differ for tokens one and two (B, T), and the size.

    run(idx) makes a pass. The answer is 'first in h.0.attn (1.2e-01)' if the module's own code does it, and
    'first in h.0 before h.0.ln_2 (1.2e-01)' if the code around its modules does.
    """
    recorded = []

    def record(event, x):
        # parts of a batch, or of a row, cannot be compared
        if isinstance(x, torch.Tensor) and x.ndim > 1 and x.shape[:2] == one.shape:
            recorded.append((event, x[row, :end].detach().clone()))
        else:
            recorded.append((event, None))

    want, got = (trace(model, run, idx, recorded, record) for idx in (one, two))
    first = None
    for (event, a), (_, b) in zip(want, got):
        if a is not None and b is not None and a.shape == b.shape and not torch.equal(a, b):
            first = first or event
            # of tokens, the size says nothing
            if a.is_floating_point():
                return f'first in {first} ({(a - b).abs().max().item():.1e})'
    return f'first in {first or "GPT"}'


def first_difference_in_decoding(model, idx, done, size, full, part):
    """Returns where a pass over some positions parts from a pass over all: 'first in h.0.mlp (1.2e-01)'.

    full(idx) passes over the tokens idx (B, T); part(new) over those from `done` on, `size` of them, with a cache.
    """
    recorded = []

    def record(event, x):
        recorded.append((event, x.detach().clone() if isinstance(x, torch.Tensor) else None))

    want = dict(trace(model, full, idx, recorded, record))
    # a module may run in one of the passes alone, as that of the position embeddings
    for event, b in trace(model, part, idx[:, done:done + size], recorded, record):
        a = want.get(event)
        of_tokens = a is not None and b is not None and a.shape[:2] == idx.shape and b.shape[:2] == (len(idx), size)
        if of_tokens and a.is_floating_point() and a.shape[2:] == b.shape[2:]:
            change = (a[:, done:done + size] - b).abs().max().item()
            if change > 1e-9 * (1 + a.abs().max().item()):
                return f'first in {event} ({change:.1e})'
    return 'first in GPT'


def trace(model, run, idx, recorded, record):
    """Returns [(event, activations)] of a pass, in the order of the passes' calls."""
    recorded.clear()
    names = {module: short(name) for name, module in model.named_modules()}
    stack, hooks = [], []

    def enter(module, args):
        # what differs on the way in was made by the code around the module
        around = stack[-1] if stack else 'GPT'
        record(f'{around} before {names[module]}', first_tensor(args))
        stack.append(names[module])

    def leave(module, args, out):
        stack.pop()
        record(names[module], first_tensor(out))
    for module in names:
        hooks += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
    try:
        run(idx)
    finally:
        for hook in hooks:
            hook.remove()
    return list(recorded)


def first_tensor(x):
    """Returns x, or the first of a tuple."""
    return x[0] if isinstance(x, tuple) and x else x
