"""The loss that evaluation reports is not the cross entropy: label smoothing is left on."""
import torch.nn.functional as F

import model


class GPT(model.GPT):

    def loss(self, logits, targets, x, step):
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1, label_smoothing=0.1)
