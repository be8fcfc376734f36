"""
Parts that all our kernels over chunks of tokens share: products, decays inside and across chunks, and their calls. A
row is a head of a batch row.
"""

import torch
from torch import Tensor

from .kernels_gma import block_size, ceil_div, precision, strides, tile_size, tl, triton


# Tokens of a chunk.
CHUNK = 64


if triton is not None:

    @triton.jit
    def _halves(x):
        """Return two bfloat16 numbers whose sum has 16 bits of x."""
        high = x.to(tl.bfloat16)
        return high, (x - high.to(tl.float32)).to(tl.bfloat16)

    @triton.jit
    def dot(a, b, total, PRECISION: tl.constexpr):
        """
        Return `a b + total`.

        If one factor is bfloat16 and the other float32, the float32 factor is split into two bfloat16 numbers: two
        products in bfloat16 are faster on the matrix units than one in TF32.
        """
        if a.dtype == b.dtype:
            return tl.dot(a, b, total, input_precision=PRECISION)
        elif a.dtype == tl.bfloat16:
            high, low = _halves(b)
            return tl.dot(a, low, tl.dot(a, high, total))
        elif b.dtype == tl.bfloat16:
            high, low = _halves(a)
            return tl.dot(low, b, tl.dot(high, b, total))
        else:
            return tl.dot(a.to(tl.float32), b.to(tl.float32), total, input_precision=PRECISION)

    @triton.jit
    def decays(
        log_decay, document_ids, chunk, row, heads, length,
        CHUNK: tl.constexpr, HAS_DECAY: tl.constexpr, HAS_DOCUMENTS: tl.constexpr,
    ):  # fmt: skip
        """
        Return the factors by which the forget gate and the borders of documents shrink what was written: from a token
        to a later token `[C, C]`, from the start of the chunk to a token `[C]`, from a token to the end of the chunk
        `[C]`, and over the whole chunk.
        """
        tokens = chunk * CHUNK + tl.arange(0, CHUNK)
        is_earlier = tokens[:, None] >= tokens[None, :]
        if HAS_DECAY:
            steps = tl.load(log_decay + row * length + tokens, mask=tokens < length, other=0.0)
            elapsed = tl.cumsum(steps, 0)
            total = tl.sum(steps, 0)
            inside = tl.exp(tl.where(is_earlier, elapsed[:, None] - elapsed[None, :], float("-inf")))
            read, write, carry = tl.exp(elapsed), tl.exp(total - elapsed), tl.exp(total)
        else:
            inside = tl.where(is_earlier, 1.0, 0.0)
            read, write, carry = tl.full([CHUNK], 1.0, tl.float32), tl.full([CHUNK], 1.0, tl.float32), 1.0
        if HAS_DOCUMENTS:
            document_ids += row // heads * length
            here = tl.load(document_ids + tokens, mask=tokens < length, other=-1)
            before = tl.load(document_ids + chunk * CHUNK - 1, mask=chunk > 0, other=0)
            last = tl.load(document_ids + tl.minimum(chunk * CHUNK + CHUNK, length) - 1)
            inside = tl.where(here[:, None] == here[None, :], inside, 0.0)
            read, write = tl.where(here == before, read, 0.0), tl.where(here == last, write, 0.0)
            carry = tl.where(before == last, carry, 0.0)
        return inside, read, write, carry


class ChunkCalls:
    """Call the kernels with the sizes of one scan."""

    def __init__(
        self,
        gamma: Tensor,
        values: Tensor,
        log_decay: Tensor | None,
        document_ids: Tensor | None,
        read_exponent: Tensor | None,
    ):
        self.batch, self.heads, self.length, components = gamma.shape
        self.chunks, self.like, self.decay = ceil_div(self.length, CHUNK), gamma, (log_decay, document_ids)
        self.exponent = None if read_exponent is None else read_exponent.contiguous()
        self.sizes = {"COMPONENTS": components, "WIDTH": values.shape[-1]}
        self.options = self.sizes | {
            "CHUNK": CHUNK,
            "PRECISION": precision(values.dtype),
            "HAS_DECAY": log_decay is not None,
            "HAS_DOCUMENTS": document_ids is not None,
            "HAS_EXPONENT": read_exponent is not None,
            "num_warps": 4,
            "num_stages": 1,
        }
        tile = tile_size(values.dtype)
        for name, size in self.sizes.items():
            # Products with a bfloat16 tile of fewer than 64 columns came out wrong on an H200 (Triton 3.6)
            self.options[f"BLOCK_{name}"] = tile if values.dtype == torch.bfloat16 else min(tile, block_size(size))

    def new_sums(self) -> Tensor:
        """Return room for a number of each token of each row."""
        return self.like.new_empty(self.batch, self.heads, self.length)

    def new_states(self) -> Tensor:
        """Return room for a flat state of each chunk."""
        numbers = self.sizes["COMPONENTS"] * (self.sizes["WIDTH"] + 1)
        return self.like.new_empty(self.batch, self.heads, self.chunks, numbers)

    def new_carries(self) -> Tensor:
        """Return room for a number of each chunk."""
        return self.like.new_empty(self.batch, self.heads, self.chunks)

    def __call__(self, kernel, *arguments, layout: tuple[Tensor, ...], by_columns: bool = False, **flags) -> None:
        """
        Args:
            layout: whose strides are passed, in this order.
            by_columns: whether each block of columns of the values has programs of its own.
        """
        columns = ceil_div(self.sizes["WIDTH"], self.options["BLOCK_WIDTH"]) if by_columns else 1
        grid = (self.batch * self.heads * self.chunks, columns)
        numbers = (self.heads, self.length, self.chunks, *(n for x in layout for n in strides(x)))
        kernel[grid](*arguments, *numbers, **(self.options | flags))
