"""Padding: which tokens are real, where they stand, and the mask that each type of layer needs."""

import torch
from transformers.cache_utils import Cache
from transformers.masking_utils import LAYER_PATTERN_TO_MASK_FUNCTION_MAPPING


def create_gma_mask(
    inputs_embeds: torch.Tensor,
    attention_mask: torch.Tensor | None,
    position_ids: torch.Tensor | None = None,
    **kwargs,
) -> torch.Tensor | None:
    """
    Which of the tokens of this call are real, `[batch, N]` bool, or None where all are.

    Unlike in Transformers' own mask for recurrent layers, a single token may be padding too: a batch that is read one
    token at a time must not write it.

    Raises:
        ValueError: for a mask that is not two-dimensional, or positions that restart within a row (several documents
            packed into one), across whose borders the state would leak.
    """
    if attention_mask is None:
        _check_not_packed(position_ids)
        return None
    if attention_mask.ndim != 2:
        raise ValueError(
            f"`attention_mask` must be of shape [batch, tokens] for GMA layers, but it has shape "
            f"{list(attention_mask.shape)}."
        )
    mask = attention_mask[:, -inputs_embeds.shape[1] :].bool()
    if not torch.compiler.is_compiling() and bool(mask.all()):
        _check_not_packed(position_ids)
        return None
    return mask.to(inputs_embeds.device)


def _check_not_packed(position_ids: torch.Tensor | None) -> None:
    if position_ids is None or position_ids.shape[-1] == 1 or torch.compiler.is_compiling():
        return
    if bool((position_ids.diff() < 0).any()):
        raise ValueError(
            "`position_ids` must not restart within a row, since GMA layers do not keep packed documents apart, but "
            "they do."
        )


LAYER_PATTERN_TO_MASK_FUNCTION_MAPPING["gma"] = create_gma_mask


def create_masks(config, attention_mask: torch.Tensor | None, **kwargs) -> dict[str, torch.Tensor | None]:
    """
    The mask of each layer type of the stack, from one mask `[batch, tokens read before and now]`.

    Raises:
        ValueError: for padding between real tokens where a layer attends in a window, which counts padding as tokens.
    """
    layer_types = set(config.layer_types)
    if "sliding_attention" in layer_types and attention_mask is not None and attention_mask.ndim == 2:
        starts = attention_mask.long().diff(dim=-1, prepend=torch.zeros_like(attention_mask[:, :1]).long()) == 1
        if not torch.compiler.is_compiling() and bool((starts.sum(dim=-1) > 1).any()):
            raise ValueError(
                "`attention_mask` must have its real tokens side by side where `layer_types` holds "
                "sliding_attention, but a row has padding between them."
            )
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
