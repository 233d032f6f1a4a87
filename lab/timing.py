"""Times variants in turn: forward, backward, a training step and decoding, or an attention module alone.

Each round times every variant once, so that a ratio to the first one, the baseline, is of two samples taken
close together. Times and ratios are medians over the rounds, with 95 % intervals.
"""
import statistics
import sys
import time
from dataclasses import fields
from itertools import accumulate
from math import comb

import torch

from core.device.flops import flops_per_token
from core.rng import generator
from core.training.train_step import TrainStep
from model import Step, build, load_classes

# by kind of call, what its figures are named: step_ms, step_ms_interval, step_ratio, step_ratio_interval
FIGURES = dict(forward='forward', backward='forward_backward', step='step', together='seeds_step')
# the half width of a ratio's interval, over the ratio, at which it is known well enough
PRECISION = 0.01


class TimedModel:
    """A variant, ready for interleave(): each key of `samples` names a method and collects milliseconds.

    machine: a core.device.machine.Machine. batch_size: rows per step. decode_tokens: how many tokens decode()
    generates, in one row, with the cache. optimizer: adamw or muon. seeds: above 1, together() is timed too,
    one step of that many models. pool: on CUDA a GraphPool, shared by all that are timed. calls: what will be
    timed; on CUDA forward and backward have graphs of their own, which take seconds to compile.
    """

    def __init__(self, variant, machine, model_args, batch_size, decode_tokens, optimizer='adamw', seed=1337,
                 seeds=1, pool=None, calls=('forward', 'backward', 'step', 'decode')):
        self.variant, self.machine = variant, machine
        self.batch_size, self.decode_tokens, self.optimizer = batch_size, decode_tokens, optimizer
        self.seed, self.seeds = seed, seeds
        self.model = build_from_known(variant, seed, machine, model_args)
        self.config = self.model.config
        self.forward_flops, self.train_flops = flops_per_token(load_classes(variant), self.config)

        cuda = machine.type == 'cuda'
        allocate_workspaces(machine, pool)
        before = torch.cuda.memory_allocated() if cuda else 0
        self.train_step = self.make_train_step(self.model, pool)
        shape = 2, batch_size, self.config.block_size
        self.x, self.y = torch.randint(self.config.vocab_size, shape,
                                       generator=generator(seed, 'bench')).to(machine.device) # (B, T) each
        self.first_step_seconds = milliseconds(self.step, 1, machine) / 1000
        # peak memory of a step, in bytes beside the weights; not of the first, in which new kernels are timed
        self.peak_bytes = None
        if cuda:
            torch.cuda.reset_peak_memory_stats()
            milliseconds(self.step, 1, machine)
            self.peak_bytes = torch.cuda.max_memory_allocated() - before

        # each further seed has its own model and stream, as in ab.py
        more = [build_from_known(variant, seed, machine, model_args) for _ in range(seeds - 1)]
        self.train_steps = [self.train_step, *map(self.make_train_step, more)]
        self.streams = [torch.cuda.Stream() if cuda else None for _ in self.train_steps]
        self.forward, self.backward = self.run_forward, self.run_backward
        if self.train_step.graphed:
            # a step becomes a CUDA graph after three ordinary calls
            for _ in range(3):
                self.together()
            if 'forward' in calls:
                self.forward = pool.replayable(self.forward)
            if 'backward' in calls:
                self.backward = pool.replayable(self.backward)

        self.samples = {call: [] for call in calls}
        if seeds > 1:
            self.samples['together'] = []

    def make_train_step(self, model, pool=None):
        """Returns the TrainStep of a model. Steps that run side by side cannot share a pool."""
        optimizer = model.configure_optimizers(0.1, 1e-3, (0.9, 0.99), self.machine.type, self.optimizer)
        shape = 1, self.batch_size, self.config.block_size
        return TrainStep(model, optimizer, self.machine, shape, 1.0, self.seed, pool=pool)

    @torch.no_grad()
    def run_forward(self):
        with self.machine.precision():
            self.train_step.objective(self.x, self.y, self.train_step.it)

    def run_backward(self):
        """Runs forward and backward, without an optimizer step."""
        with self.machine.tf32():
            self.train_step.accumulate_gradients()
        self.train_step.optimizer.zero_grad(set_to_none=True)

    def step(self):
        self.train_step(1, self.x, self.y, 1e-3)

    def together(self):
        """Runs one step of every seed, each in its own stream."""
        for train_step, stream in zip(self.train_steps, self.streams, strict=True):
            with torch.cuda.stream(stream):
                train_step(1, self.x, self.y, 1e-3)

    def decode(self):
        """Decodes decode_tokens tokens greedily, in eager mode."""
        self.model.eval()
        idx = torch.zeros(1, 1, dtype=torch.long, device=self.machine.device)
        with self.machine.precision():
            for _ in self.model.stream(idx, self.decode_tokens, temperature=0):
                pass
        self.model.train()

    def result(self, peak_flops, baseline):
        """Returns medians with their intervals and what follows from them, a dict for JSON.

        peak_flops: FLOP/s; None: no MFU. baseline: the TimedModel that ratios are to.
        """
        tokens = self.batch_size * self.config.block_size
        step_ms, decode_ms = (statistics.median(self.samples[call]) for call in ('step', 'decode'))
        result = dict(
            variant=self.variant,
            params=self.model.get_num_params(),
            forward_flops_per_token=self.forward_flops,
            flops_per_token=self.train_flops,
            tokens_per_s=1000 * tokens / step_ms,
            peak_bytes=self.peak_bytes,
            mfu=1000 * self.train_flops * tokens / step_ms / peak_flops if peak_flops else None,
            decode_tokens_per_s=1000 * self.decode_tokens / decode_ms,
            seeds=self.seeds,
            first_step_seconds=self.first_step_seconds,
            samples_ms=self.samples,
        )
        for call, name in FIGURES.items():
            if call in self.samples:
                figures = time_and_ratio(self.samples[call], baseline.samples[call])
                result |= {f'{name}_{field}': value for field, value in figures.items()}
        return result


