"""What mixers are compared on: the next token of a text, its class, or its class after its next token."""

from collections.abc import Callable
from typing import Any, NamedTuple, Optional

from datasets import Dataset, DatasetDict
from transformers import DataCollatorWithPadding, EvalPrediction, PreTrainedTokenizerBase, default_data_collator

from gma_hf import GMAForCausalLM, GMAForSequenceClassification, GMAPreTrainedModel
from gma_hf.recipes.arguments import TokenizerArguments
from gma_hf.recipes.classify import ClassificationArguments, accuracy, load_examples, tokenize
from gma_hf.recipes.classify import load_tokenizer as load_classifier_tokenizer
from gma_hf.recipes.texts import blocks_of, load_text, make_blocks
from gma_hf.recipes.tokenizing import load_tokenizer


class Task(NamedTuple):
    """Data and head that all contenders share."""

    head: type[GMAPreTrainedModel]
    fields: dict[str, Any]  # of GMAConfig
    train: Dataset
    evaluation: Dataset | None
    collator: Callable[[list[dict]], dict]
    metrics: Callable[[EvalPrediction], dict[str, float]] | None = None  # beside the loss
    before: Optional["Task"] = None  # what the body of the network is trained on first


def causal_lm(tokenizer_args: TokenizerArguments, data: ClassificationArguments, at_most: int) -> Task:
    """The next token, evaluated on the first blocks of the validation text, `at_most` of them."""
    texts = load_text(data)
    tokenizer = load_tokenizer(tokenizer_args, texts["train"], data.text_column)
    blocks = make_blocks(texts, data.text_column, tokenizer, data.block_size)
    fields = {"vocab_size": len(tokenizer), "max_position_embeddings": data.block_size}
    evaluation = blocks["validation"].take(min(at_most, len(blocks["validation"])))
    return Task(GMAForCausalLM, fields, blocks["train"], evaluation, default_data_collator)


def classification(tokenizer_args: TokenizerArguments, data: ClassificationArguments, at_most: int) -> Task:
    """The class of a text by an encoder, evaluated on the first validation examples, `at_most` of them."""
    examples = load_examples(data)
    return text_class(examples, data, load_classifier_tokenizer(tokenizer_args, data, examples["train"]), at_most)


def text_class(
    examples: DatasetDict, data: ClassificationArguments, tokenizer: PreTrainedTokenizerBase, at_most: int
) -> Task:
    """The class of the examples' texts."""
    tokens = {split: tokenize(examples[split], tokenizer, data.max_length) for split in ("train", "validation")}
    fields = {"vocab_size": len(tokenizer), "max_position_embeddings": data.max_length, "is_causal": False}
    fields |= {"num_labels": max(examples["train"]["label"]) + 1, "pad_token_id": tokenizer.pad_token_id}
    evaluation = tokens["validation"].take(min(at_most, len(tokens["validation"])))
    collator = DataCollatorWithPadding(tokenizer)
    return Task(GMAForSequenceClassification, fields, tokens["train"], evaluation, collator, accuracy)


def pretrained_classification(tokenizer_args: TokenizerArguments, data: ClassificationArguments, at_most: int) -> Task:
    """The class of a text by the mean over a causal network that has learned the next token of the same texts."""
    examples = load_examples(data)
    tokenizer = load_classifier_tokenizer(tokenizer_args, data, examples["train"])
    after = text_class(examples, data, tokenizer, at_most)
    fields = after.fields | {"is_causal": True, "classifier_pooling": "mean"}
    blocks = blocks_of(examples["train"], "text", tokenizer, data.block_size, "train")
    before = Task(GMAForCausalLM, fields, blocks, None, default_data_collator)
    return after._replace(fields=fields, before=before)


TASKS = {
    "causal_lm": causal_lm,
    "classification": classification,
    "pretrained_classification": pretrained_classification,
}
