"""What a variant costs beside the baseline: time, memory, parameters, FLOPs and decoding speed.

    python bench.py --variants=surprise,soft_window
    python bench.py --variants=soft_window --block_size=1024 --n_embd=768 --n_head=12 --n_layer=12 --batch_size=16
    python bench.py --variants=soft_window,hard_window --module --block_size=4096 --n_embd=768 --n_head=12 --batch_size=4
    python bench.py --variants=surprise --check

All arms are timed in one process in turn, A B A B, because machines drift. Times are medians of the rounds. With --check
nothing is timed: small models on the CPU show whether a variant sees the future or other rows, in half a minute or so. With
--module the attention module of one layer is timed alone.
"""
import json
import statistics
import sys
import time
from dataclasses import dataclass, fields
from types import SimpleNamespace
from typing import Literal

import torch

from configurator import Count, DeviceOptions, Positive, Whole, configure, expand_flags
from core.device.cuda_graph import GraphPool
from core.device.flops import flops_per_token
from core.device.machine import machine
from core.errors import Stop, run_main
from core.rng import generator
from core.run.environment import versions
from core.training.train_step import TrainStep
from lab import checks
from model import GPTConfig, Step, build, load_classes


@dataclass
class Options(DeviceOptions):
    variants: str = ''                  # what to time beside the baseline: a,b,a+b
    batch_size: Count = 64              # rows a step
    rounds: Count = 10                  # timings of each arm, in turn
    seconds: Positive = 0.1             # about how long one timing takes
    decode_tokens: Count = 200          # tokens to decode, one row, with the cache
    peak_tflops: Positive | None = None # the device's dense peak in this dtype, for MFU; None: from the table in core/device/machine.py
    optimizer: Literal['adamw', 'muon'] = 'adamw' # of the steps
    seeds: Count = 1                    # also time the steps of this many seeds at once, as ab.py trains them
    seed: Whole = 1337                  # of the weights and the tokens
    module: bool = False                # time the first layer's attention module alone, forward and backward
    check: bool = False                 # look for leaks, and whether it decodes as it evaluates, instead; exit code 2 if so


@dataclass
class GPTConfig(GPTConfig):
    block_size: Count = 256             # the model of config/train_shakespeare_char.py
    vocab_size: Count = 65
    n_layer: Count = 6
    n_head: Count = 6
    n_embd: Count = 384


class Arm:
    """One variant, ready to be timed: forward(), backward() (forward too), step(), decode() and together(), many seeds' steps."""

    def __init__(self, variant, o, m, model_args, pool):
        self.variant, self.o, self.m, self.model, self.config = variant, o, m, *built(variant, o, m, model_args)
        classes = load_classes(variant)
        self.forward_flops, self.train_flops = flops_per_token(classes, self.config)
        before = torch.cuda.memory_allocated() if m.type == 'cuda' else 0
        self.update = self.update_of(self.model, pool)
        self.x, self.y = torch.randint(self.config.vocab_size, (2, o.batch_size, self.config.block_size),
                                       generator=generator(o.seed, 'bench')).to(m.device)
        if m.type == 'cuda':
            torch.cuda.reset_peak_memory_stats()
        self.compile_seconds = timed(self.step, 1, m) / 1000
        self.peak_bytes = torch.cuda.max_memory_allocated() - before if m.type == 'cuda' else None
        self.forward, self.backward = self.run_forward, self.run_backward
        self.samples = {'forward': [], 'backward': [], 'step': [], 'decode': []}
        self.updates = [self.update, *(self.update_of(built(variant, o, m, model_args)[0]) for _ in range(o.seeds - 1))]
        self.streams = [torch.cuda.Stream() if m.type == 'cuda' else None for _ in self.updates]
        if self.update.graphed:
            for _ in range(3): # until every step is a graph
                self.together()
            self.forward, self.backward = (pool.replayable(call) for call in (self.forward, self.backward))
        if o.seeds > 1:
            self.samples['together'] = []

    def update_of(self, model, pool=None):
        optimizer = model.configure_optimizers(0.1, 1e-3, (0.9, 0.99), self.m.type, self.o.optimizer)
        return TrainStep(model, optimizer, self.m, (1, self.o.batch_size, self.config.block_size), 1.0, self.o.seed, pool=pool)

    @torch.no_grad()
    def run_forward(self):
        with self.m.autocast():
            self.update.objective(self.x, self.y, self.update.it)

    def run_backward(self):
        self.update.accumulate_gradients()
        self.update.optimizer.zero_grad(set_to_none=True)

    def step(self):
        self.update(1, self.x, self.y, 1e-3)

    def together(self):
        for update, stream in zip(self.updates, self.streams, strict=True):
            with torch.cuda.stream(stream):
                update(1, self.x, self.y, 1e-3)

    def decode(self):
        self.model.eval()
        idx = torch.zeros(1, 1, dtype=torch.long, device=self.m.device)
        with self.m.tf32(), self.m.autocast():
            for _ in self.model.stream(idx, self.o.decode_tokens, temperature=0):
                pass
        self.model.train()

    def result(self, peak_flops):
        median = {what: statistics.median(ms) for what, ms in self.samples.items()}
        tokens = self.o.batch_size * self.config.block_size
        return dict(variant=self.variant, params=self.model.num_params(), forward_flops_per_token=self.forward_flops,
                    flops_per_token=self.train_flops, forward_ms=median['forward'], forward_backward_ms=median['backward'],
                    step_ms=median['step'], tokens_per_s=1000 * tokens / median['step'], peak_bytes=self.peak_bytes,
                    mfu=self.train_flops * tokens / (median['step'] / 1000) / peak_flops if peak_flops else None,
                    decode_tokens_per_s=1000 * self.o.decode_tokens / median['decode'],
                    seeds=self.o.seeds, seeds_step_ms=median.get('together'),
                    first_step_seconds=self.compile_seconds, samples_ms=self.samples)


