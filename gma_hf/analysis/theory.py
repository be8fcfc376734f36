"""What the mathematics promises of the routing (paper section 3), as figures of a model."""

import torch

from ..model.equations_gma import Mixture, score_weights


def one_side(mixture: torch.nn.Module, side: int) -> Mixture:
    """Return the components of a `GaussianMixture` as one side sees them (0: queries, 1: keys), in float64, with a
    temperature `[H]`."""
    components = mixture.components()
    temperature = torch.ones_like(components.prior_logits[:, 0])
    if components.temperature is not None:
        temperature = components.temperature[side]
    return Mixture(*(value.detach().double() for value in components._replace(temperature=temperature)))


def responsibilities_of(mixture: Mixture, x: torch.Tensor) -> torch.Tensor:
    """Return the responsibilities of one side's `[H, N, d_r]`, `[H, N, K]` (paper eq. 2)."""
    scores = score_weights(mixture._replace(temperature=mixture.temperature.expand(2, -1)))
    centred = x - scores.centre[:, None]
    features = torch.cat([centred * centred, centred], dim=-1)
    return (features @ scores.weights[0] + scores.constant[0][:, None]).softmax(dim=-1)


def score_gradients(mixture: Mixture, x: torch.Tensor) -> torch.Tensor:
    """Return `d s_k / d x = -(x - mu_k) / sigma_k^2 = -d s_k / d mu_k` of `[H, N, d_r]`, `[H, N, K, d_r]`."""
    gradients = -(x[:, :, None] - mixture.means[:, None]) / mixture.variances[:, None]
    return gradients * mixture.temperature[:, None, None, None]


def responsibility_gradients(mixture: Mixture, x: torch.Tensor) -> torch.Tensor:
    """
    Return the gradients of responsibilities by their input,
    `d gamma_k / d x = sum_l gamma_k (delta_kl - gamma_l) d s_l / d x`.

    Args:
        mixture: components.
        x: queries or keys, `[H, N, d_r]`, float64.

    Returns:
        `[H, N, K, d_r]`.
    """
    gamma, gradients = responsibilities_of(mixture, x)[..., None], score_gradients(mixture, x)
    return gamma * (gradients - (gamma * gradients).sum(dim=2, keepdim=True))


def mean_gradients(mixture: Mixture, x: torch.Tensor) -> torch.Tensor:
    """
    Return the gradients of responsibilities by the means,
    `d gamma_k / d mu_l = gamma_k (delta_kl - gamma_l) (x - mu_l) / sigma_l^2`, summed over tokens.

    Args:
        mixture: components.
        x: queries or keys, `[H, N, d_r]`, float64.

    Returns:
        `[H, K, K, d_r]`, `k` before `l`.
    """
    gamma, gradients = responsibilities_of(mixture, x), -score_gradients(mixture, x)
    own = torch.einsum("hnk,hnkd->hkd", gamma, gradients)
    return torch.diag_embed(own.mT).permute(0, 2, 3, 1) - torch.einsum("hnk,hnl,hnld->hkld", gamma, gamma, gradients)


def routing_sensitivity(mixture: Mixture, x: torch.Tensor, radius: float) -> torch.Tensor:
    """
    Return the local routing stability bound: how far the responsibilities can move, in the sum of absolute
    differences, when x moves by at most `radius`,

        `|gamma(x + d) - gamma(x)|_1 <= radius / 2 max_kl (|g_k - g_l| + radius / 2 max_i |p_ki - p_li|)`

    with `g_k = d s_k / d x` and `p_k = 1 / sigma_k^2`: along the way the scores of two components move apart by at
    most the bracket per length, on average, and what a softmax moves is at most half of the range of what its scores
    move. It says nothing beyond 2, which is as far as two distributions can be apart.

    Args:
        mixture: components.
        x: queries or keys, `[H, N, d_r]`, float64.
        radius: Euclidean length of the move.

    Returns:
        `[H, N]`.
    """
    gradients = score_gradients(mixture, x)
    apart = torch.cdist(gradients, gradients)  # [H, N, K, K]
    precisions = mixture.temperature[:, None, None] / mixture.variances
    curvature = torch.cdist(precisions, precisions, p=float("inf"))
    return radius / 2 * (apart + radius / 2 * curvature[:, None]).amax(dim=(2, 3))


def observed_sensitivity(
    mixture: Mixture, x: torch.Tensor, radius: float, directions: int = 16, seed: int = 0
) -> torch.Tensor:
    """
    Return how far the responsibilities do move: the largest of as many random moves of this length, and of the two
    along the direction in which they change fastest.

    Returns:
        `[H, N]`, to be held against `routing_sensitivity`.
    """
    generator = torch.Generator().manual_seed(seed)
    moves = torch.randn(directions, *x.shape, dtype=x.dtype, generator=generator).to(x.device)
    steepest = torch.linalg.svd(responsibility_gradients(mixture, x), full_matrices=False).Vh[..., 0, :]
    moves = torch.cat([moves, steepest[None], -steepest[None]])
    moves = moves / moves.norm(dim=-1, keepdim=True).clamp_min(1e-30) * radius
    before = responsibilities_of(mixture, x)
    return torch.stack([(responsibilities_of(mixture, x + move) - before).abs().sum(-1) for move in moves]).amax(0)


def gradient_error(mixture: Mixture, x: torch.Tensor) -> torch.Tensor:
    """Return how far `responsibility_gradients` and `mean_gradients` are from autograd, over their size, `[H]`."""
    with torch.enable_grad():
        x, means = x.detach().requires_grad_(), mixture.means.detach().requires_grad_()
        gamma = responsibilities_of(mixture._replace(means=means), x).sum(dim=1)  # tokens do not depend on each other
        columns = [torch.autograd.grad(column.sum(), (x, means), retain_graph=True) for column in gamma.unbind(-1)]
    of_x, of_means = torch.stack([of for of, _ in columns], dim=2), torch.stack([of for _, of in columns], dim=1)
    x = x.detach()
    errors = [
        (analytic - expected).abs().amax(dim=(1, 2, 3)) / expected.abs().amax(dim=(1, 2, 3)).clamp_min(1e-30)
        for analytic, expected in (
            (responsibility_gradients(mixture, x), of_x),
            (mean_gradients(mixture, x), of_means),
        )
    ]
    return torch.maximum(*errors)


def affinity_properties(affinity: torch.Tensor) -> dict[str, torch.Tensor]:
    """
    Return properties of affinities `[..., N, N]` (`output_attentions=True`), each `[...]`: `rank`, at most K in a
    bidirectional model (where a causal mask cuts the product, it says nothing); `smallest` entry, not negative;
    `smallest_row_sum` and `largest_row_sum`, one but for eps and what a cache holds.
    """
    affinity = affinity.detach().double()
    sums = affinity.sum(-1)
    # float32 products: what is below their rounding is no rank
    rank = torch.linalg.matrix_rank(affinity, rtol=affinity.shape[-1] * torch.finfo(torch.float32).eps)
    return {
        "rank": rank,
        "smallest": affinity.amin(dim=(-1, -2)),
        "smallest_row_sum": sums.amin(-1),
        "largest_row_sum": sums.amax(-1),
    }
