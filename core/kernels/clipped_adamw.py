"""Clipping, the look for what is not finite, and AdamW for a whole model by three kernels, inside a CUDA graph.

PyTorch's take 65,536 numbers a block: in a small model a few blocks are busy for 60 of a step's 380 us, and clipping writes every
gradient once more. Here a block takes 1,024 numbers and scales a gradient as it reads it (LOG.md 2026-11-30).
"""
import math

import torch
import triton
import triton.language as tl

CHUNK = 1024 # with 4 warps for the norm and 8 for the step the best of sixteen on an H200, for 0.8M to 124M parameters


@triton.jit
def chunk(table, CHUNK: tl.constexpr, ALIGNED: tl.constexpr):
    """What this program's row of ClippedAdamW.located() says: pointers to the chunk's parameters, gradients, first and second
    moments, which of them there are, pointers to the step and the learning rate, the weight decay, and whether the tensor begins
    here. ALIGNED: addresses to 16 bytes, and every tensor has a multiple of four numbers."""
    row = table + tl.program_id(0) * 9
    p, g, m, v = tl.load(row), tl.load(row + 1), tl.load(row + 2), tl.load(row + 3)
    numel, start = tl.load(row + 6), tl.multiple_of(tl.load(row + 8), CHUNK)
    if ALIGNED:
        p, g, m, v = tl.multiple_of(p, 16), tl.multiple_of(g, 16), tl.multiple_of(m, 16), tl.multiple_of(v, 16)
        numel = tl.multiple_of(numel, 4)
    kind = tl.pointer_type(tl.float32)
    n = start + tl.arange(0, CHUNK)
    return (p.to(kind) + n, g.to(kind) + n, m.to(kind) + n, v.to(kind) + n, n < numel, tl.load(row + 4).to(kind),
            tl.load(row + 5).to(kind), tl.load(row + 7).to(tl.float64, bitcast=True).to(tl.float32), start == 0)


@triton.jit
def norm_kernel(table, norms, CHUNK: tl.constexpr, ALIGNED: tl.constexpr):
    """norms[i]: of chunk i of the gradients. Counts each parameter's step."""
    _, gradients, _, _, there, step, _, _, first = chunk(table, CHUNK, ALIGNED)
    g = tl.load(gradients, mask=there, other=0.0)
    tl.store(norms + tl.program_id(0), tl.sqrt(tl.sum(g * g)))
    if first:
        tl.store(step, tl.load(step) + 1)


@triton.jit
def check_kernel(norms, chunks, loss, it, norm, bad, bad_it, BLOCK: tl.constexpr):
    """One program: what ClippedAdamW.check() says, from the chunks' norms."""
    squares = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, chunks, BLOCK):
        n = start + tl.arange(0, BLOCK)
        x = tl.load(norms + n, mask=n < chunks, other=0.0)
        squares += x * x
    total = tl.sqrt(tl.sum(squares))
    tl.store(norm, total)
    finite = tl.abs(tl.load(loss) + total) < float('inf')
    if (finite == 0) & (tl.load(bad) == 0):
        tl.store(bad, 1.0)
        tl.store(bad_it, tl.load(it))


@triton.jit
def adamw_kernel(table, norm, bad, max_norm, BETA1: tl.constexpr, BETA2: tl.constexpr, LOG1: tl.constexpr, LOG2: tl.constexpr,
                 EPS: tl.constexpr, CHUNK: tl.constexpr, ALIGNED: tl.constexpr):
    """A step with gradients of norm at most max_norm. LOG1, LOG2: base 2, of the betas. If bad, nothing but the step taken back."""
    parameters, gradients, first_moments, second_moments, there, step, rate, decay, first = chunk(table, CHUNK, ALIGNED)
    if tl.load(bad) > 0:
        if first:
            tl.store(step, tl.load(step) - 1)
    else:
        lr, t = tl.load(rate), tl.load(step).to(tl.float64) # 1 - .999 ** t has no digits to lose
        p, g = tl.load(parameters, mask=there), tl.load(gradients, mask=there)
        m, v = tl.load(first_moments, mask=there), tl.load(second_moments, mask=there)
        g *= tl.minimum(max_norm / (tl.load(norm) + 1e-6), 1.0)
        m = BETA1 * m + (1 - BETA1) * g
        v = BETA2 * v + (1 - BETA2) * g * g
        size = lr / (1 - tl.exp2(t * LOG1)).to(tl.float32)
        root = tl.sqrt(v) / tl.sqrt((1 - tl.exp2(t * LOG2)).to(tl.float32))
        tl.store(parameters, p * (1 - lr * decay) - size * m / (root + EPS), mask=there)
        tl.store(first_moments, m, mask=there)
        tl.store(second_moments, v, mask=there)


