"""Blocks in pairs: the surprise in the first one's update decides which tokens the second one runs for.

Source: Subjective Depth Transformer, arXiv 2511.21408; github.com/fredericowieser/Dynamic-Transformers.

    r = block_1(x) - x;   d_st = mean r^2;   d_ch = mean (r - prior(x))^2     means over channels
    CE = d_st - (d_ch - log o_ce);   CU = d_st - m_cu * (mean of d_st over the last 100 tokens)
    g = noisy OR of sigmoid(sharp * CE) and sigmoid(sharp * CU);   h = block_1(x)
    chosen tokens: h + g * (block_2(h) - h);   loss += prior_loss * mean (prior - sg r)^2

d_st is static surprise, d_ch change surprise. The paper chooses the best `capacity` of a row, which looks at
later tokens (router='topk'; evaluation and decoding then ask a network that predicts the choice). Here g is
compared with a threshold that follows earlier iterations, one causal rule everywhere. The repository's head
has gate='ce' and change='gaussian'. In the source chosen tokens see every key (keys='all'); whole is ours.

Claim: a quarter of the attention and half of the KV cache in the blocks that skip, accuracy "preliminary".
Expect: a higher loss than the baseline at equal steps for about a quarter fewer FLOPs.
Control: router='random' at the same capacity; `mod`.
Logged: `routed`, the share of tokens chosen; `surprise` and `change`, d_st and d_ch.
"""
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
import torch.nn.functional as F

import model
from configurator import Count, NonNegative, Positive, Share, Stop, Whole
from core.nn.layers import in_every_nth
from variants._routing import (  # noqa: F401
    CLASHES,
    CausalRouter,
    Prior,
    Surprise,
    Threshold,
    change_surprise,
    moving_average,
    random_mask,
    run_chosen,
    sharpness,
    static_surprise,
    top_k_mask,
)

NEUTRAL = dict(every=0)
LEAKS = [(dict(router='topk'), 'the best of a row are chosen with its later tokens in view')]


@dataclass
class GPTConfig(model.GPTConfig):
    every: Whole = 2                    # a pair of blocks in every n layers; 0: none, the baseline
    router: Literal['threshold', 'topk', 'random'] = 'threshold' # how tokens are chosen; random: a sham
    capacity: Annotated[float, '(0, 1]'] = 0.5 # share of the tokens that are chosen
    keys: Literal['chosen', 'all'] = 'chosen' # what chosen tokens see; all: every token's keys, and nothing is saved
    whole: bool = False                # chosen tokens take the whole update; g keeps its gradient
    gate: Literal['or', 'ce'] = 'or'    # the paper's noisy OR, or expected change alone, as the repository has now
    change: Literal['mse', 'gaussian'] = 'mse' # the prior predicts a mean, or a mean and a variance
    posterior_variance: Positive = 1.0  # gaussian: variance of the update around itself
    prior_width: Positive = 0.0625      # hidden units of the prior over n_embd
    prior_loss: NonNegative = 0.05      # weight of the prior's loss
    router_loss: NonNegative = 0.01     # topk: weight of the cross entropy of the network that predicts the choice
    causal_threshold: Share = 0.5       # topk: least probability with which evaluation chooses a token
    o_ce_init: Positive = 1.025         # initial value of o_ce
    m_cu_init: Positive = 1.1           # initial value of m_cu
    ma_window: Count = 100              # tokens whose mean surprise a token's own is compared with
    sharp_min: Positive = 0.1           # sharpness of the sigmoids up to iteration sharp_warmup
    sharp_max: Positive = 100.0         # sharpness that it rises to, linearly
    sharp_warmup: Whole = 100           # the iteration from which it rises
    sharp_iters: Count = 2000           # over how many iterations

    def __post_init__(self):
        super().__post_init__()
        if self.every == 1:
            raise Stop('every=1: a pair takes two blocks; allowed: 0, or 2 and more')


class Block(model.Block):

    def __init__(self, config, classes, layer):
        super().__init__(config, classes, layer)
        self.decides = in_every_nth(layer + 1, config.every) and layer + 1 < config.n_layer
        self.routed = in_every_nth(layer, config.every)
        if self.decides and config.router != 'random':
            self.prior, self.surprise = Prior(config), Surprise(config)
        if self.routed and config.router == 'topk':
            self.causal_router = CausalRouter(config.n_embd)
        if self.routed and config.router == 'threshold':
            self.threshold = Threshold(config.capacity)

    def forward(self, x, step):
        if self.routed:
            return self.run_routed(x, step)
        h = super().forward(x, step)
        if self.decides:
            step.shared['x'] = x
            if self.config.router != 'random':
                step.shared['g'] = self.score(h - x, self.prior(x), step)
        return h

    # a token's score (B, T), from the update r and its prediction
    def score(self, r, prior, step):
        c = self.config
        d_st, d_ch = static_surprise(r), change_surprise(c, r, *prior)
        step.stat('surprise', d_st)
        step.stat('change', d_ch)
        step.loss('prior', c.prior_loss / c.n_layer * change_surprise(c, r.detach(), *prior).mean())
        past, = step.extend(self.layer, d_st=d_st.detach()) # (B, Tk)
        mean_st = moving_average(past, c.ma_window)[:, -d_st.size(1):]
        sharp = sharpness(c, step.it)
        return self.surprise(d_st, d_ch, mean_st, sharp, sharp)

    def run_routed(self, h, step):
        c = self.config
        # the first block's input
        x = step.shared['x']
        if c.router == 'random':
            mask = random_mask(step.pos, self.layer, c.capacity)
            g = torch.ones_like(h[..., 0])
        elif c.router == 'threshold' or self.training:
            g = step.shared['g']
            mask = self.threshold(g, step.it) if c.router == 'threshold' else top_k_mask(g, c.capacity)
        else:
            g = torch.sigmoid(self.causal_router(x))
            mask = g >= c.causal_threshold
        if c.router == 'topk' and self.training:
            foreseen = F.binary_cross_entropy_with_logits(self.causal_router(x.detach()), mask.to(h.dtype))
            step.loss('router', c.router_loss / c.n_layer * foreseen)
        return run_chosen(self, super().forward, h, mask, g, step)
