"""
Token mixers with a state of fixed size in the place of GMA's, beside those of `baselines.py`: gated linear attention
(GLA; Yang et al., 2024), linear attention without a normaliser, the delta rule (DeltaNet; Yang et al., 2024) and the
gated delta rule (Yang et al., 2025). They are naive forms of our own, of plain torch and autograd, in chunks. Each
layer has GMA's projections, convolution and output gate, and an RMS norm of what each head reads.

Shapes, throughout: B batch, H heads, N tokens, d width of queries and keys, d_v of values. The state S is
`[B, H, d, d_v]`, and a token reads it after having written to it: `o_t = q_t^T S_t`.

They are for training and evaluation of rows without padding: none keeps a cache.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init

from gma_hf import GMAConfig
from gma_hf.model.attention_gma import GaussianMixtureAttention, Heads, MixerOutput
from gma_hf.model.documents_gma import ONE_EACH, Documents
from gma_hf.model.equations_gma import decay_between

from .linear_attention import elu_features, summed


GLA_CHUNK = 16
GLA_RANK = 16  # of the map that gives the decays
GLA_TEMPERATURE = 16  # decays are sigmoids to the power of one over it
GLA_TIME_SCALE = 1000.0  # tokens in which all channels forget at the start; with the usual 23 it hardly recalls
# A decay is exp(-5) or more, so that over half a chunk, which factors are relative to, it is exp(-40) or more
MIN_LOG_DECAY = -5.0
DELTA_CHUNK = 32


def in_chunks(x: Tensor, size: int) -> Tensor:
    """Return `[B, H, N, ...]` as `[B, H, chunks, size, ...]`, with zeros after the end."""
    padding = -x.shape[2] % size
    return F.pad(x, (0, 0) * (x.ndim - 3) + (0, padding)).contiguous().unflatten(2, (-1, size))


def gated_linear(queries: Tensor, keys: Tensor, values: Tensor, log_decay: Tensor) -> Tensor:
    """
    Return gated linear attention, `S_t = diag(a_t) S_{t-1} + k_t v_t^T`, in chunks.

    Args:
        queries, keys: `[B, H, N, d]`.
        values: `[B, H, N, d_v]`.
        log_decay: `log a_t` of each channel of the keys, `[B, H, N, d]`, from `MIN_LOG_DECAY` to 0.

    Returns:
        `[B, H, N, d_v]`.
    """
    length = queries.shape[2]
    queries, keys, values, log_decay = (in_chunks(x, GLA_CHUNK) for x in (queries, keys, values, log_decay))
    elapsed = log_decay.cumsum(dim=3)
    middle, end = elapsed[..., GLA_CHUNK // 2, None, :], elapsed[..., -1:, :]
    ahead = (elapsed - middle).exp()
    inside = ((queries * ahead) @ (keys * (middle - elapsed).exp()).mT).tril() @ values
    written = (keys * (end - elapsed).exp()).mT @ values
    states, state = [], torch.zeros_like(written[:, :, 0])
    for chunk, kept in zip(written.unbind(2), end.exp().mT.unbind(2)):
        states.append(state)
        state = torch.addcmul(chunk, kept, state)
    output = inside + (queries * elapsed.exp()) @ torch.stack(states, dim=2)
    return output.flatten(2, 3)[:, :, :length]


def delta(queries: Tensor, keys: Tensor, values: Tensor, beta: Tensor, log_decay: Tensor | None = None) -> Tensor:
    """
    Return the delta rule, `S_t = a_t (S_{t-1} - b_t k_t k_t^T S_{t-1}) + b_t k_t v_t^T`, with a_t = 1 or less, in
    chunks. What all tokens of a chunk write, `u_t = b_t (v_t - a_t k_t^T S_{t-1})`, solves a triangular system, whose
    right side is linear in the state before the chunk (the WY representation).

    Args:
        queries: `[B, H, N, d]`.
        keys: `[B, H, N, d]`, of length 1.
        values: `[B, H, N, d_v]`.
        beta: how much of what a key has is replaced, b_t, `[B, H, N]`.
        log_decay: `log a_t`, `[B, H, N]`, or None for a_t = 1.

    Returns:
        `[B, H, N, d_v]`.
    """
    length, width = queries.shape[2:]
    queries, keys, values, beta = (in_chunks(x, DELTA_CHUNK) for x in (queries, keys, values, beta))
    products = torch.cat([queries, keys], dim=3) @ keys.mT
    inside, overlap = products[..., :DELTA_CHUNK, :].tril(), products[..., DELTA_CHUNK:, :]
    if log_decay is None:
        from_start, written = keys, keys
    else:
        elapsed = in_chunks(log_decay, DELTA_CHUNK).cumsum(dim=3)
        between = decay_between(elapsed)
        inside, overlap = inside * between, overlap * between
        since_start = elapsed.exp()[..., None]
        queries, from_start = queries * since_start, keys * since_start
        written = keys * (elapsed[..., -1:] - elapsed).exp()[..., None]
    beta = beta[..., None]
    sides = torch.cat([from_start, values], dim=-1) * beta
    # `unitriangular`: the diagonal and what is above it are not read
    solved = torch.linalg.solve_triangular((overlap * beta).tril(-1), sides, upper=False, unitriangular=True)
    removed, added = solved.split([width, values.shape[-1]], dim=-1)
    state = torch.zeros_like(keys[:, :, 0].mT @ values[:, :, 0])
    states, updates = [], []
    for index in range(keys.shape[2]):
        update = added[:, :, index] - removed[:, :, index] @ state
        states.append(state)
        updates.append(update)
        if log_decay is not None:
            state = state * since_start[:, :, index, -1:]
        state = state + written[:, :, index].mT @ update
    output = inside @ torch.stack(updates, dim=2) + queries @ torch.stack(states, dim=2)
    return output.flatten(2, 3)[:, :, :length]


class NormedAttention(GaussianMixtureAttention):
    """GMA's layer (projections, convolution, gates) with another way to mix, and an RMS norm of what heads read."""

    def __init__(self, config: GMAConfig, layer_idx: int):
        super().__init__(config, layer_idx)
        del self.mixture
        self.norm = nn.RMSNorm(config.head_dim, eps=1e-5)

    def mixed(self, heads: Heads, hidden_states: Tensor) -> Tensor:
        """Return what the heads read, `[B, H, N, d_v]`; `hidden_states` is the layer's input, `[B, N, hidden]`."""
        raise NotImplementedError

    def of_heads(self, x: Tensor) -> Tensor:
        """Return `[B, N, H * m]` as `[B, H, N, m]`."""
        return x.unflatten(-1, (self.config.num_attention_heads, -1)).transpose(1, 2)

    def forward(self, hidden_states: Tensor, documents: Documents = ONE_EACH, **kwargs: Any) -> MixerOutput:
        """Return what the layer gives for `[B, N, hidden]`, rows without padding."""
        heads, _ = self.project(hidden_states, documents, {})
        return MixerOutput(self.join(self.norm(self.mixed(heads, hidden_states)), hidden_states))


