"""Clipping by the gradients' norm, a check that all is finite, and AdamW: three kernels for a whole model.

A CUDA graph may contain them. PyTorch's foreach functions and fused AdamW take 65,536 numbers per block, so
that a small model keeps only a few multiprocessors busy, and clipping writes all gradients once more. Here a
block takes 1,024 numbers, and scales gradients as it reads them.

AdamW: Loshchilov and Hutter, https://arxiv.org/abs/1711.05101, as torch.optim.AdamW(fused=True) computes it.
"""
import math

import torch
import triton
import triton.language as tl

# numbers per block
CHUNK = 1024


# -----------------------------------------------------------------------------
# the kernels: a program for each row of a table that build_table() makes

@triton.jit
def load_chunk(table, CHUNK: tl.constexpr, ALIGNED: tl.constexpr):
    """Returns the content of this program's row of the table.

    Pointers to the chunk's parameters, gradients, first and second moments, and a mask of those that exist,
    (CHUNK,) each; pointers to the step and the learning rate; the weight decay; True if the chunk is its
    tensor's first. ALIGNED: addresses are multiples of 16 bytes, and every tensor's size is a multiple of
    four numbers.
    """
    row = table + tl.program_id(0) * 9
    p, g, m, v = tl.load(row), tl.load(row + 1), tl.load(row + 2), tl.load(row + 3)
    numel, start = tl.load(row + 6), tl.multiple_of(tl.load(row + 8), CHUNK)
    if ALIGNED:
        p, g = tl.multiple_of(p, 16), tl.multiple_of(g, 16)
        m, v = tl.multiple_of(m, 16), tl.multiple_of(v, 16)
        numel = tl.multiple_of(numel, 4)
    # addresses, which are int64 in the table, become pointers, and bits a float
    kind = tl.pointer_type(tl.float32)
    n = start + tl.arange(0, CHUNK)
    return (p.to(kind) + n, g.to(kind) + n, m.to(kind) + n, v.to(kind) + n, n < numel,
            tl.load(row + 4).to(kind), tl.load(row + 5).to(kind),
            tl.load(row + 7).to(tl.float64, bitcast=True).to(tl.float32), start == 0)


@triton.jit
def chunk_norms_kernel(table, norms, CHUNK: tl.constexpr, ALIGNED: tl.constexpr):
    """Stores norms (chunks,), the norm of each chunk of the gradients, and counts each parameter's step."""
    _, gradients, _, _, mask, step, _, _, first = load_chunk(table, CHUNK, ALIGNED)
    g = tl.load(gradients, mask=mask, other=0.0)
    tl.store(norms + tl.program_id(0), tl.sqrt(tl.sum(g * g)))
    if first:
        tl.store(step, tl.load(step) + 1)


@triton.jit
def check_finite_kernel(norms, chunks, loss, it, norm, bad, bad_it, BLOCK: tl.constexpr):
    """Does the rest of ClippedAdamW.check() from the norms of the chunks, as one program."""
    # one order of summing, so that two runs are bit-equal
    squares = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, chunks, BLOCK):
        n = start + tl.arange(0, BLOCK)
        x = tl.load(norms + n, mask=n < chunks, other=0.0)
        squares += x * x
    total = tl.sqrt(tl.sum(squares))
    tl.store(norm, total)
    # only the first that is not finite is noted: the optimizer has stood still since
    finite = tl.abs(tl.load(loss) + total) < float('inf')
    if (finite == 0) & (tl.load(bad) == 0):
        tl.store(bad, 1.0)
        tl.store(bad_it, tl.load(it))


@triton.jit
def adamw_kernel(table, norm, bad, max_norm, BETA1: tl.constexpr, BETA2: tl.constexpr,
                 LOG2_BETA1: tl.constexpr, LOG2_BETA2: tl.constexpr, EPS: tl.constexpr,
                 CHUNK: tl.constexpr, ALIGNED: tl.constexpr):
    """Steps with gradients clipped to max_norm. If bad is set, it only uncounts the step."""
    parameters, gradients, first_moments, second_moments, mask, step, rate, decay, first = load_chunk(
        table, CHUNK, ALIGNED)
    if tl.load(bad) > 0:
        if first:
            tl.store(step, tl.load(step) - 1)
    else:
        # in float64, because 1 - 0.999 ** t cancels
        lr, t = tl.load(rate), tl.load(step).to(tl.float64)
        p, g = tl.load(parameters, mask=mask), tl.load(gradients, mask=mask)
        m, v = tl.load(first_moments, mask=mask), tl.load(second_moments, mask=mask)
        # clip, as clip_grad_norm_ does
        g *= tl.minimum(max_norm / (tl.load(norm) + 1e-6), 1.0)
        m = BETA1 * m + (1 - BETA1) * g
        v = BETA2 * v + (1 - BETA2) * g * g
        # both moments without their bias towards the zeros that they start from
        size = lr / (1 - tl.exp2(t * LOG2_BETA1)).to(tl.float32)
        root = tl.sqrt(v) / tl.sqrt((1 - tl.exp2(t * LOG2_BETA2)).to(tl.float32))
        tl.store(parameters, p * (1 - lr * decay) - size * m / (root + EPS), mask=mask)
        tl.store(first_moments, m, mask=mask)
        tl.store(second_moments, v, mask=mask)


