"""Where the kernels can be run: on a GPU, or in Triton's interpreter (`make test-kernels`)."""

import os
import warnings

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


@pytest.fixture
def fla(monkeypatch):
    """
    flash-linear-attention. For the interpreter, each kernel is given one choice of its block sizes, since there is
    no GPU to try them on, and a `range` that yields tensors, since its kernels call a method of the index.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Triton is not supported on current platform", UserWarning)
        pytest.importorskip("fla.ops.simple_gla", reason="flash-linear-attention is not installed")
    if not IS_INTERPRETED:
        return
    from fla.ops.common import chunk_h, chunk_o
    from fla.ops.utils import cumsum
    from triton.runtime import interpreter

    def tensor_range(*bounds):
        numbers = (int(x.handle.data.item()) if hasattr(x, "handle") else int(x) for x in bounds)
        return (interpreter._implicit_cvt(index) for index in range(*numbers))

    for module in (chunk_h, chunk_o, cumsum):
        monkeypatch.setattr(module, "range", tensor_range, raising=False)
        for kernel in vars(module).values():
            while hasattr(kernel, "fn"):
                if hasattr(kernel, "configs"):
                    monkeypatch.setattr(kernel, "configs", kernel.configs[:1])
                kernel = kernel.fn
