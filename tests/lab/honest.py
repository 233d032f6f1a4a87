"""Twenty variants without a fault that look like one, or stand on what checks may trip over."""
from faults import HEAD, variant

OPTION = '''
from dataclasses import dataclass
@dataclass
class GPTConfig(model.GPTConfig):
    on: bool = True             # if the idea is on
'''
HONEST, CIRCUMSTANCES = {}, {}


def honest(name, cls, body, neutral=None, **circumstances):
    """neutral: options that make it the baseline, with the field `on`; None: it starts as the baseline."""
    source = variant(name, cls, body)
    if neutral is not None:
        source = source.replace('NEUTRAL = {}\n', f'NEUTRAL = dict({neutral})\n{OPTION}')
    HONEST[name], CIRCUMSTANCES[name] = source, circumstances


# buffers that a gradient goes through: their frequencies are learned
honest('rope_tables', 'CausalSelfAttention', '''
def __init__(self, config, classes, layer):
    super().__init__(config, classes, layer)
    hs = config.n_embd // config.n_head
    freq = 1e4 ** -(torch.arange(0, hs, 2) / hs)
    self.register_buffer('angles', torch.arange(config.block_size)[:, None] * freq)
    self.strength = nn.Parameter(torch.zeros(()))
def rotate_qk(self, q, k, step):
    a = self.strength * self.angles[step.pos][:, None]
    def rotate(x):
        a1, a2 = x.chunk(2, -1)
        return torch.cat((a1 * a.cos() - a2 * a.sin(), a1 * a.sin() + a2 * a.cos()), -1).to(x.dtype)
    return rotate(q), rotate(k)
''')
honest('causal_mask_buffer', 'CausalSelfAttention', '''
def __init__(self, config, classes, layer):
    super().__init__(config, classes, layer)
    self.register_buffer('mask', torch.tril(torch.ones(config.block_size, config.block_size, dtype=torch.bool)))
def attend(self, q, k, v, x, pos_k, step):
    seen = self.mask[step.pos[0]][:, :k.size(2)]
    scores = (q @ k.transpose(-2, -1) / q.size(-1) ** .5).masked_fill(~seen, float('-inf'))
    return scores.softmax(-1) @ v
''')
honest('softmax_in_float32', 'CausalSelfAttention', '''
def attend(self, q, k, v, x, pos_k, step):
    seen = step.pos[:, None, :, None] >= pos_k[:, None, None, :]
    scores = (q @ k.transpose(-2, -1) / q.size(-1) ** .5).float().masked_fill(~seen, float('-inf'))
    return scores.softmax(-1).to(v.dtype) @ v
''')
honest('mask_kept_in_an_attribute', 'CausalSelfAttention', '''
mask = None
def attend(self, q, k, v, x, pos_k, step):
    if not step.from_zero or q.size(2) != self.config.block_size:
        return super().attend(q, k, v, x, pos_k, step)
    if not torch.compiler.is_compiling() and self.mask is None:
        self.mask = torch.ones(q.size(2), q.size(2), dtype=torch.bool, device=q.device).tril()
    seen = step.pos[:, None, :, None] >= pos_k[:, None, None, :] if self.mask is None else self.mask
    scores = (q @ k.transpose(-2, -1) / q.size(-1) ** .5).masked_fill(~seen, float('-inf'))
    return scores.softmax(-1) @ v
''')
honest('causal_convolution', 'Block', '''
def __init__(self, config, classes, layer):
    super().__init__(config, classes, layer)
    self.conv = nn.Conv1d(config.n_embd, config.n_embd, 4, groups=config.n_embd, bias=False)
    self.gate = nn.Parameter(torch.zeros(()))
def attn_out(self, y, step):
    past, = step.extend(self.layer, conv=y)
    mixed = self.conv(F.pad(past, (0, 0, 3, 0)).transpose(1, 2)).transpose(1, 2)
    return y + self.gate * mixed[:, -y.size(1):]
''')
honest('average_by_cumsum', 'Block', '''
def __init__(self, config, classes, layer):
    super().__init__(config, classes, layer)
    self.gate = nn.Parameter(torch.zeros(config.n_embd))
def attn_out(self, y, step):
    past, = step.extend(self.layer, average=y)
    t = torch.arange(past.size(1), device=y.device)[:, None]
    decay = .95 ** (t - t.amax()).to(past.dtype).neg()
    decayed = (past * decay.flip(0).reciprocal()).cumsum(1) * decay.flip(0)
    return y + self.gate * .05 * decayed[:, -y.size(1):]
''')
honest('chunks_of_48', 'CausalSelfAttention', '''
def attend(self, q, k, v, x, pos_k, step):
    out = []
    for first in range(0, q.size(2), 48):
        some, pos = q[:, :, first:first + 48], step.pos[:, first:first + 48]
        last = first + 48 if step.from_zero else k.size(2)
        seen = pos[:, None, :, None] >= pos_k[:, None, None, :last]
        scores = (some @ k[:, :, :last].transpose(-2, -1) / q.size(-1) ** .5).masked_fill(~seen, float('-inf'))
        out.append(scores.softmax(-1) @ v[:, :, :last])
    return torch.cat(out, 2)
''')
honest('running_scale', 'Block', '''
def __init__(self, config, classes, layer):
    super().__init__(config, classes, layer)
    self.register_buffer('scale', torch.ones(()))
    self.gate = nn.Parameter(torch.zeros(()))
def attn_out(self, y, step):
    out = y * (1 + self.gate / self.scale)
    if self.training: # for the passes after this one
        self.scale = (.9 * self.scale + .1 * y.detach().float().square().mean().sqrt().to(self.scale.dtype)).clone()
    return out
''')
honest('counts_its_warm_up', 'Block', '''
def __init__(self, config, classes, layer):
    super().__init__(config, classes, layer)
    self.register_buffer('passes', torch.ones(()))
    self.gate = nn.Parameter(torch.zeros(()))
def attn_out(self, y, step):
    out = y * (1 + self.gate / self.passes)
    if self.training: # after its use: of what was added to before it, torch 2.13 compiles another gradient
        self.passes = self.passes + 1
    return out
''')
honest('much_dropout', 'Block', '''
def __init__(self, config, classes, layer):
    super().__init__(config, classes, layer)
    self.more = nn.Dropout(config.dropout)
def attn_out(self, y, step):
    return self.more(y)
def mlp_out(self, y, step):
    return F.dropout(y, self.config.dropout, self.training)
''', dropout=0.5)
honest('noise_in_training', 'GPT', '''
def embed(self, idx, step):
    x = super().embed(idx, step)
    return x + .1 * torch.rand_like(x) if self.training and self.config.on else x
''', 'on=False')
honest('schedule_by_layer', 'Block', '''
def __init__(self, config, classes, layer):
    super().__init__(config, classes, layer)
    self.gate = nn.Parameter(torch.zeros(()))
def attn_out(self, y, step):
    return y * (1 + self.gate * (step.it / (100 * (self.layer + 1))).clamp(0, 1))
''')
honest('tied_weights', 'MLP', '''
def __init__(self, config, classes, layer):
    super().__init__(config, classes, layer)
    self.own = classes.Linear(config, config.n_embd, config.n_embd)
    self.again = self.own
    self.gate = nn.Parameter(torch.zeros(()))
def forward(self, x, step):
    return super().forward(x, step) + self.gate * self.again(self.own(x))
''')
honest('statistics_that_nothing_reads', 'Block', '''
def __init__(self, config, classes, layer):
    super().__init__(config, classes, layer)
    self.register_buffer('tokens', torch.zeros((), dtype=torch.long))
    self.register_buffer('mean', torch.zeros(config.n_embd))
def attn_out(self, y, step):
    self.tokens += y.size(0) * y.size(1)
    self.mean.copy_(.9 * self.mean + .1 * y.detach().mean((0, 1)))
    return y
''')
honest('convolution_by_fourier', 'Block', '''
def __init__(self, config, classes, layer):
    super().__init__(config, classes, layer)
    self.kernel = nn.Parameter(torch.zeros(config.block_size, config.n_embd))
def attn_out(self, y, step):
    past, = step.extend(self.layer, fourier=y)
    T = past.size(1)
    spectrum = torch.fft.rfft(past.float(), 2 * T, dim=1) * torch.fft.rfft(self.kernel[:T].float(), 2 * T, dim=0)
    return y + torch.fft.irfft(spectrum, 2 * T, dim=1)[:, T - y.size(1):T].to(y.dtype)
''')
honest('best_expert', 'MLP', '''
def __init__(self, config, classes, layer):
    super().__init__(config, classes, layer)
    self.router = nn.Linear(config.n_embd, 4, bias=False)
    self.scales = nn.Parameter(torch.zeros(4, config.n_embd))
def forward(self, x, step):
    p = self.router(x).softmax(-1)
    best = F.one_hot(p.argmax(-1), 4) * p
    return super().forward(x, step) * (1 + best.to(x.dtype) @ self.scales)
''')
honest('top_channels', 'MLP', '''
def hidden(self, x, step):
    h = super().hidden(x, step)
    if not self.on:
        return h
    return h * (h >= h.topk(h.size(-1) // 2, dim=-1).values[..., -1:])
def __init__(self, config, classes, layer):
    super().__init__(config, classes, layer)
    self.on = config.on
''', 'on=False')
honest('largest_so_far', 'Block', '''
def __init__(self, config, classes, layer):
    super().__init__(config, classes, layer)
    self.gate = nn.Parameter(torch.zeros(config.n_embd))
def attn_out(self, y, step):
    past, = step.extend(self.layer, largest=y)
    return y + self.gate * past.cummax(1).values[:, -y.size(1):]
''')
honest('norm_in_float32', 'Block', '''
def __init__(self, config, classes, layer):
    super().__init__(config, classes, layer)
    self.gate = nn.Parameter(torch.zeros(config.n_embd))
    self.register_buffer('tiny', torch.tensor(1e-6))
def mlp_out(self, y, step):
    wide = y.float()
    return y + self.gate * (wide * (wide.square().mean(-1, keepdim=True) + self.tiny).rsqrt()).to(y.dtype)
''', dtype='bfloat16')
honest('also_predicts_the_token_after', 'GPT', '''
def __init__(self, config, classes):
    super().__init__(config, classes)
    self.ahead = nn.Linear(config.vocab_size, config.vocab_size, bias=False)
def forward(self, idx, targets=None, step=None):
    step = model.Step() if step is None else step
    logits, loss = super().forward(idx, targets, step)
    if self.training and targets is not None and self.config.on:
        later = self.ahead(logits[:, :-1]).flatten(0, 1)
        loss = loss + .1 * F.cross_entropy(later, targets[:, 1:].flatten(), ignore_index=-1)
    return logits, loss
''', 'on=False')
assert len(HONEST) == 20 and HEAD
