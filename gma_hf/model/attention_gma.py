"""Gaussian Mixture Attention as a layer: project, mix, join."""

import math
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import initialization as init
from transformers.cache_utils import Cache

from .additions_gma import ADDITIONS, additions_of
from .cache_gma import GMACacheLayer, prepared_scores
from .configuration_gma import GMAConfig
from .documents_gma import ONE_EACH, Documents
from .equations_gma import (
    Mixture,
    ScoreWeights,
    affinity,
    normalize,
    raw_variances,
    responsibilities,
    routing_dtype,
    score_weights,
    variances,
)
from .mixing_gma import mix_bidirectional, mix_causal


class GaussianMixture(nn.Module):
    """
    The K components that queries and keys of each head share (paper 3.1, 3.7). Its parameters are kept divided by
    `mixture_rate`, and stay float32 when the model becomes float16 or bfloat16.
    """

    def __init__(self, config: GMAConfig):
        super().__init__()
        heads, components = config.num_attention_heads, config.num_components
        shape, dtype = (heads, components, config.routing_dim), torch.float32
        self.config = config
        self.variance_floor = config.variance_floor
        self.means = nn.Parameter(torch.empty(shape, dtype=dtype))  # mu
        self.raw_variances = nn.Parameter(torch.empty(shape, dtype=dtype))  # omega
        self.prior_logits = nn.Parameter(torch.empty(heads, components, dtype=dtype))  # alpha
        self.log_temperature = None
        if config.normalize_routing:
            self.log_temperature = nn.Parameter(torch.empty(2, heads, dtype=dtype))

    def start(self) -> None:
        """Start with means of equal norm, since otherwise |mu|^2 decides and few components take everything; with
        equal variances and priors; and with scores small enough for the posterior to be smooth."""
        rate = self.config.mixture_rate
        means = nn.functional.normalize(torch.randn(self.means.shape), dim=-1) * self.means.shape[-1] ** 0.5
        init.copy_(self.means, means / rate)
        init.zeros_(self.prior_logits)
        if self.log_temperature is not None:
            init.constant_(self.log_temperature, math.log(self.config.routing_temperature) / rate)
        start = torch.tensor(self.config.initial_variance, dtype=torch.float64)
        init.constant_(self.raw_variances, raw_variances(start, self.variance_floor).item() / rate)

    @torch.no_grad()
    def set(self, mixture: Mixture) -> None:
        """Take the means, variances and priors of a mixture, and temperatures of 1."""
        rate = self.config.mixture_rate
        if self.log_temperature is not None:
            self.log_temperature.zero_()
        self.means.copy_(mixture.means / rate)
        self.raw_variances.copy_(raw_variances(mixture.variances, self.variance_floor) / rate)
        self.prior_logits.copy_(mixture.prior_logits / rate)

    @property
    def variances(self) -> Tensor:
        """sigma^2, `[heads, K, d_r]`."""
        return self.components().variances

    def components(self, dtype: torch.dtype = torch.float32) -> Mixture:
        """Return the components, in `dtype` or, if it is more exact, in that of the weights."""
        dtype, rate = torch.promote_types(dtype, self.means.dtype), self.config.mixture_rate
        means, omega, alpha = (x.to(dtype) * rate for x in (self.means, self.raw_variances, self.prior_logits))
        temperature = None if self.log_temperature is None else (self.log_temperature.to(dtype) * rate).exp()
        return Mixture(means, variances(omega, self.variance_floor), alpha, temperature)

    def forward(self, dtype: torch.dtype = torch.float32) -> ScoreWeights:
        """Return what turns queries and keys into scores, in the dtype of `components`."""
        return score_weights(self.components(dtype))

    def _apply(self, fn, recurse=True):
        def keep_precision(tensor):
            moved = fn(tensor)
            if moved.dtype in (torch.float16, torch.bfloat16):
                moved = tensor.to(moved.device, torch.float32)
            return moved

        return super()._apply(keep_precision, recurse)


