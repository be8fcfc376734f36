"""What a state must know of the model that wrote it."""

import hashlib
import json
from typing import NamedTuple

from torch import nn

from .additions_gma import additions_of
from .configuration_gma import MIXER_FIELDS, GMAConfig


# The fields of a config that decide what is computed, and not how fast or how it is trained. A fingerprint in a file
# holds them in this order; any other field of the mixer joins it only where it is not at its default, so that files of
# older versions stay what they are.
STRUCTURE = [
    *("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act", "layer_norm_eps"),
    *("norm_position", "position_embedding", "type_vocab_size", "is_causal", "layer_types", "sliding_window"),
    *("num_components", "routing_dim", "variance_floor", "read_epsilon", "normalize_routing"),
    *("conv_kernel_size", "forget_gate"),
]
# Fields of the mixer that do not decide what is computed, or whose weights say it
NOT_OF_THE_STRUCTURE = ("chunk_size", "routing_temperature", "output_gate", "mixer_backend")


class ModelIdentity(NamedTuple):
    """A fingerprint of what a state means, and why states of this model do not add up (empty: they do)."""

    fingerprint: str
    no_sum_because: str


def identify(config: GMAConfig, model: nn.Module) -> ModelIdentity:
    """Return the identity of a base model, by the fields of its config and the names and shapes of its weights."""
    structure = {name: getattr(config, name) for name in STRUCTURE}
    for name in MIXER_FIELDS:
        if name not in (*STRUCTURE, *NOT_OF_THE_STRUCTURE) and getattr(config, name) != getattr(GMAConfig, name):
            structure[name] = getattr(config, name)
    shapes = {name: list(parameter.shape) for name, parameter in model.named_parameters()}
    text = json.dumps([structure, shapes], sort_keys=True)
    return ModelIdentity(hashlib.sha256(text.encode()).hexdigest(), _no_sum_because(config))


def _no_sum_because(config: GMAConfig) -> str:
    if set(config.layer_types) != {"gma"}:
        return "`layer_types` holds softmax layers, which remember tokens in their order"
    for addition in additions_of(config):
        if addition.no_sum_because is not None:
            return addition.no_sum_because
    if config.position_embedding != "none":
        return "`position_embedding` is 'learned', so that a passage depends on where it stands"
    return ""
