"""In every second block a router sends part of the tokens through; the others pass unchanged.

Source: Mixture-of-Depths, Raposo et al., arXiv 2404.02258; as in
github.com/fredericowieser/Dynamic-Transformers.

    r = W x;   chosen tokens: x = x + sigmoid(r) * (block(x) - x), which see chosen ones only;   others: x

The paper and the source choose the best `capacity` of each row, which looks at later tokens (router='topk'):
evaluation and decoding then ask a second network, trained to predict that choice. Here the default is a
threshold that follows the scores of earlier iterations (Expert Threshold routing, arXiv 2603.11535): one
causal rule for training, evaluation and decoding. The paper multiplies by r itself; whole is ours.

Claim: up to 1.5 % lower loss at equal training FLOPs, with more blocks or wider ones, and 50 % faster
decoding.
Expect: a higher loss at equal steps, for fewer FLOPs; an independent copy at 50M lost 0.1 to 0.5 nats on C4.
Control: router='random', by position, at the same capacity; `surprise`, `stt` and `sdt`, which choose by
surprise.
Logged: `routed`, the share of tokens chosen.
"""
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
import torch.nn as nn
import torch.nn.functional as F

import model
from configurator import NonNegative, Share, Whole
from core.nn.layers import in_every_nth
from variants._routing import (  # noqa: F401
    CLASHES,
    CausalRouter,
    Threshold,
    random_mask,
    run_chosen,
    top_k_mask,
)

NEUTRAL = dict(every=0)
LEAKS = [(dict(router='topk'), 'the best of a row are chosen with its later tokens in view')]


@dataclass
class GPTConfig(model.GPTConfig):
    every: Whole = 2                    # routing in every n-th layer; 0: in none, the baseline
    router: Literal['threshold', 'topk', 'random'] = 'threshold' # how tokens are chosen; random: a sham
    capacity: Annotated[float, '(0, 1]'] = 0.5 # share of the tokens that are chosen; the paper's is 0.125
    keys: Literal['chosen', 'all'] = 'chosen' # what chosen tokens see; all: every token's keys, and nothing is saved
    whole: bool = False                # chosen tokens take the whole update; sigmoid(r) keeps its gradient
    z_loss: NonNegative = 1e-4          # weight of the mean square of the router's logits
    router_loss: NonNegative = 0.01     # topk: weight of the cross entropies of both routers with the choice
    causal_threshold: Share = 0.5       # topk: least probability with which evaluation chooses a token


class Block(model.Block):

    def __init__(self, config, classes, layer):
        super().__init__(config, classes, layer)
        self.routed = in_every_nth(layer, config.every)
        if self.routed:
            self.router = nn.Linear(config.n_embd, 1, bias=False)
            if config.router == 'topk':
                self.causal_router = CausalRouter(config.n_embd)
            elif config.router == 'threshold':
                self.threshold = Threshold(config.capacity)

    def forward(self, x, step):
        if not self.routed:
            return super().forward(x, step)
        c, logits = self.config, self.router(x)[..., 0] # (B, T)
        step.loss('z', c.z_loss / c.n_layer * (logits ** 2).mean())
        if c.router == 'random':
            mask = random_mask(step.pos, self.layer, c.capacity)
        elif c.router == 'threshold':
            mask = self.threshold(logits, step.it)
        elif self.training:
            mask = top_k_mask(logits, c.capacity)
            target = mask.to(x.dtype)
            foreseen = self.causal_router(x.detach())
            losses = F.binary_cross_entropy_with_logits(logits, target)
            losses = losses + F.binary_cross_entropy_with_logits(foreseen, target)
            step.loss('router', c.router_loss / c.n_layer * losses)
        else:
            logits = self.causal_router(x)
            mask = torch.sigmoid(logits) >= c.causal_threshold
        return run_chosen(self, super().forward, x, mask, torch.sigmoid(logits), step)
