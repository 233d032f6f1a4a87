"""In some rows of a batch, each token's embedding is mixed with an earlier token's, in training only.

Source: the noise notebook of github.com/MeghnaAllamudi/COMS6998_FinalProject, mixup (arXiv 1710.09412) of
embeddings.

    row     x_t = lam x_t + (1 - lam) x_s + mix_std * z     s uniform on 0 .. t; lam on (0, 1), one per row
    batch   x   = lam x   + (1 - lam) x[rows shuffled] + mix_std * z     one lam and one coin per batch

The source's form is mix='batch', mix_std=0.01; it lets a row see another row. Targets are not mixed, there or
here: this is noise made of embeddings. targets='mixed' is the mixup of that paper, for rows of tokens:

    loss = lam * cross entropy with the row's targets + (1 - lam) * with its partner's

The paper draws lam from Beta(alpha, alpha), which is uniform for alpha = 1; mix_least is ours.

Claim: none that holds; the notebook compares one run of each of its noises.
Expect: a loss no better than the baseline's, perhaps less overfitting at a small dropout.
Control: `noise_embedding`, noise of no particular direction.
"""
from dataclasses import dataclass
from typing import Literal

import torch

import model
from configurator import NonNegative, Share, Stop
from core.nn.embedding import embedding
from core.nn.noise import noise_like

NEUTRAL = dict(mix_prob=0.0)
LEAKS = [(dict(mix='batch'),
          'a row is mixed with another row of the batch, whose tokens it then sees, later ones too')]


@dataclass
class GPTConfig(model.GPTConfig):
    mix_prob: Share = 0.2               # how often a row, or a batch, is mixed
    mix: Literal['row', 'batch'] = 'row' # a token's partner: an earlier one of its row, or one of another row
    mix_least: Share = 0.0              # lam is uniform on mix_least to 1; 1/2: a token stays most of itself
    targets: Literal['own', 'mixed'] = 'own' # batch: mixed: the loss is lam of the row's own, 1 - lam of its partner's
    mix_std: NonNegative = 0.0          # standard deviation of noise added to mixed rows; the source has 0.01

    def __post_init__(self):
        super().__post_init__()
        if self.targets == 'mixed' and self.mix == 'row':
            raise Stop('targets=mixed: a row shows the targets of its own earlier tokens; '
                       'allowed: mix=batch, or targets=own')


class GPT(model.GPT):

    def embed(self, idx, step):
        x = super().embed(idx, step) # (B, T, C)
        if not self.training or self.config.mix_prob == 0:
            return x
        rows, times, coin, lam = self.draw(x)
        if self.config.targets == 'mixed':
            # one lam for all rows
            step.shared['mix'] = rows[:, 0], torch.where(coin, lam, 1.0).squeeze()
        # x[rows, times], with a gradient that is summed in a fixed order
        partner = embedding(x.flatten(0, 1), rows * x.size(1) + times) # (B, T, C)
        mixed = lam * x + (1 - lam) * partner
        if self.config.mix_std:
            mixed = mixed + self.config.mix_std * self.noise(x)
        return torch.where(coin, mixed, x)

    def loss(self, logits, targets, x, step):
        own = super().loss(logits, targets, x, step)
        if 'mix' not in step.shared:
            return own
        rows, lam = step.shared['mix']
        return lam * own + (1 - lam) * super().loss(logits, targets[rows], x, step)

    def draw(self, x):
        """Returns partners' rows and times, which broadcast to (B, T), a coin and lam (B or 1, 1, 1)."""
        B, T, _ = x.size()
        if self.config.mix == 'row':
            n, rows = B, torch.arange(B, device=x.device)[:, None]
            t = torch.arange(1, T + 1, device=x.device)
            times = (torch.rand(B, T, device=x.device) * t).long() # 0 .. the token's own
        else:
            n, rows = 1, torch.randperm(B, device=x.device)[:, None]
            times = torch.arange(T, device=x.device)
        coin, lam = torch.rand(2, n, 1, 1, dtype=x.dtype, device=x.device)
        least = self.config.mix_least
        return rows, times, coin < self.config.mix_prob, least + (1 - least) * lam

    def noise(self, x):
        return noise_like(x)
