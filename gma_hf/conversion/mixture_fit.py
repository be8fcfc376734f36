"""Start of the components of a GMA layer: fitted to the queries and keys of the softmax layer in its place."""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F

from ..model.configuration_gma import GMAConfig
from ..model.documents_gma import Documents
from ..model.equations_gma import Mixture, normalize, score_weights
from ..model.mixing_gma import mix_bidirectional, mix_causal
from ..model.softmax_gma import SoftmaxAttention


KMEANS_STEPS = 12
# Points that k-means works on, at most: a random part of them.
KMEANS_POINTS = 4096
# Variances to choose from, in units of the mean variance within a cluster.
VARIANCES = tuple(2.0**n for n in range(7))
# Read exponents to choose from where they are learned, from nearly the paper's read to nearly that of means.
EXPONENTS = (0.98, 0.74, 0.5, 0.26, 0.02)


class Start(NamedTuple):
    """Hold the start of a GMA layer, apart from its projections."""

    balance: torch.Tensor  # [H]: queries are multiplied by it and keys divided, which no softmax notices
    mixture: Mixture
    read_exponent: torch.Tensor  # [H]


class Heads(NamedTuple):
    """A batch in a softmax layer: queries, keys, values, outputs `[B, H, N, d]`, mask of real tokens `[B, N]`."""

    queries: torch.Tensor
    keys: torch.Tensor
    values: torch.Tensor
    outputs: torch.Tensor
    mask: torch.Tensor


