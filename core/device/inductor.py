"""Settings of torch.compile for CUDA, and passes over its graphs. ENABLED = False turns all passes off.

| pass              | replaces                       | by                            | to save         |
|-------------------|--------------------------------|-------------------------------|-----------------|
| gelu_patterns     | F.gelu and its gradient,       | a polynomial and exp2,        | arithmetic that |
|                   | 36 and 51 instructions         | 17 and 23 instructions        | copies wait for |
| cast_together     | autocast's copies of weights,  | core::cast, a launch for all  | launches        |
|                   | a launch each                  |                               |                 |
| float32_gradients | a weight's gradient in half    | a product that leaves float32 | a launch and    |
|                   | precision, its copy to float32 |                               | a rounding      |
| small_products    | cuBLAS's products of at most   | core::matmul, which leaves    | waiting, where  |
|                   | 2^26 multiply-adds             | room on a multiprocessor      | models train at |
|                   |                                |                               | the same time   |

They need torch 2.10: custom passes before and after those of the joint graph (torch._inductor.config).
"""
import functools
import operator
import os
from pathlib import Path

import torch
from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files

ENABLED = True
aten, prims = torch.ops.aten, torch.ops.prims

# Coefficients, constant first, of a minimax polynomial for log2 of the normal distribution's lower tail from
# 0 to 9. It changes GELU by at most 1e-8.
LOG2_TAIL = (-9.99999904e-1, -1.15110973, -4.59172233e-1, -5.26030180e-2, 7.21635495e-3, -2.53415172e-4,
             -1.38095593e-4, 2.92733228e-5, -1.99199469e-6)

# multiply-adds of a product that does not fill a GPU: 768 rows of 128 by 128 x 512 take 50 million
SMALL_PRODUCT = 2 ** 26


def configure_compile(index):
    """Sets what torch.compile does for CUDA device `index`, in this process."""
    from torch._functorch import config as functorch
    from torch._inductor import config as inductor
    from torch._inductor.runtime.cache_dir_utils import triton_cache_dir

    if ENABLED:
        inductor.joint_custom_pre_pass, inductor.joint_custom_post_pass = BeforePadding(), AfterPadding()
    # two kernels compute a norm's two gradients faster than one
    if hasattr(inductor.triton, 'mix_order_reduction'):
        inductor.triton.mix_order_reduction = False
    # two loops over a row, the second from the cache, compute softmax faster than one
    inductor.online_softmax = False
    # unpadded, sizes that are no multiple of 8, such as a vocabulary of 65, miss fast tensor-core kernels
    inductor.force_shape_pad = True
    # how sums are split must not depend on a timing in each process: another order gives other bits
    inductor.dynamic_scale_rblock = False
    # from torch 2.13 on, these settings hold only in this thread, so backward must be compiled in it too
    functorch.force_non_lazy_backward_lowering = True
    # Inductor sets these two when it compiles, but not when its cache has everything: then the kernels of
    # core/kernels would be looked for elsewhere, and compiled again
    os.environ.setdefault('TRITON_CACHE_DIR', triton_cache_dir(index))
    ptxas = Path(torch.__file__).parent / 'bin' / 'ptxas'
    if ptxas.exists():
        os.environ.setdefault('TRITON_PTXAS_PATH', str(ptxas))


class AfterPadding(CustomGraphPass):
    """Passes over the joint graph of forward and backward, before it is split, or over forward alone."""

    def __call__(self, graph):
        gelu_patterns().apply(graph)
        cast_together(graph)
        float32_gradients(graph)

    def uuid(self):
        return get_hash_for_files((__file__,))


class BeforePadding(CustomGraphPass):
    """Passes that must see products before their sizes are padded for cuBLAS."""

    def __call__(self, graph):
        small_products(graph)

    def uuid(self):
        return get_hash_for_files((__file__,), 'before padding')


# -----------------------------------------------------------------------------
# GELU and its gradient, in which arithmetic takes longer than memory traffic

def erf_and_one(x):
    """Returns twice the normal distribution function of x, as in F.gelu: 36 instructions, 51 in backward."""
    return torch.erf(x * 0.7071067811865476) + 1


def erf_and_one_by_exp2(x):
    """Returns erf_and_one(x) by a polynomial and exp2: then F.gelu has 17 instructions, 23 in backward.

    For x < 0, 1 + erf cancels and loses what is below 6e-8. This does not.
    """
    z = x.abs()
    log2 = LOG2_TAIL[-1] * z + LOG2_TAIL[-2]
    for c in LOG2_TAIL[-3:0:-1]:
        log2 = log2 * z + c
    twice = torch.exp2(log2 * z + (LOG2_TAIL[0] + 1))
    return torch.where(x > 0, 2 - twice, twice)


