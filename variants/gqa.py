"""Several query heads share one head of keys and values.

Source: multi-query attention, Shazeer, arXiv 1911.02150; in groups: GQA, Ainslie et al., arXiv 2305.13245.

    query head h looks at key and value head h // (n_head / n_kv_head)

n_kv_head=1 is multi-query attention; n_kv_head=0 gives every query head its own, the baseline. The cache
holds the n_kv_head heads.

Claim: quality between multi-head and multi-query attention at the speed of the latter (T5 XXL: 47.1 against
47.2 and 46.6).
Expect: slightly worse at equal depth, because there are fewer parameters; the gain is a cache that is
n_head / n_kv_head times smaller.
Control: the baseline with fewer heads; n_kv_head between 1 and n_head.
"""
from dataclasses import dataclass

import model
from configurator import Stop, Whole

NEUTRAL = dict(n_kv_head=0)


@dataclass
class GPTConfig(model.GPTConfig):
    n_kv_head: Whole = 1                # heads of keys and values, a divisor of n_head; 0: as many as n_head

    def __post_init__(self):
        super().__post_init__()
        if self.n_kv_head and self.n_head % self.n_kv_head:
            raise Stop(f'n_kv_head={self.n_kv_head}: must divide n_head={self.n_head}, or be 0 for as many')


class CausalSelfAttention(model.CausalSelfAttention):

    def __init__(self, config, classes, layer):
        super().__init__(config, classes, layer)
        self.n_kv_embd = self.n_embd // self.n_head * (config.n_kv_head or self.n_head)
        self.c_attn = classes.Linear(config, config.n_embd, self.n_embd + 2 * self.n_kv_embd)

    # q (B, nh, T, hs), k and v (B, n_kv_head, T, hs)
    def qkv(self, x):
        split = self.c_attn(x).split([self.n_embd, self.n_kv_embd, self.n_kv_embd], dim=2)
        return (z.unflatten(2, (-1, self.n_embd // self.n_head)).transpose(1, 2) for z in split)
