"""A second head predicts the token after the next one; its loss is added in training."""
import torch.nn as nn
import torch.nn.functional as F

import model


class GPT(model.GPT):

    def __init__(self, config, classes):
        super().__init__(config, classes)
        self.ahead = nn.Linear(config.n_embd, config.n_embd, bias=False)

    def loss(self, logits, targets, x, step):
        if self.training:
            later = self.lm_head(self.ahead(x[:, :-1]))
            ahead = F.cross_entropy(later.flatten(0, 1), targets[:, 1:].flatten(), ignore_index=-1)
            step.loss('ahead', 0.3 * ahead)
        return super().loss(logits, targets, x, step)
