"""The sequence mixers that are compared: functions of queries, keys and values `[batch, heads, N, width]`, causal."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import MambaConfig
from transformers.models.mamba.modeling_mamba import MambaMixer

from gma_hf.model.additions_gma import READ_EXPONENTS
from gma_hf.model.equations_gma import Mixture, append_ones, read, responsibilities, score_weights
from gma_hf.model.mixing_gma import mix_causal

from .linear_attention import EPSILON, chunked, elu_features


Mixer = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


class RandomMixture(nn.Module):
    """Random parameters of K components per head."""

    def __init__(self, heads: int, components: int, width: int):
        super().__init__()
        self.means = nn.Parameter(torch.randn(heads, components, width))
        self.variances = nn.Parameter(torch.rand(heads, components, width) + 1)
        self.prior_logits = nn.Parameter(torch.zeros(heads, components))

    def scores(self):  # noqa: ANN201
        return score_weights(Mixture(self.means, self.variances, self.prior_logits))


class GMA(RandomMixture):
    """The mixer of this package, in chunks of `chunk_size` tokens where `backend` is torch."""

    def __init__(self, heads: int, components: int, width: int, chunk_size: int, backend: str = "auto"):
        super().__init__(heads, components, width)
        self.chunk_size, self.backend, self.read_exponent = chunk_size, backend, None

    def forward(self, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        inputs = (queries, keys, values, self.scores())
        settings = {"backend": self.backend, "read_exponent": self.read_exponent}
        return mix_causal(*inputs, EPSILON, self.chunk_size, **settings)[0]


class ExponentGMA(GMA):
    """The same with a learned read exponent for each head."""

    def __init__(self, heads: int, components: int, width: int, chunk_size: int):
        super().__init__(heads, components, width, chunk_size)
        self.read_exponent = nn.Parameter(torch.linspace(*READ_EXPONENTS, heads))


class CumsumGMA(RandomMixture):
    """The textbook form: the state after every token, as a cumulative sum of outer products."""

    def forward(self, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        query_gamma, key_gamma = responsibilities(queries, keys, self.scores())
        states = (key_gamma[..., None] * append_ones(values)[..., None, :]).cumsum(dim=2)
        return read((query_gamma[..., None, :] @ states)[..., 0, :], EPSILON).to(values.dtype)


class Softmax(nn.Module):
    """`scaled_dot_product_attention`, whatever PyTorch chooses for it."""

    def forward(self, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        return F.scaled_dot_product_attention(queries, keys, values, is_causal=True)


class FlashAttention(Softmax):
    """The same by PyTorch's FlashAttention, on a GPU in half precision."""

    def forward(self, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            return super().forward(queries, keys, values)


class Linear(nn.Module):
    """Linear attention with the features elu(x) + 1, in chunks too, by autograd."""

    def __init__(self, chunk_size: int):
        super().__init__()
        self.chunk_size = chunk_size

    def forward(self, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        return chunked(elu_features(queries), elu_features(keys), values, self.chunk_size)


class Mamba(nn.Module):
    """Transformers' Mamba mixer, whose inner width is heads x width; its own projections are part of its time."""

    def __init__(self, heads: int, width: int):
        super().__init__()
        config = MambaConfig(hidden_size=heads * width // 2, expand=2, num_hidden_layers=1)
        self.mixer = MambaMixer(config, layer_idx=0)

    def forward(self, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        hidden_states = values.transpose(1, 2).flatten(2)
        return self.mixer(hidden_states[..., : hidden_states.shape[-1] // 2])


def contenders(
    heads: int, width: int, components: int, chunk_size: int, dtype: torch.dtype, device: str
) -> dict[str, nn.Module]:
    """Return all contenders by name, for queries, keys and values in `dtype` on `device`; mixtures are float32."""
    flash = {"FlashAttention": FlashAttention()} if device == "cuda" and dtype != torch.float32 else {}
    return {
        "GMA": GMA(heads, components, width, chunk_size),
        "GMA, read exponent": ExponentGMA(heads, components, width, chunk_size),
        "softmax (SDPA)": Softmax(),
        **flash,
        "linear (elu + 1)": Linear(chunk_size),
        "GMA by cumsum": CumsumGMA(heads, components, width),
        "Mamba": Mamba(heads, width).to(dtype),
    }