class QKVProjection(nn.Linear):
    """Queries, keys and values of all heads in one product, in that order."""

    def __init__(self, config: GMAConfig):
        routing_width = config.num_attention_heads * config.routing_dim
        super().__init__(config.hidden_size, 2 * routing_width + config.hidden_size)
        self.widths = [routing_width, routing_width, config.hidden_size]
        self.value_std = config.initializer_range
        self.starts_tied = config.normalize_routing

    def start(self) -> None:
        """Start with routing vectors of root mean square 1, the scale of the means; with normalised routing, with
        queries that are the keys, so that a token reads from where its like writes."""
        routing_std = self.in_features**-0.5
        stds = (routing_std, routing_std, self.value_std)
        rows = [torch.randn(width, self.in_features) * std for width, std in zip(self.widths, stds)]
        if self.starts_tied:
            rows[0] = rows[1]
        init.copy_(self.weight, torch.cat(rows))


class Heads(NamedTuple):
    """
    What the heads mix: queries and keys `[B, H, N, d_r]`, values `[B, H, N, d_v]`, log decays `[B, H, N]`, read
    exponents `[H]`.
    """

    queries: Tensor
    keys: Tensor
    values: Tensor
    log_decay: Tensor | None
    read_exponent: Tensor | None


class MixerOutput(NamedTuple):
    """What a mixer gives: `[B, N, hidden]`; and, where asked for, affinity or weights, and responsibilities."""

    hidden_states: Tensor
    affinity: Tensor | None = None  # [B, H, N, N], between the tokens of this call
    responsibilities: tuple[Tensor, Tensor] | None = None  # of queries and of keys, [B, H, N, K] each


