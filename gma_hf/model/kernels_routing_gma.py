"""
Triton kernels for the responsibilities, from queries and keys straight to gamma: scores, softmax and mask in one pass,
and all gradients in another. Neither features nor scores are written to memory. This file can be imported without
Triton; `has_kernels` then returns False.

A row is a head of a batch row, cut into blocks of tokens.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from .kernels_gma import block_size, ceil_div, precision, strides, tile_size, tl, token_by_token, triton
from .operators_gma import CausalInputs


# All components of a token are in one program. With more it would not fit into the shared memory of a small GPU.
MAX_COMPONENTS = 256
# Programs that share the backward of a head and side: bounds what they write of the gradient of its weights.
STRIPES = 64


if triton is not None:
    from .kernels_gma import load_tile, of_row, store_tile

    @triton.jit
    def _load_centred(x, centre, tokens, columns, stride, length, WIDTH: tl.constexpr):
        """Return `x - centre` of some tokens of a row, float32, with 0 in columns beyond the last."""
        values = load_tile(x, tokens, columns, stride, length, WIDTH).to(tl.float32)
        return values - tl.load(centre + columns, mask=columns < WIDTH, other=0.0)[None, :]

    @triton.jit
    def _route_kernel(
        queries, keys, weights, constant, centre, mask, gamma, heads, length, blocks,
        stride_batch, stride_head, stride_token, key_stride_batch, key_stride_head, key_stride_token,
        WIDTH: tl.constexpr, COMPONENTS: tl.constexpr, HAS_MASK: tl.constexpr,
        BLOCK_TOKENS: tl.constexpr, BLOCK_WIDTH: tl.constexpr, BLOCK_COMPONENTS: tl.constexpr,
    ):  # fmt: skip
        """
        Compute the responsibilities of a block of tokens; `weights`: `[2, H, K, 2 d_r]`. Grid: blocks of all rows,
        sides.
        """
        row, side = (tl.program_id(0) // blocks).to(tl.int64), tl.program_id(1)
        tokens = tl.program_id(0) % blocks * BLOCK_TOKENS + tl.arange(0, BLOCK_TOKENS)
        components = tl.arange(0, BLOCK_COMPONENTS)
        head = row % heads
        if side == 0:
            x = of_row(queries, row, heads, stride_batch, stride_head)
        else:
            x = of_row(keys, row, heads, key_stride_batch, key_stride_head)
        stride_token = tl.where(side == 0, stride_token, key_stride_token)
        centre += head * WIDTH
        weights += (side * heads + head) * COMPONENTS * 2 * WIDTH
        constant += (side * heads + head) * COMPONENTS

        scores = tl.zeros([BLOCK_TOKENS, BLOCK_COMPONENTS], dtype=tl.float32)
        scores += tl.load(constant + components, mask=components < COMPONENTS, other=float("-inf"))[None, :]
        for start in range(0, WIDTH, BLOCK_WIDTH):
            columns = start + tl.arange(0, BLOCK_WIDTH)
            values = _load_centred(x, centre, tokens, columns, stride_token, length, WIDTH)
            quadratic = load_tile(weights, components, columns, 2 * WIDTH, COMPONENTS, WIDTH)
            linear = load_tile(weights + WIDTH, components, columns, 2 * WIDTH, COMPONENTS, WIDTH)
            scores = tl.dot(values * values, tl.trans(quadratic), scores, input_precision="tf32x3")
            scores = tl.dot(values, tl.trans(linear), scores, input_precision="tf32x3")

        scores = tl.exp(scores - tl.max(scores, axis=1)[:, None])
        factor = 1.0 / tl.sum(scores, axis=1)
        if HAS_MASK:  # of the keys
            writes = tl.load(mask + row // heads * length + tokens, mask=tokens < length, other=0).to(tl.float32)
            factor = tl.where(side == 0, factor, factor * writes)
        gamma += (side * (tl.num_programs(0) // blocks) + row) * length * COMPONENTS
        store_tile(gamma, scores * factor[:, None], tokens, components, COMPONENTS, length, COMPONENTS)

    @triton.jit
    def _grad_kernel(
        queries, keys, weights, centre, gamma, grad_gamma, grad_queries, grad_keys, grad_weights, grad_constant,
        batch, heads, length, blocks, blocks_per_stripe,
        stride_batch, stride_head, stride_token, key_stride_batch, key_stride_head, key_stride_token,
        grad_stride_batch, grad_stride_head, grad_stride_token,
        grad_key_stride_batch, grad_key_stride_head, grad_key_stride_token,
        WIDTH: tl.constexpr, COMPONENTS: tl.constexpr, PRECISION: tl.constexpr,
        BLOCK_TOKENS: tl.constexpr, BLOCK_WIDTH: tl.constexpr, BLOCK_COMPONENTS: tl.constexpr,
    ):  # fmt: skip
        """
        Compute the gradient of some columns of x (queries or keys) for one stripe of the tokens of a head, and their
        part of the gradients of the weights, `[2, H, 2 d_r, K]`, and of the constant. Grid: stripes of both sides,
        heads, blocks of columns.
        """
        stripes = tl.num_programs(0) // 2
        side, stripe = tl.program_id(0) // stripes, tl.program_id(0) % stripes
        head = tl.program_id(1).to(tl.int64)
        columns = tl.program_id(2) * BLOCK_WIDTH + tl.arange(0, BLOCK_WIDTH)
        components = tl.arange(0, BLOCK_COMPONENTS)
        weights += (side * heads + head) * 2 * WIDTH * COMPONENTS
        quadratic = load_tile(weights, columns, components, COMPONENTS, WIDTH, COMPONENTS)
        linear = load_tile(weights + WIDTH * COMPONENTS, columns, components, COMPONENTS, WIDTH, COMPONENTS)
        grad_quadratic = tl.zeros([BLOCK_WIDTH, BLOCK_COMPONENTS], dtype=tl.float32)
        grad_linear = tl.zeros([BLOCK_WIDTH, BLOCK_COMPONENTS], dtype=tl.float32)
        total = tl.zeros([BLOCK_COMPONENTS], dtype=tl.float32)
        for step in range(blocks_per_stripe):
            block = stripe * blocks_per_stripe + step
            row = block // blocks * heads + head
            tokens = block % blocks * BLOCK_TOKENS + tl.arange(0, BLOCK_TOKENS)
            end = tl.where(block < batch * blocks, length, 0)
            place = (side * batch * heads + row) * length * COMPONENTS
            # d gamma_k / d s_l = gamma_k (delta_kl - gamma_l): zero in a masked row and beyond the last
            here = load_tile(gamma + place, tokens, components, COMPONENTS, end, COMPONENTS)
            grad = load_tile(grad_gamma + place, tokens, components, COMPONENTS, end, COMPONENTS)
            grad = here * (grad - tl.sum(here * grad, axis=1)[:, None])
            total += tl.sum(grad, axis=0)

            if side == 0:
                x = of_row(queries, row, heads, stride_batch, stride_head)
                grad_x = of_row(grad_queries, row, heads, grad_stride_batch, grad_stride_head)
            else:
                x = of_row(keys, row, heads, key_stride_batch, key_stride_head)
                grad_x = of_row(grad_keys, row, heads, grad_key_stride_batch, grad_key_stride_head)
            x_stride = tl.where(side == 0, stride_token, key_stride_token)
            values = _load_centred(x, centre + head * WIDTH, tokens, columns, x_stride, end, WIDTH)
            grad_values = 2 * values * tl.dot(grad, tl.trans(quadratic), input_precision=PRECISION)
            grad_values = tl.dot(grad, tl.trans(linear), grad_values, input_precision=PRECISION)
            x_stride = tl.where(side == 0, grad_stride_token, grad_key_stride_token)
            store_tile(grad_x, grad_values, tokens, columns, x_stride, end, WIDTH)
            values = tl.trans(values)
            grad_quadratic = tl.dot(values * values, grad, grad_quadratic, input_precision=PRECISION)
            grad_linear = tl.dot(values, grad, grad_linear, input_precision=PRECISION)

        place = tl.program_id(0) * heads + head
        grad_weights += place * 2 * WIDTH * COMPONENTS
        store_tile(grad_weights, grad_quadratic, columns, components, COMPONENTS, WIDTH, COMPONENTS)
        grad_weights += WIDTH * COMPONENTS
        store_tile(grad_weights, grad_linear, columns, components, COMPONENTS, WIDTH, COMPONENTS)
        if tl.program_id(2) == 0:
            grad_constant += place * COMPONENTS
            tl.store(grad_constant + components, total, mask=components < COMPONENTS)


class RoutingGradients(NamedTuple):
    """Hold the gradients of the inputs of the same names."""

    queries: Tensor
    keys: Tensor
    weights: Tensor
    constant: Tensor


def launch_route(inputs: CausalInputs) -> Tensor:
    """
    Return the responsibilities of queries and of keys (paper eq. 2), `[2, B, H, N, K]`, float32, contiguous.

    Args:
        inputs: of the mixer; queries and keys in float16, bfloat16 or float32 and in any strides.
    """
    constant, mask = inputs.constant, inputs.mask
    both = token_by_token(inputs.queries), token_by_token(inputs.keys)
    batch, heads, length, width = inputs.queries.shape
    gamma = constant.new_empty(2, batch, heads, length, constant.shape[-1])
    tiles = _tiles(inputs.queries.dtype, width, constant.shape[-1])
    blocks = ceil_div(length, tiles["BLOCK_TOKENS"])
    mask = None if mask is None else mask.expand(batch, length).contiguous()
    of_scores = (inputs.weights.mT.contiguous(), constant.contiguous(), inputs.centre.contiguous())
    numbers = (heads, length, blocks, *(n for x in both for n in strides(x)))
    if gamma.numel() > 0:
        grid = (batch * heads * blocks, 2)
        with torch.cuda.device_of(inputs.queries):
            _route_kernel[grid](*both, *of_scores, mask, gamma, *numbers, HAS_MASK=mask is not None, **tiles)
    return gamma


def launch_route_backward(grad_gamma: Tensor, inputs: CausalInputs, gamma: Tensor) -> RoutingGradients:
    """
    Return the gradients of queries and keys (in their dtype), weights and constant. The sums are in a fixed order,
    without atomics.
    """
    both = token_by_token(inputs.queries), token_by_token(inputs.keys)
    grads = [torch.empty_like(x) for x in both]
    batch, heads, length, width = inputs.queries.shape
    components = gamma.shape[-1]
    tiles = _tiles(inputs.queries.dtype, width, components)
    blocks = ceil_div(length, tiles["BLOCK_TOKENS"])
    blocks_per_stripe = ceil_div(batch * blocks, STRIPES)
    stripes = ceil_div(batch * blocks, blocks_per_stripe) if gamma.numel() > 0 else 0
    grad_weights = gamma.new_empty(2, stripes, heads, 2 * width, components)
    grad_constant = gamma.new_empty(2, stripes, heads, components)
    given = (*both, inputs.weights.contiguous(), inputs.centre.contiguous(), gamma, grad_gamma.contiguous())
    numbers = (batch, heads, length, blocks, blocks_per_stripe, *(n for x in (*both, *grads) for n in strides(x)))
    if stripes > 0:
        grid = (2 * stripes, heads, ceil_div(width, tiles["BLOCK_WIDTH"]))
        flags = {"PRECISION": precision(inputs.queries.dtype, components), **tiles}
        with torch.cuda.device_of(inputs.queries):
            _grad_kernel[grid](*given, *grads, grad_weights, grad_constant, *numbers, **flags)
    return RoutingGradients(*grads, grad_weights.sum(1), grad_constant.sum(1))


def _tiles(dtype: torch.dtype, width: int, components: int) -> dict[str, int]:
    """
    Return how many tokens, columns of x and components a tile has: all components, and as many tokens and columns as
    keep the products in registers (read off the compiler's output for compute capability 8.6 and 9.0).
    """
    block_components = block_size(components)
    block = max(16, tile_size(dtype) * 64 // max(64, block_components))
    return {
        "WIDTH": width,
        "COMPONENTS": components,
        "BLOCK_TOKENS": block,
        "BLOCK_WIDTH": min(block, block_size(width)),
        "BLOCK_COMPONENTS": block_components,
        "num_warps": 4,
        "num_stages": 1,
    }
