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

import importlib
import sys

from configurator import did_you_mean
from core.errors import Stop, run_main

COMMANDS = 'attention activations ablate patch induction shapes tokens compare why task'.split()


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
    page, folder = importlib.import_module(f'lab.probe.{command}').main(rest)
    page.print()
    for path in page.write(folder):
        print(path)


if __name__ == '__main__':
    run_main(main)
