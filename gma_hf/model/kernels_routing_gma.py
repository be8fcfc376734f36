"""
Triton kernels for the responsibilities, from queries and keys straight to gamma: scores, softmax and mask in one pass,
and all gradients in another. Neither features nor scores are written to memory. Without Triton this file imports all
the same, and `has_kernels` says that there are no kernels.

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
        """`x - centre` of some tokens of a row, float32; 0 in columns beyond the last."""
        values = load_tile(x, tokens, columns, stride, length, WIDTH).to(tl.float32)
        return values - tl.load(centre + columns, mask=columns < WIDTH, other=0.0)[None, :]

    @triton.jit
    def _route_kernel(
        x, weights, constant, centre, mask, gamma, heads, length, blocks, stride_batch, stride_head, stride_token,
        WIDTH: tl.constexpr, COMPONENTS: tl.constexpr, HAS_MASK: tl.constexpr,
        BLOCK_TOKENS: tl.constexpr, BLOCK_WIDTH: tl.constexpr, BLOCK_COMPONENTS: tl.constexpr,
    ):  # fmt: skip
        """Responsibilities of a block of tokens; `weights`: `[H, K, 2 d_r]`. Grid: blocks of all rows."""
        row = (tl.program_id(0) // blocks).to(tl.int64)
        tokens = tl.program_id(0) % blocks * BLOCK_TOKENS + tl.arange(0, BLOCK_TOKENS)
        components = tl.arange(0, BLOCK_COMPONENTS)
        head = row % heads
        x = of_row(x, row, heads, stride_batch, stride_head)
        centre += head * WIDTH
        weights += head * COMPONENTS * 2 * WIDTH
        constant += head * COMPONENTS

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
        if HAS_MASK:
            factor *= tl.load(mask + row // heads * length + tokens, mask=tokens < length, other=0.0)
        gamma += row * length * COMPONENTS
        store_tile(gamma, scores * factor[:, None], tokens, components, COMPONENTS, length, COMPONENTS)

    @triton.jit
    def _grad_kernel(
        x, weights, centre, gamma, grad_gamma, grad_x, grad_weights, grad_constant,
        batch, heads, length, blocks, blocks_per_stripe, stride_batch, stride_head, stride_token,
        grad_stride_batch, grad_stride_head, grad_stride_token,
        WIDTH: tl.constexpr, COMPONENTS: tl.constexpr, PRECISION: tl.constexpr,
        BLOCK_TOKENS: tl.constexpr, BLOCK_WIDTH: tl.constexpr, BLOCK_COMPONENTS: tl.constexpr,
    ):  # fmt: skip
        """
        Gradient of some columns of x for one stripe of the tokens of a head, and what they add to that of the weights,
        `[H, 2 d_r, K]`, and of the constant. Grid: stripes, heads, blocks of columns.
        """
        stripe = tl.program_id(0)
        head = tl.program_id(1).to(tl.int64)
        columns = tl.program_id(2) * BLOCK_WIDTH + tl.arange(0, BLOCK_WIDTH)
        components = tl.arange(0, BLOCK_COMPONENTS)
        weights += head * 2 * WIDTH * COMPONENTS
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
            place = row * length * COMPONENTS
            # d gamma_k / d s_l = gamma_k (delta_kl - gamma_l): zero in a masked row and beyond the last
            here = load_tile(gamma + place, tokens, components, COMPONENTS, end, COMPONENTS)
            grad = load_tile(grad_gamma + place, tokens, components, COMPONENTS, end, COMPONENTS)
            grad = here * (grad - tl.sum(here * grad, axis=1)[:, None])
            total += tl.sum(grad, axis=0)

            inputs = of_row(x, row, heads, stride_batch, stride_head)
            values = _load_centred(inputs, centre + head * WIDTH, tokens, columns, stride_token, end, WIDTH)
            grad_values = 2 * values * tl.dot(grad, tl.trans(quadratic), input_precision=PRECISION)
            grad_values = tl.dot(grad, tl.trans(linear), grad_values, input_precision=PRECISION)
            outputs = of_row(grad_x, row, heads, grad_stride_batch, grad_stride_head)
            store_tile(outputs, grad_values, tokens, columns, grad_stride_token, end, WIDTH)
            values = tl.trans(values)
            grad_quadratic = tl.dot(values * values, grad, grad_quadratic, input_precision=PRECISION)
            grad_linear = tl.dot(values, grad, grad_linear, input_precision=PRECISION)

        grad_weights += (stripe * heads + head) * 2 * WIDTH * COMPONENTS
        store_tile(grad_weights, grad_quadratic, columns, components, COMPONENTS, WIDTH, COMPONENTS)
        grad_weights += WIDTH * COMPONENTS
        store_tile(grad_weights, grad_linear, columns, components, COMPONENTS, WIDTH, COMPONENTS)
        if tl.program_id(2) == 0:
            grad_constant += (stripe * heads + head) * COMPONENTS
            tl.store(grad_constant + components, total, mask=components < COMPONENTS)


class RoutingGradients(NamedTuple):
    """The gradients of the inputs of the same names."""

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
    queries, constant, mask = inputs.queries, inputs.constant, inputs.mask
    gamma = constant.new_empty(2, *queries.shape[:3], constant.shape[-1])
    batch, heads, length, width = queries.shape
    tiles = _tiles(queries.dtype, width, constant.shape[-1])
    blocks = ceil_div(length, tiles["BLOCK_TOKENS"])
    mask = None if mask is None else mask.to(torch.float32).expand(batch, length).contiguous()
    sides = zip((queries, inputs.keys), inputs.weights.mT.contiguous(), constant.contiguous(), (None, mask), gamma)
    if gamma.numel() > 0:
        with torch.cuda.device_of(queries):
            for x, w, c, writes, out in sides:
                x = token_by_token(x)
                tensors = (x, w, c, inputs.centre.contiguous(), writes, out)
                sizes = (heads, length, blocks, *strides(x))
                _route_kernel[(batch * heads * blocks,)](*tensors, *sizes, HAS_MASK=writes is not None, **tiles)
    return gamma


def launch_route_backward(grad_gamma: Tensor, inputs: CausalInputs, gamma: Tensor) -> RoutingGradients:
    """
    Return the gradients of queries and keys (in their dtype), weights and constant. The sums are in a fixed order,
    without atomics.
    """
    queries, centre = inputs.queries, inputs.centre.contiguous()
    both = token_by_token(queries), token_by_token(inputs.keys)
    grads = [torch.empty_like(x) for x in both]
    batch, heads, length, width = queries.shape
    components = gamma.shape[-1]
    tiles = _tiles(queries.dtype, width, components)
    blocks = ceil_div(length, tiles["BLOCK_TOKENS"])
    blocks_per_stripe = ceil_div(batch * blocks, STRIPES)
    stripes = ceil_div(batch * blocks, blocks_per_stripe) if gamma.numel() > 0 else 0
    grad_weights = gamma.new_empty(2, stripes, heads, 2 * width, components)
    grad_constant = gamma.new_empty(2, stripes, heads, components)
    sides = zip(both, inputs.weights.contiguous(), gamma, grad_gamma.contiguous(), grads, grad_weights, grad_constant)
    if stripes > 0:
        grid = (stripes, heads, ceil_div(width, tiles["BLOCK_WIDTH"]))
        with torch.cuda.device_of(queries):
            for x, w, *tensors, grad_x, grad_w, grad_c in sides:
                tensors = (x, w, centre, *tensors, grad_x, grad_w, grad_c)
                sizes = (batch, heads, length, blocks, blocks_per_stripe, *strides(x), *strides(grad_x))
                _grad_kernel[grid](*tensors, *sizes, PRECISION=precision(x.dtype, components), **tiles)
    return RoutingGradients(*grads, grad_weights.sum(1), grad_constant.sum(1))


def _tiles(dtype: torch.dtype, width: int, components: int) -> dict[str, int]:
    """
    All components, and as many tokens and columns of x as leave their products in registers (looked up in what the
    compiler makes for compute capability 8.6 and 9.0).
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
