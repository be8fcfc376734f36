"""Examples of a distillation: blocks of a text, sentences, and beginnings of documents."""

import math
import random
import re

from transformers import PreTrainedTokenizerBase

from .running import train_extra
from .texts import DataArguments, make_blocks


with train_extra():
    from datasets import Dataset, DatasetDict


# A sentence ends with one of these and white space, and has so many characters at least.
END_OF_SENTENCE = re.compile(r"(?<=[.!?])\s+|\n+")
SHORTEST_SENTENCE = 20
SHORTEST_DOCUMENT = 64  # tokens


def language_blocks(
    texts: DatasetDict, args: DataArguments, tokenizer: PreTrainedTokenizerBase, is_causal: bool, max_validation: int
) -> DatasetDict:
    """Return blocks of `block_size` tokens, with labels for a causal language model."""
    blocks = make_blocks(texts, args.text_column, tokenizer, args.block_size)
    blocks["validation"] = blocks["validation"].take(min(max_validation, len(blocks["validation"])))
    return blocks if is_causal else blocks.remove_columns("labels")


def sentence_examples(
    texts: DatasetDict, args: DataArguments, tokenizer: PreTrainedTokenizerBase, seed: int, most: dict[str, int]
) -> DatasetDict:
    """Return so many sentences of each split, cut at `block_size` tokens."""

    def tokenize(batch: dict) -> dict:
        return {"input_ids": tokenizer(batch["text"], truncation=True, max_length=args.block_size)["input_ids"]}

    sentences = DatasetDict()
    for split, number in most.items():
        split_texts = texts[split].shuffle(seed=seed) if split == "train" else texts[split]
        found = Dataset.from_dict({"text": first_sentences(split_texts[args.text_column], number)})
        sentences[split] = found.map(tokenize, batched=True, remove_columns="text", desc=f"Tokenize {split}")
    return sentences


def first_sentences(texts: list[str], most: int) -> list[str]:
    """Return the first so many sentences, in the order of the text."""
    sentences: list[str] = []
    for text in texts:
        sentences += [part.strip() for part in END_OF_SENTENCE.split(text) if len(part.strip()) >= SHORTEST_SENTENCE]
        if len(sentences) >= most:
            break
    return sentences[:most]


def document_examples(
    texts: DatasetDict,
    args: DataArguments,
    tokenizer: PreTrainedTokenizerBase,
    seed: int,
    most: dict[str, int],
    longest: int,
) -> DatasetDict:
    """
    Return the beginnings of so many documents of each split: for the training of random lengths up to `longest`
    tokens, spread evenly on a logarithmic scale, so that short ones are frequent too; for the validation of `longest`.
    """
    draw = random.Random(seed)

    def tokenize(batch: dict, is_cut: bool) -> dict:
        least = math.log(min(SHORTEST_DOCUMENT, longest) if is_cut else longest)
        lengths = [round(math.exp(draw.uniform(least, math.log(longest)))) for _ in batch[args.text_column]]
        rows = zip(batch[args.text_column], lengths)
        return {"input_ids": [tokenizer(text, truncation=True, max_length=n)["input_ids"] for text, n in rows]}

    documents = DatasetDict()
    for split, number in most.items():
        chosen = texts[split].shuffle(seed=seed) if split == "train" else texts[split]
        chosen = chosen.take(min(number, len(chosen)))
        documents[split] = chosen.map(
            tokenize,
            batched=True,
            remove_columns=chosen.column_names,
            fn_kwargs={"is_cut": split == "train"},
            desc=f"Documents of {split}",
            load_from_cache_file=False,
        )
    return documents
