"""The recurrent state of a GMA layer as a cache layer that `DynamicCache` and `StaticCache` pick up by themselves."""

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

    def update(self, state: torch.Tensor, conv_tail: torch.Tensor | None = None, num_tokens: int = 1) -> None:
        """Replaces the state and the convolution's tail by those after `num_tokens` more tokens."""
        if not self.is_initialized:
            self.lazy_initialization(state, conv_tail)
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
        for states in (self.recurrent_states, self.conv_states):
            if states[0] is not None:
                states[0] = select(states[0])

    @property
    def is_croppable(self) -> bool:
        """A state is a sum over all tokens: none of them can be taken out again."""
        return False

    def crop(self, tokens_to_remove: int) -> None:
        """
        Raises:
            ValueError: for anything but 0, since a state cannot be rolled back.
        """
        if tokens_to_remove != 0:
            raise ValueError(
                f"`tokens_to_remove` must be 0 in a GMA cache, whose state cannot be rolled back, but it is "
                f"{tokens_to_remove}."
            )


STATIC_LAYER_TYPE_MAPPING["gma"] = GMACacheLayer


def check_cache(cache: Cache, config, batch_size: int) -> None:
    """
    Raises:
        ValueError: if `cache` was not made for a model of this `config`, or holds another number of rows.
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
