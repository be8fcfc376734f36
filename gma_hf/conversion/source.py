"""The source of a conversion: opened from a folder or the Hub, or a model in memory."""

from pathlib import Path

import transformers
from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import cached_file

from ..errors import first_sentence
from ..hub.find import IF_THERE, check_checkpoint
from .families import FAMILIES, unsupported


# A tokenizer is made of one of these. Without, Transformers makes an empty one up.
TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json")


def open_source(source: str | Path | PreTrainedModel) -> PreTrainedModel:
    """
    Return the model with the head that its checkpoint names.

    Raises:
        ValueError: if there is no such checkpoint, its architecture is not supported, or weights are missing.
    """
    if isinstance(source, PreTrainedModel):
        return source
    name = str(source)
    check_checkpoint(name, "`source`")
    try:
        config = AutoConfig.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"`source` must be the folder or Hub name of a checkpoint, but {name!r} cannot be opened: "
            f"{first_sentence(error)}."
        ) from error
    heads = FAMILIES[config.model_type].heads if config.model_type in FAMILIES else {}
    class_name = (config.architectures or list(heads) or ["none"])[0]  # without a name: the bare network
    if class_name not in heads:
        raise unsupported(config, class_name, repr(name))
    try:
        model, report = getattr(transformers, class_name).from_pretrained(
            name, config=config, output_loading_info=True
        )
    except Exception as error:  # whatever error it is, it lies in somebody's files
        raise ValueError(
            f"`source` must hold the weights of its model, but those of {name!r} cannot be read: "
            f"{first_sentence(error)}."
        ) from error
    dropped = heads[class_name].dropped
    missing = sorted(key for key in report["missing_keys"] if key.rpartition(".")[0] not in dropped)
    if missing:
        raise ValueError(f"`source` must hold all weights of its class, but {name!r} has none for {missing[0]!r}.")
    return model


def open_tokenizer(
    source: str | Path | PreTrainedModel, max_length: int | None = None
) -> PreTrainedTokenizerBase | None:
    """
    Return the tokenizer of a source, or None where it has no files of one.

    Args:
        source: folder or Hub name of a checkpoint, or a model that was opened from one.
        max_length: its `model_max_length`, where that is another than the source's.

    Raises:
        ValueError: if they cannot be read.
    """
    name = source.config._name_or_path if isinstance(source, PreTrainedModel) else str(source)
    if not name or not any(cached_file(name, file, **IF_THERE) for file in TOKENIZER_FILES):
        return None
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(name)
    except Exception as error:  # whatever error it is, it lies in somebody's files
        raise ValueError(
            f"`source` must hold a tokenizer that can be opened, or none, but that of {name!r} cannot: "
            f"{first_sentence(error)}."
        ) from error
    if max_length is not None:
        set_max_length(tokenizer, max_length)
    return tokenizer


def set_max_length(tokenizer: PreTrainedTokenizerBase, max_length: int) -> None:
    """Let a tokenizer cut texts at `max_length` tokens, in its own file as well where that cuts them."""
    tokenizer.model_max_length = max_length
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None and backend.truncation is not None:
        backend.enable_truncation(**backend.truncation | {"max_length": max_length})
        tokenizer.init_kwargs["max_length"] = max_length
