"""A study that kept its checkpoints: three arms of a small model, three seeds each, trained for a moment."""
import shutil

import pytest
import torch
from helpers import TINY, call, shakespeare

import train
from core.run.checkpoint import model_tensors
from core.run.files import write_json
from core.run.folder import RunFolder
from lab.probe import open_runs
from model import build

# its gain comes from the wider MLP that it brings along beside the gate that it is named after
PLANTED = '''"""A gate on what the MLP puts out."""
from dataclasses import dataclass

import torch
import torch.nn as nn

import model

NEUTRAL = dict(gate=False, width=4)


@dataclass
class GPTConfig(model.GPTConfig):
    gate: bool = True       # a factor for each channel
    width: int = 64         # of the MLP, in n_embd


class Gate(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(config.n_embd))

    def forward(self, x):
        return x * self.weight


class MLP(model.MLP):
    def __init__(self, config, classes, layer):
        super().__init__(config, classes, layer)
        self.c_fc = classes.Linear(config, config.n_embd, config.width * config.n_embd)
        self.c_proj = classes.Linear(config, config.width * config.n_embd, config.n_embd)
        self.gate = Gate(config) if config.gate else None

    def forward(self, x, step):
        y = super().forward(x, step)
        return y if self.gate is None else self.gate(y)
'''
SEEDS = 1, 2, 3
# by arm, the parameters that are trained on from the baseline's weights, so that where its gain comes from is known,
# and their learning rate
TRAINED = dict(bigram=('bigram_', 3e-2), planted=('transformer.h.0.mlp.c_', 3e-3))


@pytest.fixture(scope='session')
def study(tmp_path_factory):
    """The folder of a study of base, bigram and planted, whose variant is the file planted.py in the folder above."""
    root = tmp_path_factory.mktemp('probe')
    text = shakespeare(root / 'tiny', 20_000)
    (root / 'planted.py').write_text(PLANTED)
    variants = dict(base='base', bigram='bigram', planted=str(root / 'planted.py'))
    options = TINY | dict(n_layer=1, batch_size=16, max_iters=20, lr_decay_iters=20, eval_interval=10, eval_iters=8)
    first = root / 'first'
    assert call(train.main, dataset=text, out_dir=first, **options).code == 0
    for seed in SEEDS:
        base = root / 'runs/base-0' / str(seed)
        train_on(first, base, 'base', '', 1e-2, seed, steps=80)
        for arm, (trained, rate) in TRAINED.items():
            train_on(base, root / f'runs/{arm}-0' / str(seed), variants[arm], trained, rate, seed)
    write_json(root / 'demo/study.json', dict(seeds=dict.fromkeys(variants, list(SEEDS)),
                                              arms=[dict(name=arm, key=f'{arm}-0') for arm in variants]))
    verdicts = dict(bigram='better', planted="can't tell")
    write_json(root / 'demo/report.json', dict(comparisons=[
        dict(arm=arm, baseline='base', verdict=verdict, mean=-0.1, interval=[-0.2, -0.05])
        for arm, verdict in verdicts.items()]))
    return root / 'demo'


def train_on(base, folder, variant, trained, rate, seed, steps=60):
    """Writes a run that has a base run's weights, but for parameters whose names begin so, which are trained on."""
    run, = open_runs(base)
    model = build(variant, seed, **vars(run.model.config))
    own, weights = model.state_dict(), run.model.state_dict()
    for name, x in own.items():
        if name in weights:
            # new hidden units are those of the initial model, and put out nothing
            if name.endswith('c_proj.weight') and x.shape != weights[name].shape:
                x.zero_()
            x[tuple(map(slice, weights[name].shape))] = weights[name]
        # a gate that does next to nothing
        elif name.endswith('gate.weight'):
            x += 0.01
    model.load_state_dict(own)
    params = [p for name, p in model.named_parameters() if name.startswith(trained)]
    optimizer = torch.optim.Adam(params, rate)
    for it in range(steps):
        x, y = run.data.batch('train', it, 32, seed)
        optimizer.zero_grad()
        model(x, y)[1].backward()
        optimizer.step()
    state, _, optim = RunFolder(base).load()
    state |= dict(options=state['options'] | dict(variant=variant, seed=seed), model_args=vars(model.config))
    folder.mkdir(parents=True)
    shutil.copy(base / 'log.jsonl', folder)
    RunFolder(folder).save(state['step'], model_tensors(model), optim, state)
    write_json(folder / 'ab.json', dict(seed=seed, identity=folder.parent.name))
