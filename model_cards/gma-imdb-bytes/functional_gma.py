"""
The equations of Gaussian Mixture Attention as pure functions on tensors; `mixing_gma` mixes sequences with them.

Shapes, throughout: B batch, H heads, N tokens, K components, d_r routing width, d_v value width. A *state* is one
tensor `[B, H, K, d_v + 1]`: the memory M in its first d_v columns and the mass z in the last one. Responsibilities and
states are float32, whatever the dtype of the inputs (float64 for float64 inputs).
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F


# exp(-20) = 2e-9 forgets everything that float32 can tell apart. The bound keeps sums of log decays over a chunk small
# enough for their differences to be good to 5e-4 in the worst case of a chunk of 256 closed gates.
MIN_LOG_DECAY = -20.0


def routing_dtype(x: torch.Tensor) -> torch.dtype:
    """The dtype in which `x` is routed and remembered: float64 for float64, float32 for everything else."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


class ScoreWeights(NamedTuple):
    """
    The scores of both sides as one linear map of the features `[x * x, x]` of centred x: `features @ weights +
    constant`, the first index being the side (0: queries, which read; 1: keys, which write).
    """

    weights: torch.Tensor  # [2, H, 2 d_r, K]
    constant: torch.Tensor  # [2, H, K]
    centre: torch.Tensor  # [H, d_r]


def score_weights(
    means: torch.Tensor,
    variances: torch.Tensor,
    prior_logits: torch.Tensor,
    temperature: torch.Tensor | None = None,
) -> ScoreWeights:
    """
    What turns queries and keys into scores `log pi_k + log N(x; mu_k, diag(sigma_k^2))` (paper eq. 2), up to what is
    the same for all components of a head and drops out of the softmax.

    That is why a common centre may be taken off x and the means, and a common precision off the squares: expanding
    `(x - mu)^2` without it cancels badly in float32. For the same reason the centre is a constant to the gradient.

    Args:
        means: mu, `[H, K, d_r]`.
        variances: sigma^2, `[H, K, d_r]`, positive.
        prior_logits: alpha with `pi = softmax(alpha)`, `[H, K]`.
        temperature: factor on the scores per side and head, `[2, H]`, or None for 1.

    Returns:
        Float32 tensors (float64 for float64 parameters).
    """
    with torch.autocast(device_type=means.device.type, enabled=False):
        dtype = routing_dtype(means)
        means, variances, prior_logits = means.to(dtype), variances.to(dtype), prior_logits.to(dtype)
        centre = means.detach().mean(dim=1)
        means = means - centre[:, None]
        precision = variances.reciprocal()
        linear = means * precision
        constant = prior_logits - 0.5 * (variances.log() + means * linear).sum(dim=-1)
        quadratic = -0.5 * (precision - precision.mean(dim=1, keepdim=True))
        weights = torch.cat([quadratic, linear], dim=-1).transpose(1, 2)
        if temperature is None:
            return ScoreWeights(weights.expand(2, -1, -1, -1), constant.expand(2, -1, -1), centre)
        temperature = temperature.to(dtype)[..., None]
        return ScoreWeights(weights * temperature[..., None], constant * temperature, centre)


