"""
The equations of Gaussian Mixture Attention (Huang and Raza, 2026), one function each; `mixing_gma` mixes with them.

Shapes, throughout: B batch, H heads, N tokens, K components, d_r routing width, d_v value width. A *state* is one
tensor `[B, H, K, d_v + 1]`: the memory M in its first d_v columns and the mass z in the last one. Responsibilities and
states are float32, whatever the dtype of the inputs (float64 for float64 inputs).
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F


def routing_dtype(x: torch.Tensor) -> torch.dtype:
    """Return the dtype in which `x` is routed and remembered: float64 for float64, float32 for everything else."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


class Mixture(NamedTuple):
    """The K Gaussian components of each head (paper 3.1)."""

    means: torch.Tensor  # mu, [H, K, d_r]
    variances: torch.Tensor  # sigma^2, [H, K, d_r], positive
    prior_logits: torch.Tensor  # alpha with pi = softmax(alpha), [H, K]
    temperature: torch.Tensor | None = None  # factor on the scores of each side and head, [2, H]; None for 1


def variances(raw_variances: torch.Tensor, floor: float) -> torch.Tensor:
    """Return `sigma^2 = softplus(omega) + eps_sigma` (paper 3.7) of omega, in any shape."""
    return F.softplus(raw_variances) + floor


def raw_variances(variances: torch.Tensor, floor: float) -> torch.Tensor:
    """Return omega with `sigma^2 = softplus(omega) + eps_sigma` (paper 3.7) of variances above the floor."""
    softplus = variances - floor
    return softplus + (-torch.expm1(-softplus)).log()


class ScoreWeights(NamedTuple):
    """
    The scores of both sides as one linear map of the features `[x * x, x]` of centred x: `features @ weights +
    constant`. The first index is the side (0: queries, which read; 1: keys, which write).
    """

    weights: torch.Tensor  # [2, H, 2 d_r, K]
    constant: torch.Tensor  # [2, H, K]
    centre: torch.Tensor  # [H, d_r]


def score_weights(mixture: Mixture) -> ScoreWeights:
    """
    Return the weights that turn queries and keys into scores `log pi_k + log N(x; mu_k, diag(sigma_k^2))` (paper
    eq. 2), up to a term that all components of a head share and that drops out of the softmax.

    That is why a common centre may be taken off x and the means, and a common precision off the squares. Expanding
    `(x - mu)^2` without it cancels badly in float32. For the same reason the centre is a constant to the gradient.

    Returns:
        Float32 tensors (float64 for float64 parameters).
    """
    means, variances, prior_logits, temperature = mixture
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


def normalize(x: torch.Tensor) -> torch.Tensor:
    """Return queries or keys `[..., d_r]` divided by their root mean square, in the routing dtype."""
    return F.rms_norm(x.to(routing_dtype(x)), x.shape[-1:], eps=1e-6)


