"""Looks inside trained models: what a variant computes, beside the baseline, with intervals over seeds.

    python probe.py attention   --out_dir=out-soft_window --text="ROMEO:"
    python probe.py activations --out_dir=out-surprise --save=acts.safetensors
    python probe.py ablate      --out_dir=out-surprise --what=heads
    python probe.py patch       --out_dir=out-surprise --clean="..." --corrupt="..."
    python probe.py induction   --out_dir=out-surprise
    python probe.py shapes      --variant=fractal_heads
    python probe.py tokens      --out_dir=out-surprise --versus=out-base
    python probe.py compare     out-surprise out-base
    python probe.py why         out-ab/NAME
    python probe.py task        --task=induction --variants=canon,rope

Each prints its numbers and writes PNGs and one page, into OUT_DIR/probe/ unless --to says otherwise.
python probe.py COMMAND --help lists a command's options. lab/probe has the parts, for notebooks.
"""
if __name__ == '__main__':
    # before PyTorch, whose import takes seconds
    from core.errors import exit_on_interrupt
    exit_on_interrupt()

import dataclasses
import importlib
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import ab
from configurator import (
    Count,
    FilePath,
    Given,
    Positive,
    arguments,
    configure,
    construct,
    did_you_mean,
    expand_flags,
    options_of,
    parse_known,
)
from core.errors import Stop, run_main
from lab.probe import task

COMMANDS = 'attention activations ablate patch induction shapes tokens compare why task'.split()


@dataclass
class TaskOptions(ab.Options):
    # of these options, those of train.py and of the variants may follow
    task: Literal['induction', 'copy', 'recall'] = 'induction' # what is to be learned
    to: FilePath = ''               # folder for the page; '': the study's, out-ab/TASK-ARMS/probe
    # what ab.py's defaults are not
    max_seeds: Count = 8            # runs of an arm at most
    delta: Positive = 0.02          # differences smaller than this, in nats, count as equivalent
    check: Literal['all', 'leaks', 'none', True, False] = 'leaks' # of each arm before training
    price: bool = False             # time the arms before training
    keep_checkpoints: Literal[True, False, 'log'] = True # leave each run's last weights; log: and spaced ones before


def train_on_task(argv):
    """Trains and judges arms on a task of lab/probe/task.py, as ab.py does; returns the Page and its folder."""
    # reports name the command as it was typed
    sys.argv[0] = sys.argv[0].removesuffix(' task')
    if {'-h', '--help'} & set(argv):
        configure(TaskOptions, argv=argv)
    given, known = arguments(expand_flags(argv, TaskOptions, valued=('name',))), options_of(TaskOptions)
    o = construct(TaskOptions, parse_known(known, given))
    if fixed := next((g for g in given if g.name in ('dataset', 'block_size', 'vocab_size')), None):
        raise Stop(f'{fixed.name}={fixed.value}: is the task\'s; --task takes {", ".join(task.TASKS)}')
    if o.report or o.from_csv or o.ledger or o.store:
        raise Stop('a report, a file of losses, the ledger and the store are for ab.py')
    recipe = [Given(name, value, 'probe.py task') for name, value in task.recipe_of(o.task).items()]
    o = dataclasses.replace(o, name=o.name or ab.folder_name(f'{o.task}-{o.variants or o.arms}'))
    with ab.stopped_by_signals():
        ab.run_study(o, [*recipe, *(g for g in given if g.name not in known)])
    folder = ab.OUT / o.name
    return task.page_of(folder, o.task, o.keep_checkpoints), Path(o.to) if o.to else folder / 'probe'


def main():
    command, *rest = sys.argv[1:] or ['--help']
    if command in ('-h', '--help'):
        print(__doc__.strip())
        return
    if command not in COMMANDS:
        raise Stop(f'{command}: no such command{did_you_mean(command, COMMANDS)}; '
                   f'allowed: {", ".join(COMMANDS)}')
    # --help names it
    sys.argv[0] += f' {command}'
    # each returns its Page, and the folder that it goes to
    run = train_on_task if command == 'task' else importlib.import_module(f'lab.probe.{command}').main
    page, folder = run(rest)
    page.print()
    for path in page.write(folder):
        print(path)


if __name__ == '__main__':
    run_main(main)
