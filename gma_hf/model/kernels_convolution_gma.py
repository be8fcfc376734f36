"""
Triton kernels for the short convolution: the output in one pass over the inputs, all gradients in another. The kernels
transpose nothing and leave padding where it is: they look up which token is the next real one. This file can be
imported without Triton; `has_kernels` then returns False.
"""

import torch
from torch import Tensor

from .kernels_gma import IS_INTERPRETED, ceil_div, has_kernels, tl, token_by_token, triton
from .operators_gma import ConvolutionGradients, ConvolutionInputs


# Tokens and channels of a tile: 32 numbers for each thread of a program of four warps.
BLOCK_TOKENS, BLOCK_CHANNELS = 32, 128
# Programs that share the backward of a block of channels: bounds what they write of the gradient of the weight.
STRIPES = 64


if triton is not None:

    @triton.jit
    def _find(
        order, mask, document_ids, row, places, length, HAS_MASK: tl.constexpr, HAS_DOCUMENTS: tl.constexpr
    ):  # fmt: skip
        """
        Return the tokens at some places of a row, their documents, whether they exist, and whether they are real.
        """
        exists = (places >= 0) & (places < length)
        tokens = row * length + places
        is_real = exists
        if HAS_MASK:
            tokens = row * length + tl.load(order + tokens, mask=exists, other=0)
            is_real = exists & (tl.load(mask + tokens, mask=exists, other=0) != 0)
        documents = tokens
        if HAS_DOCUMENTS:
            documents = tl.load(document_ids + tokens, mask=exists, other=-1)
        return tokens - row * length, documents, exists, is_real

    @triton.jit
    def _load(x, tokens, channels, is_wanted, stride, CHANNELS: tl.constexpr, DTYPE: tl.constexpr):
        """Return some channels of the tokens for which `is_wanted` is true, and 0 for the others."""
        is_inside = is_wanted[:, None] & (channels < CHANNELS)[None, :]
        return tl.load(x + tokens[:, None] * stride + channels[None, :], mask=is_inside, other=0.0).to(DTYPE)

    @triton.jit
    def _store(x, tile, tokens, channels, exists, CHANNELS: tl.constexpr):
        """Store some channels of the tokens that exist, one token after another."""
        is_inside = exists[:, None] & (channels < CHANNELS)[None, :]
        tl.store(x + tokens[:, None] * CHANNELS + channels[None, :], tile.to(x.dtype.element_ty), mask=is_inside)

    @triton.jit
    def _convolution_kernel(
        x, weight, order, mask, document_ids, output, length, blocks, stride_batch, stride_token,
        CHANNELS: tl.constexpr, TAPS: tl.constexpr, OWN: tl.constexpr, DTYPE: tl.constexpr,
        HAS_MASK: tl.constexpr, HAS_DOCUMENTS: tl.constexpr,
        BLOCK_TOKENS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr,
    ):  # fmt: skip
        """
        Compute the output of a block of places; `weight`: `[C, W]`. Grid: blocks of all rows, blocks of channels.
        """
        row = (tl.program_id(0) // blocks).to(tl.int64)
        places = tl.program_id(0) % blocks * BLOCK_TOKENS + tl.arange(0, BLOCK_TOKENS)
        channels = tl.program_id(1) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
        x += row * stride_batch
        tokens, documents, exists, is_real = _find(
            order, mask, document_ids, row, places, length, HAS_MASK, HAS_DOCUMENTS
        )
        total = _load(x, tokens, channels, is_real, stride_token, CHANNELS, DTYPE)
        for tap in tl.static_range(TAPS):
            seen, theirs, _, is_seen = _find(
                order, mask, document_ids, row, places + (tap - OWN), length, HAS_MASK, HAS_DOCUMENTS
            )
            if HAS_DOCUMENTS:
                is_seen = is_seen & (theirs == documents)
            factor = tl.load(weight + channels * TAPS + tap, mask=channels < CHANNELS, other=0.0).to(DTYPE)
            total += factor[None, :] * _load(x, seen, channels, is_seen, stride_token, CHANNELS, DTYPE)
        _store(output + row * length * CHANNELS, total, tokens, channels, exists, CHANNELS)

    @triton.jit
    def _convolution_grad_kernel(
        grad_output, x, weight, order, mask, document_ids, grad_x, grad_weight,
        batch, length, blocks, blocks_per_stripe, stride_batch, stride_token, grad_stride_batch, grad_stride_token,
        CHANNELS: tl.constexpr, TAPS: tl.constexpr, OWN: tl.constexpr, DTYPE: tl.constexpr,
        HAS_MASK: tl.constexpr, HAS_DOCUMENTS: tl.constexpr,
        BLOCK_TOKENS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr, BLOCK_TAPS: tl.constexpr,
    ):  # fmt: skip
        """
        Compute the gradient of x for one stripe of the places of all rows, and their part of the gradient of the
        weight. Grid: stripes, blocks of channels.
        """
        stripe = tl.program_id(0)
        channels = tl.program_id(1) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
        taps = tl.arange(0, BLOCK_TAPS)
        sums = tl.zeros([BLOCK_TAPS, BLOCK_CHANNELS], dtype=DTYPE)
        for step in range(blocks_per_stripe):
            block = stripe * blocks_per_stripe + step
            row = (block // blocks).to(tl.int64)
            places = block % blocks * BLOCK_TOKENS + tl.arange(0, BLOCK_TOKENS)
            end = tl.where(block < batch * blocks, length, 0)
            tokens, documents, exists, is_real = _find(
                order, mask, document_ids, row, places, end, HAS_MASK, HAS_DOCUMENTS
            )
            values = _load(x + row * stride_batch, tokens, channels, is_real, stride_token, CHANNELS, DTYPE)
            grad = grad_output + row * grad_stride_batch
            total = _load(grad, tokens, channels, is_real, grad_stride_token, CHANNELS, DTYPE)
            for tap in tl.static_range(TAPS):
                seeing, theirs, sees, _ = _find(
                    order, mask, document_ids, row, places - (tap - OWN), end, HAS_MASK, HAS_DOCUMENTS
                )
                sees = sees & is_real
                if HAS_DOCUMENTS:
                    sees = sees & (theirs == documents)
                here = _load(grad, seeing, channels, sees, grad_stride_token, CHANNELS, DTYPE)
                factor = tl.load(weight + channels * TAPS + tap, mask=channels < CHANNELS, other=0.0).to(DTYPE)
                total += factor[None, :] * here
                sums += tl.where((taps == tap)[:, None], tl.sum(values * here, axis=0)[None, :], 0.0)
            _store(grad_x + row * length * CHANNELS, total, tokens, channels, exists, CHANNELS)
        grad_weight += stripe * CHANNELS * TAPS + channels[None, :] * TAPS + taps[:, None]
        tl.store(grad_weight, sums, mask=(channels < CHANNELS)[None, :] & (taps < TAPS)[:, None])


def convolution_problem(x: Tensor) -> str | None:
    """Return why the kernels cannot take `x`, or None if they can."""
    if not (x.is_cuda or IS_INTERPRETED):
        return f"the inputs are on {x.device.type}"
    return None if has_kernels(x.device) else "there are no kernels for this device"


def launch_convolution(inputs: ConvolutionInputs, causal: bool) -> Tensor:
    """Return the output `[B, N, C]`, in the dtype of x."""
    x, tensors = token_by_token(inputs.x), _tensors(inputs)
    output = x.new_empty(x.shape)
    batch, length, channels = x.shape
    blocks = ceil_div(length, BLOCK_TOKENS)
    if x.numel() > 0:
        with torch.cuda.device_of(x):
            _convolution_kernel[(batch * blocks, ceil_div(channels, BLOCK_CHANNELS))](
                x, *tensors, output, length, blocks, *x.stride()[:2], **_options(inputs, causal)
            )
    return output


def launch_convolution_backward(grad_output: Tensor, inputs: ConvolutionInputs, causal: bool) -> ConvolutionGradients:
    """Return the gradients of x and of the weight, in their dtypes. The sums are in a fixed order, without atomics."""
    x, grad_output, tensors = token_by_token(inputs.x), token_by_token(grad_output), _tensors(inputs)
    options = _options(inputs, causal)
    batch, length, channels = x.shape
    blocks = ceil_div(length, BLOCK_TOKENS)
    blocks_per_stripe = max(1, ceil_div(batch * blocks, STRIPES))
    stripes = ceil_div(batch * blocks, blocks_per_stripe)
    grad_x = x.new_empty(x.shape)
    sums = torch.promote_types(x.dtype, torch.float32)
    grad_weight = inputs.weight.new_empty(stripes, *inputs.weight.shape, dtype=sums)
    if x.numel() > 0:
        with torch.cuda.device_of(x):
            _convolution_grad_kernel[(stripes, ceil_div(channels, BLOCK_CHANNELS))](
                grad_output, x, *tensors, grad_x, grad_weight,
                batch, length, blocks, blocks_per_stripe, *x.stride()[:2], *grad_output.stride()[:2],
                **options, BLOCK_TAPS=triton.next_power_of_2(options["TAPS"]),
            )  # fmt: skip
    return ConvolutionGradients(grad_x, grad_weight.sum(0, dtype=inputs.weight.dtype))


def _tensors(inputs: ConvolutionInputs) -> tuple[Tensor | None, ...]:
    """Return the weight, the order, the mask and the documents as the kernels need them."""
    _, weight, mask, order, ids = inputs
    mask = None if mask is None else mask.to(torch.bool).contiguous().view(torch.uint8)
    return weight.contiguous(), order, mask, None if ids is None else ids.contiguous()


def _options(inputs: ConvolutionInputs, causal: bool) -> dict:
    channels, taps = inputs.weight.shape
    return {
        "CHANNELS": channels,
        "TAPS": taps,
        "OWN": taps - 1 if causal else taps // 2,
        "DTYPE": tl.float64 if inputs.x.dtype == torch.float64 else tl.float32,
        "HAS_MASK": inputs.mask is not None,
        "HAS_DOCUMENTS": inputs.document_ids is not None,
        "BLOCK_TOKENS": BLOCK_TOKENS,
        "BLOCK_CHANNELS": BLOCK_CHANNELS,
        "num_warps": 4,
    }
