"""A checkpoint of the command line, opened, and the files that a command writes."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import first_sentence


if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def open_model(name: str, auto_class: str, kind: str, device: str = "auto", dtype: str = "auto") -> "PreTrainedModel":
    """
    Return the model of a checkpoint, all of whose weights are there.

    Code that comes with a checkpoint is not run; importing gma_hf has made ours known.

    Args:
        name: folder or Hub name.
        auto_class: name of the Auto class that opens it.
        kind: what CHECKPOINT must be, for the sentence: "causal language model".
        device: as torch names it, or "auto": the GPU if there is one.
        dtype: float32, bfloat16, float16, or "auto": that of the checkpoint.

    Raises:
        ValueError: if the checkpoint cannot be opened so, or for an unknown device or dtype.
    """
    import transformers

    from ..hub.find import check_checkpoint, check_is_causal
    from ..placing import choose_device, choose_dtype

    place, weights = choose_device(device), choose_dtype(dtype)
    check_checkpoint(name)
    transformers.utils.logging.disable_progress_bar()
    try:
        if auto_class == "AutoModelForCausalLM":
            check_is_causal(transformers.AutoConfig.from_pretrained(name, trust_remote_code=False))
        model, report = getattr(transformers, auto_class).from_pretrained(
            name, trust_remote_code=False, dtype=weights or "auto", output_loading_info=True
        )
    except Exception as error:  # whatever error it is, it lies in somebody's files
        raise ValueError(
            f"CHECKPOINT must be a {kind}, but {name!r} cannot be opened: {first_sentence(error)}."
        ) from error
    if missing := sorted(report["missing_keys"]):
        raise ValueError(f"CHECKPOINT must hold all weights of a {kind}, but {name!r} has none for {missing[0]!r}.")
    return model.to(place)


def open_tokenizer(name: str) -> "PreTrainedTokenizerBase":
    """Return the tokenizer of a checkpoint, which must have one."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except Exception as error:  # whatever error it is, it lies in somebody's files
        raise ValueError(
            f"CHECKPOINT must hold the model's tokenizer too, but {name!r} has none that can be opened."
        ) from error


def check_output(argument: str, path: Path, force: bool, is_folder: bool = False) -> None:
    """
    Refuse a file or folder that cannot be written, before anything is computed for it.

    Args:
        argument: its name, for the sentence: "--output".
        path: where it is to be.
        force: whether something of its kind that is there may be replaced.
        is_folder: whether it is a folder.

    Raises:
        ValueError: if the folder above does not exist or cannot be written to, or if something is there already.
    """
    above = path.absolute().parent
    if not above.is_dir():
        raise ValueError(f"{argument} must be in a folder that exists, but {str(path.parent)!r} does not.")
    if not os.access(above, os.W_OK):
        raise ValueError(f"{argument} must be in a folder that can be written to, but {str(path.parent)!r} cannot.")
    if not path.exists():
        return
    if not (path.is_dir() if is_folder else path.is_file()):
        raise ValueError(f"{argument} must be a {'folder' if is_folder else 'file'}, but {str(path)!r} is none.")
    if not force:
        raise ValueError(f"{argument} must not exist without --force, but {str(path)!r} does.")
