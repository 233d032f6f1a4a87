"""Surprise decides for each token how much of a block's update it takes.

Source: github.com/fredericowieser/Dynamic-Transformers, notebooks/v1_5 (git 381bbae); arXiv 2511.21408.

    m = x after attention, post = the block's output, prior = W2 gelu(W1 LN(m of the position before))
    d_st = mean((post - x)^2), d_ch = mean((post - prior)^2)    over channels: static and change surprise
    expected   = d_st - d_ch - beta     above 0: the change was predicted better than no change
    unexpected = d_st - k * mean d_st   above 0: the change is large
    y = x + gate * (post - x);   loss += prior_loss * mean((prior - sg post)^2)

    gate='token'     1 where expected or unexpected is above 0, else 0; the source's form, but causal
    gate='straight'  the same, with the gradient of gate='soft'
    gate='soft'      1 - sigmoid(-sharp * expected) * sigmoid(-sharp * unexpected), as in the paper
    gate='learned'   2 * sigmoid(a log(d_st / d_ch) + b log(d_st / mean d_st) + bias), 1 in the beginning

The source opens one gate for a whole row, from means over its later tokens and over the batch: that sees the
future (gate='row'), and so do the token gates of v1_2 to v1_4, which compare with means over all of a row and
the batch (means='row'). Evaluation and sampling use the causal rule all the same. Here the default gate is
per token and its means run over the row's own past. v1_2 has first_open and prior_loss=0, v1_4 prior_loss=0.
The source's k = 0.9 is for rows, whose means lie close together. In a trained model of the small recipe
(config/ab_shakespeare_cpu.py, four layers) it opens 0.80 to 0.91 of the gates of rows, but 0.25 to 0.48 of
those of tokens, for which v1_2 to v1_4 have 0.3, 0.4 and 0.6; 0.3 opens 0.53 to 1.00 of them. Ours are
gate='straight' and 'learned', half, closed, opened, units='log' and k_warmup; predicts='update' is the
paper's.

Claim: none that can be compared; the notebooks have one run each, with other sizes.
Measured: 0.156 nats worse [0.145, 0.167] on Shakespeare's characters after 2,000 iterations, 5 runs, with
gate='token' and k=0.9: closed tokens take nothing from other positions, and give the block no gradient.
Control: closed=1 and opened=1, the prior's loss without a gate; gate='random' at the same open rate; `mod`,
which learns its choice.
Logged: `gate`, its mean; `surprise` and `change`, d_st and d_ch.
"""
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn as nn
import torch.nn.functional as F

import model
from configurator import Count, NonNegative, Positive, Share, Whole
from core.nn.layers import in_every_nth
from variants._routing import random_mask, sharpness

NEUTRAL = dict(closed=1.0, opened=1.0, prior_loss=0.0)
LEAKS = [(dict(gate='row'), "a row's gate averages over its later tokens and over the other rows"),
         (dict(gate='token', means='row'), 'a gate compares with a mean over the later tokens of its row'),
         (dict(gate='straight', means='row'), 'a gate compares with a mean over the later tokens of its row'),
         (dict(gate='soft', means='row'), 'a gate compares with a mean over the later tokens of its row'),
         (dict(gate='learned', means='row'), 'a gate compares with a mean over the later tokens of its row')]


@dataclass
class GPTConfig(model.GPTConfig):
    k: NonNegative = 0.9                # unexpected: static surprise above k times its mean; 0: gates stay open
    k_warmup: Whole = 0                 # iterations over which k rises from 0
    prior_width: Positive = 0.25        # hidden units of the prior network over n_embd; the source has 4
    prior_loss: NonNegative = 0.1       # weight of the prior's loss
    predicts: Literal['output', 'update'] = 'output' # what the prior predicts: the block's output, or its change
    gate: Literal['token', 'straight', 'row', 'soft', 'learned', 'random'] = 'token' # how it opens; random: a sham
    units: Literal['square', 'log'] = 'square' # soft gates compare surprises, or their logarithms
    per_channel: bool = False           # learned gate: one for each channel
    half: Literal['block', 'attn', 'mlp'] = 'block' # what is gated: the block's update, or that of one half
    closed: NonNegative = 0.0           # share of the update that a token takes whose gate is closed
    opened: Positive = 1.0              # and of one whose gate is open
    means: Literal['past', 'row'] = 'past' # what a token is compared with in training: its row so far, or all of it
    first_open: bool = False            # the first position's gate is open, as in v1_2
    open_rate: Share = 0.5              # random gate: share of positions, always the same ones, where it is open
    gate_warmup: Whole = 0              # iterations over which beta falls from mean d_ch to 0; the source has 2500
    gate_loss: NonNegative = 0.0        # balance: weight of 1 - mean gate during the warm-up, of mean gate after
    sharp_min: Positive = 0.1           # soft gate: sharpness of the sigmoids up to iteration sharp_warmup
    sharp_max: Positive = 100.0         # soft gate: sharpness that it rises to, linearly
    sharp_warmup: Whole = 100           # soft gate: the iteration from which it rises
    sharp_iters: Count = 2000           # soft gate: over how many iterations
    every: Count = 1                    # variant in every n-th layer


