"""
Train or fine-tune a classifier of texts: reviews, sentences, long documents as bytes, ListOps.

SST-2 with a GMA encoder from scratch, or with a checkpoint (`--model_name_or_path`); the test file is GLUE's dev set:

    python -m gma_hf.recipes.classify --train_file ../shared/data/sst2/train.tsv \
        --validation_file ../shared/data/sst2/dev.tsv --test_file ../shared/data/sst2/test.tsv \
        --text_column sentence --train_tokenizer 8000 --model_config gma-sst2 --max_length 64 \
        --output_dir runs/gma-sst2 --learning_rate 1e-3 --num_train_epochs 2 --per_device_train_batch_size 32 \
        --report_to none

IMDB as bytes, as Long Range Arena's Text, from a language model of them (results: docs/results/quality.md):

    python -m gma_hf.recipes.train_clm --config imdb-bytes-lm
    python -m gma_hf.recipes.classify --config imdb-bytes

ListOps, made on the spot by the published grammar, here of 500 to 2,000 symbols as in Long Range Arena:

    python -m gma_hf.recipes.classify --listops 500 2000 --train_examples 96000 --test_examples 2000 \
        --model_config gma-listops --max_length 2001 --output_dir runs/gma-listops \
        --learning_rate 1e-3 --max_steps 5000 --per_device_train_batch_size 32

A data set of the Hub: `--dataset_name stanfordnlp/sst2 --text_column sentence`. Other arguments, `--config` and what a
second run does: as in `train_clm.py`.
"""

from dataclasses import dataclass, field

import numpy as np
from transformers import (
    AutoModelForSequenceClassification,
    DataCollatorWithPadding,
    EvalPrediction,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
    set_seed,
)

from .arguments import ModelArguments, RunArguments, TokenizerArguments, parse
from .listops import SYMBOLS, make_listops
from .metrics import ACCURACY
from .models import encoder_fields, load_model
from .running import run, train_extra
from .texts import DataArguments, holds_text, load_text, with_text
from .tokenizing import load_encoder_tokenizer, word_tokenizer
from .training import Start, finished_metrics, train_and_evaluate


with train_extra():
    import evaluate
    from datasets import ClassLabel, Dataset, DatasetDict


@dataclass
class ClassificationArguments(DataArguments):
    """Which texts are classified."""

    test_file: list[str] | None = field(default=None, metadata={"help": "Files for the evaluation at the end."})
    label_column: str = field(default="label", metadata={"help": "Column that holds the class, a number or a name."})
    max_length: int = field(default=512, metadata={"help": "Tokens of a text that are read."})
    train_examples: int | None = field(default=None, metadata={"help": "Training examples, at most."})
    validation_examples: int | None = field(default=None, metadata={"help": "Validation examples, at most."})
    test_examples: int | None = field(default=None, metadata={"help": "Test examples, at most."})
    listops: list[int] | None = field(
        default=None, metadata={"help": "Make ListOps of so many symbols, shortest and longest, instead of a text."}
    )

    def files(self) -> dict[str, list[str]]:
        return super().files() | ({} if self.test_file is None else {"test": self.test_file})


def load_examples(args: ClassificationArguments) -> DatasetDict:
    """Return the splits train, validation and, where there is one, test, with the columns `text` and `label`."""
    if args.listops is not None:
        return load_listops(args)
    splits = {split: labelled(texts, args.text_column, args.label_column) for split, texts in load_text(args).items()}
    limits = {"train": args.train_examples, "validation": args.validation_examples, "test": args.test_examples}
    for split, examples in splits.items():
        if limits.get(split) is not None:  # of a file that may be sorted by its labels
            splits[split] = examples.shuffle(seed=0).take(min(limits[split], len(examples)))
    splits = DatasetDict({split: examples for split, examples in splits.items() if len(examples)})
    names = class_names(splits["train"])
    return splits if names is None else splits.cast_column("label", ClassLabel(names=names))


