"""
What may be added to the paper's mixer, a class each: the field of the config that turns it on, the weights it has and
how they start, its effect, and what it keeps between calls. A new addition is a field of `GMAConfig`, a class here in
`ADDITIONS`, and a test.

An addition has no weights itself. They are a module of the layer, under the addition's `name`, which an adapter or a
quantization may wrap; the layer passes it to each method.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init

from .convolution_gma import short_convolution
from .documents_gma import Documents
from .equations_gma import routing_dtype


# exp(-20) = 2e-9 forgets everything that float32 can tell apart. The bound keeps sums of log decays over a chunk small
# enough for their differences to be good to 5e-4 in the worst case of a chunk of 256 closed gates.
MIN_LOG_DECAY = -20.0
# Time scales, in tokens, over which the heads of a layer forget at the start of training, shortest and longest.
FORGET_TIME_SCALES = (8.0, 8192.0)
# Learned read exponents of the heads of a layer at the start of training, of the last head and of the first: high ones
# recall, and belong to the heads that forget slowly; heads that start near 0 hardly take part in recall.
READ_EXPONENTS = (0.98, 0.5)
# silu of this is 1
OPEN_GATE = 1.2784645427610738


class Addition:
    """
    An addition without any effect, from which each takes what it does not change.

    A module that an addition makes starts by its own method `start`, if it has one, and otherwise as the network's
    linear maps do.
    """

    field: str  # of GMAConfig, which turns it on
    name: str  # of its module in the layer
    words: str  # for model cards
    keeps: str | None = None  # the name of the tensor that a layer's state has because of it
    no_sum_because: str | None = None  # why states of texts that were read apart do not add up with it
    in_pieces_because: str | None = None  # why a bidirectional model cannot read a document in pieces with it

    def __init__(self, config: Any):
        self.config = config

    @classmethod
    def is_on(cls, config: Any) -> bool:
        """Return whether a config turns it on."""
        return bool(getattr(config, cls.field))

    def module(self) -> nn.Module | None:
        """Return a new module for a layer, or None if it has no weights of its own."""
        return None

    def start_without_effect(self, module: nn.Module | None) -> None:
        """Let a new module start as if it were not there, in a layer that takes the place of another."""

    def kept_shape(self) -> tuple[int, ...] | None:
        """Return the shape of what it keeps of one row, or None if it keeps nothing."""
        return None

    def reach(self) -> tuple[int, int]:
        """Return how many tokens before a token, and after it, its `project` sees."""
        return 0, 0

    def project(
        self, module: nn.Module, projected: Tensor, documents: Documents, kept: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Return queries, keys and values `[B, N, channels]` of all heads, changed, and what it keeps after them."""
        return projected, None

    def log_decay(self, module: nn.Module, hidden_states: Tensor, documents: Documents) -> Tensor | None:
        """Return the log of the decay of the state at each token, `[B, H, N]`, or None for none."""
        return None

    def read_exponent(self, module: nn.Module, like: Tensor) -> Tensor | None:
        """Return the read exponent of each head, `[H]`, on the device of `like`; None for the paper's read."""
        return None

    def gate(self, module: nn.Module, output: Tensor, hidden_states: Tensor) -> Tensor:
        """Return what the heads read, `[B, N, hidden]`, changed before the output projection."""
        return output


class NormalizedRouting(Addition):
    """Queries and keys of root mean square 1, and a temperature per head and side, which is the mixture's."""

    field = "normalize_routing"
    name = "normalized_routing"
    words = "normalised routing"


class ConvolutionWeights(nn.Module):
    """
    The taps of a depthwise convolution, `[channels, W]`; with zeros it is absent. At the start it is, but for channels
    of keys that are `shifted`: they add the token before, so that what a token reads is what followed its like before.
    """

    def __init__(self, channels: int, kernel_size: int, shifted: slice = slice(0)):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, kernel_size))
        self.shifted = shifted

    @torch.no_grad()
    def start(self) -> None:
        """Start absent, with shifted keys."""
        taps = torch.zeros(self.weight.shape)
        taps[self.shifted, -2:-1] = 1
        init.copy_(self.weight, taps)

    def forward(
        self, x: Tensor, is_causal: bool, documents: Documents, tail: Tensor | None, backend: str = "auto"
    ) -> tuple[Tensor, Tensor | None]:
        """Return `short_convolution` of `[B, N, channels]`."""
        return short_convolution(x, self.weight, is_causal, documents, tail, backend)