class Block(model.Block):

    def __init__(self, config, classes, layer):
        super().__init__(config, classes, layer)
        self.gated = in_every_nth(layer, config.every)
        if self.gated:
            hidden = max(1, round(config.prior_width * config.n_embd))
            self.ln_3 = classes.LayerNorm(config, config.n_embd)
            self.prior_fc = classes.Linear(config, config.n_embd, hidden)
            self.prior_proj = classes.Linear(config, hidden, config.n_embd)
            if config.gate == 'learned':
                # a, b and the bias, one for all channels or each; vectors neither decay nor go to Muon
                self.weigh = nn.Parameter(torch.zeros(3 * (config.n_embd if config.per_channel else 1)))

    def forward(self, x, step):
        if not self.gated:
            return super().forward(x, step)
        half = self.config.half
        m = self.attn_residual(x, step)
        if half == 'attn':
            return self.mlp_residual(self.gate_update(x, m, x, step), step)
        return self.gate_update(m if half == 'mlp' else x, self.mlp_residual(m, step), m, step)

    def gate_update(self, x, post, seen, step):
        """Returns x plus the share of the update post - x that gates let through, (B, T, C) each.

        seen (B, T, C): what the prior reads, a position later.
        """
        c = self.config
        past, = step.extend(self.layer, seen=seen) # (B, Tk, C)
        # zeros before the first position
        before = F.pad(past, (0, 0, 1, 0))[:, -1 - x.size(1):-1] # (B, T, C)
        prior = self.prior_proj(self.mlp.gelu(self.prior_fc(self.ln_3(before))))
        target = post if c.predicts == 'output' else post - x
        d_st, d_ch = ((post - x) ** 2).mean(-1), ((target - prior) ** 2).mean(-1) # (B, T)
        if c.gate == 'learned':
            gate = self.weighed(d_st, d_ch, step) # (B, T, 1 or C)
        else:
            gate = self.open(d_st, d_ch, step)[..., None] # (B, T or 1, 1)
        step.stat('gate', gate.squeeze(-1))
        step.loss('prior', c.prior_loss / c.n_layer * F.mse_loss(prior, target.detach()))
        if c.gate_loss:
            balance = torch.where(step.it < c.gate_warmup, 1 - gate.mean(), gate.mean())
            step.loss('gate', c.gate_loss / c.n_layer * balance)
        share = c.closed + (c.opened - c.closed) * gate
        return share * post + (1 - share) * x

    def open(self, d_st, d_ch, step):
        """Returns the gate, from 0 to 1, for both surprises (B, T): (B, T), or (B, 1) for whole rows."""
        c = self.config
        step.stat('surprise', d_st)
        step.stat('change', d_ch)
        if c.gate == 'random':
            gate = random_mask(step.pos, self.layer, c.open_rate).to(d_st.dtype)
        else:
            if c.gate == 'row' and self.training:
                d_st, d_ch = d_st.mean(1, keepdim=True), d_ch.mean(1, keepdim=True) # (B, 1)
            mean_st, mean_ch = self.means(d_st, d_ch, step)
            beta, k = self.beta(mean_ch, step), self.k(step)
            # both reasons to open a gate hold where they are above 0
            if c.units == 'log':
                expected, unexpected = log_ratio(d_st, d_ch + beta), log_ratio(d_st, k * mean_st)
            else:
                expected, unexpected = d_st - d_ch - beta, d_st - k * mean_st
            gate = ((expected > 0) | (unexpected > 0)).to(d_st.dtype)
            if c.gate in ('soft', 'straight'):
                sharp = sharpness(c, step.it)
                soft = 1 - torch.sigmoid(-sharp * expected) * torch.sigmoid(-sharp * unexpected)
                # soft - soft is exactly 0, and has soft's gradient
                gate = soft if c.gate == 'soft' else gate + (soft - soft.detach())
        return torch.where(step.pos == 0, 1.0, gate) if c.first_open else gate

    def weighed(self, d_st, d_ch, step):
        """Returns the learned gate (B, T, 1), or (B, T, C) of channels, from 0 to 2, for both surprises (B, T)."""
        step.stat('surprise', d_st)
        step.stat('change', d_ch)
        mean_st, _ = self.means(d_st, d_ch, step)
        a, b, bias = self.weigh.view(3, -1) # (1 or C,) each
        expected, unexpected = log_ratio(d_st, d_ch), log_ratio(d_st, mean_st) # (B, T)
        return 2 * torch.sigmoid(a * expected[..., None] + b * unexpected[..., None] + bias)

    def means(self, d_st, d_ch, step):
        """Returns the means that static and change surprise are compared with, which broadcast to (B, T)."""
        if self.training and self.config.gate == 'row':
            return d_st.mean(), d_ch.mean()
        if self.training and self.config.means == 'row':
            return d_st.mean(1, keepdim=True), d_ch.mean()
        all_st, all_ch = step.extend(self.layer, d_st=d_st, d_ch=d_ch) # (B, Tk), the row so far
        count = torch.arange(1, all_st.size(1) + 1, device=d_st.device)
        return ((d.cumsum(1) / count)[:, -d_st.size(1):] for d in (all_st, all_ch))

    def k(self, step):
        """Returns k, which rises from 0 during k_warmup."""
        c = self.config
        return c.k * (step.it / c.k_warmup).clamp(max=1) if c.k_warmup else c.k

    def beta(self, mean_ch, step):
        """Returns by how much the prior must beat no change, which falls to 0 during the warm-up."""
        warmup = self.config.gate_warmup
        return (1 - step.it / warmup).clamp(0, 1) * mean_ch.detach() if warmup else 0.0


def log_ratio(a, b):
    """Returns log(a / b) for numbers of at least 0, which it takes to be at least 1e-12."""
    return torch.log(a + 1e-12) - torch.log(b + 1e-12)
