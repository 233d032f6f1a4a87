"""A second embedding of the token is added to its values in attention.

Source: value embeddings of github.com/KellerJordan/modded-nanogpt, record 14 (2024-12-04), in the form of
github.com/karpathy/nanochat.

    gate    v_h = v_h + 3 sigmoid(w_h . x[:value_channels]) E[idx]_h    x: what attention reads
    lambda  v = (1 - lambda) v + lambda E[idx]                          lambda: learned, from 0.5

E has its own table for each layer that has one, which no other weight shares. 'gate' is nanochat's, in every
second layer, the last one always; 'lambda' is record 14's, there in every layer (value_every=1). Tables start
as N(0, 0.02), as small beside v as nanochat's, and learn half as fast as the token embedding; those of
'lambda' as N(0, 1), at its rate. As in the sources Adam trains them, never Muon.

Claim: 4.66 to 4.41 minutes in the record; nanochat: "models love" them, shared or low-rank tables lose.
Expect: a gain at equal FLOPs that is in part one of parameters: n_layer / 2 tables of vocab_size * n_embd.
With 65 characters these are few, and the first layer sees as much.
Control: `wide_mlp` with as many parameters, never tested by the sources; `value_residual`, which also keeps
the token in the values.
Logged: `value_gate`, or `value_lambda`.
"""
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn as nn

import model
from configurator import Count, Stop, Whole
from core.nn.embedding import Embedding

NEUTRAL = dict(value_every=0)


@dataclass
class GPTConfig(model.GPTConfig):
    value_form: Literal['gate', 'lambda'] = 'gate' # added through a gate of each head, or mixed by one number
    value_every: Whole = 2              # in every n-th layer, counted from the last; 0: none, the baseline
    value_channels: Count = 12          # channels of attention's input that the gate reads

    def __post_init__(self):
        super().__post_init__()
        if self.value_form == 'gate' and self.value_channels > self.n_embd:
            raise Stop(f'value_channels={self.value_channels}: must be at most n_embd={self.n_embd}')


class CausalSelfAttention(model.CausalSelfAttention):

    def __init__(self, config, classes, layer):
        super().__init__(config, classes, layer)
        has_table = config.value_every and (config.n_layer - 1 - layer) % config.value_every == 0
        self.form = config.value_form if has_table else None
        if not has_table:
            return
        # query heads may share the values' heads
        heads = getattr(config, 'n_kv_head', 0) or config.n_head
        self.value_embed = Embedding(config.vocab_size, heads * (config.n_embd // config.n_head))
        self.value_embed.weight.muon = False
        if self.form == 'gate':
            self.value_embed.weight.lr_scale = 0.5
            # without a bias, whatever config.bias says
            self.value_gate = nn.Linear(config.value_channels, heads, bias=False)
            self.value_gate.weight.init = lambda w: nn.init.uniform_(w, 0.0, 0.02)
        else:
            self.value_embed.weight.init = nn.init.normal_
            self.value_lambda = nn.Parameter(torch.tensor(0.5))

    def values(self, v, x, step):
        if self.form is None:
            return v
        e = self.value_embed(step.idx).to(v.dtype) # (B, T, heads * hs)
        e = e.unflatten(-1, (v.size(1), -1)).transpose(1, 2) # (B, heads, T, hs)
        if self.form == 'gate':
            gate = 3 * torch.sigmoid(self.value_gate(x[..., :self.config.value_channels])) # (B, T, heads)
            step.stat('value_gate', gate)
            return v + gate.transpose(1, 2)[..., None].to(v.dtype) * e
        step.stat('value_lambda', self.value_lambda)
        return (1 - self.value_lambda) * v + self.value_lambda * e
