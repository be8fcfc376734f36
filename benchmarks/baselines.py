"""
Other token mixers in a GMA network, so that nothing but the mixer differs: softmax, linear attention (elu + 1;
Katharopoulos et al., 2020) and positive orthogonal random features (Performer's FAVOR+; Choromanski et al., 2021),
each with the additions of GMA that make sense for it, and Transformers' Mamba at the same number of parameters.
Softmax attention with a forget gate is the Forgetting Transformer's (Lin et al., 2025).

They are for training and evaluation: none keeps a cache.
"""

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from transformers import MambaConfig, MambaForCausalLM, PreTrainedModel

from gma_hf import GMAConfig, GMAPreTrainedModel
from gma_hf.model.additions_gma import ConvolutionWeights, ForgetWeights, OutputGate, log_forget_gate
from gma_hf.model.attention_gma import GaussianMixtureAttention, MixerOutput
from gma_hf.model.documents_gma import ONE_EACH, Documents
from gma_hf.model.softmax_gma import SoftmaxAttention

from .linear_attention import bidirectional, chunked, elu_features


class FeatureAttention(GaussianMixtureAttention):
    """GMA's layer (projections, convolution, gate) with features of queries and keys instead of responsibilities."""

    def __init__(self, config: GMAConfig, layer_idx: int):
        super().__init__(config, layer_idx)
        del self.mixture

    def features(self, x: torch.Tensor, is_query: bool) -> torch.Tensor:
        """Of queries or keys `[B, H, N, d]`, not negative, `[B, H, N, m]`."""
        raise NotImplementedError

    def forward(self, hidden_states: torch.Tensor, documents: Documents = ONE_EACH, **kwargs: Any) -> MixerOutput:
        """Return what the layer gives for `[B, N, hidden]`."""
        heads, _ = self.project(hidden_states, documents, {})
        queries, keys = self.features(heads.queries, True), self.features(heads.keys, False)
        if documents.mask is not None:
            keys = keys * documents.mask[:, None, :, None]
        if self.is_causal:
            output = chunked(queries, keys, heads.values, self.config.chunk_size, heads.log_decay)
        else:
            output = bidirectional(queries, keys, heads.values)
        return MixerOutput(self.join(output, hidden_states))


class LinearAttention(FeatureAttention):
    """Features elu(x) + 1."""

    def features(self, x: torch.Tensor, is_query: bool) -> torch.Tensor:
        return elu_features(x)


class Performer(FeatureAttention):
    """FAVOR+: as many positive orthogonal random features of the softmax kernel as GMA has components, fixed."""

    def __init__(self, config: GMAConfig, layer_idx: int):
        super().__init__(config, layer_idx)
        directions = [
            self.orthogonal(config.num_components, config.routing_dim) for _ in range(config.num_attention_heads)
        ]
        self.register_buffer("directions", torch.stack(directions))

    @staticmethod
    def orthogonal(count: int, width: int) -> torch.Tensor:
        """Rows that are orthogonal in blocks of `width`, with the lengths of Gaussian vectors, `[count, width]`."""
        blocks = [torch.linalg.qr(torch.randn(width, width)).Q for _ in range(math.ceil(count / width))]
        return torch.cat(blocks)[:count] * torch.randn(count, width).norm(dim=-1, keepdim=True)

    def features(self, x: torch.Tensor, is_query: bool) -> torch.Tensor:
        x = x * x.shape[-1] ** -0.25
        exponents = x @ self.directions.transpose(-1, -2) - x.square().sum(dim=-1, keepdim=True) / 2
        if is_query:  # a factor on a query cancels; one on all keys would let the largest of the future be felt
            exponents = exponents - exponents.amax(dim=-1, keepdim=True).detach()
        return exponents.clamp(max=40).exp() + 1e-4


