"""Triton's interpreter, which tests/conftest.py turns on without a GPU, made to round as a GPU does."""
import pytest
import torch

try:
    import triton
except ImportError:
    if torch.cuda.is_available():
        raise
    triton = None # on a CPU nothing else needs it

# Triton 3.6's interpreter fails on NumPy 2.4
usable = triton is not None and [int(n) for n in triton.__version__.split('.')[:2]] >= [3, 7]
interpreted = pytest.mark.skipif(torch.cuda.is_available() or not usable,
                                 reason="needs Triton 3.7's interpreter and no GPU")


def fuse_multiply_adds(monkeypatch):
    """Adds to a product before it is rounded, as a GPU does: x * y - (x * y) need not be 0."""
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    def multiply(self, one, two):
        handle = TensorHandle(one.data * two.data, one.dtype.scalar)
        handle.exact = one.data.astype('float64') * two.data
        return handle

    def fused(f):
        def add_or_subtract(self, one, two):
            product = next((x for x in (one, two) if hasattr(x, 'exact')), None)
            if product is None or one.data.dtype != 'float32':
                return f(self, one, two)
            data = (x.exact if x is product else x.data.astype('float64') for x in (one, two))
            wide = (TensorHandle(x, triton.language.float64) for x in data)
            return TensorHandle(f(self, *wide).data.astype('float32'), one.dtype.scalar)
        return add_or_subtract

    monkeypatch.setattr(InterpreterBuilder, 'create_fmul', multiply)
    for name in ('create_fadd', 'create_fsub'):
        monkeypatch.setattr(InterpreterBuilder, name, fused(getattr(InterpreterBuilder, name)))


def multiply_bfloat16(monkeypatch):
    """Multiplies matrices in bfloat16; the interpreter multiplies the integers that have the same bits."""
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    bfloat16, float32 = triton.language.bfloat16, triton.language.float32
    dot = InterpreterBuilder.create_dot

    def widen(x):
        if x.dtype != bfloat16:
            return x
        return TensorHandle((x.data.astype('uint32') << 16).view('float32'), float32)

    monkeypatch.setattr(InterpreterBuilder, 'create_dot',
                        lambda self, a, b, *args: dot(self, widen(a), widen(b), *args))
