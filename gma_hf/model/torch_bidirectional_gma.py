"""
The bidirectional form in plain torch as one operator, forward and backward by hand: all keys write, then all queries
read (paper 3.3). There may be fewer queries than keys, or none, and the other way round.

The operator walks in blocks of tokens, keeps its inputs, its output with the normaliser and the state, and computes
the responsibilities again in the backward.

Inside, heads come before the batch.
"""

from collections.abc import Iterable
from itertools import repeat
from typing import NamedTuple

import torch
from torch import Tensor

from .operators_gma import BidirectionalGradients, BidirectionalInputs, Form, Operator
from .torch_routing_gma import (
    Layout,
    Lifted,
    RoutingGradients,
    Workspace,
    batch_first,
    block_tokens,
    extend_values,
    features,
    grad_scores,
    grad_weighted,
    read_weighted,
    rows_first,
    score,
)


QUERY, KEY = 0, 1  # the two sides of the score weights


class BidirectionalResults(NamedTuple):
    """What the tokens read, the state with all tokens in it, and what the backward needs."""

    output: Tensor  # [B, H, N, d_v]
    state: Tensor  # [B, H, K, d_v + 1]
    normaliser: Tensor  # GammaQ z + eps, [B, H, N, 1]


def _blocks(*tensors: Tensor | None) -> Iterable[tuple[Tensor | None, ...]]:
    """Yield what each block holds of tensors `[B, H, N, ...]`, of which some may be None: `[H, B, L, ...]`."""
    layout = Layout.of(tensors[0], block_tokens(tensors[0], sides=1), chunk_size=1, keep=False)
    return zip(*(repeat(None) if x is None else layout.cut(x.transpose(0, 1)) for x in tensors))


def _route(
    work: Workspace, inputs: BidirectionalInputs, side: int, x, mask=None, lifted: Lifted | None = None
) -> tuple[Tensor, Tensor]:
    """Return features `[H, B * L, 2 d_r]` and responsibilities `[H * B, L, K]` of a block of one side."""
    heads, batch, length, _ = x.shape
    made = features(work, [x], inputs.centre)
    scores = score(work, made, inputs.weights[side], inputs.constant[side]).view(heads * batch, length, -1)
    if lifted is not None:
        lifted.lift(scores)
    gamma = torch.softmax(scores, dim=-1, out=work("gamma", *scores.shape))
    if mask is not None:
        gamma.view(heads, batch, length, -1).mul_(mask)
    return made, gamma


def _lifted(inputs: BidirectionalInputs, memory: Tensor, epsilon: float) -> Lifted | None:
    """Return what a read exponent makes of the queries' scores, from the state; None without one."""
    if inputs.read_exponent is None:
        return None
    held = memory[:, None, :, -1] + epsilon
    return Lifted.of(held, held.log(), inputs.read_exponent)


def _by_token(mask: Tensor | None) -> Tensor | None:
    return None if mask is None else mask[:, None, :, None]


def _new_results(inputs: BidirectionalInputs, epsilon: float) -> BidirectionalResults:
    batch, heads, length, _ = inputs.queries.shape
    values, state = inputs.values, inputs.state
    return BidirectionalResults(
        output=values.new_empty(batch, length, heads, values.shape[-1]).transpose(1, 2),
        state=state.new_empty(state.shape),
        normaliser=state.new_empty(batch, heads, length, 1),
    )


def _forward(inputs: BidirectionalInputs, epsilon: float) -> BidirectionalResults:
    results = _new_results(inputs, epsilon)
    work, memory = Workspace(inputs.centre), rows_first(inputs.state)
    for x, value, seen in _blocks(inputs.keys, inputs.values, _by_token(inputs.mask)):
        _, gamma = _route(work, inputs, KEY, x, seen)
        memory.baddbmm_(gamma.mT, extend_values(work, value).flatten(0, 1))
    lifted = _lifted(inputs, memory, epsilon)
    for x, output, normaliser in _blocks(inputs.queries, results.output, results.normaliser):
        _, gamma = _route(work, inputs, QUERY, x, lifted=lifted)
        weighted = torch.bmm(gamma, memory, out=work("weighted", *gamma.shape[:2], memory.shape[-1]))
        read_weighted(weighted, epsilon, output, normaliser)
    results.state.copy_(batch_first(memory, inputs.values))
    return results


def _new_gradients(inputs: BidirectionalInputs) -> BidirectionalGradients:
    return BidirectionalGradients(
        *(torch.empty_like(x) for x in (inputs.queries, inputs.keys, inputs.values)),
        weights=inputs.weights.new_empty(inputs.weights.shape),  # not in the layout of the weights, which may expand
        constant=inputs.constant.new_empty(inputs.constant.shape),
        read_exponent=inputs.state.new_zeros(0 if inputs.read_exponent is None else len(inputs.read_exponent)),
        state=inputs.state.new_empty(inputs.state.shape),
    )


def _backward(
    grad_output: Tensor,
    grad_state: Tensor,
    inputs: BidirectionalInputs,
    results: BidirectionalResults,
    epsilon: float,
) -> BidirectionalGradients:
    grads = _new_gradients(inputs)
    work, memory, grad_memory = Workspace(inputs.centre), rows_first(results.state), rows_first(grad_state)
    query_side, key_side = RoutingGradients(inputs.weights[QUERY]), RoutingGradients(inputs.weights[KEY])
    of_output = (grad_output, results.output, results.normaliser)
    lifted = _lifted(inputs, memory, epsilon)
    for x, target, *incoming in _blocks(inputs.queries, grads.queries, *of_output):
        x, gamma = _route(work, inputs, QUERY, x, lifted=lifted)
        grad = grad_weighted(work, *incoming).flatten(0, 1)
        grad_memory.baddbmm_(gamma.mT, grad)
        grad = torch.bmm(grad, memory.mT, out=work("grad_gamma", *gamma.shape))
        grad = grad_scores(gamma, grad, out=work("scores", *gamma.shape))
        query_side.add(work, [target], x, grad)
        if lifted is not None:
            grad_memory[..., -1].add_(lifted.grad_held(work, grad).sum(1))
            grads.read_exponent.add_(lifted.grad_exponent(grad, len(grads.read_exponent)))
    of_keys = (inputs.keys, grads.keys, inputs.values, grads.values, _by_token(inputs.mask))
    for x, target, value, value_target, seen in _blocks(*of_keys):
        x, gamma = _route(work, inputs, KEY, x, seen)
        extended = extend_values(work, value).flatten(0, 1)
        grad = torch.bmm(extended, grad_memory.mT, out=work("grad_gamma", *gamma.shape))
        key_side.add(work, [target], x, grad_scores(gamma, grad, out=work("scores", *gamma.shape)))
        value_target.copy_(torch.bmm(gamma, grad_memory[..., :-1]).view(value.shape))
    return grads._replace(
        weights=torch.stack([query_side.weights, key_side.weights]),
        constant=torch.stack([query_side.constant, key_side.constant]),
        state=batch_first(grad_memory, inputs.values),
    )


bidirectional_mix = Operator(
    Form(
        name="bidirectional",
        inputs=BidirectionalInputs,
        results=BidirectionalResults,
        gradients=BidirectionalGradients,
        settings="float epsilon",
        new_results=_new_results,
        forward=_forward,
        new_gradients=_new_gradients,
        backward=_backward,
    )
)
