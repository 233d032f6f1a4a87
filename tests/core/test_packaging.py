"""pyproject.toml and core/packaging.py: what `pip install` does with this project."""
import importlib
import sys
import tomllib
from types import SimpleNamespace

import pytest
from helpers import ROOT


@pytest.fixture
def backend(monkeypatch):
    """Gives the build backend that pyproject.toml names, on a stand-in for setuptools, which an environment may lack."""
    calls = dict.fromkeys(('build_editable', 'get_requires_for_build_editable', 'prepare_metadata_for_build_editable'),
                          lambda *args: args)
    monkeypatch.setitem(sys.modules, 'setuptools', SimpleNamespace(build_meta=SimpleNamespace(**calls)))
    name = tomllib.loads((ROOT / 'pyproject.toml').read_text(encoding='utf-8'))['build-system']['build-backend']
    yield importlib.import_module(name)
    del sys.modules[name]


def test_modules_called_model_and_train_are_never_copied_into_site_packages(backend):
    """There they would find no data/ and no config/; --editable, which leaves them here, works."""
    for build in backend.build_wheel, backend.build_sdist:
        with pytest.raises(SystemExit, match='pip install --editable'):
            build('folder')
    assert backend.build_editable('folder') == ('folder',)