def density(x):
    """Returns the normal density at x times sqrt(2 pi), as PyTorch computes it."""
    return torch.exp(x * x * -0.5)


def density_by_exp2(x):
    """Returns density(x) by exp2, which GPUs have an instruction for."""
    return torch.exp2(x * x * -0.7213475204444817) # half of log2(e)


@functools.cache
def gelu_patterns():
    """Returns the pass that replaces erf_and_one and density in float32."""
    # importing this takes half a second, which a run with a warm cache saves
    from torch._inductor.pattern_matcher import PatternMatcherPass, fwd_only, register_replacement
    patterns = PatternMatcherPass()
    for definition, fast in (erf_and_one, erf_and_one_by_exp2), (density, density_by_exp2):
        register_replacement(definition, fast, [torch.empty(2, 2)], fwd_only, patterns,
                             extra_check=lambda match: match.kwargs['x'].meta['val'].dtype == torch.float32)
    return patterns


# -----------------------------------------------------------------------------
# autocast's copies of weights, each of which Inductor makes by a launch of its own

@torch.library.custom_op('core::cast', mutates_args=())
def cast(weights: list[torch.Tensor], dtype: torch.dtype) -> list[torch.Tensor]:
    """Returns the weights in another dtype, by one kernel for all of them."""
    copies = [torch.empty_like(w, dtype=dtype) for w in weights]
    torch._foreach_copy_(copies, weights)
    return copies


@cast.register_fake
def _(weights, dtype):
    return [torch.empty_like(w, dtype=dtype) for w in weights]


def cast_together(graph):
    """Makes core::cast copy all matrices among a graph's inputs that the graph casts to half precision."""
    # tangents, the inputs of backward, are not weights
    inputs = [node for node in graph.find_nodes(op='placeholder') if not node.name.startswith('tangents')]
    for dtype in torch.bfloat16, torch.float16:
        conversions = graph.find_nodes(op='call_function', target=prims.convert_element_type.default)
        casts = [node for node in conversions
                 if node.args[0] in inputs and node.args[1] == dtype and node.meta['val'].ndim == 2]
        if len(casts) < 2:
            continue
        with graph.inserting_after(inputs[-1]):
            weights = [node.args[0] for node in casts]
            copies = graph.call_function(torch.ops.core.cast.default, (weights, dtype))
        copies.meta['val'] = [node.meta['val'] for node in casts]
        for n, node in enumerate(casts):
            with graph.inserting_before(node):
                copy = graph.call_function(operator.getitem, (copies, n))
            copy.meta.update(node.meta)
            node.replace_all_uses_with(copy)
            graph.erase_node(node)


# -----------------------------------------------------------------------------
# gradients of weights, which autocast rounds to half precision and Inductor copies to float32, a launch each

def float32_gradients(graph):
    """Makes products put out float32 where they sum over rows, as weights' gradients do, and are cast to it.

    This is for CUDA: products on a CPU cannot.
    """
    for node in graph.find_nodes(op='call_function', target=prims.convert_element_type.default):
        product, dtype = node.args
        if dtype != torch.float32 or product.target is not aten.mm.default or len(product.users) > 1:
            continue
        rows, columns = product.args
        value = product.meta['val']
        # a transposed left factor marks a sum over rows
        if rows.target is aten.permute.default and value.dtype.itemsize == 2 and value.device.type == 'cuda':
            with graph.inserting_before(node):
                wide = graph.call_function(aten.mm.dtype, (rows, columns, dtype))
            wide.meta.update(node.meta)
            node.replace_all_uses_with(wide)
            graph.erase_node(node)
            graph.erase_node(product)


# -----------------------------------------------------------------------------
# small products, for which cuBLAS takes a whole GPU

@torch.library.custom_op('core::matmul', mutates_args=())
def matmul(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Returns a @ b (M, N) in half precision, by core/kernels/matmul.py."""
    from core.kernels import matmul as kernels  # Triton
    return kernels.matmul(a, b)


@matmul.register_fake
def _(a, b):
    return a.new_empty(a.size(0), b.size(1))


def small_products(graph):
    """Makes core::matmul compute small products in half precision. Sums over rows leave room already."""
    for node in graph.find_nodes(op='call_function', target=aten.mm.default):
        rows, value = node.args[0], node.meta['val']
        small = value.numel() * rows.meta['val'].size(1) <= SMALL_PRODUCT
        sums_over_rows = rows.target is aten.permute.default
        if small and not sums_over_rows and value.dtype.itemsize == 2 and value.device.type == 'cuda':
            node.target = torch.ops.core.matmul.default