class TimedAttention:
    """The attention module of a variant's first layer; backward(), which runs forward too, is what is timed.

    Arguments and `samples` are those of TimedModel. The cotangent is random.
    """

    def __init__(self, variant, machine, model_args, batch_size, seed=1337, pool=None):
        self.variant, self.machine = variant, machine
        # two layers, because some variants change every second one
        model = build_from_known(variant, seed, machine, model_args | dict(n_layer=2))
        self.config = model.config
        self.module = model.transformer.h[0].attn
        shape = 2, batch_size, self.config.block_size, self.config.n_embd
        # input and cotangent, (B, T, C) each
        self.x, self.dy = torch.randn(shape, generator=generator(seed, 'bench')).to(machine.device)
        self.x.requires_grad_()
        self.forward = self.run_forward
        if machine.compile:
            self.forward = torch.compile(self.run_forward, fullgraph=True, dynamic=False)
        self.samples = {'backward': []}

        # one eager pass notes the backends, [(backend, why)], that attention chooses
        backends = set()
        self.run_forward(self.x, backends)
        self.backends = sorted({way for way, _ in backends})
        self.run_backward()
        self.peak_bytes = None
        self.backward = self.run_backward
        if machine.type == 'cuda':
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            self.run_backward()
            self.peak_bytes = torch.cuda.max_memory_allocated() - before
            if machine.compile:
                self.backward = pool.replayable(self.run_backward)

    def run_forward(self, x, backends=None):
        """Returns the module's output (B, T, C); backends: a set that collects (backend, why)."""
        step = Step(backends=backends)
        step.pos = torch.arange(x.size(1), device=x.device).expand(x.size(0), -1) # (B, T)
        step.idx = torch.zeros_like(step.pos)
        step.it = torch.zeros((), device=x.device)
        with self.machine.autocast():
            return self.module(x, step) # (B, T, C)

    def run_backward(self):
        inputs = [self.x, *self.module.parameters()]
        # autocast is inside of forward(), where torch.compile sees it
        with self.machine.tf32():
            y = self.forward(self.x)
            # allow_unused: a parameter that only the rest of the layer reads has no gradient here
            torch.autograd.grad(y, inputs, self.dy.to(y.dtype), allow_unused=True)

    def result(self, peak_flops, baseline):
        """Returns the median with its interval and the backends of attention, a dict for JSON.

        peak_flops is not used. baseline: the TimedAttention that the ratio is to.
        """
        figures = time_and_ratio(self.samples['backward'], baseline.samples['backward'])
        return dict(variant=self.variant, **figures, peak_bytes=self.peak_bytes, attention=self.backends,
                    samples_ms=self.samples)


def build_from_known(variant, seed, machine, model_args):
    """Returns the model on its device, in training mode, built from those model_args that its config has."""
    # model_args holds the options of all variants that are timed
    known = {f.name for f in fields(load_classes(variant).GPTConfig)}
    model = build(variant, seed, **{name: value for name, value in model_args.items() if name in known})
    return model.to(machine.device).train()


