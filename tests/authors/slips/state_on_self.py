"""A recurrence that keeps its state in the module instead of in step."""
import torch

import model


class Block(model.Block):

    def __init__(self, config, classes, layer):
        super().__init__(config, classes, layer)
        self.h = None

    def mlp_out(self, y, step):
        h = torch.zeros_like(y[:, 0]) if self.h is None else self.h[:1].expand_as(y[:, 0])
        out = []
        for t in range(y.size(1)):
            h = 0.9 * h + y[:, t]
            out.append(h)
        self.h = h.detach()
        return torch.stack(out, dim=1)
