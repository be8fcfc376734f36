"""Padding: which tokens are real, where they stand, and the mask that each type of layer needs."""

import torch
from transformers.cache_utils import Cache
from transformers.masking_utils import LAYER_PATTERN_TO_MASK_FUNCTION_MAPPING, packed_sequence_mask_function


def create_gma_mask(
    inputs_embeds: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **kwargs,
) -> torch.Tensor | None:
    """
    Which of the tokens of this call are real, `[batch, N]` bool, or None where all are.

    Unlike in Transformers' own mask for recurrent layers, a single token may be padding too: a batch that is read one
    token at a time must not write it.

    Raises:
        ValueError: for a mask that is not two-dimensional.
    """
    if attention_mask is None:
        return None
    if attention_mask.ndim != 2:
        raise ValueError(
            f"`attention_mask` must be of shape [batch, tokens] for GMA layers, but it has shape "
            f"{list(attention_mask.shape)}."
        )
    mask = attention_mask[:, -inputs_embeds.shape[1] :].bool()
    if not torch.compiler.is_compiling() and bool(mask.all()):
        return None
    return mask.to(inputs_embeds.device)


LAYER_PATTERN_TO_MASK_FUNCTION_MAPPING["gma"] = create_gma_mask


def find_segments(
    attention_mask: torch.Tensor | dict[str, torch.Tensor | None] | None,
    position_ids: torch.Tensor | None,
    cu_seq_lens: torch.Tensor | None,
    seq_idx: torch.Tensor | None,
    shape: tuple[int, int],
    seen: int | torch.Tensor,
) -> torch.Tensor | None:
    """
    Which document each token of a packed row belongs to, `[batch, N]` from 0 on, or None where rows hold one each.

    A document begins at a real token whose position does not go beyond that of the real token before it, or is 0 after
    tokens of an earlier call; segment 0 is what goes on from that call.

    Args:
        attention_mask: `[batch, tokens read before + N]`, or None for real tokens only; or masks by layer type.
        position_ids: `[batch or 1, N]`, or None.
        cu_seq_lens: where the documents of the only row begin, and its end, `[documents + 1]`, or None.
        seq_idx: which document each token belongs to, `[batch, N]`, or None.
        shape: batch and N.
        seen: tokens read before.

    Raises:
        ValueError: for `cu_seq_lens` that do not go from 0 to N, in a batch of several rows, or after an earlier call.
    """
    batch, length = shape
    if cu_seq_lens is not None:
        borders = cu_seq_lens.tolist()
        if batch != 1 or int(seen) > 0 or borders[0] != 0 or borders[-1] != length or sorted(set(borders)) != borders:
            raise ValueError(
                f"`cu_seq_lens_q` must rise from 0 to the number of tokens, {length}, in one row and without a cache "
                f"that holds tokens, but it is {borders} with {batch} rows and {int(seen)} tokens in the cache."
            )
        token = torch.arange(length, device=cu_seq_lens.device)
        return torch.bucketize(token, cu_seq_lens[1:-1], right=True)[None] if len(borders) > 2 else None
    if seq_idx is not None:
        return (seq_idx.diff(dim=1, prepend=seq_idx[:, :1]) != 0).cumsum(dim=1)
    if position_ids is None:
        return None
    position_ids = position_ids.expand(batch, length)
    real = torch.ones_like(position_ids, dtype=torch.bool)
    # A compiler may leave a number open, but not one that becomes a tensor
    is_seen = seen > 0 if isinstance(seen, torch.Tensor) else bool(seen > 0)
    was_seen = torch.full_like(real[:, 0], True) & is_seen
    if isinstance(attention_mask, dict):  # made by `generate` already
        mask = attention_mask.get("gma")
        real = real if mask is None else mask
    elif attention_mask is not None and attention_mask.ndim == 2:
        real = attention_mask[:, -length:].bool().to(real.device)
        was_seen = attention_mask[:, :-length].any(dim=1).to(real.device)
    # Before the first real token: -1, or 0 where a document may end before the call
    before = _positions_before(position_ids, real, torch.where(was_seen, 0, -1)[:, None])
    begins = real & (position_ids <= before)
    if not torch.compiler.is_compiling() and not bool(begins.any()):
        return None
    return begins.cumsum(dim=1)


