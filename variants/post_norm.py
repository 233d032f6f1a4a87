"""What attention and the MLP add is normalised once more before it enters the residual stream.

Source: Gemma 2, arXiv 2408.00118, and Grok-1, github.com/xai-org/grok-1; github.com/evintunador/templateGPT
has it as second_resid_norm.

    x = x + LN(attn(LN(x)));   x = x + LN(mlp(LN(x)))

Claim: none with a number; Gemma 2 says that it stabilises training.
Expect: no gain in loss at this size. Every update starts at its norm's weight, 1 per channel, which is large
beside embeddings of 0.02: `scaled_embedding` brings the two nearer, as in the sources.
Control: `rmsnorm+post_norm` against `rmsnorm`, which is the sources' form of it.
"""
from dataclasses import dataclass

import model

NEUTRAL = dict(post_norm=False)


@dataclass
class GPTConfig(model.GPTConfig):
    post_norm: bool = True              # a norm after attention and after the MLP too


class Block(model.Block):

    def __init__(self, config, classes, layer):
        super().__init__(config, classes, layer)
        if config.post_norm:
            self.ln_attn_out = classes.LayerNorm(config, config.n_embd)
            self.ln_mlp_out = classes.LayerNorm(config, config.n_embd)

    def attn_out(self, y, step):
        return self.ln_attn_out(y) if self.config.post_norm else y

    def mlp_out(self, y, step):
        return self.ln_mlp_out(y) if self.config.post_norm else y
