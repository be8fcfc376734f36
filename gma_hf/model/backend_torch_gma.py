"""Mixing in plain torch, on any device and in any dtype: what every other backend falls back to."""

import torch
from torch import Tensor

from .equations_gma import ScoreWeights, append_ones, read, reading_weights, responsibilities
from .operators_gma import BidirectionalInputs, CausalInputs
from .torch_bidirectional_gma import bidirectional_mix
from .torch_causal_gma import causal_scan


def torch_problem(inputs: CausalInputs) -> str | None:
    """Return None: torch takes everything."""
    return None


def torch_mix_causal(inputs: CausalInputs, epsilon: float, chunk_size: int) -> tuple[Tensor, Tensor]:
    """Return the output and the last state, computed in chunks of `chunk_size` tokens."""
    results = causal_scan(inputs, epsilon, chunk_size, torch.is_grad_enabled())
    return results.output, results.state


def torch_mix_token(inputs: CausalInputs, epsilon: float, in_place: bool) -> tuple[Tensor, Tensor]:
    """Return the output of one token and the state after it, which is a new tensor in any case."""
    values, state = inputs.values, inputs.state
    scores = ScoreWeights(inputs.weights, inputs.constant, inputs.centre)
    with torch.autocast(device_type=values.device.type, enabled=False):
        query_gamma, key_gamma = responsibilities(inputs.queries, inputs.keys, scores, inputs.mask)
        if inputs.log_decay is not None:
            state = state * inputs.log_decay.exp()[..., None]
        if inputs.document_ids is not None:
            state = state * (inputs.document_ids == 0)[:, None, :, None]
        state = torch.addcmul(state, key_gamma.mT, append_ones(values))
        weights = reading_weights(query_gamma, state[..., -1][:, :, None], inputs.read_exponent, epsilon)
        return read(weights @ state, epsilon).to(values.dtype), state


def torch_mix_bidirectional(inputs: BidirectionalInputs, epsilon: float) -> tuple[Tensor, Tensor]:
    """Return the output, and the state with all tokens in it."""
    results = bidirectional_mix(inputs, epsilon)
    return results.output, results.state
