"""core/device/machine.py: the meaning of 'auto', refusals, precision, peaks, and settings of torch.compile."""
import contextlib
import importlib.util
import os

import pytest
import torch
from torch._dynamo.backends.common import aot_autograd
from torch._functorch import config as functorch
from torch._inductor import config as inductor

from core.device import inductor as inductor_settings
from core.device.machine import Machine, machine
from core.errors import BAD_INPUT, Stop


def refusal(*args):
    """Returns the message of the Stop that machine(*args) ends in."""
    with pytest.raises(Stop) as stop:
        machine(*args)
    assert stop.value.code == BAD_INPUT
    return str(stop.value)


@pytest.fixture
def gpus(monkeypatch):
    """gpus(2) makes this a machine with two GPUs."""
    def set_count(n):
        monkeypatch.setattr(torch.cuda, 'is_available', lambda: n > 0)
        monkeypatch.setattr(torch.cuda, 'device_count', lambda: n)
        monkeypatch.setattr(torch.cuda, 'set_device', lambda index: None)
        monkeypatch.setattr(torch.cuda, 'is_bf16_supported', lambda: True)
        monkeypatch.setattr(torch.backends.mps, 'is_available', lambda: False)
    return set_count


def test_without_a_gpu(gpus, monkeypatch):
    gpus(0)
    for amx in True, False:
        monkeypatch.setattr(torch.cpu, '_is_amx_tile_supported', lambda amx=amx: amx)
        assert machine() == machine('cpu') == Machine('cpu', 'cpu', 'bfloat16' if amx else 'float32', False)
        assert machine('cpu', decoding=True) == Machine('cpu', 'cpu', 'float32', False)
    assert machine('cpu', 'float32') == Machine('cpu', 'cpu', 'float32', False)
    assert machine('cpu', 'bfloat16', True) == Machine('cpu', 'cpu', 'bfloat16', True)
    for name in 'cuda', 'cuda:0', 'mps', 'tpu', 'cpu:1', 'cpu:', 'cpu:00', 'cpu:²', 'cpu:٠', 'cuda:x', 'cuda:-1', '':
        assert refusal(name) == f'device={name}: not on this machine; allowed: auto, cpu'


@pytest.fixture
def settings():
    """Restores torch.compile's settings, which machine() changes, after the test."""
    with inductor.patch(inductor.get_config_copy()), functorch.patch(functorch.get_config_copy()):
        yield


def test_with_gpus(gpus, settings, monkeypatch):
    gpus(2)
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: name) # Triton is installed
    monkeypatch.setattr(os, 'environ', {})
    assert machine() == machine(decoding=True) == Machine('cuda', 'cuda', 'bfloat16', True)
    assert machine('cuda:1') == Machine('cuda:1', 'cuda', 'bfloat16', True)
    assert machine('cuda:1', 'float32', False) == Machine('cuda:1', 'cuda', 'float32', False)
    assert refusal('cuda:2') == 'device=cuda:2: not on this machine; allowed: auto, cpu, cuda:0, cuda:1'
    monkeypatch.setattr(torch.cuda, 'is_bf16_supported', lambda: False)
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    assert machine() == Machine('cuda', 'cuda', 'float16', False)
    missing = 'compile=True: on CUDA that needs Triton, which is not installed; allowed: auto, False'
    assert refusal('cuda', 'auto', True) == missing


def test_compilation_on_a_cpu_needs_a_compiler():
    with inductor.patch({'cpp.cxx': ('no-such-compiler',)}):
        assert refusal('cpu', 'float32', True) == ('compile=True: on a CPU that needs a C++ compiler, such as g++, '
                                                   'which is not installed; allowed: auto, False')
        assert machine('cpu', 'float32', False) == machine('cpu', 'float32') == Machine('cpu', 'cpu', 'float32', False)


def test_a_warm_start_finds_our_kernels(settings, monkeypatch, tmp_path):
    """They are where Inductor's are, by the same assembler, whoever compiles first; users' settings stay."""
    monkeypatch.setattr(os, 'environ', environ := dict(TORCHINDUCTOR_CACHE_DIR=str(tmp_path)))
    monkeypatch.setattr(torch, '__file__', str(tmp_path / '__init__.py'))
    inductor_settings.configure_compile(1)
    assert environ['TRITON_CACHE_DIR'] == str(tmp_path / 'triton' / '1')
    assert 'TRITON_PTXAS_PATH' not in environ # this PyTorch brings none
    ptxas = tmp_path / 'bin' / 'ptxas'
    ptxas.parent.mkdir()
    ptxas.touch()
    inductor_settings.configure_compile(0)
    assert environ['TRITON_CACHE_DIR'] == str(tmp_path / 'triton' / '1')
    assert environ['TRITON_PTXAS_PATH'] == str(ptxas)
    environ['TRITON_PTXAS_PATH'] = 'mine'
    inductor_settings.configure_compile(0)
    assert environ['TRITON_PTXAS_PATH'] == 'mine'


