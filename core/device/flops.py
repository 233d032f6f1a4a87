"""Counts a model's floating-point operations, by torch's FlopCounterMode on tensors without data."""
import dataclasses
from functools import cache

import torch
from torch.utils.flop_counter import FlopCounterMode


def flops_per_token(classes, config):
    """Returns (forward, forward and backward) FLOPs per token at full context; a multiply-add counts 2.

    Only matrix products count, each in full: causal attention counts all T x T scores, as the PaLM formula
    does (arXiv 2204.02311, appendix B), although fused kernels skip the masked half.
    """
    # attn='math' computes attention by products that the counter knows
    return count_flops(classes, dataclasses.astuple(dataclasses.replace(config, attn='math')))


# cached, because runs that differ in their seed ask for the same
@cache
def count_flops(classes, fields):
    """Returns what flops_per_token() returns, for a GPTConfig given by its fields."""
    config = classes.GPTConfig(*fields)
    with torch.device('meta'), FlopCounterMode(display=False) as counter:
        model = classes.GPT(config, classes)
        idx = torch.zeros(1, config.block_size, dtype=torch.long)
        _, loss = model(idx, idx)
        forward = counter.get_total_flops()
        loss.backward()
        return forward / config.block_size, counter.get_total_flops() / config.block_size
