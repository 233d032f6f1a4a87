"""For all tests: scripts import from a checkout, a variant can be dropped in, tests on a GPU start alike."""
import gc
import importlib
import os
import sys
import textwrap

import pytest
import torch

# Triton, if there at all, must know before its first import that it is to interpret
if not torch.cuda.is_available():
    os.environ.setdefault('TRITON_INTERPRET', '1')


@pytest.fixture(autouse=True)
def the_same_path_for_every_test(monkeypatch):
    """A prepare.py puts its own repository in front of the path, in a test a copy in a temporary folder."""
    monkeypatch.setattr(sys, 'path', list(sys.path))


@pytest.fixture(autouse=True)
def gpu_tests_start_alike(request, monkeypatch):
    """Keeps what a test on a GPU leaves in its process from the next one, so that they pass in any order.

    That is what torch.compile has compiled and learnt of sizes, the settings and environment that machine()
    gives it, the precision of float32, the default generators, and memory left to the garbage collector.
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
            monkeypatch.delenv(name) # and again when the test ends
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


@pytest.fixture
def drop(tmp_path, monkeypatch):
    """drop('mine', source): a file variants/mine.py beside the others until the test ends."""
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
