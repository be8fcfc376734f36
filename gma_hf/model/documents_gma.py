"""
Padding and packing: which tokens of a call are real, and which document of its row each belongs to. One value,
`Documents`, goes through the network.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Documents(NamedTuple):
    """
    What the tokens `[B, N]` of one call are.

    A document begins where another one ends within a row: its tokens read nothing of the one before. Document 0 goes
    on from the state that was given.
    """

    mask: Tensor | None = None  # [B, N] bool, False at padding, which must not write; None where all are real
    ids: Tensor | None = None  # [B, N] from 0 on, never falling along a row; None for one document a row
    softmax_masks: dict[str, Tensor | None] | None = None  # of the softmax layers of a hybrid stack, by layer type

    def beginning(self, num_tokens: int) -> "Documents":
        """Return the same of the first tokens of the call, without the masks of softmax layers."""
        return Documents(*(None if x is None else x[:, :num_tokens] for x in (self.mask, self.ids)))

    def places(self) -> Tensor | None:
        """Return the place of each token in its document, `[B, N]`, padding counted; None for one document a row."""
        if self.ids is None:
            return None
        token = torch.arange(self.ids.shape[1], device=self.ids.device).expand_as(self.ids)
        is_first = self.ids.diff(dim=1, prepend=self.ids[:, :1] - 1) != 0
        return token - torch.where(is_first, token, 0).cummax(dim=1).values


ONE_EACH = Documents()  # all tokens real, one document a row


def documents_of_call(
    config,
    inputs_embeds: Tensor,
    attention_mask: Tensor | dict[str, Tensor | None] | None,
    position_ids: Tensor | None,
    seen: int | Tensor | None,
    packing: dict[str, Tensor | None],
) -> Documents:
    """
    Return what the tokens of a call are, without the masks of softmax layers.

    Args:
        config: of the model.
        inputs_embeds: `[B, N, hidden]`.
        attention_mask: `[B, tokens read before + N]`, or masks by layer type as `generate` makes them, or None.
        position_ids: `[B or 1, N]`, or None.
        seen: tokens read before, or None without a cache.
        packing: `cu_seq_lens_q` or `seq_idx`, by name, where documents are told by them.

    Raises:
        ValueError: for a mask of another shape, or borders that do not fit.
    """
    shape, layer_types = inputs_embeds.shape[:2], set(config.layer_types)
    is_one_each = torch.compiler.is_compiling() and seen is not None and layer_types != {"gma"}
    seen = 0 if seen is None else seen
    is_by_token = getattr(attention_mask, "ndim", None) == 2
    if is_by_token and attention_mask.shape != (shape[0], int(seen) + shape[1]):
        raise ValueError(
            f"`attention_mask` must be of shape [{shape[0]}, {int(seen) + shape[1]}] (batch, tokens read before and "
            f"now), but it has shape {list(attention_mask.shape)}."
        )
    mask = real_tokens(attention_mask, inputs_embeds) if is_by_token or "gma" in layer_types else None
    borders, index = packing.get("cu_seq_lens_q"), packing.get("seq_idx")
    if is_one_each:
        # A compiled graph cannot ask whether positions restart, and softmax layers with a cache have no mask for it if
        # they do: there each row is taken for one document
        return Documents(mask)
    if borders is not None:
        return Documents(mask, documents_by_borders(borders, shape, int(seen)))
    if index is not None:
        return Documents(mask, documents_by_index(index))
    if position_ids is None:
        return Documents(mask)
    was_read = attention_mask[:, : -shape[1]].any(dim=1).to(position_ids.device) if is_by_token else seen > 0
    return Documents(mask, documents_by_positions(position_ids, mask, was_read, shape))


def real_tokens(attention_mask: Tensor | dict[str, Tensor | None] | None, like: Tensor) -> Tensor | None:
    """
    Return which tokens of a call are real, `[B, N]` bool, or None where all are.

    Unlike in Transformers' own mask for recurrent layers, a single token may be padding too: a batch that is read one
    token at a time must not write it.

    Args:
        attention_mask: `[B, tokens read before + N]`, or masks by layer type as `generate` makes them, or None.
        like: the tokens of the call, `[B, N, ...]`, whose device the result is on.

    Raises:
        ValueError: for a mask that is not two-dimensional.
    """
    if isinstance(attention_mask, dict):
        return attention_mask.get("gma")
    if attention_mask is None:
        return None
    if attention_mask.ndim != 2:
        raise ValueError(
            f"`attention_mask` must be of shape [batch, tokens] for GMA layers, but it has shape "
            f"{list(attention_mask.shape)}."
        )
    mask = attention_mask[:, -like.shape[1] :].bool().to(like.device)
    return None if not torch.compiler.is_compiling() and bool(mask.all()) else mask


def documents_by_borders(cu_seq_lens: Tensor, shape: tuple[int, int], seen: int) -> Tensor | None:
    """
    Return which document each token of the only row belongs to, `[1, N]`, or None for one document.

    Args:
        cu_seq_lens: where the documents begin, and the end of the last, `[documents + 1]`.
        shape: batch and N.
        seen: tokens read before.

    Raises:
        ValueError: for borders that do not go from 0 to N, in a batch of several rows, or after an earlier call.
    """
    batch, length = shape
    borders = cu_seq_lens.tolist()
    if batch != 1 or seen > 0 or borders[0] != 0 or borders[-1] != length or sorted(set(borders)) != borders:
        raise ValueError(
            f"`cu_seq_lens_q` must rise from 0 to the number of tokens, {length}, in one row and without a cache "
            f"that holds tokens, but it is {borders} with {batch} rows and {seen} tokens in the cache."
        )
    token = torch.arange(length, device=cu_seq_lens.device)
    return torch.bucketize(token, cu_seq_lens[1:-1], right=True)[None] if len(borders) > 2 else None


def documents_by_index(seq_idx: Tensor) -> Tensor:
    """Return which document each token belongs to, `[B, N]`, where `seq_idx` `[B, N]` changes with each."""
    return (seq_idx.diff(dim=1, prepend=seq_idx[:, :1]) != 0).cumsum(dim=1)


def documents_by_positions(
    position_ids: Tensor,
    mask: Tensor | None,
    was_read: Tensor | bool,
    shape: tuple[int, int],
) -> Tensor | None:
    """
    Return which document each token belongs to, `[B, N]`, or None where rows hold one each.

    A document begins at a real token whose position does not go beyond that of the real token before it, or is 0 after
    tokens of an earlier call.

    Args:
        position_ids: `[batch or 1, N]`.
        mask: real tokens, `[B, N]`, or None for all.
        was_read: whether a row has real tokens of an earlier call, `[B]` or for all rows.
        shape: batch and N.
    """
    position_ids = position_ids.expand(shape)
    real = torch.ones_like(position_ids, dtype=torch.bool) if mask is None else mask.to(position_ids.device)
    was_read = torch.full_like(real[:, 0], True) & was_read
    # Before the first real token: -1, or 0 where a document may end before the call
    before = _positions_before(position_ids, real, torch.where(was_read, 0, -1)[:, None])
    begins = real & (position_ids <= before)
    if not torch.compiler.is_compiling() and not bool(begins.any()):
        return None
    return begins.cumsum(dim=1)


def _positions_before(position_ids: Tensor, real: Tensor, start: Tensor) -> Tensor:
    """Return the position of the last real token before each, `[B, N]`; `start` `[B, 1]` where there is none."""
    length = position_ids.shape[1]
    if length == 1:  # ONNX has no `cummax`, and a step needs none
        return start
    token = torch.arange(1, length + 1, device=real.device).expand_as(position_ids)
    latest = torch.where(real, token, 0).cummax(dim=1).values.roll(1, dims=1)
    latest[:, 0] = 0
    return torch.cat([start, position_ids], dim=1).gather(1, latest)


def positions_of_real_tokens(attention_mask: Tensor) -> Tensor:
    """Return the position of each token among the real ones of its row, `[B, N]`; padding repeats the one before."""
    return (attention_mask.long().cumsum(dim=-1) - 1).clamp_min(0)


def has_padding_on_the_right(mask: Tensor | None) -> bool:
    """Return whether a row of a mask `[B, N]` ends with padding."""
    return mask is not None and mask.ndim == 2 and not bool(mask[:, -1].all())


def first_real_token(mask: Tensor) -> Tensor:
    """Return the index of the first real token of each row, `[B]`; 0 in a row that has none."""
    return mask.long().argmax(dim=-1)


def last_real_token(mask: Tensor) -> Tensor:
    """Return the index of the last real token of each row, `[B]`; the last index in a row that has none."""
    return mask.shape[-1] - 1 - mask.long().flip(-1).argmax(dim=-1)
