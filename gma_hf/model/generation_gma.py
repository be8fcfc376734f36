"""What `generate` asks of a GMA decoder."""

import torch
from torch import Tensor
from transformers.cache_utils import Cache
from transformers.generation import GenerationMixin

from .cache_gma import record_past
from .compat_gma import CACHE_NAME, CACHE_NAMES
from .documents_gma import (
    Documents,
    has_padding_on_the_right,
    last_real_token,
    positions_of_real_tokens,
    real_tokens,
)
from .softmax_gma import softmax_masks


# Tokens of a prompt that are read at once: longer ones are read in pieces, so that memory stays that of a piece.
PREFILL_CHUNK = 8192
# Arguments with which a prompt is read as a whole: their outputs, or what they mean, are of all tokens
NOT_IN_PIECES = (
    *("output_attentions", "output_hidden_states", "output_responsibilities"),
    *("cu_seq_lens_q", "seq_idx", "sequence_part"),
)


def create_masks_for_generate(config, inputs_embeds, attention_mask, position_ids=None, **kwargs) -> dict:
    """Return a mask per layer type, as `generate` asks for it ahead of a step with a static cache."""
    cache = next((kwargs[name] for name in CACHE_NAMES if kwargs.get(name) is not None), None)
    documents = Documents(real_tokens(attention_mask, inputs_embeds))
    masks = softmax_masks(config, documents, inputs_embeds, attention_mask, cache, position_ids)
    return {"gma": documents.mask, **masks}


class GMAGenerationMixin(GenerationMixin):
    """Generation from a state: prompts in pieces, padding on any side, decoding that goes back."""

    create_masks_for_generate = staticmethod(create_masks_for_generate)

    def _prepare_position_ids_for_generation(self, inputs_tensor, model_kwargs):
        # Transformers gives padding on the right position 0, and what is generated after it position 1
        attention_mask = model_kwargs.get("attention_mask")
        if attention_mask is not None and attention_mask.ndim == 2:
            return positions_of_real_tokens(attention_mask)
        return super()._prepare_position_ids_for_generation(inputs_tensor, model_kwargs)

    def _prefill(self, input_ids, generation_config, model_kwargs, **kwargs):
        """As in Transformers; a stack without softmax layers cuts a long prompt itself, see `read_in_pieces`."""
        layer_types, size = set(self.config.layer_types), generation_config.prefill_chunk_size
        if size is not None and layer_types == {"gma"}:
            generation_config.prefill_chunk_size = None
            model_kwargs["prefill_chunk_size"] = size
        elif has_padding_on_the_right(model_kwargs.get("attention_mask")) and (
            size is not None or "sliding_attention" in layer_types
        ):
            # Keys and values stay where they are, and a window would count the padding before what is generated
            raise ValueError(
                "`attention_mask` must have its padding on the left where `layer_types` holds sliding_attention, or "
                "any softmax layer and `prefill_chunk_size` is given, but a row ends with padding."
            )
        self._check_prompt(input_ids, generation_config, model_kwargs)
        if generation_config.is_assistant and isinstance(cache := model_kwargs.get(CACHE_NAME), Cache):
            record_past(cache, self.config)
        return super()._prefill(input_ids, generation_config, model_kwargs, **kwargs)

    def _check_prompt(self, input_ids, generation_config, model_kwargs) -> None:
        """Refuse a cache that leaves nothing of the prompt to read."""
        mask, cache = model_kwargs.get("attention_mask"), model_kwargs.get(CACHE_NAME)
        seen = int(cache.get_seq_length()) if isinstance(cache, Cache) else 0
        embeds = model_kwargs.get("inputs_embeds")
        length = input_ids.shape[1] if embeds is None else embeds.shape[1]
        all_tokens = getattr(generation_config, "_mask_length", length) if mask is None else mask.shape[1]
        if 0 < length == all_tokens <= seen:
            raise ValueError(
                f"`{CACHE_NAME}` must have read fewer tokens than the prompt has, {length}, but it has read {seen}: "
                "where `input_ids` are new tokens alone, pass the `attention_mask` of all tokens, read before and now."
            )

    def _assisted_decoding(self, input_ids, *args, **kwargs):
        """As in Transformers, which takes the logits of the last columns for those of the last tokens."""
        if has_padding_on_the_right(kwargs.get("attention_mask")):
            raise ValueError(
                "`attention_mask` must have its padding on the left in assisted and prompt-lookup decoding, but the "
                "row ends with padding."
            )
        if isinstance(cache := kwargs.get(CACHE_NAME), Cache):
            if seen := int(cache.get_seq_length()):  # Transformers gives it the whole prompt again
                raise ValueError(
                    f"`{CACHE_NAME}` must be empty in assisted and prompt-lookup decoding, which reads the prompt, "
                    f"but it has read {seen} tokens: leave it out."
                )
            record_past(cache, self.config)
        return super()._assisted_decoding(input_ids, *args, **kwargs)

    def prepare_inputs_for_generation(self, input_ids, attention_mask=None, inputs_embeds=None, **kwargs):
        """As in Transformers; a row with padding on the right goes on from the logits of its last real token."""
        inputs = super().prepare_inputs_for_generation(
            input_ids, attention_mask=attention_mask, inputs_embeds=inputs_embeds, **kwargs
        )
        if has_padding_on_the_right(attention_mask):
            embeds = inputs.get("inputs_embeds")
            length = (inputs["input_ids"] if embeds is None else embeds).shape[1]
            inputs["logits_to_keep"] = last_real_token(attention_mask[:, -length:])[:, None]
        return inputs


