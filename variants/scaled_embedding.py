"""Token embeddings enter the residual stream multiplied by sqrt(n_embd).

Source: Attention Is All You Need, arXiv 1706.03762, section 3.4; github.com/evintunador/templateGPT has it as
scale_first_resid.

    x = embedding_scale * wte[idx] + wpe[pos]

The output head, tied to wte, is not scaled.

Claim: none; neither source says why.
Expect: no gain, perhaps a loss: at first the blocks change the stream less. It matters where updates are
large (`post_norm`).
Control: embedding_scale between 1 and sqrt(n_embd).
"""
from dataclasses import dataclass

import model
from configurator import Positive

NEUTRAL = dict(embedding_scale=1.0)


@dataclass
class GPTConfig(model.GPTConfig):
    embedding_scale: Positive | None = None # token embeddings times this; None: sqrt(n_embd)


class GPT(model.GPT):

    def tok_emb(self, idx):
        scale = self.config.embedding_scale
        return super().tok_emb(idx) * (self.config.n_embd ** 0.5 if scale is None else scale)
