"""Shared parts of the golden tests: a file's arrays, its parameters in our modules, and the comparison.

A module golden_<family>.py beside this one says in SOURCES how a family's names and options become ours.
Everything is computed in float64, by the backends that attn=auto chooses on a CPU.
"""
import json
from collections import UserDict
from dataclasses import dataclass, field

import numpy as np
import torch

from model import Step, build

TOLERANCE = 1e-9        # of max|d| / (1 + max|golden|), see FORMAT.md
# in float32 in the source
FLOAT32_MEANS = 'gate_means', 'aux_gate', 'mean_gate_activation', 'accuracy', 'causal_acc'

# fields of a config that the arrays have: sizes of a batch, and where the source computed
SHAPES = 'batch_size', 'max_batch_size', 'device'


class Config(UserDict):
    """A source's config, which knows what nobody has read of it: an option that we ignore would pass by luck."""

    def __init__(self, fields):
        super().__init__(fields)
        self.unread = set(fields) - set(SHAPES)

    def __getitem__(self, name):
        self.unread.discard(name)
        return super().__getitem__(name)

    def ignore(self, *names):
        """Says that these fields change nothing at this file's level, or are in its arrays."""
        self.unread -= set(names)

    def only(self, **values):
        """Asserts that fields for which we have no option have the values that our code assumes."""
        for name, value in values.items():
            assert self[name] == value, f'{name}={self[name]!r}: our code has {value!r} alone'


class Golden:
    """One file: meta, and arrays by prefix ('in', 'param', 'out', 'grad') and name."""

    def __init__(self, path):
        with np.load(path) as file:
            self.meta = json.loads(str(file['meta']))
            self.arrays = {name: torch.from_numpy(np.array(file[name])) for name in file.files if name != 'meta'}
        self.config = self.meta['config'] = Config(self.meta.get('config') or {})
        self.arrays = {name: a.double() if a.is_floating_point() else a for name, a in self.arrays.items()}

    def __call__(self, prefix):
        return {name.removeprefix(prefix + '.'): a for name, a in self.arrays.items() if name.startswith(prefix + '.')}


def fill(module, values, name_of, config):
    """Copies a source's parameters into a module of ours, all of whose own that train must then be filled.

    name_of: as Source.name.
    """
    missing = {name: p.numel() for name, p in module.named_parameters() if p.requires_grad}
    with torch.no_grad():
        for name, value in values.items():
            ours, rows = name_of(name, config)
            module.get_parameter(ours)[rows].copy_(value)
            missing[ours] -= value.numel()
    assert not any(missing.values()), missing


def rope_base(golden):
    """Returns the base of the file's rotations: the second of n / 2 pairs turns by base^(-2 / n) a token."""
    cos, sin = golden('in')['freqs_cos'], golden('in')['freqs_sin']
    if min(cos.shape) == 1 or not golden.config['rope']:
        return 10000.0
    return torch.atan2(sin[1, 1], cos[1, 1]).double().item() ** -cos.size(1)


def close(name, got, want):
    got, want = torch.as_tensor(got).detach().double(), want.double()
    assert got.shape == want.shape, f'{name}: {tuple(got.shape)}, not {tuple(want.shape)}'
    off = ((got - want).abs().max() / (1 + want.abs().max())).item()
    most = max(TOLERANCE, 1e-6 if name.split('.')[-1] in FLOAT32_MEANS else 0)
    assert off <= most, f'{name}: off by {off:.1e}, {most:.0e} is allowed'


def same_options(config):
    return config


def same_name(name, config):
    return name, ...


@dataclass
class Source:
    variant: str = 'base'
    options: callable = same_options            # meta.config -> ours
    prepare: callable = lambda model: None      # what options do not say
    name: callable = same_name                  # the source's parameter -> (ours, rows of it)
    not_ours: tuple = ()                        # parameters that the source does not have
    # outputs that our modules keep to themselves; others depend on them
    not_shown: tuple = ()
    # meta.constants, which are no options in our code either
    constants: dict = field(default_factory=dict)
    levels: dict = field(default_factory=dict)

    def module(self, golden):
        """Returns the module of the file's level, with the file's parameters, and the model around it."""
        config = golden.meta['config']
        model = build(self.variant, **self.options(config))
        self.prepare(model)
        model.double().train()
        block = model.transformer.h[0]
        module = {'attn': block.attn, 'block': block}.get(golden.meta['level'], model)
        mine, filled = dict(module.named_parameters(remove_duplicate=False)), set()
        with torch.no_grad():
            for name, value in golden('param').items():
                ours, rows = self.name(name, config)
                mine[ours][rows].copy_(value)
                filled.add(ours)
        assert [n for n in mine if n not in filled and not n.endswith(self.not_ours)] == []
        return module, model

    def compare(self, golden, module, outs, x=None):
        """Compares every output and gradient in the file."""
        wanted = {name: value for name, value in golden('out').items() if name.split('.')[-1] not in self.not_shown}
        assert set(wanted) <= set(outs), f'not compared: {set(wanted) - set(outs)}'
        for name, want in wanted.items():
            close(f'out.{name}', outs[name], want)
        mine, config = dict(module.named_parameters(remove_duplicate=False)), golden.meta['config']
        for name, want in golden('grad').items():
            ours, rows = self.name(name, config)
            close(f'grad.{name}', x.grad if name == 'in.x' else mine[ours].grad[rows], want)
        for name in golden.meta.get('grad_none', ()):
            ours, rows = self.name(name, config)
            assert mine[ours].grad is None or not mine[ours].grad[rows].any(), f'{name}: has a gradient'


def new_step(golden, x):
    B, T = x.shape[:2]
    step = Step(stats={}, it=golden('in').get('current_iter', torch.tensor(0)).double())
    # as GPT.forward does
    step.pos = torch.arange(T).expand(B, T)
    step.idx = golden('in').get('idx', torch.zeros_like(step.pos))
    return step


def spy(module, method, calls):
    """Records the arguments and results of a method of this one object."""
    f = getattr(module, method)

    def noted(*args):
        result = f(*args)
        calls.append((args, result))
        return result
    setattr(module, method, noted)


def attention_pass(golden, source):
    """Runs an attention module forward and backward: module, x, step, (y, objective), (q, k, pos_k)."""
    module, _ = source.module(golden)
    x, step, calls = golden('in')['x'].requires_grad_(), new_step(golden, golden('in')['x']), []
    spy(module, 'attend', calls)
    y = module(x, step)
    objective = (y * golden('in')['gy']).sum()
    objective.backward()
    (q, k, _, _, pos_k, _), _ = calls[0]
    return module, x, step, (y, objective), (q, k, pos_k)