class ModuleArm:
    """The attention module of a variant's first layer, ready to be timed: backward(), with forward, for a random cotangent."""

    def __init__(self, variant, o, m, model_args, pool):
        self.variant, self.m, (model, self.config) = variant, m, built(variant, o, m, model_args | dict(n_layer=2))
        self.module, shape = model.transformer.h[0].attn, (o.batch_size, self.config.block_size, self.config.n_embd)
        self.x, self.dy = torch.randn(2, *shape, generator=generator(o.seed, 'bench')).to(m.device) # (B, T, C) each
        self.x.requires_grad_()
        self.call = torch.compile(self.run, fullgraph=True, dynamic=False) if m.compile else self.run
        self.samples = {'backward': []}
        backends = set()
        self.run(self.x, backends)
        self.ways = sorted({way for way, _ in backends})
        self.run_backward()
        self.peak_bytes = None
        if m.type == 'cuda':
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            self.run_backward()
            self.peak_bytes = torch.cuda.max_memory_allocated() - before
        self.backward = pool.replayable(self.run_backward) if m.type == 'cuda' and m.compile else self.run_backward

    def run(self, x, backends=None):
        step = Step(backends=backends)
        step.pos = torch.arange(x.size(1), device=x.device).expand(x.size(0), -1)
        step.it = torch.zeros((), device=x.device)
        with self.m.autocast():
            return self.module(x, step)

    def run_backward(self):
        y = self.call(self.x)
        torch.autograd.grad(y, [self.x, *self.module.parameters()], self.dy.to(y.dtype), allow_unused=True)

    def result(self, peak_flops):
        return dict(variant=self.variant, ms=statistics.median(self.samples['backward']), peak_bytes=self.peak_bytes,
                    attention=self.ways, samples_ms=self.samples)


def built(variant, o, m, model_args):
    """(the model on its device, its config), from those options that it has."""
    known = {f.name for f in fields(load_classes(variant).GPTConfig)}
    model = build(variant, o.seed, **{name: v for name, v in model_args.items() if name in known}).to(m.device).train()
    return model, model.config


def timed(call, n, m):
    """Milliseconds a call, over n calls."""
    m.synchronize()
    began = time.perf_counter()
    for _ in range(n):
        call()
    m.synchronize()
    return 1000 * (time.perf_counter() - began) / n


def interleave(arms, rounds, seconds):
    """Times every arm in turn, so that what drifts drifts for all: about `seconds` for each of its calls, `rounds` times.

    One kind of call after the other, not all kinds a round: after decoding, which hardly warms a GPU, the arm that came next would
    be timed at a higher clock than those after it.
    """
    for what in arms[0].samples:
        n = max(1, round(1000 * seconds / timed(getattr(arms[0], what), 2, arms[0].m)))
        for _ in range(rounds):
            for arm in arms:
                arm.samples[what].append(timed(getattr(arm, what), n, arm.m))


def union_config(variants):
    """A loader for the configurator: the options of all the arms."""
    configs = tuple(dict.fromkeys(load_classes(v).GPTConfig for v in variants if v != 'base')) # base's are ours
    union = dataclass(type('GPTConfig', (GPTConfig, *configs), {'__doc__': GPTConfig.__doc__})) if configs else GPTConfig
    return lambda variant: SimpleNamespace(GPTConfig=union)