class ShortConvolution(Addition):
    """A depthwise convolution of queries, keys and values, with a residual path, over the real tokens of a row."""

    field = "conv_kernel_size"
    name = "convolution"
    words = "a convolution"
    keeps = "conv_tail"
    no_sum_because = "`conv_kernel_size` is not 0, and a convolution joins neighbouring tokens"
    in_pieces_because = "a convolution, which `conv_kernel_size` turns on, reaches across their borders"

    @property
    def channels(self) -> int:
        """Queries, keys and values of all heads."""
        return 2 * self.config.num_attention_heads * self.config.routing_dim + self.config.hidden_size

    def module(self):
        width = self.config.num_attention_heads * self.config.routing_dim
        shifts_keys = self.config.is_causal and self.config.normalize_routing  # which starts queries as the keys
        shifted = slice(width, 2 * width) if shifts_keys else slice(0)
        return ConvolutionWeights(self.channels, self.config.conv_kernel_size, shifted)

    def start_without_effect(self, module):
        init.zeros_(module.weight)

    def kept_shape(self):
        return (self.config.conv_kernel_size - 1, self.channels) if self.config.is_causal else None

    def reach(self):
        width = self.config.conv_kernel_size
        return (width - 1, 0) if self.config.is_causal else (width // 2, width // 2)

    def project(self, module, projected, documents, kept):
        return module(projected, self.config.is_causal, documents, kept, self.config.mixer_backend)


class ForgetWeights(nn.Linear):
    """The logit of the decay of each head. Its bias spreads the time scales of the heads at the start."""

    def start(self, shortest: float = FORGET_TIME_SCALES[0]) -> None:
        """Start the bias with time scales from the shortest, in tokens, to the longest."""
        shortest, longest = math.log(shortest), math.log(FORGET_TIME_SCALES[1])
        time_scales = torch.linspace(shortest, longest, self.out_features).exp()
        init.copy_(self.bias, (-1 / time_scales).exp().logit())


class ForgetGate(Addition):
    """One decay in (0, 1) per head and token on the whole state."""

    field = "forget_gate"
    name = "forget_gate"
    words = "a forget gate"
    no_sum_because = "`forget_gate` is on, so that what comes later weighs more"

    def module(self):
        return ForgetWeights(self.config.hidden_size, self.config.num_attention_heads)

    @torch.no_grad()
    def start_without_effect(self, module):
        module.bias.fill_(torch.tensor(-1 / FORGET_TIME_SCALES[1], dtype=torch.float64).exp().logit())

    def log_decay(self, module, hidden_states, documents):
        return log_forget_gate(module(hidden_states), documents.mask)


class OutputGate(Addition):
    """What a token reads, multiplied by `silu` of a linear map of the layer's input."""

    field = "output_gate"
    name = "output_gate"
    words = "an output gate"

    def module(self):
        return nn.Linear(self.config.hidden_size, self.config.hidden_size)

    @torch.no_grad()
    def start_without_effect(self, module):
        module.weight.zero_()
        module.bias.fill_(OPEN_GATE)

    def gate(self, module, output, hidden_states):
        return output * F.silu(module(hidden_states))


class ExponentWeights(nn.Module):
    """The logit of the read exponent of each head, `[H]`: a bias, which trainers do not let decay."""

    def __init__(self, heads: int):
        super().__init__()
        self.bias = nn.Parameter(torch.empty(heads))

    def start(self) -> None:
        """Start with the heads spread, since heads that all start low never find recall."""
        init.copy_(self.bias, torch.linspace(*READ_EXPONENTS, len(self.bias)).flip(0).logit())

    @torch.no_grad()
    def set(self, exponents: Tensor) -> None:
        """Take the exponents of the heads, `[H]`, each greater than 0 and less than 1."""
        self.bias.copy_(exponents.logit())

    def forward(self) -> Tensor:
        """Return the exponents, `[H]`."""
        return self.bias.to(routing_dtype(self.bias)).sigmoid()


class ReadExponent(Addition):
    """A component is weighed by its posterior times a power of its mass, `gamma_k z_k^(1 - p)`."""

    field = "read_exponent"
    name = "read_exponent"
    words = "a read exponent"

    def module(self):
        return ExponentWeights(self.config.num_attention_heads) if self.config.read_exponent == "learned" else None

    def read_exponent(self, module, like):
        if module is not None:
            return module()
        shape, dtype = (self.config.num_attention_heads,), routing_dtype(like)
        return torch.full(shape, float(self.config.read_exponent), dtype=dtype, device=like.device)


ADDITIONS = (NormalizedRouting, ShortConvolution, ForgetGate, OutputGate, ReadExponent)


def additions_of(config: Any) -> list[Addition]:
    """Return the additions that a config turns on."""
    return [kind(config) for kind in ADDITIONS if kind.is_on(config)]


def log_forget_gate(logits: Tensor, mask: Tensor | None = None) -> Tensor:
    """
    Return the log of the forget gate, `max(log sigmoid(logits), MIN_LOG_DECAY)`, and 0 where a token is masked.

    Args:
        logits: `[B, N, H]`.
        mask: `[B, N]`, False where a token must leave the state as it is.

    Returns:
        `[B, H, N]` in the dtype of the state.
    """
    log_gate = F.logsigmoid(logits.to(routing_dtype(logits))).clamp_min(MIN_LOG_DECAY)
    if mask is not None:
        log_gate = log_gate * mask[..., None]
    return log_gate.transpose(1, 2)
