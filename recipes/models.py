"""The model of a recipe: a checkpoint, or one from scratch."""

from typing import Any

from arguments import ModelArguments
from transformers import AutoConfig, PreTrainedModel

import gma_hf  # noqa: F401  (makes the Auto classes know the model type "gma")


def load_model(
    args: ModelArguments, auto_class: type, from_scratch: dict[str, Any], always: dict[str, Any] | None = None
) -> PreTrainedModel:
    """
    The checkpoint that is named, else a model of `model_type` from scratch. What `model_config` says comes last.

    Args:
        args: of the recipe.
        auto_class: such as `AutoModelForCausalLM`.
        from_scratch: fields of the config of a model from scratch.
        always: fields of the config of either.

    Raises:
        ValueError: if `model_config` has a name that is no field of the config.
    """
    choices, always = args.choices(), always or {}
    if args.model_name_or_path is not None:
        config = AutoConfig.from_pretrained(args.model_name_or_path)
    else:
        config = AutoConfig.for_model(args.model_type, **(from_scratch | always))
    for name in choices:
        if not hasattr(config, name):
            raise ValueError(f"`model_config` must have fields of {type(config).__name__}, but one is {name!r}.")
    if args.model_name_or_path is not None:
        return auto_class.from_pretrained(args.model_name_or_path, **(always | choices))
    return auto_class.from_config(AutoConfig.for_model(args.model_type, **(from_scratch | always | choices)))


def encoder_fields(model_type: str) -> dict[str, Any]:
    """What makes an encoder of a GMA model from scratch; encoders of other types need nothing."""
    return {"is_causal": False, "norm_position": "pre"} if model_type == "gma" else {}
