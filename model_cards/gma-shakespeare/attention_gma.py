"""The token mixers of a GMA stack: Gaussian Mixture Attention, and softmax attention for hybrid stacks."""

import math

import torch
from torch import nn
from transformers.cache_utils import Cache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .configuration_gma import GMAConfig
from .functional_gma import (
    affinity,
    log_forget_gate,
    mix_bidirectional,
    mix_causal,
    responsibilities,
    routing_dtype,
    short_convolution,
)


QUERY, KEY = 0, 1  # the two sides of a head: reading and writing


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

    def forward(self, x: torch.Tensor, side: int, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Responsibilities `[batch, heads, N, K]` of queries or keys `[batch, heads, N, d_r]`, by their `side`."""
        temperature = None
        if self.log_temperature is not None:
            x = nn.functional.rms_norm(x.to(routing_dtype(x)), x.shape[-1:], eps=1e-6)
            temperature = self.log_temperature[side].exp()
        return responsibilities(x, self.means, self.variances, self.prior_logits, temperature, mask)

    def _apply(self, fn, recurse=True):
        def keep_precision(tensor):
            moved = fn(tensor)
            if moved.dtype in (torch.float16, torch.bfloat16):
                moved = tensor.to(moved.device, torch.float32)
            return moved

        return super()._apply(keep_precision, recurse)


class ShortConvolution(nn.Module):
    """Depthwise convolution with a residual path over the real tokens of a row; with zero weights it is absent."""

    def __init__(self, channels: int, kernel_size: int, is_causal: bool):
        super().__init__()
        self.is_causal = is_causal
        self.weight = nn.Parameter(torch.empty(channels, kernel_size))

    def forward(
        self, x: torch.Tensor, mask: torch.Tensor | None, tail: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """See `short_convolution`."""
        return short_convolution(x, self.weight, self.is_causal, mask, tail)


class ForgetGate(nn.Linear):
    """One decay in (0, 1) per head and token. Its bias spreads the time scales of the heads at the start."""

    def forward(self, hidden_states: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """`[batch, N, hidden]` to log decays `[batch, heads, N]`, 0 at masked tokens."""
        return log_forget_gate(super().forward(hidden_states), mask)


class GaussianMixtureAttention(nn.Module):
    """
    Gaussian Mixture Attention (paper section 3): queries and keys become responsibilities over K components, values
    are written into and read from a K-slot memory. Optionally with a short convolution of q, k and v and with a forget
    gate on the state.

    Args:
        config: the model's configuration.
        layer_idx: index of the layer, under which its state stands in the cache.
    """

    def __init__(self, config: GMAConfig, layer_idx: int):
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.is_causal = config.is_causal
        routing_width = config.num_attention_heads * config.routing_dim
        self.widths = [routing_width, routing_width, config.hidden_size]
        self.q_proj = nn.Linear(config.hidden_size, self.widths[0])
        self.k_proj = nn.Linear(config.hidden_size, self.widths[1])
        self.v_proj = nn.Linear(config.hidden_size, self.widths[2])
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.mixture = GaussianMixture(config)
        self.convolution = None
        if config.conv_kernel_size > 0:
            self.convolution = ShortConvolution(sum(self.widths), config.conv_kernel_size, config.is_causal)
        self.forget_gate = ForgetGate(config.hidden_size, config.num_attention_heads) if config.forget_gate else None
        # Routing vectors of RMS 1, the scale of the means
        self.q_proj.init_std = self.k_proj.init_std = config.hidden_size**-0.5
        self.o_proj.init_std = config.residual_std

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        output_attentions: bool = False,
        **kwargs,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """
        Args:
            hidden_states: `[batch, N, hidden]`.
            attention_mask: `[batch, N]`, False at padding, or None.
            past_key_values: cache that the state is read from and written to (causal only), or None.
            output_attentions: whether to form the affinity.

        Returns:
            `[batch, N, hidden]`, and the affinity `[batch, heads, N, N]` between the tokens of this call, or None.
        """
        cache = past_key_values.layers[self.layer_idx] if past_key_values is not None else None
        state, tail = (cache.state, cache.conv_tail) if cache is not None else (None, None)

        queries, keys, values, tail = self._project(hidden_states, attention_mask, tail)
        query_gamma = self.mixture(queries, QUERY)
        key_gamma = self.mixture(keys, KEY, attention_mask)
        log_decay = None
        if self.forget_gate is not None:
            log_decay = self.forget_gate(hidden_states, attention_mask)

        epsilon = self.config.read_epsilon
        weights = None
        if output_attentions:
            weights = affinity(query_gamma, key_gamma, epsilon, self.is_causal, state, log_decay)
        if self.is_causal:
            output, state = mix_causal(
                query_gamma, key_gamma, values, epsilon, self.config.chunk_size, state, log_decay
            )
        else:
            output, state = mix_bidirectional(query_gamma, key_gamma, values, epsilon)
        if cache is not None:
            cache.update(state, tail, hidden_states.shape[1])

        output = output.to(hidden_states.dtype).transpose(1, 2).flatten(2)
        return self.o_proj(output), weights

    def _project(self, hidden_states, mask, tail):
        projected = [self.q_proj(hidden_states), self.k_proj(hidden_states), self.v_proj(hidden_states)]
        if self.convolution is not None:
            mixed, tail = self.convolution(torch.cat(projected, dim=-1), mask, tail)
            projected = mixed.split(self.widths, dim=-1)
        heads = self.config.num_attention_heads
        return *(x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in projected), tail


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
