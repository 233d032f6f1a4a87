"""core/device/inductor.py's passes, on graphs as torch.compile makes them: the same numbers, less to do."""
import copy

import pytest
import torch
import torch.nn.functional as F
from torch._inductor import config as inductor
from torch._inductor.decomposition import select_decomp_table
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from core.device import inductor as passes


def trace(f, *args):
    """Returns the graph module of f as torch.compile has it before its passes."""
    return make_fx(f, decomposition_table=select_decomp_table())(*args)


def trace_for(device, dtype, f, *sizes):
    """Returns the graph of f for tensors of these sizes on a device, which need not be there."""
    with FakeTensorMode():
        return trace(f, *(torch.empty(size, device=device, dtype=dtype) for size in sizes)).graph


def apply(change, module):
    """Returns the graph module after a pass over its graph."""
    module = copy.deepcopy(module)
    change(module.graph)
    module.graph.lint()
    module.recompile()
    return module


GELU_BOUNDS = [(torch.float32, 2e-7), (torch.bfloat16, 2 ** -8), (torch.float64, 1e-14)]


def gelu_inputs(dtype):
    """Returns x and dy."""
    special = torch.tensor([0.0, -0.0, 40.0, -40.0, 1e-30, 3e38, -3e38])
    x = torch.cat([torch.linspace(-12, 12, 50_001), special])
    return x.to(dtype), torch.rand(len(x), generator=torch.Generator().manual_seed(1)).to(dtype)


def assert_gelu(x, dy, results, bound):
    """Asserts that results (y, dx) are those of float64 within bound, relative to the number or 1.

    PyTorch's own in float32 are off by 2.6e-7.
    """
    x64 = x.detach().double().requires_grad_()
    y = F.gelu(x64)
    for name, a, b in zip(('y', 'dx'), results, (y, *torch.autograd.grad(y, x64, dy.double())), strict=True):
        error = (a.double() - b).abs() / b.abs().clamp(min=1)
        assert error.max() < bound, (name, x[error.argmax()], error.max())


@pytest.mark.parametrize('dtype, bound', GELU_BOUNDS)
def test_gelu_and_its_gradient_are_gelus(dtype, bound):
    """In float64 nothing is changed."""
    x, dy = gelu_inputs(dtype)

    def f(x, dy):
        x.requires_grad_()
        y = F.gelu(x)
        return y.detach(), *torch.autograd.grad(y, x, dy)

    module = trace(f, x, dy)
    fast = apply(passes.gelu_patterns().apply, module)
    assert_gelu(x, dy, fast(x, dy), bound)
    changed = any(not torch.equal(a, b) for a, b in zip(fast(x, dy), module(x, dy)))
    assert changed == (dtype != torch.float64)


def compile_with_passes(f, leaves, dy=None, after_padding=passes.AfterPadding):
    """Returns f's output and the leaves' gradients, by torch.compile."""
    torch._dynamo.reset()
    with inductor.patch(joint_custom_post_pass=after_padding(), force_disable_caches=True):
        y = torch.compile(f, fullgraph=True)()
        return y.detach(), *torch.autograd.grad(y, leaves, dy)


@pytest.mark.slow
@pytest.mark.parametrize('dtype, bound', GELU_BOUNDS)
def test_compiled_gelu_and_its_gradient_are_gelus(dtype, bound):
    x, dy = gelu_inputs(dtype)
    x.requires_grad_()
    assert_gelu(x, dy, compile_with_passes(lambda: F.gelu(x), [x], dy), bound)


def half(x):
    return x.to(torch.bfloat16)


def two_layers(x, one, two):
    return half(half(half(x) @ half(one)) @ half(two)).float()


def layer_inputs():
    return [torch.randn(8, 8, generator=torch.Generator().manual_seed(n)) for n in range(4)]


def test_weights_are_cast_at_once():
    """To the same bits."""
    *args, _ = layer_inputs()
    module = trace(two_layers, *args)
    once = apply(passes.cast_together, module)
    casts = lambda module, target: len(module.graph.find_nodes(op='call_function', target=target))
    assert casts(module, torch.ops.core.cast.default) == 0 and casts(once, torch.ops.core.cast.default) == 1
    assert torch.equal(once(*args), module(*args))


@pytest.mark.slow
def test_compiled_gradients_are_those_without_passes():
    *leaves, dy = layer_inputs()
    for leaf in leaves:
        leaf.requires_grad_()
    results = [compile_with_passes(lambda: two_layers(*leaves), leaves, dy, after_padding)
               for after_padding in (lambda: None, passes.AfterPadding)]
    assert all(map(torch.equal, *results))


def test_gradients_of_weights_leave_their_products_in_float32():
    """In a graph for CUDA: no copy of a gradient is left, and what forward rounds is rounded as before."""
    def f(x, weight, dy):
        y = half(x) @ half(weight).t()
        return y.float(), (half(dy).t() @ half(x)).float()

    graph = trace_for('cuda', torch.float32, f, (64, 8), (16, 8), (64, 16))
    passes.float32_gradients(graph)
    logits, gradient = graph.output_node().args[0]
    assert logits.target is torch.ops.prims.convert_element_type.default
    assert gradient.target is torch.ops.aten.mm.dtype and gradient.args[2] == torch.float32
    assert gradient.meta['val'].shape == (16, 8) and gradient.meta['val'].dtype == torch.float32


@pytest.mark.parametrize('rows, dtype, device, small', [
    (768, torch.bfloat16, 'cuda', True), (768, torch.float16, 'cuda', True),
    (768, torch.float32, 'cuda', False), (768, torch.bfloat16, 'cpu', False),
    (16384, torch.bfloat16, 'cuda', False)])
def test_small_products_leave_room_for_others(rows, dtype, device, small):
    """A layer 128 wide: the output and the input's gradient, in half precision on a GPU; not the weight's."""
    layer = lambda x, weight, dy: (x @ weight.t(), dy @ weight, dy.t() @ x)
    graph = trace_for(device, dtype, layer, (rows, 128), (512, 128), (rows, 512))
    passes.small_products(graph)
    by_kernel = [y.target is torch.ops.core.matmul.default for y in graph.output_node().args[0]]
    assert by_kernel == [small, small, False]
