"""The checks work: variants are broken on purpose, and a check must see and name each fault."""
from textwrap import indent

import pytest
import torch

from lab import checks
from lab.checks import Failed, small

torch.set_num_threads(1) # more only get in each other's way in models this small


def broken(cls, body):
    """Returns the source of a variant whose class cls has this body."""
    head = '"""A fault. Source: github"""\nimport torch\nimport torch.nn as nn\nimport model\nNEUTRAL = {}\n'
    head += 'from core.nn.attention import distance_bias\n'
    return f'{head}class {cls}(model.{cls}):\n{indent(body, "    ")}'


FAULTY = dict(
    mean_of_row=broken('Block', '''
def attn_out(self, y, step):
    return y + 0.1 * y.mean(1, keepdim=True)
'''),
    top_k=broken('Block', '''
def forward(self, x, step): # the half of the tokens that score highest pass through the block, all tokens compared
    score = self.ln_1(x)[..., 0]
    kept = score >= score.topk(x.size(1) // 2, dim=1).values[:, -1:]
    return torch.where(kept[..., None], super().forward(x, step), x)
'''),
    mean_of_batch=broken('Block', '''
def attn_out(self, y, step):
    return y - 0.1 * y.mean(0)
'''),
    gate_by_batch=broken('Block', '''
def forward(self, x, step):
    score = self.ln_1(x)[..., 0]
    return torch.where((score >= score.mean(0))[..., None], super().forward(x, step), x)
'''),
    only_in_training=broken('Block', '''
def attn_out(self, y, step):
    return y + 0.1 * y.mean(1, keepdim=True) if self.training else y
'''),
    after_warmup=broken('Block', '''
def attn_out(self, y, step):
    return y + 0.1 * y.mean(1, keepdim=True) * (step.it > 100)
'''),
    zero_at_first=broken('Block', '''
def __init__(self, config, classes, layer):
    super().__init__(config, classes, layer)
    self.strength = nn.Parameter(torch.zeros(()))
def attn_out(self, y, step):
    return y + self.strength * y.mean(1, keepdim=True)
'''),
    after_training=broken('Block', '''
def __init__(self, config, classes, layer):
    super().__init__(config, classes, layer)
    self.register_buffer('seen', torch.zeros(()))
def attn_out(self, y, step):
    self.seen.add_(1.0 * self.training)
    return y + 0.1 * y.mean(1, keepdim=True) * (self.seen > 20)
'''),
    reads_targets=broken('GPT', '''
def forward(self, idx, targets=None, step=None):
    logits, loss = super().forward(idx, targets, step)
    return logits + 0.1 * nn.functional.one_hot(targets, logits.size(-1)), loss
'''),
    less_the_mean=broken('Block', '''
def attn_out(self, y, step):
    return y - y.mean(1, keepdim=True)
'''),
    deaf=broken('GPT', '''
def forward(self, idx, targets=None, step=None):
    return super().forward(0 * idx, targets, step)
'''),
    no_attention=broken('Block', '''
def attn_out(self, y, step):
    return 0 * y
'''),
    remembers=broken('Block', '''
seen = 0
def attn_out(self, y, step):
    self.seen = self.seen + 1
    return y * self.seen
'''),
    counts_from_zero=broken('Block', '''
def attn_out(self, y, step): # position within the pass, wrong once there is a cache
    return y * (1 + torch.arange(y.size(1))[:, None])
'''),
    late_keys=broken('CausalSelfAttention', '''
def attend(self, q, k, v, x, pos_k, step): # from position 13 on, a token alone does not see itself
    return super().attend(q, k, v, x, pos_k + (step.pos[:, -1:] > 12) * (q.size(2) == 1), step)
'''),
    other_fast_path=broken('CausalSelfAttention', '''
def score_mod(self, x, pos_k, step):
    slope = x[..., :1].exp().expand(-1, -1, self.n_head).transpose(1, 2)
    return distance_bias(slope if self.config.attn == 'math' else slope * 1.01, pos_k)
'''),
    no_gradient=broken('CausalSelfAttention', '''
def score_mod(self, x, pos_k, step):
    slope = x[..., :1].exp().expand(-1, -1, self.n_head).transpose(1, 2)
    return distance_bias(slope if self.config.attn == 'math' else slope.detach(), pos_k)
'''),
    python_branch=broken('Block', '''
def attn_out(self, y, step):
    return y if step.it > 1 else 2 * y
'''),
    python_counter=broken('Block', '''
calls = 0
def attn_out(self, y, step):
    self.calls += 1
    return y * self.calls
'''),
    not_neutral=broken('Block', '''
def attn_out(self, y, step):
    return y * 1.00001
'''),
    neutral_forward=broken('Block', '''
def attn_out(self, y, step):
    return y.detach() + 0.5 * (y - y.detach())
'''),
    unused=broken('Block', '''
def __init__(self, config, classes, layer):
    super().__init__(config, classes, layer)
    self.extra = classes.Linear(config, 4, 4)
'''),
    zero_gradient=broken('Block', '''
def __init__(self, config, classes, layer):
    super().__init__(config, classes, layer)
    self.extra = nn.Parameter(torch.ones(()))
def attn_out(self, y, step):
    return y + 0 * self.extra
'''),
    forgets_one=broken('GPT', '''
def configure_optimizers(self, *args):
    optimizer = super().configure_optimizers(*args)
    optimizer.param_groups[0]['params'].pop()
    return optimizer
'''),
    learns_nothing=broken('GPT', '''
def forward(self, idx, targets=None, step=None):
    logits, loss = super().forward(idx, targets, step)
    return logits, None if loss is None else loss.detach() + 0 * loss
'''),
    own_loss=broken('GPT', '''
def forward(self, idx, targets=None, step=None):
    logits, loss = super().forward(idx, targets, step)
    return logits, None if loss is None else 0.9 * loss
'''),
    other_start=broken('Block', '''
def __init__(self, config, classes, layer):
    super().__init__(config, classes, layer)
    self.attn.c_proj.weight.init = nn.init.zeros_
'''),
    unsaved=broken('Block', '''
def __init__(self, config, classes, layer):
    super().__init__(config, classes, layer)
    self.own = torch.randn(config.n_embd)
def attn_out(self, y, step):
    return y + self.own
'''),
    last_alone=broken('GPT', '''
def forward(self, idx, targets=None, step=None):
    logits, loss = super().forward(idx, targets, step)
    return logits if loss is not None else 2 * logits, loss
'''),
)


