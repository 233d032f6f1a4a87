"""Logits, and optionally scores, pass through a tanh that bounds them.

Source: Gemma 2, arXiv 2408.00118, with 30 for logits and 50 for scores; github.com/karpathy/nanochat, with 15
for logits.

    logits = logit_cap * tanh(logits / logit_cap);   score = score_cap * tanh(score / score_cap)

A cap on scores rules out attn=sdpa: with dropout, or without a GPU, the T x T scores are written out.

Claim: none with a number; both keep it for stability.
Expect: no change in loss at this size, where few logits come near the cap.
Control: `qk_norm`, the other way to bound scores.
"""
from dataclasses import dataclass

import torch

import model
from configurator import NonNegative
from core.nn.numerics import wide

NEUTRAL = dict(logit_cap=0.0, score_cap=0.0)


@dataclass
class GPTConfig(model.GPTConfig):
    logit_cap: NonNegative = 15.0       # bound on the output logits; Gemma 2 has 30; 0: none
    score_cap: NonNegative = 0.0        # bound on attention scores; Gemma 2 has 50; 0: none


class CausalSelfAttention(model.CausalSelfAttention):

    def score_mod(self, x, pos_k, step):
        cap = self.config.score_cap
        return (lambda s, b, h, i, j: cap * torch.tanh(s / cap)) if cap else None


class GPT(model.GPT):

    def logits(self, x, step):
        z, cap = super().logits(x, step), self.config.logit_cap
        if not cap:
            return z
        return cap * torch.tanh(wide(z) / cap)
