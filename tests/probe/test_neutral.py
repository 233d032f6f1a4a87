"""What a variant adds, taken out of a trained model."""
import pytest
import torch
from helpers import shipped_variants

from core.device.machine import machine
from core.errors import Stop
from core.rng import generator
from lab.probe.neutral import neutral_run, own_modules
from lab.probe.runs import Run
from model import build

SIZES = dict(n_layer=2, n_head=2, n_embd=16, block_size=12, vocab_size=11, dropout=0.0)
# nothing of them is left in evaluation
TRAINING = ('dropconnect', 'mtp', 'mtp_weighted', 'noise_embedding', 'noise_mixup', 'noise_residual', 'perturb')
# the baseline has other parameters
OTHER = dict(glu='c_fc', gqa='c_attn', rope='wpe', wide_mlp='c_fc')
QUICK = 'soft_window', 'canon', 'value_residual', 'fractal_heads', 'dropconnect', 'glu', 'rope'

# a wider MLP, and a small module beside it that adds next to nothing
PLANTED = '''"""Source: nobody."""
import torch
import torch.nn as nn
import model


class Extra(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(config.n_embd))

    def forward(self, x, step):
        return x * self.weight


class Mixed(Extra):
    def forward(self, x, step):
        return x + x.roll(1, -1) * self.weight


class MLP(model.MLP):
    def __init__(self, config, classes, layer):
        super().__init__(config, classes, layer)
        self.c_fc = classes.Linear(config, config.n_embd, 8 * config.n_embd)
        self.c_proj = classes.Linear(config, 8 * config.n_embd, config.n_embd)
        self.extra, self.mixed = Extra(config), Mixed(config)
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x, step):
        x = self.mixed(x, step)
        return super().forward(self.scale * x, step) + self.extra(x, step)
'''


def trained(variant, **options):
    """A Run whose weights are all far from their initial ones."""
    model = build(variant, **SIZES | options).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            p += 0.3 * torch.randn(p.shape, generator=generator(name))
    return Run(variant, 1, None, model, None, machine('cpu', 'float32', compile=False), 100,
               dict(variant=variant, seed=1))


def is_baseline_on_the_same_weights(run, part, rest):
    before = {name: p.clone() for name, p in run.model.state_dict().items()}
    other, how = neutral_run(run, part)
    want = build(rest, **SIZES).eval()
    want.load_state_dict({name: before[name] for name in want.state_dict()})
    idx = torch.randint(11, (2, 12))
    assert torch.equal(other.logits(idx), want(idx, step=run.step())[0])
    assert how == f'the same weights in a model without {part or run.arm}'
    assert all(torch.equal(p, before[name]) for name, p in run.model.state_dict().items())


@pytest.mark.parametrize('variant', [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow)
                                     for name in shipped_variants()])
def test_a_variant_taken_out_leaves_the_baseline_on_the_same_weights(variant):
    run = trained(variant, **dict(window=4) if variant == 'sliding_window' else {})
    if variant in TRAINING:
        with pytest.raises(Stop, match=f'^{variant}: changes nothing in evaluation'):
            neutral_run(run)
    elif variant in OTHER:
        with pytest.raises(Stop, match=f'^{variant}: cannot be taken out of a trained model, .*{OTHER[variant]}'):
            neutral_run(run)
    else:
        is_baseline_on_the_same_weights(run, None, 'base')


def test_one_part_of_a_sum_leaves_the_others():
    is_baseline_on_the_same_weights(trained('rope+canon'), 'canon', 'rope')
    with pytest.raises(Stop, match='^rope and canon: cannot be taken out of a trained model, which has no .*wpe'):
        neutral_run(trained('rope+canon'))
    with pytest.raises(Stop, match='^base, seed 1: the baseline has nothing to take out'):
        neutral_run(trained('base'))


def test_modules_of_a_variant_without_neutral_put_out_nothing(tmp_path):
    path = tmp_path / 'planted.py'
    path.write_text(PLANTED)
    run = trained(str(path))
    idx = torch.randint(11, (2, 12))
    want = trained(str(path))
    with torch.no_grad():
        for block in want.model.transformer.h:
            block.mlp.extra.weight.zero_()
            block.mlp.mixed.weight.zero_()
            block.mlp.scale.fill_(1.0)
    other, how = neutral_run(run)
    assert torch.equal(other.logits(idx), want.logits(idx))
    assert how == 'planted: 4 modules of its own put out nothing and 2 tensors of its own are back where they started'
    # together with one that has NEUTRAL
    other, how = neutral_run(trained(f'{path}+soft_window'))
    assert torch.equal(other.logits(idx), want.logits(idx))
    assert how.startswith('the same weights in a model without soft_window; planted: 4 modules')


def test_own_modules_are_those_that_the_baseline_lacks():
    run = trained('embedding_gate')
    assert list(own_modules(run)) == [f'transformer.h.{i}.mlp_{n}' for i in (0, 1) for n in ('scale', 'bias', 'loc')]
    x = torch.ones(2, 3)
    assert {f((x,), 2 * x).sum().item() for f in own_modules(run).values()} == {0.0}
    assert {f((x,), 2 * x).sum().item() for f in own_modules(trained('canon')).values()} == {6.0}
    assert own_modules(trained('base')) == {}


def test_a_variant_that_says_nothing_is_refused(tmp_path):
    path = tmp_path / 'rule.py'
    path.write_text('import model\n\n\nclass Block(model.Block):\n    def add(self, x, y):\n'
                    '        return x + 2 * y\n')
    with pytest.raises(Stop, match='^rule: has no NEUTRAL, and neither modules nor parameters of its own'):
        neutral_run(trained(str(path)))