def on(check, shake=0.3, training=False, attn='auto', **args):
    return lambda name: check(small(name, shake, attn=attn).train(training), **args)


NEUTRAL_CHECK = lambda name: checks.neutral_is_base(name, {})
FAST_PATH = on(checks.fast_path, 0.1, True, impl='sdpa', T=7, tol=1e-9)
UNIFORM = lambda name: checks.uniform_tokens(name, runs=[(32, 1)], steps=150)
FAULTS = [ # variant, the check that sees it, how it says so; a check that does not: why there are several
    ('mean_of_row', on(checks.suffix_swap), 'suffix swap: logits before', None),
    ('mean_of_row', on(checks.jacobian), 'Jacobian: .* later inputs', on(checks.row_swap)),
    ('top_k', on(checks.suffix_swap), 'suffix swap: logits before', on(checks.jacobian)),
    ('mean_of_batch', on(checks.row_swap), 'row swap: the logits', None),
    ('mean_of_batch', on(checks.jacobian), 'Jacobian: .* other rows', None),
    ('gate_by_batch', on(checks.row_swap), 'row swap: the logits', on(checks.jacobian)),
    ('only_in_training', on(checks.causal, training=True), 'suffix swap', on(checks.causal)),
    ('after_warmup', on(checks.causal), 'suffix swap', on(checks.causal, its=[0])),
    ('zero_at_first', on(checks.causal), 'suffix swap', on(checks.causal, shake=0)),
    ('after_training', lambda name: checks.causal(checks.train_small(name).eval()), 'suffix swap', on(checks.causal)),
    ('reads_targets', UNIFORM, 'uniform tokens: evaluation loss', on(checks.causal)),
    ('less_the_mean', UNIFORM, 'uniform tokens: evaluation loss', None),
    ('deaf', on(checks.suffix_swap), 'suffix swap: .* own token', None),
    ('deaf', on(checks.row_swap), 'row swap: .* own row', None),
    ('no_attention', on(checks.causal), 'Jacobian: no position looks', on(checks.suffix_swap)),
    ('remembers', on(checks.stateless), 'stateless', None),
    ('counts_from_zero', on(checks.cached_decoding), 'decoding: 1 tokens after 1 ', on(checks.causal)),
    ('counts_from_zero', on(checks.greedy_generation), 'generating', None),
    ('late_keys', on(checks.cached_decoding, attn='math'), 'decoding: 1 tokens after 13 ', None),
    ('late_keys', on(checks.cached_decoding, attn='math', its=[1000], cuts=[[7, 1, 1, 3, 12, 1, 1, 5, 1]]),
     'decoding: 1 tokens after 24 ', None),
    ('last_alone', on(checks.cached_decoding), 'decoding: without targets', None),
    ('other_fast_path', FAST_PATH, 'fast path: logits', None),
    ('no_gradient', FAST_PATH, 'fast path: .* gradient', None),
    ('python_branch', on(checks.one_graph), 'one graph', None),
    ('python_counter', on(checks.one_graph), 'one graph', None),
    ('python_branch', on(checks.one_graph, backend='eager'), 'one graph', None),
    ('python_counter', on(checks.one_graph, backend='eager'), 'one graph', None),
    ('not_neutral', NEUTRAL_CHECK, 'neutral: logits', None),
    ('neutral_forward', NEUTRAL_CHECK, 'neutral: the gradient', None),
    ('unused', checks.trains, 'trains: .*extra.weight has no gradient', None),
    ('zero_gradient', checks.trains, 'trains: the gradient is 0 for .*extra', None),
    ('forgets_one', checks.trains, 'trains: .* is in 0 optimizer groups', None),
    ('learns_nothing', checks.trains, 'trains: loss', None),
    ('own_loss', on(checks.plain_loss), 'plain loss', None),
    ('other_start', checks.shared_start, 'shared start: .*c_proj', None),
    ('unsaved', checks.round_trip, 'round trip: other logits', None),
]


