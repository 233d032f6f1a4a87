"""Chooses the device, the dtype and compilation that a script runs with."""
import importlib.util
import re
import sys
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch

from core.errors import Stop

# Dense tensor-core peaks in TFLOP/s, bfloat16 with float32 accumulation (float16 where there is no
# bfloat16), from the makers' data sheets, without sparsity, e.g.
# https://www.nvidia.com/en-us/data-center/h200/ (989 = 1,979 / 2). The first match wins. A device that is not
# listed has no MFU: give --peak_tflops.
PEAKS = [
    ('B200', 2250), ('GH200', 989), ('H200 NVL', 835), ('H200', 989),
    ('H100 PCIe', 756), ('H100 NVL', 835), ('H100', 989), ('H800', 989),
    ('A100', 312), ('A800', 312), ('A40', 149.7), ('A30', 165), ('A10G', 70), ('A10', 125),
    ('RTX A6000', 154.8), ('L40S', 362), ('L40', 181), ('L4', 121),
    ('RTX 4090', 165.2), ('RTX 4080', 97.5), ('RTX 3090', 71), ('RTX 3080', 59.5),
    ('V100', 125), ('T4', 65),
]


@dataclass
class Machine:
    device: str     # 'cuda:0', 'mps', 'cpu'
    type: str       # 'cuda', 'mps', 'cpu'
    dtype: str      # of matrix products: 'float32', 'bfloat16' or 'float16'
    compile: bool

    @property
    def name(self):
        return torch.cuda.get_device_name(self.device) if self.type == 'cuda' else self.type

    def autocast(self):
        """Returns a context with matrix products in dtype; weights, residual stream and sums stay float32."""
        if self.dtype == 'float32':
            return nullcontext()
        return torch.autocast(self.type, getattr(torch, self.dtype))

    @contextmanager
    def tf32(self):
        """A context in which CUDA computes float32 products in tf32; the process's setting is restored."""
        if self.type != 'cuda':
            yield
            return
        backends = torch.backends.cuda.matmul, torch.backends.cudnn
        outside = [backend.fp32_precision for backend in backends]
        try:
            for backend in backends:
                backend.fp32_precision = 'tf32'
            yield
        finally:
            for backend, precision in zip(backends, outside, strict=True):
                backend.fp32_precision = precision

    @contextmanager
    def precision(self):
        """A context for forward passes: products in dtype by autocast(), and those that stay float32 in tf32()."""
        with self.tf32(), self.autocast():
            yield

    def peak_flops(self):
        """Returns the peak FLOP/s of the tensor cores in half precision, or None if it is not known."""
        if self.dtype == 'float32':
            return None
        # other chips have similar names: RTX 3080 Ti, RTX 4080 SUPER, RTX 4090 Laptop GPU
        matches = (t for name, t in PEAKS if re.search(rf'\b{name}\b(?! (Ti|SUPER|Laptop))', self.name))
        tflops = next(matches, None)
        return tflops and tflops * 1e12

    def synchronize(self):
        if self.type != 'cpu':
            getattr(torch, self.type).synchronize()

    def peak_bytes(self):
        """Returns the peak memory in bytes, of tensors on a GPU, else of the process; None on Windows."""
        if self.type == 'cuda':
            return torch.cuda.max_memory_allocated(self.device)
        if importlib.util.find_spec('resource') is None: # Windows
            return None
        import resource
        # in bytes on macOS, in KiB elsewhere
        maxrss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return maxrss * (1 if sys.platform == 'darwin' else 1024)


def machine(device='auto', dtype='auto', compile='auto', decoding=False):
    """Returns the Machine for these options; 'auto' chooses the best available. Stop if one is impossible.

    device: 'auto', 'cpu', 'cuda', 'cuda:1', 'mps'. dtype: 'auto' or as in Machine. compile: 'auto', True or
    False. decoding: the machine decodes one token at a time, and does not train.
    """
    if device == 'auto' and torch.cuda.is_available():
        device = 'cuda'
    elif device == 'auto':
        device = 'mps' if torch.backends.mps.is_available() else 'cpu'
    type, colon, index = device.partition(':')
    count = dict(cpu=1, cuda=torch.cuda.device_count(), mps=int(torch.backends.mps.is_available()))
    index = index if colon else '0'
    # torch.device() takes no other spelling of a number, such as 00 or another alphabet's digits
    if type not in count or index not in map(str, range(count[type])):
        present = [f'{name}:{i}' if name == 'cuda' else name for name, n in count.items() for i in range(n)]
        raise Stop(f"device={device}: not on this machine; allowed: auto, {', '.join(present)}")
    if type == 'cuda':
        torch.cuda.set_device(int(index))

    if dtype == 'auto' and type == 'cuda':
        dtype = 'bfloat16' if torch.cuda.is_bf16_supported() else 'float16'
    elif dtype == 'auto':
        # with AMX, a server CPU's matrix unit, bfloat16 trains 1.4 to 3 times faster; for one token at a
        # time, casting all weights costs more
        amx = type == 'cpu' and torch.cpu._is_amx_tile_supported()
        dtype = 'bfloat16' if amx and not decoding else 'float32'

    triton = importlib.util.find_spec('triton') is not None
    if compile == 'auto':
        # on a CPU compilation costs more time than it saves a short run
        compile = type == 'cuda' and triton
    if compile and type == 'cpu':
        from torch._inductor import cpp_builder, exc
        # where there is none it would be missed in the first iteration
        try:
            cpp_builder.get_cpp_compiler()
        except exc.InvalidCxxCompiler:
            raise Stop('compile=True: on a CPU that needs a C++ compiler, such as g++, which is not installed; '
                       'allowed: auto, False') from None
    if compile and type == 'cuda':
        if not triton:
            raise Stop('compile=True: on CUDA that needs Triton, which is not installed; '
                       'allowed: auto, False')
        # imported here, because it takes a second
        from core.device import inductor
        inductor.configure_compile(int(index))
    return Machine(device, type, dtype, compile)
