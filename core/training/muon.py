"""Muon for matrices beside AdamW for everything else, as one optimizer."""
import math
from collections import defaultdict

import torch


class MuonAdamW(torch.optim.AdamW):
    """AdamW, and in groups with muon=True Muon (Jordan et al., https://kellerjordan.github.io/posts/muon): the step is the
    nearest matrix with orthonormal rows or columns to Nesterov's momentum of the gradient.

    The arithmetic of torch.optim.Muon with adjust_lr_fn='match_rms_adamw' (arXiv 2502.16982), so that one learning rate and one
    weight decay serve both; but matrices of one shape go through one batch of products, the learning rate may be a tensor, and
    where found_inf is set nothing moves, as in a fused AdamW. state: momentum_buffer, like the parameter.
    """

    MOMENTUM = 0.95

    @torch.no_grad()
    def step(self, closure=None):
        every = self.param_groups
        self.param_groups = [group for group in every if not group['muon']]
        try:
            loss = super().step(closure)
        finally:
            self.param_groups = every
        for group in every:
            if group['muon']:
                alike = defaultdict(list)
                for p in group['params']:
                    if p.grad is not None:
                        alike[p.shape].append(p)
                for params in alike.values():
                    self.orthogonal_step(params, group['lr'], group['weight_decay'], getattr(self, 'found_inf', None))
        return loss

    def orthogonal_step(self, params, lr, weight_decay, found_inf):
        """params: n matrices of one shape (r, c)."""
        buffers = [self.state[p].setdefault('momentum_buffer', torch.zeros_like(p)) for p in params]
        grad, old = torch.stack([p.grad for p in params]), torch.stack(buffers) # (n, r, c) each
        new = old.lerp(grad, 1 - self.MOMENTUM)
        update = orthogonal(grad.lerp(new, self.MOMENTUM)).to(grad.dtype) * (lr * 0.2 * math.sqrt(max(grad.shape[1:])))
        keep = torch.ones((), device=grad.device) * (1 - lr * weight_decay)
        if found_inf is not None:
            bad = found_inf > 0
            new, update, keep = torch.where(bad, old, new), torch.where(bad, 0.0, update), torch.where(bad, 1.0, keep)
        torch._foreach_copy_(buffers, list(new.unbind()))
        torch._foreach_mul_(params, keep)
        torch._foreach_sub_(params, list(update.unbind()))


def orthogonal(x, steps=5, eps=1e-7):
    """U V^T, nearly, of each x = U S V^T (n, r, c), in bfloat16: a quintic Newton-Schulz iteration that lifts all singular values
    to between about 0.7 and 1.2."""
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = x.size(1) > x.size(2)
    y = x.bfloat16()
    y = y.mT if tall else y
    y = y / torch.linalg.vector_norm(y, dim=(1, 2), keepdim=True).clamp(min=eps) # no singular value is above 1
    for _ in range(steps):
        gram = y @ y.mT
        y = torch.baddbmm(y, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), y, beta=a)
    return y.mT if tall else y
