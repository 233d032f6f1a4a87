"""Every token decides, in each head, how much of what came before it is forgotten.

Source: Forgetting Transformer, Lin et al., arXiv 2503.02130.

    f = sigmoid(W x + b + forget_init)      per head and token
    score += log f_{j+1} + ... + log f_i = c_i - c_j,   c = cumsum(log f)

c_i cancels in softmax, so the bias depends on the key alone. The paper has forget_init=0, with which every
token forgets half, and no position embeddings; 3 forgets a twentieth.

Claim: better than RoPE Transformers on long-context language modelling, up to 760M parameters on 48B tokens.
Measured: -0.0047 nats [-0.0103, 0.0009] on Shakespeare's characters after 2,000 iterations, 8 runs: can't
tell. Whatever it has over `alibi` comes from rates that depend on the tokens between.
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
from core.nn.attention import Bias
from core.nn.layers import in_every_nth
from core.nn.numerics import wide

NEUTRAL = dict(forget_init=1e6)


@dataclass
class GPTConfig(model.GPTConfig):
    forget_init: Annotated[float, '[-100, inf)'] = 3.0 # logit of f at initialization; the paper's is 0
    every: Count = 1                    # variant in every n-th layer


# An operator, because over more than 128 tokens Inductor cannot fuse the sum with the addition of b:
# github.com/pytorch/pytorch/issues/180221
@torch.library.custom_op('variants::running_sum', mutates_args=())
def running_sum(x: torch.Tensor) -> torch.Tensor:
    """Returns x.cumsum(-1)."""
    return x.cumsum(-1)


running_sum.register_fake(lambda x: x.new_empty(x.shape))
running_sum.register_autograd(lambda ctx, dy: running_sum(dy.flip(-1)).flip(-1))


class CausalSelfAttention(model.CausalSelfAttention):

    def __init__(self, config, classes, layer):
        super().__init__(config, classes, layer)
        # with a bias, whatever config.bias says
        self.forget = nn.Linear(config.n_embd, config.n_head) if in_every_nth(layer, config.every) else None

    def score_mod(self, x, pos_k, step):
        if self.forget is None:
            return super().score_mod(x, pos_k, step)
        z = self.forget(x).transpose(1, 2) # (B, nh, T)
        log_f = F.logsigmoid(wide(z) + self.config.forget_init)
        step.stat('forget', log_f.exp())
        log_f_k, = step.extend(self.layer, log_f=log_f[..., None]) # (B, nh, Tk, 1), with those in the cache
        log_f_k = log_f_k.squeeze(-1)
        c = running_sum(log_f_k) - log_f_k[..., :1] # (B, nh, Tk), from the first token on
        return Bias(torch.ones_like(log_f), -c)
