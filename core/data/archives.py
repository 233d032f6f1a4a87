"""Fetches the archives that a text is made of: files in package registries, each known by its SHA-256."""
import os
import re
import shutil
import subprocess
import sys
from contextlib import suppress
from importlib.util import find_spec
from typing import NamedTuple

from tqdm import tqdm

from core.data import short_path
from core.errors import Stop
from core.run.files import fsync, sha256


class Client(NamedTuple):
    """A registry's program, which downloads a package into the folder that it is started in."""
    command: list
    joint: str          # between a package and its version
    suffix: str         # of a package's file
    comes_with: str


CLIENTS = {
    # a copy in pip's cache would take the space of a file twice
    'pip': Client([sys.executable, '-m', 'pip', 'download', '--quiet', '--disable-pip-version-check',
                   '--progress-bar=off', '--no-cache-dir', '--no-deps', '--only-binary=:all:'],
                  '==', '.whl', 'python -m ensurepip'),
    # npm waits 10 s before it tries again; pip tries five times within 15 s
    'npm': Client(['npm', 'pack', '--loglevel=error', '--fetch-retries=1'], '@', '.tgz', 'Node.js'),
    'apt-get': Client(['apt-get', 'download'], '=', '.deb', 'Debian')}


class Archive(NamedTuple):
    """A package's file in a registry."""
    client: str         # a key of CLIENTS
    package: str
    version: str
    bytes: int
    sha256: str
    otherwise: str = '' # what can be done without it

    @property
    def file(self):
        return f'{self.package}-{self.version}{CLIENTS[self.client].suffix}'


def fetch(archive, folder):
    """Returns the path of an archive in a folder, downloaded unless it is there; Stop if it cannot be had.

    One that is there with another SHA-256, perhaps a part of it, is downloaded anew.
    """
    path, new = folder / archive.file, folder / 'tmp'
    if path.is_file() and sha256(path) == archive.sha256:
        return path
    # a killed download may have left it
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir()
    try:
        downloaded = download(archive, new)
        if (found := sha256(downloaded)) != archive.sha256:
            raise Stop(f'{archive.file} is refused: its SHA-256 is {found}, not {archive.sha256}')
        fsync(downloaded)
        os.replace(downloaded, path)
    finally:
        shutil.rmtree(new, ignore_errors=True)
    return path


def download(archive, folder):
    """Returns the path of what an archive's client has downloaded into an empty folder; Stop if it cannot."""
    client, otherwise = CLIENTS[archive.client], archive.otherwise and f'; {archive.otherwise}'
    program = shutil.which(client.command[0])
    if not program or archive.client == 'pip' and not find_spec('pip'):
        raise Stop(f'{archive.file} is fetched by {archive.client}, which is missing ({client.comes_with} brings it); '
                   f'or put the file into {short_path(folder.parent)} yourself{otherwise}')
    print(f'fetching {archive.file}, {archive.bytes:,} bytes', flush=True)
    # here the files of pip and npm grow, and whatever they leave goes with the folder
    scratch = folder / 'scratch'
    scratch.mkdir()
    environment = os.environ | dict(TMPDIR=str(scratch), npm_config_cache=str(scratch), LC_ALL='C.UTF-8')
    command = [program, *client.command[1:], f'{archive.package}{client.joint}{archive.version}']
    bar = tqdm(total=archive.bytes, desc=archive.file, unit='B', unit_scale=True, leave=False, disable=None)
    with bar, open(scratch / 'log', 'w+', encoding='utf-8', errors='replace') as log:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, # noqa: S603
                                   stdout=log, stderr=log)
        try:
            while process.poll() is None:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(0.2)
                bar.update(min(size(folder), archive.bytes) - bar.n)
        finally:
            # a signal ends the download too
            process.kill()
            process.wait()
        log.seek(0)
        lines = [' '.join(line.split()) for line in log if line.strip()]
    files = [path for path in folder.iterdir() if path.is_file()]
    if process.returncode or len(files) != 1:
        # the first line that says what is wrong: 'npm error ...', 'E: ...', '... NewConnectionError ...'
        errors = [line for line in lines if re.search('error|^E:', line, re.IGNORECASE)]
        reason = (errors or lines[-1:] or [f'exit code {process.returncode}'])[0][:300]
        raise Stop(f'{archive.file} could not be fetched: {reason}; '
                   f'the same command goes on from here{otherwise}')
    return files[0]


def size(folder):
    """Returns the bytes of all files below a folder, some of which may vanish meanwhile."""
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):
                total += os.stat(os.path.join(root, name)).st_size
    return total