def can_read_in_pieces(
    config,
    inputs: dict[str, Tensor | None],
    logits_to_keep: int | Tensor,
    size: int,
    cache: Cache | None,
    labels: Tensor | None,
    **asked,
) -> bool:
    """Return whether a prompt is long and may be read in pieces: nothing is asked for but a cache and some logits."""
    is_everything_kept = isinstance(logits_to_keep, int) and logits_to_keep == 0
    if cache is None or labels is not None or is_everything_kept or torch.is_grad_enabled():
        return False
    if any(asked.get(name) is not None and asked[name] is not False for name in NOT_IN_PIECES):
        return False
    tokens = inputs["input_ids"] if inputs["inputs_embeds"] is None else inputs["inputs_embeds"]
    is_long = isinstance(tokens, Tensor) and tokens.shape[1] > size
    return is_long and set(config.layer_types) == {"gma"} and not torch.compiler.is_compiling()


def read_in_pieces(
    model,
    inputs: dict[str, Tensor | None],
    attention_mask: Tensor | None,
    cache: Cache,
    logits_to_keep: int | Tensor,
    size: int,
) -> Tensor:
    """
    Read a prompt in pieces, and return the hidden states whose logits are asked for, `[batch, kept, hidden]`.

    Args:
        model: a causal `GMAModel` of GMA layers.
        inputs: what has a token in its second dimension, by its name in the model's forward.
        attention_mask: `[batch, tokens read before + N]`, or None.
        cache: goes on being written.
        logits_to_keep: the last so many tokens, or their indices, `[kept]` or `[batch, kept]`.
        size: tokens of a piece.
    """
    inputs = {name: x for name, x in inputs.items() if x is not None}
    length, seen, kept = max(x.shape[1] for x in inputs.values()), int(cache.get_seq_length()), None
    index = logits_to_keep
    if isinstance(index, int):
        index = torch.arange(max(length - index, 0), length)
    index = index.to(model.device).view(-1, index.shape[-1])
    for start in range(0, length, size):
        stop = min(start + size, length)
        piece = {name: x[:, start:stop] for name, x in inputs.items()}
        mask = _mask_of_piece(attention_mask, seen, start, stop)
        output = model(**piece, attention_mask=mask, cache=cache, use_cache=True, return_dict=True)
        hidden_states = output.last_hidden_state
        place = (index - start).expand(len(hidden_states), -1)[..., None]
        found = hidden_states.gather(1, place.clamp(0, stop - start - 1).expand(-1, -1, hidden_states.shape[-1]))
        is_here = (place >= 0) & (place < stop - start)
        kept = found if kept is None else torch.where(is_here, found, kept)
    return kept


def _mask_of_piece(mask: Tensor | dict | None, seen: int, start: int, stop: int) -> Tensor | dict | None:
    """Return the mask of a piece; a dict, as `generate` makes it for static caches, is of the tokens of this call."""
    if isinstance(mask, dict):
        return {"gma": None if mask["gma"] is None else mask["gma"][:, start:stop]}
    return None if mask is None else mask[:, : seen + stop]
