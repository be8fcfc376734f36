"""A bidirectional model on a document that comes in pieces, which share one memory per layer."""

from collections.abc import Sequence
from typing import Any

import torch

from .additions_gma import additions_of
from .compat_gma import CACHE_NAME
from .documents_gma import Documents, real_tokens


# Arguments of the model's forward that make no sense with pieces, or whose output is not collected there
NOT_WITH_PIECES = (
    *("position_ids", CACHE_NAME, "inputs_embeds", "cu_seq_lens_q", "seq_idx"),
    *("output_attentions", "output_hidden_states", "output_responsibilities"),
)


def check_pieces(config, pieces, attention_masks, token_type_ids, others) -> None:
    """
    Refuse what cannot be read in pieces.

    Raises:
        ValueError: where pieces read apart cannot give what the whole document gives, for pieces that are no token
            ids or of several batch sizes, other lists that do not fit them, and arguments that do not go with them.
    """
    if config.is_causal:
        raise ValueError(
            "`input_ids` may be a list of pieces in a bidirectional model only (a causal one goes on from its "
            "cache), but `is_causal` is True."
        )
    if set(config.layer_types) != {"gma"}:
        raise ValueError(
            "`input_ids` may be a list of pieces where all `layer_types` are gma only, but some are softmax."
        )
    for addition in additions_of(config):
        if addition.in_pieces_because is not None:
            raise ValueError(
                f"`input_ids` may be a list of pieces only without {addition.words}, since "
                f"{addition.in_pieces_because}, but `{addition.field}` is {getattr(config, addition.field)}."
            )
    if len(pieces) == 0:
        raise ValueError("`input_ids` must hold at least one piece, but the list is empty.")
    shapes = [_shape(piece) for piece in pieces]
    for index, shape in enumerate(shapes):
        if not isinstance(shape, list) or len(shape) != 2 or 0 in shape or shape[0] != shapes[0][0]:
            raise ValueError(
                f"`input_ids` must hold tensors of token ids [batch, tokens] with one batch size and at least one "
                f"token each, but piece {index} is {shape}, and the first one {shapes[0]}."
            )
    for name, given in (("attention_mask", attention_masks), ("token_type_ids", token_type_ids)):
        found = [_shape(x) for x in given] if isinstance(given, (list, tuple)) else _shape(given)
        if given is not None and found != shapes:
            raise ValueError(
                f"`{name}` must be a list of tensors of the shapes of the pieces, {shapes}, but it is {found}."
            )
    for name in NOT_WITH_PIECES:
        value = getattr(config, name, None) if others.get(name) is None else others[name]
        if value is not None and value is not False:
            raise ValueError(
                f"`{name}` must be None or False where `input_ids` is a list of pieces, but it is a "
                f"{type(value).__name__}."
            )


def _shape(x) -> list[int] | str:
    return list(x.shape) if isinstance(x, torch.Tensor) else f"a {type(x).__name__}"


def encode_pieces(
    model,
    pieces: Sequence[torch.Tensor],
    attention_masks: Sequence[torch.Tensor] | None,
    token_type_ids: Sequence[torch.Tensor] | None,
    others: dict[str, Any],
) -> list[torch.Tensor]:
    """
    Return the hidden states of each piece, as in the whole document. Layer by layer all pieces write, then all read,
    one at a time: beyond the hidden states themselves, memory is that of one piece and of one state.

    Args:
        model: a bidirectional `GMAModel`.
        pieces: token ids `[batch, N_i]`.
        attention_masks, token_type_ids: a list of the same shapes, or None.
        others: what else the model's forward was given, which is refused where it has no meaning here.

    Returns:
        `[batch, N_i, hidden]` for each piece.

    Raises:
        ValueError: see `check_pieces`.
    """
    check_pieces(model.config, pieces, attention_masks, token_type_ids, others)
    masks = [None] * len(pieces) if attention_masks is None else attention_masks
    types = [None] * len(pieces) if token_type_ids is None else token_type_ids
    positions = [None] * len(pieces)
    if model.embeddings.position_embeddings is not None:
        mask = None if attention_masks is None else torch.cat(list(attention_masks), dim=1)
        whole = model.prepare_positions(torch.cat(list(pieces), dim=1), mask)
        positions = whole.split([piece.shape[1] for piece in pieces], dim=1)
    words = model.embeddings.word_embeddings
    hidden = [model.embeddings(words(ids), place, kind) for ids, place, kind in zip(pieces, positions, types)]
    documents = [Documents(real_tokens(mask, x)) for x, mask in zip(hidden, masks)]
    for layer in model.layers:
        state = None
        for x, known in zip(hidden, documents):
            state = layer.attention.write(layer.mixer_input(x), known, state)
        for index, x in enumerate(hidden):
            hidden[index] = layer.after_mixer(x, layer.attention.read(layer.mixer_input(x), state))
    return hidden if model.final_norm is None else [model.final_norm(x) for x in hidden]
