"""
The GPT of nanoGPT, with a place for one idea at a time.

Sources:
nanoGPT, of which this is a fork: https://github.com/karpathy/nanoGPT/blob/master/model.py
GPT-2 as OpenAI wrote it: https://github.com/openai/gpt-2/blob/master/src/model.py
GPT-2 in Hugging Face transformers, from which the weights have their names:
https://github.com/huggingface/transformers/blob/main/src/transformers/models/gpt2/modeling_gpt2.py

Seven classes are slots: GPTConfig, LayerNorm, Linear, CausalSelfAttention, MLP, Block, GPT. A file
variants/<name>.py subclasses those it changes, under the same names; load_classes() puts them together and
build() makes a model of them. Step is the state of one forward pass. No idea is mentioned here by name.

Shapes: B rows, T positions in this pass, Tk positions so far (= T without a cache), C = n_embd, nh = n_head,
hs = C / nh.
"""
import math
from collections import defaultdict
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
import torch.nn as nn
import torch.nn.functional as F

from configurator import Count, Rate, construct_checked
from core.assemble import assemble
from core.device.flops import flops_per_token
from core.device.machine import machine
from core.errors import Stop
from core.nn.attention import attend, choose_backend
from core.nn.dropout import Dropout
from core.nn.embedding import Embedding
from core.nn.gpt2_weights import SIZES as GPT2_SIZES, download_gpt2, load_gpt2
from core.nn.loss import cross_entropy
from core.nn.sampling import sample_token
from core.rng import NanWhereUninitialised, key, seed_cpu
from core.training.muon import MuonAdamW


@dataclass
class GPTConfig:
    block_size: Count = 1024            # longest context, in tokens
    vocab_size: Count = 50304           # distinct tokens; GPT-2's 50257, padded to a multiple of 64
    n_layer: Annotated[int, '[1, 9999]'] = 12 # blocks
    n_head: Count = 12                  # attention heads a block
    n_embd: Count = 768                 # channels of the residual stream, a multiple of n_head
    dropout: Rate = 0.0                 # 0 for pretraining; try 0.1 or more for small data
    attn_dropout: Rate | None = None    # dropout of attention weights; None: the same as dropout
    bias: bool = False                  # biases in Linear and LayerNorm, as in GPT-2; a bit better and faster without
    attn: Literal['auto', 'math', 'sdpa', 'flex', 'kernel'] = 'auto' # how attention is computed; math is the definition

    def __post_init__(self):
        # each head has n_embd / n_head channels
        if self.n_embd % self.n_head:
            raise Stop(f'n_head={self.n_head}: must divide n_embd={self.n_embd}')


