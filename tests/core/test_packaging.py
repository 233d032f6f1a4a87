"""pyproject.toml and core/packaging.py: what `pip install` does with this project."""
import importlib
import re
import sys
import tomllib
from types import SimpleNamespace

import pytest
from helpers import ROOT


@pytest.fixture
def backend(monkeypatch):
    """Gives the build backend of pyproject.toml, on a stand-in for setuptools, which an environment may lack."""
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


def test_ci_pins_every_package_that_users_need_and_its_hash():
    project = tomllib.loads((ROOT / 'pyproject.toml').read_text(encoding='utf-8'))['project']
    extras = project['optional-dependencies']
    needed = {re.match('[a-z0-9-]+', wanted)[0] for wanted in
              [*project['dependencies'], *extras['ab'], *extras['test']]} - {'nanogpt-variants'}
    lock = (ROOT / 'requirements.lock').read_text(encoding='utf-8')
    pinned = dict(re.findall(r'^([a-z0-9-]+)==.*((?:\n    --hash=sha256:[0-9a-f]{64}.*)+)', lock, re.MULTILINE))
    # its build depends on the machine
    assert needed - pinned.keys() == {'torch'}
    assert not re.search('https?://|--index', lock)
    assert '--require-hashes -r requirements.lock' in (ROOT / '.ci/run').read_text(encoding='utf-8')
