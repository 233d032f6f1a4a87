"""The one judge of a model: its loss, computed here from logits. The model is given tokens and never a target."""
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

# Tokens a batch. On a CPU, as many a thread as its caches hold the activations of; elsewhere, as many as keep
# the device busy for longer than launching them takes.
CPU_TOKENS, DEVICE_TOKENS = 1 << 10, 1 << 16
LOGITS = 1 << 26        # numbers a batch, 256 MiB in float32


@dataclass
class Evaluation:
    """The losses of one pass over fixed windows of a split. All are means of the same losses of tokens, in nats."""
    loss: float
    bits_per_byte: float | None # the same loss per byte of text; None where the set does not say how long its text is
    windows: list               # loss of each window, in order
    positions: list             # loss at each position of a window; None where no window has a target
    stats: dict                 # {'stats.<name>': [mean per layer]}


def evaluate(forward, data, machine, split, batch_size, limit=0):
    """Returns the Evaluation of a model on fixed windows of a split: `limit` of them, or all if it is 0.

    forward(idx, stats) returns the logits (B, T, V) of tokens idx (B, T), and may fill the dict `stats` with
    {name: [a tensor per layer]}. batch_size: rows that are known to fit into memory. The batches have as many
    rows as the machine is fast with, which changes losses by rounding only.
    """
    return launch(forward, data, machine, split, batch_size, limit)()


@torch.no_grad()
def launch(forward, data, machine, split, batch_size, limit=0):
    """Launches what evaluate() computes; returns a function that waits for the device and returns the Evaluation."""
    losses, targets, stats = [], [], {}
    for x, y, _ in data.windows(split, batch_rows(machine, data, batch_size), limit):
        found = {}
        with machine.precision():
            logits = forward(x, found)
        # both stay on the device: reading a number would wait for it
        losses.append(token_losses(logits, y))
        targets.append(y != -1)
        for name, layers in found.items():
            means = torch.stack([t.float().mean() for t in layers])
            stats.setdefault(name, []).append(means * len(x))

    def finish():
        nats, is_target = torch.cat(losses).cpu().double(), torch.cat(targets).cpu() # (W, T) each
        # a batch counts by its rows
        means = {f'stats.{name}': (sum(batches) / len(nats)).tolist() for name, batches in stats.items()}
        return Evaluation(*mean_losses(nats, is_target, data.bytes_per_token), means)
    return finish


def batch_rows(machine, data, batch_size):
    """Returns the rows of a batch of evaluation."""
    logits_fit = LOGITS // data.vocab_size
    if machine.type == 'cpu':
        return max(1, min(CPU_TOKENS * torch.get_num_threads(), logits_fit) // data.block_size)
    return max(batch_size, min(DEVICE_TOKENS, logits_fit) // data.block_size)


def token_losses(logits, targets):
    """Returns the cross entropy in nats, float32 (B, T), of logits (B, T, V); 0 where targets (B, T) are -1."""
    # not in the dtype of the logits: bfloat16 has three digits
    losses = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction='none', ignore_index=-1)
    return losses.view(targets.shape)


def mean_losses(nats, is_target, bytes_per_token):
    """Returns the first four fields of an Evaluation.

    nats: float64 (W, T), 0 where there is no target; is_target: bool (W, T).
    """
    totals, targets = nats.sum(1), is_target.sum(1) # (W,) each
    loss = (totals.sum() / targets.sum()).item()
    bits_per_byte = loss / math.log(2) / bytes_per_token if bytes_per_token else None
    at_position = zip(nats.sum(0).tolist(), is_target.sum(0).tolist(), strict=True)
    return loss, bits_per_byte, (totals / targets).tolist(), [total / n if n else None for total, n in at_position]