class Step:
    """State of one forward pass, which does not belong to the model.

    idx (B, T): the input tokens.
    pos (B, T): the position of each input token. None: 0..T-1 in every row, and from_zero is True.
    it: the training iteration, a 0-d tensor, for schedules. None: 0.
    cache: a dict for each layer, kept by the caller between passes, or None.
    shared: tensors that modules pass to each other within one forward pass, each under a name of its own.
    losses: {name: weighted scalar}, added to the objective in training.
    stats: a dict to collect {name: [one detached tensor per layer]}, or None.
    backends: a set to collect (way, why), what choose_backend() returns for training, or None.
    all_positions: without targets, give the logits of every position, not of the last alone.
    """

    def __init__(self, pos=None, it=None, cache=None, stats=None, backends=None, all_positions=False):
        # given by the caller
        self.pos, self.from_zero = pos, pos is None
        self.it = it
        self.cache = cache
        self.stats = stats
        self.backends = backends
        self.all_positions = all_positions
        # filled by GPT.forward(), and from shared on by the modules
        self.idx, self.model = None, None
        self.shared = {}
        self.losses = {}
        # how often each name of a layer has been used in this pass
        self.uses = {}

    @property
    def progress(self):
        """The share of the run's schedule that is over, a 0-d tensor from 0 to 1; outside of a run 0."""
        n = self.model.schedule_iters
        return (self.it / n).clamp(max=1) if n else torch.zeros_like(self.it)

    def loss(self, name, value):
        """Adds a scalar to the objective, under a name for the log."""
        self.losses[name] = self.losses.get(name, 0.0) + value

    def stat(self, name, value):
        """Records a tensor, whose mean is logged at evaluations, one value per layer."""
        if self.stats is not None:
            self.stats.setdefault(name, []).append(value.detach())

    def extend(self, layer, **new):
        """Appends tensors (B, T) or (..., T, C) to the layer's cache, along T.

        Returns a tuple of the same tensors for all Tk positions so far.
        """
        # in training there is no past
        if self.cache is None:
            return tuple(new.values())
        past = self.cache[layer]
        for name, x in new.items():
            use = self.next_use(layer, name)
            # the first pass has nothing to append to
            if use in past:
                x = torch.cat((past[use], x), dim=-1 if x.ndim == 2 else -2)
            past[use] = new[name] = x
        return tuple(new.values())

    def state(self, layer, name, initial):
        """Returns a recurrence's state after the earlier passes: what set_state() was given last, or `initial`.

        One state replaces another, where extend() grows. In training it is always the initial one.
        """
        return initial if self.cache is None else self.cache[layer].get(self.next_use(layer, name), initial)

    def set_state(self, layer, name, value):
        """Keeps the state after the last token of this pass for the next one; state() comes before it."""
        if self.cache is not None:
            self.cache[layer][self.this_use(layer, name)] = value

    def with_past(self, layer, name, x, n, fill=0):
        """Returns x (B, T, ...), such as step.idx, behind the n positions before it; before a text these are fill."""
        past = self.state(layer, name, x.new_full((x.size(0), n, *x.shape[2:]), fill))
        x = torch.cat((past, x), dim=1) # (B, n + T, ...)
        self.set_state(layer, name, x[:, x.size(1) - n:])
        return x

    def next_use(self, layer, name):
        """Returns the cache's key for a name's next use: a module that runs twice in a pass has two pasts."""
        self.uses[layer, name] = self.uses.get((layer, name), 0) + 1
        return self.this_use(layer, name)

    def this_use(self, layer, name):
        n = self.uses[layer, name]
        return name if n == 1 else f'{name} {n}'


class LayerNorm(nn.Module):
    """LayerNorm with an optional bias."""

    def __init__(self, config, ndim):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(ndim))
        self.bias = nn.Parameter(torch.zeros(ndim)) if config.bias else None

    def forward(self, x):
        # over the channels, the last dimension; 1e-5 is GPT-2's, and keeps the root away from 0
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, 1e-5)


class Linear(nn.Linear):
    """nn.Linear with an optional bias."""

    def __init__(self, config, n_in, n_out):
        super().__init__(n_in, n_out, bias=config.bias)


