"""Dropout of weights instead of activations: each training step omits a random tenth of every matrix.

Source: the noise notebook of github.com/MeghnaAllamudi/COMS6998_FinalProject; DropConnect, Wan et al., ICML
2013, and AWD-LSTM (arXiv 1708.02182).

    y = x (W * mask / (1 - drop_weight))^T + b    mask: one per forward pass, for all rows and positions

The source does not divide (rescale=False), so that evaluation sees weights about a tenth larger than training
did, and it omits the biases of these matrices, in evaluation too: bias=False is nearest. Embeddings and the
head stay whole.

Claim: none that holds; the notebook compares one run of each of its noises.
Expect: a slower fall of the loss, and less overfitting, as from dropout.
Control: `base` with a tuned dropout; rescale=False.
"""
from dataclasses import dataclass

import torch
import torch.nn.functional as F

import model
from configurator import Rate

NEUTRAL = dict(drop_weight=0.0)


@dataclass
class GPTConfig(model.GPTConfig):
    drop_weight: Rate = 0.1             # share of each matrix's weights that is left out in a training step
    rescale: bool = True                # divide by the share kept: evaluation sees what training saw; not in the source


class Linear(model.Linear):

    def __init__(self, config, n_in, n_out):
        super().__init__(config, n_in, n_out)
        self.drop_weight, self.rescale = config.drop_weight, config.rescale

    def forward(self, x):
        if not self.training or self.drop_weight == 0:
            return super().forward(x)
        kept = 1 - self.drop_weight
        return F.linear(x, self.weight * self.mask(kept) / (kept if self.rescale else 1), self.bias)

    # 1 where a weight is kept, else 0: (n_out, n_in)
    def mask(self, kept):
        return (torch.rand_like(self.weight) < kept).to(self.weight.dtype)
