"""What a GMA layer remembers, as a cache layer that stands in any cache of Transformers."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache

from .additions_gma import additions_of
from .compat_gma import CACHE_NAME, register_static_layer
from .equations_gma import ScoreWeights


class GMACacheLayer(CacheLayerMixin):
    """
    What one GMA layer remembers: its state `[batch, heads, K, d_v + 1]` in float32 (memory, and mass in the last
    column), whatever its additions keep (of a convolution the last inputs, `conv_tail` `[batch, W - 1, channels]`),
    and how many tokens were read.

    Args:
        max_cache_len: given by `StaticCache`. The tensors are then updated in place and the number of tokens is a
            tensor, so that a compiled decoding step sees the same addresses and shapes each time.
    """

    _layer_type = "gma"
    supports_early_init = False
    is_sliding = False

    def __init__(self, max_cache_len: int | None = None, **kwargs):
        super().__init__()
        self.max_cache_len = max_cache_len
        self.is_compileable = max_cache_len is not None
        self.record_past = False
        self.tensors: dict[str, Tensor] = {}  # by name; empty before the first token
        self.devices: dict[str, torch.device] = {}  # where they were before they were offloaded
        self.cumulative_length: int | Tensor = torch.zeros((), dtype=torch.long) if self.is_compileable else 0
        # What was read since the last `crop`, call by call: how many tokens, and how to read the first of them again
        self.writes: list[tuple[int, Callable]] = []
        self.is_settled = True
        self.prepared: tuple[tuple, ScoreWeights] | None = None  # see `prepared_scores`

    @property
    def state(self) -> Tensor | None:
        """The state after the tokens read so far, or None before the first."""
        return self.tensors.get("state")

    @property
    def batch_size(self) -> int:
        """Rows of the batch, or -1 before the first token."""
        return len(self.tensors["state"]) if self.tensors else -1

    max_batch_size = batch_size

    def lazy_initialization(self, tensors: dict[str, Tensor], _: object = None) -> None:
        """Allocate the tensors of a static cache, in the shapes of what is to be remembered."""
        self.cumulative_length = self.cumulative_length.to(tensors["state"].device)
        self.tensors = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
        if not torch.compiler.is_compiling():
            for tensor in (*self.tensors.values(), self.cumulative_length):
                torch._dynamo.mark_static_address(tensor)

    def update(
        self,
        tensors: dict[str, Tensor],
        num_tokens: int = 1,
        replay: Callable[[int], dict[str, Tensor]] | None = None,
    ) -> None:
        """
        Replace what is remembered by what it is after `num_tokens` more tokens.

        Args:
            tensors: by name.
            num_tokens: padding included.
            replay: gives `tensors` after the first so many of these tokens; kept while the past is recorded.
        """
        if self.record_past:
            if self.is_settled:
                self.writes, self.is_settled = [], False
            self.writes.append((num_tokens, replay))
        if self.is_compileable:
            if not self.is_initialized:
                self.lazy_initialization(tensors)
            for name, tensor in tensors.items():
                if tensor is not self.tensors[name]:  # else it has been written there already
                    self.tensors[name].copy_(tensor)
            self.cumulative_length.add_(num_tokens)
        else:
            self.tensors = dict(tensors)
            self.cumulative_length += num_tokens
        self.is_initialized = True

    def get_seq_length(self) -> int | Tensor:
        """Return how many tokens were read, padding included."""
        return self.cumulative_length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return length and offset of the keys that a mask for `query_length` more tokens has to cover."""
        return self.cumulative_length + query_length, 0

    def get_max_length(self) -> int:
        """Return -1: there is no longest sequence."""
        return -1

    get_max_cache_shape = get_max_length

    def reset(self) -> None:
        """Forget everything; a static cache keeps its tensors."""
        if self.is_compileable:
            for tensor in (*self.tensors.values(), self.cumulative_length):
                tensor.zero_()
        else:
            self.tensors, self.cumulative_length, self.is_initialized = {}, 0, False
        self.writes = []

    def offload(self) -> None:
        """Move what is remembered to the CPU."""
        self.devices = {name: tensor.device for name, tensor in self.tensors.items()}
        self.tensors = {name: tensor.to("cpu", non_blocking=True) for name, tensor in self.tensors.items()}

    def prefetch(self) -> None:
        """Move what was offloaded back to where it was."""
        self.tensors = {
            name: x.to(self.devices.get(name, x.device), non_blocking=True) for name, x in self.tensors.items()
        }

    def activate_past_recording(self) -> None:
        """Keep from now on what `crop` needs; without effect on a static cache, which cannot be cropped."""
        self.record_past = not self.is_compileable

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each row of the batch `repeats` times."""
        self._map_rows(lambda rows: rows.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the rows of the batch that `indices` names, in that order."""
        self._map_rows(lambda rows: rows[indices.to(rows.device)])

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Reorder the rows of the batch for beam search."""
        self.batch_select_indices(beam_idx)

    def _map_rows(self, select: Callable[[Tensor], Tensor]) -> None:
        self.writes = []  # of the rows as they were
        self.tensors = {name: select(tensor) for name, tensor in self.tensors.items()}

    @property
    def is_croppable(self) -> bool:
        """Whether `crop` can take tokens out again that were read after `activate_past_recording`."""
        return not self.is_compileable

    def crop(self, length: int) -> None:
        """
        Put the layer back to where it was some tokens ago, exactly: what was written since is read again up to there.
        That reaches back over all calls since the last `crop`; 0 removes nothing, and lets go of what was recorded
        when the next token comes.

        Args:
            length: minus the number of tokens to remove, or, above 0, the number of tokens to keep.

        Raises:
            ValueError: for more tokens than were recorded, a static cache, or without `activate_past_recording`.
        """
        remaining = max(int(self.cumulative_length) - length, 0) if length > 0 else -length
        recorded = sum(num_tokens for num_tokens, _ in self.writes)
        if remaining > recorded:
            raise ValueError(
                f"`crop` may remove at most {recorded} tokens, which the cache has recorded (call "
                f"`activate_past_recording` before they are read; a static cache cannot), but it is to remove "
                f"{remaining}."
            )
        self.is_settled = True
        while remaining > 0:
            num_tokens, replay = self.writes.pop()
            kept = max(num_tokens - remaining, 0)
            self.tensors = replay(kept)
            self.is_initialized = bool(self.tensors)
            self.cumulative_length -= num_tokens - kept
            remaining -= num_tokens - kept
            if kept:
                self.writes.append((kept, replay))


register_static_layer("gma", GMACacheLayer)


def prepared_scores(layer: CacheLayerMixin, mixture: nn.Module, dtype: torch.dtype) -> ScoreWeights:
    """
    Return `mixture(dtype)`, which depends on its parameters alone and has more operations than the rest of a token:
    once for all tokens that a layer of a cache reads, as long as the parameters stay what they are. Where a gradient
    may be asked for, and in a compiled graph, it is computed each time.
    """
    if torch.compiler.is_compiling() or torch.is_grad_enabled():
        return mixture(dtype)
    now = (dtype, *((id(x), None if x.is_inference() else x._version) for x in mixture.parameters()))
    if getattr(layer, "prepared", None) is None or layer.prepared[0] != now:
        layer.prepared = (now, mixture(dtype))
    return layer.prepared[1]


def adopt(cache: Cache, config) -> Cache:
    """
    Return a cache with a GMA layer where a layer of the stack is one, if nothing has been read into it yet: not every
    Transformers, and not every way of making a cache, knows the layer types of the config.
    """
    layers = getattr(cache, "layers", None)
    if layers == []:
        layers.extend(DynamicCache(config=config).layers)
        cache.layer_class_to_replicate = None
    for index, (layer, layer_type) in enumerate(zip(layers or [], config.layer_types)):
        if layer_type == "gma" and not is_gma(layer) and not layer.is_initialized:
            layers[index] = GMACacheLayer(getattr(layer, "max_cache_len", None))
    return cache


def is_gma(layer: CacheLayerMixin) -> bool:
    """Return whether a layer of a cache is that of a GMA layer, of this copy of the code or of another."""
    return getattr(layer, "_layer_type", None) == "gma"


def record_past(cache: Cache, config) -> None:
    """Keep from now on what `crop` needs, in the layers that know how to."""
    for layer in adopt(cache, config).layers:
        if hasattr(layer, "activate_past_recording"):
            layer.activate_past_recording()


def check_cache(cache: Cache, config, batch_size: int) -> None:
    """
    Raises:
        ValueError: if `cache` was not made for a model of this `config`, holds another number of rows, or not the same
            tokens in all layers, as after a `crop` that one layer refused when others had been cropped already.
    """
    layers, shapes = getattr(cache, "layers", None), shapes_of(config)
    for index, (layer, layer_type) in enumerate(zip(layers or [], config.layer_types)):
        if layer_type == "gma" and getattr(layer, "keys", None) is not None:
            raise ValueError(
                f"`{CACHE_NAME}` must hold a state for layer {index}, a GMA layer, but it holds keys and values, as "
                "PEFT's prefix tuning gives: take prompt tuning, p-tuning or LoRA."
            )
    if (
        layers is None
        or len(layers) != config.num_hidden_layers
        or not all(_fits(layer, layer_type, config, shapes) for layer, layer_type in zip(layers, config.layer_types))
    ):
        raise ValueError(
            f"`{CACHE_NAME}` must be a cache of this model's config, such as DynamicCache(config=model.config), "
            f"but it is {cache}, which does not fit it."
        )
    for layer in layers:
        held = layer.state if is_gma(layer) else layer.keys
        if held is not None and held.shape[0] != batch_size:
            raise ValueError(
                f"`{CACHE_NAME}` must hold as many rows as the input has, {batch_size}, but it holds {held.shape[0]}."
            )

    if torch.compiler.is_compiling():  # which would build a new graph for each length
        return
    lengths = [layer.get_seq_length() for layer in layers]
    on_device = [x for x in lengths if isinstance(x, Tensor)]
    if on_device:  # waited for once, instead of once for each layer
        lengths = [x for x in lengths if not isinstance(x, Tensor)]
        lengths += torch.stack([x.to(on_device[0].device).reshape(()) for x in on_device]).tolist()
    if len(lengths := set(lengths)) > 1:
        raise ValueError(
            f"`{CACHE_NAME}` must have read the same tokens in all layers, but it has read {sorted(lengths)} (a "
            f"`crop` that one layer refuses leaves the layers before it cropped)."
        )


def _fits(layer: CacheLayerMixin, layer_type: str, config, shapes: dict[str, tuple[int, ...]]) -> bool:
    """Return whether a layer of a cache, empty or not, may be that of a layer of this type and these sizes."""
    heads = config.num_attention_heads
    if is_gma(layer) != (layer_type == "gma"):
        return False
    if not is_gma(layer):
        is_sliding = getattr(layer, "is_sliding", False)
        sizes = None if layer.keys is None or layer.keys.numel() == 0 else (layer.keys.shape[1], layer.keys.shape[-1])
        return is_sliding == (layer_type == "sliding_attention") and sizes in (None, (heads, config.head_dim))
    return not layer.tensors or {name: x.shape[1:] for name, x in layer.tensors.items()} == shapes


def shapes_of(config) -> dict[str, tuple[int, ...]]:
    """Return the shapes of what a causal GMA layer remembers of one row, by name."""
    shapes = {"state": (config.num_attention_heads, config.num_components, config.head_dim + 1)}
    kept = {addition.keeps: addition.kept_shape() for addition in additions_of(config)}
    return shapes | {name: shape for name, shape in kept.items() if shape is not None}
