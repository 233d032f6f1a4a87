"""Drills: real processes that are killed, real full disks, files that are damaged, input that is hostile.

    make drills
    python -m pytest tests/drills -m drill -k NAME

Each drill says at the end what it did, in numbers.
"""
import os
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items):
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.drill)


def pytest_terminal_summary(terminalreporter):
    reports = terminalreporter.stats.get('passed', []) + terminalreporter.stats.get('failed', [])
    figures = [figure for report in reports for figure in report.user_properties]
    if figures:
        terminalreporter.section('figures')
    for what, figure in figures:
        terminalreporter.write_line(f'{what}: {figure}')


@pytest.fixture(autouse=True, scope='session')
def forkserver():
    """Starts the process from which drills fork, with everything imported that a script imports."""
    from helpers import ROOT, forks
    os.environ['PYTHONPATH'] = os.pathsep.join(map(str, (ROOT, ROOT / 'tests', ROOT / 'tests/drills')))
    preload = ['torch', 'torch._dynamo', 'torch.utils.flop_counter', 'safetensors.torch', 'helpers', 'drill',
               'train', 'sample', 'bench', 'ab']
    context = forks(preload)
    context.Process(target=int).start()


@pytest.fixture(scope='session')
def data(tmp_path_factory):
    from helpers import shakespeare
    return shakespeare(tmp_path_factory.mktemp('data') / 'tiny')
