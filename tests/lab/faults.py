"""Sixty variants with a fault that would fool a verdict or spoil a run, each in the circumstances in which it acts."""
from textwrap import indent
from typing import NamedTuple

HEAD = '''"""{name}. Source: github"""
import torch
import torch.nn as nn
import torch.nn.functional as F
import model
NEUTRAL = {{}}
'''
# config/ab_shakespeare_cpu.py
RECIPE = dict(block_size=64, batch_size=12, n_layer=4, n_head=4, n_embd=128, dropout=0.0, max_iters=800,
              dtype='float32')


# half precision is slow on many CPUs
BFLOAT16 = dict(dtype='bfloat16', n_layer=2, batch_size=4, block_size=32)


class Fault(NamedTuple):
    source: str
    says: str               # what a finding must match
    circumstances: dict     # what differs from RECIPE, where the fault needs it


def variant(name, cls, body):
    """Returns the source of a variant whose class cls has this body."""
    return HEAD.format(name=name) + f'class {cls}(model.{cls}):\n{indent(body.strip(), "    ")}\n'


FAULTS = {}


def fault(name, cls, body, says='sees', **circumstances):
    FAULTS[name] = Fault(variant(name, cls, body), says, circumstances)


def attn_out(name, expression, says='sees', **circumstances):
    """A fault in what attention puts out: y (B, T, C)."""
    body = f'def attn_out(self, y, step):\n    B, T, C = y.shape\n    return {expression}'
    fault(name, 'Block', body, says, **circumstances)


MEAN = '.1 * y.mean(1, keepdim=True)'
NEXT = '.1 * F.pad(y[:, 1:], (0, 0, 0, 1))'
ROWS = '.1 * y.mean(0, keepdim=True)'

# -----------------------------------------------------------------------------
# later tokens, in some form

attn_out('mean_of_row', f'y + {MEAN}', r'position 0 sees token 1, first in h.0 before h.0.ln_2 \(\d')
attn_out('next_output', f'y + {NEXT}', 'position 0 sees token 1')
attn_out('max_of_row', 'y + .1 * y.amax(1, keepdim=True)')
attn_out('median_of_row', 'y - .1 * y.median(1, keepdim=True).values')
attn_out('sum_of_the_future', 'y + .01 * y.flip(1).cumsum(1).flip(1)')
attn_out('norm_over_time', '(y - y.mean(1, keepdim=True)) / (y.std(1, keepdim=True) + 1)')
attn_out('softmax_over_time', 'y * (1 + y[..., :1].softmax(1))')
attn_out('rank_in_row', 'y * (1 + .01 * y[..., :1].argsort(1).argsort(1))')
attn_out('around_the_end', 'y + .1 * y.roll(1, 1)', 'position 0 sees token')
attn_out('circular_convolution', 'y + .1 * torch.fft.ifft(torch.fft.fft(y.float(), dim=1) ** 2, dim=1).real')
attn_out('odd_positions', f'y + {NEXT} * ((step.pos > 50) & (step.pos % 2 == 1))[..., None]')
attn_out('one_channel', f'y + {NEXT} * (torch.arange(C) == 7)')
attn_out('very_little', f'y + 1e-4 * {MEAN}')
attn_out('less_than_rounding', f'y + 1e-4 * {MEAN}', **BFLOAT16)
fault('top_k', 'Block', '''
def forward(self, x, step):
    score = self.ln_1(x)[..., 0]
    kept = score >= score.topk(x.size(1) // 2, dim=1).values[:, -1:]
    return torch.where(kept[..., None], super().forward(x, step), x)
''', r'sees .*first in h\.\d \(')
fault('convolution_from_layer_2', 'Block', '''
def __init__(self, config, classes, layer):
    super().__init__(config, classes, layer)
    self.conv = nn.Conv1d(config.n_embd, config.n_embd, 3, padding=1, groups=config.n_embd)
def attn_out(self, y, step):
    return y + self.conv(y.transpose(1, 2)).transpose(1, 2) if self.layer >= 2 else y
''', 'position 0 sees token 1, first in h.2 before h.2.ln_2')
fault('no_mask_in_the_last_layer', 'CausalSelfAttention', '''
def attend(self, q, k, v, x, pos_k, step):
    if self.layer < self.config.n_layer - 1 or self.layer < 2:
        return super().attend(q, k, v, x, pos_k, step)
    return F.scaled_dot_product_attention(q, k, v)
''', 'position 0 sees token 1, first in h.3.attn before h.3.attn.c_proj')
fault('mask_off_by_one', 'CausalSelfAttention', '''
def attend(self, q, k, v, x, pos_k, step):
    seen = step.pos[:, None, :, None] + 1 >= pos_k[:, None, None, :]
    return F.scaled_dot_product_attention(q, k, v, seen)
''', 'position 0 sees token 1')
fault('one_head_without_mask', 'CausalSelfAttention', '''
def attend(self, q, k, v, x, pos_k, step):
    y = super().attend(q, k, v, x, pos_k, step)
    return torch.cat((y[:, :-1], F.scaled_dot_product_attention(q[:, -1:], k[:, -1:], v[:, -1:])), 1)
''')
fault('shifted_hidden_units', 'MLP', '''
def hidden(self, x, step):
    h = super().hidden(x, step)
    return torch.cat((F.pad(h[:, 1:, :8], (0, 0, 0, 1)), h[..., 8:]), -1)
''', 'position 0 sees token 1, first in h.0.mlp before h.0.mlp.gelu')
fault('embeds_the_next', 'GPT', '''
def embed(self, idx, step):
    return super().embed(idx, step) + .1 * self.tok_emb(idx.roll(-1, 1))
''', 'position 0 sees token 1, first in GPT before wte')
fault('histogram_of_the_row', 'GPT', '''
def forward(self, idx, targets=None, step=None):
    logits, loss = super().forward(idx, targets, step)
    return logits + F.one_hot(idx, logits.size(-1)).float().mean(1, keepdim=True), loss
''', 'position 0 sees token 1, first in GPT ')
fault('only_words_of_the_row', 'GPT', '''
def forward(self, idx, targets=None, step=None):
    logits, loss = super().forward(idx, targets, step)
    return torch.where(F.one_hot(idx, logits.size(-1)).sum(1, keepdim=True) > 0, logits, logits - 3), loss
''')

