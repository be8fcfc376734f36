"""
Evaluate a checkpoint on a text: a causal language model by its loss per token, a masked one by loss and accuracy of
the masked tokens, a classifier by its accuracy. Which of them it is, its config says.

    python -m gma_hf.recipes.evaluate_checkpoint --checkpoint model_cards/gma-shakespeare \
        --test_file tests/data/shakespeare.txt
    python -m gma_hf.recipes.evaluate_checkpoint --checkpoint runs/gma-sst2 --test_file ../shared/data/sst2/test.tsv \
        --text_column sentence --max_length 64 --output_file metrics.json

A data set of the Hub: `--dataset_name Salesforce/wikitext --dataset_config_name wikitext-2-raw-v1`. Prints the metrics
as JSON.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    default_data_collator,
)

from ..files import check_output, whole_file
from .arguments import RunArguments, parse
from .classify import class_names, labelled, tokenize
from .metrics import ACCURACY, TOKEN_LOSS
from .models import check_vocabulary, opened
from .running import run, train_extra
from .texts import blocks_of, load_data_set, load_files, with_text
from .train_mlm import masked_once


with train_extra():
    import evaluate
    from datasets import ClassLabel, Dataset


@dataclass
class EvaluationArguments:
    """What is evaluated, on what."""

    checkpoint: str = field(metadata={"help": "Folder or Hub name of the model and its tokenizer."})
    test_file: list[str] | None = field(default=None, metadata={"help": "Files: plain text, parquet, json, csv, tsv."})
    dataset_name: str | None = field(default=None, metadata={"help": "Data set of the Hub, or a local folder of one."})
    dataset_config_name: str | None = field(default=None, metadata={"help": "Configuration of that data set."})
    split: str = field(default="test", metadata={"help": "Split of that data set."})
    text_column: str = field(default="text", metadata={"help": "Column that holds the text."})
    label_column: str = field(default="label", metadata={"help": "Column that holds the class (classifiers)."})
    block_size: int = field(default=256, metadata={"help": "Tokens per block (language models)."})
    max_length: int = field(default=512, metadata={"help": "Tokens of a text that are read (classifiers)."})
    max_examples: int | None = field(default=None, metadata={"help": "Blocks or texts, at most."})
    mlm_probability: float = field(default=0.15, metadata={"help": "Share of masked tokens (masked models)."})
    seed: int = field(default=0, metadata={"help": "Seed of the masking."})
    batch_size: int = field(default=16, metadata={"help": "Blocks or texts at a time."})
    output_file: str | None = field(default=None, metadata={"help": "JSON file for the metrics."})
    force: bool = field(default=False, metadata={"help": "Replace a file at output_file."})


def load_texts(args: EvaluationArguments) -> Dataset:
    """Return the rows with a text of one split of a data set, or of files."""
    if (args.dataset_name is None) == (args.test_file is None):
        given = "neither" if args.test_file is None else "both"
        raise ValueError(f"Exactly one of `dataset_name` and `test_file` must be given, but {given} are.")
    if args.dataset_name is not None:
        texts = load_data_set(args.dataset_name, args.dataset_config_name, args.split)
    else:
        texts = load_files({"test": args.test_file})["test"]
    return with_text(texts, args.text_column)


def at_most(examples: Dataset, count: int | None) -> Dataset:
    """Return the first so many examples, or all."""
    return examples if count is None else examples.take(min(count, len(examples)))


def outputs(
    model: PreTrainedModel,
    examples: Dataset,
    collator: Callable[[list[dict]], dict],
    args: EvaluationArguments,
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield logits and labels, batch by batch."""
    for batch in DataLoader(examples, args.batch_size, collate_fn=collator):
        batch = {name: value.to(model.device) for name, value in batch.items()}
        labels = batch.pop("labels")
        with torch.no_grad():
            yield model(**batch).logits.float(), labels


