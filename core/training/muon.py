"""Muon for matrices and AdamW for everything else, as one optimizer."""
import math
from collections import defaultdict

import torch


class MuonAdamW(torch.optim.AdamW):
    """AdamW, with Muon for groups with muon=True (Jordan et al., https://kellerjordan.github.io/posts/muon).

    Muon steps by the matrix with orthonormal rows or columns that is nearest to the gradient's Nesterov
    momentum. The arithmetic is that of torch.optim.Muon with adjust_lr_fn='match_rms_adamw' (arXiv
    2502.16982), so that both share one learning rate and one weight decay. Unlike there, matrices of one
    shape go through one batch of products, the learning rate may be a tensor, and nothing moves where
    found_inf is set, as in a fused AdamW.

    Muon's state is momentum_buffer, in the parameter's shape.
    """

    MOMENTUM = 0.95

    @torch.no_grad()
    def step(self, closure=None):
        # AdamW steps all groups that it sees, so Muon's are hidden from it
        all_groups = self.param_groups
        self.param_groups = [group for group in all_groups if not group['muon']]
        try:
            loss = super().step(closure)
        finally:
            self.param_groups = all_groups

        found_inf = getattr(self, 'found_inf', None)
        for group in all_groups:
            if not group['muon']:
                continue
            # matrices of one shape are stepped together
            by_shape = defaultdict(list)
            for p in group['params']:
                if p.grad is not None:
                    by_shape[p.shape].append(p)
            for params in by_shape.values():
                self.orthogonal_step(params, group['lr'], group['weight_decay'], found_inf)
        return loss

    def orthogonal_step(self, params, lr, weight_decay, found_inf):
        """Steps n matrices of shape (r, c); found_inf is None, or a tensor () that forbids it if above 0."""
        buffers = [self.state[p].setdefault('momentum_buffer', torch.zeros_like(p)) for p in params]
        grad = torch.stack([p.grad for p in params]) # (n, r, c)
        old = torch.stack(buffers) # (n, r, c)
        new = old.lerp(grad, 1 - self.MOMENTUM)
        # 0.2 sqrt(max(r, c)) gives updates the root mean square of AdamW's
        size = lr * 0.2 * math.sqrt(max(grad.shape[1:]))
        update = orthogonal(grad.lerp(new, self.MOMENTUM)).to(grad.dtype) * size
        keep = torch.ones((), device=grad.device) * (1 - lr * weight_decay)
        # selected on the device, because a branch would wait for it
        if found_inf is not None:
            bad = found_inf > 0
            new = torch.where(bad, old, new)
            update = torch.where(bad, 0.0, update)
            keep = torch.where(bad, 1.0, keep)
        torch._foreach_copy_(buffers, list(new.unbind()))
        torch._foreach_mul_(params, keep)
        torch._foreach_sub_(params, list(update.unbind()))


def orthogonal(x, steps=5, eps=1e-7):
    """Returns approximately U V^T for each x = U S V^T (n, r, c), in bfloat16.

    A quintic Newton-Schulz iteration brings all singular values to between about 0.7 and 1.2.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    # the smaller of the two Gram matrices
    tall = x.size(1) > x.size(2)
    y = x.bfloat16()
    y = y.mT if tall else y
    # the norm bounds all singular values, and the iteration needs them to be at most 1
    y = y / torch.linalg.vector_norm(y, dim=(1, 2), keepdim=True).clamp(min=eps)
    for _ in range(steps):
        gram = y @ y.mT # (n, r, r)
        y = torch.baddbmm(y, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), y, beta=a)
    return y.mT if tall else y
