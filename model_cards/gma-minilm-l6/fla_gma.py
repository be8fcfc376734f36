"""
The causal form by flash-linear-attention, optional: the scan of GMA is that of a linear attention whose features are
the responsibilities, with one decay per head and token where the gate is on, which is `simple_gla` there.
"""

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from .functional_gma import ScoreWeights, append_ones, read, responsibilities
from .routing_gma import refuse_second_derivative
from .routing_kernels_gma import can_route, fused_responsibilities


@functools.cache
def _import_scan() -> Callable | None:
    try:
        from fla.ops.simple_gla import chunk_simple_gla
    except ImportError:
        return None
    return chunk_simple_gla


@torch.compiler.assume_constant_result
def has_fla() -> bool:
    """Whether flash-linear-attention and its Triton can be imported, which happens when first asked."""
    return _import_scan() is not None


class _Once(torch.autograd.Function):
    """What it is given. `create_graph` is refused, since a second derivative would lack the terms of `simple_gla`."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            refuse_second_derivative(ctx)
        return grad


@torch.compiler.disable
def simple_gla(*args, **kwargs) -> tuple[Tensor, Tensor]:
    """`chunk_simple_gla` of flash-linear-attention. `torch.compile` breaks the graph here, as it does there."""
    once = {name: _Once.apply(value) if isinstance(value, Tensor) else value for name, value in kwargs.items()}
    return _import_scan()(*(_Once.apply(tensor) for tensor in args), **once)


def mix_with_fla(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    scores: ScoreWeights,
    epsilon: float,
    mask: Tensor | None,
    log_decay: Tensor | None,
    state: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """
    `mix_causal` by `simple_gla`, for one segment: its arguments and results. The responsibilities come from our
    kernels where these can be had; they, the values and the state are float32, whatever the dtype of the values. In
    the products of `simple_gla`, Triton rounds the factors to TF32 on NVIDIA cards since Ampere (10 bits, 3 decimal
    digits), unless the environment says `TRITON_F32_DEFAULT=ieee`.
    """
    batch, heads = values.shape[:2]
    with torch.autocast(device_type=values.device.type, enabled=False):
        route = fused_responsibilities if can_route(queries, scores) else responsibilities
        tensors = (*route(queries, keys, scores, mask), append_ones(values))
        # Their layout is [B, N, H, D]. Each head as a batch row of its own is that, without a copy.
        query_gamma, key_gamma, extended = (x.flatten(0, 1)[:, :, None] for x in tensors)
        weighted, state = simple_gla(
            query_gamma,
            key_gamma,
            extended,
            g=None if log_decay is None else log_decay.flatten(0, 1)[..., None],
            scale=1.0,
            initial_state=None if state is None else state.flatten(0, 1)[:, None],
            output_final_state=True,
        )
        weighted = weighted[:, :, 0].unflatten(0, (batch, heads))
        return read(weighted, epsilon).to(values.dtype), state[:, 0].unflatten(0, (batch, heads))