def causal_lm(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Dataset, args: EvaluationArguments
) -> dict[str, float]:
    """Return the metrics of the next token, within blocks."""
    blocks = blocks_of(texts, args.text_column, tokenizer, args.block_size, "test")
    batches = outputs(model, at_most(blocks, args.max_examples), default_data_collator, args)
    return language_model_metrics((logits[:, :-1], labels[:, 1:]) for logits, labels in batches)


def masked_lm(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Dataset, args: EvaluationArguments
) -> dict[str, float]:
    """Return the metrics of the masked tokens."""
    blocks = blocks_of(texts, args.text_column, tokenizer, args.block_size, "test").remove_columns("labels")
    blocks = masked_once(at_most(blocks, args.max_examples), tokenizer, args.mlm_probability, args.seed)
    return language_model_metrics(outputs(model, blocks, default_data_collator, args))


def language_model_metrics(batches: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> dict[str, float]:
    """Return loss and perplexity per predicted token, and accuracy: how often the likeliest token is the right one."""
    loss, accuracy = (evaluate.load(name) for name in (TOKEN_LOSS, ACCURACY))
    for logits, labels in batches:
        asked = labels != -100
        losses = cross_entropy(logits.transpose(1, 2), labels, reduction="none")  # 0 where nothing is asked
        loss.add_batch(predictions=losses.sum(dim=1).tolist(), references=asked.sum(dim=1).tolist())
        accuracy.add_batch(predictions=logits.argmax(dim=-1)[asked].tolist(), references=labels[asked].tolist())
    return loss.compute() | accuracy.compute()


def classifier(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Dataset, args: EvaluationArguments
) -> dict[str, float]:
    """Return the accuracy of the classes."""
    examples = labelled(texts, args.text_column, args.label_column)
    if class_names(examples) is not None:
        examples = examples.cast_column("label", ClassLabel(names=list(model.config.id2label.values())))
    examples = tokenize(at_most(examples, args.max_examples), tokenizer, args.max_length)
    accuracy = evaluate.load(ACCURACY)
    for logits, labels in outputs(model, examples, DataCollatorWithPadding(tokenizer), args):
        accuracy.add_batch(predictions=logits.argmax(dim=-1).tolist(), references=labels.tolist())
    return accuracy.compute()


TASKS = {
    "causal language model": (AutoModelForCausalLM, causal_lm),
    "masked language model": (AutoModelForMaskedLM, masked_lm),
    "classifier of sequences": (AutoModelForSequenceClassification, classifier),
}


def main(arguments: list[str] | None = None) -> dict[str, float]:
    """Print and return the metrics."""
    args, _ = parse((EvaluationArguments, RunArguments), arguments)
    if args.output_file is not None:
        check_output("`output_file`", Path(args.output_file), args.force)
    architecture = (opened(AutoConfig, args.checkpoint, "checkpoint").architectures or ["none"])[0]
    known = {name: [model.__name__ for model in auto._model_mapping.values()] for name, (auto, _) in TASKS.items()}
    tasks = [TASKS[name] for name, models in known.items() if architecture in models]
    if not tasks:
        raise ValueError(f"`checkpoint` must be a {', a '.join(TASKS)}, but {args.checkpoint!r} is {architecture}.")
    auto_class, task = tasks[0]
    texts, tokenizer = load_texts(args), opened(AutoTokenizer, args.checkpoint, "checkpoint")
    model = opened(auto_class, args.checkpoint, "checkpoint").eval()
    check_vocabulary(model, len(tokenizer))
    metrics = task(model.to("cuda" if torch.cuda.is_available() else "cpu"), tokenizer, texts, args)
    text = json.dumps(metrics, indent=1)
    if args.output_file is not None:
        with whole_file(args.output_file) as path:
            path.write_text(text + "\n", encoding="utf-8")
    print(text)
    return metrics


if __name__ == "__main__":
    run(main)
