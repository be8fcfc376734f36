"""A bidirectional model on a document that comes in pieces, which share one memory per layer."""

import torch

from .masking_gma import create_gma_mask


def check_segments(config, segments) -> None:
    """
    Raises:
        ValueError: where pieces read apart cannot give what the whole document gives, or there are none.
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


def encode_segments(model, segments, attention_masks=None, token_type_ids=None) -> list[torch.Tensor]:
    """
    Hidden states of each segment, as in the whole document. Layer by layer all segments write, then all read, one at a
    time: beyond the hidden states themselves, memory is that of one segment and of one state.

    Args:
        model: a bidirectional `GMAModel`.
        segments: token ids `[batch, N_i]`.
        attention_masks, token_type_ids: a list of the same shapes, or None.

    Returns:
        `[batch, N_i, hidden]` for each segment.
    """
    check_segments(model.config, segments)
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
