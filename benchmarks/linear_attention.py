"""
Linear attention (Katharopoulos et al., 2020): features of queries and keys, the causal form in chunks, and the form
for one token with a state. Other features than elu(x) + 1 make other mixers of the same forms, such as Performer.
"""

import torch
import torch.nn.functional as F

from gma_hf.model.equations_gma import append_ones, decay_between, read


EPSILON = 1e-6  # of the division by the sum of the weights


def elu_features(x: torch.Tensor) -> torch.Tensor:
    """Return the features elu(x) + 1, none of them negative, in the dtype of the state."""
    return F.elu(x).to(torch.promote_types(x.dtype, torch.float32)) + 1


def chunked(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    chunk_size: int,
    log_decay: torch.Tensor | None = None,
) -> torch.Tensor:
    """
    Return causal attention with the kernel `features(q)^T features(k)`, in chunks as GMA's: within a chunk by its
    matrix, across chunks by a state. All chunks are computed at once and by autograd.

    Args:
        queries, keys: features, `[B, H, N, m]`, not negative.
        values: `[B, H, N, d_v]`.
        chunk_size: tokens per chunk.
        log_decay: logarithm of what each token leaves of the state before it, `[B, H, N]`, or None for all of it.

    Returns:
        `[B, H, N, d_v]`.
    """
    return read(summed(queries, keys, append_ones(values), chunk_size, log_decay), EPSILON).to(values.dtype)


def summed(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    chunk_size: int,
    log_decay: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return what `chunked` divides: the sum of the past values, each times kernel and decay, `[B, H, N, d_v]`."""
    length = queries.shape[2]
    padding = -length % chunk_size
    queries, keys, values = (
        F.pad(x, (0, 0, 0, padding)).contiguous().unflatten(2, (-1, chunk_size)) for x in (queries, keys, values)
    )
    if log_decay is None:
        written = keys.mT @ values
        before = written.cumsum(dim=2) - written
        weighted = (queries @ keys.mT).tril() @ values + queries @ before
    else:
        elapsed = F.pad(log_decay, (0, padding)).view(queries.shape[:-1]).cumsum(dim=-1)
        before = _states_before(keys, values, elapsed)
        weighted = ((queries @ keys.mT) * decay_between(elapsed)) @ values
        weighted = weighted + (queries * elapsed.exp()[..., None]) @ before
    return weighted.flatten(2, 3)[:, :, :length]


def _states_before(keys: torch.Tensor, values: torch.Tensor, elapsed: torch.Tensor) -> torch.Tensor:
    """Return the state before each chunk, `[B, H, chunks, m, d_v]`, where chunks forget."""
    kept = (elapsed[..., -1:] - elapsed).exp()
    written = (keys * kept[..., None]).mT @ values
    over_chunk = elapsed[..., -1].exp()[..., None, None]
    states, state = [], torch.zeros_like(written[:, :, 0])
    for chunk, forgotten in zip(written.unbind(2), over_chunk.unbind(2)):
        states.append(state)
        state = forgotten * state + chunk
    return torch.stack(states, dim=2)


def bidirectional(queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Return attention to all tokens with the same kernel, `[B, H, N, d_v]`."""
    return read(queries @ (keys.mT @ append_ones(values)), EPSILON).to(values.dtype)


def one_token(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, state: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Return the output for one more token, `[B, H, 1, d_v]`, and the state after it, `[B, H, m, d_v + 1]`.

    Args:
        queries, keys: features of the token, `[B, H, 1, m]`.
        values: `[B, H, 1, d_v]`.
        state: before the token; None at the beginning.
    """
    written = keys.mT @ append_ones(values)
    if state is not None:
        written += state
    return read(queries @ written, EPSILON).to(values.dtype), written
