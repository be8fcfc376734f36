"""What a state must know of the model that wrote it."""

import hashlib
import json
from typing import NamedTuple

from torch import nn

from .configuration_gma import GMAConfig


# The fields of a config that decide what is computed, and not how fast or how it is trained
STRUCTURE = [
    *("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act", "layer_norm_eps"),
    *("norm_position", "position_embedding", "type_vocab_size", "is_causal", "layer_types", "sliding_window"),
    *("num_components", "routing_dim", "variance_floor", "read_epsilon", "normalize_routing"),
    *("conv_kernel_size", "forget_gate"),
]


class ModelIdentity(NamedTuple):
    """A fingerprint of what a state means, and why states of this model do not add up (empty: they do)."""

    fingerprint: str
    no_sum_because: str


def identify(config: GMAConfig, model: nn.Module) -> ModelIdentity:
    """From the fields of the config that decide what is computed, and names and shapes of the base model's weights."""
    structure = {name: getattr(config, name) for name in STRUCTURE}
    shapes = {name: list(parameter.shape) for name, parameter in model.named_parameters()}
    text = json.dumps([structure, shapes], sort_keys=True)
    return ModelIdentity(hashlib.sha256(text.encode()).hexdigest(), _no_sum_because(config))


def _no_sum_because(config: GMAConfig) -> str:
    if set(config.layer_types) != {"gma"}:
        return "`layer_types` holds softmax layers, which remember tokens in their order"
    if config.conv_kernel_size > 0:
        return "`conv_kernel_size` is not 0, and a convolution joins neighbouring tokens"
    if config.forget_gate:
        return "`forget_gate` is on, so that what comes later weighs more"
    if config.position_embedding != "none":
        return "`position_embedding` is 'learned', so that a passage depends on where it stands"
    return ""