class GaussianMixtureAttention(nn.Module):
    """
    Gaussian Mixture Attention (paper section 3): queries and keys become responsibilities over K components, values
    are written into and read from a K-slot memory. Optionally with additions, see `additions_gma`.

    Args:
        config: the model's configuration.
        layer_idx: index of the layer, under which its state stands in the cache.
    """

    def __init__(self, config: GMAConfig, layer_idx: int):
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.is_causal = config.is_causal
        self.qkv_proj = QKVProjection(config)
        self.qkv_widths = self.qkv_proj.widths  # not asked of the projection, which an adapter may wrap
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.o_proj.init_std = config.residual_std
        self.mixture = GaussianMixture(config)
        self.additions = additions_of(config)
        modules = {addition.name: addition.module() for addition in self.additions}
        for kind in ADDITIONS:
            self.register_module(kind.name, modules.get(kind.name))

    def forward(
        self,
        hidden_states: Tensor,
        documents: Documents = ONE_EACH,
        cache: Cache | None = None,
        output_attentions: bool = False,
        output_responsibilities: bool = False,
        sequence_part: Any = None,
        **kwargs,
    ) -> MixerOutput:
        """
        Args:
            hidden_states: `[batch, N, hidden]`.
            documents: padding and packing.
            cache: cache that the state is read from and written to (causal only), or None.
            output_attentions: whether to form the affinity.
            output_responsibilities: whether to give the responsibilities.
            sequence_part: which part of a sequence these tokens are that several processes read together, a
                `gma_hf.parallel.SequencePart`; None for all of it.
        """
        layer = None if cache is None else cache.layers[self.layer_idx]
        past = {} if layer is None else layer.tensors
        if sequence_part is not None:
            sequence_part.check(layer, output_attentions)
        heads, now = self.project(hidden_states, documents, past, sequence_part)
        scores = self.scores(routing_dtype(hidden_states), layer)
        gammas = weights = None
        if output_attentions or output_responsibilities:
            gammas = responsibilities(heads.queries, heads.keys, scores, documents.mask)
        if output_attentions:
            settings = (self.config.read_epsilon, self.is_causal, past.get("state"), heads.log_decay, documents.ids)
            weights = affinity(*gammas, *settings, heads.read_exponent)
        is_static = layer is not None and layer.is_compileable
        mix = partial(self.mix, in_place=is_static) if sequence_part is None else partial(sequence_part.mix, self)
        output, state = mix(heads, scores, documents, past.get("state"))
        if layer is not None:
            replay = partial(self._replay, hidden_states.detach(), documents, past) if layer.record_past else None
            layer.update({"state": state, **now}, hidden_states.shape[1], replay)
        return MixerOutput(self.join(output, hidden_states), weights, gammas if output_responsibilities else None)

    def project(
        self, hidden_states: Tensor, documents: Documents, past: dict[str, Tensor], sequence_part: Any = None
    ) -> tuple[Heads, dict[str, Tensor]]:
        """
        Return what the heads mix, and what the additions keep for the next call, by name.

        Args:
            hidden_states: `[batch, N, hidden]`.
            documents: padding and packing.
            past: what the additions kept of the last call, by name.
            sequence_part: as in `forward`.
        """
        return self.split_heads(self.qkv_proj(hidden_states), hidden_states, documents, past, sequence_part)

    def split_heads(
        self,
        projected: Tensor,
        hidden_states: Tensor,
        documents: Documents,
        past: dict[str, Tensor],
        sequence_part: Any = None,
    ) -> tuple[Heads, dict[str, Tensor]]:
        """Return what `project` does, of the projection of the hidden states, `[batch, N, channels]`."""
        log_decay, exponent, now = None, None, {}
        for addition in self.additions:
            module = getattr(self, addition.name)
            project = addition.project if sequence_part is None else partial(sequence_part.project, addition)
            projected, kept = project(module, projected, documents, past.get(addition.keeps))
            if kept is not None:
                now[addition.keeps] = kept
            decay = addition.log_decay(module, hidden_states, documents)
            if decay is not None:
                log_decay = decay if log_decay is None else log_decay + decay
            own = addition.read_exponent(module, hidden_states)
            exponent = exponent if own is None else own
        count, width = self.config.num_attention_heads, self.config.hidden_size
        routed, values = projected.split([projected.shape[-1] - width, width], dim=-1)
        routed, values = routed.unflatten(-1, (2, count, -1)), values.unflatten(-1, (count, -1))
        if self.config.normalize_routing:
            routed = normalize(routed)
        queries, keys = routed.permute(2, 0, 3, 1, 4)
        return Heads(queries, keys, values.transpose(1, 2), log_decay, exponent), now

    def scores(self, dtype: torch.dtype, layer: GMACacheLayer | None) -> ScoreWeights:
        """Return what turns queries and keys into scores; what a layer of a cache has prepared, where it may."""
        # A mixture that is wrapped, as by an adapter or by FSDP, may give something else with the same parameters
        if layer is None or type(self.mixture) is not GaussianMixture:
            return self.mixture(dtype)
        return prepared_scores(layer, self.mixture, dtype)

    def mix(
        self,
        heads: Heads,
        scores: ScoreWeights,
        documents: Documents,
        state: Tensor | None,
        in_place: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """
        Return what the heads read, `[batch, heads, N, head width]`, and the state after it, for which the one before
        may be written over if `in_place`.
        """
        inputs = (heads.queries, heads.keys, heads.values, scores, self.config.read_epsilon)
        if self.is_causal:
            settings = (self.config.chunk_size, documents, heads.log_decay, state, self.config.mixer_backend)
            return mix_causal(*inputs, *settings, heads.read_exponent, in_place)
        return mix_bidirectional(*inputs, documents, state, heads.read_exponent)

    def join(self, output: Tensor, hidden_states: Tensor) -> Tensor:
        """Return what the heads read, `[batch, heads, N, head width]`, as `[batch, N, hidden]`."""
        output = output.transpose(1, 2).flatten(2)
        for addition in self.additions:
            output = addition.gate(getattr(self, addition.name), output, hidden_states)
        return self.o_proj(output)

    def write(self, hidden_states: Tensor, documents: Documents, state: Tensor | None) -> Tensor:
        """Return the state of a bidirectional layer after the tokens `[batch, N, hidden]` have written into it."""
        heads, _ = self.project(hidden_states, documents, {})
        heads = heads._replace(queries=heads.queries[:, :, :0])
        return self.mix(heads, self.mixture(routing_dtype(hidden_states)), documents, state)[1]

    def read(self, hidden_states: Tensor, state: Tensor) -> Tensor:
        """Return what tokens `[batch, N, hidden]` read from a state that others, or they themselves, have written."""
        heads, _ = self.project(hidden_states, ONE_EACH, {})
        heads = heads._replace(keys=heads.keys[:, :, :0], values=heads.values[:, :, :0])
        output, _ = self.mix(heads, self.mixture(routing_dtype(hidden_states)), ONE_EACH, state)
        return self.join(output, hidden_states)

    @torch.no_grad()
    def _replay(self, hidden_states: Tensor, documents: Documents, past: dict[str, Any], num_tokens: int) -> dict:
        """Return what the layer remembered after the first `num_tokens` of a call, for a cache that goes back."""
        if num_tokens == 0:
            return past
        documents = documents.beginning(num_tokens)
        heads, now = self.project(hidden_states[:, :num_tokens], documents, past)
        _, state = self.mix(heads, self.mixture(routing_dtype(hidden_states)), documents, past.get("state"))
        return {"state": state, **now}
