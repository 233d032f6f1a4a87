"""Fixtures of all tests: a fresh sys.path, a variant to drop in, and a clean start for tests on a GPU."""
import gc
import importlib
import os
import sys
import textwrap

import pytest
import torch

# without a GPU Triton, if it is installed, interprets its kernels; it reads this at its first import
if not torch.cuda.is_available():
    os.environ.setdefault('TRITON_INTERPRET', '1')


@pytest.fixture(autouse=True)
def the_same_path_for_every_test(monkeypatch):
    """Restores sys.path: a prepare.py puts its own repository first, which may be a temporary copy."""
    monkeypatch.setattr(sys, 'path', list(sys.path))


@pytest.fixture(autouse=True)
def gpu_tests_start_alike(request, monkeypatch):
    """Clears what a test on a GPU leaves in its process, so that these tests pass in any order.

    That is compiled code and what torch.compile has learnt about sizes, the settings and environment that
    machine() makes, the precision of float32, the default generators, and memory not yet collected.
    """
    if 'gpu' not in request.keywords:
        yield
        return
    from torch._functorch import config as functorch
    from torch._inductor import config as inductor

    for name in 'TRITON_CACHE_DIR', 'TRITON_PTXAS_PATH':
        before = os.environ.get(name)
        monkeypatch.setenv(name, before or '')
        if before is None:
            # and again when the test ends
            monkeypatch.delenv(name)
    backends = torch.backends.cuda.matmul, torch.backends.cudnn
    precisions = [backend.fp32_precision for backend in backends]
    torch._dynamo.reset()
    torch.manual_seed(0)
    with inductor.patch(inductor.get_config_copy()), functorch.patch(functorch.get_config_copy()):
        yield
    for backend, precision in zip(backends, precisions, strict=True):
        backend.fp32_precision = precision
    gc.collect()
    torch.cuda.empty_cache()


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    """A data set of 4,000 characters of Shakespeare."""
    # not at the top: it imports the project, and with it perhaps Triton
    from helpers import shakespeare
    return shakespeare(tmp_path_factory.mktemp('data') / 'tiny')


@pytest.fixture
def somewhere_else(tmp_path, monkeypatch):
    """Changes into an empty folder, for tests that write out-ab/."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def drop(tmp_path, monkeypatch):
    """drop('mine', source) puts a file variants/mine.py beside the others until the test ends."""
    import core.assemble
    import variants

    present, dropped = core.assemble.variant_names, []
    monkeypatch.setattr(variants, '__path__', [*variants.__path__, str(tmp_path)])
    monkeypatch.setattr(core.assemble, 'variant_names', lambda: sorted({*present(), *dropped}))

    def write(name, source):
        (tmp_path / f'{name}.py').write_text(textwrap.dedent(source))
        dropped.append(name)
        importlib.invalidate_caches()

    yield write
    for name in dropped:
        sys.modules.pop(f'variants.{name}', None)