class ClippedAdamW:
    """clip_grad_norm_(parameters, max_norm), but for the gradients themselves, and the step of a torch.optim.AdamW with its state:
    check() and then step(). After both were captured into a CUDA graph, locate() before it is replayed."""

    def __init__(self, optimizer, max_norm):
        self.optimizer, self.max_norm, self.table = optimizer, max_norm, None

    @staticmethod
    def takes(optimizer):
        """Whether it is one whose step the kernels know."""
        groups, usual = optimizer.param_groups, optimizer.defaults
        return type(optimizer) is torch.optim.AdamW and all(
            isinstance(group['lr'], torch.Tensor) and not group['amsgrad'] and not group['maximize']
            and group['betas'] == usual['betas'] and group['eps'] == usual['eps']
            and all(p.dtype == torch.float32 and p.is_contiguous() for p in group['params']) for group in groups)

    def located(self):
        """(chunks, 9) int64: addresses of a parameter, its gradient, exp_avg, exp_avg_sq, step and lr, how many numbers it has, the
        bits of its weight decay as a float64, and which of the numbers is the chunk's first."""
        rows, decays = [], []
        for group in self.optimizer.param_groups:
            for p in group['params']:
                if p.grad is None:
                    continue
                state = self.optimizer.state[p]
                if not state:
                    state.update(step=torch.zeros((), device=p.device), exp_avg=torch.zeros_like(p), exp_avg_sq=torch.zeros_like(p))
                tensors = p, p.grad, state['exp_avg'], state['exp_avg_sq'], state['step'], group['lr']
                rows.append([*(t.data_ptr() for t in tensors), p.numel()])
                decays.append(group['weight_decay'])
        rows = torch.cat((torch.tensor(rows), torch.tensor(decays, dtype=torch.float64).view(torch.int64)[:, None]), dim=1)
        chunks = (rows[:, 6] + CHUNK - 1) // CHUNK
        which = torch.repeat_interleave(chunks)
        start = CHUNK * (torch.arange(len(which)) - (chunks.cumsum(0) - chunks)[which])
        return torch.cat((rows[which], start[:, None]), dim=1)

    def locate(self):
        """Tells the kernels where the last check()'s gradients are. A graph's stay there."""
        self.table.copy_(self.rows)

    def check(self, loss, it, norm, bad, bad_it):
        """All () on the device. norm becomes that of all gradients; if it or loss is not finite and bad is 0, bad becomes 1 and
        bad_it it."""
        self.rows = self.located()
        self.aligned = bool((self.rows[:, :4] % 16 == 0).all() and (self.rows[:, 6] % 4 == 0).all())
        if self.table is None:
            self.table, self.norms = torch.zeros_like(self.rows, device=bad.device), torch.zeros(len(self.rows), device=bad.device)
        if not (bad.is_cuda and torch.cuda.is_current_stream_capturing()):
            self.locate()
        norm_kernel[len(self.rows),](self.table, self.norms, CHUNK, self.aligned, num_warps=4)
        check_kernel[1,](self.norms, len(self.rows), loss, it, norm, bad, bad_it, 4096, num_warps=8)

    def step(self, norm, bad):
        """norm: what check() gave; where bad, nothing is changed."""
        betas, eps = self.optimizer.defaults['betas'], self.optimizer.defaults['eps']
        logs = [math.log2(beta) if beta else -math.inf for beta in betas]
        adamw_kernel[len(self.rows),](self.table, norm, bad, self.max_norm, *betas, *logs, eps, CHUNK, self.aligned, num_warps=8)
