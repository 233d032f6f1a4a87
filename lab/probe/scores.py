"""What models make of each token of a text: its loss, whether it was foreseen, and how sure they were."""
from typing import NamedTuple

import numpy as np
import torch

from core.errors import Stop

BINS = 10               # of a reliability chart


class Scores(NamedTuple):
    """Of each target, (windows, T) each; NaN where there is none."""
    nats: np.ndarray            # its loss
    top1: np.ndarray            # 1 where it was the likeliest token, else 0
    top5: np.ndarray            # 1 where it was among the five likeliest
    sure: np.ndarray            # the probability of the likeliest token

    def means(self):
        """Returns the mean of each over all targets, as Scores."""
        return Scores(*(float(np.nanmean(x)) for x in self))


@torch.no_grad()
def score(run, x, y):
    """Returns the Scores of targets y (B, T), -1 for none, after tokens x (B, T), with tensors in place of arrays."""
    logp = run.logits(x).float().log_softmax(-1)
    nats = -logp.gather(-1, y.clamp(min=0)[..., None])[..., 0]
    best = logp.topk(min(5, logp.size(-1)), -1)
    hits = best.indices == y[..., None] # (B, T, 5)
    found = nats, hits[..., 0].float(), hits.any(-1).float(), best.values[..., 0].exp()
    # float64 there, because some devices have none
    return Scores(*(z.masked_fill(y == -1, torch.nan).cpu().double() for z in found))


def validation_scores(run, limit=0):
    """Returns the Scores of a Run on fixed windows of its validation split; limit: how many, 0: all."""
    batches = [score(run, x, y) for x, y in run.windows(limit)]
    return Scores(*(torch.cat(parts).numpy() for parts in zip(*batches)))


def validation_tokens(run, limit=0):
    """Returns the tokens of the same windows, (windows, T + 1); -1 where there is no target."""
    rows = [torch.cat((x[:, :1], y), 1) for x, y in run.windows(limit)]
    return torch.cat(rows).cpu().numpy()


def text_losses(run, ids):
    """Returns the loss of each of ids (L,) but the first, (L - 1,), in nats, whatever the model's context.

    Each token has at least half of a context before it, as far as there is text.
    """
    T, n, nats, done = run.model.config.block_size, len(ids) - 1, [], 0
    ids = torch.as_tensor(ids, dtype=torch.long, device=run.machine.device)[None]
    while done < n:
        start = max(0, min(done - T // 2, n - 1))
        x, y = ids[:, start:start + T], ids[:, start + 1:start + T + 1]
        losses = score(run, x[:, :y.size(1)], y).nats[0]
        nats.append(losses[done - start:].numpy())
        done = start + len(losses)
    return np.concatenate(nats)


def reliability(sure, top1):
    """Returns mean probability, share right and number of targets in BINS bins of the likeliest token's probability.

    NaN for an empty bin. Guo et al. 2017, https://arxiv.org/abs/1706.04599
    """
    at = np.isfinite(sure)
    bins = np.minimum((sure[at] * BINS).astype(int), BINS - 1)
    n = np.bincount(bins, minlength=BINS)
    with np.errstate(invalid='ignore'):
        return (*(np.bincount(bins, x[at], BINS) / n for x in (sure, top1)), n)


def calibration_error(sure, top1):
    """Returns the expected calibration error: how far probability and share right are apart, a mean over targets."""
    said, right, n = reliability(sure, top1)
    return float(np.nansum(abs(said - right) * n) / n.sum())


def same_text(run, other):
    """Returns '' if two Runs are of the same text, tokens and context, else what differs."""
    if run.tokenizer.meta != other.tokenizer.meta:
        return 'tokenizers'
    if run.options['dataset'] != other.options['dataset'] and run.data.hash != other.data.hash:
        return 'data sets'
    return 'contexts (block_size)' if run.model.config.block_size != other.model.config.block_size else ''


def check_same_text(runs):
    """Raises Stop unless all Runs are of the same text, tokens and context."""
    for run in runs[1:]:
        if what := same_text(runs[0], run):
            raise Stop(f'{runs[0].folder} and {run.folder} have different {what}: their tokens cannot be compared')
