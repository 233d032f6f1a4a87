"""core/device/inductor.py, on graphs that torch.compile makes for the CPU: the same numbers, and less to do."""
import pytest
import torch
import torch.nn.functional as F
from torch._inductor import config as inductor
from torch._inductor.decomposition import select_decomp_table
from torch._inductor.utils import run_and_get_code
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from core.device import inductor as passes


def compiled(f, leaves, dy=None, changes=True):
    """f's output and the leaves' gradients by torch.compile, and the code it made of forward and of backward."""
    def run():
        y = g()
        return y.detach(), torch.autograd.grad(y, leaves, dy)

    torch._dynamo.reset()
    with inductor.patch(joint_custom_post_pass=passes.AfterPadding() if changes else None, force_disable_caches=True):
        g = torch.compile(f, fullgraph=True)
        (y, grads), code = run_and_get_code(run)
    return (y, *grads), code


@pytest.mark.parametrize('dtype, bound', [(torch.float32, 2e-7), (torch.bfloat16, 2 ** -8), (torch.float64, 1e-14)])
def test_gelu_and_its_gradient_are_gelus(dtype, bound):
    """Beside float64, relative to the number or 1; in float32 PyTorch's own are off by 2.6e-7. In float64 nothing is changed."""
    x = torch.cat([torch.linspace(-12, 12, 50_001), torch.tensor([0.0, -0.0, 40.0, -40.0, 1e-30, 3e38, -3e38])]).to(dtype)
    dy = torch.rand(len(x), generator=torch.Generator().manual_seed(1)).to(dtype)
    leaf, leaf64 = x.requires_grad_(), x.detach().double().requires_grad_()
    ours, code = compiled(lambda: F.gelu(leaf), [leaf], dy)
    assert all(('erf(' in part) == (dtype == torch.float64) for part in code)
    y = F.gelu(leaf64)
    for name, a, b in zip(('y', 'dx'), ours, (y, *torch.autograd.grad(y, leaf64, dy.double())), strict=True):
        error = (a.double() - b).abs() / b.abs().clamp(min=1)
        assert error.max() < bound, (name, x[error.argmax()], error.max())


def test_weights_are_cast_at_once_and_gradients_when_they_come():
    """Bit-equal, with one operator in forward and none in backward."""
    x, *weights = (torch.randn(8, 8, generator=torch.Generator().manual_seed(n)).requires_grad_() for n in range(3))
    half = lambda x: x.to(torch.bfloat16)
    f = lambda: (half(half(x) @ half(weights[0])) @ half(weights[1])).float()
    leaves, dy = [x, *weights], torch.randn(8, 8, generator=torch.Generator().manual_seed(3))
    without, _ = compiled(f, leaves, dy, changes=False)
    once, (forward, backward) = compiled(f, leaves, dy)
    assert forward.count('torch.ops.core.cast.default([') == 1 and 'lab.cast.default' not in backward
    assert all(map(torch.equal, once, without))


def graph_of(f, *sizes, device='cuda', dtype=torch.float32):
    """As torch.compile traces f of tensors of these sizes, without a GPU."""
    with FakeTensorMode():
        args = [torch.empty(size, device=device, dtype=dtype) for size in sizes]
        return make_fx(f, decomposition_table=select_decomp_table())(*args).graph


def test_gradients_of_weights_leave_their_products_in_float32():
    """In a graph for CUDA: no copy of a gradient is left, and what forward rounds is rounded as before."""
    def f(x, weight, dy):
        half = lambda x: x.to(torch.bfloat16)
        y = half(x) @ half(weight).t()
        return y.float(), (half(dy).t() @ half(x)).float()

    graph = graph_of(f, (64, 8), (16, 8), (64, 16))
    passes.float32_gradients(graph)
    logits, gradient = graph.output_node().args[0]
    assert logits.target is torch.ops.prims.convert_element_type.default
    assert gradient.target is torch.ops.aten.mm.dtype and gradient.args[2] == torch.float32
    assert gradient.meta['val'].shape == (16, 8) and gradient.meta['val'].dtype == torch.float32


@pytest.mark.parametrize('rows, dtype, device, small', [
    (768, torch.bfloat16, 'cuda', True), (768, torch.float16, 'cuda', True), (768, torch.float32, 'cuda', False),
    (768, torch.bfloat16, 'cpu', False), (16384, torch.bfloat16, 'cuda', False)])
def test_small_products_leave_room_for_others(rows, dtype, device, small):
    """Of a layer 128 wide its output and its input's gradient, in half precision on a GPU; not its weight's."""
    layer = lambda x, weight, dy: (x @ weight.t(), dy @ weight, dy.t() @ x)
    graph = graph_of(layer, (rows, 128), (512, 128), (rows, 512), device=device, dtype=dtype)
    passes.small_products(graph)
    outputs = graph.output_node().args[0]
    assert [y.target is torch.ops.core.product.default for y in outputs] == [small, small, False]
    assert [y.target is torch.ops.aten.mm.default for y in outputs] == [not small, not small, True]