class UnnormalizedLinearAttention(NormedAttention):
    """Features elu(x) + 1, and no division by the sum of the weights."""

    def mixed(self, heads: Heads, hidden_states: Tensor) -> Tensor:
        features = elu_features(heads.queries), elu_features(heads.keys)
        return summed(*features, heads.values, self.config.chunk_size, heads.log_decay)


class DecayLogits(nn.Linear):
    """The logits of GLA's decays from a few features, which start the same for all channels."""

    def start(self) -> None:
        """Start with decays of `GLA_TIME_SCALE` tokens."""
        decay = torch.tensor(-GLA_TEMPERATURE / GLA_TIME_SCALE, dtype=torch.float64).exp()
        init.constant_(self.bias, decay.logit().item())


class GatedLinearAttention(NormedAttention):
    """
    GLA: a decay for each channel of the keys, from the input by a map of low rank. Queries and keys pass through silu,
    as they do where GLA and its kin have a short convolution; without it, recall is hardly learned.
    """

    def __init__(self, config: GMAConfig, layer_idx: int):
        super().__init__(config, layer_idx)
        width = config.num_attention_heads * config.routing_dim
        self.decay_down = nn.Linear(config.hidden_size, GLA_RANK, bias=False)
        self.decay_up = DecayLogits(GLA_RANK, width)

    def mixed(self, heads: Heads, hidden_states: Tensor) -> Tensor:
        logits = self.of_heads(self.decay_up(self.decay_down(hidden_states)))
        log_decay = (F.logsigmoid(logits) / GLA_TEMPERATURE).clamp_min(MIN_LOG_DECAY)
        queries = F.silu(heads.queries) * heads.queries.shape[-1] ** -0.5
        return gated_linear(queries, F.silu(heads.keys), heads.values, log_decay)


class DeltaRule(NormedAttention):
    """DeltaNet: silu of queries and keys, of length 1; what a key has is replaced by a share. With a forget gate: the
    gated delta rule."""

    def __init__(self, config: GMAConfig, layer_idx: int):
        super().__init__(config, layer_idx)
        self.beta = nn.Linear(config.hidden_size, config.num_attention_heads)

    def mixed(self, heads: Heads, hidden_states: Tensor) -> Tensor:
        queries, keys = (F.normalize(F.silu(x), dim=-1) for x in (heads.queries, heads.keys))
        beta = self.beta(hidden_states).sigmoid().transpose(1, 2)
        return delta(queries, keys, heads.values, beta, heads.log_decay)
