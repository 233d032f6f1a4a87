"""
The GPT of nanoGPT (https://github.com/karpathy/nanoGPT), with a place for one idea at a time.

Seven classes are the slots: GPTConfig, LayerNorm, Linear, CausalSelfAttention, MLP, Block, GPT. A file variants/<name>.py
subclasses the ones it changes under the same names; load() puts them together and build() makes the model from them.
Step carries what belongs to one pass; attend() owns every way to compute attention. Nothing here knows any idea's name.

Shapes: B rows, T positions in this pass, Tk positions so far (= T without a cache), C = n_embd, nh = n_head, hs = C / nh.
"""
import inspect
import math
from collections import defaultdict
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from importlib import import_module
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import torch
import torch.nn as nn
import torch.nn.functional as F

from core.nn.attention import choose, flex_attention, kernel_attention, rank_one, sdpa_attention
from core.nn.dropout import Dropout
from core.nn.embedding import Embedding
from core.errors import Stop
from core.rng import NanWhereUninitialised, key, seed_cpu
from core.nn.loss import cross_entropy
from core.training.muon import MuonAdamW
from configurator import Count, Rate, make_checked
from core.nn.sampling import pick


@dataclass
class GPTConfig:
    block_size: Count = 1024            # longest context, in tokens
    vocab_size: Count = 50304           # distinct tokens; GPT-2's 50257, padded to a multiple of 64
    n_layer: Count = 12                 # blocks
    n_head: Count = 12                  # attention heads a block
    n_embd: Count = 768                 # channels of the residual stream, a multiple of n_head
    dropout: Rate = 0.0                 # 0 for pretraining; try 0.1 or more for small data
    attn_dropout: Rate | None = None    # dropout of attention weights; None: the same as dropout
    bias: bool = False                  # biases in Linears and LayerNorms, as in GPT-2; False is a bit better and faster
    attn: Literal['auto', 'math', 'sdpa', 'flex', 'kernel'] = 'auto' # how attention is computed; math is the definition

    def __post_init__(self):
        if self.n_embd % self.n_head:
            raise Stop(f'n_head={self.n_head}: must divide n_embd={self.n_embd}')


class Step:
    """What belongs to one forward pass, not to the model.

    pos (B, T): position of each input; None: row i is position i, which `plain` then says, and attention may rely on it.
    it: 0-d tensor, the training iteration, for schedules; None: 0.
    cache: None, or one dict a layer, kept by the caller between passes.
    shared: what a module hands to others in the same pass, by a name of its own.
    losses: {name: weighted scalar}, added to the objective while training.
    stats: None, or a dict that fills with {name: [a detached tensor a layer]}.
    """

    def __init__(self, pos=None, it=None, cache=None, stats=None):
        self.pos, self.from_zero = pos, pos is None
        self.it, self.cache, self.stats, self.shared, self.losses = it, cache, stats, {}, {}

    def loss(self, name, value):
        self.losses[name] = self.losses.get(name, 0.0) + value

    def stat(self, name, value):
        if self.stats is not None:
            self.stats.setdefault(name, []).append(value.detach())

    def extend(self, layer, **new):
        """Appends tensors (B, T) or (..., T, C) to this layer's cache along time; returns all positions so far."""
        if self.cache is None:
            return tuple(new.values())
        past = self.cache[layer]
        for name, x in new.items():
            past[name] = torch.cat((past[name], x), dim=-1 if x.ndim == 2 else -2) if name in past else x
        return tuple(past[name] for name in new)


# -----------------------------------------------------------------------------
# attention: the definition, and the choice of a faster way to the same numbers (core/nn/attention.py)

