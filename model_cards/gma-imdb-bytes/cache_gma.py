"""The recurrent state of a GMA layer as a cache layer that `DynamicCache` and `StaticCache` pick up by themselves."""

from collections.abc import Callable

import torch
from transformers.cache_utils import (
    STATIC_LAYER_TYPE_MAPPING,
    Cache,
    CacheLayerMixin,
    LinearAttentionLayer,
)


class GMACacheLayer(LinearAttentionLayer, CacheLayerMixin):
    """
    What one GMA layer remembers: its state `[batch, heads, K, d_v + 1]` in float32 (memory, and mass in the last
    column), with a convolution also the tail of its inputs `[batch, W - 1, channels]`, and how many tokens were read.

    Args:
        max_cache_len: given by `StaticCache`. The state is then updated in place and the number of tokens is a
            tensor, so that a compiled decoding step sees the same addresses and shapes each time.
    """

    _layer_type = "gma"

    def __init__(self, max_cache_len: int | None = None, **kwargs):
        super().__init__()
        CacheLayerMixin.__init__(self)
        self.is_static = max_cache_len is not None
        self.cumulative_length: int | torch.Tensor = torch.zeros((), dtype=torch.long) if self.is_static else 0
        # What was read since the last `crop`, call by call: how many tokens, and how to read the first of them again
        self.writes: list[tuple[int, Callable]] = []
        self.is_settled = True

    @property
    def state(self) -> torch.Tensor | None:
        """The state after the tokens read so far, or None before the first."""
        return self.recurrent_states[0] if self.has_previous_state[0] else None

    @property
    def conv_tail(self) -> torch.Tensor | None:
        """The last inputs of the convolution, or None before the first token or without a convolution."""
        return self.conv_states[0] if self.has_previous_state[0] else None

    @property
    def batch_size(self) -> int:
        """Rows of the batch, or -1 before the first token."""
        return self.recurrent_states[0].shape[0] if self.is_initialized else -1

    def lazy_initialization(self, state: torch.Tensor, conv_tail: torch.Tensor | None = None) -> None:
        """Allocates the tensors that the state, `[batch, heads, K, d_v + 1]`, and the tail are copied into."""
        self.dtype, self.device = state.dtype, state.device
        if self.is_static:
            self.cumulative_length = self.cumulative_length.to(state.device)
        self.recurrent_states[0], self.is_recurrent_states_initialized[0] = torch.zeros_like(state), True
        if conv_tail is not None:
            self.conv_states[0], self.is_conv_states_initialized[0] = torch.zeros_like(conv_tail), True
        if self.is_static and not torch.compiler.is_compiling():
            for tensor in (self.recurrent_states[0], self.conv_states[0], self.cumulative_length):
                if tensor is not None:
                    torch._dynamo.mark_static_address(tensor)
        self.is_initialized = True

    def update(
        self,
        state: torch.Tensor,
        conv_tail: torch.Tensor | None = None,
        num_tokens: int = 1,
        replay: Callable[[int], tuple[torch.Tensor, torch.Tensor | None]] | None = None,
    ) -> None:
        """
        Replaces the state and the convolution's tail by those after `num_tokens` more tokens.

        Args:
            replay: gives state and tail after the first so many of these tokens; kept while the past is recorded.
        """
        if not self.is_initialized:
            self.lazy_initialization(state, conv_tail)
        if self.record_past:
            if self.is_settled:
                self.writes, self.is_settled = [], False
            self.writes.append((num_tokens, replay))
        if self.is_static:
            self.recurrent_states[0].copy_(state)
            if conv_tail is not None:
                self.conv_states[0].copy_(conv_tail)
            self.cumulative_length.add_(num_tokens)
        else:
            self.recurrent_states[0], self.conv_states[0] = state, conv_tail
            self.cumulative_length += num_tokens
        self.has_previous_state[0] = True

    def get_seq_length(self) -> int | torch.Tensor:
        """How many tokens were read, padding included."""
        return self.cumulative_length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and offset of the keys that a mask for `query_length` more tokens has to cover."""
        return self.cumulative_length + query_length, 0

    def reset(self) -> None:
        """Forgets everything, keeping the tensors."""
        super().reset()
        if self.is_static:
            self.cumulative_length.zero_()
        else:
            self.cumulative_length = 0
        self.writes = []

    def activate_past_recording(self) -> None:
        """From now on keeps what `crop` needs; without effect on a static cache, which cannot be cropped."""
        self.record_past = not self.is_static

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeats each row of the batch `repeats` times."""
        self._map_rows(lambda rows: rows.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keeps the rows of the batch that `indices` names, in that order."""
        self._map_rows(lambda rows: rows[indices.to(rows.device)])

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """Reorders the rows of the batch for beam search."""
        self.batch_select_indices(beam_idx)

    def _map_rows(self, select) -> None:
        self.writes = []  # of the rows as they were
        for states in (self.recurrent_states, self.conv_states):
            if states[0] is not None:
                states[0] = select(states[0])

    @property
    def is_croppable(self) -> bool:
        """Whether `crop` can take tokens out again that were read after `activate_past_recording`."""
        return not self.is_static

    def crop(self, tokens_to_remove: int) -> None:
        """
        Puts the layer back to where it was `-tokens_to_remove` tokens ago, exactly: what was written since is read
        again up to there. That reaches back over all calls since the last `crop`; 0 removes nothing, and lets go of
        what was recorded when the next token comes.

        Raises:
            ValueError: for a positive number, more tokens than were recorded, a static cache, or without
                `activate_past_recording`.
        """
        recorded = sum(num_tokens for num_tokens, _ in self.writes)
        if not -recorded <= tokens_to_remove <= 0:
            raise ValueError(
                f"`tokens_to_remove` must be between {-recorded} and 0, since the cache has recorded {recorded} "
                f"tokens (call `activate_past_recording` before they are read; a static cache cannot), but it is "
                f"{tokens_to_remove}."
            )
        self.is_settled, remaining = True, -tokens_to_remove
        while remaining > 0:
            num_tokens, replay = self.writes.pop()
            kept = max(num_tokens - remaining, 0)
            state, conv_tail = replay(kept)
            self.has_previous_state[0] = state is not None
            if state is not None:
                self.recurrent_states[0], self.conv_states[0] = state, conv_tail
            self.cumulative_length -= num_tokens - kept
            remaining -= num_tokens - kept
            if kept:
                self.writes.append((kept, replay))


STATIC_LAYER_TYPE_MAPPING["gma"] = GMACacheLayer


def check_cache(cache: Cache, config, batch_size: int) -> None:
    """
    Raises:
        ValueError: if `cache` was not made for a model of this `config`, holds another number of rows, or not the same
            tokens in all layers, as after a `crop` that one layer refused when others had been cropped already.
    """
    layers = getattr(cache, "layers", None)
    if (
        layers is None
        or len(layers) != config.num_hidden_layers
        or not all(_fits(layer, layer_type, config) for layer, layer_type in zip(layers, config.layer_types))
    ):
        raise ValueError(
            f"`past_key_values` must be a cache of this model's config, such as DynamicCache(config=model.config), "
            f"but it is {cache}, which does not fit it."
        )
    for layer in layers:
        held = layer.keys if getattr(layer, "_layer_type", None) != "gma" else layer.state
        if held is not None and held.shape[0] != batch_size:
            raise ValueError(
                f"`past_key_values` must hold as many rows as the input has, {batch_size}, but it holds "
                f"{held.shape[0]}."
            )

    if torch.compiler.is_compiling():  # which would build a new graph for each length
        return
    lengths = {int(layer.get_seq_length()) for layer in layers}
    if len(lengths) > 1:
        raise ValueError(
            f"`past_key_values` must have read the same tokens in all layers, but it has read {sorted(lengths)} (a "
            f"`crop` that one layer refuses leaves the layers before it cropped)."
        )


def _fits(layer: CacheLayerMixin, layer_type: str, config) -> bool:
    """Whether a layer of a cache, empty or not, may be that of a layer of this type and these sizes."""
    heads, is_gma = config.num_attention_heads, getattr(layer, "_layer_type", None) == "gma"
    if is_gma != (layer_type == "gma"):
        return False
    if not is_gma:
        is_sliding = getattr(layer, "is_sliding", False)
        sizes = None if layer.keys is None or layer.keys.numel() == 0 else (layer.keys.shape[1], layer.keys.shape[-1])
        return is_sliding == (layer_type == "sliding_attention") and sizes in (None, (heads, config.head_dim))
    if layer.state is None:
        return True
    tail = None if layer.conv_tail is None else layer.conv_tail.shape[1:]
    channels = 2 * heads * config.routing_dim + config.hidden_size
    expected_tail = (config.conv_kernel_size - 1, channels) if config.conv_kernel_size > 0 else None
    return layer.state.shape[1:] == (heads, config.num_components, config.head_dim + 1) and tail == expected_tail
