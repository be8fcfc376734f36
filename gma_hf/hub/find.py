"""Checks that a name is a checkpoint, in a folder, in the cache or on the Hub, and that its class fits the task."""

import os
from pathlib import Path

from huggingface_hub import constants, model_info, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError
from huggingface_hub.utils import HFValidationError
from transformers import PreTrainedConfig

from ..errors import first_sentence


HUB_TIMEOUT = 10  # seconds
# For `cached_file`: None instead of an error
IF_THERE = {
    "_raise_exceptions_for_gated_repo": False,
    "_raise_exceptions_for_missing_entries": False,
    "_raise_exceptions_for_connection_errors": False,
}


def check_checkpoint(name: str, argument: str = "CHECKPOINT") -> None:
    """
    Refuse what names no checkpoint, in a sentence that says where it was looked for.

    Args:
        name: a folder or a name on the Hub.
        argument: what the caller calls it, for the sentence.

    Raises:
        ValueError: if there is no such folder and nothing of this name in the cache or, unless offline, on the Hub.
    """
    path = Path(name)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ValueError(f"{argument} must hold config.json, but {name!r} does not{last_checkpoint(path)}.")
        return
    if path.exists():
        raise ValueError(f"{argument} must be a folder or a name on the Hub, but {name!r} is a file.")
    try:
        if isinstance(try_to_load_from_cache(name, "config.json"), str):
            return
    except HFValidationError as error:  # no name that the Hub admits
        raise ValueError(f"{argument} is {name!r}, but there is no such folder.") from error
    nowhere = f"{argument} is {name!r}, but there is no such folder, nor such a name in the cache"
    if constants.HF_HUB_OFFLINE:
        raise ValueError(f"{nowhere}.")
    try:
        model_info(name, timeout=HUB_TIMEOUT)
    except RepositoryNotFoundError as error:
        raise ValueError(f"{nowhere} or on the Hub.") from error
    except HfHubHTTPError as error:
        raise ValueError(f"{nowhere}, and of the Hub: {first_sentence(error)}.") from error
    except Exception as error:  # of the client's own library for HTTP, another one in each of its releases
        raise ValueError(f"{nowhere}, and the Hub cannot be reached.") from error


def last_checkpoint(folder: str | os.PathLike) -> str:
    """Return a hint at the last checkpoint of a training, where its folder holds no config itself, else nothing."""
    folder = Path(folder)
    if (folder / "config.json").is_file():
        return ""
    found = [path for path in folder.glob("checkpoint-*") if (path / "config.json").is_file()]
    return f" ({str(max(found, key=lambda path: (len(path.name), path.name)))!r} does)" if found else ""


def check_is_causal(config: PreTrainedConfig) -> None:
    """Refuse a checkpoint whose class is not a causal language model, though AutoModelForCausalLM might open it."""
    from transformers import AutoModelForCausalLM
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    known = set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())
    if type(config) in AutoModelForCausalLM._model_mapping:
        known.add(AutoModelForCausalLM._model_mapping[type(config)].__name__)
    saved = config.architectures or []
    if saved and not known.intersection(saved):
        raise ValueError(f"its class is {saved[0]}")
