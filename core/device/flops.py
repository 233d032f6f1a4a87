"""Floating-point operations of a model, counted by torch's FlopCounterMode on tensors without data."""
import dataclasses
from functools import cache

import torch
from torch.utils.flop_counter import FlopCounterMode


def flops_per_token(classes, config):
    """Returns the FLOPs per token at full context, (forward, forward and backward); a multiply-add is 2.

    Matrix products only, each in full: causal attention counts all T x T scores, as in the PaLM formula
    (arXiv 2204.02311, appendix B), although fused kernels skip the masked half.
    """
    # attn='math' makes them products that the counter knows
    return count_flops(classes, dataclasses.astuple(dataclasses.replace(config, attn='math')))


# cached, because the runs of one arm ask for the same
@cache
def count_flops(classes, fields):
    """Counts what flops_per_token() returns for a GPTConfig of these fields."""
    config = classes.GPTConfig(*fields)
    with torch.device('meta'), FlopCounterMode(display=False) as counter:
        model = classes.GPT(config, classes)
        idx = torch.zeros(1, config.block_size, dtype=torch.long)
        _, loss = model(idx, idx)
        forward = counter.get_total_flops()
        loss.backward()
        return forward / config.block_size, counter.get_total_flops() / config.block_size
