"""
The bidirectional form as one operator, forward and backward by hand: all keys write, then all queries read. There may
be fewer queries than keys, or none, and the other way round.

The operator walks in blocks of tokens, keeps its inputs, its output with the normaliser and the state, and computes
the responsibilities again in the backward. `torch.compile` takes it as one node. A second derivative is refused.

Inside, heads come before the batch.
"""

import torch
from torch import Tensor

from .routing_gma import (
    NAMESPACE,
    Block,
    Layout,
    RoutingGradients,
    Workspace,
    batch_first,
    extend_values,
    features,
    grad_weighted,
    read_weighted,
    refuse_second_derivative,
    route,
    rows_first,
)


QUERY, KEY = 0, 1  # the two sides of the score weights


def _blocks(x: Tensor) -> list[Block]:
    return Layout.of(x, sides=1, chunk_size=1, keep=False).blocks()


def _route(work, block: Block, x, weights, constant, centre, mask=None) -> tuple[Tensor, Tensor]:
    """Features of one side `[H, B * L, 2 d_r]`, and its responsibilities `[H * B, L, K]`."""
    side = features(work, block, [x], centre)
    gamma = route(work, side, weights, constant, out=work("gamma", *side.shape[:2], weights.shape[-1]))
    gamma = gamma.unflatten(1, (x.shape[0], -1)).flatten(0, 1)
    if mask is not None:
        gamma.unflatten(0, (-1, x.shape[0])).mul_(mask[:, block.start : block.stop, None])
    return side, gamma


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
    """Output, the state with all tokens in it, and for the backward the normaliser `GammaQ z + eps` `[H, B, N, 1]`."""
    with torch.autocast(device_type=values.device.type, enabled=False):
        output, last, normaliser = _buffers(queries, values, state)
        work, memory = Workspace(centre), rows_first(state)
        for block in _blocks(keys):
            _, gamma = _route(work, block, keys, weights[KEY], constant[KEY], centre, mask)
            memory.baddbmm_(gamma.mT, extend_values(work, block, values).flatten(0, 1))
        for block in _blocks(queries):
            _, gamma = _route(work, block, queries, weights[QUERY], constant[QUERY], centre)
            weighted = torch.bmm(gamma, memory, out=work("weighted", *gamma.shape[:2], memory.shape[-1]))
            read_weighted(block, weighted, epsilon, output, normaliser)
        last.copy_(batch_first(memory, values))
        return output, last, normaliser


@bidirectional_mix.register_fake
def _(queries, keys, values, weights, constant, centre, mask, state, epsilon):
    return _buffers(queries, values, state)


def _buffers(queries, values, state):
    batch, heads, length, _ = queries.shape
    output = values.new_empty(batch, length, heads, values.shape[-1]).transpose(1, 2)
    return output, state.new_empty(state.shape), state.new_empty(heads, batch, length, 1)


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
        query_side, key_side = (RoutingGradients([x], w) for x, w in zip((queries, keys), weights))
        grad_values = torch.empty_like(values)
        for block in _blocks(queries):
            x, gamma = _route(work, block, queries, weights[QUERY], constant[QUERY], centre)
            grad = grad_weighted(work, block, grad_output, output, normaliser).flatten(0, 1)
            grad_memory.baddbmm_(gamma.mT, grad)
            grad = torch.bmm(grad, memory.mT, out=work("grad_gamma", *gamma.shape))
            query_side.add(work, block, x, gamma, grad)
        for block in _blocks(keys):
            x, gamma = _route(work, block, keys, weights[KEY], constant[KEY], centre, mask)
            extended = extend_values(work, block, values).flatten(0, 1)
            grad = torch.bmm(extended, grad_memory.mT, out=work("grad_gamma", *gamma.shape))
            key_side.add(work, block, x, gamma, grad)
            target = grad_values.transpose(0, 1)[:, :, block.start : block.stop]
            target.copy_(torch.bmm(gamma, grad_memory[..., :-1]).view(target.shape))
        grad_weights = torch.stack([query_side.weights, key_side.weights])
        grad_constant = torch.stack([query_side.constant, key_side.constant])
        grad_inputs = (*query_side.inputs, *key_side.inputs, grad_values)
        return *grad_inputs, grad_weights, grad_constant, batch_first(grad_memory, values)


@_backward.register_fake
def _(grad_output, grad_state, queries, keys, values, weights, constant, centre, mask, output, state, normaliser):
    inputs = (torch.empty_like(x) for x in (queries, keys, values, weights, constant))
    return *inputs, state.new_empty(state.shape)


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
