"""The texts of a recipe: a data set of the Hub by its name, or files."""

from dataclasses import dataclass, field
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from ..errors import first_line, first_sentence
from ..texts import check_text
from .running import train_extra


with train_extra():
    from datasets import Dataset, DatasetDict, Value, load_dataset
    from datasets.features.features import FeatureType


# What reads a file, by the ending of its name; any other file is plain text.
KINDS = {".parquet": "parquet", ".json": "json", ".jsonl": "json", ".csv": "csv", ".tsv": "csv"}


@dataclass
class DataArguments:
    """Which text is read, and in which pieces."""

    dataset_name: str | None = field(default=None, metadata={"help": "Data set of the Hub, or a local folder of one."})
    dataset_config_name: str | None = field(default=None, metadata={"help": "Configuration of that data set."})
    train_file: list[str] | None = field(
        default=None, metadata={"help": "Files to train on: plain text, or parquet, json, csv, tsv."}
    )
    validation_file: list[str] | None = field(
        default=None, metadata={"help": "Files to evaluate on, of the same kind."}
    )
    max_train_samples: int | None = field(
        default=None, metadata={"help": "Read so many rows of the training text alone, the first; all by default."}
    )
    validation_fraction: float = field(
        default=0.1, metadata={"help": "Share of the characters, at the end, held out where nothing else is."}
    )
    text_column: str = field(default="text", metadata={"help": "Column of the data set that holds the text."})
    block_size: int = field(default=256, metadata={"help": "Tokens per training example."})

    def files(self) -> dict[str, list[str]]:
        """Return the files that are named, by split."""
        files = {"train": self.train_file, "validation": self.validation_file}
        return {split: paths for split, paths in files.items() if paths is not None}


def load_text(args: DataArguments) -> DatasetDict:
    """
    Return the splits "train" and "validation", and "test" where there is one, each with the text column.

    Raises:
        ValueError: if there is no such text, or it cannot be read.
    """
    if (args.dataset_name is None) == (args.train_file is None):
        given = "neither" if args.train_file is None else "both"
        raise ValueError(f"Exactly one of `dataset_name` and `train_file` must be given, but {given} are.")
    if args.dataset_name is not None:
        texts = load_data_set(args.dataset_name, args.dataset_config_name)
        if "train" not in texts:
            raise ValueError(f"`dataset_name` must have a split 'train', but {args.dataset_name!r} has {[*texts]}.")
    else:
        texts = load_files(args.files())
    if args.max_train_samples is not None:
        if args.max_train_samples < 1:
            raise ValueError(f"`max_train_samples` must be at least 1, but it is {args.max_train_samples}.")
        texts["train"] = texts["train"].take(min(args.max_train_samples, len(texts["train"])))
    texts = DatasetDict({split: with_text(examples, args.text_column) for split, examples in texts.items()})
    if "validation" not in texts:
        texts["train"], texts["validation"] = hold_out_end(texts["train"], args.text_column, args.validation_fraction)
    return texts


def load_data_set(name: str, config: str | None, split: str | None = None) -> DatasetDict | Dataset:
    """Return a data set of the Hub or of a local folder, or one split of it."""
    try:
        return load_dataset(name, config, split=split)
    except Exception as error:  # whatever error it is, it lies in somebody's files
        raise ValueError(
            f"`dataset_name` must be a data set of the Hub or a local folder of one, but {name!r} cannot be opened: "
            f"{first_sentence(error)}."
        ) from error