def attend(q, k, v, pos_q, pos_k, score_mod=None, form=None, impl='auto', plain=False, dropout=0.0):
    """softmax(q k^T / sqrt(hs), changed by score_mod) v over the keys with pos_k <= pos_q; returns y (B, nh, T, hs).

    q (B, nh, T, hs), k and v (B, nh, Tk, hs), pos_q (B, T), pos_k (B, Tk); plain: both positions are 0..T-1.
    score_mod(score, b, h, i, j) -> score, FlexAttention's signature, acts on the scaled scores.
    form: what score_mod amounts to, up to a constant for each query: dict(a=, c=), (B, nh, T) and (B, nh or 1, Tk), for
    score + a_i c_j; dict(w=) or dict(w=, ramp=) for a window of w (B, nh, T) tokens, as in core/kernels/attention_reference.py.
    impl: 'math' defines the result; 'kernel' needs a form where there is a score_mod, 'sdpa' one without a window; 'flex'
    needs a CUDA device and has no dropout; what an impl cannot express is a Stop, never another result. The kernel drops
    weights at a rate in 256ths.
    """
    impl = choose(impl, q, score_mod, form, plain, dropout)
    if impl == 'kernel':
        return kernel_attention(q, k, v, score_mod, form, dropout)
    if impl == 'sdpa':
        if score_mod is not None and not rank_one(form):
            raise Stop('attn=sdpa: cannot express what this variant does to the scores; allowed: auto, math, flex, kernel')
        return sdpa_attention(q, k, v, pos_q, pos_k, form, plain, dropout)
    if impl == 'flex':
        if dropout > 0 or not q.is_cuda:
            raise Stop(f'attn=flex: has no dropout, here attn_dropout={dropout}, and no gradient on {q.device.type}; '
                       'allowed: auto, math, sdpa')
        return flex_attention(q, k, v, pos_q, pos_k, score_mod, plain)
    return math_attention(q, k, v, pos_q, pos_k, score_mod, dropout)


def math_attention(q, k, v, pos_q, pos_k, score_mod, dropout):
    """The definition."""
    B, nh, T, hs = q.size()
    att = (q @ k.transpose(-2, -1)).to(torch.promote_types(q.dtype, torch.float32)) / math.sqrt(hs) # (B, nh, T, Tk)
    if score_mod is not None:
        b, h, i, j = (torch.arange(n, device=q.device) for n in att.size())
        att = score_mod(att, b.view(-1, 1, 1, 1), h.view(-1, 1, 1), i.view(-1, 1), j)
    att = att.masked_fill(pos_k[:, None, None, :] > pos_q[:, None, :, None], float('-inf'))
    att = F.dropout(F.softmax(att, dim=-1), dropout)
    return att.to(v.dtype) @ v # (B, nh, T, Tk) x (B, nh, Tk, hs) -> (B, nh, T, hs)


# -----------------------------------------------------------------------------
# the model

class LayerNorm(nn.Module):
    """LayerNorm with an optional bias."""

    def __init__(self, config, ndim):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(ndim))
        self.bias = nn.Parameter(torch.zeros(ndim)) if config.bias else None

    def forward(self, x):
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, 1e-5)


class Linear(nn.Linear):

    def __init__(self, config, n_in, n_out):
        super().__init__(n_in, n_out, bias=config.bias)


