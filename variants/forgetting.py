"""Every token decides how much of what came before it is forgotten, in each head.

Source: Forgetting Transformer, Lin et al., arXiv 2503.02130.

    f = sigmoid(W x + b + forget_init)      per head and token
    score += log f_{j+1} + ... + log f_i = c_i - c_j,   c = cumsum(log f)

softmax does not see c_i, so the bias belongs to the key alone. The paper has forget_init=0, where half is forgotten with every
token, and no position embeddings; 3 forgets a twentieth.

Claim: better than RoPE Transformers on long-context language modelling, up to 760M parameters on 48B tokens.
Expect: at T=256 most of what `alibi` gives. Whatever it has over that comes from rates that depend on the tokens between.
Control: `alibi`, `static_slope`; `soft_window`, where the query decides and not what lies between.
Logged: `forget`, the mean of f.
"""
from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn as nn
import torch.nn.functional as F

import model
from configurator import Count

NEUTRAL = dict(forget_init=1e6)


@dataclass
class GPTConfig(model.GPTConfig):
    forget_init: Annotated[float, '[-100, inf)'] = 3.0 # logit of f at initialization; the paper's is 0
    every: Count = 1                    # variant in every n-th layer


@torch.library.custom_op('variants::running_sum', mutates_args=())
def running_sum(x: torch.Tensor) -> torch.Tensor:
    """x.cumsum(-1), which Inductor must not fuse with b: over 128 tokens it fails to (github.com/pytorch/pytorch/issues/180221)."""
    return x.cumsum(-1)


running_sum.register_fake(lambda x: x.new_empty(x.shape))
running_sum.register_autograd(lambda ctx, dy: running_sum(dy.flip(-1)).flip(-1))


class CausalSelfAttention(model.CausalSelfAttention):

    def __init__(self, config, classes, layer):
        super().__init__(config, classes, layer)
        self.forget = nn.Linear(config.n_embd, config.n_head) if (layer + 1) % config.every == 0 else None # b: always

    def score_mod(self, x, pos_k, step):
        if self.forget is None:
            return super().score_mod(x, pos_k, step)
        z = self.forget(x).transpose(1, 2) # (B, nh, T)
        log_f = F.logsigmoid(z.to(torch.promote_types(z.dtype, torch.float32)) + self.config.forget_init)
        step.stat('forget', log_f.exp())
        log_f_k, = step.extend(self.layer, log_f=log_f[..., None])
        log_f_k = log_f_k.squeeze(-1) # (B, nh, Tk)
        c = running_sum(log_f_k) - log_f_k[..., :1] # from the first token on
        return lambda s, b, h, i, j: s - c[b, h, j], dict(a=torch.ones_like(log_f), c=-c)
