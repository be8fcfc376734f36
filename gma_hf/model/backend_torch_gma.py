"""Mixing in plain torch, on any device and in any dtype: what every other backend falls back to."""

import torch
from torch import Tensor

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


def torch_mix_bidirectional(inputs: BidirectionalInputs, epsilon: float) -> tuple[Tensor, Tensor]:
    """Return the output, and the state with all tokens in it."""
    results = bidirectional_mix(inputs, epsilon)
    return results.output, results.state
