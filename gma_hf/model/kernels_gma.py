"""
What our kernels stand on: Triton, where it can be had; tiles of tensors `[B, H, N, d]`, and their sizes; how to
multiply.
"""

import os

import torch
from torch import Tensor


try:
    import triton
    import triton.language as tl
except ImportError:
    triton = tl = None


IS_INTERPRETED = triton is not None and os.environ.get("TRITON_INTERPRET") == "1"


if triton is not None:

    @triton.jit
    def of_row(x, row, heads, stride_batch, stride_head):
        """Where a row begins."""
        return x + row // heads * stride_batch + row % heads * stride_head

    @triton.jit
    def load_tile(x, rows, columns, stride, num_rows, NUM_COLUMNS: tl.constexpr):
        """As it is stored, and 0 beyond the last row and column."""
        is_inside = (rows < num_rows)[:, None] & (columns < NUM_COLUMNS)[None, :]
        return tl.load(x + rows.to(tl.int64)[:, None] * stride + columns[None, :], mask=is_inside, other=0.0)

    @triton.jit
    def store_tile(x, tile, rows, columns, stride, num_rows, NUM_COLUMNS: tl.constexpr):
        """In the dtype of where it goes, and nothing beyond the last row and column."""
        is_inside = (rows < num_rows)[:, None] & (columns < NUM_COLUMNS)[None, :]
        tl.store(
            x + rows.to(tl.int64)[:, None] * stride + columns[None, :], tile.to(x.dtype.element_ty), mask=is_inside
        )


@torch.compiler.assume_constant_result
def has_kernels(device: torch.device) -> bool:
    """Whether the kernels run on a device: with Triton on NVIDIA's since Ampere (TF32), or in Triton's interpreter."""
    if triton is None or IS_INTERPRETED:
        return triton is not None
    is_nvidia = device.type == "cuda" and torch.version.hip is None
    return is_nvidia and torch.cuda.get_device_capability(device) >= (8, 0)


def precision(dtype: torch.dtype, components: int = 0) -> str:
    """
    How to multiply for inputs of a dtype: in TF32 (10 bits of the factors) for half precision, and for float32 by
    three such products, which are as good as float32. With many components the factors of those do not fit into the
    shared memory of a small GPU: then float32 without the matrix units.
    """
    if dtype != torch.float32:
        return "tf32"
    return "tf32x3" if components <= 128 else "ieee"


def token_by_token(x: Tensor) -> Tensor:
    """As the kernels want it: the numbers of a token one after another."""
    return x if x.stride(-1) == 1 else x.contiguous()


def strides(x: Tensor) -> tuple[int, ...]:
    """Of batch, heads and tokens in `[B, H, N, d]`."""
    return x.stride()[:3]


def ceil_div(x: int, y: int) -> int:
    """`x / y`, rounded up."""
    return -(-x // y)


def block_size(size: int) -> int:
    """The power of two that holds `size`, of at least 16, as `tl.dot` wants it."""
    return max(16, 1 << (size - 1).bit_length())


def tile_size(dtype: torch.dtype) -> int:
    """What keeps products in registers: those of float32, see `precision`, take more of them."""
    return 32 if dtype == torch.float32 else 64
