"""A wider MLP and nothing else, which an idea that adds parameters must beat.

Source: a sham for comparisons at equal parameters, which Narang et al., arXiv 2102.11972, keep equal too.

    hidden units: mlp_ratio * n_embd, rounded

Each step of 0.5 adds n_embd^2 parameters per layer, 8 % of a block.

Claim: none; there is no idea in it.
Expect: a gain below seed noise. An idea that is no better than this is just capacity.
Control: the baseline; set mlp_ratio so that both arms have the same get_num_params.
"""
from dataclasses import dataclass

import model
from configurator import Positive

NEUTRAL = dict(mlp_ratio=4.0)
CLASHES = {'relative_location': 'each has its own width of the MLP'}


@dataclass
class GPTConfig(model.GPTConfig):
    mlp_ratio: Positive = 4.5           # hidden units of the MLP over n_embd; the baseline has 4


class MLP(model.MLP):

    def __init__(self, config, classes, layer):
        super().__init__(config, classes, layer)
        hidden = max(1, round(config.mlp_ratio * config.n_embd))
        self.c_fc = classes.Linear(config, config.n_embd, hidden)
        self.c_proj = classes.Linear(config, hidden, config.n_embd)
