"""What this family must know of the versions of Transformers and torch, asked for by feature: the only such place."""

from dataclasses import fields

import torch
from torch import Tensor
from transformers import cache_utils, configuration_utils
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.models.auto import modeling_auto


# What models call what was read before, in arguments and outputs
CACHE_NAMES = ("cache", "past_key_values")
CACHE_NAME = next(name for name in CACHE_NAMES if name in {field.name for field in fields(BaseModelOutputWithPast)})


def one_cache(cache: Cache | None, past_key_values: Cache | None) -> Cache | None:
    """Return the cache that is given under either name; under both at once it is refused, with a ValueError."""
    if cache is not None and past_key_values is not None:
        raise ValueError("Only one of `cache` and `past_key_values` may be given, but both are.")
    return past_key_values if cache is None else cache


def slice_logits_to_keep(hidden_states: Tensor, logits_to_keep: int | Tensor) -> Tensor:
    """Return the last so many tokens of `[batch, N, hidden]` (0: all), or those at `[n]` or `[batch, n]`."""
    if isinstance(logits_to_keep, int):
        return hidden_states[:, -logits_to_keep:] if logits_to_keep else hidden_states
    if logits_to_keep.ndim == 1:
        return hidden_states[:, logits_to_keep]
    return hidden_states.gather(1, logits_to_keep[..., None].expand(-1, -1, hidden_states.shape[-1]))


def allow_layer_type(name: str) -> None:
    """Let Transformers' own configs hold a layer type: Trainer opens config.json as one of these when it resumes."""
    for table in ("ALLOWED_ATTN_LAYER_TYPES", "ALLOWED_LAYER_TYPES"):
        allowed = getattr(configuration_utils, table, (name,))
        if name not in allowed:
            setattr(configuration_utils, table, (*allowed, name))


def register_static_layer(name: str, layer: type) -> None:
    """Let `StaticCache` make a layer of a type; where Transformers has no such table, the model puts it there."""
    getattr(cache_utils, "STATIC_LAYER_TYPE_MAPPING", {})[name] = layer


def register_class_names(model_type: str, tables: dict[str, str]) -> None:
    """Write class names into Transformers' tables, by which Trainer and pipelines tell what a model is for."""
    for table, class_name in tables.items():
        getattr(modeling_auto, f"{table}_MAPPING_NAMES")[model_type] = class_name


def is_exporting() -> bool:
    """Return whether `torch.export` is tracing."""
    return getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)()


def cpu_capabilities() -> dict:
    """Return what torch knows of the CPU, which is nothing in its older releases."""
    return getattr(torch.cpu, "get_capabilities", dict)()