# -----------------------------------------------------------------------------
# the interface

class ClippedAdamW:
    """Clips like clip_grad_norm_(params, max_norm) and steps a torch.optim.AdamW: call check(), then step().

    The optimizer keeps the state, and the gradients stay unclipped. If a CUDA graph has captured both calls,
    call locate() before it is replayed.
    """

    def __init__(self, optimizer, max_norm):
        self.optimizer, self.max_norm, self.table = optimizer, max_norm, None

    @staticmethod
    def takes(optimizer):
        """Returns True if the kernels can compute this optimizer's step."""
        groups, defaults = optimizer.param_groups, optimizer.defaults
        return type(optimizer) is torch.optim.AdamW and all(
            isinstance(group['lr'], torch.Tensor) and not group['amsgrad'] and not group['maximize']
            and group['betas'] == defaults['betas'] and group['eps'] == defaults['eps']
            and all(p.dtype == torch.float32 and p.is_contiguous() for p in group['params'])
            for group in groups)

    def build_table(self):
        """Returns (chunks, 9) int64, a row for each CHUNK numbers of each parameter that has a gradient.

        A row holds the addresses of the parameter, its gradient, exp_avg, exp_avg_sq, step and lr, the
        parameter's size, the bits of its weight decay in float64, and the index of the chunk's first number.
        """
        rows, decays = [], []
        for group in self.optimizer.param_groups:
            for p in group['params']:
                if p.grad is None:
                    continue
                state = self.optimizer.state[p]
                # as AdamW itself does at its first step
                if not state:
                    state['step'] = torch.zeros((), device=p.device)
                    state['exp_avg'] = torch.zeros_like(p)
                    state['exp_avg_sq'] = torch.zeros_like(p)
                tensors = p, p.grad, state['exp_avg'], state['exp_avg_sq'], state['step'], group['lr']
                rows.append([*(t.data_ptr() for t in tensors), p.numel()])
                decays.append(group['weight_decay'])
        decay_bits = torch.tensor(decays, dtype=torch.float64).view(torch.int64)
        rows = torch.cat((torch.tensor(rows), decay_bits[:, None]), dim=1) # (parameters, 8)

        # a row for each chunk: which parameter it belongs to, and where it starts
        chunks = (rows[:, 6] + CHUNK - 1) // CHUNK
        index = torch.repeat_interleave(chunks)
        start = CHUNK * (torch.arange(len(index)) - (chunks.cumsum(0) - chunks)[index])
        return torch.cat((rows[index], start[:, None]), dim=1)

    def locate(self):
        """Copies the table of the last check() to the device. A graph's gradients keep their addresses."""
        self.table.copy_(self.rows)

    def check(self, loss, it, norm, bad, bad_it):
        """Sets norm to that of all gradients, and once it or loss is not finite, bad to 1 and bad_it to `it`.

        All arguments are tensors () on the device; bad starts as 0.
        """
        self.rows = self.build_table()
        self.aligned = bool((self.rows[:, :4] % 16 == 0).all() and (self.rows[:, 6] % 4 == 0).all())
        if self.table is None:
            self.table = torch.zeros_like(self.rows, device=bad.device)
            self.norms = torch.zeros(len(self.rows), device=bad.device)
        # a capture must not copy from the host
        if not (bad.is_cuda and torch.cuda.is_current_stream_capturing()):
            self.locate()
        chunk_norms_kernel[len(self.rows),](self.table, self.norms, CHUNK, self.aligned, num_warps=4)
        check_finite_kernel[1,](self.norms, len(self.rows), loss, it, norm, bad, bad_it, 4096, num_warps=8)

    def step(self, norm, bad):
        """Steps with the norm of check(). Where bad, nothing is changed."""
        # all groups have the same, see takes()
        betas, eps = self.optimizer.defaults['betas'], self.optimizer.defaults['eps']
        logs = [math.log2(beta) if beta else -math.inf for beta in betas]
        adamw_kernel[len(self.rows),](
            self.table, norm, bad, self.max_norm, *betas, *logs, eps, CHUNK, self.aligned, num_warps=8)