def allocate_workspaces(machine, pool):
    """Lets cuBLAS allocate what it keeps, so that the first model's peak memory does not count it.

    That is 32 MiB on an H200 for each pair of a thread and a stream: forward runs in this thread, backward in
    one of autograd's, on the current stream or, where a step becomes a graph, on that of the GraphPool.
    """
    if machine.type != 'cuda':
        return
    for stream in torch.cuda.current_stream(), *([pool.stream] if pool else []):
        with torch.cuda.stream(stream):
            # in the type of the model's products, and in float32, which routers and losses may keep
            for context in machine.precision, machine.tf32:
                with context():
                    x = torch.ones(16, 16, device=machine.device, requires_grad=True)
                    torch.nn.functional.linear(x, x, x[0]).sum().backward()
    machine.synchronize()


# -----------------------------------------------------------------------------
# rounds

def clock_for(machine):
    """Returns the clock to time a machine's work by, in seconds.

    One thread on a CPU is timed by the time that the CPU gave to this process, because others interrupt it;
    several threads, and a GPU, by the time that passed.
    """
    # Windows counts a process's time in units of 15.6 ms
    one_thread = machine.type == 'cpu' and torch.get_num_threads() == 1 and sys.platform != 'win32'
    return time.process_time if one_thread else time.perf_counter


def milliseconds(call, n, machine):
    """Returns the mean time of n calls, in milliseconds per call."""
    clock = clock_for(machine)
    machine.synchronize()
    t0 = clock()
    for _ in range(n):
        call()
    machine.synchronize()
    return 1000 * (clock() - t0) / n


def interleave(models, call, seconds, rounds, limit=0.0):
    """Times one kind of call of every TimedModel or TimedAttention in turn, so that a drift drifts for all.

    A sample is the mean over calls that take about `seconds` together. Each model gets `rounds` samples, and
    more until each ratio to the first model is known to PRECISION or `limit` seconds have passed.
    """
    end = time.perf_counter() + limit
    # as many calls for all models as fit into `seconds` for the first one
    once = milliseconds(getattr(models[0], call), 1, models[0].machine)
    n = max(1, round(1000 * seconds / once))
    samples = [model.samples[call] for model in models]
    for order in orders(len(models)):
        for i in order:
            samples[i].append(milliseconds(getattr(models[i], call), n, models[i].machine))
        if len(samples[0]) >= rounds and (time.perf_counter() >= end or precise(samples)):
            return


def orders(n):
    """Yields the order of n models in each round: a random one, then the same backwards, then another.

    A model that always came after the same one would find the caches and the clock as that one left them.
    """
    rng = generator(0, 'rounds')
    while True:
        order = torch.randperm(n, generator=rng).tolist()
        yield order
        yield order[::-1]


def precise(samples):
    """Returns True if the ratios of all models' samples to the first model's are known to PRECISION."""
    intervals = [median_interval(ratios(ms, samples[0])) for ms in samples]
    return all(interval and interval[1] <= interval[0] * (1 + 2 * PRECISION) for interval in intervals)


# -----------------------------------------------------------------------------
# intervals

def time_and_ratio(ms, baseline_ms):
    """Returns dict(ms, ms_interval, ratio, ratio_interval). baseline_ms: samples of the same rounds."""
    pairs = ratios(ms, baseline_ms)
    return dict(ms=statistics.median(ms), ms_interval=median_interval(ms),
                ratio=statistics.median(pairs), ratio_interval=median_interval(pairs))


def ratios(ms, baseline_ms):
    """Returns each round's ratio."""
    return [one / baseline for one, baseline in zip(ms, baseline_ms, strict=True)]


def median_interval(x):
    """Returns the 95 % interval [low, high] of the median of what x is drawn from, or None below 6 values.

    Its ends are values of x, the k-th from below and from above. How many of n values lie below the median is
    binomial with p = 1/2, whatever their distribution: David and Nagaraja, Order Statistics, section 7.1.
    """
    n, values = len(x), sorted(x)
    # the largest k for which fewer than k of n values lie below with a probability of at most 2.5 %
    k = sum(40 * count <= 2**n for count in accumulate(comb(n, below) for below in range(n)))
    return [values[k - 1], values[n - k]] if k else None


def ratio_text(ratio, interval):
    """Returns '1.09x [1.08, 1.11]'; without an interval '1.09x'."""
    return f'{ratio:.2f}x' + (f' [{interval[0]:.2f}, {interval[1]:.2f}]' if interval else '')


def holds_one(interval):
    """Returns True if a ratio with this interval, rounded as ratio_text() does, cannot be told from 1."""
    return interval is not None and round(interval[0], 2) <= 1 <= round(interval[1], 2)