def _positions_before(position_ids: torch.Tensor, real: torch.Tensor, start: torch.Tensor) -> torch.Tensor:
    """Position of the last real token before each, `[batch, N]`; `start` `[batch, 1]` where there is none."""
    length = position_ids.shape[1]
    if length == 1:  # ONNX has no `cummax`, and a step needs none
        return start
    token = torch.arange(1, length + 1, device=real.device).expand_as(position_ids)
    latest = torch.where(real, token, 0).cummax(dim=1).values.roll(1, dims=1)
    latest[:, 0] = 0
    return torch.cat([start, position_ids], dim=1).gather(1, latest)


def first_of_segment(segments: torch.Tensor) -> torch.Tensor:
    """Index of the first token of the segment that each token belongs to, `[batch, N]`."""
    token = torch.arange(segments.shape[1], device=segments.device).expand_as(segments)
    is_first = segments.diff(dim=1, prepend=segments[:, :1] - 1) != 0
    return torch.where(is_first, token, 0).cummax(dim=1).values


def create_masks(
    config, attention_mask: torch.Tensor | None, segments: torch.Tensor | None = None, **kwargs
) -> dict[str, torch.Tensor | None]:
    """
    The mask of each layer type of the stack, from one mask `[batch, tokens read before and now]`.

    Raises:
        ValueError: for documents packed into one row where a softmax layer holds tokens of an earlier call, and for
            padding between real tokens where a layer attends in a window, which counts padding as tokens.
    """
    layer_types = set(config.layer_types)
    if "sliding_attention" in layer_types and attention_mask is not None and attention_mask.ndim == 2:
        starts = attention_mask.long().diff(dim=-1, prepend=torch.zeros_like(attention_mask[:, :1]).long()) == 1
        if not torch.compiler.is_compiling() and bool((starts.sum(dim=-1) > 1).any()):
            raise ValueError(
                "`attention_mask` must have its real tokens side by side where `layer_types` holds "
                "sliding_attention, but a row has padding between them."
            )
    if segments is not None and layer_types != {"gma"}:
        cache = kwargs.pop("past_key_values", None)
        if cache is not None and cache.get_seq_length() > 0:
            raise ValueError(
                "`position_ids` must not restart where `layer_types` holds softmax layers and `past_key_values` holds "
                "tokens, which these layers would go on reading, but they do."
            )
        # Not by their own reading of the positions, which counts what a window sees across the borders
        kwargs |= {"past_key_values": None, "position_ids": None}
        kwargs |= {"and_mask_function": packed_sequence_mask_function(segments)}
    return {
        layer_type: LAYER_PATTERN_TO_MASK_FUNCTION_MAPPING[layer_type](
            config=config, attention_mask=attention_mask, **kwargs
        )
        for layer_type in layer_types
    }


def create_masks_for_generate(
    config, inputs_embeds, attention_mask, past_key_values, position_ids=None, **kwargs
) -> dict[str, torch.Tensor | None]:
    """`create_masks` under the name and with the arguments that `generate` calls it with for static caches."""
    return create_masks(
        config,
        attention_mask,
        inputs_embeds=inputs_embeds,
        past_key_values=past_key_values,
        position_ids=position_ids,
    )


def check_mask_shape(attention_mask: torch.Tensor, batch: int, length: int, cache: Cache | None) -> None:
    """
    Raises:
        ValueError: if a two-dimensional mask is not `[batch, tokens read before + length]`.
    """
    seen = int(cache.get_seq_length()) if cache is not None else 0
    if attention_mask.ndim == 2 and attention_mask.shape != (batch, seen + length):
        raise ValueError(
            f"`attention_mask` must be of shape [{batch}, {seen + length}] (batch, tokens read before and now), but "
            f"it has shape {list(attention_mask.shape)}."
        )


def positions_of_real_tokens(attention_mask: torch.Tensor) -> torch.Tensor:
    """Position of each token among the real tokens of its row, `[batch, N]`; padding repeats the one before it."""
    return (attention_mask.long().cumsum(dim=-1) - 1).clamp_min(0)


def has_padding_on_the_right(mask: torch.Tensor | None) -> bool:
    """Whether a row of a mask `[batch, N]` ends with padding."""
    return mask is not None and mask.ndim == 2 and not bool(mask[:, -1].all())


def first_real_token(mask: torch.Tensor) -> torch.Tensor:
    """Index of the first real token of each row, `[batch]`; 0 in a row that has none."""
    return mask.long().argmax(dim=-1)


def last_real_token(mask: torch.Tensor) -> torch.Tensor:
    """Index of the last real token of each row, `[batch]`; the last index in a row that has none."""
    return mask.shape[-1] - 1 - mask.long().flip(-1).argmax(dim=-1)
