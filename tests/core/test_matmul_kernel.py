"""core/kernels/matmul.py beside float64: interpreted on a CPU, and on a GPU."""
import pytest
import torch
from triton_interpreter import interpreted

BOUNDS = [(torch.float16, 2 ** -10), (torch.bfloat16, 2 ** -7)]


def error(M, K, N, dtype, device='cpu'):
    """Returns the norm of the difference over the norm, the larger of a forward and a backward product's."""
    from core.kernels.matmul import matmul  # Triton
    g = torch.Generator().manual_seed(M * N + K)
    normal = lambda *size: torch.randn(size, generator=g).to(device, dtype)
    a, forward, backward = normal(M, K), normal(N, K), normal(K, N)
    found = []
    for b in forward.t(), backward:
        y, exact = matmul(a, b), a.double() @ b.double()
        assert y.dtype == dtype and y.is_contiguous() and torch.equal(y, matmul(a, b))
        found.append(((y.double() - exact).norm() / exact.norm()).item())
    return max(found)


@interpreted
@pytest.mark.parametrize('M, K, N', [(1, 1, 1), (65, 65, 33), (64, 320, 32), (130, 128, 256), (40, 72, 300)])
@pytest.mark.parametrize('dtype, bound', BOUNDS)
def test_interpreted_products_equal_float64(M, K, N, dtype, bound, bfloat16_products):
    assert error(M, K, N, dtype) < bound


@pytest.mark.gpu
@pytest.mark.parametrize('M, K, N', [(1, 1, 1), (65, 65, 33), (768, 128, 384), (768, 128, 65), (768, 65, 128),
                                     (768, 512, 128), (2048, 300, 99)])
@pytest.mark.parametrize('dtype, bound', BOUNDS)
def test_products_equal_float64(M, K, N, dtype, bound):
    assert error(M, K, N, dtype, 'cuda') < bound
