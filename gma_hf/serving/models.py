"""These are the GMA models for vLLM: networks of `gma_hf.model` with the layers of `.layers`, on packed tokens."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from vllm.config import VllmConfig
from vllm.model_executor.layers.linear import ColumnParallelLinear, RowParallelLinear
from vllm.model_executor.layers.logits_processor import LogitsProcessor
from vllm.model_executor.layers.mamba.mamba_utils import MambaStateCopyFunc, get_temporal_copy_spec
from vllm.model_executor.layers.pooler import DispatchPooler
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding
from vllm.model_executor.models.interfaces import HasInnerState, IsHybrid, SupportsMambaPrefixCaching
from vllm.model_executor.models.interfaces_base import default_pooling_type
from vllm.model_executor.models.utils import AutoWeightsLoader, WeightsMapper, maybe_prefix

from ..model.blocks_gma import GMABlock, GMAEmbeddings
from ..model.configuration_gma import GMAConfig
from ..model.documents_gma import ONE_EACH, Documents, documents_by_positions
from .layers import BidirectionalGMALayer, RecurrentGMALayer, SoftmaxLayer, states_of_rank


# A softmax layer has one projection for queries, keys and values here, and three in a checkpoint
STACKED = WeightsMapper(orig_to_new_stacked={f".{side}_proj.": (".qkv_proj.", side) for side in ("q", "k", "v")})


class ServedNetwork(nn.Module):
    """
    Compute the network without a head, on the tokens of several requests in one packed row.

    Args:
        vllm_config: vLLM's configuration.
        prefix: name of the network in the model.
    """

    def __init__(self, vllm_config: VllmConfig, prefix: str):
        super().__init__()
        config: GMAConfig = vllm_config.model_config.hf_config
        with torch.device("meta"):  # parameters that are not replaced get their memory below
            self.embeddings = GMAEmbeddings(config)
            self.layers = nn.ModuleList(GMABlock(config, layer_idx) for layer_idx in range(config.num_hidden_layers))
            norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.final_norm = norm if config.norm_position == "pre" else None
        words = VocabParallelEmbedding(config.vocab_size, config.embedding_size, prefix=f"{prefix}.embeddings")
        self.embeddings.word_embeddings = words
        for layer_idx, block in enumerate(self.layers):
            _serve(block, config, layer_idx, vllm_config, f"{prefix}.layers.{layer_idx}")
        for module in self.modules():
            for name, parameter in module.named_parameters(recurse=False):
                if parameter.is_meta:
                    setattr(module, name, nn.Parameter(torch.empty_like(parameter, device=words.weight.device)))

    def forward(self, inputs_embeds: Tensor, positions: Tensor, documents: Documents = ONE_EACH) -> Tensor:
        """Return the last hidden states, `[T, hidden]`, of the word embeddings at positions `[T]`."""
        hidden_states = self.embeddings(inputs_embeds[None], positions[None], None)[0]
        for block in self.layers:
            mixed = block.attention(block.mixer_input(hidden_states), documents)
            hidden_states = block.after_mixer(hidden_states, mixed)
        return hidden_states if self.final_norm is None else self.final_norm(hidden_states)


def _serve(block: GMABlock, config: GMAConfig, layer_idx: int, vllm_config: VllmConfig, prefix: str) -> None:
    """Replace the modules of a block that vLLM computes in its own way: the mixer and the MLP's projections."""
    kind = SoftmaxLayer
    if block.layer_type == "gma":
        kind = RecurrentGMALayer if config.is_causal else BidirectionalGMALayer
    block.attention = kind(config, layer_idx, vllm_config, f"{prefix}.attention")
    widths, choices = (config.hidden_size, config.intermediate_size), {"quant_config": vllm_config.quant_config}
    choices["return_bias"] = False
    block.mlp.up_proj = ColumnParallelLinear(*widths, prefix=f"{prefix}.mlp.up_proj", **choices)
    block.mlp.down_proj = RowParallelLinear(*widths[::-1], prefix=f"{prefix}.mlp.down_proj", **choices)


