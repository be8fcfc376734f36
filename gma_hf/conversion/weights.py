"""Weights of a source in a GMA network whose layers are all softmax attention: the same function in our modules."""

import copy

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D
from transformers.utils import logging

from ..model.configuration_gma import GMAConfig
from ..model.modeling_gma import GMAPreTrainedModel
from .families import FAMILIES, unsupported
from .families.tables import Family, Head, refuse


logger = logging.get_logger(__name__)

# Fields of a config that mean the same in every architecture.
COMMON = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "initializer_range",
    "tie_word_embeddings",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "id2label",
    "label2id",
    "problem_type",
)


def carry_over(source: PreTrainedModel) -> GMAPreTrainedModel:
    """
    Return the GMA network with softmax attention in all layers that computes what `source` computes, in its dtype and
    mode, on its device.

    Raises:
        ValueError: for an architecture that is not supported, or weights that do not fit it.
    """
    family, head = find_family(source)
    refuse(source.config, **head.requires)
    fields = {name: getattr(source.config, name) for name in COMMON if hasattr(source.config, name)}
    fields |= {"layer_types": ["full_attention"] * fields["num_hidden_layers"]} | family.to_gma_config(source.config)
    fields["tie_word_embeddings"] = shares_embeddings(source, fields["tie_word_embeddings"])
    config = GMAConfig(**fields)
    config._attn_implementation = source.config._attn_implementation
    model = head.gma_class(config)
    model.load_state_dict(translate(source, model, family, head))
    model.tie_weights()
    scale_queries(model.base_model, source, family)
    if model.can_generate():
        model.generation_config = copy.deepcopy(source.generation_config)
    return model.to(dtype=source.dtype, device=source.device).train(source.training)


@torch.no_grad()
def scale_queries(network: GMAPreTrainedModel, source: PreTrainedModel, family: Family) -> None:
    """Multiply the queries where the source scales its scores otherwise than by 1 / sqrt(head width)."""
    for index, layer in enumerate(network.layers):
        for parameter in layer.attention.q_proj.parameters():
            parameter.mul_(family.query_factor(source.config, index))


def shares_embeddings(source: PreTrainedModel, config_says: bool) -> bool:
    """
    Return whether the head has the word embedding's weight: a checkpoint may hold another, whatever its config says.
    """
    head = source.get_output_embeddings()
    return config_says if head is None else head.weight is source.get_input_embeddings().weight


def find_family(source: PreTrainedModel) -> tuple[Family, Head]:
    """Return the tables of a model's family, or refuse the model."""
    name = type(source).__name__
    for family in FAMILIES.values():
        if name in family.heads:
            return family, family.heads[name]
    raise unsupported(source.config, name)


def translate(
    source: PreTrainedModel, model: GMAPreTrainedModel, family: Family, head: Head
) -> dict[str, torch.Tensor]:
    """
    Return the state dict of `model`, every entry from `source` and every entry of `source` used or named in a warning.
    """
    theirs, ours = source.state_dict(), model.state_dict()
    translated, used = {}, set()
    for name, targets in module_table(source, model, family, head).items():
        module = get_module(source, name)
        for kind in ("weight", "bias"):
            key = f"{name}.{kind}"
            if key in theirs:
                used.add(key)
                for target, weight in zip(targets, cut(theirs[key], module, targets, family, source)):
                    place(translated, ours, f"{target}.{kind}", weight, key)
            elif getattr(module, kind, module) is None:  # as if there were one without an effect
                absent = {f"{target}.{kind}" for target in targets} & ours.keys()
                translated |= {name: torch.full_like(ours[name], kind == "weight") for name in absent}
    dropped = {key for key in theirs if key.rpartition(".")[0] in head.dropped}
    if dropped:
        logger.warning(f"{type(model).__name__} has no place for {', '.join(sorted(dropped))}, which is left out.")
    left_over = set(theirs) - used - dropped - {head.unused}
    if left_over:
        raise ValueError(f"`source` must hold weights of its class only, but it has {min(left_over)!r} too.")
    if missing := [key for key in ours if key not in translated]:
        raise ValueError(f"`source` must hold all weights of its class, but it has none for {missing[0]!r}.")
    return translated


def module_table(
    source: PreTrainedModel, model: GMAPreTrainedModel, family: Family, head: Head
) -> dict[str, tuple[str, ...]]:
    """Return, by the name of each module of `source` that has a place in `model`, the names of what it becomes."""
    theirs = f"{family.prefix}." if hasattr(source, family.prefix) else ""
    ours = "" if model.base_model is model else f"{model.base_model_prefix}."
    table = {theirs + name: (ours + target,) for name, target in family.network.items()}
    for i in range(source.config.num_hidden_layers):
        for name, targets in family.layer.items():
            targets = (targets,) if isinstance(targets, str) else targets
            table[theirs + name.format(i=i)] = tuple(f"{ours}layers.{i}.{target}" for target in targets)
    places = dict(model.named_modules())
    table = {name: targets for name, targets in table.items() if targets[0] in places}
    return table | {name: (target,) for name, target in head.modules.items()}


def get_module(source: PreTrainedModel, name: str) -> nn.Module:
    """Return a module of the source, or refuse a source without it."""
    try:
        return source.get_submodule(name)
    except AttributeError as error:
        raise ValueError(f"`source` must have a module {name!r}, as its class has, but it has none.") from error


def cut(
    weight: torch.Tensor, module: nn.Module, targets: tuple[str, ...], family: Family, source: PreTrainedModel
) -> tuple[torch.Tensor, ...]:
    """
    Return a weight as `[outputs, inputs]`, a part of its outputs for each target; of positions, those that tokens can
    have.
    """
    if isinstance(module, Conv1D) and weight.ndim == 2:
        weight = weight.T
    if targets[0].endswith("position_embeddings"):
        weight = weight[family.unused_positions(source.config) :]
    return weight.chunk(len(targets))


def place(
    translated: dict[str, torch.Tensor], ours: dict[str, torch.Tensor], name: str, weight: torch.Tensor, key: str
) -> None:
    """Add a weight under its new name, if the GMA network has a place of its shape there."""
    if name not in ours or ours[name].shape != weight.shape:
        expected = list(ours[name].shape) if name in ours else "no such weight"
        raise ValueError(f"`source` must have {expected} as {key!r}, but its shape is {list(weight.shape)}.")
    translated[name] = weight
