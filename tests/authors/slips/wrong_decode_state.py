"""Token shift that knows nothing of the cache: in decoding each pass begins with zeros."""
import torch.nn.functional as F

import model


class MLP(model.MLP):

    def hidden(self, x, step):
        before = F.pad(x[:, :-1], (0, 0, 1, 0))
        return super().hidden((x + before) / 2, step)