class ConvolvedSoftmaxAttention(SoftmaxAttention):
    """
    Softmax attention with GMA's short convolution of queries, keys and values, and where asked its output gate and its
    forget gate: the logits of token i add the log decays of the tokens after j up to i.
    """

    def __init__(self, config: GMAConfig, layer_idx: int):
        super().__init__(config, layer_idx)
        width, heads = config.hidden_size, config.num_attention_heads
        self.convolution = ConvolutionWeights(3 * width, config.conv_kernel_size)
        self.output_gate = nn.Linear(width, width) if config.output_gate else None
        self.forget_gate = ForgetWeights(width, heads) if config.forget_gate else None

    def forward(self, hidden_states: torch.Tensor, documents: Documents = ONE_EACH, **kwargs: Any) -> MixerOutput:
        """Return what the layer gives for `[B, N, hidden]`."""
        projected = torch.cat([proj(hidden_states) for proj in (self.q_proj, self.k_proj, self.v_proj)], dim=-1)
        projected, _ = self.convolution(projected, self.is_causal, documents, None)
        query, key, value = (
            x.unflatten(-1, (self.config.num_attention_heads, -1)).transpose(1, 2) for x in projected.chunk(3, dim=-1)
        )
        bias = self.bias(hidden_states, documents.mask)
        output = F.scaled_dot_product_attention(
            query, key, value, attn_mask=bias, is_causal=self.is_causal and bias is None
        )
        output = output.transpose(1, 2).flatten(2)
        if self.output_gate is not None:
            output = OutputGate(self.config).gate(self.output_gate, output, hidden_states)
        return MixerOutput(self.o_proj(output))

    def bias(self, hidden_states: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor | None:
        """Return what is added to the logits, `[B, H or 1, N or 1, N]`, or which of them count; None for nothing."""
        visible = None if mask is None else mask[:, None, None]
        size = hidden_states.shape[1]
        if self.is_causal and (mask is not None or self.forget_gate is not None):
            past = torch.ones(size, size, dtype=torch.bool, device=hidden_states.device).tril()
            visible = past if visible is None else visible & past
        if self.forget_gate is None:
            return visible
        elapsed = log_forget_gate(self.forget_gate(hidden_states), mask).cumsum(dim=-1)
        return (elapsed[..., :, None] - elapsed[..., None, :]).masked_fill(~visible, float("-inf"))


class Mixer(NamedTuple):
    """A contender: the layer in the place of GMA's (None: as `layer_types` says), and fields of its GMAConfig."""

    layer: type[nn.Module] | None = None
    convolution: bool = False  # of queries, keys and values
    fields: dict[str, Any] = {}
    encoder_fields: dict[str, Any] | None = None  # in an encoder, where they are others
    softmax_layers: float = 0.0  # share of the layers that are softmax, the last of each group

    @property
    def suits_encoders(self) -> bool:
        """Return whether it can stand in an encoder, which has no forget gate, under the same name."""
        return self.encoder_fields is not None or not self.fields.get("forget_gate")


FORGET = {"forget_gate": True}
OUTPUT = {"output_gate": True}
NO_POSITIONS = {"position_embedding": "none"}
ALL = FORGET | OUTPUT | NO_POSITIONS
ROUTING = ("normalize_routing", "mixture_rate", "read_exponent")
RECOMMENDED = OUTPUT | {name: getattr(GMAConfig.recommended(), name) for name in ROUTING}
MIXERS = {
    "softmax": Mixer(softmax_layers=1),
    "softmax + conv": Mixer(ConvolvedSoftmaxAttention, convolution=True),
    "softmax + conv + output gate": Mixer(ConvolvedSoftmaxAttention, convolution=True, fields=OUTPUT),
    "softmax + conv + output gate, no positions": Mixer(
        ConvolvedSoftmaxAttention, convolution=True, fields=OUTPUT | NO_POSITIONS
    ),
    "softmax + conv + gates, no positions": Mixer(ConvolvedSoftmaxAttention, convolution=True, fields=ALL),
    "linear": Mixer(LinearAttention),
    "linear + conv": Mixer(LinearAttention, convolution=True),
    "linear + conv + gate": Mixer(LinearAttention, convolution=True, fields=FORGET),
    "linear + conv + output gate": Mixer(LinearAttention, convolution=True, fields=OUTPUT),
    "linear + conv + gates, no positions": Mixer(LinearAttention, convolution=True, fields=ALL),
    "performer": Mixer(Performer),
    "performer + conv": Mixer(Performer, convolution=True),
    "performer + conv + gate": Mixer(Performer, convolution=True, fields=FORGET),
    "performer + conv + gates, no positions": Mixer(Performer, convolution=True, fields=ALL),
    "gma": Mixer(),
    "gma + conv": Mixer(convolution=True),
    "gma + conv + gate": Mixer(convolution=True, fields=FORGET),
    "gma + conv + gates, no positions": Mixer(convolution=True, fields=ALL),
    "gma, recommended": Mixer(convolution=True, fields=ALL | RECOMMENDED, encoder_fields=RECOMMENDED),
    "hybrid": Mixer(convolution=True, fields=FORGET | OUTPUT, softmax_layers=0.25),
    "hybrid, no positions": Mixer(convolution=True, fields=ALL, softmax_layers=0.25),
}


def build(
    head: type[GMAPreTrainedModel], name: str, fields: dict[str, Any], conv_kernel_size: int = 4
) -> PreTrainedModel:
    """
    A model from scratch with one of `MIXERS`, or "mamba" (causal language models only; see `mamba_like`). The width of
    its MLPs makes up for what its mixer has more or fewer parameters than plain GMA.

    Args:
        head: the class of the model, with GMA.
        name: of the mixer.
        fields: of `GMAConfig`, for all contenders.
        conv_kernel_size: taps of the convolution of the mixers of `MIXERS` that have one, 1 or more; 3 in an encoder.

    Raises:
        ValueError: for another name, or less than one tap.
    """
    if conv_kernel_size < 1:
        raise ValueError(f"`conv_kernel_size` must be at least 1, but it is {conv_kernel_size}.")
    plain = head(GMAConfig(**fields))
    if name == "mamba":
        return mamba_like(plain)
    if name not in MIXERS:
        raise ValueError(f"`mixer` must be one of {', '.join([*MIXERS, 'mamba'])}, but it is {name!r}.")
    mixer = MIXERS[name]
    missing = plain.num_parameters() - with_mixer(head, mixer, fields, conv_kernel_size).num_parameters()
    units = round(missing / plain.config.num_hidden_layers / (2 * plain.config.hidden_size + 1))
    fields = fields | {"intermediate_size": plain.config.intermediate_size + units}
    return with_mixer(head, mixer, fields, conv_kernel_size)


def with_mixer(
    head: type[GMAPreTrainedModel], mixer: Mixer, fields: dict[str, Any], conv_kernel_size: int
) -> GMAPreTrainedModel:
    """A model with this mixer."""
    extra = mixer.fields
    if not fields.get("is_causal", True):  # no forget gate there, and a centred convolution
        extra = extra | {"forget_gate": False} if mixer.encoder_fields is None else mixer.encoder_fields
        conv_kernel_size = 3
    if mixer.convolution:
        extra = extra | {"conv_kernel_size": conv_kernel_size}
    layers = fields["num_hidden_layers"]
    softmax = {i for i in range(layers) if mixer.softmax_layers and (i + 1) % round(1 / mixer.softmax_layers) == 0}
    layer_types = ["full_attention" if i in softmax else "gma" for i in range(layers)]
    model = head(GMAConfig(**fields, **extra, layer_types=layer_types, use_cache=False))
    if mixer.layer is not None:
        for index, layer in enumerate(model.base_model.layers):
            layer.attention = mixer.layer(model.config, index)
            layer.attention.apply(model._init_weights)
    return model


def mamba_like(model: GMAPreTrainedModel) -> MambaForCausalLM:
    """Mamba of the same width and vocabulary, with the layers that bring its parameters nearest to `model`."""
    config = model.config
    fields = {"vocab_size": config.vocab_size, "hidden_size": config.hidden_size, "use_cache": False}
    fields |= {"use_mambapy": True}  # the parallel scan of that package: on a CPU ten times faster than the recurrence
    fields |= {"bos_token_id": config.bos_token_id, "eos_token_id": config.eos_token_id}
    fields |= {"pad_token_id": config.pad_token_id}
    one, two = (MambaForCausalLM(MambaConfig(**fields, num_hidden_layers=n)).num_parameters() for n in (1, 2))
    layers = max(1, round(1 + (model.num_parameters() - one) / (two - one)))
    return MambaForCausalLM(MambaConfig(**fields, num_hidden_layers=layers))
