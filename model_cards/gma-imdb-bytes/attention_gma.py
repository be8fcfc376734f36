"""The token mixers of a GMA stack: Gaussian Mixture Attention, and softmax attention for hybrid stacks."""

import math
from functools import partial

import torch
from torch import nn
from transformers.cache_utils import Cache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .configuration_gma import GMAConfig
from .functional_gma import (
    ScoreWeights,
    affinity,
    log_forget_gate,
    responsibilities,
    routing_dtype,
    score_weights,
    short_convolution,
)
from .mixing_gma import mix_bidirectional, mix_causal


class GaussianMixture(nn.Module):
    """
    The K components that queries and keys of each head share (paper 3.1, 3.7): `pi = softmax(alpha)`,
    `sigma^2 = softplus(omega) + eps_sigma`. Its parameters stay float32 when the model becomes float16 or bfloat16.
    """

    def __init__(self, config: GMAConfig):
        super().__init__()
        heads, components = config.num_attention_heads, config.num_components
        shape, dtype = (heads, components, config.routing_dim), torch.float32
        self.variance_floor = config.variance_floor
        self.means = nn.Parameter(torch.empty(shape, dtype=dtype))  # mu
        self.raw_variances = nn.Parameter(torch.empty(shape, dtype=dtype))  # omega
        self.prior_logits = nn.Parameter(torch.empty(heads, components, dtype=dtype))  # alpha
        self.log_temperature = None
        if config.normalize_routing:
            self.log_temperature = nn.Parameter(torch.empty(2, heads, dtype=dtype))

    @property
    def variances(self) -> torch.Tensor:
        """sigma^2, `[heads, K, d_r]`."""
        return nn.functional.softplus(self.raw_variances) + self.variance_floor

    def forward(self) -> ScoreWeights:
        """What turns queries and keys into scores, see `score_weights`."""
        temperature = None if self.log_temperature is None else self.log_temperature.exp()
        return score_weights(self.means, self.variances, self.prior_logits, temperature)

    def normalize(self, x: torch.Tensor) -> torch.Tensor:
        """Queries or keys `[batch, heads, N, d_r]`, RMS-normalised where the config asks for it."""
        if self.log_temperature is None:
            return x
        return nn.functional.rms_norm(x.to(routing_dtype(x)), x.shape[-1:], eps=1e-6)

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

    def initial_weight(self, value_std: float) -> torch.Tensor:
        """Random weights that make routing vectors of RMS 1, the scale of the means, and values of `value_std`."""
        routing_std = self.in_features**-0.5
        return torch.cat(
            [
                torch.randn(width, self.in_features) * std
                for width, std in zip(self.widths, (routing_std, routing_std, value_std))
            ]
        )