def responsibilities(
    queries: torch.Tensor, keys: torch.Tensor, scores: ScoreWeights, mask: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Return the posterior responsibilities (paper eq. 2) `gamma_k(x) = softmax_k(log pi_k + log N(x; mu_k,
    diag(sigma_k^2)))`.

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
        # Not by a product that broadcasts, which would repeat the weights for each row of the batch
        products = torch.einsum("sbhnf,shfk->sbhnk", features, scores.weights)
        gamma = (products + scores.constant[:, None, :, None]).softmax(dim=-1)
        query_gamma, key_gamma = gamma
        return query_gamma, key_gamma if mask is None else key_gamma * mask[:, None, :, None]


def append_ones(values: torch.Tensor) -> torch.Tensor:
    """Return values `[B, H, N, d_v]` with a column of ones, `[B, H, N, d_v + 1]`, in the dtype of the state."""
    return F.pad(values.to(routing_dtype(values)), (0, 1), value=1.0)


def read(weighted: torch.Tensor, epsilon: float) -> torch.Tensor:
    """Return `GammaQ M / (GammaQ z + eps)` from `GammaQ [M, z]`, `[..., d_v + 1]` to `[..., d_v]`."""
    return weighted[..., :-1] / (weighted[..., -1:] + epsilon)


def reading_weights(
    query_gamma: torch.Tensor, mass: torch.Tensor, exponent: torch.Tensor | None, epsilon: float
) -> torch.Tensor:
    """
    Return what a query weighs the slots with: `gamma_k (z_k + eps)^(-p)` (ours; the paper has p = 0), divided by the
    sum over k, which drops out of what is read.

    Args:
        query_gamma: responsibilities `[B, H, N, K]`.
        mass: z, what each slot holds, `[B, H, N or 1, K]`.
        exponent: p of each head, `[H]`, or None for 0.
        epsilon: eps of the read.

    Returns:
        `[B, H, N, K]`, each row summing to one.
    """
    if exponent is None:
        return query_gamma
    weights = query_gamma * (mass + epsilon) ** -exponent[:, None, None]
    return weights / weights.sum(dim=-1, keepdim=True)


def decay_between(elapsed: torch.Tensor) -> torch.Tensor:
    """Return `exp(sum of log decays in (j, i])` for j <= i and 0 above the diagonal: `[..., C]` to `[..., C, C]`."""
    size = elapsed.shape[-1]
    future = torch.ones(size, size, dtype=torch.bool, device=elapsed.device).triu(1)
    return (elapsed[..., :, None] - elapsed[..., None, :]).masked_fill(future, float("-inf")).exp()


def affinity(
    query_gamma: torch.Tensor,
    key_gamma: torch.Tensor,
    epsilon: float,
    causal: bool,
    state: torch.Tensor | None = None,
    log_decay: torch.Tensor | None = None,
    document_ids: torch.Tensor | None = None,
    read_exponent: torch.Tensor | None = None,
) -> torch.Tensor:
    """
    Return the affinity `A = diag(R z + eps)^-1 R GammaK^T` with `R = reading_weights(GammaQ, z)`, in the paper
    `GammaQ` (3.3), with decays and the causal mask, if any. The mixer never forms it; it is for somebody who asks to
    look at it.

    Args:
        query_gamma, key_gamma: responsibilities `[B, H, N, K]`.
        epsilon: eps of the read.
        causal: whether a token reads only what is not after it.
        state: what was read before, `[B, H, K, d_v + 1]`; rows then fall short of one by what is read from it.
        log_decay: log of the forget gate, `[B, H, N]`, or None.
        document_ids: `[B, N]`; a token reads its own document only, and the state belongs to document 0.
        read_exponent: the read exponent of each head, `[H]`, or None.

    Returns:
        `[B, H, N, N]`.
    """
    with torch.autocast(device_type=query_gamma.device.type, enabled=False):
        kept = torch.ones(query_gamma.shape[2], key_gamma.shape[2], device=key_gamma.device, dtype=key_gamma.dtype)
        kept = kept.tril() if causal else kept
        elapsed = None if log_decay is None else log_decay.cumsum(dim=-1)
        if elapsed is not None:
            kept = decay_between(elapsed)
        if document_ids is not None:
            kept = kept * (document_ids[:, None, :, None] == document_ids[:, None, None, :])
        mass = kept @ key_gamma
        if state is not None:
            old_mass = state[..., -1][:, :, None]
            if elapsed is not None:
                old_mass = old_mass * elapsed.exp()[..., None]
            if document_ids is not None:
                old_mass = old_mass * (document_ids == 0)[:, None, :, None]
            mass = mass + old_mass
        weights = reading_weights(query_gamma, mass, read_exponent, epsilon)
        normaliser = (weights * mass).sum(dim=-1, keepdim=True) + epsilon
        return weights @ key_gamma.transpose(-1, -2) * kept / normaliser