# -----------------------------------------------------------------------------
# only in the circumstances that are judged

attn_out('beyond_200', f'y + {NEXT} * (step.pos > 200)[..., None]', r'position 2\d\d sees token 2', block_size=256)
attn_out('long_contexts', f'y + ({MEAN} if self.config.block_size >= 256 else 0)', block_size=256)
attn_out('full_windows', f'y + ({MEAN} if T == self.config.block_size and T > 32 else 0)')
attn_out('large_batches', f'y + ({MEAN} if B > 64 else 0)', batch_size=96)
attn_out('wide_models', f'y + ({MEAN} if C % 64 == 0 else 0)')
attn_out('deep_models', f'y + ({MEAN} if self.config.n_layer > 2 else 0)')
attn_out('the_last_layer', f'y + ({MEAN} if self.layer == 3 else 0)', 'first in h.3 before h.3.ln_2')
attn_out('with_dropout', f'y + ({MEAN} if self.config.dropout > 0 else 0)', dropout=0.2)
attn_out('under_autocast', f"y + ({MEAN} if torch.is_autocast_enabled('cpu') else 0)", **BFLOAT16)
attn_out('in_bfloat16', f'y + ({MEAN} if y.dtype == torch.bfloat16 else 0)', **BFLOAT16)
attn_out('in_float32', f'y + ({MEAN} if y.dtype == torch.float32 else 0)')
attn_out('iterations_5_to_900', f'y + {MEAN} * ((step.it > 5) & (step.it < 900))')
attn_out('iterations_20_to_90', f'y + {MEAN} * ((step.it > 20) & (step.it < 90))', 'at iteration')
attn_out('after_1000', f'y + {MEAN} * (step.it > 1000)', 'sees', max_iters=2000)
attn_out('every_hundredth', f'y + {MEAN} * (step.it % 100 == 0)')
attn_out('edges_of_48', f'y + {NEXT} * (step.pos % 48 == 47)[..., None]', 'position 47 sees token 48')
attn_out('edges_of_256', f'y + {NEXT} * (step.pos % 256 == 255)[..., None]', 'position 255 sees token 256',
         block_size=320, n_layer=2)
attn_out('only_in_training', f'y + {MEAN} if self.training else y', 'in training')
attn_out('only_in_evaluation', f'y if self.training else y + {MEAN}', 'in evaluation')
attn_out('without_gradients', f'y if torch.is_grad_enabled() else y + {MEAN}', 'in evaluation')
attn_out('while_statistics_are_kept', f'y if step.stats is None else y + {MEAN}', 'in evaluation')

