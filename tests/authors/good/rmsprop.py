"""RMSprop with momentum instead of AdamW."""
import torch

import model


class GPT(model.GPT):

    def configure_optimizers(self, weight_decay, learning_rate, betas, device_type, optimizer='adamw'):
        decay = [p for p in self.parameters() if p.ndim >= 2]
        no_decay = [p for p in self.parameters() if p.ndim < 2]
        groups = [dict(params=decay, weight_decay=weight_decay), dict(params=no_decay, weight_decay=0.0)]
        return torch.optim.RMSprop(groups, lr=learning_rate, alpha=betas[1], momentum=0.9)
