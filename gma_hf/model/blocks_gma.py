"""The parts of a GMA network: embeddings, the block, and what stands between the network and a task's outputs."""

import torch
from torch import nn
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer

from .attention_gma import GaussianMixtureAttention, MixerOutput
from .configuration_gma import GMAConfig
from .documents_gma import first_real_token, last_real_token
from .softmax_gma import SoftmaxAttention


class GMAEmbeddings(nn.Module):
    """
    Word embeddings, plus learned positions and token types where the config has them; then a linear map to the width
    of the residual stream where that is another.
    """

    def __init__(self, config: GMAConfig):
        super().__init__()
        width = config.embedding_size
        self.word_embeddings = nn.Embedding(config.vocab_size, width)
        self.position_embeddings = None
        if config.position_embedding == "learned":
            self.position_embeddings = nn.Embedding(config.max_position_embeddings, width)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, width) if config.type_vocab_size else None
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps) if config.norm_position == "post" else None
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.projection = nn.Linear(width, config.hidden_size) if width != config.hidden_size else None

    def forward(
        self, inputs_embeds: torch.Tensor, position_ids: torch.Tensor | None, token_type_ids: torch.Tensor | None
    ) -> torch.Tensor:
        hidden_states = inputs_embeds
        if self.position_embeddings is not None:
            hidden_states = hidden_states + self.position_embeddings(position_ids)
        if self.token_type_embeddings is not None:
            if token_type_ids is None:
                token_type_ids = torch.zeros(inputs_embeds.shape[:2], dtype=torch.long, device=inputs_embeds.device)
            hidden_states = hidden_states + self.token_type_embeddings(token_type_ids)
        if self.norm is not None:
            hidden_states = self.norm(hidden_states)
        hidden_states = self.dropout(hidden_states)
        return hidden_states if self.projection is None else self.projection(hidden_states)


# Activations that torch has as one operation, where Transformers computes the same by several
FUSED_ACTIVATIONS = {"gelu_new": "gelu_pytorch_tanh"}


class GMAMLP(nn.Module):
    """Two linear maps with an activation between them."""

    def __init__(self, config: GMAConfig):
        super().__init__()
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size)
        self.act = ACT2FN[FUSED_ACTIVATIONS.get(config.hidden_act, config.hidden_act)]
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size)
        self.down_proj.init_std = config.residual_std

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.down_proj(self.act(self.up_proj(hidden_states)))


class GMABlock(GradientCheckpointingLayer):
    """A token mixer and an MLP, each with a residual path, layer norms before (pre) or after (post) them."""

    def __init__(self, config: GMAConfig, layer_idx: int):
        super().__init__()
        self.layer_type = config.layer_types[layer_idx]
        self.is_pre_norm = config.norm_position == "pre"
        mixer = GaussianMixtureAttention if self.layer_type == "gma" else SoftmaxAttention
        self.attention = mixer(config, layer_idx)
        self.attention_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = GMAMLP(config)
        self.mlp_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, hidden_states: torch.Tensor, **kwargs) -> MixerOutput:
        """Return the residual stream after the block, `[batch, N, hidden]`, and what else the mixer gives."""
        mixed = MixerOutput(*self.attention(self.mixer_input(hidden_states), **kwargs))
        hidden_states = self.after_mixer(hidden_states, mixed.hidden_states)
        return MixerOutput(hidden_states, mixed.affinity, mixed.responsibilities)

    def mixer_input(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Return what the mixer gets of the residual stream, `[batch, N, hidden]`."""
        return self.attention_norm(hidden_states) if self.is_pre_norm else hidden_states

    def after_mixer(self, hidden_states: torch.Tensor, mixed: torch.Tensor) -> torch.Tensor:
        """Return the residual stream after the block, from that before it and the mixer's output."""
        hidden_states = hidden_states + self.dropout(mixed)
        if self.is_pre_norm:
            return hidden_states + self.dropout(self.mlp(self.mlp_norm(hidden_states)))
        hidden_states = self.attention_norm(hidden_states)
        return self.mlp_norm(hidden_states + self.dropout(self.mlp(hidden_states)))


class GMAPredictionHead(nn.Module):
    """BERT's transform before the vocabulary, to the width of the embedding: linear, activation, layer norm."""

    def __init__(self, config: GMAConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.embedding_size)
        self.act = ACT2FN[config.hidden_act]
        self.norm = nn.LayerNorm(config.embedding_size, eps=config.layer_norm_eps)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.norm(self.act(self.dense(hidden_states)))


class GMAClassificationHead(nn.Module):
    """
    Scores of a whole sequence: from its last real token, linear (causal, as GPT-2), or from its first real token
    through a linear map and an activation (bidirectional, as BERT, where it is tanh); from the mean over the real
    tokens instead with `classifier_pooling="mean"`.
    """

    def __init__(self, config: GMAConfig, num_labels: int):
        super().__init__()
        self.is_causal = config.is_causal
        self.pooling = config.classifier_pooling
        self.dense = None if config.is_causal else nn.Linear(config.hidden_size, config.hidden_size)
        self.act = ACT2FN[config.classifier_act]
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.out_proj = nn.Linear(config.hidden_size, num_labels, bias=not config.is_causal)

    def forward(self, hidden_states: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """`[batch, N, hidden]` and the mask of real tokens `[batch, N]` (None: all) to `[batch, labels]`."""
        if mask is None:
            mask = torch.ones(hidden_states.shape[:2], dtype=torch.bool, device=hidden_states.device)
        pooled = self._pool(hidden_states, mask.to(hidden_states.device))
        if self.dense is not None:
            pooled = self.act(self.dense(pooled))
        return self.out_proj(self.dropout(pooled))

    def _pool(self, hidden_states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        if self.pooling == "mean":
            weights = mask / mask.sum(dim=1, keepdim=True).clamp(min=1)
            return (weights[:, None].to(hidden_states.dtype) @ hidden_states).squeeze(1)
        index = (last_real_token if self.is_causal else first_real_token)(mask)
        return hidden_states[torch.arange(len(index), device=index.device), index]
