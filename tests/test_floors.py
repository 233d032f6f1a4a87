"""Imports run downwards only, so that a floor can be read without those above it."""
import ast

import pytest
from helpers import ROOT

# from the ground up; beside each other only the files of one package may know each other
FLOORS = [
    {'core'},
    {'configurator', 'data'},
    {'model'},
    {'variants', 'train', 'sample'},
    {'lab'},
    {'ab', 'bench'},
    {'probe'},
]
FLOOR = {package: floor for floor, packages in enumerate(FLOORS) for package in packages}
FILES = {str(path.relative_to(ROOT)): path for package in sorted(FLOOR)
         for path in [*ROOT.glob(f'{package}.py'), *sorted(ROOT.glob(f'{package}/**/*.py'))]}
VARIANTS = [name for name in FILES if name.startswith('variants/') and not name.endswith('__.py')]


def imported_names(file):
    """Returns the dotted names that a file imports, wherever in it: core.errors.Stop, model."""
    names = []
    for node in ast.walk(ast.parse(FILES[file].read_text(encoding='utf-8'))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f'{file}:{node.lineno}: a relative import'
            names += [f'{node.module}.{alias.name}' for alias in node.names]
    return names


@pytest.mark.parametrize('file', FILES)
def test_no_import_runs_up(file):
    own = file.removesuffix('.py').split('/')[0]
    packages = {name.split('.')[0] for name in imported_names(file)} & FLOOR.keys() - {own}
    assert [package for package in packages if FLOOR[package] >= FLOOR[own]] == []


@pytest.mark.parametrize('file', VARIANTS)
def test_a_variant_stands_on_little(file):
    ours = [name for name in imported_names(file) if name.split('.')[0] in FLOOR]
    allowed = 'model.', 'configurator.', 'core.nn.', 'variants._'
    assert [name for name in ours if not f'{name}.'.startswith(allowed)] == []
