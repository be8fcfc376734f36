"""The contenders of `recall.py`: small networks that differ in the token mixer alone, and what a layer keeps."""

from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.models.mamba.modeling_mamba import MambaMixer

from gma_hf import GMAConfig, GMAForCausalLM
from gma_hf.model.configuration_gma import OWN_FIELDS

from .baselines import ROUTING, ConvolvedSoftmaxAttention, LinearAttention, mamba_like
from .recall_mixers import DeltaRule, GatedLinearAttention, NormedAttention, UnnormalizedLinearAttention


class Contender(NamedTuple):
    """The layer in the place of GMA's (None: GMA's own), fields of its GMAConfig, and whether `shift` starts it."""

    layer: type[nn.Module] | None = None
    fields: dict[str, Any] = {}
    starts_shifted: bool = True

    @property
    def is_gma(self) -> bool:
        """Return whether the mixer is that of this package."""
        return self.layer is None


NETWORK = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
NETWORK |= {"position_embedding": "none", "conv_kernel_size": 4, "forget_gate": True, "output_gate": True}
NETWORK |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "routing_temperature": 0.2}
NETWORK |= {"use_cache": False, "hidden_act": "gelu_pytorch_tanh"}  # gelu_new, by one operator

READS = {"": {}, "-p1": {"read_exponent": 1.0}, "-learned": {"read_exponent": "learned"}}
# Four heads, over which exponents and time scales are spread; with 30 components the state is smaller than that of
# linear attention
RECOMMENDED = {name: getattr(GMAConfig.recommended(), name) for name in ROUTING}
RECOMMENDED |= {"num_attention_heads": 4, "routing_temperature": None}  # None: the config's own
NO_FORGET = {"forget_gate": False}
LONG = 1000.0  # tokens in which the head that forgets fastest does so at the start, see `shift`
MAMBA = "mamba"  # Transformers' own network: see `mamba_like`
CONTENDERS = {
    f"gma-{components}{read}": Contender(fields={"num_components": components, **fields})
    for read, fields in READS.items()
    for components in (32, 64, 128)
}
CONTENDERS |= {  # they shift their keys by themselves
    f"gma-{components}-recommended": Contender(
        fields={"num_components": components, **RECOMMENDED}, starts_shifted=False
    )
    for components in (30, 64, 128)
}
CONTENDERS |= {
    "softmax": Contender(ConvolvedSoftmaxAttention, NO_FORGET, starts_shifted=False),
    "linear": Contender(LinearAttention),
    "linear-unnormalized": Contender(UnnormalizedLinearAttention),
    "gla": Contender(GatedLinearAttention, NO_FORGET),
    "delta": Contender(DeltaRule, NO_FORGET),
    "gated-delta": Contender(DeltaRule),
    MAMBA: Contender(MambaMixer),
}


def config_of(name: str, vocab_size: int, fields: dict[str, Any]) -> GMAConfig:
    """
    Return the config of a contender.

    Args:
        name: one of `CONTENDERS`.
        vocab_size: tokens that there are.
        fields: of GMAConfig, which win over those of the contender.

    Raises:
        ValueError: for a field that GMAConfig does not have, which it would take in silence.
    """
    fields = NETWORK | {"vocab_size": vocab_size} | CONTENDERS[name].fields | fields
    for field in fields:
        if field not in OWN_FIELDS:
            raise ValueError(f"`fields` must be of GMAConfig, but one of {name} is {field!r}.")
    return GMAConfig(**fields)


def network(name: str, vocab_size: int, fields: dict[str, Any]) -> PreTrainedModel:
    """Return a language model from scratch; see `config_of`."""
    model = GMAForCausalLM(config_of(name, vocab_size, fields))
    if name == MAMBA:
        return mamba_like(model)
    contender = CONTENDERS[name]
    for index, layer in enumerate(model.base_model.layers):
        if contender.layer is not None:
            layer.attention = contender.layer(model.config, index)
            layer.attention.apply(model._init_weights)
        if contender.starts_shifted:
            shift(layer.attention)
    return model


@torch.no_grad()
def shift(mixer: nn.Module) -> None:
    """
    Let queries start as the keys, and keys add that of the token before, as GMA's recommended routing does, and forget
    gates with time scales that are longer than a row. Without it most mixers find recall late or not at all.
    """
    width = mixer.qkv_widths[0]
    mixer.qkv_proj.weight[:width] = mixer.qkv_proj.weight[width : 2 * width]
    mixer.convolution.weight[width : 2 * width, -2] = 1
    if mixer.forget_gate is not None:
        mixer.forget_gate.start(LONG)


def state_size(model: PreTrainedModel, length: int) -> int:
    """Return the numbers that a layer keeps of each row after `length` tokens, the tails of convolutions left out."""
    layer, config = model.base_model.layers[0], model.config
    if config.model_type == MAMBA:
        return layer.mixer.intermediate_size * layer.mixer.ssm_state_size
    mixer = layer.attention
    if isinstance(mixer, ConvolvedSoftmaxAttention):
        return 2 * config.hidden_size * length
    if isinstance(mixer, LinearAttention):
        return config.num_attention_heads * config.routing_dim * (config.head_dim + 1)
    if isinstance(mixer, NormedAttention):
        return config.num_attention_heads * config.routing_dim * config.head_dim
    return config.num_attention_heads * config.num_components * (config.head_dim + 1)
