"""Positions beyond those of a source, for texts that are longer than the source can read."""

import torch
from torch import nn

from ..model.modeling_gma import GMAPreTrainedModel


@torch.no_grad()
def extend_positions(model: GMAPreTrainedModel, max_position_embeddings: int) -> None:
    """
    Give a converted model more positions. Those that it has stay what they are, and position `n` beyond its `P` starts
    as position `n mod P`.

    Args:
        model: with learned positions; it is changed.
        max_position_embeddings: how many positions it is to have.

    Raises:
        ValueError: for a model without positions, for fewer than it has, or something else than a number.
    """
    embeddings = model.base_model.embeddings
    if embeddings.position_embeddings is None:
        raise ValueError(
            f"`max_position_embeddings` must be left out for a model without positions, which reads texts of any "
            f"length, but it is {max_position_embeddings!r}."
        )
    positions = model.config.max_position_embeddings
    is_number = isinstance(max_position_embeddings, int) and not isinstance(max_position_embeddings, bool)
    if not is_number or max_position_embeddings < positions:
        raise ValueError(
            f"`max_position_embeddings` must be a whole number, at least the {positions} positions of the source, but "
            f"it is {max_position_embeddings!r}."
        )
    old = embeddings.position_embeddings.weight
    tiled = torch.arange(max_position_embeddings, device=old.device) % positions
    embeddings.position_embeddings = nn.Embedding.from_pretrained(old[tiled], freeze=False)
    model.config.max_position_embeddings = max_position_embeddings
