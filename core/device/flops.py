"""Floating-point operations of a model, counted by torch's FlopCounterMode on tensors without data."""
import dataclasses

import torch
from torch.utils.flop_counter import FlopCounterMode

from model import SLOTS, Step

counted = {} # by the model's classes and its options, for the runs of one arm ask for the same: .3 to .7 s on a slow CPU


def flops_per_token(config, classes):
    """(forward, forward and backward) FLOPs per token at full context, a multiply-add being 2.

    Matrix products only, each in full: causal attention counts all T x T scores, as in the PaLM formula, although fused kernels
    skip the masked half.
    """
    key = *(getattr(classes, slot.__name__) for slot in SLOTS), *dataclasses.astuple(config)
    if key not in counted:
        counted[key] = count(config, classes)
    return counted[key]


def count(config, classes):
    with torch.device('meta'), FlopCounterMode(display=False) as counter:
        model = classes.GPT(dataclasses.replace(config, attn='math'), classes)
        idx = torch.zeros(1, config.block_size, dtype=torch.long)
        _, loss = model(idx, idx, Step())
        forward = counter.get_total_flops()
        loss.backward()
        return forward / config.block_size, counter.get_total_flops() / config.block_size
