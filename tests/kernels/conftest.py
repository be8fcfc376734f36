"""Where the kernels can be run: on a GPU, or in Triton's interpreter (`make test-kernels`)."""

import os

import pytest
import torch


HAS_CUDA = torch.cuda.is_available()
IS_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


@pytest.fixture(scope="session", autouse=True)
def _kernels():
    pytest.importorskip("triton", reason="Triton is not installed: `make test-kernels` installs it")
    if not HAS_CUDA and not IS_INTERPRETED:
        pytest.skip("there is no GPU, and TRITON_INTERPRET=1 is not set: `make test-kernels` sets it")


@pytest.fixture(scope="session")
def device() -> str:
    """Where the kernels are run."""
    return "cpu" if IS_INTERPRETED else "cuda"


@pytest.fixture(autouse=True)
def _products_of_bfloat16(monkeypatch):
    """The interpreter multiplies bfloat16 matrices as the integers that it keeps them as: here as float32."""
    if not IS_INTERPRETED:
        return
    import triton.language as tl
    from triton.runtime.interpreter import InterpreterBuilder

    dot = InterpreterBuilder.create_dot

    def create_dot(self, a, b, *rest):
        a, b = (self.cast_impl(x, tl.float32) if x.dtype.scalar == tl.bfloat16 else x for x in (a, b))
        return dot(self, a, b, *rest)

    monkeypatch.setattr(InterpreterBuilder, "create_dot", create_dot)
