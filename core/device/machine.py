"""What this machine can do: device, dtype, compile, each 'auto' or as asked."""
import importlib.util
import os
import re
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch

from core.errors import Stop

# Dense tensor-core peaks in TFLOP/s, bfloat16 with float32 accumulation (float16 where there is no bfloat16), from the makers'
# data sheets without sparsity. First match wins. A device that is not listed has no MFU: give --peak_tflops.
PEAKS = [
    ('B200', 2250), ('GH200', 989), ('H200 NVL', 835), ('H200', 989),
    ('H100 PCIe', 756), ('H100 NVL', 835), ('H100', 989), ('H800', 989),
    ('A100', 312), ('A800', 312), ('A40', 149.7), ('A30', 165), ('A10G', 70), ('A10', 125), ('RTX A6000', 154.8),
    ('L40S', 362), ('L40', 181), ('L4', 121), ('RTX 4090', 165.2), ('RTX 4080', 97.5), ('RTX 3090', 71), ('RTX 3080', 59.5),
    ('V100', 125), ('T4', 65),
]


@dataclass
class Machine:
    """device: 'cuda:0', 'mps', 'cpu'; type: its kind; dtype: 'float32', 'bfloat16' or 'float16'; compile: whether to."""
    device: str
    type: str
    dtype: str
    compile: bool

    @property
    def name(self):
        return torch.cuda.get_device_name(self.device) if self.type == 'cuda' else self.type

    def autocast(self):
        """Matrix products in dtype; weights, the residual stream and reductions stay float32."""
        return nullcontext() if self.dtype == 'float32' else torch.autocast(self.type, getattr(torch, self.dtype))

    def peak_flops(self):
        """FLOP/s of the tensor cores, or None where we do not know."""
        if self.dtype == 'float32':
            return None
        tflops = next((t for name, t in PEAKS if re.search(rf'\b{name}\b(?! (Ti|SUPER|Laptop))', self.name)), None)
        return tflops and tflops * 1e12

    def synchronize(self):
        if self.type != 'cpu':
            getattr(torch, self.type).synchronize()

    def peak_bytes(self):
        """The most memory the tensors took on a GPU; on a CPU, of the whole process."""
        if self.type == 'cuda':
            return torch.cuda.max_memory_allocated(self.device)
        if importlib.util.find_spec('resource') is None: # Windows
            return None
        import resource
        import sys
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == 'darwin' else 1024)


def machine(device='auto', dtype='auto', compile='auto', decoding=False):
    """The Machine for these options, to train on or for decoding; 'auto' takes the best there is, an impossible wish is a Stop."""
    if device == 'auto':
        device = 'cuda' if torch.cuda.is_available() else 'mps' if torch.backends.mps.is_available() else 'cpu'
    type = device.split(':')[0]
    there = dict(cpu=1, cuda=torch.cuda.device_count(), mps=int(torch.backends.mps.is_available()))
    index = device[len(type) + 1:] or '0'
    if type not in there or not index.isdigit() or int(index) >= there[type]:
        have = [f'{name}:{i}' if name == 'cuda' else name for name, n in there.items() for i in range(n)]
        raise Stop(f"device={device}: not on this machine; allowed: auto, {', '.join(have)}")
    if type == 'cuda':
        torch.cuda.set_device(int(index))
        torch.backends.cuda.matmul.fp32_precision = torch.backends.cudnn.fp32_precision = 'tf32' # what stays float32, stays fast
    if dtype == 'auto':
        if type == 'cuda':
            dtype = 'bfloat16' if torch.cuda.is_bf16_supported() else 'float16'
        else: # AMX, a server CPU's matrix unit, trains 1.4 to 3 times faster; casting every weight for one token takes longer
            dtype = 'bfloat16' if type == 'cpu' and torch.cpu._is_amx_tile_supported() and not decoding else 'float32'
    triton = importlib.util.find_spec('triton') is not None
    if compile == 'auto': # on a CPU a compilation costs more than a short run gains
        compile = type == 'cuda' and triton
    if compile and type == 'cuda':
        if not triton:
            raise Stop('compile=True: on CUDA that needs Triton, which is not installed; allowed: auto, False')
        set_compiler(int(index))
    return Machine(device, type, dtype, compile)


def set_compiler(index):
    """What torch.compile is told for CUDA device `index`."""
    from torch._functorch import config as functorch
    from torch._inductor import config as inductor
    from torch._inductor.runtime.cache_dir_utils import triton_cache_dir

    from core.device.inductor import FirstPasses, Passes
    if hasattr(inductor.triton, 'mix_order_reduction'): # a norm's two gradients in one kernel, slower than two (LOG.md)
        inductor.triton.mix_order_reduction = False
    inductor.online_softmax = False # two loops over a row, the second from the cache: 1.9 ms of GPT-2's loss instead of 2.5
    inductor.joint_custom_pre_pass, inductor.joint_custom_post_pass = FirstPasses(), Passes()
    inductor.force_shape_pad = True # sizes that are no multiple of 8, as a vocabulary of 65, miss the tensor cores' fast paths
    inductor.dynamic_scale_rblock = False # one more way to split a sum, timed in each process anew: another order, other bits
    functorch.force_non_lazy_backward_lowering = True # from torch 2.13 on all of this holds in this thread, not in backward's
    # Inductor sets these two as soon as it compiles, and a warm start does not: our kernels would be compiled for it once more.
    os.environ.setdefault('TRITON_CACHE_DIR', triton_cache_dir(index))
    ptxas = Path(torch.__file__).parent / 'bin' / 'ptxas'
    if ptxas.exists():
        os.environ.setdefault('TRITON_PTXAS_PATH', str(ptxas))