def table(results):
    """The results as aligned text; times and memory beside the baseline's."""
    base = results[0]
    ratio = lambda r, what: f'{r[what]:.2f}' + (f' ({r[what] / base[what]:.2f}x)' if r is not base else '')
    head = ('variant', 'params', 'MFLOPs/token', 'forward ms', 'fwd+bwd ms', 'step ms', 'tokens/s', 'peak MiB', 'MFU',
            'decode tok/s', *([f"{base['seeds']} seeds ms (of one)"] if base['seeds_step_ms'] else []))
    rows = [head] + [(
        r['variant'], f"{r['params'] / 1e6:.2f}M", f"{r['flops_per_token'] / 1e6:.1f}", ratio(r, 'forward_ms'),
        ratio(r, 'forward_backward_ms'), ratio(r, 'step_ms'), f"{r['tokens_per_s']:,.0f}",
        f"{r['peak_bytes'] / 2**20:,.0f}" if r['peak_bytes'] else '-', f"{r['mfu']:.1%}" if r['mfu'] else '-',
        f"{r['decode_tokens_per_s']:,.0f}",
        *([f"{r['seeds_step_ms']:.2f} ({r['seeds_step_ms'] / r['step_ms']:.2f}x)"] if r['seeds_step_ms'] else [])) for r in results]
    return aligned(rows)


def module_table(results):
    base = results[0]
    beside = lambda r, what, text: text + (f' ({r[what] / base[what]:.2f}x)' if r is not base else '')
    return aligned([('variant', 'attention by', 'fwd+bwd ms', 'peak MiB')] + [(
        r['variant'], ', '.join(r['attention']), beside(r, 'ms', f"{r['ms']:.3f}"),
        beside(r, 'peak_bytes', f"{r['peak_bytes'] / 2**20:,.0f}") if r['peak_bytes'] else '-') for r in results])


def aligned(rows):
    width = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return '\n'.join('  '.join([f'{row[0]:<{width[0]}}', *(f'{cell:>{w}}' for cell, w in zip(row[1:], width[1:]))]) for row in rows)


def check(variants, model_args):
    """Runs lab/checks.py's suite on each variant, with its own options as given; Stop with what failed first."""
    failed = None
    for variant in variants:
        own = {f.name for f in fields(load_classes(variant).GPTConfig)} - {f.name for f in fields(GPTConfig)}
        for c in checks.outcomes(variant, **{name: value for name, value in model_args.items() if name in own}):
            print(f'{variant:<20} {c.name:<60} {c.said:<20} {c.seconds:6.1f} s', flush=True)
            failed = failed or (c.why and f'{variant}: {c.name}: {c.why}')
    if failed:
        raise Stop(failed)


def main():
    argv = expand_flags(sys.argv[1:], Options)
    o = configure(Options, say=lambda text: None, argv=[a for a in argv if a.startswith('--variants=')]).options
    variants = ['base', *(v for v in o.variants.split(',') if v)]
    if len(set(variants)) < len(variants):
        raise Stop(f'variants={o.variants}: base is always there, and each variant is named once')
    config = configure(Options, union_config(variants), argv)
    if config.options.check:
        return check(variants[1:] or variants, config.model_args)
    o, m = config.options, machine(config.options.device, config.options.dtype, config.options.compile)
    if m.compile:
        torch._dynamo.config.recompile_limit = 8 * len(variants) # every arm compiles the same function anew
    model_args = {name: getattr(GPTConfig, name) for name in ('block_size', 'vocab_size', 'n_layer', 'n_head', 'n_embd')}
    kind, show = (ModuleArm, module_table) if o.module else (Arm, table)
    pool = GraphPool() if m.type == 'cuda' else None
    arms = [kind(v, o, m, model_args | config.model_args, pool) for v in variants]
    peak = o.peak_tflops * 1e12 if o.peak_tflops else m.peak_flops()
    interleave(arms, o.rounds, o.seconds)
    results = [arm.result(peak) for arm in arms]
    print(f"\n{m.name}, {m.dtype}, {'compiled' if m.compile else 'eager'}, batch {o.batch_size} x {arms[0].config.block_size}"
          + ('' if peak or o.module else '; no MFU: give --peak_tflops'))
    print(show(results))
    print(json.dumps(dict(device=m.name, dtype=m.dtype, compile=m.compile, versions=versions(), results=results)))


if __name__ == '__main__':
    run_main(main)
