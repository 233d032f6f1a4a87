"""Routing for stt, sdt and mod: surprise, rules that choose tokens, and a block run for chosen tokens only.

Source: github.com/fredericowieser/Dynamic-Transformers, src/models/base (arXiv 2511.21408); threshold
routing: arXiv 2603.11535.
"""
import math

import torch
import torch.nn as nn
import torch.nn.functional as F

import model

NOWHERE = 2 ** 40       # position of a slot that holds no token, so that no query sees it
SLACK = 1.25            # slots in training over the capacity, which a threshold only meets on average
CLASHES = dict(
    value_residual='the first layer has values for all tokens, a routed one for those it chooses',
    canon='a convolution would run over the chosen tokens of all rows, whichever they are',
    engram='n-grams would be made of the chosen tokens of all rows, whichever they are',
    forgetting='what a token forgets adds up over its layer, which tokens that are not chosen never see',
    relative_location='its weights belong to absolute positions, and empty slots have none')


# -- surprise, of an update r (B, T, C)

def static_surprise(r):
    """Returns the update's mean square (B, T): how far it is from no change."""
    return (r ** 2).mean(-1)


def change_surprise(config, r, mu, log_var=None):
    """Returns the update's distance from its prediction mu (B, T): a mean square, or a Gaussian's surprise.

    With log_var it is the mean Kullback-Leibler divergence of a Gaussian around r, whose variance is
    posterior_variance, from the predicted one, up to a constant.
    """
    d = (r - mu) ** 2
    if log_var is None:
        return d.mean(-1)
    return 0.5 * (log_var + (d + config.posterior_variance) * torch.exp(-log_var)).mean(-1)


def moving_average(d, window):
    """Returns the means of the last `window` numbers (..., T); the first one stands for those before it."""
    return F.pad(d, (window - 1, 0), mode='replicate').unfold(-1, window, 1).mean(-1)


class Prior(nn.Module):
    """A network (RMSNorm, SwiGLU) that predicts a block's update, or its mean and log variance."""

    def __init__(self, config):
        super().__init__()
        C = config.n_embd
        hidden = max(2, 2 * math.ceil(config.prior_width * C / 2)) # even
        self.norm = nn.RMSNorm(C, eps=1e-6)
        self.gate, self.up = (nn.Linear(C, hidden, bias=False) for _ in range(2))
        self.down = nn.Linear(hidden, C, bias=False)
        self.gaussian = nn.Linear(C, 2 * C) if config.change == 'gaussian' else None

    # (B, T, C) -> (mu,) or (mu, log_var)
    def forward(self, x):
        x = self.norm(x)
        y = self.down(F.silu(self.gate(x)) * self.up(x))
        return (y,) if self.gaussian is None else self.gaussian(y).chunk(2, dim=-1)