def responsibilities(
    queries: torch.Tensor, keys: torch.Tensor, scores: ScoreWeights, mask: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Posterior responsibilities `gamma_k(x) = softmax_k(log pi_k + log N(x; mu_k, diag(sigma_k^2)))` (paper eq. 2).

    Args:
        queries, keys: `[B, H, N, d_r]`.
        scores: from `score_weights`.
        mask: `[B, N]`, False where a token must not write; the responsibilities of its key become zero.

    Returns:
        Those of queries and of keys, `[B, H, N, K]`, float32 (float64 for float64 parameters), each row summing to
        one, or to zero where masked.
    """
    with torch.autocast(device_type=queries.device.type, enabled=False):
        x = torch.stack([queries, keys]).to(scores.centre.dtype) - scores.centre[:, None]
        features = torch.cat([x * x, x], dim=-1)
        gamma = (features @ scores.weights[:, None] + scores.constant[:, None, :, None]).softmax(dim=-1)
        query_gamma, key_gamma = gamma
        return query_gamma, key_gamma if mask is None else key_gamma * mask[:, None, :, None]


def append_ones(values: torch.Tensor) -> torch.Tensor:
    """Values `[B, H, N, d_v]` with a column of ones, `[B, H, N, d_v + 1]`, in the dtype of the state."""
    return F.pad(values.to(routing_dtype(values)), (0, 1), value=1.0)


def read(weighted: torch.Tensor, epsilon: float) -> torch.Tensor:
    """`GammaQ M / (GammaQ z + eps)` from `GammaQ [M, z]`, `[..., d_v + 1]` to `[..., d_v]`."""
    return weighted[..., :-1] / (weighted[..., -1:] + epsilon)


def decay_between(elapsed: torch.Tensor) -> torch.Tensor:
    """`exp(sum of log decays in (j, i])` for j <= i and 0 above the diagonal: `[..., C]` to `[..., C, C]`."""
    size = elapsed.shape[-1]
    future = torch.ones(size, size, dtype=torch.bool, device=elapsed.device).triu(1)
    return (elapsed[..., :, None] - elapsed[..., None, :]).masked_fill(future, float("-inf")).exp()


def log_forget_gate(logits: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """
    Log of the forget gate, `max(log sigmoid(logits), MIN_LOG_DECAY)`, and 0 where a token is masked.

    Args:
        logits: `[B, N, H]`.
        mask: `[B, N]`, False where a token must leave the state as it is.

    Returns:
        `[B, H, N]` in the dtype of the state.
    """
    log_gate = F.logsigmoid(logits.to(routing_dtype(logits))).clamp_min(MIN_LOG_DECAY)
    if mask is not None:
        log_gate = log_gate * mask[..., None]
    return log_gate.transpose(1, 2)


def affinity(
    query_gamma: torch.Tensor,
    key_gamma: torch.Tensor,
    epsilon: float,
    causal: bool,
    state: torch.Tensor | None = None,
    log_decay: torch.Tensor | None = None,
    segments: torch.Tensor | None = None,
) -> torch.Tensor:
    """
    The affinity `A = diag(GammaQ z + eps)^-1 GammaQ GammaK^T` (with decays and the causal mask, if any), formed only
    for somebody who asks to look at it. With a `state`, rows fall short of one by what is read from the state. With
    `segments` `[B, N]` a token reads its own segment only, and what the state holds is segment 0.

    Returns:
        `[B, H, N, N]`.
    """
    with torch.autocast(device_type=query_gamma.device.type, enabled=False):
        weights = query_gamma @ key_gamma.transpose(-1, -2)
        elapsed = None if log_decay is None else log_decay.cumsum(dim=-1)
        if elapsed is not None:
            weights = weights * decay_between(elapsed)
        elif causal:
            weights = weights.tril()
        if segments is not None:
            weights = weights * (segments[:, None, :, None] == segments[:, None, None, :])
        mass = weights.sum(dim=-1, keepdim=True)
        if state is not None:
            old_mass = query_gamma @ state[..., -1:]
            if segments is not None:
                old_mass = old_mass * (segments == 0)[:, None, :, None]
            mass = mass + (old_mass if elapsed is None else old_mass * elapsed.exp()[..., None])
        return weights / (mass + epsilon)


def short_convolution(
    x: torch.Tensor,
    weight: torch.Tensor,
    causal: bool,
    mask: torch.Tensor | None = None,
    tail: torch.Tensor | None = None,
    segments: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """
    Depthwise convolution with a residual path, `x + weight * x`, over the real tokens of each row: masked ones are
    taken out before and put back after, so a row gives what it gives alone, wherever its padding is.

    Args:
        x: `[B, N, C]`.
        weight: `[C, W]`; the last tap is the current token (causal), or the middle one is (centred).
        causal: whether a token sees the W - 1 tokens before it, or (W - 1) / 2 on each side.
        mask: `[B, N]`, True at real tokens, or None for all.
        tail: causal only: the last W - 1 inputs before this call, `[B, W - 1, C]`, or None for zeros.
        segments: `[B, N]`: a token sees its own segment only, and the tail is of segment 0. None for one segment.

    Returns:
        `[B, N, C]`, and in the causal case the last W - 1 inputs including this call (else None), with zeros in the
        place of what is of another segment than the last one.
    """
    batch, length, channels = x.shape
    width = weight.shape[-1]
    inputs, places = x, segments
    if mask is not None:
        mask = mask.bool()
        order, rank = _real_tokens_first(mask)
        inputs = (x * mask[..., None]).gather(1, order[..., None].expand(-1, -1, channels))
        places = None if segments is None else segments.gather(1, order)
    reach = (width - 1, 0) if causal else (width // 2, width // 2)
    padded = F.pad(inputs, (0, 0, *reach))
    if tail is not None:
        padded = torch.cat([tail.to(x.dtype), inputs], dim=1)
    if segments is None:
        mixed = F.conv1d(padded.transpose(1, 2), weight.to(x.dtype)[:, None], groups=channels).transpose(1, 2)
    else:
        places = F.pad(places, reach)
        mixed = sum(
            weight[:, tap].to(x.dtype) * padded[:, tap : tap + length] * _same_segment(places, tap, reach[0], length)
            for tap in range(width)
        )
    tail = _tail(padded, mask, places, width) if causal else None
    if mask is not None:
        mixed = mixed.gather(1, rank[..., None].expand(-1, -1, channels))
    return x + mixed, tail


def _real_tokens_first(mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """
    The real tokens of each row, then the masked ones, both in their order: which token comes n-th, and where each
    token comes, both `[B, N]`. Counted instead of sorted, since a stable sort has no counterpart in ONNX.
    """
    token = torch.arange(mask.shape[1], device=mask.device).expand_as(mask)
    count = mask.cumsum(dim=1, dtype=torch.long)
    rank = torch.where(mask, count - 1, count[:, -1:] + token - count)
    return torch.empty_like(rank).scatter(1, rank, token), rank


def _same_segment(places: torch.Tensor, tap: int, current: int, length: int) -> torch.Tensor:
    """Where the token that a tap falls on is of the same segment as the current one, `[B, N, 1]`."""
    return (places[:, tap : tap + length] == places[:, current : current + length])[..., None]


def _tail(padded, mask, places, width: int) -> torch.Tensor:
    """The last W - 1 real inputs, `[B, W - 1, C]`."""
    length = padded.shape[1] - width + 1
    real = torch.full_like(padded[:, 0, :1], length, dtype=torch.long) if mask is None else mask.sum(1, keepdim=True)
    last = real + torch.arange(width - 1, device=padded.device)
    tail = padded.gather(1, last[..., None].expand(-1, -1, padded.shape[-1]))
    if places is None:
        return tail
    # Before the first real token of this call all is of segment 0, where `places` says 0 too
    return tail * (places.gather(1, last) == places.gather(1, real + width - 2))[..., None]
