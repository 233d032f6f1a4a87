"""At first one prediction is held against the next three tokens, later against the next alone.

Source: multi-token prediction in github.com/KellerJordan/modded-nanogpt, record 53 (2025-12-22).

    loss = mean_t sum_k w_k CE(logits_t, target_{t+k}),   w_0 = 1,   k = 0, 1, 2
    w_k = mtp_weight^k * clamp(3 - k - 3 progress / mtp_share, 0, 1)    k = 1, 2;   progress: it / lr_decay_iters

So the weights are 1, 0.5, 0.25 at first; w_2 falls to 0 in the first third of the run, w_1 in the second.
Tokens beyond the row's end count 0. The source sums over tokens, and its record also unties the embeddings.

Claim: 2.037 to 1.988 minutes, together with untied embeddings.
Expect: nothing at the end: one softmax cannot be right about three tokens, and the last third is the
baseline's. nanochat, which divides by the weights' sum, saw it worse.
Control: `mtp`, whose heads let each token have a prediction of its own; another mtp_share.
Logged: the losses `mtp_2` and `mtp_3`, weighted, of the second and the third token.
"""
from dataclasses import dataclass
from typing import Annotated

import torch.nn.functional as F

import model
from configurator import Share

NEUTRAL = dict(mtp_weight=0.0)


@dataclass
class GPTConfig(model.GPTConfig):
    mtp_weight: Share = 0.5             # the second token's weight at first; 0: the baseline
    mtp_share: Annotated[float, '(0, 1]'] = 1.0 # share of the run over which the weights fall


class GPT(model.GPT):

    def loss(self, logits, targets, x, step):
        if self.training:
            count = (targets != -1).sum()
            for k, weight in enumerate(self.weights(step.progress), 1):
                step.loss(f'mtp_{k + 1}', weight * self.nll_ahead(logits, targets, k).sum() / count)
        return super().loss(logits, targets, x, step)

    # cross entropy (B, T) of the token after k more, 0 where there is none
    def nll_ahead(self, logits, targets, k):
        ahead = F.pad(targets, (0, k), value=-1)[:, k:] # (B, T)
        nll = F.cross_entropy(logits.flatten(0, 1), ahead.flatten(), ignore_index=-1, reduction='none')
        return nll.view_as(ahead)

    # of the second and the third token
    def weights(self, progress):
        left = 3 - 3 * progress / self.config.mtp_share
        return [self.config.mtp_weight ** k * (left - k).clamp(0, 1) for k in (1, 2)]
