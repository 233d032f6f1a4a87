"""Looks inside trained models: probe.py's commands, and their parts for a notebook.

    from lab.probe import open_runs, record
    run, = open_runs('out-surprise')
    with record(run.model, '*.attn') as acts:
        run.logits(run.encode('ROMEO:'))

runs.py         a trained model with its data, of a run folder or a study
hooks.py        what modules compute, recorded or replaced; the patterns of attention
neutral.py      a trained model without what its variant adds
pairs.py        pairs of prompts, given or of a task
page.py         a command's result: sentences, tables, charts and pictures, as text, PNG and page
seeds.py        means over seeds, and differences of arms, with intervals
scores.py       what models make of each token: loss, top 1 and 5, confidence
splits.py       tokens by class of character, position, confidence and repetition
charts.py       bars of differences by part
lens.py         every operation of a pass, by torchlens

One file for each command: attention, activations, ablate, patch, induction, shapes, tokens, compare, why, task.
"""
from lab.probe.hooks import attention_patterns, record, replace
from lab.probe.runs import Run, open_runs

__all__ = ['Run', 'attention_patterns', 'open_runs', 'record', 'replace']
