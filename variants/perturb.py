"""The baseline with its initial weights moved by a millionth of their size: the noise floor of any change.

Source: a sham for comparisons at the same seed; training is chaotic, so that two runs that start a rounding
apart end in different places (Summers and Dinneen, "Nondeterminism and Instability in Neural Network
Optimization", arXiv 2103.04514).

    p <- p * (1 + perturb_scale * z)        z: normal, its own for each seed

Claim: none; there is no idea in it.
Expect: the baseline's loss on average, and between runs of one seed the spread that any harmless change has.
Control: the baseline.
"""
from dataclasses import dataclass

import torch

import model
from configurator import NonNegative

NEUTRAL = dict(perturb_scale=0.0)


@dataclass
class GPTConfig(model.GPTConfig):
    perturb_scale: NonNegative = 1e-6   # standard deviation of the change over the weight's size


class GPT(model.GPT):

    @torch.no_grad()
    def init_weights(self, seed):
        super().init_weights(seed)
        generator = torch.Generator().manual_seed(seed)
        # a tied weight comes once
        for p in self.parameters():
            z = torch.randn(p.shape, generator=generator)
            p.mul_(1 + self.config.perturb_scale * z)
