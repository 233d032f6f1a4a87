"""One training iteration: forward and backward of every micro-batch, clipping, AdamW. On CUDA one replayed graph."""
import gc
from contextlib import contextmanager
from types import SimpleNamespace

import torch
import torch.distributed as dist

from core.rng import key, seed_cpu
from model import Step

KINDS = 'step', 'exp_avg', 'exp_avg_sq', 'momentum_buffer' # of an optimizer's state


def graph_pool_for(machine):
    """A stream and memory for graphs of which one runs at a time: together they need that of the largest. None without CUDA."""
    return SimpleNamespace(stream=torch.cuda.Stream(), pool=torch.cuda.graph_pool_handle()) if machine.type == 'cuda' else None


@contextmanager
def no_collections():
    """Nobody looks for garbage meanwhile, which takes 7 % of a compilation's time (LOG.md)."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class TrainStep:
    """Call it with (it, x, y, lr): x, y (n * B, T) on the device, n micro-batches of B rows.

    Nothing in a call waits for the device. A loss or gradient that is not finite sets `bad` on the device, which makes this
    and every later optimizer step do nothing: the weights stay those before it until the host looks, see numbers(). In
    float16 a gradient that overflows is the scaler's business, and only the loss counts.

    turns: what its graph shares with others that never run beside it, see graph_pool_for(); None: nothing.
    """

    def __init__(self, model, optimizer, machine, shape, grad_clip, seed, rank=0, world=1, turns=None):
        self.model, self.optimizer, self.machine = model, optimizer, machine
        self.params, self.seed, self.rank, self.world = list(model.parameters()), seed, rank, world
        self.buffers = [b for b in model.buffers() if b.is_floating_point()]
        self.max_norm = grad_clip or float('inf')
        self.scaler = torch.amp.GradScaler(machine.type, enabled=machine.dtype == 'float16')
        self.x, self.y = torch.zeros(2, *shape, dtype=torch.long, device=machine.device) # (n, B, T) each
        self.it, self.loss, self.norm, self.bad, self.bad_it = torch.zeros(5, device=machine.device)
        self.share = torch.tensor(1 / len(self.x), device=machine.device) # of a micro-batch in the objective
        self.aux = {}
        self.objective = torch.compile(self.forward, fullgraph=True, dynamic=False) if machine.compile else self.forward
        self.graphed = machine.compile and machine.type == 'cuda' and world == 1
        self.graph, self.calls = None, 0
        self.seed_noise = seed_cpu if machine.type == 'cpu' else torch.manual_seed
        self.clipped = None # norm, check, clipping and AdamW's step in three kernels
        if self.graphed:
            from core.kernels.clipped_adamw import ClippedAdamW  # Triton
            if ClippedAdamW.takes(optimizer) and not self.scaler.is_enabled():
                self.clipped = ClippedAdamW(optimizer, self.max_norm)
            self.turns = turns or graph_pool_for(machine)
            self.noise = torch.cuda.default_generators[torch.cuda.current_device()].clone_state() # its own, for graphs that overlap

    def forward(self, x, y, it):
        step = Step(it=it)
        _, loss = self.model(x, y, step)
        return loss, step.losses

    def __call__(self, it, x, y, lr):
        for group in self.optimizer.param_groups:
            if isinstance(group['lr'], torch.Tensor):
                group['lr'].fill_(lr * group['lr_scale'])
            else:
                group['lr'] = lr * group['lr_scale']
        self.it.fill_(it)
        self.take(x, y)
        noise = key(self.seed, 'noise', it, self.rank) # dropout and whatever else is random
        if not self.graphed:
            self.seed_noise(noise)
            return self.run()
        self.noise.manual_seed(noise) # which the graph reads at each replay
        if self.graph is not None:
            return self.graph.replay()
        caller, stream = torch.cuda.current_stream(), self.turns.stream
        stream.wait_stream(caller)
        with no_collections(), self.own_noise(), torch.cuda.stream(stream):
            self.run() # the first calls are real ones, and warm up what a capture needs
            self.calls += 1
            if self.calls == 3:
                torch.cuda.synchronize()
                self.graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(self.graph, pool=self.turns.pool, stream=stream):
                    self.run()
                if self.clipped:
                    self.clipped.locate()
        caller.wait_stream(stream)

    def take(self, x, y):
        torch._foreach_copy_([self.x, self.y], [x.view_as(self.x), y.view_as(self.y)])

    @contextmanager
    def own_noise(self):
        """The device's generator draws from self.noise meanwhile."""
        default = torch.cuda.default_generators[torch.cuda.current_device()]
        others = default.graphsafe_get_state()
        default.graphsafe_set_state(self.noise)
        try:
            yield
        finally:
            default.graphsafe_set_state(others)

    def run(self):
        self.backward()
        if self.clipped:
            self.clipped.check(self.loss, self.it, self.norm, self.bad, self.bad_it)
            self.clipped.step(self.norm, self.bad)
        else:
            self.norm.copy_(torch.nn.utils.clip_grad_norm_(self.params, self.max_norm))
            self.check()
            self.step()
        self.optimizer.zero_grad(set_to_none=True)

    def check(self):
        """bad, and bad_it at first, if the loss or the norm is not finite."""
        checked = self.loss if self.scaler.is_enabled() else self.loss + self.norm
        bad = checked - checked != 0 # not finite, in two launches; isfinite takes five
        torch.where(bad > self.bad, self.it, self.bad_it, out=self.bad_it)
        self.bad.logical_or_(bad)

    def step(self):
        """The optimizer's, unless something is not finite."""
        if not self.scaler.is_enabled():
            self.optimizer.grad_scale, self.optimizer.found_inf = None, self.bad # as a GradScaler tells a fused optimizer to skip
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def backward(self):
        """Gradients of the mean objective over the micro-batches, and their cross entropy in self.loss."""
        self.aux, dloss = {}, self.scaler.scale(self.share)
        if self.scaler.is_enabled(): # the scaler skips what overflows, and only that; once bad, everything has to
            dloss = dloss * torch.where(self.bad > 0, torch.nan, 1.0)
        self.loss.zero_()
        for x, y in zip(self.x, self.y, strict=True):
            with self.machine.autocast():
                loss, aux = self.objective(x, y, self.it)
            loss.backward(dloss)
            for name, value in aux.items():
                self.aux[name] = self.aux.get(name, 0.0) + value.detach() * self.share
            self.loss.addcmul_(loss.detach(), self.share)
        if self.aux:
            self.loss -= sum(self.aux.values())
        if self.world > 1: # in one piece after the last micro-batch; DDP's overlap is worth little beside several of them
            grads = [p.grad for p in self.params if p.grad is not None]
            every = [*grads, self.loss, *self.aux.values(), *self.buffers] # buffers: what a variant learns without gradients
            flat = torch.cat([t.flatten() for t in every])
            dist.all_reduce(flat)
            for t, mean in zip(every, (flat / self.world).split([t.numel() for t in every]), strict=True):
                t.copy_(mean.view_as(t))
        self.scaler.unscale_(self.optimizer) # after that, so that an overflow in one process is skipped in all

    def snapshot(self):
        """What numbers() tells of the last call, on its way to the host: later calls do not change it, and nothing waits yet."""
        every = torch.stack([self.loss, self.norm, self.bad, self.bad_it, self.it, *self.aux.values()])
        cuda = self.machine.type == 'cuda'
        here = torch.empty_like(every, device='cpu', pin_memory=cuda).copy_(every, non_blocking=cuda)
        return here, torch.cuda.current_stream().record_event() if cuda else None

    def numbers(self, snapshot=None):
        """{loss, loss.<auxiliary>, grad_norm} of the snapshot's call, or else the last, and (bad, the first bad iteration): here
        the host waits for that call."""
        here, arrived = self.snapshot() if snapshot is None else snapshot
        if arrived is not None:
            arrived.synchronize()
        loss, norm, bad, bad_it, it, *aux = here.tolist()
        if self.scaler.get_scale() < 2 ** -14: # from 2 ** 16: thirty overflows on end are something else
            bad, bad_it = True, bad_it if bad else it
            self.bad_it.fill_(bad_it)
        aux = {f'loss.{name}': value for name, value in zip(self.aux, aux, strict=True)}
        return dict(loss=loss, grad_norm=norm, **aux), bool(bad), int(bad_it)

    def first_bad(self, x, y):
        """For an iteration found bad, its data: the names of the tensors to blame."""
        self.take(x, y)
        self.it.copy_(self.bad_it)
        self.seed_noise(key(self.seed, 'noise', int(self.bad_it), self.rank))
        self.world = 1 # the other processes may be elsewhere by now
        self.bad.zero_()
        self.backward()
        if not self.loss.isfinite():
            return 'the loss'
        grads = [(name, p.grad) for name, p in self.model.named_parameters() if p.grad is not None]
        return next((f'the gradient of {name}' for name, grad in grads if not grad.isfinite().all()), 'the gradient norm')

    def state(self):
        """Tensors that a resumed run needs, by parameter name, and the gradient scaler's state."""
        tensors = {f'{name}.{kind}': t for name, p in self.model.named_parameters() for kind, t in self.optimizer.state[p].items()}
        return tensors, self.scaler.state_dict()

    def load_state(self, tensors, scaler):
        for name, p in self.model.named_parameters():
            state = {kind: tensors[f'{name}.{kind}'] for kind in KINDS if f'{name}.{kind}' in tensors}
            for kind, t in state.items(): # into the tensors that are there, which a captured graph knows
                there = self.optimizer.state[p].setdefault(kind, t.to(self.machine.device, copy=True))
                there.copy_(t)
        self.scaler.load_state_dict(scaler)
