"""
These are the layers of a GMA network on one rank of vLLM.

Each layer has this rank's share of the heads. vLLM shards and quantizes its projections, and assigns the slots that
hold its states. The computation is the code of `gma_hf.model`.
"""

import copy
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from vllm.config import VllmConfig
from vllm.distributed import get_tensor_model_parallel_rank, get_tensor_model_parallel_world_size
from vllm.forward_context import get_forward_context
from vllm.model_executor.layers.attention import Attention, EncoderOnlyAttention
from vllm.model_executor.layers.linear import (
    ColumnParallelLinear,
    MergedColumnParallelLinear,
    QKVParallelLinear,
    RowParallelLinear,
)
from vllm.model_executor.layers.mamba.abstract import MambaBase
from vllm.model_executor.model_loader.weight_utils import default_weight_loader
from vllm.model_executor.utils import set_weight_attrs
from vllm.v1.attention.backends.registry import MambaAttentionBackendEnum

from ..model.attention_gma import GaussianMixtureAttention
from ..model.cache_gma import shapes_of
from ..model.configuration_gma import GMAConfig
from ..model.documents_gma import ONE_EACH, Documents
from ..model.equations_gma import ScoreWeights
from .batches import GMAMetadata


def config_of_rank(config: GMAConfig, ranks: int) -> GMAConfig:
    """
    Return the config of a mixer that has one rank's share of the heads, where there are `ranks` ranks.

    Raises:
        ValueError: if the number of ranks does not divide the number of heads.
    """
    heads = config.num_attention_heads
    if heads % ranks != 0:
        raise ValueError(
            f"`tensor_parallel_size` must divide `num_attention_heads`, {heads}, for a GMA model, but it is {ranks}."
        )
    own = copy.copy(config)
    own.num_attention_heads, own.hidden_size = heads // ranks, config.hidden_size // ranks
    return own


