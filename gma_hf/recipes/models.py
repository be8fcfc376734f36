"""The model of a recipe: a checkpoint, or one from scratch."""

from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from ..errors import first_sentence
from ..hub.find import check_checkpoint, check_is_causal
from .arguments import ModelArguments


SHIPPED = Path(__file__).parents[2] / "model_cards" / "gma-shakespeare"  # where this package lies in a checkout
SHIPPED_HELP = "Folder or Hub name of a causal checkpoint; in a checkout, gma-shakespeare by default."


def load_model(
    args: ModelArguments, auto_class: type, from_scratch: dict[str, Any], always: dict[str, Any] | None = None
) -> PreTrainedModel:
    """
    Return the checkpoint that is named, else a model of `model_type` from scratch. What `model_config` says comes
    last.

    Args:
        args: of the recipe.
        auto_class: such as `AutoModelForCausalLM`.
        from_scratch: fields of the config of a model from scratch; `vocab_size` is that of the tokenizer.
        always: fields of the config of either.

    Raises:
        ValueError: if the checkpoint cannot be opened, or has fewer entries than the tokenizer, or `model_config` has
            a name that is no field of the config.
    """
    choices, always = args.choices(), always or {}
    if args.model_name_or_path is not None:
        config = opened(AutoConfig, args.model_name_or_path, "model_name_or_path")
    else:
        config = AutoConfig.for_model(args.model_type, **(from_scratch | always))
    for name in choices:
        if not hasattr(config, name):
            raise ValueError(f"`model_config` must have fields of {type(config).__name__}, but one is {name!r}.")
    if args.model_name_or_path is not None:
        model = opened(auto_class, args.model_name_or_path, "model_name_or_path", **(always | choices))
        check_vocabulary(model, from_scratch["vocab_size"])
        return model
    return auto_class.from_config(AutoConfig.for_model(args.model_type, **(from_scratch | always | choices)))


def opened(auto_class: type, name: str, argument: str, **choices: Any) -> Any:
    """
    Return what one of the Auto classes opens.

    Args:
        auto_class: of a config, a model or a tokenizer.
        name: folder or Hub name of the checkpoint.
        argument: of the recipe that named it.
        choices: given to `from_pretrained`.

    Raises:
        ValueError: if it cannot be opened.
    """
    if not Path(name).is_dir() or auto_class is not AutoTokenizer:  # a tokenizer may be alone in a folder
        check_checkpoint(name, f"`{argument}`")
    try:
        return auto_class.from_pretrained(name, **choices)
    except Exception as error:  # whatever error it is, it lies in somebody's files
        kind = "tokenizer" if auto_class is AutoTokenizer else "model"
        raise ValueError(
            f"`{argument}` must hold a {kind}, but that of {name!r} cannot be opened: {first_sentence(error)}."
        ) from error


def check_vocabulary(model: PreTrainedModel, size: int) -> None:
    """Refuse a model that has an embedding for fewer tokens than its tokenizer makes, which are `size`."""
    known = model.get_input_embeddings().weight.shape[0]
    if size > known:
        raise ValueError(
            f"The tokenizer must make token ids below {known}, which the model knows, but it has {size} entries."
        )


def open_causal(checkpoint: str | None) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """
    Return a causal language model and its tokenizer, by default those of gma-shakespeare.

    Raises:
        ValueError: if the checkpoint cannot be opened, is no causal language model, or has fewer entries than its
            tokenizer, and if none is named and this package was installed without it.
    """
    if checkpoint is None and not SHIPPED.is_dir():
        raise ValueError("`checkpoint` must be named, since the checkpoints of the repository are not installed.")
    name = str(checkpoint or SHIPPED)
    config = opened(AutoConfig, name, "checkpoint")
    try:
        check_is_causal(config)
    except ValueError as error:
        raise ValueError(f"`checkpoint` must be a causal language model, but of {name!r} {error}.") from error
    model, tokenizer = opened(AutoModelForCausalLM, name, "checkpoint"), opened(AutoTokenizer, name, "checkpoint")
    check_vocabulary(model, len(tokenizer))
    return model, tokenizer


def encoder_fields(model_type: str) -> dict[str, Any]:
    """Return what makes an encoder of a GMA model from scratch; encoders of other types need nothing."""
    return {"is_causal": False, "norm_position": "pre"} if model_type == "gma" else {}
