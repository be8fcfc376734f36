"""A checkpoint of the command line, opened."""

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


def open_gma_model(name: str, device: str = "auto", dtype: str = "auto") -> "PreTrainedModel":
    """Return the GMA model of a checkpoint with the head that it was saved with; see `open_model`."""
    from transformers import AutoConfig

    from ..hub.find import check_checkpoint

    check_checkpoint(name)
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
    except Exception as error:  # whatever error it is, it lies in somebody's files
        raise ValueError(f"CHECKPOINT {name!r} cannot be opened: {first_sentence(error)}.") from error
    if config.model_type != "gma":
        raise ValueError(f"CHECKPOINT must be a GMA model, but {name!r} is of type {config.model_type!r}.")
    saved = (config.architectures or ["GMAModel"])[0]
    auto_class = next((key for key, value in config.auto_map.items() if value.endswith(f".{saved}")), "AutoModel")
    return open_model(name, auto_class, f"GMA model ({saved})", device, dtype)


def open_tokenizer(name: str) -> "PreTrainedTokenizerBase":
    """Return the tokenizer of a checkpoint, which must have one."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except Exception as error:  # whatever error it is, it lies in somebody's files
        raise ValueError(
            f"CHECKPOINT must hold the model's tokenizer too, but {name!r} has none that can be opened."
        ) from error