class CausalSelfAttention(nn.Module):
    """Causal attention by n_head heads, (B, T, C) -> (B, T, C)."""

    def __init__(self, config, classes, layer):
        super().__init__()
        self.config, self.layer = config, layer
        self.n_head, self.n_embd = config.n_head, config.n_embd
        self.attn_dropout = config.dropout if config.attn_dropout is None else config.attn_dropout
        # FlexAttention has no dropout: refuse here, before any work is done
        if config.attn == 'flex' and self.attn_dropout > 0:
            raise Stop(f'attn=flex: has no dropout, here attn_dropout={self.attn_dropout}; '
                       'allowed: 0, or auto, math, sdpa')
        # one product makes the queries, keys and values of all heads
        self.c_attn = classes.Linear(config, config.n_embd, 3 * config.n_embd)
        # and another mixes the heads' outputs
        self.c_proj = classes.Linear(config, config.n_embd, config.n_embd)
        self.resid_dropout = Dropout(config.dropout)

    def qkv(self, x):
        """Returns q, k, v (B, nh, T, hs); k and v may have fewer heads, shared by groups of query heads."""
        B, T, C = x.size()
        hs = C // self.n_head
        # (B, T, 3 * nh, hs): the heads of the queries, then of the keys, then of the values
        heads = self.c_attn(x).view(B, T, -1, hs)
        q, k, v = heads.split(self.n_head, dim=2)
        q = q.transpose(1, 2) # (B, nh, T, hs)
        k = k.transpose(1, 2) # (B, nh, T, hs)
        v = v.transpose(1, 2) # (B, nh, T, hs)
        return q, k, v

    # queries and keys (B, nh, T, hs), before they depend on positions
    def norm_qk(self, q, k):
        return q, k

    # queries and keys (B, nh, T, hs), rotated by their positions step.pos
    def rotate_qk(self, q, k, step):
        return q, k

    # values (B, nh, T, hs), before they are cached; x (B, T, C): attention's input
    def values(self, v, x, step):
        return v

    def score_mod(self, x, pos_k, step):
        """Returns a change to the scores of queries at step.pos (B, T) and keys at pos_k (B, Tk).

        It is None, a Bias, a Window or a function: see core/nn/attention.py.
        """
        return None

    # the whole of attention, from q, k, v to y (B, nh, T, hs)
    def attend(self, q, k, v, x, pos_k, step):
        return self.compute_attention(q, k, v, self.score_mod(x, pos_k, step), pos_k, step)

    def compute_attention(self, q, k, v, score_mod, pos_k, step, moments=False):
        """Returns what attend() of core/nn/attention.py returns, with this module's options."""
        impl = self.config.attn
        # evaluation drops nothing
        dropout = self.attn_dropout if self.training else 0.0
        # the answer for training, whichever mode this pass is in
        if step.backends is not None:
            step.backends.add(choose_backend(impl, q, v, score_mod, step.from_zero, self.attn_dropout, moments))
        return attend(q, k, v, step.pos, pos_k, score_mod, impl, step.from_zero, dropout, moments)

    def forward(self, x, step):
        # (B, nh, T, hs) each; a variant overrides the steps it changes
        q, k, v = self.qkv(x)
        q, k = self.norm_qk(q, k)
        q, k = self.rotate_qk(q, k, step)
        v = self.values(v, x, step)

        # when decoding, the cache supplies earlier positions: k, v (B, nh, Tk, hs), pos_k (B, Tk)
        k, v, pos_k = step.extend(self.layer, k=k, v=v, pos=step.pos)
        # heads of keys and values that a group of query heads shares are repeated, once for each of the group
        k = k if k.size(1) == self.n_head else k.repeat_interleave(self.n_head // k.size(1), dim=1)
        v = v if v.size(1) == self.n_head else v.repeat_interleave(self.n_head // v.size(1), dim=1)

        # scores (B, nh, T, hs) x (B, nh, hs, Tk) -> (B, nh, T, Tk), times the values -> (B, nh, T, hs)
        y = self.attend(q, k, v, x, pos_k, step)
        # put the heads side by side again
        y = y.transpose(1, 2).flatten(2) # (B, T, C)
        return self.resid_dropout(self.c_proj(y))


class MLP(nn.Module):
    """A perceptron for each token by itself, (B, T, C) -> (B, T, C)."""

    def __init__(self, config, classes, layer):
        super().__init__()
        # four times as wide inside, as in GPT-2
        self.c_fc = classes.Linear(config, config.n_embd, 4 * config.n_embd)
        self.gelu = nn.GELU()
        self.c_proj = classes.Linear(config, 4 * config.n_embd, config.n_embd)
        self.dropout = Dropout(config.dropout)

    # the hidden units (B, T, 4 * C), before the nonlinearity
    def hidden(self, x, step):
        return self.c_fc(x)

    def forward(self, x, step):
        x = self.hidden(x, step) # (B, T, 4 * C)
        x = self.gelu(x)
        x = self.c_proj(x) # (B, T, C)
        return self.dropout(x)


class Block(nn.Module):
    """A layer: attention, then the MLP, each with a norm before it and added to its input."""

    def __init__(self, config, classes, layer):
        super().__init__()
        self.config, self.layer = config, layer
        self.ln_1 = classes.LayerNorm(config, config.n_embd)
        self.attn = classes.CausalSelfAttention(config, classes, layer)
        self.ln_2 = classes.LayerNorm(config, config.n_embd)
        self.mlp = classes.MLP(config, classes, layer)

    # what attention or the MLP puts out (B, T, C), before it is added
    def attn_out(self, y, step):
        return y

    def mlp_out(self, y, step):
        return y

    # the residual stream x plus an update y, (B, T, C) each
    def add(self, x, y):
        return x + y

    # the half of the block that looks at other positions
    def attn_residual(self, x, step):
        return self.add(x, self.attn_out(self.attn(self.ln_1(x), step), step))

    # the half that looks at each position alone
    def mlp_residual(self, x, step):
        return self.add(x, self.mlp_out(self.mlp(self.ln_2(x), step), step))

    def forward(self, x, step):
        x = self.attn_residual(x, step)
        x = self.mlp_residual(x, step)
        return x


class GPT(nn.Module):
    """The whole model, from tokens (B, T) to logits (B, T, vocab_size)."""

    def __init__(self, config, classes=None):
        super().__init__()
        # GPT(GPTConfig()) is the baseline with its initial weights, as in nanoGPT
        by_hand = classes is None
        classes = load_classes() if by_hand else classes
        self.config, self.classes = config, classes
        # the length of its run's schedule, train.py's lr_decay_iters, for step.progress
        self.schedule_iters = None
        # these names are GPT-2's, so that load_gpt2() finds its weights
        self.transformer = nn.ModuleDict(dict(
            wte = Embedding(config.vocab_size, config.n_embd),
            wpe = nn.Embedding(config.block_size, config.n_embd),
            drop = Dropout(config.dropout),
            h = nn.ModuleList([classes.Block(config, classes, layer) for layer in range(config.n_layer)]),
            ln_f = classes.LayerNorm(config, config.n_embd),
        ))
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        # one matrix serves as input and output embedding: Press and Wolf, https://arxiv.org/abs/1608.05859
        self.transformer.wte.weight = self.lm_head.weight
        if by_hand:
            self.init_weights(torch.initial_seed())

    @torch.no_grad()
    def init_weights(self, seed):
        """Sets each parameter by the seed and its name, so that those that two models share start equal.

        A tag p.init on a parameter comes first, and is called as p.init(p). Else parameters of Linear and
        Embedding get GPT-2's values, and others keep their constructor's. Stop if one is not finite, as
        those of torch.empty are under build().
        """
        modules = [m for m in self.modules() if isinstance(m, (nn.Linear, nn.Embedding))]
        of_linear_or_embedding = {id(p) for m in modules for p in m.parameters(recurse=False)}
        # the caller's generator is left as it was
        with torch.random.fork_rng(devices=[]):
            # a tied weight comes once, under its first name
            for name, p in self.named_parameters():
                seed_cpu(key(seed, 'init', name))
                if hasattr(p, 'init'):
                    p.init(p)
                # biases
                elif id(p) in of_linear_or_embedding and p.ndim == 1:
                    nn.init.zeros_(p)
                elif id(p) in of_linear_or_embedding:
                    # GPT-2's 0.02, over sqrt(2 n_layer) in the 2 n_layer projections that add to the
                    # residual stream (section 2.3 of its paper), whose variance would grow with depth
                    scale = math.sqrt(2 * self.config.n_layer) if name.endswith('c_proj.weight') else 1.0
                    nn.init.normal_(p, mean=0.0, std=0.02 / scale)
                if not p.isfinite().all():
                    raise Stop(f'{name}: starts with NaN or infinity; '
                               'give it a value or a tag: p.init = nn.init.zeros_')

    def get_num_params(self, non_embedding=True):
        """Returns the number of parameters, by default without the position embeddings.

        The token embeddings count: they are the weights of the last layer as well.
        """
        left_out = {'transformer.wpe.weight'} if non_embedding else set()
        return sum(p.numel() for name, p in self.named_parameters() if name not in left_out)

    # token embeddings (B, T, C)
    def tok_emb(self, idx):
        return self.transformer.wte(idx)

    # token embeddings x (B, T, C), before positions are added
    def mix_tokens(self, x, step):
        return x

    # position embeddings (B, T, C) or, for all rows alike, (T, C)
    def pos_emb(self, step):
        # positions 0..T-1 are a slice, whose gradient needs no sum by index
        wpe = self.transformer.wpe
        return wpe.weight[:step.pos.size(1)] if step.from_zero else wpe(step.pos)

    # the residual stream's first state (B, T, C)
    def embed(self, idx, step):
        return self.transformer.drop(self.mix_tokens(self.tok_emb(idx), step) + self.pos_emb(step))

    # to and from what the blocks take, (B, T, C) or another form of it, such as several streams (B, T, n, C)
    def widen(self, x, step):
        return x

    def narrow(self, x, step):
        return x

    # the residual stream through all blocks
    def blocks(self, x, step):
        for block in self.transformer.h:
            x = block(x, step)
        return x

    # logits (B, T, vocab_size) of the last norm's output x (B, T, C)
    def logits(self, x, step):
        return self.lm_head(x)

    # the mean cross entropy in nats, where targets (B, T) are not -1; x: what the logits are of
    def loss(self, logits, targets, x, step):
        return cross_entropy(logits.view(-1, logits.size(-1)), targets.reshape(-1))

    def forward(self, idx, targets=None, step=None):
        """Returns logits (B, T, vocab_size) and the loss to train on, for tokens idx and targets (B, T).

        The loss is the mean cross entropy in nats, where targets are not -1; in train mode step.losses are
        added. Without targets: logits and None, of the last position (B, 1, vocab_size) unless
        step.all_positions, as in evaluation. Stop if T is more than block_size.
        """
        B, T = idx.size()
        if T > self.config.block_size:
            raise Stop(f'{T} tokens: longer than block_size={self.config.block_size}')
        step = Step() if step is None else step
        # modules read these from step, whether or not the caller gave positions and the iteration
        step.idx, step.model = idx, self
        if step.from_zero:
            step.pos = torch.arange(T, device=idx.device).expand(B, T)
        if step.it is None:
            step.it = torch.zeros((), device=idx.device)

        x = self.embed(idx, step) # (B, T, C)
        x = self.blocks(self.widen(x, step), step)
        x = self.transformer.ln_f(self.narrow(x, step)) # (B, T, C)

        if targets is None:
            # decoding needs the last position alone; indexing with a list keeps its dimension
            return self.logits(x if step.all_positions else x[:, [-1], :], step), None
        logits = self.logits(x, step) # (B, T, vocab_size)
        loss = self.loss(logits, targets, x, step)
        # evaluation reports the cross entropy alone
        if self.training:
            loss = loss + sum(step.losses.values())
        return logits, loss

    def objective(self, idx, targets, it):
        """Returns the loss to minimise at iteration `it`, a 0-d tensor, and {name: auxiliary loss} in it."""
        step = Step(it=it)
        _, loss = self(idx, targets, step)
        return loss, step.losses

    @classmethod
    def from_pretrained(cls, model_type, override_args=None):
        """Returns the baseline with GPT-2's weights, as in nanoGPT; build_gpt2() makes variants too."""
        return build_gpt2(model_type, **(override_args or {}))

    def estimate_mfu(self, fwdbwd_per_iter, dt):
        """Returns the share of the GPU's peak FLOP/s that fwdbwd_per_iter rows in dt seconds make, or None.

        The peak is that of half precision; None if it is not known.
        """
        _, train_flops = flops_per_token(self.classes, self.config)
        peak = machine(str(self.lm_head.weight.device)).peak_flops()
        return peak and fwdbwd_per_iter * self.config.block_size * train_flops / dt / peak

    def crop_block_size(self, block_size):
        """Shortens the context, e.g. to fine-tune GPT-2 (1024) in less memory. Stop if it would grow."""
        if block_size > self.config.block_size:
            raise Stop(f'block_size={block_size}: this model has at most {self.config.block_size}')
        self.config.block_size = block_size
        # a variant may have no position embeddings
        if self.transformer.wpe.weight is not None:
            self.transformer.wpe.weight = nn.Parameter(self.transformer.wpe.weight[:block_size])

    def configure_optimizers(self, weight_decay, learning_rate, betas, device_type, optimizer='adamw'):
        """Returns AdamW; with optimizer='muon', Muon for the matrices of the blocks and AdamW for the rest.

        Tags on parameters: p.no_decay = True, p.lr_scale = 0.1, p.muon = False. A group's lr_scale multiplies
        the learning rate of the schedule.
        """
        # as in nanoGPT (https://github.com/karpathy/nanoGPT/blob/master/model.py), matrices and embeddings
        # decay; vectors and scalars do not, such as biases, the weights of norms and gates
        groups = defaultdict(list)
        for name, p in self.named_parameters():
            decay = p.ndim >= 2 and not getattr(p, 'no_decay', False)
            lr_scale = getattr(p, 'lr_scale', 1.0)
            of_block = p.ndim == 2 and name.startswith('transformer.h.')
            muon = optimizer == 'muon' and of_block and getattr(p, 'muon', True)
            groups[decay, lr_scale, muon].append(p)
        groups = [dict(params=params, weight_decay=weight_decay * decay, lr_scale=lr_scale,
                       lr=learning_rate * lr_scale, muon=muon)
                  for (decay, lr_scale, muon), params in groups.items()]
        # on CUDA the learning rate is a tensor, so that a captured graph sees it change
        cuda = device_type == 'cuda'
        if cuda:
            for group in groups:
                group['lr'] = torch.tensor(group['lr'], device='cuda')
        # fused: a few kernels step all tensors of a group
        kind = MuonAdamW if optimizer == 'muon' else torch.optim.AdamW
        return kind(groups, betas=betas, fused=True, capturable=cuda)

    @torch.no_grad()
    def stream(self, idx, max_new_tokens, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, generator=None,
               it=None, known=None):
        """Yields the next token of each row (B, 1), max_new_tokens times, after the context idx (B, T).

        temperature, top_k, top_p, min_p, generator: as in sample_token(); it: as in Step. known: ids from there
        on only pad the vocabulary, and are never drawn.
        """
        # a dict for each layer, in which Step.extend() keeps what it is given
        cache = [{} for _ in self.transformer.h]
        cached = 0 # positions
        for _ in range(max_new_tokens):
            T = idx.size(1)
            if T <= self.config.block_size:
                # feed what is not cached yet: at first the whole context, then one token at a time
                pos = None
                if cached:
                    pos = torch.arange(cached, T, device=idx.device).expand(idx.size(0), -1) # (B, T - cached)
                new, step = idx[:, cached:], Step(pos, it, cache)
                cached = T
            else:
                # beyond block_size every token moves to another position, so the last ones are read again
                new, step = idx[:, -self.config.block_size:], Step(it=it)
            # with a small model on a CPU a token takes a tenth less time than under no_grad alone
            with torch.inference_mode():
                logits, _ = self(new, step=step)
            new = sample_token(logits[:, -1, :known], temperature, top_k, top_p, min_p, generator) # (B, 1)
            idx = torch.cat((idx, new), dim=1)
            yield new

    def generate(self, idx, *args, **kwargs):
        """Returns idx (B, T) and the tokens after it, (B, T + max_new_tokens); arguments as for stream()."""
        return torch.cat((idx, *self.stream(idx, *args, **kwargs)), dim=1)


# -----------------------------------------------------------------------------
# from a name to a model

SLOTS = (GPTConfig, LayerNorm, Linear, CausalSelfAttention, MLP, Block, GPT)


def load_classes(variant='base', classes=()):
    """Returns the classes of a variant as attributes, and its modules as `files`.

    'soft_window+surprise' combines two variants, 'ideas/mine.py' is a file anywhere. classes: subclasses of
    slots that a notebook defines.
    """
    return assemble(variant, SLOTS, classes)


def build(variant='base', seed=1337, classes=(), **model_args):
    """Returns a variant's model with its initial weights; model_args are fields of its GPTConfig.

    classes: as for load_classes(): build(classes=[MyMLP], n_layer=2).
    """
    classes = load_classes(variant, classes)
    config = construct_checked(classes.GPTConfig, model_args)
    # a parameter that no constructor initialises is NaN, and init_weights() reports it
    with torch.random.fork_rng(devices=[]), NanWhereUninitialised():
        seed_cpu(key(seed, 'build'))
        model = classes.GPT(config, classes)
    model.init_weights(seed)
    return model


def build_gpt2(name, variant='base', seed=1337, **model_args):
    """Returns a variant's model with GPT-2's weights in the parameters that it shares with the baseline.

    name: 'gpt2', 'gpt2-medium', 'gpt2-large' or 'gpt2-xl'. The context is cropped to block_size.
    """
    weights = download_gpt2(name)
    # the checkpoint fixes the size, whatever was asked for
    fixed = dict(GPT2_SIZES[name], block_size=1024, vocab_size=50257, bias=True)
    model = build(variant, seed, **model_args | fixed)
    load_gpt2(model, weights)
    model.crop_block_size(model_args.get('block_size', 1024))
    return model
