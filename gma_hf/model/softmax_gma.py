"""The softmax layers of hybrid stacks, and their masks."""

import math

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache
from transformers.masking_utils import LAYER_PATTERN_TO_MASK_FUNCTION_MAPPING, packed_sequence_mask_function
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .compat_gma import CACHE_NAME
from .configuration_gma import GMAConfig
from .documents_gma import ONE_EACH, Documents


def eager_attention_forward(module, query, key, value, attention_mask, scaling, dropout=0.0, **kwargs):
    """Return the output of softmax attention and its weights, `[batch, heads, N, keys]`."""
    scores = query @ key.transpose(-1, -2) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = scores.softmax(dim=-1, dtype=torch.float32).to(query.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights


class SoftmaxAttention(nn.Module):
    """
    Softmax attention of hybrid stacks, through Transformers' attention functions (eager, sdpa, flash, flex).

    Args:
        config: the model's configuration.
        layer_idx: index of the layer, under which its keys and values stand in the cache.
    """

    def __init__(self, config: GMAConfig, layer_idx: int):
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.layer_type = config.layer_types[layer_idx]
        self.is_causal = config.is_causal
        self.sliding_window = config.sliding_window if self.layer_type == "sliding_attention" else None
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.k_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.v_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.o_proj.init_std = config.residual_std

    def forward(
        self, hidden_states: Tensor, documents: Documents = ONE_EACH, cache: Cache | None = None, **kwargs
    ) -> tuple[Tensor, Tensor | None, None]:
        """
        Args:
            hidden_states: `[batch, N, hidden]`.
            documents: with the mask of this type of layer among its `softmax_masks`, as Transformers makes it for the
                attention implementation of the config.
            cache: cache of keys and values, or None.

        Returns:
            `[batch, N, hidden]`; the weights `[batch, heads, N, keys]` where the implementation gives them; and None,
            where a GMA layer has its responsibilities.
        """
        query, key, value = (
            proj(hidden_states).unflatten(-1, (self.config.num_attention_heads, -1)).transpose(1, 2)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        if cache is not None:
            key, value = cache.update(key, value, self.layer_idx)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        output, weights = attend(
            self,
            query,
            key,
            value,
            (documents.softmax_masks or {}).get(self.layer_type),
            dropout=self.config.attention_probs_dropout_prob if self.training else 0.0,
            scaling=1 / math.sqrt(self.config.head_dim),
            sliding_window=self.sliding_window,
            **kwargs,
        )
        return self.o_proj(output.flatten(2)), weights, None


def softmax_masks(
    config: GMAConfig,
    documents: Documents,
    inputs_embeds: Tensor,
    attention_mask: Tensor | None,
    cache: Cache | None,
    position_ids: Tensor | None,
) -> dict[str, Tensor | None]:
    """
    Return the mask of each type of softmax layer of a stack.

    Args:
        config: of the model.
        documents: padding and packing.
        inputs_embeds: `[batch, N, hidden]`.
        attention_mask: `[batch, tokens read before + N]`, or None.
        cache: what was read before, or None.
        position_ids: `[batch or 1, N]`, or None.

    Raises:
        ValueError: for documents packed into one row where a softmax layer holds tokens of an earlier call, and for
            padding between real tokens where a layer attends in a window, which counts padding as tokens.
    """
    layer_types = set(config.layer_types) - {"gma"}
    if "sliding_attention" in layer_types and attention_mask is not None and attention_mask.ndim == 2:
        starts = attention_mask.long().diff(dim=-1, prepend=torch.zeros_like(attention_mask[:, :1]).long()) == 1
        if not torch.compiler.is_compiling() and bool((starts.sum(dim=-1) > 1).any()):
            raise ValueError(
                "`attention_mask` must have its real tokens side by side where `layer_types` holds "
                "sliding_attention, but a row has padding between them."
            )
    choices = {"inputs_embeds": inputs_embeds, "attention_mask": attention_mask, "position_ids": position_ids}
    if documents.ids is not None and layer_types:
        if cache is not None and cache.get_seq_length() > 0:
            raise ValueError(
                f"`position_ids` must not restart where `layer_types` holds softmax layers and `{CACHE_NAME}` holds "
                "tokens, which these layers would go on reading, but they do."
            )
        # Not by their own reading of the positions, which counts what a window sees across the borders
        cache = choices["position_ids"] = None
        choices["and_mask_function"] = packed_sequence_mask_function(documents.ids)
    masks = {}
    for layer_type in layer_types:
        # Of the layers of this type alone, since any Transformers takes the sizes from a layer of its own choice
        layers = [] if cache is None else cache.layers
        layers = [layer for layer, kind in zip(layers, config.layer_types) if kind == layer_type]
        choices[CACHE_NAME] = Cache(layers=layers) if layers else None
        masks[layer_type] = LAYER_PATTERN_TO_MASK_FUNCTION_MAPPING[layer_type](config=config, **choices)
    return masks
