"""What modules compute in a pass, recorded or replaced by PyTorch's own hooks, which go when the context ends."""
from contextlib import ExitStack, contextmanager
from difflib import get_close_matches
from fnmatch import fnmatchcase

import torch

from core.errors import Stop
from model import CausalSelfAttention, Step


def eager(model):
    """Returns the model below torch.compile's wrapper, with the same weights: hooks do not reach what is compiled."""
    return getattr(model, '_orig_mod', model)


def matching(model, *patterns):
    """Returns {name: module} of those whose name matches a pattern as file names do: 'transformer.h.*.attn'.

    The model itself is named 'model'. Stop if a pattern matches none.
    """
    named = {name or 'model': module for name, module in eager(model).named_modules()}
    found = {name: module for name, module in named.items() if any(fnmatchcase(name, p) for p in patterns)}
    for lost in [p for p in patterns if not any(fnmatchcase(name, p) for name in named)]:
        raise Stop(f'{lost}: names no module; {near_names(lost, list(named))}')
    return found


def near_names(lost, named):
    """Returns, in words, which of the names a pattern that matches none may have meant, or the first few."""
    last = lambda name: name.rpartition('.')[2]
    near = [name for name in named if lost.strip('*') in name] or get_close_matches(lost, named, 3)
    if not near:
        like = get_close_matches(last(lost), set(map(last, named)), 1)
        near = [name for name in named if last(name) in like]
    return f'near it: {", ".join(near[:3])}' if near else f'there are {", ".join(named[:8])} ...'


@contextmanager
def record(model, *patterns, inputs=False):
    """A context that collects what modules put out, or with inputs=True their first input, as {name: tensor}.

    A module that runs again in the pass is name:2, and so on; of a tuple the first tensor counts.
    """
    found, calls = {}, {}

    def keep(name, x):
        calls[name] = calls.get(name, 0) + 1
        found[name if calls[name] == 1 else f'{name}:{calls[name]}'] = x[0] if isinstance(x, tuple) else x

    with ExitStack() as stack:
        for name, module in matching(model, *patterns).items():
            if inputs:
                hook = module.register_forward_pre_hook(lambda m, args, name=name: keep(name, args))
            else:
                hook = module.register_forward_hook(lambda m, args, y, name=name: keep(name, y))
            stack.callback(hook.remove)
        yield found


@contextmanager
def replace(model, changes, inputs=False):
    """A context in which modules put out, or with inputs=True take in, what functions make of it.

    changes: {module's name: f(tensor) -> tensor}. Of a tuple the first tensor is changed.
    """
    def change(f, x):
        return (f(x[0]), *x[1:]) if isinstance(x, tuple) else f(x)

    modules = matching(model, *changes)
    with ExitStack() as stack:
        for name, f in changes.items():
            if inputs:
                hook = modules[name].register_forward_pre_hook(lambda m, args, f=f: change(f, args))
            else:
                hook = modules[name].register_forward_hook(lambda m, args, y, f=f: change(f, y))
            stack.callback(hook.remove)
        yield


@contextmanager
def attention_patterns(model, positions=None):
    """A context that collects what each query attends to, {attention module's name: weights (B, heads, T, Tk)}.

    positions: a dict to collect the positions of queries and keys, (B, T) and (B, Tk), under the same names;
    where a variant routes tokens they are not 0, 1, 2 and so on.

    y = weights @ v, whatever a variant does to scores, so they are what attention makes of values that are the rows
    of a unit matrix: of compute_attention() where the variant calls it, else of attend(). A module that attends
    again in the pass, as for a second map or for smaller heads, is name:2. Costs another, wider attention.
    """
    found, calls = {}, {}

    def keep(name, y, step, pos_k):
        calls[name] = calls.get(name, 0) + 1
        name = name if calls[name] == 1 else f'{name}:{calls[name]}'
        # a variant may want statistics beside it
        found[name] = (y[0] if isinstance(y, tuple) else y).detach()
        if positions is not None:
            positions[name] = step.pos, pos_k

    def watch(name, attn, attend, compute):
        def unit_values(k, v):
            return torch.eye(k.size(-2), dtype=v.dtype, device=v.device).expand(*k.shape[:-1], -1)

        def compute_twice(q, k, v, score_mod, pos_k, step, **how):
            keep(name, compute(q, k, unit_values(k, v), score_mod, pos_k, step, **how), step, pos_k)
            return compute(q, k, v, score_mod, pos_k, step, **how)

        def attend_once_or_twice(q, k, v, x, pos_k, step):
            before = calls.get(name, 0)
            y = attend(q, k, v, x, pos_k, step)
            if calls.get(name, 0) == before:
                # what it logs and hands on is the first call's
                y_unit = attend(q, k, unit_values(k, v), x, pos_k, Step(step.pos, step.it))
                keep(name, y_unit, step, pos_k)
            return y
        return attend_once_or_twice, compute_twice

    modules = {name: m for name, m in eager(model).named_modules() if isinstance(m, CausalSelfAttention)}
    try:
        for name, attn in modules.items():
            # attributes of the object, over the methods of its class
            attn.attend, attn.compute_attention = watch(name, attn, attn.attend, attn.compute_attention)
        yield found
    finally:
        for attn in modules.values():
            for method in 'attend', 'compute_attention':
                vars(attn).pop(method, None)


def heads_of(run, idx):
    """Returns {attention module's name: heads} of those whose c_proj takes in what the heads put out, side by side."""
    attended, model = {}, eager(run.model)
    modules = {name: m for name, m in model.named_modules() if isinstance(m, CausalSelfAttention)}

    def watch(name, attend):
        def call(*args):
            attended[name] = attend(*args)
            return attended[name]
        return call

    try:
        for name, attn in modules.items():
            attn.attend = watch(name, attn.attend)
        with record(model, *(f'{name}.c_proj' for name in modules), inputs=True) as taken:
            run.logits(idx[:1])
    finally:
        for attn in modules.values():
            vars(attn).pop('attend', None)
    return {name: y.size(1) for name, y in attended.items()
            if torch.is_tensor(y) and torch.equal(y.transpose(1, 2).flatten(2), taken[f'{name}.c_proj'])}
