"""Fixtures of the kernels' tests."""
import pytest


@pytest.fixture
def multiply_adds(monkeypatch):
    from triton_interpreter import fuse_multiply_adds
    fuse_multiply_adds(monkeypatch)


@pytest.fixture
def bfloat16_products(monkeypatch):
    from triton_interpreter import multiply_bfloat16
    multiply_bfloat16(monkeypatch)
