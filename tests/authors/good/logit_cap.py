"""Logits are capped softly, as in Gemma 2."""
from dataclasses import dataclass

import torch

import model


@dataclass
class GPTConfig(model.GPTConfig):
    cap: float = 30.0 # largest logit


class GPT(model.GPT):

    def logits(self, x, step):
        return self.config.cap * torch.tanh(super().logits(x, step) / self.config.cap)