def states_of_rank(
    config: GMAConfig, ranks: int, dtype: torch.dtype
) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Return shape and dtype of each tensor that a recurrent layer keeps for a request on one rank, by name."""
    shapes = shapes_of(config_of_rank(config, ranks))
    return {name: (shape, torch.float32 if name == "state" else dtype) for name, shape in shapes.items()}


def load_share(parameter: nn.Parameter, loaded: Tensor, sections: list[int], rank: int, ranks: int) -> None:
    """
    Load one rank's share of a weight that is sharded by heads along one dimension.

    Args:
        parameter: the parameter of this rank.
        loaded: the whole weight.
        sections: the numbers of channels of the queries, keys and values; in each section the heads are in order.
        rank: the index of this rank.
        ranks: the number of ranks.
    """
    for dim, (whole, own) in enumerate(zip(loaded.shape, parameter.shape)):
        if whole != own:
            parts = loaded.split(sections if whole == sum(sections) else whole, dim)
            loaded = torch.cat([part.chunk(ranks, dim)[rank] for part in parts], dim)
    default_weight_loader(parameter, loaded)


class Rows(NamedTuple):
    """Hold tokens of requests in rows: their projections and hidden states, `[R, L, channels]`, and padding."""

    projected: Tensor
    hidden_states: Tensor
    documents: Documents = ONE_EACH


class GMALayer(GaussianMixtureAttention):
    """
    Compute Gaussian Mixture Attention for the heads of this rank.

    Args:
        config: the model's configuration.
        layer_idx: index of the layer.
        vllm_config: vLLM's configuration.
        prefix: name of the layer in the model.
    """

    def __init__(self, config: GMAConfig, layer_idx: int, vllm_config: VllmConfig, prefix: str):
        ranks = get_tensor_model_parallel_world_size()
        super().__init__(config_of_rank(config, ranks), layer_idx)
        self.prefix = prefix
        width, sections = config.hidden_size, [ranks * channels for channels in self.qkv_widths]
        for name, module in list(self.named_children()):
            choices = {"quant_config": vllm_config.quant_config, "prefix": f"{prefix}.{name}", "return_bias": False}
            if name == "qkv_proj":
                setattr(self, name, MergedColumnParallelLinear(width, sections, **choices))
            elif name == "o_proj":
                setattr(self, name, RowParallelLinear(width, width, **choices))
            elif isinstance(module, nn.Linear):
                setattr(self, name, ColumnParallelLinear(width, ranks * module.out_features, **choices))
            else:
                load = partial(load_share, sections=sections, rank=get_tensor_model_parallel_rank(), ranks=ranks)
                for parameter in module.parameters():
                    set_weight_attrs(parameter, {"weight_loader": load})


class BidirectionalGMALayer(GMALayer):
    """Compute bidirectional Gaussian Mixture Attention, which needs no slots. It takes the arguments of `GMALayer`."""

    def forward(self, hidden_states: Tensor, documents: Documents = ONE_EACH) -> Tensor:
        """Return the output for the tokens of a step, `[T, hidden]` to `[T, hidden]`."""
        return super().forward(hidden_states[None], documents).hidden_states[0]


class RecurrentGMALayer(GMALayer, MambaBase):
    """
    Compute causal Gaussian Mixture Attention with states in vLLM's slots. The arguments are those of `GMALayer`.
    """

    mamba_type = MambaAttentionBackendEnum.GMA

    def __init__(self, config: GMAConfig, layer_idx: int, vllm_config: VllmConfig, prefix: str):
        super().__init__(config, layer_idx, vllm_config, prefix)
        self.states = states_of_rank(self.config, 1, vllm_config.model_config.dtype)
        self.kv_cache = ()
        vllm_config.compilation_config.static_forward_context[prefix] = self

    def get_state_shape(self) -> tuple[tuple[int, ...], ...]:
        """Return the shapes of the tensors that are kept for a request."""
        return tuple(shape for shape, _ in self.states.values())

    def get_state_dtype(self) -> tuple[torch.dtype, ...]:
        """Return the dtypes of the tensors that are kept for a request."""
        return tuple(dtype for _, dtype in self.states.values())

    def forward(self, hidden_states: Tensor, documents: Documents = ONE_EACH) -> Tensor:
        """Return the output for the tokens of a step, `[T, hidden]` to `[T, hidden]`, and update their states."""
        projected, scores = self.qkv_proj(hidden_states), self.mixture()
        step = get_forward_context().attn_metadata
        if step is None:  # vLLM measures the memory of a step, and has no slots yet
            read = self._advance(Rows(projected[None], hidden_states[None]), scores, {})[0][0]
        else:
            read = self._step(projected, hidden_states, scores, step[self.prefix])
            read = nn.functional.pad(read, (0, 0, 0, 0, 0, len(hidden_states) - len(read)))
        return self.join(read.transpose(0, 1)[None], hidden_states[None])[0]

    def _step(self, projected: Tensor, hidden_states: Tensor, scores: ScoreWeights, step: GMAMetadata) -> Tensor:
        """Return what the heads read, `[T, heads, head width]`: requests that generate, then prompts."""
        count, found = step.num_decode_tokens, []
        if count > 0:
            rows = Rows(projected[:count, None], hidden_states[:count, None])
            found.append(self._continue(rows, scores, step.state_indices_tensor_d[:count, 0], None).flatten(0, 1))
        if step.prompt_rows:
            flat, projected, hidden_states = [], projected[count:], hidden_states[count:]
            for prompts, tokens, mask in step.prompt_rows:
                rows = Rows(projected[tokens], hidden_states[tokens], Documents(mask))
                slots, is_read = step.state_indices_tensor_p[prompts], step.has_initial_states_p[prompts]
                flat.append(self._continue(rows, scores, slots, is_read).flatten(0, 1))
            found.append(torch.cat(flat)[step.prompt_places])
        return torch.cat(found)

    def _continue(self, rows: Rows, scores: ScoreWeights, slots: Tensor, is_read: Tensor | None) -> Tensor:
        """
        Return what the heads read in rows of requests, `[R, L, heads, head width]`, and store the new states.

        Args:
            rows: the tokens of the requests.
            scores: the weights of the scores.
            slots: the index of each request's slot, `[R]`.
            is_read: True for the requests that have a state in their slot, `[R]`; None if all have one.
        """
        past = {name: slot[slots] for name, slot in zip(self.states, self.kv_cache)}
        if is_read is not None:  # other slots hold the tensors of earlier requests, which may be NaN
            past = {name: x.where(is_read.view(-1, *[1] * (x.ndim - 1)), 0) for name, x in past.items()}
        read, now = self._advance(rows, scores, past)
        for name, slot in zip(self.states, self.kv_cache):
            slot[slots] = now[name].to(slot.dtype)
        return read

    def _advance(self, rows: Rows, scores: ScoreWeights, past: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return what the heads read, `[R, L, heads, head width]`, and the tensors to keep, by name."""
        heads, now = self.split_heads(*rows, past)
        read, state = self.mix(heads, scores, rows.documents, past.get("state"))
        return read.transpose(1, 2), {"state": state, **now}


class SoftmaxLayer(nn.Module):
    """Compute the softmax attention of a hybrid stack with vLLM's layers. The arguments are those of `GMALayer`."""

    def __init__(self, config: GMAConfig, layer_idx: int, vllm_config: VllmConfig, prefix: str):
        super().__init__()
        config_of_rank(config, ranks := get_tensor_model_parallel_world_size())
        heads, width, cache_config = config.num_attention_heads, config.head_dim, vllm_config.cache_config
        choices = {"quant_config": vllm_config.quant_config, "return_bias": False}
        self.qkv_proj = QKVParallelLinear(config.hidden_size, width, heads, prefix=f"{prefix}.qkv_proj", **choices)
        self.o_proj = RowParallelLinear(config.hidden_size, config.hidden_size, prefix=f"{prefix}.o_proj", **choices)
        is_sliding = config.layer_types[layer_idx] == "sliding_attention"
        own = {"cache_config": cache_config, "prefix": f"{prefix}.attn"}
        if config.is_causal:
            own["per_layer_sliding_window"] = config.sliding_window if is_sliding else None
        attention = Attention if config.is_causal else EncoderOnlyAttention
        self.attn = attention(heads // ranks, width, width**-0.5, **own)

    def forward(self, hidden_states: Tensor, documents: Documents = ONE_EACH) -> Tensor:
        """Return the output for the tokens of a step, `[T, hidden]`. vLLM itself knows the documents."""
        query, key, value = self.qkv_proj(hidden_states).chunk(3, dim=-1)
        return self.o_proj(self.attn(query, key, value))
