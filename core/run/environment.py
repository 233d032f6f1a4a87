"""Describes a run for config.json: enough to tell two runs apart, and to repeat one."""
import datetime
import os
import platform
import subprocess
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from core import ROOT
from core.run.files import sha256


def describe_run(state, machine, classes):
    """Returns a record for JSON of options and their origins, command, versions, device and code.

    state: a checkpoint's state of the run; classes: those that the variant is built from.
    """
    sources = [ROOT / 'model.py', *(Path(f.__file__) for f in classes.files)]
    return dict(options=state['options'], model_args=state['model_args'], origin=state['origin'],
                tokenizer=state['tokenizer'], data=state['data'],
                argv=sys.argv, versions=versions(), git=git(),
                device=machine.name, dtype=machine.dtype, compile=machine.compile,
                # a variant's file may lie anywhere
                code={os.path.relpath(path, ROOT): sha256(path) for path in sources})


@cache
def versions():
    """Returns {name: version} for Python, the platform and the main packages, None if not installed."""
    found = dict(python=platform.python_version(), platform=platform.platform())
    for package in ('torch', 'numpy', 'safetensors', 'triton'):
        try:
            found[package] = version(package)
        except PackageNotFoundError: # triton, on a CPU
            found[package] = None
    return found


# once a process, which runs the code that it has imported, whatever is committed meanwhile
@cache
def git():
    """Returns the commit's hash, with '+' if tracked files differ from it; None outside a git checkout."""
    try:
        call = lambda *args: subprocess.run(('git', '-C', str(ROOT), *args), # noqa: S603, S607
                                            capture_output=True, text=True, check=True).stdout.strip()
        changed = call('status', '--porcelain', '--untracked-files=no')
        return call('rev-parse', 'HEAD') + ('+' if changed else '')
    except (OSError, subprocess.CalledProcessError):
        return None


def timestamp():
    """Returns the time in UTC: 2026-01-31T12:00:00Z."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds').replace('+00:00', 'Z')
