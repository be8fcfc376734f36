"""
Mixing over a sequence, one token or many, by the first backend that has no problem with the inputs. Shapes as in
`equations_gma`.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .backend_torch_gma import torch_mix_bidirectional, torch_mix_causal, torch_mix_token, torch_problem
from .backend_triton_gma import triton_mix_causal, triton_mix_token, triton_problem
from .compat_gma import is_exporting
from .documents_gma import ONE_EACH, Documents
from .equations_gma import ScoreWeights, append_ones, read, reading_weights, responsibilities, routing_dtype
from .operators_gma import BidirectionalInputs, CausalInputs


class Backend(NamedTuple):
    """What a backend cannot take of some inputs, and how it mixes many tokens and one."""

    problem: Callable[[CausalInputs], str | None]
    mix: Callable[[CausalInputs, float, int], tuple[Tensor, Tensor]]
    mix_token: Callable[[CausalInputs, float, bool], tuple[Tensor, Tensor]]


# In the order in which `mixer_backend="auto"` asks them
BACKENDS = {
    "triton": Backend(triton_problem, triton_mix_causal, triton_mix_token),
    "torch": Backend(torch_problem, torch_mix_causal, torch_mix_token),
}


def mix_causal(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    scores: ScoreWeights,
    epsilon: float,
    chunk_size: int,
    documents: Documents = ONE_EACH,
    log_decay: Tensor | None = None,
    state: Tensor | None = None,
    backend: str = "auto",
    read_exponent: Tensor | None = None,
    in_place: bool = False,
) -> tuple[Tensor, Tensor]:
    """
    Return what token i reads of what tokens j <= i wrote (paper 3.6): `state_i = exp(log_decay_i) state_{i-1} +
    gammaK_i^T v'_i`.

    Args:
        queries, keys: `[B, H, N, d_r]`.
        values: `[B, H, N, d_v]`.
        scores: weights of the scores on both sides, from `score_weights`.
        epsilon: eps of the read.
        chunk_size: tokens per chunk of the torch backend; changes speed and memory, not the result.
        documents: padding and packing.
        log_decay: log of the forget gate, `[B, H, N]`, at most 0 (0 at masked tokens), or None for no forgetting.
        state: what was read before, `[B, H, K, d_v + 1]`, or None for nothing.
        backend: a name in `BACKENDS`, or `"auto"`.
        read_exponent: p of each head, `[H]`, see `reading_weights`; None for the paper's read.
        in_place: whether the state after one token may be written over `state`, contiguous, which is then returned.

    Returns:
        The output `[B, H, N, d_v]` in the dtype of the values (zeros for a token that has nothing to read), and the
        state after the last token, float32 (float64 for float64 inputs).

    Raises:
        ValueError: for a backend that is unknown, or that cannot be had here.
    """
    in_place, state = in_place and state is not None, _zero_state(values, scores) if state is None else state
    inputs = CausalInputs(
        queries, keys, values, *scores, documents.mask, log_decay, documents.ids, read_exponent, state
    )
    chosen = _choose(backend, inputs)
    if values.shape[2] == 1:
        return chosen.mix_token(inputs, epsilon, in_place)
    return chosen.mix(inputs, epsilon, chunk_size)


def mix_bidirectional(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    scores: ScoreWeights,
    epsilon: float,
    documents: Documents = ONE_EACH,
    state: Tensor | None = None,
    read_exponent: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """
    Return what every token reads of what all tokens wrote (paper 3.3): `M = GammaK^T V`, `z = GammaK^T 1`, `O = GammaQ
    M / (GammaQ z + eps)`.

    Args:
        queries, keys: `[B, H, N, d_r]`; the number of queries may be another than that of the keys, also 0.
        values: `[B, H, N, d_v]`.
        scores: weights of the scores on both sides, from `score_weights`.
        epsilon: eps of the read.
        documents: padding and packing. With packing each document becomes a row of its own, and so do the states, in
            their order, S in all.
        state: what else has been written, `[B, H, K, d_v + 1]` (`[S, H, K, d_v + 1]`), or None for nothing.
        read_exponent: p of each head, `[H]`, see `reading_weights`; None for the paper's read.

    Returns:
        The output `[B, H, N, d_v]` in the dtype of the values (zeros where there is nothing to read), and the state
        with all tokens in it.
    """
    if documents.ids is not None:
        rows = _Rows.of(documents)
        inputs = (rows.split(x) for x in (queries, keys, values))
        output, state = mix_bidirectional(*inputs, scores, epsilon, Documents(rows.mask), state, read_exponent)
        return rows.join(output), state
    state = _zero_state(values, scores) if state is None else state
    inputs = BidirectionalInputs(queries, keys, values, *scores, documents.mask, read_exponent, state)
    if is_exporting():  # what is exported runs elsewhere, where nobody knows our operator
        return _all_at_once(inputs, scores, epsilon)
    return torch_mix_bidirectional(inputs, epsilon)


def _choose(backend: str, inputs: CausalInputs) -> Backend:
    """Return the backend that is named, or the first that has no problem."""
    if backend == "auto":
        return next(known for known in BACKENDS.values() if known.problem(inputs) is None)
    if backend not in BACKENDS:
        raise ValueError(f"`mixer_backend` must be one of auto, {', '.join(BACKENDS)}, but it is {backend!r}.")
    if (found := BACKENDS[backend].problem(inputs)) is not None:
        raise ValueError(f"`mixer_backend` is {backend!r}, {found}, or set `mixer_backend` to 'auto' or 'torch'.")
    return BACKENDS[backend]


class _Rows(NamedTuple):
    """Where the tokens of packed rows `[B, N]` stand once every document has a row of its own, `[S, longest]`."""

    row: Tensor  # [B, N]
    place: Tensor  # [B, N]
    mask: Tensor  # [S, longest]

    @classmethod
    def of(cls, documents: Documents) -> "_Rows":
        place = documents.places()
        row = (place == 0).flatten().cumsum(0).view(place.shape) - 1
        mask = torch.zeros(int(row[-1, -1]) + 1, int(place.max()) + 1, dtype=torch.bool, device=place.device)
        mask[row, place] = True if documents.mask is None else documents.mask.bool()
        return cls(row, place, mask)

    def split(self, x: Tensor) -> Tensor:
        """Return `[B, H, N, d]` as `[S, H, longest, d]`."""
        empty = x.new_zeros(*self.mask.shape, x.shape[1], x.shape[-1])
        return empty.index_put((self.row, self.place), x.transpose(1, 2)).transpose(1, 2)

    def join(self, x: Tensor) -> Tensor:
        """Return `[S, H, longest, d]` as `[B, H, N, d]`."""
        return x.transpose(1, 2)[self.row, self.place].transpose(1, 2)


def _zero_state(values: Tensor, scores: ScoreWeights) -> Tensor:
    batch, heads, _, width = values.shape
    shape = (batch, heads, scores.constant.shape[-1], width + 1)
    return torch.zeros(shape, dtype=routing_dtype(values), device=values.device)


def _all_at_once(inputs: BidirectionalInputs, scores: ScoreWeights, epsilon: float) -> tuple[Tensor, Tensor]:
    values = inputs.values
    with torch.autocast(device_type=values.device.type, enabled=False):
        query_gamma, key_gamma = responsibilities(inputs.queries, inputs.keys, scores, inputs.mask)
        state = inputs.state + key_gamma.transpose(-1, -2) @ append_ones(values)
        weights = reading_weights(query_gamma, state[..., -1][:, :, None], inputs.read_exponent, epsilon)
        return read(weights @ state, epsilon).to(values.dtype), state
