"""Checkpoints of Trainer: the last one of a folder, and their weights in a model that lives already."""

import os
from pathlib import Path

from transformers import PreTrainedModel


STATE = "trainer_state.json"  # the last file that Trainer writes to a checkpoint


def last_checkpoint(folder: str | os.PathLike) -> str | None:
    """Return the checkpoint of Trainer in `folder` with the most steps; one whose saving was interrupted is no one."""
    whole = [path.parent for path in Path(folder).glob(f"checkpoint-*/{STATE}")]
    steps = {int(path.name.split("-")[1]): path for path in whole if path.name.split("-")[1].isdecimal()}
    return str(steps[max(steps)]) if steps else None


def expect_tied_weights(model: PreTrainedModel) -> None:
    """Let Trainer not warn that a checkpoint lacks the weights that are tied to others, which are never saved."""
    model._keys_to_ignore_on_save = set(getattr(model, "all_tied_weights_keys", None) or ())


def load_weights(model: PreTrainedModel, folder: str | os.PathLike) -> None:
    """Put the weights of a checkpoint into a model of its class, on the model's device and in its dtype."""
    model.load_state_dict(type(model).from_pretrained(folder, dtype=model.dtype).state_dict())
