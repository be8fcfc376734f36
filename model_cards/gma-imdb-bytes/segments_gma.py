"""A bidirectional model on a document that comes in pieces, which share one memory per layer."""

from collections.abc import Sequence
from typing import Any

import torch

from .masking_gma import create_gma_mask


# Arguments of the model's forward that make no sense with segments, or whose output is not collected there
NOT_WITH_SEGMENTS = (
    *("position_ids", "past_key_values", "inputs_embeds", "cu_seq_lens_q"),
    *("output_attentions", "output_hidden_states", "output_responsibilities"),
)


def check_segments(config, segments, attention_masks, token_type_ids, others) -> None:
    """
    Raises:
        ValueError: where pieces read apart cannot give what the whole document gives, for segments that are no token
            ids or of several batch sizes, other lists that do not fit them, and arguments that do not go with them.
    """
    if config.is_causal:
        raise ValueError(
            "`input_ids` may be a list of segments in a bidirectional model only (a causal one goes on from "
            "`past_key_values`), but `is_causal` is True."
        )
    if set(config.layer_types) != {"gma"}:
        raise ValueError(
            "`input_ids` may be a list of segments where all `layer_types` are gma only, but some are softmax."
        )
    if config.conv_kernel_size > 0:
        raise ValueError(
            f"`input_ids` may be a list of segments only without a convolution, which reaches across their borders, "
            f"but `conv_kernel_size` is {config.conv_kernel_size}."
        )
    if len(segments) == 0:
        raise ValueError("`input_ids` must hold at least one segment, but the list is empty.")
    shapes = [_shape(segment) for segment in segments]
    for index, shape in enumerate(shapes):
        if not isinstance(shape, list) or len(shape) != 2 or 0 in shape or shape[0] != shapes[0][0]:
            raise ValueError(
                f"`input_ids` must hold tensors of token ids [batch, tokens] with one batch size and at least one "
                f"token each, but segment {index} is {shape}, and the first one {shapes[0]}."
            )
    for name, given in (("attention_mask", attention_masks), ("token_type_ids", token_type_ids)):
        found = [_shape(x) for x in given] if isinstance(given, (list, tuple)) else _shape(given)
        if given is not None and found != shapes:
            raise ValueError(
                f"`{name}` must be a list of tensors of the shapes of the segments, {shapes}, but it is {found}."
            )
    for name in NOT_WITH_SEGMENTS:
        value = getattr(config, name, None) if others.get(name) is None else others[name]
        if value is not None and value is not False:
            raise ValueError(
                f"`{name}` must be None or False where `input_ids` is a list of segments, but it is a "
                f"{type(value).__name__}."
            )


def _shape(x) -> list[int] | str:
    return list(x.shape) if isinstance(x, torch.Tensor) else f"a {type(x).__name__}"


def encode_segments(
    model,
    segments: Sequence[torch.Tensor],
    attention_masks: Sequence[torch.Tensor] | None,
    token_type_ids: Sequence[torch.Tensor] | None,
    others: dict[str, Any],
) -> list[torch.Tensor]:
    """
    Hidden states of each segment, as in the whole document. Layer by layer all segments write, then all read, one at a
    time: beyond the hidden states themselves, memory is that of one segment and of one state.

    Args:
        model: a bidirectional `GMAModel`.
        segments: token ids `[batch, N_i]`.
        attention_masks, token_type_ids: a list of the same shapes, or None.
        others: what else the model's forward was given, which is refused where it has no meaning here.

    Returns:
        `[batch, N_i, hidden]` for each segment.

    Raises:
        ValueError: see `check_segments`.
    """
    check_segments(model.config, segments, attention_masks, token_type_ids, others)
    masks = [None] * len(segments) if attention_masks is None else attention_masks
    types = [None] * len(segments) if token_type_ids is None else token_type_ids
    positions = [None] * len(segments)
    if model.embeddings.position_embeddings is not None:
        mask = None if attention_masks is None else torch.cat(list(attention_masks), dim=1)
        whole = model.prepare_positions(torch.cat(list(segments), dim=1), mask)
        positions = whole.split([segment.shape[1] for segment in segments], dim=1)
    words = model.embeddings.word_embeddings
    hidden = [model.embeddings(words(ids), place, kind) for ids, place, kind in zip(segments, positions, types)]
    masks = [create_gma_mask(x, mask) for x, mask in zip(hidden, masks)]
    for layer in model.layers:
        state = None
        for x, mask in zip(hidden, masks):
            state = layer.attention.write(layer.mixer_input(x), mask, state)
        for index, x in enumerate(hidden):
            hidden[index] = layer.after_mixer(x, layer.attention.read(layer.mixer_input(x), state))
    return hidden if model.final_norm is None else [model.final_norm(x) for x in hidden]