class CausalSelfAttention(nn.Module):

    def __init__(self, config, classes, layer):
        super().__init__()
        self.config, self.layer = config, layer
        self.n_head, self.n_embd = config.n_head, config.n_embd
        self.attn_dropout = config.dropout if config.attn_dropout is None else config.attn_dropout
        if config.attn == 'flex' and self.attn_dropout > 0:
            raise Stop(f'attn=flex: has no dropout, here attn_dropout={self.attn_dropout}; allowed: 0, or auto, math, sdpa')
        self.c_attn = classes.Linear(config, config.n_embd, 3 * config.n_embd) # query, key, value for all heads, in one
        self.c_proj = classes.Linear(config, config.n_embd, config.n_embd)
        self.resid_dropout = Dropout(config.dropout)

    def qkv(self, x): # q (B, nh, T, hs), k and v (B, nh, T, hs) or fewer heads, each for a group of queries
        B, T, C = x.size()
        heads = self.c_attn(x).view(B, T, -1, C // self.n_head) # of queries, then of keys, then of values
        return (z.transpose(1, 2) for z in heads.split(self.n_head, dim=2))

    def norm_qk(self, q, k):
        return q, k

    def rotate_qk(self, q, k, step):
        return q, k

    def values(self, v, step): # before they are cached
        return v

    def score_mod(self, x, pos_k, step):
        """(f, form) for attend(); queries are at step.pos, keys at pos_k. None: scores as they are."""
        return None, None

    def attend(self, q, k, v, x, pos_k, step): # every head, once a layer
        score_mod, form = self.score_mod(x, pos_k, step)
        return attend(q, k, v, step.pos, pos_k, score_mod, form, self.config.attn, step.from_zero,
                      self.attn_dropout if self.training else 0.0)

    def forward(self, x, step):
        q, k, v = self.qkv(x)
        q, k = self.rotate_qk(*self.norm_qk(q, k), step)
        k, v, pos_k = step.extend(self.layer, k=k, v=self.values(v, step), pos=step.pos) # (B, nh, Tk, hs) twice, (B, Tk)
        k, v = (z if z.size(1) == self.n_head else z.repeat_interleave(self.n_head // z.size(1), dim=1) for z in (k, v))
        y = self.attend(q, k, v, x, pos_k, step) # (B, nh, T, hs)
        y = y.transpose(1, 2).flatten(2) # (B, T, C), heads side by side again
        return self.resid_dropout(self.c_proj(y))


class MLP(nn.Module):

    def __init__(self, config, classes, layer):
        super().__init__()
        self.c_fc = classes.Linear(config, config.n_embd, 4 * config.n_embd)
        self.gelu = nn.GELU()
        self.c_proj = classes.Linear(config, 4 * config.n_embd, config.n_embd)
        self.dropout = Dropout(config.dropout)

    def hidden(self, x, step):
        return self.c_fc(x)

    def forward(self, x, step):
        return self.dropout(self.c_proj(self.gelu(self.hidden(x, step))))


class Block(nn.Module):

    def __init__(self, config, classes, layer):
        super().__init__()
        self.config, self.layer = config, layer
        self.ln_1 = classes.LayerNorm(config, config.n_embd)
        self.attn = classes.CausalSelfAttention(config, classes, layer)
        self.ln_2 = classes.LayerNorm(config, config.n_embd)
        self.mlp = classes.MLP(config, classes, layer)

    def attn_out(self, y, step): # attention's update, before it is added
        return y

    def mlp_out(self, y, step): # the same for the MLP's
        return y

    def add(self, x, y): # the residual stream
        return x + y

    def attn_residual(self, x, step): # the half that looks at other positions
        return self.add(x, self.attn_out(self.attn(self.ln_1(x), step), step))

    def mlp_residual(self, x, step): # the half that does not
        return self.add(x, self.mlp_out(self.mlp(self.ln_2(x), step), step))

    def forward(self, x, step):
        return self.mlp_residual(self.attn_residual(x, step), step)


class GPT(nn.Module):

    def __init__(self, config, classes):
        super().__init__()
        self.config = config
        self.transformer = nn.ModuleDict(dict(
            wte = Embedding(config.vocab_size, config.n_embd),
            wpe = nn.Embedding(config.block_size, config.n_embd),
            drop = Dropout(config.dropout),
            h = nn.ModuleList([classes.Block(config, classes, layer) for layer in range(config.n_layer)]),
            ln_f = classes.LayerNorm(config, config.n_embd),
        ))
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.transformer.wte.weight = self.lm_head.weight # weight tying, https://paperswithcode.com/method/weight-tying

    @torch.no_grad()
    def init_weights(self, seed):
        """Initial value = f(seed, parameter name), so parameters that two models share start equal, whatever else they have.

        A tag p.init(p) on a parameter wins; else Linear and Embedding get nanoGPT's values; else the constructor's stay.
        """
        usual = {id(p) for m in self.modules() if isinstance(m, (nn.Linear, nn.Embedding)) for p in m.parameters(recurse=False)}
        with torch.random.fork_rng(devices=[]):
            for name, p in self.named_parameters(): # a tied weight comes once, under its first name
                seed_cpu(key(seed, 'init', name))
                if hasattr(p, 'init'):
                    p.init(p)
                elif id(p) in usual:
                    scale = math.sqrt(2 * self.config.n_layer) if name.endswith('c_proj.weight') else 1.0 # per GPT-2 paper
                    nn.init.zeros_(p) if p.ndim == 1 else nn.init.normal_(p, mean=0.0, std=0.02 / scale)
                if not p.isfinite().all():
                    raise Stop(f'{name}: starts with NaN or infinity; give it a value or a tag: p.init = nn.init.zeros_')

    def num_params(self, non_embedding=True):
        """How many there are; by default without the position embeddings, but with the token embeddings, the head's weights."""
        return sum(p.numel() for n, p in self.named_parameters() if not (non_embedding and n == 'transformer.wpe.weight'))

    def tok_emb(self, idx):
        return self.transformer.wte(idx) # (B, T, C)

    def pos_emb(self, step):
        wpe = self.transformer.wpe
        return wpe.weight[:step.pos.size(1)] if step.from_zero else wpe(step.pos) # (T, C) or (B, T, C)

    def embed(self, idx, step):
        return self.transformer.drop(self.tok_emb(idx) + self.pos_emb(step))

    def logits(self, x):
        return self.lm_head(x)

    def forward(self, idx, targets=None, step=None):
        """idx (B, T), targets (B, T), -1 to ignore -> logits (B, T, vocab_size) and the loss: mean cross entropy in nats,
        in train() plus step.losses. Without targets: the last position's logits (B, 1, vocab_size) and None."""
        B, T = idx.size()
        if T > self.config.block_size:
            raise Stop(f'{T} tokens: longer than block_size={self.config.block_size}')
        step = Step() if step is None else step
        if step.from_zero:
            step.pos = torch.arange(T, device=idx.device).expand(B, T)
        if step.it is None:
            step.it = torch.zeros((), device=idx.device)
        x = self.embed(idx, step) # (B, T, C)
        for block in self.transformer.h:
            x = block(x, step)
        x = self.transformer.ln_f(x)
        if targets is None:
            return self.logits(x[:, [-1], :]), None
        logits = self.logits(x)
        loss = cross_entropy(logits.view(-1, logits.size(-1)), targets.reshape(-1))
        if self.training:
            loss = loss + sum(step.losses.values())
        return logits, loss

    def crop_block_size(self, block_size):
        """Shortens the context, e.g. to fine-tune GPT-2 (1024) with less memory."""
        if block_size > self.config.block_size:
            raise Stop(f'block_size={block_size}: this model has at most {self.config.block_size}')
        self.config.block_size = block_size
        if self.transformer.wpe.weight is not None:
            self.transformer.wpe.weight = nn.Parameter(self.transformer.wpe.weight[:block_size])

    def configure_optimizers(self, weight_decay, learning_rate, betas, device_type, optimizer='adamw'):
        """AdamW with nanoGPT's groups: tensors of two or more dimensions decay, vectors and scalars do not. optimizer='muon':
        Muon for the blocks' matrices. Tags: p.no_decay = True, p.lr_scale = 0.1. group['lr_scale'] is what the schedule's
        learning rate is multiplied by."""
        groups = defaultdict(list)
        for name, p in self.named_parameters():
            muon = optimizer == 'muon' and p.ndim == 2 and name.startswith('transformer.h.')
            groups[p.ndim >= 2 and not getattr(p, 'no_decay', False), getattr(p, 'lr_scale', 1.0), muon].append(p)
        groups = [dict(params=params, weight_decay=weight_decay * decay, lr_scale=lr_scale, lr=learning_rate * lr_scale, muon=muon)
                  for (decay, lr_scale, muon), params in groups.items()]
        cuda = device_type == 'cuda'
        if cuda: # the learning rate as a tensor, so that a captured CUDA graph sees it change
            for group in groups:
                group['lr'] = torch.tensor(group['lr'], device='cuda')
        return (MuonAdamW if optimizer == 'muon' else torch.optim.AdamW)(groups, betas=betas, fused=True, capturable=cuda)

    @torch.no_grad()
    def stream(self, idx, max_new_tokens, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, generator=None, it=None):
        """Yields the next token of every row (B, 1), max_new_tokens times, after the context idx (B, T). it: as in Step."""
        seen, cache = 0, [{} for _ in self.transformer.h]
        for _ in range(max_new_tokens):
            T = idx.size(1)
            if T <= self.config.block_size:
                pos = None if seen == 0 else torch.arange(seen, T, device=idx.device).expand(idx.size(0), -1)
                new, step = idx[:, seen:], Step(pos, it, cache)
                seen = T
            else: # every position has moved, so the last block_size tokens are read again, as in nanoGPT
                new, step = idx[:, -self.config.block_size:], Step(it=it)
            with torch.inference_mode(): # a small model's token on a CPU takes a tenth less than with no_grad alone
                logits, _ = self(new, step=step)
            new = pick(logits[:, -1, :], temperature, top_k, top_p, min_p, generator)
            idx = torch.cat((idx, new), dim=1)
            yield new

    def generate(self, idx, *args, **kwargs):
        """idx (B, T) with max_new_tokens more (B, T + max_new_tokens); arguments as for stream()."""
        return torch.cat((idx, *self.stream(idx, *args, **kwargs)), dim=1)


# -----------------------------------------------------------------------------
# variants

SLOTS = (GPTConfig, LayerNorm, Linear, CausalSelfAttention, MLP, Block, GPT)


def variants():
    """The names of the files in variants/, without the kernels and helpers beside them."""
    return sorted(p.stem for p in (Path(__file__).parent / 'variants').glob('*.py') if not p.stem.startswith('_'))


def load(variant='base'):
    """'soft_window+surprise' -> a namespace of the seven classes to build from, and `files`, the variants' modules."""
    names = [name for name in variant.split('+') if name != 'base']
    for name in names:
        if name not in variants():
            near = get_close_matches(name, ['base', *variants()], n=1)
            raise Stop(f"variant={variant}: no file variants/{name}.py; {f'did you mean {near[0]}? ' if near else ''}"
                       f"there are: base, {', '.join(variants())}")
        if names.count(name) > 1:
            raise Stop(f'variant={variant}: {name} is named twice')
    return SimpleNamespace(**assembled(variant, *(import_module('variants.' + name) for name in names)))


@cache # for what is compiled for a class serves that class alone
def assembled(variant, *files):
    """What load() makes of the files of a variant, as a dict."""
    for f, g in combinations(files, 2):
        for one, two in ((f, g), (g, f)):
            if why := getattr(one, 'CLASHES', {}).get(two.__name__.removeprefix('variants.')):
                raise Stop(f'variant={variant}: these two do not go together: {why}')
    classes = dict(files=list(files))
    for slot in SLOTS:
        mine = [c for f in files if (c := vars(f).get(slot.__name__)) and c.__module__ == f.__name__]
        for c in mine:
            if not issubclass(c, slot):
                raise Stop(f"{c.__module__.replace('.', '/')}.py: class {slot.__name__} must subclass model.{slot.__name__}")
        for one, two in combinations(mine, 2): # constructors cooperate through super(); nothing else may be shared
            if both := sorted(n for n in own(one) & own(two) if not same_option(one, two, n)):
                raise Stop(f'variant={variant}: both files define {slot.__name__}.{both[0]}; a third file can say how they combine')
        if slot is GPTConfig:
            mine = [dataclass(c) for c in mine]
        part = type(slot.__name__, (*mine, slot), {'__doc__': slot.__doc__}) if mine else slot
        classes[slot.__name__] = dataclass(part) if slot is GPTConfig else part
    for f in files:
        if not any(inspect.isclass(c) and c.__module__ == f.__name__ and issubclass(c, SLOTS) for c in vars(f).values()):
            raise Stop(f"{f.__name__.replace('.', '/')}.py: defines none of {', '.join(s.__name__ for s in SLOTS)}")
    return classes


def own(c):
    """The names a class defines itself, constructors and what Python adds apart."""
    return {name for name in vars(c) if not name.startswith('__')}


def same_option(one, two, name):
    """Whether two GPTConfigs mean one option by this name: with one type and one default it goes to both."""
    kinds = [inspect.get_annotations(c).get(name) for c in (one, two)]
    return kinds[0] is not None and kinds[0] == kinds[1] and getattr(one, name) == getattr(two, name)


def build(variant='base', seed=1337, **model_args):
    """The model of a variant, its options being the fields of load(variant).GPTConfig, initialised by (seed, parameter name)."""
    classes = load(variant)
    config = make_checked(classes.GPTConfig, model_args)
    with torch.random.fork_rng(devices=[]), NanWhereUninitialised(): # what a constructor forgets to initialise shows
        seed_cpu(key(seed, 'build'))
        model = classes.GPT(config, classes)
    model.init_weights(seed)
    return model