def load_files(files: dict[str, list[str]]) -> DatasetDict:
    """
    Return the splits that files hold.

    Plain text, or tables by the ending of the first file: .parquet, .json, .jsonl, .csv, .tsv.

    Raises:
        ValueError: if one is no file, is empty, is text in another encoding than UTF-8, or cannot be read.
    """
    ending = Path(next(iter(files.values()))[0]).suffix
    kind = KINDS.get(ending, "text")
    for split, paths in files.items():
        for path in paths:
            if not Path(path).is_file():
                raise ValueError(f"`{split}_file` must be files, but {path!r} is not a file.")
            if kind != "parquet":
                check_text(Path(path), f"`{split}_file`")
    choices = {"text": {"keep_linebreaks": True}, "csv": {"sep": "\t" if ending == ".tsv" else ","}}.get(kind, {})
    try:
        return load_dataset(kind, data_files=files, **choices)
    except Exception as error:  # whatever error it is, it lies in somebody's files
        names = ", ".join(path for paths in files.values() for path in paths)
        raise ValueError(f"Files must be readable as {kind}, but {names} cannot be: {first_line(error)}") from error


def with_text(texts: Dataset, column: str) -> Dataset:
    """Return the rows that have a text, or refuse a column that has none."""
    if column not in texts.column_names:
        raise ValueError(f"`text_column` must be one of {texts.column_names}, but it is {column!r}.")
    kind = texts.features[column]
    if not holds_text(kind):
        raise ValueError(f"`text_column` must hold text, but {column!r} holds {getattr(kind, 'dtype', kind)}.")
    if texts.data.column(column).null_count:
        return texts.filter(lambda text: text is not None, input_columns=column, desc="Without empty rows")
    return texts


def holds_text(kind: FeatureType) -> bool:
    """Return whether a column of a kind holds text; one of token ids, say, does not."""
    return isinstance(kind, Value) and kind.dtype in ("string", "large_string")


def hold_out_end(texts: Dataset, column: str, fraction: float) -> tuple[Dataset, Dataset]:
    """Split off the rows that hold the last `fraction` of all characters."""
    if not 0 < fraction < 1:
        raise ValueError(f"`validation_fraction` must be between 0 and 1, but it is {fraction}.")
    lengths = [len(text) for text in texts[column]]
    seen, first_held_out = 0, 0
    while seen < (1 - fraction) * sum(lengths):
        seen += lengths[first_held_out]
        first_held_out += 1
    if first_held_out == len(texts):
        raise ValueError(
            "There must be two texts (lines, rows) at least, of which one is held out, or `validation_file` must be "
            f"given, but {'there is one' if len(texts) == 1 else 'the last text is too long'}."
        )
    return texts.select(range(first_held_out)), texts.select(range(first_held_out, len(texts)))


def make_blocks(texts: DatasetDict, column: str, tokenizer: PreTrainedTokenizerBase, block_size: int) -> DatasetDict:
    """Return blocks of the splits "train" and "validation", see `blocks_of`."""
    splits = ("train", "validation")
    return DatasetDict({split: blocks_of(texts[split], column, tokenizer, block_size, split) for split in splits})


def blocks_of(texts: Dataset, column: str, tokenizer: PreTrainedTokenizerBase, block_size: int, split: str) -> Dataset:
    """
    Return the tokens of one text after another, in blocks of `block_size`. A last, shorter block of every 100,000
    texts is left out.
    """
    if block_size < 1:
        raise ValueError(f"`block_size` must be at least 1, but it is {block_size}.")

    def tokenize(batch: dict) -> dict:
        return {"input_ids": tokenizer(batch[column], verbose=False)["input_ids"]}

    def group(batch: dict) -> dict:
        tokens = [token for text in batch["input_ids"] for token in text]
        usable = len(tokens) // block_size * block_size
        blocks = [tokens[start : start + block_size] for start in range(0, usable, block_size)]
        return {"input_ids": blocks, "labels": blocks}

    tokens = texts.map(tokenize, batched=True, remove_columns=texts.column_names, desc=f"Tokenize {split}")
    blocks = tokens.map(group, batched=True, batch_size=100_000, desc=f"Blocks of {block_size}, {split}")
    if len(blocks) == 0:
        raise ValueError(
            f"`block_size` must leave at least one block in each split, but {block_size} leaves none in {split}."
        )
    return blocks