class ServedGMAForCausalLM(nn.Module, HasInnerState, IsHybrid, SupportsMambaPrefixCaching):
    """Serve a causal GMA network with a language-model head. `prefix` is its name among vLLM's modules."""

    hf_to_vllm_mapper = STACKED

    @classmethod
    def get_mamba_state_shape_from_config(cls, vllm_config: VllmConfig) -> tuple[tuple[int, ...], ...]:
        """Return the shapes of the tensors that a recurrent layer keeps for a request on one rank."""
        return tuple(shape for shape, _ in _states(vllm_config))

    @classmethod
    def get_mamba_state_dtype_from_config(cls, vllm_config: VllmConfig) -> tuple[torch.dtype, ...]:
        """Return the dtypes of the tensors that a recurrent layer keeps for a request."""
        return tuple(dtype for _, dtype in _states(vllm_config))

    @classmethod
    def get_mamba_state_copy_func(cls) -> tuple[MambaStateCopyFunc, ...]:
        """Return the function that copies each kept tensor, at most two, to another slot: each is copied whole."""
        return get_temporal_copy_spec, get_temporal_copy_spec

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = ""):
        super().__init__()
        config: GMAConfig = vllm_config.model_config.hf_config
        _require(config, "GMAForCausalLM", is_causal=True)
        if vllm_config.speculative_config is not None:  # tokens cannot be removed from a state
            raise ValueError("`speculative_config` must be None for a GMA model, but one is given.")
        self.model = ServedNetwork(vllm_config, maybe_prefix(prefix, "model"))
        sizes = (config.vocab_size, config.hidden_size)
        quant_config = vllm_config.quant_config
        self.lm_head = ParallelLMHead(*sizes, quant_config=quant_config, prefix=maybe_prefix(prefix, "lm_head"))
        if config.tie_word_embeddings:
            self.lm_head = self.lm_head.tie_weights(self.model.embeddings.word_embeddings)
        self.logits_processor = LogitsProcessor(config.vocab_size)

    def embed_input_ids(self, input_ids: Tensor) -> Tensor:
        """Return the word embeddings, `[T]` to `[T, embedding width]`."""
        return self.model.embeddings.word_embeddings(input_ids)

    def forward(
        self,
        input_ids: Tensor | None,
        positions: Tensor,
        intermediate_tensors: None = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: object,
    ) -> Tensor:
        """Return the last hidden states of the tokens of a step, `[T, hidden]`."""
        inputs_embeds = self.embed_input_ids(input_ids) if inputs_embeds is None else inputs_embeds
        return self.model(inputs_embeds, positions)

    def compute_logits(self, hidden_states: Tensor) -> Tensor | None:
        """Return the logits, or None on the ranks that do not have them."""
        return self.logits_processor(self.lm_head, hidden_states)

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Load the weights of a checkpoint, by their names in it, and return the names of what was loaded."""
        return AutoWeightsLoader(self).load_weights(weights, mapper=STACKED)


def _require(config: GMAConfig, architecture: str, is_causal: bool) -> None:
    """
    Refuse a checkpoint of another class or with another `is_causal`.

    vLLM itself looks only at the end of the class name.
    """
    found = config.architectures or ["none"]
    if found != [architecture] or config.is_causal != is_causal:
        raise ValueError(
            f"vLLM serves checkpoints of GMAForCausalLM, and of GMAModel with `is_causal=False`, but this one is of "
            f"{', '.join(found)} with `is_causal={config.is_causal}`."
        )


def _states(vllm_config: VllmConfig) -> Iterable[tuple[tuple[int, ...], torch.dtype]]:
    model_config, ranks = vllm_config.model_config, vllm_config.parallel_config.tensor_parallel_size
    return states_of_rank(model_config.hf_config, ranks, model_config.dtype).values()


@default_pooling_type(seq_pooling_type="MEAN")
class ServedGMAModel(nn.Module):
    """Serve a bidirectional GMA network as an embedding model. `prefix` is its name among vLLM's modules."""

    is_pooling_model = True
    hf_to_vllm_mapper = STACKED

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = ""):
        super().__init__()
        _require(vllm_config.model_config.hf_config, "GMAModel", is_causal=False)
        self.model = ServedNetwork(vllm_config, maybe_prefix(prefix, "model"))
        self.pooler = DispatchPooler.for_embedding(vllm_config.model_config.pooler_config)

    def embed_input_ids(self, input_ids: Tensor) -> Tensor:
        """Return the word embeddings, `[T]` to `[T, embedding width]`."""
        return self.model.embeddings.word_embeddings(input_ids)

    def forward(
        self,
        input_ids: Tensor | None,
        positions: Tensor,
        intermediate_tensors: None = None,
        inputs_embeds: Tensor | None = None,
    ) -> Tensor:
        """Return the last hidden states of the tokens of a step, `[T, hidden]`; a step holds whole texts only."""
        inputs_embeds = self.embed_input_ids(input_ids) if inputs_embeds is None else inputs_embeds
        # vLLM describes a step only to layers with slots. Here a new text begins where the positions restart
        row = positions[None]
        return self.model(
            inputs_embeds, positions, Documents(None, documents_by_positions(row, None, False, row.shape))
        )

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Load the weights of a checkpoint, by their names in it, and return the names of what was loaded."""
        weights = ((f"model.{name}", weight) for name, weight in weights)
        return AutoWeightsLoader(self).load_weights(weights, mapper=STACKED)