def fit_mixture(
    attention: SoftmaxAttention, inputs: list[tuple[torch.Tensor, torch.Tensor]], config: GMAConfig, seed: int = 0
) -> Start:
    """
    Return where a GMA layer starts.

    The means are those of k-means on queries and keys together. All components of a head have one variance, since in
    tens of dimensions the posteriors of clusters with their own variances are all but hard. The variance, the priors
    (equal, or the shares of the clusters) and, where it is learned, the read exponent are those with which the head's
    outputs are nearest to the softmax layer's.

    Args:
        attention: the softmax layer.
        inputs: what it read: hidden states `[B, N, hidden]` and masks of real tokens `[B, N]`.
        config: of the GMA layer.
        seed: of k-means.
    """
    batches = [softmax_heads(attention, *batch) for batch in inputs]
    num_tokens = sum(int(batch.mask.sum()) for batch in batches)
    if 2 * num_tokens < max(config.num_components, 4):
        raise ValueError(
            f"`calibration` must hold at least {max(math.ceil(config.num_components / 2), 2)} tokens for "
            f"`num_components={config.num_components}`, but it holds {num_tokens}."
        )
    balance, batches = balanced(batches, config)
    points = torch.cat([points_of(batches, side) for side in ("queries", "keys")], dim=1)
    means, variance, shares = kmeans(points, config.num_components, torch.Generator().manual_seed(seed))
    variance = variance[:, None, None].expand_as(means).clamp(min=2 * config.variance_floor)
    mixtures = [
        Mixture(means, variance * factor, prior_logits)
        for factor in VARIANCES
        for prior_logits in (torch.zeros_like(shares), shares.log())
    ]
    is_learned = config.read_exponent == "learned"
    exponents = [torch.full_like(balance, p) for p in (EXPONENTS if is_learned else (float(config.read_exponent),))]
    start = Start(balance, mixtures[0], exponents[len(exponents) // 2])
    start = nearest_of([start._replace(mixture=mixture) for mixture in mixtures], batches, config)
    if is_learned:  # by turns, since all pairs would cost five times as much
        start = nearest_of([start._replace(read_exponent=exponent) for exponent in exponents], batches, config)
        start = nearest_of([start._replace(mixture=mixture) for mixture in mixtures], batches, config)
    return start


def nearest_of(starts: list[Start], batches: list[Heads], config: GMAConfig) -> Start:
    """Return, head by head, the start whose outputs are nearest to the softmax layer's."""
    best = torch.stack([output_errors(start, batches, config) for start in starts]).argmin(dim=0)
    heads = torch.arange(len(best), device=best.device)
    exponent, *parts = (
        torch.stack(candidates)[best, heads]
        for candidates in zip(*((start.read_exponent, *start.mixture[:3]) for start in starts))
    )
    return starts[0]._replace(mixture=Mixture(*parts), read_exponent=exponent)


def balanced(batches: list[Heads], config: GMAConfig) -> tuple[torch.Tensor, list[Heads]]:
    """
    Return the factors `[H]` by which queries are multiplied and keys are divided, so that both have the same spread,
    and the batches after that. Where the layer normalises queries and keys, the factors are one and the batches
    normalised.
    """
    if config.normalize_routing:
        batches = [x._replace(queries=normalize(x.queries), keys=normalize(x.keys)) for x in batches]
        return torch.ones_like(batches[0].queries[0, :, 0, 0]), batches
    spread = [points_of(batches, side).var(dim=1).sum(dim=-1) for side in ("queries", "keys")]
    balance = (spread[1] / spread[0]).clamp(1e-4, 1e4) ** 0.25
    by_head = balance[:, None, None]
    return balance, [x._replace(queries=x.queries * by_head, keys=x.keys / by_head) for x in batches]


def softmax_heads(attention: SoftmaxAttention, hidden_states: torch.Tensor, mask: torch.Tensor) -> Heads:
    """
    Return the queries, keys, values and outputs of the heads; a sliding window counts padding too, as the layer's.
    """
    queries, keys, values = (
        projection(hidden_states).unflatten(-1, (attention.config.num_attention_heads, -1)).transpose(1, 2).float()
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    visible = mask[:, None, None]
    if attention.is_causal:
        past = torch.ones(2 * mask.shape[1:], dtype=torch.bool, device=mask.device).tril()
        visible = visible & (past if attention.sliding_window is None else past.triu(1 - attention.sliding_window))
    outputs = F.scaled_dot_product_attention(queries, keys, values, attn_mask=visible)
    return Heads(queries, keys, values, outputs, mask)


def points_of(batches: list[Heads], side: str) -> torch.Tensor:
    """Return queries or keys of all real tokens, `[H, tokens, d]`."""
    return torch.cat([getattr(batch, side).transpose(0, 1)[:, batch.mask] for batch in batches], dim=1)


def output_errors(start: Start, batches: list[Heads], config: GMAConfig) -> torch.Tensor:
    """Return the summed squared difference between the outputs of GMA heads and the softmax layer's, `[H]`."""
    scores = score_weights(start.mixture)
    exponent = start.read_exponent if start.read_exponent.any() else None  # the paper's read, to the bit
    total = torch.zeros_like(start.balance)
    for batch in batches:
        inputs = (batch.queries, batch.keys, batch.values, scores, config.read_epsilon)
        if config.is_causal:
            outputs, _ = mix_causal(*inputs, config.chunk_size, Documents(batch.mask), read_exponent=exponent)
        else:
            outputs, _ = mix_bidirectional(*inputs, Documents(batch.mask), read_exponent=exponent)
        total += (outputs - batch.outputs).transpose(0, 1)[:, batch.mask].square().sum(dim=(1, 2))
    return total


def kmeans(
    points: torch.Tensor, num_components: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """
    Run k-means, started by k-means++, in each head.

    Args:
        points: `[H, points, d]`, at least K.
        num_components: K.

    Returns:
        Means `[H, K, d]`, the mean variance within a cluster `[H]`, and the clusters' shares of the points `[H, K]`
        (one point added to each).
    """
    order = torch.randperm(points.shape[1], generator=generator)[:KMEANS_POINTS]
    points = points[:, order.to(points.device)]
    means = spread_means(points, num_components, generator)
    for _ in range(KMEANS_STEPS):
        sizes = torch.zeros(means.shape[:2], device=points.device)
        for head, cluster in enumerate(nearest(points, means)):
            sizes[head] = torch.bincount(cluster, minlength=num_components)
            sums = torch.zeros_like(means[head]).index_add_(0, cluster, points[head])
            means[head] = torch.where(sizes[head, :, None] > 0, sums / sizes[head, :, None].clamp(min=1), means[head])
    distance = torch.cdist(points, means).amin(dim=-1)
    return means, distance.square().mean(dim=-1) / points.shape[-1], (sizes + 1) / (sizes + 1).sum(-1, keepdim=True)


def nearest(points: torch.Tensor, means: torch.Tensor) -> Iterator[torch.Tensor]:
    """Yield, head by head, the index of the nearest mean of each point, `[points]`."""
    return (torch.cdist(x, mean).argmin(dim=-1) for x, mean in zip(points, means))


def spread_means(points: torch.Tensor, num_components: int, generator: torch.Generator) -> torch.Tensor:
    """
    Draw means by k-means++: each next mean is a point, with a chance proportional to its squared distance to the
    others.
    """
    heads = torch.arange(len(points), device=points.device)
    means = [points[:, 0]]
    distance = torch.full(points.shape[:2], torch.inf, device=points.device)
    for _ in range(num_components - 1):
        distance = distance.minimum((points - means[-1][:, None]).square().sum(dim=-1))
        index = torch.multinomial(distance.cpu().clamp(min=1e-12), 1, generator=generator)[:, 0]
        means.append(points[heads, index.to(points.device)])
    return torch.stack(means, dim=1)
