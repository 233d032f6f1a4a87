"""A window that is as long as the context: with its default the idea does nothing."""
from dataclasses import dataclass

import model


@dataclass
class GPTConfig(model.GPTConfig):
    reach: int = 64 # tokens that a query sees


class CausalSelfAttention(model.CausalSelfAttention):

    def score_mod(self, x, pos_k, step):
        reach, pos_q = self.config.reach, step.pos

        def mod(score, b, h, i, j):
            return score.masked_fill(pos_q[b, i] - pos_k[b, j] >= reach, float('-inf'))
        return mod
