"""Options that the commands of probe.py share, and what they mean."""
import sys
from dataclasses import dataclass
from pathlib import Path

from configurator import Count, DeviceOptions, FilePath, configure
from core.errors import Stop
from lab.probe.runs import open_runs


@dataclass
class RunOptions(DeviceOptions):
    """Options of commands that look into trained models."""
    out_dir: FilePath = 'out'           # run folder, or a study's, whose runs kept their checkpoints
    ckpt: str = 'auto'                  # best, latest, or a step; auto: as for sample.py
    variant: str = 'base'               # only of a run whose variant is a file: its path, which you thereby trust
    windows: Count = 64                 # of the validation split that are looked at, spread over it
    to: FilePath = ''                   # folder for the page and its PNGs; '': OUT_DIR/probe


def read_options(Options, argv):
    """Returns the Options of a command line, and prints on stderr what was given."""
    return configure(Options, argv=argv, say=lambda text: print(text, file=sys.stderr, flush=True)).options


def open_from(o):
    """Returns the Runs that RunOptions name."""
    return open_runs(o.out_dir, o.ckpt, o.device, 'float32' if o.dtype == 'auto' else o.dtype, o.variant)


def folder_of(o):
    """Returns where RunOptions want the page."""
    return Path(o.to) if o.to else Path(o.out_dir) / 'probe'


def folders_first(argv):
    """Returns the arguments before the first option, which name folders, and the others. Stop without any."""
    n = next((n for n, arg in enumerate(argv) if arg.startswith('-')), len(argv))
    if not n and not {'-h', '--help'} & set(argv):
        raise Stop('which folder? name it after the command, before its options')
    return argv[:n], argv[n:]
