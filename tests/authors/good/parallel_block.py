"""Attention and MLP side by side, as in GPT-J and PaLM."""
import model


class Block(model.Block):

    def forward(self, x, step):
        h = self.ln_1(x)
        return x + self.attn(h, step) + self.mlp(h, step)

    def __init__(self, config, classes, layer):
        super().__init__(config, classes, layer)
        del self.ln_2