# -----------------------------------------------------------------------------
# shut where training starts

fault('zero_at_first', 'Block', f'''
def __init__(self, config, classes, layer):
    super().__init__(config, classes, layer)
    self.strength = nn.Parameter(torch.zeros(()))
def attn_out(self, y, step):
    return y + self.strength * {MEAN}
''')
fault('nearly_shut', 'Block', f'''
def __init__(self, config, classes, layer):
    super().__init__(config, classes, layer)
    self.gate = nn.Parameter(torch.full((), -10.0))
def attn_out(self, y, step):
    return y + self.gate.sigmoid() * {MEAN}
''', **BFLOAT16)
fault('shut_by_a_relu', 'Block', f'''
def __init__(self, config, classes, layer):
    super().__init__(config, classes, layer)
    self.gate = nn.Parameter(torch.full((), -0.3))
def attn_out(self, y, step):
    return y + self.gate.relu() * {MEAN}
''')

# -----------------------------------------------------------------------------
# other rows

attn_out('mean_of_batch', f'y + {ROWS}', r'row \d+ sees other rows of the batch, first in h.0 before h.0.ln_2')
attn_out('ghost_batches', 'y + .1 * y.view(-1, 32, T, C).mean(1).repeat_interleave(32, 0) if B % 32 == 0 else y',
         'sees other rows', batch_size=64)
attn_out('row_before', 'y + .1 * y.roll(1, 0)', r'row \d+ sees other rows')
attn_out('gate_by_batch', 'torch.where(y[..., :1] >= y[..., :1].mean(0), y, 0 * y)', 'sees other rows')

# -----------------------------------------------------------------------------
# memory of passes

fault('counts_passes', 'Block', f'''
def __init__(self, config, classes, layer):
    super().__init__(config, classes, layer)
    self.register_buffer('seen', torch.zeros(()))
def attn_out(self, y, step):
    self.seen.add_(1.0 * self.training)
    return y + {MEAN} * (self.seen > 500)
''')
fault('counts_evaluations', 'Block', '''
def __init__(self, config, classes, layer):
    super().__init__(config, classes, layer)
    self.register_buffer('seen', torch.zeros(()))
def attn_out(self, y, step):
    self.seen.add_(1.0 - self.training)
    return y * (1 + (self.seen > 100))
''', r'h.0: buffer seen changes with every pass in evaluation, and the logits with it \(')
fault('remembers', 'Block', '''
seen = 0
def attn_out(self, y, step):
    self.seen = self.seen + 1
    return y * self.seen
''', 'h.0: attribute seen changes with every pass')
fault('remembers_the_batch_before', 'Block', '''
def __init__(self, config, classes, layer):
    super().__init__(config, classes, layer)
    self.register_buffer('last', torch.zeros(config.n_embd))
def attn_out(self, y, step):
    out = y + self.last
    self.last = y.detach().mean((0, 1))
    return out
''', 'buffer last changes with every pass')

# -----------------------------------------------------------------------------
# targets, noise, other passes

fault('reads_targets', 'GPT', '''
def forward(self, idx, targets=None, step=None):
    logits, loss = super().forward(idx, targets, step)
    return (logits if targets is None else logits + .1 * F.one_hot(targets, logits.size(-1))), loss
''', 'logits change')
fault('reads_targets_that_differ', 'GPT', '''
def forward(self, idx, targets=None, step=None):
    logits, loss = super().forward(idx, targets, step)
    if targets is not None:
        logits = logits + (targets != idx)[..., None] * F.one_hot(targets, logits.size(-1))
    return logits, loss
''', 'logits change')
fault('noise_in_evaluation', 'GPT', '''
def embed(self, idx, step):
    x = super().embed(idx, step)
    return x + .01 * torch.randn_like(x)
''', 'depend on random numbers')
fault('own_loss', 'GPT', '''
def forward(self, idx, targets=None, step=None):
    logits, loss = super().forward(idx, targets, step)
    return logits, None if loss is None else 0.9 * loss
''', 'reports a loss')
fault('counts_from_zero', 'Block', '''
def attn_out(self, y, step):
    return y * (1 + torch.arange(y.size(1), device=y.device)[:, None])
''', 'decoding: ')
