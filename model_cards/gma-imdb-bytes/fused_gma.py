"""
The causal form of many tokens by our Triton kernels as one operator (paper 3.6): like `causal_gma`, it keeps its
inputs, its output with the normaliser and the states between chunks, and computes the responsibilities again in the
backward. `torch.compile` takes it as one node. A second derivative is refused.
"""

import torch
from torch import Tensor

from .routing_gma import NAMESPACE, refuse_second_derivative
from .routing_kernels_gma import launch_route, launch_route_backward
from .scan_kernels_gma import CHUNK, scan, scan_backward
from .triton_gma import token_by_token


@torch.library.custom_op(f"{NAMESPACE}::fused", mutates_args=())
def fused_scan(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    weights: Tensor,
    constant: Tensor,
    centre: Tensor,
    mask: Tensor | None,
    log_decay: Tensor | None,
    segments: Tensor | None,
    state: Tensor,
    epsilon: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """
    The arguments of `causal_gma.causal_scan` up to `epsilon`, for what `routing_kernels_gma.can_route` agrees to.
    Output and last state, and for the backward the normaliser `GammaQ z + eps` `[B, H, N]` and the state before each
    chunk.
    """
    gamma = launch_route(queries, keys, weights, constant, centre, mask)
    tensors = (token_by_token(values), *_gate(values, log_decay, segments), state.contiguous())
    with torch.cuda.device_of(values):
        return scan(gamma, *tensors, epsilon)


@fused_scan.register_fake
def _(queries, keys, values, weights, constant, centre, mask, log_decay, segments, state, epsilon):
    batch, heads, length, _ = values.shape
    _, _, components, width = state.shape
    chunks = -(-length // CHUNK)
    return (
        torch.empty_like(token_by_token(values)),
        state.new_empty(state.shape),
        state.new_empty(batch, heads, length),
        state.new_empty(batch, heads, chunks, components * width),
    )


@torch.library.custom_op(f"{NAMESPACE}::fused_backward", mutates_args=())
def _backward(
    grad_output: Tensor,
    grad_state: Tensor,
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    weights: Tensor,
    constant: Tensor,
    centre: Tensor,
    mask: Tensor | None,
    log_decay: Tensor | None,
    segments: Tensor | None,
    output: Tensor,
    normaliser: Tensor,
    states: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of queries, keys, values, weights, constant, log decays (empty without a gate) and the first state."""
    gamma = launch_route(queries, keys, weights, constant, centre, mask)
    tensors = (token_by_token(values), *_gate(values, log_decay, segments), output, normaliser, states)
    with torch.cuda.device_of(values):
        grads = scan_backward(token_by_token(grad_output), grad_state.contiguous(), gamma, *tensors)
    grad_gamma, grad_values, grad_log_decay, grad_first = grads
    grad_queries, grad_keys, *mixture = launch_route_backward(grad_gamma, queries, keys, weights, centre, gamma)
    grad_log_decay = states.new_empty(0) if log_decay is None else grad_log_decay
    return grad_queries, grad_keys, grad_values, *mixture, grad_log_decay, grad_first


@_backward.register_fake
def _(
    grad_output, grad_state, queries, keys, values, weights, constant, centre, mask, log_decay, segments, output,
    normaliser, states,
):  # fmt: skip
    grad_log_decay = states.new_empty(0 if log_decay is None else log_decay.shape)
    inputs = (torch.empty_like(token_by_token(x)) for x in (queries, keys, values))
    mixture = (x.new_empty(x.shape) for x in (weights, constant))
    return *inputs, *mixture, grad_log_decay, grad_state.new_empty(grad_state.shape)


def _gate(values: Tensor, log_decay: Tensor | None, segments: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """Log decays and segments as the kernels want them: a number for each token, one after another."""
    batch, _, length, _ = values.shape
    log_decay = None if log_decay is None else log_decay.contiguous()
    return log_decay, None if segments is None else segments.expand(batch, length).contiguous()


def _setup(ctx, inputs, output) -> None:
    ctx.set_materialize_grads(False)
    *tensors, _, _ = inputs
    result, state, *recorded = output
    ctx.state_shape = state.shape
    ctx.save_for_backward(*tensors, result, *recorded)


def _gradients(ctx, grad_output, grad_state, *_):
    *tensors, states = ctx.saved_tensors
    log_decay, output = tensors[7], tensors[9]
    grad_output = torch.zeros_like(output) if grad_output is None else grad_output
    grad_state = states.new_zeros(ctx.state_shape) if grad_state is None else grad_state
    *grads, grad_log_decay, grad_state = _backward(grad_output, grad_state, *tensors, states)
    grad_log_decay = None if log_decay is None else grad_log_decay
    return *grads, None, None, grad_log_decay, None, grad_state, None


fused_scan.register_autograd(_gradients, setup_context=_setup)
_backward.register_autograd(refuse_second_derivative)
