"""One training iteration: forward, backward, clipping and the optimizer's step. On CUDA it is one replayed graph."""
import gc
from contextlib import contextmanager

import torch
import torch.distributed as dist

from core.device.cuda_graph import GraphPool
from core.rng import key, seed_cpu

OPTIMIZER_STATE = 'step', 'exp_avg', 'exp_avg_sq', 'momentum_buffer'
# a GradScaler starts at 2 ** 16: thirty overflows on end are no search for a scale any more
SMALLEST_SCALE = 2 ** -14


class TrainStep:
    """Call it with (it, x, y, lr): tokens and targets x, y (n * B, T) on the device, n micro-batches of B rows.

    model.objective(x, y, it) returns the loss to minimise, a mean over the tokens, and {name: auxiliary loss in it}.
    shape: (n, B, T). pool: the GraphPool of graphs that never run beside this one; None: one of its own.

    Nothing in a call waits for the device. A loss or gradient that is not finite sets `bad` on the device, after which
    this and all later optimizer steps do nothing: the weights stay those before it until the host looks, see metrics().
    In float16 a gradient that overflows is the scaler's business, and only the loss counts.
    """

    def __init__(self, model, optimizer, machine, shape, grad_clip, seed, rank=0, world=1, pool=None):
        self.model, self.optimizer, self.machine = model, optimizer, machine
        self.seed, self.rank, self.world = seed, rank, world
        self.params = list(model.parameters())
        self.buffers = [b for b in model.buffers() if b.is_floating_point()]
        self.max_norm = grad_clip or float('inf')
        # it scales the loss of float16 alone, elsewhere it does nothing
        self.scaler = torch.amp.GradScaler(machine.type, enabled=machine.dtype == 'float16')

        # what a captured graph reads and writes has to stay where it is
        self.x, self.y = torch.zeros(2, *shape, dtype=torch.long, device=machine.device) # (n, B, T) each
        self.it, self.loss, self.norm, self.bad, self.bad_it = torch.zeros(5, device=machine.device)
        self.inv_accum_steps = torch.tensor(1 / len(self.x), device=machine.device)
        self.aux_losses = {}

        self.objective = model.objective
        if machine.compile:
            self.objective = torch.compile(self.objective, fullgraph=True, dynamic=False)
        self.seed_noise = seed_cpu if machine.type == 'cpu' else torch.manual_seed

        # several processes average their gradients in the middle of a step, outside of any graph
        self.graphed = machine.compile and machine.type == 'cuda' and world == 1
        self.graph, self.calls = None, 0
        self.clipped_adamw = None
        if self.graphed:
            self.pool = pool or GraphPool()
            # a generator of its own, for graphs that overlap
            self.generator = torch.cuda.default_generators[torch.cuda.current_device()].clone_state()
            from core.kernels.clipped_adamw import ClippedAdamW  # Triton
            if ClippedAdamW.takes(optimizer) and not self.scaler.is_enabled():
                self.clipped_adamw = ClippedAdamW(optimizer, self.max_norm)

    # -- an iteration

    def __call__(self, it, x, y, lr):
        for group in self.optimizer.param_groups:
            if isinstance(group['lr'], torch.Tensor):
                group['lr'].fill_(lr * group['lr_scale'])
            else:
                group['lr'] = lr * group['lr_scale']
        self.load_batch(it, x, y)

        # dropout and all other noise are keyed by the iteration
        noise = key(self.seed, 'noise', it, self.rank)
        if not self.graphed:
            self.seed_noise(noise)
            with self.machine.tf32():
                self.run()
            return
        self.generator.manual_seed(noise) # a graph reads it at each replay
        if self.graph is not None:
            self.graph.replay()
            return

        # the first calls are ordinary ones, and warm up what a capture needs
        caller = torch.cuda.current_stream()
        self.pool.stream.wait_stream(caller)
        with no_garbage_collection(), self.machine.tf32(), self.own_generator(), torch.cuda.stream(self.pool.stream):
            self.run()
            self.calls += 1
            if self.calls == 3:
                self.graph = self.pool.capture(self.run)
                if self.clipped_adamw:
                    self.clipped_adamw.locate()
        caller.wait_stream(self.pool.stream)

    def load_batch(self, it, x, y):
        self.it.fill_(it)
        torch._foreach_copy_([self.x, self.y], [x.view_as(self.x), y.view_as(self.y)])

    @contextmanager
    def own_generator(self):
        """Lets the device's generator draw from self.generator meanwhile."""
        default = torch.cuda.default_generators[torch.cuda.current_device()]
        outside = default.graphsafe_get_state()
        default.graphsafe_set_state(self.generator)
        try:
            yield
        finally:
            default.graphsafe_set_state(outside)

    def run(self):
        # gradients, micro-batch by micro-batch
        self.accumulate_gradients()
        if self.world > 1:
            self.average_over_processes()
        # after that, so that an overflow in one process is skipped in all
        self.scaler.unscale_(self.optimizer)

        # clip, look for what is not finite, step
        if self.clipped_adamw:
            self.clipped_adamw.check(self.loss, self.it, self.norm, self.bad, self.bad_it)
            self.clipped_adamw.step(self.norm, self.bad)
        else:
            self.norm.copy_(torch.nn.utils.clip_grad_norm_(self.params, self.max_norm))
            self.flag_nonfinite()
            self.step_optimizer()

        # their memory is free for the next forward pass
        self.optimizer.zero_grad(set_to_none=True)

    def accumulate_gradients(self):
        """Computes the gradients of the mean objective over the micro-batches, and their cross entropy, self.loss."""
        dloss = self.scaler.scale(self.inv_accum_steps)
        if self.scaler.is_enabled():
            # the scaler skips what overflows, and only that; once bad, every step has to be skipped
            dloss = dloss * torch.where(self.bad > 0, torch.nan, 1.0)
        self.loss.zero_()
        self.aux_losses = {}
        for x, y in zip(self.x, self.y, strict=True):
            with self.machine.autocast():
                loss, aux_losses = self.objective(x, y, self.it)
            loss.backward(dloss)
            for name, value in aux_losses.items():
                self.aux_losses[name] = self.aux_losses.get(name, 0.0) + value.detach() * self.inv_accum_steps
            self.loss.addcmul_(loss.detach(), self.inv_accum_steps)
        if self.aux_losses:
            self.loss -= sum(self.aux_losses.values())

    def average_over_processes(self):
        """Averages gradients, losses and buffers, which a variant may learn without gradients, in one all-reduce.

        After the last micro-batch: DDP's overlap with the backward pass is worth little beside several of them.
        """
        grads = [p.grad for p in self.params if p.grad is not None]
        tensors = [*grads, self.loss, *self.aux_losses.values(), *self.buffers]
        flat = torch.cat([t.flatten() for t in tensors])
        dist.all_reduce(flat)
        means = (flat / self.world).split([t.numel() for t in tensors])
        for t, mean in zip(tensors, means, strict=True):
            t.copy_(mean.view_as(t))

    def flag_nonfinite(self):
        """Sets bad if the loss or the norm is not finite, and bad_it where bad was not set before."""
        checked = self.loss if self.scaler.is_enabled() else self.loss + self.norm
        bad = checked - checked != 0 # not finite, in two launches; isfinite takes five
        torch.where(bad > self.bad, self.it, self.bad_it, out=self.bad_it)
        self.bad.logical_or_(bad)

    def step_optimizer(self):
        if not self.scaler.is_enabled():
            # a fused optimizer skips its step where found_inf is set: so a GradScaler tells it
            self.optimizer.grad_scale, self.optimizer.found_inf = None, self.bad
        self.scaler.step(self.optimizer)
        self.scaler.update()

    # -- what the host is told

    def snapshot(self):
        """Starts to copy the last call's metrics to the host; nothing waits, and later calls do not change the copy."""
        values = torch.stack([self.loss, self.norm, self.bad, self.bad_it, self.it, *self.aux_losses.values()])
        cuda = self.machine.type == 'cuda'
        copy = torch.empty_like(values, device='cpu', pin_memory=cuda).copy_(values, non_blocking=cuda)
        return copy, torch.cuda.current_stream().record_event() if cuda else None

    def metrics(self, snapshot=None):
        """Waits for the snapshot's call, by default the last one.

        Returns {loss, loss.<auxiliary>, grad_norm}, bad, and the first bad iteration.
        """
        copy, arrived = self.snapshot() if snapshot is None else snapshot
        if arrived is not None:
            arrived.synchronize()
        loss, norm, bad, bad_it, it, *aux = copy.tolist()
        if self.scaler.get_scale() < SMALLEST_SCALE:
            bad, bad_it = True, bad_it if bad else it
        aux_losses = {f'loss.{name}': value for name, value in zip(self.aux_losses, aux, strict=True)}
        return dict(loss=loss, grad_norm=norm, **aux_losses), bool(bad), int(bad_it)

    def find_nonfinite(self, it, x, y):
        """Returns the thing that is not finite in an iteration, in words. Weights, buffers and optimizer stay."""
        buffers, bad = [b.clone() for b in self.buffers], self.bad.clone()
        self.bad.zero_()
        self.load_batch(it, x, y)
        self.seed_noise(key(self.seed, 'noise', it, self.rank))
        with self.machine.tf32():
            self.accumulate_gradients()
        grads = {name: p.grad for name, p in self.model.named_parameters() if p.grad is not None}
        found = 'the gradient norm'
        if not self.loss.isfinite():
            found = 'the loss'
        elif name := next((name for name, grad in grads.items() if not grad.isfinite().all()), None):
            found = f'the gradient of {name}'
        self.optimizer.zero_grad(set_to_none=True)
        self.bad.copy_(bad)
        with torch.no_grad():
            for b, before in zip(self.buffers, buffers, strict=True):
                b.copy_(before)
        return found

    # -- checkpoints

    def state(self):
        """Returns the optimizer's tensors by parameter name, '<parameter>.exp_avg', and the gradient scaler's state."""
        tensors = {f'{name}.{part}': t for name, p in self.model.named_parameters()
                   for part, t in self.optimizer.state[p].items()}
        return tensors, self.scaler.state_dict()

    def load_state(self, tensors, scaler):
        for name, p in self.model.named_parameters():
            for part in OPTIMIZER_STATE:
                if (saved := tensors.get(f'{name}.{part}')) is not None:
                    # into the tensors that are there, whose addresses a captured graph knows
                    current = self.optimizer.state[p].setdefault(part, saved.to(self.machine.device, copy=True))
                    current.copy_(saved)
        self.scaler.load_state_dict(scaler)


@contextmanager
def no_garbage_collection():
    """Keeps Python from looking for garbage, which takes 7 % of a compilation's time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
