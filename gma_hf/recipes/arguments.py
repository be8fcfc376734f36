"""Arguments of a recipe: from the command line, and from a YAML file that it names."""

import difflib
import json
import sys
from argparse import ArgumentParser
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from transformers import EarlyStoppingCallback, HfArgumentParser, Trainer, TrainerCallback, TrainingArguments

from ..parallel.trainer import SequenceParallelTrainer


CONFIGS = Path(__file__).parent / "configs"


@dataclass
class TokenizerArguments:
    """Which tokenizer a model reads with."""

    tokenizer_name: str | None = field(default=None, metadata={"help": "Tokenizer; the checkpoint's own by default."})
    train_tokenizer: int | None = field(
        default=None, metadata={"help": "Train a byte-level BPE of so many entries (257: bytes alone) on the text."}
    )

    def tokenizer_source(self) -> str | None:
        """Return the name or folder of the tokenizer, if one is named."""
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
            "help": "Config arguments, for a model from scratch or on top of a checkpoint: a JSON file, one of ours "
            "by its name (gma-small), or JSON."
        },
    )

    def tokenizer_source(self) -> str | None:
        return self.tokenizer_name or self.model_name_or_path

    def choices(self) -> dict:
        """
        Return what `model_config` says.

        Raises:
            ValueError: if it is neither JSON nor a file of JSON.
        """
        if self.model_config is None:
            return {}
        text = self.model_config
        if not text.lstrip().startswith("{"):
            path = find_config(text, CONFIGS, ".json")
            if path is None:
                raise ValueError(f"`model_config` must be JSON or a file of it, but {text!r} is neither.")
            text = path.read_text(encoding="utf-8")
        return json_fields("model_config", text, self.model_config)


@dataclass
class RunArguments:
    """Where more arguments stand, and when training stops early."""

    config: str | None = field(
        default=None,
        metadata={
            "help": "YAML file of arguments by name, or one of ours by its name (wikitext2); the command line wins."
        },
    )
    early_stopping_patience: int | None = field(
        default=None,
        metadata={"help": "Stop after so many evaluations without a better one; needs --load_best_model_at_end True."},
    )

    def callbacks(self, training: TrainingArguments) -> list[TrainerCallback]:
        """
        Return the callbacks of Trainer.

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


@dataclass
class ParallelArguments:
    """How the processes of a run share the work."""

    sequence_parallel_size: int = field(
        default=1,
        metadata={"help": "Processes that read each block together, a part each; divides the number of processes."},
    )

    def trainer_class(self) -> Callable[..., Trainer]:
        """Return the `Trainer` for it."""
        if self.sequence_parallel_size == 1:
            return Trainer
        return partial(SequenceParallelTrainer, sequence_parallel_size=self.sequence_parallel_size)


class Parser(HfArgumentParser):
    """Parse arguments into dataclasses, and raise an error where argparse would end the process."""

    def error(self, message: str) -> None:
        raise ValueError(f"Arguments must be as `--help` says, but: {message}.")


def parse(kinds: tuple[type, ...], arguments: list[str] | None = None, configs: Path = CONFIGS) -> tuple[Any, ...]:
    """
    Return one instance of each dataclass.

    Args:
        kinds: dataclasses of arguments.
        arguments: as on the command line, or None for those of this process. `--config` names a file of more.
        configs: folder of the files that `--config` finds by their name alone.

    Raises:
        ValueError: for a name that no dataclass has, for a value of another type, and for a file that is no mapping
            of names to values.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    own = ArgumentParser(add_help=False, allow_abbrev=False)
    own.add_argument("--config", nargs="?")
    if path := own.parse_known_args(arguments)[0].config:
        known = {of_kind.name for kind in kinds for of_kind in fields(kind)}
        arguments = from_yaml(path, configs, known) + arguments
    *parsed, rest = Parser(kinds, allow_abbrev=False).parse_args_into_dataclasses(
        arguments, return_remaining_strings=True, look_for_args_file=False
    )
    if rest:
        known = [f"--{of_kind.name}" for kind in kinds for of_kind in fields(kind)]
        near = difflib.get_close_matches(rest[0], known, n=1)
        meant = f"did you mean {near[0]}" if near else "see `--help`"
        raise ValueError(f"Arguments must be those of this recipe, but one is {rest[0]!r}: {meant}.")
    return tuple(parsed)


def find_config(name: str, folder: Path, ending: str) -> Path | None:
    """Return the file of that name, else the one in `folder`, where the ending may be left out; or None."""
    paths = [Path(name), folder / name, folder / f"{name}{ending}"]
    return next((path for path in paths if path.is_file()), None)


def from_yaml(name: str, folder: Path, known: set[str]) -> list[str]:
    """Return the arguments of a file as on the command line, all of them among the known names."""
    path = find_config(name, folder, ".yaml")
    if path is None:
        ours = ", ".join(sorted(path.stem for path in folder.glob("*.yaml")))
        raise ValueError(f"`config` must be a YAML file or one of {ours}, but {name!r} is not a file.")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(
            f"`config` must be a YAML file, but {name!r} is not: {' '.join(str(error).split())}."
        ) from error
    if not isinstance(values, dict):
        raise ValueError(f"`config` must hold arguments by name, but {str(path)!r} does not.")
    for name in values:
        if name not in known:
            raise ValueError(f"`config` must hold arguments of this recipe, but {str(path)!r} has {name!r}.")
    return as_on_command_line(values)


def json_fields(argument: str, text: str, given: str) -> dict[str, Any]:
    """Return a JSON object as a dictionary, or name the argument that must be one, and what was given."""
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"`{argument}` must be JSON, but {given!r} is not: {error}.") from error
    if not isinstance(values, dict):
        raise ValueError(f"`{argument}` must be a JSON object, but {given!r} is a {type(values).__name__}.")
    return values


def as_on_command_line(values: dict[str, Any]) -> list[str]:
    """Return arguments by name as a list; a mapping (`model_config`) becomes JSON, None is left out."""
    arguments = []
    for name, value in values.items():
        if value is None:
            continue
        if isinstance(value, dict):
            value = json.dumps(value)
        arguments += [f"--{name}", *(str(item) for item in (value if isinstance(value, list) else [value]))]
    return arguments