def class_names(examples: Dataset) -> list[str] | None:
    """Return the names of the classes, in order, where `label` has names."""
    kind = examples.features["label"]
    if isinstance(kind, ClassLabel):
        return kind.names
    return sorted(examples.unique("label")) if holds_text(kind) else None


def labelled(texts: Dataset, text_column: str, label_column: str) -> Dataset:
    """Return the columns `text` and `label`, without the rows that have no label (none, or -1)."""
    if label_column not in texts.column_names:
        raise ValueError(f"`label_column` must be one of {texts.column_names}, but it is {label_column!r}.")
    columns = with_text(texts, text_column).select_columns([text_column, label_column])
    columns = columns.rename_columns({text_column: "text", label_column: "label"})
    return columns.filter(lambda label: label not in (None, -1), input_columns="label", desc="Labelled")


def load_listops(args: ClassificationArguments) -> DatasetDict:
    """Return ListOps: 2,000 examples of a split for which no other number is given."""
    if len(args.listops) != 2:
        raise ValueError(f"`listops` must be two lengths, but it is {args.listops}.")
    limits = {"train": args.train_examples, "validation": args.validation_examples, "test": args.test_examples}
    counts = {split: 2000 if limit is None else limit for split, limit in limits.items()}
    return make_listops(counts, *args.listops, seed=0)


def load_tokenizer(args: TokenizerArguments, data: ClassificationArguments, texts: Dataset) -> PreTrainedTokenizerBase:
    """Return a tokenizer: one symbol per token for ListOps, else as `load_encoder_tokenizer`."""
    return word_tokenizer(SYMBOLS) if data.listops is not None else load_encoder_tokenizer(args, texts)


def tokenize(examples: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Dataset:
    """Return texts as tokens, at most `max_length` of each, with `label`."""

    def encode(batch: dict) -> dict:
        return tokenizer(batch["text"], truncation=True, max_length=max_length, return_token_type_ids=False)

    return examples.map(encode, batched=True, remove_columns="text", desc="Tokenize")


def load_classifier(args: ModelArguments, tokenizer: PreTrainedTokenizerBase, examples: Dataset) -> PreTrainedModel:
    """Return the checkpoint that is named, with a new head if it has none, or an encoder from scratch."""
    names = class_names(examples)
    classes = {"num_labels": max(examples["label"]) + 1}
    if names is not None:
        classes = {"id2label": dict(enumerate(names)), "label2id": {name: index for index, name in enumerate(names)}}
    fields = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    fields |= {"vocab_size": len(tokenizer)} | encoder_fields(args.model_type)
    return load_model(args, AutoModelForSequenceClassification, fields, classes)


def accuracy(prediction: EvalPrediction) -> dict[str, float]:
    """Return the share of the examples whose class has the largest logit."""
    classes = np.argmax(prediction.predictions, axis=-1)
    return evaluate.load(ACCURACY).compute(predictions=classes, references=prediction.label_ids)


def main(arguments: list[str] | None = None) -> dict[str, float]:
    """Train, evaluate on the test split (else on the validation split) and save; return the metrics."""
    kinds = (ModelArguments, ClassificationArguments, RunArguments, TrainingArguments)
    model_args, data_args, run_args, training_args = parse(kinds, arguments)
    callbacks, start = run_args.callbacks(training_args), Start.of(training_args, run_args)
    if (metrics := finished_metrics(start, training_args, "test", "validation")) is not None:
        return metrics
    set_seed(training_args.seed)

    examples = load_examples(data_args)
    tokenizer = load_tokenizer(model_args, data_args, examples["train"])
    model = load_classifier(model_args, tokenizer, examples["train"])
    tokens = {split: tokenize(of, tokenizer, data_args.max_length) for split, of in examples.items()}

    trainer = Trainer(
        model=model,
        args=training_args,
        train_dataset=tokens["train"],
        eval_dataset=tokens["validation"],
        processing_class=tokenizer,
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=accuracy,
        callbacks=callbacks,
    )
    split = "test" if "test" in tokens else "validation"
    return train_and_evaluate(trainer, start, split, tokens[split])


if __name__ == "__main__":
    run(main)
