"""A norm after attention and after the MLP too, as in Gemma 2."""
import model


class Block(model.Block):

    def __init__(self, config, classes, layer):
        super().__init__(config, classes, layer)
        self.post_attn = classes.LayerNorm(config, config.n_embd)
        self.post_mlp = classes.LayerNorm(config, config.n_embd)

    def attn_out(self, y, step):
        return self.post_attn(y)

    def mlp_out(self, y, step):
        return self.post_mlp(y)