class ShortConvolution(nn.Module):
    """Depthwise convolution with a residual path over the real tokens of a row; with zero weights it is absent."""

    def __init__(self, channels: int, kernel_size: int, is_causal: bool):
        super().__init__()
        self.is_causal = is_causal
        self.weight = nn.Parameter(torch.empty(channels, kernel_size))

    def forward(
        self,
        x: torch.Tensor,
        mask: torch.Tensor | None,
        tail: torch.Tensor | None,
        segments: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """See `short_convolution`."""
        return short_convolution(x, self.weight, self.is_causal, mask, tail, segments)


class ForgetGate(nn.Linear):
    """One decay in (0, 1) per head and token. Its bias spreads the time scales of the heads at the start."""

    def forward(self, hidden_states: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """`[batch, N, hidden]` to log decays `[batch, heads, N]`, 0 at masked tokens."""
        return log_forget_gate(super().forward(hidden_states), mask)


class GaussianMixtureAttention(nn.Module):
    """
    Gaussian Mixture Attention (paper section 3): queries and keys become responsibilities over K components, values
    are written into and read from a K-slot memory. Optionally with a short convolution of q, k and v, with a forget
    gate on the state and with a gate on what is read.

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
        self.mixture = GaussianMixture(config)
        self.convolution = None
        if config.conv_kernel_size > 0:
            self.convolution = ShortConvolution(self.qkv_proj.out_features, config.conv_kernel_size, config.is_causal)
        self.forget_gate = ForgetGate(config.hidden_size, config.num_attention_heads) if config.forget_gate else None
        self.output_gate = nn.Linear(config.hidden_size, config.hidden_size) if config.output_gate else None
        self.o_proj.init_std = config.residual_std

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        output_attentions: bool = False,
        output_responsibilities: bool = False,
        segments: torch.Tensor | None = None,
        **kwargs,
    ) -> tuple:
        """
        Args:
            hidden_states: `[batch, N, hidden]`.
            attention_mask: `[batch, N]`, False at padding, or None.
            past_key_values: cache that the state is read from and written to (causal only), or None.
            output_attentions: whether to form the affinity.
            output_responsibilities: whether to give the responsibilities.
            segments: `[batch, N]`, which of several documents in a row a token belongs to, see `find_segments`.

        Returns:
            `[batch, N, hidden]`; the affinity `[batch, heads, N, N]` between the tokens of this call, or None; and,
            if asked for, the responsibilities of queries and of keys, a pair of `[batch, heads, N, K]`.
        """
        cache = past_key_values.layers[self.layer_idx] if past_key_values is not None else None
        past = (cache.state, cache.conv_tail) if cache is not None else (None, None)
        output, *now = self._read(hidden_states, attention_mask, segments, *past)
        weights = gammas = None
        if output_attentions or output_responsibilities:
            state, tail = past
            gammas = self.responsibilities(hidden_states, attention_mask, segments, tail)
        if output_attentions:
            log_decay = self._log_decay(hidden_states, attention_mask)
            weights = affinity(*gammas, self.config.read_epsilon, self.is_causal, state, log_decay, segments)
        if cache is not None:
            replay = None
            if cache.record_past:
                replay = partial(self._replay, hidden_states.detach(), attention_mask, segments, *past)
            cache.update(*now, hidden_states.shape[1], replay)
        output = self._join(output, hidden_states)
        return (output, weights, gammas) if output_responsibilities else (output, weights)

    def responsibilities(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        segments: torch.Tensor | None = None,
        tail: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Those of the queries and the keys of `hidden_states` `[batch, N, hidden]`, `[batch, heads, N, K]` each."""
        queries, keys = self.routing_vectors(hidden_states, attention_mask, segments, tail)
        return responsibilities(queries, keys, self.mixture(), attention_mask)

    def routing_vectors(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        segments: torch.Tensor | None = None,
        tail: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Queries and keys of `hidden_states` `[batch, N, hidden]`, `[batch, heads, N, d_r]` each."""
        return self._project(hidden_states, attention_mask, segments, tail)[:2]

    def _read(self, hidden_states, mask, segments, state, tail):
        """What the tokens read, `[batch, heads, N, head width]`, and state and tail after them."""
        queries, keys, values, tail = self._project(hidden_states, mask, segments, tail)
        inputs = (queries, keys, values, self.mixture(), self.config.read_epsilon)
        if self.is_causal:
            log_decay = self._log_decay(hidden_states, mask)
            settings = (self.config.chunk_size, mask, log_decay, segments, state, self.config.mixer_backend)
            return *mix_causal(*inputs, *settings), tail
        return *mix_bidirectional(*inputs, mask, segments), tail

    def write(
        self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None, state: torch.Tensor | None
    ) -> torch.Tensor:
        """The state of a bidirectional layer after the tokens have written into it; without a convolution only."""
        queries, keys, values, _ = self._project(hidden_states, attention_mask, None, None)
        inputs = (queries[:, :, :0], keys, values, self.mixture(), self.config.read_epsilon)
        return mix_bidirectional(*inputs, attention_mask, state=state)[1]

    def read(self, hidden_states: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        """What tokens `[batch, N, hidden]` read from a state that others, or they themselves, have written."""
        queries, keys, values, _ = self._project(hidden_states, None, None, None)
        inputs = (queries, keys[:, :, :0], values[:, :, :0], self.mixture(), self.config.read_epsilon)
        output, _ = mix_bidirectional(*inputs, state=state)
        return self._join(output, hidden_states)

    def _join(self, output: torch.Tensor, hidden_states: torch.Tensor) -> torch.Tensor:
        """What the heads read, `[batch, heads, N, head width]`, to `[batch, N, hidden]`."""
        output = output.transpose(1, 2).flatten(2)
        if self.output_gate is not None:
            output = output * nn.functional.silu(self.output_gate(hidden_states))
        return self.o_proj(output)

    @torch.no_grad()
    def _replay(self, hidden_states, mask, segments, state, tail, num_tokens: int):
        """State and tail after the first `num_tokens` of what was read, for a cache that goes back."""
        if num_tokens == 0:
            return state, tail
        tokens = (None if x is None else x[:, :num_tokens] for x in (hidden_states, mask, segments))
        return self._read(*tokens, state, tail)[1:]

    def _log_decay(self, hidden_states, mask):
        return None if self.forget_gate is None else self.forget_gate(hidden_states, mask)

    def _project(self, hidden_states, mask, segments, tail):
        projected = self.qkv_proj(hidden_states)
        if self.convolution is not None:
            projected, tail = self.convolution(projected, mask, tail, segments)
        heads = self.config.num_attention_heads
        queries, keys, values = (
            x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in projected.split(self.qkv_widths, dim=-1)
        )
        return self.mixture.normalize(queries), self.mixture.normalize(keys), values, tail


def eager_attention_forward(module, query, key, value, attention_mask, scaling, dropout=0.0, **kwargs):
    """Softmax attention that also gives its weights, `[batch, heads, N, keys]`."""
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
        self.is_causal = config.is_causal
        self.sliding_window = config.sliding_window if config.layer_types[layer_idx] == "sliding_attention" else None
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.k_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.v_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.o_proj.init_std = config.residual_std

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """
        Args:
            hidden_states: `[batch, N, hidden]`.
            attention_mask: as Transformers makes it for the attention implementation of the config.
            past_key_values: cache of keys and values, or None.

        Returns:
            `[batch, N, hidden]`, and the weights `[batch, heads, N, keys]` where the implementation gives them.
        """
        query, key, value = (
            proj(hidden_states).unflatten(-1, (self.config.num_attention_heads, -1)).transpose(1, 2)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        output, weights = attend(
            self,
            query,
            key,
            value,
            attention_mask,
            dropout=self.config.attention_probs_dropout_prob if self.training else 0.0,
            scaling=1 / math.sqrt(self.config.head_dim),
            sliding_window=self.sliding_window,
            **kwargs,
        )
        return self.o_proj(output.flatten(2)), weights
