"""
Mixing over a sequence: many tokens by the operators of `causal_gma` and `bidirectional_gma`, the causal form on a GPU
by those of `fused_gma` or of flash-linear-attention, and one token by plain tensor operations. Shapes as in
`functional_gma`.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from .backend_gma import choose_backend
from .bidirectional_gma import bidirectional_mix
from .causal_gma import causal_scan
from .fla_gma import mix_with_fla
from .functional_gma import ScoreWeights, append_ones, read, responsibilities, routing_dtype
from .fused_gma import fused_scan


def mix_causal(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    scores: ScoreWeights,
    epsilon: float,
    chunk_size: int,
    mask: Tensor | None = None,
    log_decay: Tensor | None = None,
    segments: Tensor | None = None,
    state: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """
    Token i reads what tokens j <= i wrote (paper 3.6): `state_i = exp(log_decay_i) state_{i-1} + gammaK_i^T v'_i`.

    Args:
        queries, keys: `[B, H, N, d_r]`.
        values: `[B, H, N, d_v]`.
        scores: weights of the scores on both sides, from `score_weights`.
        epsilon: eps of the read.
        chunk_size: tokens per chunk of the torch path; changes speed and memory, not the result.
        mask: `[B, N]`, False where a token must not write, or None.
        log_decay: log of the forget gate, `[B, H, N]`, at most 0 (0 at masked tokens), or None for no forgetting.
        segments: `[B, N]`, never falling along a row: a token reads what its own segment wrote, and `state` is what
            segment 0 wrote. None for one segment.
        state: what was read before, `[B, H, K, d_v + 1]`, or None for nothing.
        backend: `"torch"`, `"triton"` (our kernels), `"fla"` (flash-linear-attention) or `"auto"`, see
            `choose_backend`. One token and float64 go through torch in any case, and segments instead of through
            flash-linear-attention.

    Returns:
        The output `[B, H, N, d_v]` in the dtype of the values (zeros for a token that has nothing to read), and the
        state after the last token, float32 (float64 for float64 inputs).

    Raises:
        ValueError: for a `backend` that is unknown, or that cannot be had here.
    """
    backend = choose_backend(backend, queries, scores)
    if backend == "fla" and values.shape[2] > 1 and segments is None:
        return mix_with_fla(queries, keys, values, scores, epsilon, mask, log_decay, state)
    state = _zero_state(values, scores) if state is None else state
    if values.shape[2] == 1:
        return _one_token(queries, keys, values, scores, epsilon, mask, log_decay, segments, state)
    tensors = (queries, keys, values, *scores, mask, log_decay, segments, state)
    if backend == "triton":
        output, state, *_ = fused_scan(*tensors, epsilon)
    else:
        output, state, *_ = causal_scan(*tensors, epsilon, chunk_size, torch.is_grad_enabled())
    return output, state


def mix_bidirectional(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    scores: ScoreWeights,
    epsilon: float,
    mask: Tensor | None = None,
    segments: Tensor | None = None,
    state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """
    Every token reads what all tokens wrote: `M = GammaK^T V`, `z = GammaK^T 1`, `O = GammaQ M / (GammaQ z + eps)`.

    Args:
        queries, keys: `[B, H, N, d_r]`; the number of queries may be another than that of the keys, also 0.
        values: `[B, H, N, d_v]`.
        scores: weights of the scores on both sides, from `score_weights`.
        epsilon: eps of the read.
        mask: `[B, N]`, False where a token must not write, or None.
        segments: `[B, N]`, never falling along a row: a token reads what its own segment wrote. Each segment becomes a
            row of its own, and so do the states, in their order, S in all. None for one segment.
        state: what else has been written, `[B, H, K, d_v + 1]` (`[S, H, K, d_v + 1]`), or None for nothing.

    Returns:
        The output `[B, H, N, d_v]` in the dtype of the values (zeros where there is nothing to read), and the state
        with all tokens in it.
    """
    if segments is not None:
        rows = _Rows.of(segments, mask)
        inputs = (rows.split(x) for x in (queries, keys, values))
        output, state = mix_bidirectional(*inputs, scores, epsilon, rows.mask, state=state)
        return rows.join(output), state
    state = _zero_state(values, scores) if state is None else state
    if torch.compiler.is_exporting():  # what is exported runs elsewhere, where nobody knows our operator
        return _all_at_once(queries, keys, values, scores, epsilon, mask, state)
    output, state, _ = bidirectional_mix(queries, keys, values, *scores, mask, state, epsilon)
    return output, state


class _Rows(NamedTuple):
    """Where the tokens of packed rows `[B, N]` stand once every segment has a row of its own, `[S, longest]`."""

    row: Tensor  # [B, N]
    place: Tensor  # [B, N]
    mask: Tensor  # [S, longest]

    @classmethod
    def of(cls, segments: Tensor, mask: Tensor | None) -> "_Rows":
        is_first = segments.diff(dim=1, prepend=segments[:, :1] - 1) != 0
        row = is_first.flatten().cumsum(0).view(segments.shape) - 1
        token = torch.arange(segments.shape[1], device=segments.device).expand_as(segments)
        place = token - torch.where(is_first, token, 0).cummax(dim=1).values
        rows = torch.zeros(int(row[-1, -1]) + 1, int(place.max()) + 1, dtype=torch.bool, device=segments.device)
        rows[row, place] = torch.ones_like(is_first) if mask is None else mask.bool()
        return cls(row, place, rows)

    def split(self, x: Tensor) -> Tensor:
        """`[B, H, N, d]` to `[S, H, longest, d]`."""
        empty = x.new_zeros(*self.mask.shape, x.shape[1], x.shape[-1])
        return empty.index_put((self.row, self.place), x.transpose(1, 2)).transpose(1, 2)

    def join(self, x: Tensor) -> Tensor:
        """`[S, H, longest, d]` to `[B, H, N, d]`."""
        return x.transpose(1, 2)[self.row, self.place].transpose(1, 2)


def _zero_state(values: Tensor, scores: ScoreWeights) -> Tensor:
    batch, heads, _, width = values.shape
    shape = (batch, heads, scores.constant.shape[-1], width + 1)
    return torch.zeros(shape, dtype=routing_dtype(values), device=values.device)


def _one_token(queries, keys, values, scores, epsilon, mask, log_decay, segments, state):
    with torch.autocast(device_type=values.device.type, enabled=False):
        query_gamma, key_gamma = responsibilities(queries, keys, scores, mask)
        if log_decay is not None:
            state = state * log_decay.exp()[..., None]
        if segments is not None:
            state = state * (segments == 0)[:, None, :, None]
        state = state + key_gamma.transpose(-1, -2) * append_ones(values)
        return read(query_gamma @ state, epsilon).to(values.dtype), state


def _all_at_once(queries, keys, values, scores, epsilon, mask, state):
    with torch.autocast(device_type=values.device.type, enabled=False):
        query_gamma, key_gamma = responsibilities(queries, keys, scores, mask)
        state = state + key_gamma.transpose(-1, -2) @ append_ones(values)
        return read(query_gamma @ state, epsilon).to(values.dtype), state
