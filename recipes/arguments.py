"""Arguments of a recipe: from the command line, and from a YAML file that it names."""

import json
import sys
from argparse import ArgumentParser
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml
from transformers import EarlyStoppingCallback, HfArgumentParser, TrainerCallback, TrainerState, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint


@dataclass
class TokenizerArguments:
    """Which tokenizer a model reads with."""

    tokenizer_name: str | None = field(default=None, metadata={"help": "Tokenizer; the checkpoint's own by default."})
    train_tokenizer: int | None = field(
        default=None, metadata={"help": "Train a byte-level BPE of so many entries (257: bytes alone) on the text."}
    )

    def tokenizer_source(self) -> str | None:
        """Name or folder of the tokenizer, if one is named."""
        return self.tokenizer_name


@dataclass
class ModelArguments(TokenizerArguments):
    """Which model is trained."""

    model_name_or_path: str | None = field(default=None, metadata={"help": "Checkpoint to start from."})
    model_type: str = field(
        default="gma", metadata={"help": "Architecture to train from scratch, as AutoConfig names it."}
    )
    model_config: str | None = field(
        default=None,
        metadata={
            "help": "Config arguments, for a model from scratch or on top of a checkpoint: a JSON file or text."
        },
    )

    def tokenizer_source(self) -> str | None:
        return self.tokenizer_name or self.model_name_or_path

    def choices(self) -> dict:
        """
        What `model_config` says.

        Raises:
            ValueError: if it is neither JSON nor a file of JSON.
        """
        if self.model_config is None:
            return {}
        is_text = self.model_config.lstrip().startswith("{")
        if not is_text and not Path(self.model_config).is_file():
            raise ValueError(f"`model_config` must be JSON or a file of it, but {self.model_config!r} is neither.")
        try:
            return json.loads(self.model_config if is_text else Path(self.model_config).read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise ValueError(f"`model_config` must be JSON, but {self.model_config!r} is not: {error}.") from error


@dataclass
class RunArguments:
    """Where more arguments stand, and when training stops early."""

    config: str | None = field(
        default=None, metadata={"help": "YAML file of arguments by name; those on the command line win."}
    )
    early_stopping_patience: int | None = field(
        default=None,
        metadata={"help": "Stop after so many evaluations without a better one; needs --load_best_model_at_end True."},
    )

    def callbacks(self, training: TrainingArguments) -> list[TrainerCallback]:
        """
        Of Trainer.

        Raises:
            ValueError: for a patience without `load_best_model_at_end`, or one below 1.
        """
        if self.early_stopping_patience is None:
            return []
        if self.early_stopping_patience < 1:
            raise ValueError(
                f"`early_stopping_patience` must be at least 1, but it is {self.early_stopping_patience}."
            )
        if not training.load_best_model_at_end:
            raise ValueError("`load_best_model_at_end` must be True with `early_stopping_patience`, but it is False.")
        return [EarlyStoppingCallback(self.early_stopping_patience)]


def checkpoint_to_resume(training: TrainingArguments) -> str | None:
    """
    The one that is named, else the last one in `output_dir`, which another process may be about to make.

    Raises:
        ValueError: if it has been trained for as long as is asked for: Trainer would take a step behind the end.
    """
    folder = training.output_dir
    checkpoint = training.resume_from_checkpoint or (get_last_checkpoint(folder) if Path(folder).is_dir() else None)
    if checkpoint is None:
        return None
    state = TrainerState.load_from_json(str(Path(checkpoint) / "trainer_state.json"))
    name, done, asked = "max_steps", state.global_step, training.max_steps
    if training.max_steps <= 0:
        name, done, asked = "num_train_epochs", state.epoch, training.num_train_epochs
    if done >= asked:
        raise ValueError(f"`{name}` must be above {done:g} to go on from {checkpoint!r}, but it is {asked:g}.")
    return checkpoint


def parse(kinds: tuple[type, ...], arguments: list[str] | None = None) -> tuple[Any, ...]:
    """
    One instance of each dataclass.

    Args:
        kinds: dataclasses of arguments, `RunArguments` among them.
        arguments: as on the command line, or None for those of this process.

    Raises:
        ValueError: for a name that none of them has, and for a file that is no mapping of names to values.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    own = ArgumentParser(add_help=False, allow_abbrev=False)
    own.add_argument("--config")
    if path := own.parse_known_args(arguments)[0].config:
        known = {of_kind.name for kind in kinds for of_kind in fields(kind)}
        arguments = from_yaml(Path(path), known) + arguments
    parser = HfArgumentParser(kinds, allow_abbrev=False)
    return parser.parse_args_into_dataclasses(arguments, look_for_args_file=False)


def from_yaml(path: Path, known: set[str]) -> list[str]:
    """The arguments of a file as on the command line, all of them among the known names."""
    if not path.is_file():
        raise ValueError(f"`config` must be a YAML file, but {str(path)!r} is not a file.")
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(values, dict):
        raise ValueError(f"`config` must hold arguments by name, but {str(path)!r} does not.")
    for name in values:
        if name not in known:
            raise ValueError(f"`config` must hold arguments of this recipe, but {str(path)!r} has {name!r}.")
    return as_on_command_line(values)


def as_on_command_line(values: dict[str, Any]) -> list[str]:
    """Arguments by name; a mapping (`model_config`) becomes JSON, None is left out."""
    arguments = []
    for name, value in values.items():
        if value is None:
            continue
        if isinstance(value, dict):
            value = json.dumps(value)
        arguments += [f"--{name}", *(str(item) for item in (value if isinstance(value, list) else [value]))]
    return arguments
