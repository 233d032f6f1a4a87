"""The same blocks run several times over; a learned exit says how much each pass counts in the loss.

Source: Ouro, Zhu et al., "Scaling Latent Reasoning via Looped Language Models", arXiv 2510.25741; passes and
exits as in the code beside its weights, ByteDance/Ouro-1.4B, read in github.com/Eagle4398/ouro-nixpkgs.

    x_r = LN_f(blocks(x_{r-1})),   r = 1 .. n_loop          x_0: the embedding; LN_f: the model's last norm
    p_r = s_r prod_{q<r} (1 - s_q),   s_r = sigmoid(w . x_r + b), s of the last pass is 1
    loss = mean over tokens of sum_r p_r CE_r - loop_entropy H(p)          CE_r: of the logits of x_r

Logits are the last pass's. Each pass has keys and values of its own. The entropy H keeps exits open; its
weight is the paper's, later halved. Ouro's blocks have norms on both sides, loop+post_norm, and
rope+rmsnorm+glu. Plain loops, as in the parameter-golf records, are loop_exit=False.

Claim: 1.4B parameters like others' 4B, 2.6B like their 8B to 12B, after 7.7T tokens.
Expect: better than the baseline, which has a quarter of its FLOPs, and worse than n_loop times as many
blocks.
Control: both, always: the baseline at n_layer, equal parameters, and at n_loop * n_layer, equal FLOPs.
Logged: `exit`, the mean p of each pass.
"""
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F

import model
from configurator import Count, NonNegative
from core.nn.numerics import wide

NEUTRAL = dict(n_loop=1, loop_exit=False)
CLASHES = {other: 'the threshold that a pass sets, from later tokens too, would choose in the next one'
           for other in ('mod', 'stt', 'sdt')}


@dataclass
class GPTConfig(model.GPTConfig):
    n_loop: Count = 4                   # passes through the blocks
    loop_exit: bool = True              # train every pass, weighted by its exit; False: the last one alone
    loop_entropy: NonNegative = 0.1     # weight of the exits' entropy in the loss, in nats


class GPT(model.GPT):

    def __init__(self, config, classes):
        super().__init__(config, classes)
        if config.loop_exit:
            self.exit_gate = nn.Linear(config.n_embd, 1)
            self.exit_gate.weight.no_decay = True

    def blocks(self, x, step):
        passes = []
        for _ in range(self.config.n_loop - 1):
            y = self.transformer.ln_f(self.narrow(super().blocks(x, step), step)) # (B, T, C)
            passes.append(y)
            x = self.widen(y, step)
        if self.config.loop_exit:
            step.shared['passes'], step.shared['log_exit'] = passes, self.log_exit(passes, step)
        # forward() has the last pass's norm
        return super().blocks(x, step)

    def log_exit(self, passes, step):
        """Returns log p (n_loop, B, T); passes: the outputs (B, T, C) of all but the last."""
        log_p, stay = [], torch.zeros_like(step.pos, dtype=torch.float32)
        for y in passes:
            gate = wide(self.exit_gate(y)[..., 0]) # (B, T)
            log_p.append(stay + F.logsigmoid(gate))
            stay = stay + F.logsigmoid(-gate)
        log_p.append(stay)
        for one in log_p:
            step.stat('exit', one.exp())
        return torch.stack(log_p)

    def loss(self, logits, targets, x, step):
        if not (self.training and self.config.loop_exit):
            return super().loss(logits, targets, x, step)
        all_logits = [*(self.logits(y, step) for y in step.shared['passes']), logits]
        losses = torch.stack([F.cross_entropy(one.transpose(1, 2), targets, ignore_index=-1, reduction='none')
                              for one in all_logits]) # (n_loop, B, T)
        log_p, seen = step.shared['log_exit'], targets != -1
        by_token = (log_p.exp() * (losses + self.config.loop_entropy * log_p)).sum(0) # (B, T)
        return (by_token * seen).sum() / seen.sum()