class Surprise(nn.Module):
    """Combines expected and unexpected change into a score in (0, 1); o_ce and m_cu are learned."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.o_ce = nn.Parameter(torch.tensor(config.o_ce_init))
        if config.gate == 'or':
            self.m_cu = nn.Parameter(torch.tensor(config.m_cu_init))

    def expected(self, d_st, d_ch):
        return d_st - (d_ch - torch.log(self.o_ce + 1e-10))

    def unexpected(self, d_st, mean_st):
        return d_st - self.m_cu * mean_st

    # d_st, d_ch and mean_st are (B, T), the sharpnesses scalars
    def forward(self, d_st, d_ch, mean_st, sharp_ce, sharp_cu):
        g = torch.sigmoid(sharp_ce * self.expected(d_st, d_ch))
        if self.config.gate == 'or':
            other = torch.sigmoid(sharp_cu * self.unexpected(d_st, mean_st))
            g = g + other - g * other # noisy OR
        return g


def sharpness(config, it):
    """Returns sharp_min up to iteration sharp_warmup, then rises linearly to sharp_max over sharp_iters."""
    rise = ((it - config.sharp_warmup) / config.sharp_iters).clamp(0, 1)
    return config.sharp_min + (config.sharp_max - config.sharp_min) * rise


# -- rules that choose tokens

class CausalRouter(nn.Module):
    """A network that predicts from a token alone if a rule that sees the whole row would choose it."""

    def __init__(self, n_embd):
        super().__init__()
        self.fc = nn.Linear(n_embd, n_embd // 2, bias=False)
        self.proj = nn.Linear(n_embd // 2, 1, bias=False)

    def forward(self, x):
        return self.proj(F.silu(self.fc(x)))[..., 0] # (B, T), above 0: chosen


class Threshold(nn.Module):
    """A rule that chooses tokens scoring as high as the best share `capacity` of recent training tokens."""

    def __init__(self, capacity):
        super().__init__()
        self.capacity = capacity
        self.register_buffer('least', torch.zeros(()))

    # (B, T) -> bool (B, T)
    def forward(self, score, it):
        # `least` comes from earlier passes, so this is causal
        mask = score >= self.least
        if self.training:
            ranked = score.detach().flatten().sort(descending=True).values
            now = ranked[max(int(self.capacity * len(ranked)), 1) - 1].to(self.least.dtype)
            # all scores drift together, so old ones are forgotten fast
            self.least.copy_(torch.where(it == 0, now, (self.least + now) / 2))
        return mask


def top_k_mask(score, capacity):
    """Returns bool (B, T), True for the best share `capacity` of each row. It sees the future."""
    k = max(1, int(capacity * score.size(1)))
    return torch.zeros_like(score, dtype=torch.bool).scatter(1, score.topk(k, dim=1).indices, True)


def random_mask(pos, layer, capacity):
    """Returns bool (B, T), chosen by position and layer alone, and so the same in training and decoding."""
    # Knuth's multiplicative hash; xor keeps Inductor from 32-bit indices
    h = (pos + 1009 * layer ^ 0x5bd1e995) * 2654435761 % 2 ** 32
    return (h ^ h >> 15) * 2246822519 % 2 ** 32 < capacity * 2 ** 32


# -- the block for the chosen tokens

def assign_slots(mask, size):
    """Returns the first `size` chosen positions of each row, and True for slots that hold one; (B, size)."""
    T = mask.size(1)
    t = torch.arange(T, device=mask.device)
    # chosen positions sort before all others
    order = torch.where(mask, t, t + T).sort(dim=1).values[:, :size]
    return order % T, order < T


def run_chosen(block, forward, x, mask, gate, step):
    """Returns x (B, T, C) plus gate (B, T) times forward's update where mask (B, T) is True.

    Chosen tokens see only chosen ones. Training takes the first SLACK * capacity * T of each row. With a
    cache, nothing is computed if no row chooses a token. keys='all': forward runs for all tokens, and chosen
    ones see them all. whole=True: the gate's value is 1, and its gradient is as before.
    """
    c, T = block.config, x.size(1)
    step.stat('routed', mask.float())
    if c.whole:
        gate = 1 + (gate - gate.detach())
    if c.keys == 'all':
        return x + (mask * gate)[..., None] * (forward(x, step) - x)

    # slots per row; decoding is never compiled, so it may use as many as it needs
    if step.cache is not None:
        size = int(mask.sum(1).max())
        if size == 0:
            return x
    else:
        size = min(T, math.ceil(SLACK * c.capacity * T)) if block.training else T
    index, live = assign_slots(mask, size)

    # the block runs for the tokens in the slots; no query sees an empty slot
    pos = torch.where(live, step.pos.gather(1, index), NOWHERE)
    sub = model.Step(pos, step.it, step.cache, step.stats, step.backends)
    sub.idx, sub.model = step.idx.gather(1, index), step.model
    sub.shared, sub.losses, sub.uses = step.shared, step.losses, step.uses
    index_c = index[..., None].expand(-1, -1, x.size(2)) # (B, size, C)
    chosen = x.gather(1, index_c)
    update = (live * gate.gather(1, index))[..., None] * (forward(chosen, sub) - chosen)
    return x.scatter_add(1, index_c, update.to(x.dtype))
