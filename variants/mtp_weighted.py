"""At first one prediction is held against the next three tokens, later against the next alone.

Source: multi-token prediction in github.com/KellerJordan/modded-nanogpt, record 53 (2025-12-22).

    loss = mean_t sum_k w_k CE(logits_t, target_{t+k}),   w_0 = 1,   k = 0, 1, 2
    w_k = mtp_weight^k * clamp(3 - k - 3 it / mtp_iters, 0, 1)    k = 1, 2

So the weights are 1, 0.5, 0.25 at first; w_2 falls to 0 in the first third of mtp_iters, w_1 in the second.
Tokens beyond the row's end count 0. The source sums over tokens, and its record also unties the embeddings.

Claim: 2.037 to 1.988 minutes, together with untied embeddings.
Expect: nothing at the end: one softmax cannot be right about three tokens, and the last third is the
baseline's. nanochat, which divides by the weights' sum, saw it worse.
Control: `mtp`, whose heads let each token have a prediction of its own; mtp_iters=1, the weights of the end.
Logged: the losses `mtp_2` and `mtp_3`, weighted, of the second and the third token.
"""
from dataclasses import dataclass

import torch.nn.functional as F

import model
from configurator import Count, Share

NEUTRAL = dict(mtp_weight=0.0)


@dataclass
class GPTConfig(model.GPTConfig):
    mtp_weight: Share = 0.5             # the second token's weight at first; 0: the baseline
    mtp_iters: Count = 2000             # iterations of the schedule, as a rule max_iters


class GPT(model.GPT):

    def loss(self, logits, targets, x, step):
        if self.training:
            count = (targets != -1).sum()
            for k, weight in enumerate(self.weights(step.it), 1):
                step.loss(f'mtp_{k + 1}', weight * self.nll_ahead(logits, targets, k).sum() / count)
        return super().loss(logits, targets, x, step)

    # cross entropy (B, T) of the token after k more, 0 where there is none
    def nll_ahead(self, logits, targets, k):
        ahead = F.pad(targets, (0, k), value=-1)[:, k:] # (B, T)
        nll = F.cross_entropy(logits.flatten(0, 1), ahead.flatten(), ignore_index=-1, reduction='none')
        return nll.view_as(ahead)

    # of the second and the third token at iteration it, a 0-d tensor
    def weights(self, it):
        left = 3 - 3 * it / self.config.mtp_iters
        return [self.config.mtp_weight ** k * (left - k).clamp(0, 1) for k in (1, 2)]
