"""Fixtures of the kernels' tests."""
import pytest
from triton_interpreter import fuse_multiply_adds, multiply_bfloat16


@pytest.fixture
def multiply_adds(monkeypatch):
    fuse_multiply_adds(monkeypatch)


@pytest.fixture
def bfloat16_products(monkeypatch):
    multiply_bfloat16(monkeypatch)
