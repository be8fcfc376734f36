"""
The causal form by our Triton kernels (paper 3.6). Many tokens are one operator, which keeps its inputs, its output
with the normaliser and the states between chunks, and computes the responsibilities again in the backward; one token
is another, without a backward.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from .backend_torch_gma import torch_mix_token
from .compat_gma import is_exporting
from .kernels_chunks_gma import CHUNK
from .kernels_gma import IS_INTERPRETED, has_kernels, token_by_token
from .kernels_routing_gma import MAX_COMPONENTS, launch_route, launch_route_backward
from .kernels_scan_gma import scan, scan_backward
from .kernels_token_gma import step, step_in_place
from .operators_gma import CausalGradients, CausalInputs, Form, Operator


def triton_problem(inputs: CausalInputs) -> str | None:
    """Return what the kernels cannot take of these inputs, and what would mend it; None where they take them."""
    queries, components = inputs.queries, inputs.constant.shape[-1]
    if torch.float64 in (queries.dtype, inputs.weights.dtype):
        return "whose kernels compute in float32, but the inputs are float64: load the model in another dtype"
    if not (queries.is_cuda or IS_INTERPRETED):
        return f"which needs a model on a CUDA device, but it is on {queries.device.type}: move it"
    if not has_kernels(queries.device):
        return (
            "which needs Triton and an NVIDIA GPU of compute capability 8.0 or more: install Triton, take such a GPU"
        )
    if components > MAX_COMPONENTS:
        return f"whose kernels take at most {MAX_COMPONENTS} components, but there are {components}: take fewer"
    return None


def triton_mix_causal(inputs: CausalInputs, epsilon: float, chunk_size: int) -> tuple[Tensor, Tensor]:
    """Return the output and the last state; the kernels have chunks of their own size."""
    results = fused_scan(inputs, epsilon)
    return results.output, results.state


def triton_mix_token(inputs: CausalInputs, epsilon: float, in_place: bool) -> tuple[Tensor, Tensor]:
    """Return the output of one token and the state after it; by plain torch where a gradient may be asked for."""
    if torch.is_grad_enabled() or is_exporting():
        return torch_mix_token(inputs, epsilon, in_place)
    if in_place:
        return step_in_place(*inputs, epsilon), inputs.state
    return step(*inputs, epsilon)


class FusedResults(NamedTuple):
    """What the tokens read, the last state, and what the backward needs."""

    output: Tensor  # [B, H, N, d_v]
    state: Tensor  # [B, H, K, d_v + 1]
    normaliser: Tensor  # what the read was divided by, [B, H, N]
    states: Tensor  # before each chunk, [B, H, chunks, K * (d_v + 1)]


def _new_results(inputs: CausalInputs, epsilon: float) -> FusedResults:
    batch, heads, length, _ = inputs.values.shape
    _, _, components, width = inputs.state.shape
    chunks = -(-length // CHUNK)
    return FusedResults(
        output=torch.empty_like(token_by_token(inputs.values)),
        state=inputs.state.new_empty(inputs.state.shape),
        normaliser=inputs.state.new_empty(batch, heads, length),
        states=inputs.state.new_empty(batch, heads, chunks, components * width),
    )


def _forward(inputs: CausalInputs, epsilon: float) -> FusedResults:
    gamma = launch_route(inputs)
    tensors = (token_by_token(inputs.values), *_by_token(inputs), inputs.read_exponent, inputs.state.contiguous())
    with torch.cuda.device_of(inputs.values):
        return FusedResults(*scan(gamma, *tensors, epsilon))


def _new_gradients(inputs: CausalInputs) -> CausalGradients:
    log_decay = inputs.log_decay
    return CausalGradients(
        *(torch.empty_like(token_by_token(x)) for x in (inputs.queries, inputs.keys, inputs.values)),
        weights=inputs.weights.new_empty(inputs.weights.shape),
        constant=inputs.constant.new_empty(inputs.constant.shape),
        log_decay=inputs.state.new_empty(0 if log_decay is None else log_decay.shape),
        read_exponent=inputs.state.new_empty(0 if inputs.read_exponent is None else len(inputs.read_exponent)),
        state=inputs.state.new_empty(inputs.state.shape),
    )


def _backward(
    grad_output: Tensor, grad_state: Tensor, inputs: CausalInputs, results: FusedResults, epsilon: float
) -> CausalGradients:
    gamma = launch_route(inputs)
    tensors = (token_by_token(inputs.values), *_by_token(inputs), inputs.read_exponent, *results[:1], *results[2:])
    with torch.cuda.device_of(inputs.values):
        of_scan = scan_backward(token_by_token(grad_output), grad_state.contiguous(), gamma, *tensors, epsilon)
    of_routing = launch_route_backward(of_scan.gamma, inputs, gamma)
    return CausalGradients(
        queries=of_routing.queries,
        keys=of_routing.keys,
        values=of_scan.values,
        weights=of_routing.weights,
        constant=of_routing.constant,
        log_decay=inputs.state.new_empty(0) if of_scan.log_decay is None else of_scan.log_decay,
        read_exponent=inputs.state.new_empty(0) if of_scan.read_exponent is None else of_scan.read_exponent,
        state=of_scan.state,
    )


def _by_token(inputs: CausalInputs) -> tuple[Tensor | None, Tensor | None]:
    """Return log decays and documents as the kernels want them: a number for each token, one after another."""
    batch, _, length, _ = inputs.values.shape
    log_decay, ids = inputs.log_decay, inputs.document_ids
    log_decay = None if log_decay is None else log_decay.contiguous()
    return log_decay, None if ids is None else ids.expand(batch, length).contiguous()


fused_scan = Operator(
    Form(
        name="fused",
        inputs=CausalInputs,
        results=FusedResults,
        gradients=CausalGradients,
        settings="float epsilon",
        new_results=_new_results,
        forward=_forward,
        new_gradients=_new_gradients,
        backward=_backward,
    )
)
