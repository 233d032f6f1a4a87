"""Floating-point operations of a model, counted by torch's FlopCounterMode on tensors without data."""
import dataclasses

import torch
from torch.utils.flop_counter import FlopCounterMode

import model as core


def flops_per_token(config, parts):
    """(forward, forward and backward) FLOPs per token at full context, a multiply-add being 2.

    Matrix products only, each in full: causal attention counts all T x T scores, as in the PaLM formula, although fused kernels
    skip the masked half.
    """
    with torch.device('meta'):
        model = parts.GPT(dataclasses.replace(config, attn='math'), parts)
        idx = torch.zeros(1, config.block_size, dtype=torch.long)
        counted = []
        for backward in False, True:
            with FlopCounterMode(display=False) as counter:
                _, loss = model(idx, idx, core.Step())
                if backward:
                    loss.backward()
            counted.append(counter.get_total_flops() / config.block_size)
    return tuple(counted)
