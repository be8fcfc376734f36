"""The texts of a recipe: a data set of the Hub by its name, or files."""

from dataclasses import dataclass, field
from pathlib import Path

from datasets import Dataset, DatasetDict, load_dataset
from transformers import PreTrainedTokenizerBase


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
    validation_fraction: float = field(
        default=0.1, metadata={"help": "Share of the characters, at the end, held out where nothing else is."}
    )
    text_column: str = field(default="text", metadata={"help": "Column of the data set that holds the text."})
    block_size: int = field(default=256, metadata={"help": "Tokens per training example."})

    def files(self) -> dict[str, list[str]]:
        """Those that are named, by split."""
        files = {"train": self.train_file, "validation": self.validation_file}
        return {split: paths for split, paths in files.items() if paths is not None}


def load_text(args: DataArguments) -> DatasetDict:
    """The splits "train" and "validation", and "test" where there is one, each with the text column."""
    if (args.dataset_name is None) == (args.train_file is None):
        given = "neither" if args.train_file is None else "both"
        raise ValueError(f"Exactly one of `dataset_name` and `train_file` must be given, but {given} are.")
    if args.dataset_name is not None:
        texts = load_dataset(args.dataset_name, args.dataset_config_name)
    else:
        texts = load_files(args.files())
    if args.text_column not in texts["train"].column_names:
        raise ValueError(
            f"`text_column` must be one of {texts['train'].column_names}, but it is {args.text_column!r}."
        )
    if "validation" not in texts:
        texts["train"], texts["validation"] = hold_out_end(texts["train"], args.text_column, args.validation_fraction)
    return texts


def load_files(files: dict[str, list[str]]) -> DatasetDict:
    """Plain text, or tables by the ending of their names: .parquet, .json, .jsonl, .csv, .tsv."""
    for split, paths in files.items():
        for path in paths:
            if not Path(path).is_file():
                raise ValueError(f"`{split}_file` must be files, but {path!r} is not a file.")
    ending = Path(next(iter(files.values()))[0]).suffix
    match ending:
        case ".parquet":
            return load_dataset("parquet", data_files=files)
        case ".json" | ".jsonl":
            return load_dataset("json", data_files=files)
        case ".csv" | ".tsv":
            return load_dataset("csv", data_files=files, sep="\t" if ending == ".tsv" else ",")
        case _:
            return load_dataset("text", data_files=files, keep_linebreaks=True)


def hold_out_end(texts: Dataset, column: str, fraction: float) -> tuple[Dataset, Dataset]:
    """Splits off the rows that hold the last `fraction` of all characters."""
    if not 0 < fraction < 1:
        raise ValueError(f"`validation_fraction` must be between 0 and 1, but it is {fraction}.")
    lengths = [len(text) for text in texts[column]]
    seen, first_held_out = 0, 0
    while seen < (1 - fraction) * sum(lengths):
        seen += lengths[first_held_out]
        first_held_out += 1
    return texts.select(range(first_held_out)), texts.select(range(first_held_out, len(texts)))


def make_blocks(texts: DatasetDict, column: str, tokenizer: PreTrainedTokenizerBase, block_size: int) -> DatasetDict:
    """Blocks of the splits "train" and "validation", see `blocks_of`."""
    splits = ("train", "validation")
    return DatasetDict({split: blocks_of(texts[split], column, tokenizer, block_size, split) for split in splits})


def blocks_of(texts: Dataset, column: str, tokenizer: PreTrainedTokenizerBase, block_size: int, split: str) -> Dataset:
    """Tokens, one text after another, in blocks of `block_size`; a last, shorter block of every 100,000 texts is left
    out."""

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
