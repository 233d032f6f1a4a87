"""Times variants in turn: forward, backward, a training step and decoding, or an attention module alone."""
import statistics
import time
from dataclasses import fields

import torch

from core.device.flops import flops_per_token
from core.rng import generator
from core.training.train_step import TrainStep
from model import Step, build, load_classes


class TimedModel:
    """A variant, ready for interleave(): each key of `samples` names a method and collects milliseconds.

    machine: a core.device.machine.Machine. batch_size: rows per step. decode_tokens: how many tokens decode()
    generates, in one row, with the cache. optimizer: adamw or muon. seeds: above 1, together() is timed too,
    one step of that many models. pool: on CUDA a GraphPool, shared by all that are timed.
    """

    def __init__(self, variant, machine, model_args, batch_size, decode_tokens, optimizer='adamw', seed=1337,
                 seeds=1, pool=None):
        self.variant, self.machine = variant, machine
        self.batch_size, self.decode_tokens, self.optimizer = batch_size, decode_tokens, optimizer
        self.seed, self.seeds = seed, seeds
        self.model = build_from_known(variant, seed, machine, model_args)
        self.config = self.model.config
        self.forward_flops, self.train_flops = flops_per_token(load_classes(variant), self.config)

        # peak memory of the first step, compilation included, in bytes beside the weights
        cuda = machine.type == 'cuda'
        before = torch.cuda.memory_allocated() if cuda else 0
        self.train_step = self.make_train_step(self.model, pool)
        shape = 2, batch_size, self.config.block_size
        self.x, self.y = torch.randint(self.config.vocab_size, shape,
                                       generator=generator(seed, 'bench')).to(machine.device) # (B, T) each
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        self.first_step_seconds = milliseconds(self.step, 1, machine) / 1000
        self.peak_bytes = torch.cuda.max_memory_allocated() - before if cuda else None

        # each further seed has its own model and stream, as in ab.py
        more = [build_from_known(variant, seed, machine, model_args) for _ in range(seeds - 1)]
        self.train_steps = [self.train_step, *map(self.make_train_step, more)]
        self.streams = [torch.cuda.Stream() if cuda else None for _ in self.train_steps]
        self.forward, self.backward = self.run_forward, self.run_backward
        if self.train_step.graphed:
            # a step becomes a CUDA graph after three ordinary calls
            for _ in range(3):
                self.together()
            self.forward, self.backward = pool.replayable(self.forward), pool.replayable(self.backward)

        self.samples = {'forward': [], 'backward': [], 'step': [], 'decode': []}
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

    def result(self, peak_flops):
        """Returns medians and what follows from them, a dict for JSON. peak_flops: FLOP/s; None: no MFU."""
        # medians, because a busy machine slows single samples
        median = {call: statistics.median(ms) for call, ms in self.samples.items()}
        tokens = self.batch_size * self.config.block_size
        step_seconds = median['step'] / 1000
        return dict(
            variant=self.variant,
            params=self.model.num_params(),
            forward_flops_per_token=self.forward_flops,
            flops_per_token=self.train_flops,
            forward_ms=median['forward'],
            forward_backward_ms=median['backward'],
            step_ms=median['step'],
            tokens_per_s=1000 * tokens / median['step'],
            peak_bytes=self.peak_bytes,
            mfu=self.train_flops * tokens / step_seconds / peak_flops if peak_flops else None,
            decode_tokens_per_s=1000 * self.decode_tokens / median['decode'],
            seeds=self.seeds,
            seeds_step_ms=median.get('together'),
            first_step_seconds=self.first_step_seconds,
            samples_ms=self.samples,
        )


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

    def result(self, peak_flops):
        """Returns the median and the backends of attention, a dict for JSON; peak_flops is not used."""
        median = statistics.median(self.samples['backward'])
        return dict(variant=self.variant, ms=median, peak_bytes=self.peak_bytes, attention=self.backends,
                    samples_ms=self.samples)


def build_from_known(variant, seed, machine, model_args):
    """Returns the model on its device, in training mode, built from those model_args that its config has."""
    # model_args holds the options of all variants that are timed
    known = {f.name for f in fields(load_classes(variant).GPTConfig)}
    model = build(variant, seed, **{name: value for name, value in model_args.items() if name in known})
    return model.to(machine.device).train()


def milliseconds(call, n, machine):
    """Returns the mean time of n calls, in milliseconds per call."""
    machine.synchronize()
    t0 = time.perf_counter()
    for _ in range(n):
        call()
    machine.synchronize()
    return 1000 * (time.perf_counter() - t0) / n


def interleave(models, rounds, seconds):
    """Times every TimedModel or TimedAttention in turn, so that a machine that drifts drifts for all of them.

    A sample is the mean over calls that take about `seconds` together; each model gets `rounds` samples of
    each kind of call.
    """
    # all rounds of one kind of call before the next kind: decoding hardly warms a GPU, so the model timed
    # right after it would run at a higher clock than the others
    for call in models[0].samples:
        # as many calls for all models as fit into `seconds` for the first one
        once = milliseconds(getattr(models[0], call), 2, models[0].machine)
        n = max(1, round(1000 * seconds / once))
        for _ in range(rounds):
            for model in models:
                model.samples[call].append(milliseconds(getattr(model, call), n, model.machine))