@pytest.mark.parametrize('name, check, says, blind', FAULTS, ids=[f'{f[0]}-{f[2].split(":")[0]}' for f in FAULTS])
def test_checks_see(name, check, says, blind, drop):
    drop(name, FAULTY[name])
    with pytest.raises(Failed, match=says):
        check(name)
    if blind:
        blind(name)


@pytest.mark.slow
def test_uniform_tokens_see_a_top_k(drop):
    """The mixture-of-depths rule. No gradient shows it, the loss does."""
    drop('chosen', broken('Block', '''
def __init__(self, config, classes, layer):
    super().__init__(config, classes, layer)
    self.router = nn.Linear(config.n_embd, 1, bias=False)
def forward(self, x, step):
    score = self.router(x) # (B, T, 1)
    chosen = score.topk(x.size(1) // 4, dim=1).indices.sort(dim=1).values
    some, it = chosen.expand(-1, -1, x.size(2)), torch.zeros(())
    inner = model.Step(step.pos.gather(1, chosen[..., 0]), it)
    update = super().forward(x.gather(1, some), inner) - x.gather(1, some)
    return super().forward(x, step).scatter_add(1, some, update * score.gather(1, chosen))
'''))
    with pytest.raises(Failed, match='uniform tokens'):
        checks.uniform_tokens('chosen')


def test_uniform_tokens_let_the_baseline_pass():
    assert checks.uniform_tokens('base', runs=[(8, 1)], steps=150) is False


def test_neutral_must_be_declared(drop):
    drop('silent', broken('Block', 'pass').replace('NEUTRAL', 'OTHER'))
    with pytest.raises(Failed, match='silent has no NEUTRAL'):
        checks.neutral_options('silent')


def test_a_declared_leak_is_known_by_its_options(drop):
    drop('leaky', '''
        import dataclasses
        from typing import Literal
        import model
        LEAKS = [(dict(gate='row'), 'averages the row')]
        class GPTConfig(model.GPTConfig):
            gate: Literal['token', 'row'] = 'token'     # what the gate averages over
            size: int = 0                               # something else
    ''')
    assert checks.leak_reason('leaky', {}) is None and checks.leak_reason('leaky', dict(size=1)) is None
    assert checks.leak_reason('leaky', dict(gate='row', size=1)) == 'averages the row'
    assert checks.choices('leaky') == dict(gate=['token', 'row'], size=[0, 4])
    found = list(checks.covering_options('leaky'))
    # what leaks comes after the rest
    assert dict(size=4) in found[:2] and dict(gate='row', size=4) in found[2:]
