"""The model also learns to predict tokens further ahead, with an extra block for each.

Source: multi-token prediction, Gloeckle et al., arXiv 2404.19737.

    logits_i = lm_head(ln_f(block_i(trunk)))   of the token after i more,   i = 0 .. n_future - 1
    loss = sum_i mean cross entropy of head i

trunk: what enters the last block, which is head 0; the other heads are blocks beside it, and ln_f and lm_head
serve all. They run in training only: evaluation and decoding are the baseline's. The paper takes the extra
blocks away from the trunk, so that its n_layer blocks are ours with n_layer - n_future + 1.

Claim: at 13B 12 % more problems of HumanEval solved and 17 % more of MBPP; small models lose.
Expect: a higher loss than the baseline's, because the trunk serves four heads; nanochat saw that.
Control: the baseline, which is the same model in decoding; with n_layer + n_future - 1 layers, one of as many
parameters. `mtp_weighted`, without heads.
Logged: the losses `mtp_2`, `mtp_3`, ..., of the second token and so on.
"""
from dataclasses import dataclass

import torch.nn as nn
import torch.nn.functional as F

import model
from configurator import Count

NEUTRAL = dict(n_future=1)


@dataclass
class GPTConfig(model.GPTConfig):
    n_future: Count = 4                 # tokens that each position predicts; 1: the baseline


class GPT(model.GPT):

    def __init__(self, config, classes):
        super().__init__(config, classes)
        # as deep as the last block
        self.extra_heads = nn.ModuleList([classes.Block(config, classes, config.n_layer - 1)
                                          for _ in range(config.n_future - 1)])

    def blocks(self, x, step):
        *trunk, head = self.transformer.h
        for block in trunk:
            x = block(x, step)
        step.shared['trunk'] = x
        return head(x, step)

    def loss(self, logits, targets, x, step):
        if self.training:
            # a row of T tokens has no target T further on
            for i, head in enumerate(self.extra_heads[:targets.size(1) - 1], 1):
                ahead = F.pad(targets[:, i:], (0, i), value=-1) # (B, T)
                h = self.transformer.ln_f(self.narrow(head(step.shared['trunk'], step), step))
                step.loss(f'mtp_{i + 1}', super().loss(self.logits(h, step), ahead, h, step))
        return super().loss(logits, targets, x, step)
