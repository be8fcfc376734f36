"""
Basics of our Triton kernels: whether there is a Triton, tiles of tensors `[B, H, N, d]` and their sizes, and the
precision of products.
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
        """Return the address at which a row begins; a row is a head of a batch row."""
        return x + row // heads * stride_batch + row % heads * stride_head

    @triton.jit
    def load_tile(x, rows, columns, stride, num_rows, NUM_COLUMNS: tl.constexpr):
        """Return a tile in the dtype that it is stored in, with 0 beyond the last row and column."""
        is_inside = (rows < num_rows)[:, None] & (columns < NUM_COLUMNS)[None, :]
        return tl.load(x + rows.to(tl.int64)[:, None] * stride + columns[None, :], mask=is_inside, other=0.0)

    @triton.jit
    def store_tile(x, tile, rows, columns, stride, num_rows, NUM_COLUMNS: tl.constexpr):
        """Store a tile in the dtype of its destination, and nothing beyond the last row and column."""
        is_inside = (rows < num_rows)[:, None] & (columns < NUM_COLUMNS)[None, :]
        tl.store(
            x + rows.to(tl.int64)[:, None] * stride + columns[None, :], tile.to(x.dtype.element_ty), mask=is_inside
        )


@torch.compiler.assume_constant_result
def has_kernels(device: torch.device) -> bool:
    """Return whether the kernels run on a device: an NVIDIA GPU since Ampere (TF32), or Triton's interpreter."""
    if triton is None or IS_INTERPRETED:
        return triton is not None
    is_nvidia = device.type == "cuda" and torch.version.hip is None
    return is_nvidia and torch.cuda.get_device_capability(device) >= (8, 0)


def precision(dtype: torch.dtype, components: int = 0) -> str:
    """
    Return Triton's name of the precision of products for inputs of a dtype.

    Inputs in half precision are multiplied in TF32, which keeps 10 bits of mantissa. Inputs in float32 are multiplied
    by three products in TF32, which together are as exact as float32. With more than 128 components the factors of
    three products do not fit into the shared memory of a small GPU; float32 is used then, without the matrix units.
    """
    if dtype != torch.float32:
        return "tf32"
    return "tf32x3" if components <= 128 else "ieee"


def token_by_token(x: Tensor) -> Tensor:
    """Return a tensor in which the numbers of a token lie one after another, as the kernels need it."""
    return x if x.stride(-1) == 1 else x.contiguous()


def strides(x: Tensor) -> tuple[int, ...]:
    """Return the strides of batch, heads and tokens in `[B, H, N, d]`."""
    return x.stride()[:3]


def ceil_div(x: int, y: int) -> int:
    """Return `x / y`, rounded up."""
    return -(-x // y)


def block_size(size: int) -> int:
    """Return the smallest power of two that is at least `size` and at least 16, which `tl.dot` needs."""
    return max(16, 1 << (size - 1).bit_length())


def tile_size(dtype: torch.dtype) -> int:
    """Return the rows of a tile whose products stay in registers; float32 needs more of these (see `precision`)."""
    return 32 if dtype == torch.float32 else 64
