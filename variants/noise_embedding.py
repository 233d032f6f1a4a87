"""Gaussian noise on the embeddings, in training only.

Source: the noise notebook of github.com/MeghnaAllamudi/COMS6998_FinalProject, Gaussian noise; a form of it is
NEFTune (arXiv 2310.05914).

    x = dropout(tok + pos) + noise_std * z      z: mean 0, variance 1 for each element

NEFTune, a method for fine-tuning, adds alpha / sqrt(T C) * U(-1, 1), which is noise='uniform' with
noise_std = alpha / sqrt(3 T C): its alpha = 5 is 0.0092 at T = 256, C = 384. relative is ours: embeddings can
then not outgrow the noise.

Claim: none that holds; the notebook compares one run of each of its noises.
Expect: no change in loss: 0.01 is a third of the standard deviation that embeddings start with, and they
grow.
Control: `base` with a tuned dropout.
"""
from dataclasses import dataclass
from typing import Literal

import torch

import model
from configurator import NonNegative
from core.nn.noise import noise_like

NEUTRAL = dict(noise_std=0.0)


@dataclass
class GPTConfig(model.GPTConfig):
    noise_std: NonNegative = 0.01       # standard deviation of the noise on embeddings
    noise: Literal['normal', 'uniform'] = 'normal' # its distribution; NEFTune's is uniform
    relative: bool = False              # noise_std in units of each token's root mean square


class GPT(model.GPT):

    def embed(self, idx, step):
        x = super().embed(idx, step) # (B, T, C)
        if not self.training or self.config.noise_std == 0:
            return x
        z = self.noise(x)
        if self.config.relative:
            z = z * x.detach().square().mean(-1, keepdim=True).sqrt() # (B, T, C) x (B, T, 1)
        return x + self.config.noise_std * z

    def noise(self, x):
        if self.config.noise == 'normal':
            return noise_like(x)
        return 3 ** 0.5 * (2 * torch.rand_like(x) - 1)
