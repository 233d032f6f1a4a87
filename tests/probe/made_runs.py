"""Runs to look into, without training: models whose weights are no longer the initial ones."""
from pathlib import Path

import torch

from core.data.tokenizer import Tokenizer, read_meta
from core.device.machine import machine
from lab.probe.runs import Run
from model import build

SIZES = dict(n_layer=2, n_head=2, n_embd=16, block_size=12, dropout=0.0)


def moved(variant='base', seed=1, **sizes):
    """A model in float64, no part of which is idle."""
    model = build(variant, **SIZES | dict(vocab_size=11) | sizes).double().eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p += 0.3 * torch.randn(p.shape, generator=generator, dtype=p.dtype)
    return model


def made_run(data, variant='base', seed=1, **sizes):
    """A Run of such a model with a data set."""
    tokenizer = Tokenizer.from_meta(read_meta(Path(data)))
    model = moved(variant, seed, vocab_size=tokenizer.vocab_size, **sizes)
    return Run(variant, seed, Path('out'), model, tokenizer, machine('cpu', 'float32', compile=False), 5,
               dict(dataset=str(data), batch_size=4, seed=seed))
