"""
The bidirectional form as one operator, forward and backward by hand: all keys write, then all queries read. There may
be fewer queries than keys, or none, and the other way round.

The operator walks in blocks of tokens, keeps its inputs, its output with the normaliser and the state, and computes
the responsibilities again in the backward. `torch.compile` takes it as one node. A second derivative is refused.

Inside, heads come before the batch.
"""

from collections.abc import Iterable
from itertools import repeat

import torch
from torch import Tensor

from .routing_gma import (
    NAMESPACE,
    Layout,
    RoutingGradients,
    Workspace,
    batch_first,
    block_tokens,
    extend_values,
    features,
    grad_weighted,
    read_weighted,
    refuse_second_derivative,
    route,
    rows_first,
)


QUERY, KEY = 0, 1  # the two sides of the score weights


def _blocks(*tensors: Tensor | None) -> Iterable[tuple[Tensor | None, ...]]:
    """What the blocks of `[B, H, N, ...]`, the first of which is there, hold of each: `[H, B, L, ...]`, or None."""
    layout = Layout.of(tensors[0], block_tokens(tensors[0], sides=1), chunk_size=1, keep=False)
    return zip(*(repeat(None) if x is None else layout.cut(x.transpose(0, 1)) for x in tensors))


def _route(work, x, weights, constant, centre, mask=None) -> tuple[Tensor, Tensor]:
    """Features of a block of one side `[H, B * L, 2 d_r]`, and its responsibilities `[H * B, L, K]`."""
    heads, batch, length, _ = x.shape
    side = features(work, [x], centre)
    gamma = route(work, side, weights, constant, out=work("gamma", *side.shape[:2], weights.shape[-1]))
    if mask is not None:
        gamma.view(heads, batch, length, -1).mul_(mask)
    return side, gamma.view(heads * batch, length, -1)


@torch.library.custom_op(f"{NAMESPACE}::bidirectional", mutates_args=())
def bidirectional_mix(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    weights: Tensor,
    constant: Tensor,
    centre: Tensor,
    mask: Tensor | None,
    state: Tensor,
    epsilon: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Output, the state with all tokens in it, and for the backward the normaliser `GammaQ z + eps` `[B, H, N, 1]`."""
    with torch.autocast(device_type=values.device.type, enabled=False):
        output, last, normaliser = _buffers(queries, values, state)
        work, memory = Workspace(centre), rows_first(state)
        mask = None if mask is None else mask[:, None, :, None]
        for x, value, seen in _blocks(keys, values, mask):
            _, gamma = _route(work, x, weights[KEY], constant[KEY], centre, seen)
            memory.baddbmm_(gamma.mT, extend_values(work, value).flatten(0, 1))
        for x, *results in _blocks(queries, output, normaliser):
            _, gamma = _route(work, x, weights[QUERY], constant[QUERY], centre)
            weighted = torch.bmm(gamma, memory, out=work("weighted", *gamma.shape[:2], memory.shape[-1]))
            read_weighted(weighted, epsilon, *results)
        last.copy_(batch_first(memory, values))
        return output, last, normaliser


@bidirectional_mix.register_fake
def _(queries, keys, values, weights, constant, centre, mask, state, epsilon):
    return _buffers(queries, values, state)


def _buffers(queries, values, state):
    batch, heads, length, _ = queries.shape
    output = values.new_empty(batch, length, heads, values.shape[-1]).transpose(1, 2)
    return output, state.new_empty(state.shape), state.new_empty(batch, heads, length, 1)


@torch.library.custom_op(f"{NAMESPACE}::bidirectional_backward", mutates_args=())
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
    output: Tensor,
    state: Tensor,
    normaliser: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of queries, keys, values, weights, constant and the first state; `state`: with all tokens in it."""
    with torch.autocast(device_type=values.device.type, enabled=False):
        work, memory, grad_memory = Workspace(centre), rows_first(state), rows_first(grad_state)
        mask = None if mask is None else mask[:, None, :, None]
        query_side, key_side = RoutingGradients(weights[QUERY]), RoutingGradients(weights[KEY])
        grad_queries, grad_keys, grad_values = (torch.empty_like(x) for x in (queries, keys, values))
        for x, target, *incoming in _blocks(queries, grad_queries, grad_output, output, normaliser):
            x, gamma = _route(work, x, weights[QUERY], constant[QUERY], centre)
            grad = grad_weighted(work, *incoming).flatten(0, 1)
            grad_memory.baddbmm_(gamma.mT, grad)
            grad = torch.bmm(grad, memory.mT, out=work("grad_gamma", *gamma.shape))
            query_side.add(work, [target], x, gamma, grad)
        for x, target, value, value_target, seen in _blocks(keys, grad_keys, values, grad_values, mask):
            x, gamma = _route(work, x, weights[KEY], constant[KEY], centre, seen)
            extended = extend_values(work, value).flatten(0, 1)
            grad = torch.bmm(extended, grad_memory.mT, out=work("grad_gamma", *gamma.shape))
            key_side.add(work, [target], x, gamma, grad)
            value_target.copy_(torch.bmm(gamma, grad_memory[..., :-1]).view(value.shape))
        grad_weights = torch.stack([query_side.weights, key_side.weights])
        grad_constant = torch.stack([query_side.constant, key_side.constant])
        return grad_queries, grad_keys, grad_values, grad_weights, grad_constant, batch_first(grad_memory, values)


@_backward.register_fake
def _(grad_output, grad_state, queries, keys, values, weights, constant, centre, mask, output, state, normaliser):
    inputs = (torch.empty_like(x) for x in (queries, keys, values))
    mixture = (x.new_empty(x.shape) for x in (weights, constant))  # not in the layout of what they are the gradient of
    return *inputs, *mixture, state.new_empty(state.shape)


def _setup(ctx, inputs, output) -> None:
    ctx.set_materialize_grads(False)
    *tensors, _, _ = inputs
    ctx.save_for_backward(*tensors, *output)


def _gradients(ctx, grad_output, grad_state, _):
    tensors = ctx.saved_tensors  # once: gradient checkpointing unpacks them only once
    *_, output, state, _ = tensors
    grad_output = torch.zeros_like(output) if grad_output is None else grad_output
    grad_state = torch.zeros_like(state) if grad_state is None else grad_state
    *grads, grad_state = _backward(grad_output, grad_state, *tensors)
    return *grads, None, None, grad_state, None


bidirectional_mix.register_autograd(_gradients, setup_context=_setup)
_backward.register_autograd(refuse_second_derivative)
