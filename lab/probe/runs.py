"""Trained models to look into: one of a run folder, or those of a study, by arm and seed."""
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from core.data.dataset import Dataset
from core.data.tokenizer import Tokenizer
from core.device.machine import Machine, machine
from core.errors import NO_CHECKPOINT, Stop
from core.run.files import read_json
from core.run.folder import RunFolder
from core.training.evaluation import batch_rows, token_losses
from lab.probe.hooks import eager
from lab.study.store import run_state
from model import GPT, Step
from sample import open_run


@dataclass
class Run:
    """A trained model, in eval mode and not compiled, and what it was trained on."""
    arm: str                    # its name in a study; else the folder's
    seed: int
    folder: Path
    model: GPT
    tokenizer: Tokenizer
    machine: Machine
    iteration: int              # at which the checkpoint was saved, for schedules
    options: dict               # train.py's

    @property
    def title(self):
        return f'{self.arm}, seed {self.seed}'

    @cached_property
    def data(self):
        """The Dataset, with the model's context. Stop if the set is missing, or is another than it was."""
        return Dataset(self.options['dataset'], self.model.config.block_size, self.machine.device)

    def encode(self, text):
        """Returns the tokens of a text, (1, T); Stop for characters that the vocabulary lacks, or too many tokens."""
        ids, most = self.tokenizer.encode(text), self.model.config.block_size
        if not 0 < len(ids) <= most:
            raise Stop(f'text of {len(ids)} tokens: allowed: 1 to {most}, the block_size of {self.folder}')
        return torch.tensor([ids], device=self.machine.device)

    def step(self, **given):
        """Returns a Step for one pass of evaluation, with logits at all positions."""
        it = torch.tensor(float(self.iteration), device=self.machine.device)
        return Step(it=it, all_positions=True, **given)

    @torch.no_grad()
    def logits(self, idx, **given):
        """Returns the logits (B, T, vocab_size) of tokens idx (B, T), as evaluation computes them.

        Of a compiled model the one below runs, which has the same weights and which hooks reach.
        """
        with self.machine.precision():
            return eager(self.model)(idx, step=self.step(**given))[0]

    def windows(self, limit=0):
        """Yields tokens and targets, (B, T) each, -1 for none, of the validation split's fixed windows.

        limit: how many, spread over the split; 0: all.
        """
        # rows that fit the caches: models to look into are small
        rows = batch_rows(self.machine, self.data, self.options['batch_size'])
        for x, y, _ in self.data.windows('val', rows, limit):
            yield x, y

    def losses(self, limit=0):
        """Returns the loss of each token in nats, float64 (windows, T) on the CPU; NaN where there is no target."""
        found = []
        for x, y in self.windows(limit):
            nats = token_losses(self.logits(x), y).double()
            found.append(nats.masked_fill(y == -1, torch.nan).cpu())
        return torch.cat(found)


def open_runs(out_dir, ckpt='auto', device='auto', dtype='auto', variant='base', arms=()):
    """Returns the Runs of a run folder (one), or of a study's folder: each arm's seeds, the baseline's first.

    Arguments as for sample.open_run(); arms: names of a study's, by default all. Runs of a study that failed or
    diverged are left out. Stop if there is no checkpoint, or not of every arm.
    """
    study = read_json(Path(out_dir) / 'study.json')
    if study is None:
        run = open_folder(Path(out_dir), None, ckpt, device, dtype, variant)
        return [run]
    names = [arm['name'] for arm in study['arms']]
    if unknown := next((arm for arm in arms if arm not in names), None):
        raise Stop(f'arm={unknown}: no such arm of {out_dir}; there are {", ".join(names)}')
    arms = set(arms or names)
    runs = [open_folder(folder, arm, ckpt, device, dtype, variant)
            for arm, _, folder in folders_of(Path(out_dir), study)
            if arm in arms and run_state(folder) == 'done' and RunFolder(folder).checkpoints()]
    if lost := arms - {run.arm for run in runs}:
        raise Stop(f'{out_dir}: no checkpoint of {", ".join(sorted(lost))}; its studies keep them with '
                   '--keep_checkpoints=True, runs that are done with --retry=True as well', NO_CHECKPOINT)
    return runs


def folders_of(study_folder, study):
    """Yields (arm, seed, folder) of the runs of a study.json that have a folder."""
    for arm in study['arms']:
        seeds = study['seeds'][arm['name']] if isinstance(study['seeds'], dict) else study['seeds']
        # studies from before the store have their runs in their own folder
        key = arm.get('key')
        place = study_folder.parent / 'runs' / key if key else study_folder / arm['folder']
        for seed in seeds:
            folder = place / (str(seed) if key else f'seed_{seed}')
            if folder.is_dir():
                yield arm['name'], seed, folder


def open_folder(folder, arm, ckpt, device, dtype, variant):
    """Returns the Run of one run folder; arm: None for one that is not of a study."""
    model, tokenizer, _, state = open_run(folder, ckpt, device, dtype, variant)
    # sample.py's machine is for decoding one token at a time
    m = machine(device, dtype, compile=False)
    options = state['options']
    return Run(arm or folder.name, options['seed'], folder, model.to(m.device), tokenizer, m, state['step'], options)
