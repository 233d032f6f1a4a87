"""Draws tokens from logits."""
import torch
import torch.nn.functional as F

from core.nn.numerics import wide


def sample_token(logits, temperature, top_k, top_p, min_p, generator):
    """Returns one token a row (B, 1) from logits (B, V).

    temperature 0 takes the likeliest token; top_k 0, top_p 1 and min_p 0 exclude none.
    """
    if temperature == 0:
        return logits.argmax(-1, keepdim=True)
    # with the largest at 0 none overflows at a low temperature, and 1e-30 is as low as any in float32
    logits = wide(logits)
    logits = (logits - logits.amax(-1, keepdim=True)) / max(temperature, 1e-30)
    # the top_k likeliest tokens, and those that tie with the last of them
    if top_k:
        kth = logits.topk(min(top_k, logits.size(-1))).values[:, [-1]]
        logits = logits.masked_fill(logits < kth, float('-inf'))
    probs = F.softmax(logits, dim=-1)
    # the fewest likeliest tokens that together have probability top_p (arXiv 1904.09751)
    if top_p < 1:
        p, order = probs.sort(dim=-1, descending=True)
        probs = torch.zeros_like(probs).scatter(-1, order, p.masked_fill(p.cumsum(-1) - p >= top_p, 0.0))
    # tokens at least min_p times as likely as the likeliest (arXiv 2407.01082)
    if min_p:
        probs = probs.masked_fill(probs < min_p * probs.amax(-1, keepdim=True), 0.0)
    return torch.multinomial(probs, num_samples=1, generator=generator)