def test_backward_is_compiled_before_it_runs(settings, monkeypatch):
    """A GPU's backward runs in another thread, where torch 2.13 knows nothing of what was set in this one."""
    for name in 'TRITON_CACHE_DIR', 'TRITON_PTXAS_PATH':
        monkeypatch.setenv(name, 'nowhere') # what is set stays as it is
    compiled = []

    def compiler(name):
        return lambda module, inputs: (compiled.append(name), module)[1]

    backend = aot_autograd(fw_compiler=compiler('forward'), bw_compiler=compiler('backward'))
    for configure, expected in ((lambda: None), ['forward']), \
                               ((lambda: inductor_settings.configure_compile(0)), ['forward', 'backward']):
        configure()
        compiled.clear()
        torch._dynamo.reset()
        torch.compile(torch.sin, backend=backend)(torch.ones(5, requires_grad=True))
        assert compiled == expected


PEAK = { # dense TFLOP/s in bfloat16, or float16 where there is no bfloat16, from the data sheets
    'NVIDIA H100 80GB HBM3': 989, 'NVIDIA H100 PCIe': 756, 'NVIDIA H100 NVL': 835, 'NVIDIA H200': 989,
    'NVIDIA H200 NVL': 835, 'NVIDIA GH200 480GB': 989, 'NVIDIA B200': 2250, 'NVIDIA A100-SXM4-40GB': 312,
    'NVIDIA A100 80GB PCIe': 312, 'NVIDIA A10': 125, 'NVIDIA A10G': 70, 'NVIDIA A40': 149.7,
    'NVIDIA A30': 165, 'NVIDIA RTX A6000': 154.8, 'NVIDIA L4': 121, 'NVIDIA L40': 181, 'NVIDIA L40S': 362,
    'NVIDIA GeForce RTX 4090': 165.2, 'NVIDIA GeForce RTX 3090': 71, 'Tesla V100-SXM2-16GB': 125,
    'Tesla T4': 65,
}
UNKNOWN = [ # most are named almost like one above, and are another chip
    'NVIDIA H20', 'NVIDIA GB200', 'NVIDIA T400 4GB', 'NVIDIA RTX A1000', 'NVIDIA RTX A3000 Laptop GPU',
    'NVIDIA RTX A4000', 'NVIDIA GeForce RTX 3080 Ti', 'NVIDIA GeForce RTX 4080 SUPER',
    'NVIDIA GeForce RTX 4090 Laptop GPU', 'NVIDIA GeForce GTX 1080', 'AMD Instinct MI300X',
]


@pytest.mark.parametrize('name', [*PEAK, *UNKNOWN])
def test_peak(monkeypatch, name):
    monkeypatch.setattr(torch.cuda, 'get_device_name', lambda device: name)
    tflops = PEAK.get(name)
    for dtype in 'bfloat16', 'float16':
        assert Machine('cuda:0', 'cuda', dtype, True).peak_flops() == (tflops and tflops * 1e12)
    assert Machine('cuda:0', 'cuda', 'float32', True).peak_flops() is None # not what the table is about
    assert Machine('cpu', 'cpu', 'bfloat16', False).peak_flops() is None


def test_autocast_is_for_matrix_products():
    x, w = torch.randn(2, 4), torch.randn(4, 4)
    for dtype in 'float32', 'bfloat16', 'float16':
        with Machine('cpu', 'cpu', dtype, False).autocast():
            y = x @ w
            assert (y.dtype, (x + 1).dtype) == (getattr(torch, dtype), torch.float32)


def test_tf32_is_for_whoever_asks():
    """PyTorch's setting is the whole process's: it is as before afterwards, after an error too."""
    m, matmul = Machine('cuda:0', 'cuda', 'float32', False), torch.backends.cuda.matmul
    before = matmul.fp32_precision
    for context in m.tf32, m.precision:
        with contextlib.suppress(ZeroDivisionError), context():
            assert matmul.fp32_precision == torch.backends.cudnn.fp32_precision == 'tf32' != before
            raise ZeroDivisionError
        assert matmul.fp32_precision == before
    with Machine('cpu', 'cpu', 'float32', False).precision():
        assert matmul.fp32_precision == before


def test_memory_is_a_plausible_number():
    assert 50e6 < machine('cpu').peak_bytes() < 1e12
