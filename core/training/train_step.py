"""One training iteration: forward, backward, clipping, optimizer step; on CUDA, a graph that is replayed."""
import gc
import warnings
from contextlib import contextmanager

import torch
import torch.distributed as dist

from core.device.cuda_graph import GraphPool
from core.errors import NO_CHECKPOINT, Stop
from core.rng import key, seed_cpu
from core.run.checkpoint import first_misfit

# a GradScaler starts at 2 ** 16 and halves at each overflow: thirty of them mean that no scale will do
SMALLEST_SCALE = 2 ** -14


class TrainStep:
    """Trains a model by one iteration when called with (it, x, y, lr).

    x, y: tokens and targets (n * B, T) on the device, n micro-batches of B rows; shape: (n, B, T).
    model.objective(x, y, it) returns the loss to minimise, a mean over tokens, and {name: auxiliary part}.
    pool: the GraphPool of graphs that never run at the same time as this one; None: a new one.

    No call waits for the device. A loss or gradient that is not finite sets `bad` on the device. Then this
    optimizer step and all later ones do nothing, so the weights stay as they were until the host calls
    metrics(). In float16 the scaler handles gradients that overflow, and only the loss can set `bad`.
    """

    def __init__(self, model, optimizer, machine, shape, grad_clip, seed, rank=0, world=1, pool=None):
        self.model, self.optimizer, self.machine = model, optimizer, machine
        self.seed, self.rank, self.world = seed, rank, world
        self.params = list(model.parameters())
        # a variant may learn buffers; those of integers are not averaged
        self.buffers = [b for b in model.buffers() if b.is_floating_point()]
        self.max_norm = grad_clip or float('inf')
        # scales the loss in float16 only, elsewhere it does nothing
        self.scaler = torch.amp.GradScaler(machine.type, enabled=machine.dtype == 'float16')
        # what a group has besides these and the learning rate, the optimizer has computed
        self.initial_groups = [numbers(group) for group in optimizer.param_groups]

        # a captured graph reads and writes fixed addresses: these tensors are filled, never replaced
        self.x, self.y = torch.zeros(2, *shape, dtype=torch.long, device=machine.device) # (n, B, T) each
        self.it, self.loss, self.norm, self.bad, self.bad_it = torch.zeros(5, device=machine.device)
        self.inv_accum_steps = torch.tensor(1 / len(self.x), device=machine.device)
        self.aux_losses = {}

        self.check = lambda: None # called between micro-batches; what it raises ends the iteration without a step
        self.objective = model.objective
        if machine.compile:
            self.objective = torch.compile(self.objective, fullgraph=True, dynamic=False)
        self.seed_noise = seed_cpu if machine.type == 'cpu' else torch.manual_seed

        # several processes exchange gradients in the middle of a step, so theirs is not captured
        self.graphed = machine.compile and machine.type == 'cuda' and world == 1
        self.graph, self.calls = None, 0
        # a micro-batch may change buffers, and then the iteration could not be computed again
        self.can_end_early = not self.graphed and not any(True for _ in model.buffers())
        self.clipped_adamw = None
        if self.graphed:
            self.pool = pool or GraphPool()
            # its own generator, because the graphs of several models may overlap in time
            self.generator = torch.cuda.default_generators[torch.cuda.current_device()].clone_state()
            from core.kernels.clipped_adamw import ClippedAdamW  # Triton
            if ClippedAdamW.takes(optimizer) and not self.scaler.is_enabled():
                self.clipped_adamw = ClippedAdamW(optimizer, self.max_norm)

    # -- an iteration

    def __call__(self, it, x, y, lr):
        # a captured graph reads the learning rate from its tensor
        for group in self.optimizer.param_groups:
            if isinstance(group['lr'], torch.Tensor):
                group['lr'].fill_(lr * group.get('lr_scale', 1.0))
            else:
                group['lr'] = lr * group.get('lr_scale', 1.0)
        self.load_batch(it, x, y)

        # dropout and all other noise depend on the iteration, not on what was drawn before it
        noise = key(self.seed, 'noise', it, self.rank)
        if not self.graphed:
            self.seed_noise(noise)
            with self.machine.tf32():
                self.run()
            return
        # a graph reads the generator's state at each replay
        self.generator.manual_seed(noise)
        if self.graph is not None:
            self.graph.replay()
            return

        # the first three calls run eagerly, which compiles and allocates what a capture needs
        caller = torch.cuda.current_stream()
        self.pool.stream.wait_stream(caller)
        with (no_garbage_collection(), self.machine.tf32(), self.own_generator(),
              torch.cuda.stream(self.pool.stream)):
            self.run()
            self.calls += 1
            if self.calls == 3:
                self.graph = self.pool.capture(self.run)
                if self.clipped_adamw:
                    self.clipped_adamw.locate()
        caller.wait_stream(self.pool.stream)

    def load_batch(self, it, x, y):
        """Copies the iteration and its batch, (n * B, T) each, to where the step reads them."""
        self.it.fill_(it)
        torch._foreach_copy_([self.x, self.y], [x.view_as(self.x), y.view_as(self.y)])

    @contextmanager
    def own_generator(self):
        """A context in which the device's default generator is self.generator."""
        default = torch.cuda.default_generators[torch.cuda.current_device()]
        outside = default.graphsafe_get_state()
        default.graphsafe_set_state(self.generator)
        try:
            yield
        finally:
            default.graphsafe_set_state(outside)

    def run(self):
        """Computes the gradients and steps the optimizer, without waiting for the device."""
        # gradients, micro-batch by micro-batch
        self.accumulate_gradients()
        if self.world > 1:
            self.average_over_processes()
        # after averaging, so that an overflow in one process is skipped in all of them
        self.scaler.unscale_(self.optimizer)

        # clip, look for what is not finite, step
        if self.clipped_adamw:
            self.clipped_adamw.check(self.loss, self.it, self.norm, self.bad, self.bad_it)
            self.clipped_adamw.step(self.norm, self.bad)
        else:
            self.norm.copy_(torch.nn.utils.clip_grad_norm_(self.params, self.max_norm))
            self.flag_nonfinite()
            self.step_optimizer()

        # frees the gradients' memory for the next forward pass
        self.optimizer.zero_grad(set_to_none=True)

    def accumulate_gradients(self):
        """Sets the gradients of the micro-batches' mean objective, and self.loss, its cross entropy."""
        dloss = self.scaler.scale(self.inv_accum_steps)
        if self.scaler.is_enabled():
            # the scaler skips steps by their gradients: once bad, make them NaN so that it skips them all
            dloss = dloss * torch.where(self.bad > 0, torch.nan, 1.0)
        self.loss.zero_()
        self.aux_losses = {}
        for n, (x, y) in enumerate(zip(self.x, self.y, strict=True)):
            if n > 0 and self.can_end_early:
                self.check()
            with self.machine.autocast():
                loss, aux_losses = self.objective(x, y, self.it)
            loss.backward(dloss)
            for name, value in aux_losses.items():
                self.aux_losses[name] = self.aux_losses.get(name, 0.0) + value.detach() * self.inv_accum_steps
            self.loss.addcmul_(loss.detach(), self.inv_accum_steps)
        # what is logged as the loss is the cross entropy alone
        if self.aux_losses:
            self.loss -= sum(self.aux_losses.values())

    def average_over_processes(self):
        """Averages gradients, losses and buffers over the processes, in one all-reduce.

        It comes after the last micro-batch. DDP would overlap it with that one's backward pass, which saves
        little where there are several.
        """
        grads = [p.grad for p in self.params if p.grad is not None]
        tensors = [*grads, self.loss, *self.aux_losses.values(), *self.buffers]
        flat = torch.cat([t.flatten() for t in tensors])
        dist.all_reduce(flat)
        means = (flat / self.world).split([t.numel() for t in tensors])
        for t, mean in zip(tensors, means, strict=True):
            t.copy_(mean.view_as(t))

    def flag_nonfinite(self):
        """Sets bad if the loss or the norm is not finite, and the first time it does, bad_it."""
        checked = self.loss if self.scaler.is_enabled() else self.loss + self.norm
        # inf - inf and NaN - NaN are NaN: two launches, where isfinite takes five
        bad = checked - checked != 0
        torch.where(bad > self.bad, self.it, self.bad_it, out=self.bad_it)
        self.bad.logical_or_(bad)

    def step_optimizer(self):
        """Steps the optimizer, unless bad is set or, in float16, a gradient has overflowed."""
        if self.scaler.is_enabled():
            self.scaler.step(self.optimizer)
            self.scaler.update()
        # a fused optimizer skips its step where found_inf is set, which is how GradScaler tells it
        elif getattr(self.optimizer, '_step_supports_amp_scaling', False):
            self.optimizer.grad_scale, self.optimizer.found_inf = None, self.bad
            self.optimizer.step()
        # others cannot, so the weights are put back; selected on the device, because a branch would wait
        else:
            with torch.no_grad():
                before = [p.clone() for p in self.params]
                self.optimizer.step()
                torch._foreach_copy_(self.params, [torch.where(self.bad > 0, old, p)
                                                   for old, p in zip(before, self.params, strict=True)])

    # -- metrics

    def snapshot(self):
        """Starts to copy the last call's metrics to the host, without waiting; returns what metrics() takes.

        Later calls do not change the copy.
        """
        values = torch.stack([self.loss, self.norm, self.bad, self.bad_it, self.it,
                              *self.aux_losses.values()])
        # only a copy to pinned memory runs without the host
        cuda = self.machine.type == 'cuda'
        copy = torch.empty_like(values, device='cpu', pin_memory=cuda).copy_(values, non_blocking=cuda)
        return copy, torch.cuda.current_stream().record_event() if cuda else None

    def metrics(self, snapshot=None):
        """Waits for a snapshot, by default one of the last call.

        Returns ({loss, grad_norm, loss.<auxiliary>}, bad, the first bad iteration).
        """
        copy, arrived = self.snapshot() if snapshot is None else snapshot
        if arrived is not None:
            arrived.synchronize()
        loss, norm, bad, bad_it, it, *aux = copy.tolist()
        # gradients that overflow at every scale are not finite themselves
        if self.scaler.get_scale() < SMALLEST_SCALE:
            bad, bad_it = True, bad_it if bad else it
        aux_losses = {f'loss.{name}': value for name, value in zip(self.aux_losses, aux, strict=True)}
        return dict(loss=loss, grad_norm=norm, **aux_losses), bool(bad), int(bad_it)

    def find_nonfinite(self, it, x, y):
        """Returns words for what is not finite in iteration `it`, found by computing it once more.

        Weights, buffers and optimizer state are as before.
        """
        # in float16, bad would make all gradients NaN
        buffers, bad = [b.clone() for b in self.buffers], self.bad.clone()
        self.bad.zero_()
        self.load_batch(it, x, y)
        self.seed_noise(key(self.seed, 'noise', it, self.rank))
        with self.machine.tf32():
            self.accumulate_gradients()
        # the loss comes first, because one that is not finite spoils the gradients too
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
        """Returns what a checkpoint keeps: the optimizer's tensors, {'<parameter>.exp_avg': ...}, and the rest.

        The rest, for JSON: the gradient scaler's state, and of the optimizer its count of tensors and the numbers
        that it keeps for parameters and groups. Stop if it keeps anything else.
        """
        tensors, others = self.optimizer_tensors(), {}
        for name, p in self.model.named_parameters():
            for part, value in self.optimizer.state.get(p, {}).items():
                if value is not None and not is_number(value) and not torch.is_tensor(value):
                    raise Stop(f'{type(self.optimizer).__name__} keeps {part} of {name}, a {type(value).__name__}: '
                               'a checkpoint holds tensors and numbers')
                if not torch.is_tensor(value):
                    others[f'{name}.{part}'] = value
        groups = [{part: value for part, value in numbers(group).items() if initial.get(part) != value}
                  for group, initial in zip(self.optimizer.param_groups, self.initial_groups, strict=True)]
        optimizer = dict(tensors=len(tensors), numbers=others, groups=groups)
        return tensors, dict(scaler=self.scaler.state_dict(), optimizer=optimizer)

    def optimizer_tensors(self):
        """Returns the tensors that the optimizer keeps for parameters, {'<parameter>.<part>': tensor}."""
        return {f'{name}.{part}': t for name, p in self.model.named_parameters()
                for part, t in self.optimizer.state.get(p, {}).items() if torch.is_tensor(t)}

    @torch.no_grad()
    def load_state(self, tensors, rest):
        """Loads what state() returned, exactly; changes the weights, which must be loaded after it.

        Stop unless the tensors are those that this optimizer keeps.
        """
        # older checkpoints do not say how many there were
        saved = rest.get('optimizer', dict(tensors=len(tensors), numbers={}, groups=[]))
        self.make_state(tensors.keys() | saved['numbers'].keys())
        present, count = self.optimizer_tensors(), saved['tensors']
        misfit = first_misfit(present, tensors)
        if misfit or count != len(tensors):
            what = misfit or f'{len(tensors)} tensors, not {count}'
            raise Stop(f'the checkpoint does not fit the optimizer, {type(self.optimizer).__name__}: {what}',
                       NO_CHECKPOINT)
        # into existing tensors, because a captured graph has their addresses
        for name, t in present.items():
            t.copy_(tensors[name])
        for name, p in self.model.named_parameters():
            for part in list(self.optimizer.state.get(p, {})):
                if f'{name}.{part}' in saved['numbers']:
                    self.optimizer.state[p][part] = saved['numbers'][f'{name}.{part}']
        for group, computed in zip(self.optimizer.param_groups, saved['groups']):
            group.update({part: value for part, value in computed.items() if part in numbers(group)})
        # a run that goes on in float16 may have been one without a scaler, and the other way round
        if self.scaler.is_enabled() and rest['scaler']:
            self.scaler.load_state_dict(rest['scaler'])

    def make_state(self, names):
        """Steps the optimizer with gradients of 0 for the parameters of these names, so that it makes their state."""
        owners = {name.rpartition('.')[0] for name in names}
        for name, p in self.model.named_parameters():
            if name in owners:
                p.grad = torch.zeros_like(p)
        # a capturable one warns where it is not captured
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def find_nonfinite_state(self):
        """Returns the name of a weight or moment that is not finite, or of a buffer that is NaN; else None.

        Waits for the device. A mask is a buffer, and may be infinite.
        """
        tensors = dict(self.model.named_parameters()) | self.optimizer_tensors()
        bad = {name: ~t.isfinite().all() for name, t in tensors.items()}
        bad |= {name: b.isnan().any() for name, b in self.model.named_buffers() if b.is_floating_point()}
        flags = torch.stack([flag.to(self.machine.device) for flag in bad.values()]).tolist()
        return next((name for name, flag in zip(bad, flags, strict=True) if flag), None)


def is_number(value):
    return isinstance(value, (bool, int, float))


def numbers(group):
    """Returns the numbers of an optimizer's group, except its learning rate, which the schedule sets."""
    return {name: value for name, value in group.items() if is_number(value) and name != 'lr'}


@contextmanager
def no_garbage_collection():
    """A context without Python's garbage collection, which takes 7 % of a compilation's time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
