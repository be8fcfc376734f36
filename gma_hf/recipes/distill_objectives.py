"""What a converted model learns of its source, and how near it is: language models and sentence encoders."""

import math
import re
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader
from transformers import (
    DataCollatorForLanguageModeling,
    DataCollatorWithPadding,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    default_data_collator,
)
from transformers.modeling_outputs import ModelOutput

from .running import train_extra
from .texts import DataArguments, make_blocks


with train_extra():
    from datasets import Dataset, DatasetDict
    from scipy.stats import spearmanr


# A sentence ends with one of these and white space, and has so many characters at least.
END_OF_SENTENCE = re.compile(r"(?<=[.!?])\s+|\n+")
SHORTEST_SENTENCE = 20


class Objective(Protocol):
    """Data, loss and measure of the second stage."""

    collator: Any  # of the batches
    metrics: dict[str, str]  # name of each figure that `evaluate` gives, and what it says

    def prepare(
        self, texts: DatasetDict, args: DataArguments, tokenizer: PreTrainedTokenizerBase, seed: int
    ) -> DatasetDict:
        """Return training and validation examples."""

    def loss(self, outputs: ModelOutput, target: ModelOutput, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return the loss of a batch, from what the model and its source give for it."""

    def evaluate(self, model: PreTrainedModel, source: PreTrainedModel, batches: DataLoader) -> dict[str, float]:
        """Return the figures of a model on the validation examples."""


class LanguageModelObjective:
    """The source's distribution over tokens, and the task's own loss."""

    metrics = {
        "perplexity": "perplexity of the validation text",
        "divergence": "Kullback-Leibler divergence from the source's distribution, nats per token",
        "agreement": "share of tokens where the likeliest token is the source's",
    }

    def __init__(self, is_causal: bool, source_weight: float, max_validation: int):
        if not 0 <= source_weight <= 1:
            raise ValueError(f"`source_weight` must be from 0 to 1, but it is {source_weight}.")
        self.is_causal = is_causal
        self.source_weight = source_weight
        self.max_validation = max_validation
        self.collator = default_data_collator

    def prepare(
        self, texts: DatasetDict, args: DataArguments, tokenizer: PreTrainedTokenizerBase, seed: int
    ) -> DatasetDict:
        blocks = make_blocks(texts, args.text_column, tokenizer, args.block_size)
        blocks["validation"] = blocks["validation"].take(min(self.max_validation, len(blocks["validation"])))
        if self.is_causal:
            return blocks
        self.collator = DataCollatorForLanguageModeling(tokenizer, seed=seed)
        return blocks.remove_columns("labels")

    def loss(self, outputs: ModelOutput, target: ModelOutput, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        divergence, _, count = self.compare(outputs, target, inputs["labels"])
        return self.source_weight * divergence / count + (1 - self.source_weight) * outputs.loss

    def compare(
        self, outputs: ModelOutput, target: ModelOutput, labels: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, int]:
        """Return divergence from the target and agreement with it, summed over predicted tokens; their number."""
        ours, theirs = outputs.logits, target.logits
        if self.is_causal:
            ours, theirs, labels = ours[:, :-1], theirs[:, :-1], labels[:, 1:]
        ours, theirs = ours[labels != -100].float(), theirs[labels != -100].float()
        divergence = F.kl_div(ours.log_softmax(dim=-1), theirs.log_softmax(dim=-1), log_target=True, reduction="sum")
        return divergence, (ours.argmax(dim=-1) == theirs.argmax(dim=-1)).sum(), len(ours)

    @torch.no_grad()
    def evaluate(self, model: PreTrainedModel, source: PreTrainedModel, batches: DataLoader) -> dict[str, float]:
        model.eval()
        if not self.is_causal:
            self.collator.create_rng()  # so that the same tokens are masked each time
        sums, tokens = torch.zeros(3), 0
        for batch in batches:
            inputs = {name: x.to(model.device) for name, x in batch.items()}
            outputs, target = model(**inputs), source(**inputs)
            *figures, count = self.compare(outputs, target, inputs["labels"])
            if count:
                sums += torch.stack([outputs.loss * count, *figures]).cpu()
                tokens += count
        loss, divergence, agreement = (sums / tokens).tolist()
        return {"perplexity": math.exp(loss), "divergence": divergence, "agreement": agreement}


class EmbeddingObjective:
    """The source's embedding of a sentence: the mean of the last hidden states over its tokens, of length one."""

    metrics = {
        "spearman": "Spearman correlation of the cosine similarities of sentence pairs with the source's",
        "cosine": "mean cosine similarity with the source's embedding",
    }

    def __init__(self, max_sentences: int, max_validation: int):
        self.most = {"train": max_sentences, "validation": max_validation}

    def prepare(
        self, texts: DatasetDict, args: DataArguments, tokenizer: PreTrainedTokenizerBase, seed: int
    ) -> DatasetDict:
        self.collator = DataCollatorWithPadding(tokenizer)

        def tokenize(batch: dict) -> dict:
            return {"input_ids": tokenizer(batch["text"], truncation=True, max_length=args.block_size)["input_ids"]}

        sentences = DatasetDict()
        for split, most in self.most.items():
            split_texts = texts[split].shuffle(seed=seed) if split == "train" else texts[split]
            found = Dataset.from_dict({"text": first_sentences(split_texts[args.text_column], most)})
            sentences[split] = found.map(tokenize, batched=True, remove_columns="text", desc=f"Tokenize {split}")
        return sentences

    def loss(self, outputs: ModelOutput, target: ModelOutput, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        ours, theirs = (embed(x, inputs["attention_mask"]) for x in (outputs, target))
        similarity = F.mse_loss(ours @ ours.T, theirs @ theirs.T)
        return 1 - (ours * theirs).sum(dim=-1).mean() + similarity

    @torch.no_grad()
    def evaluate(self, model: PreTrainedModel, source: PreTrainedModel, batches: DataLoader) -> dict[str, float]:
        """Pairs are each sentence with the next one of the text, and with one from elsewhere."""
        model.eval()
        embeddings = []
        for batch in batches:
            inputs = {name: x.to(model.device) for name, x in batch.items()}
            pair = [embed(network(**inputs), inputs["attention_mask"]).float() for network in (model, source)]
            embeddings.append(torch.stack(pair))
        ours, theirs = torch.cat(embeddings, dim=1).cpu()
        similarities = [
            torch.cat([cosine(x, x.roll(-shift, 0)) for shift in (1, len(x) // 2)]) for x in (ours, theirs)
        ]
        return {"spearman": float(spearmanr(*similarities).statistic), "cosine": float(cosine(ours, theirs).mean())}


def embed(outputs: ModelOutput, mask: torch.Tensor) -> torch.Tensor:
    """Return the embeddings `[batch, hidden]`, of length one, of the last layer's `[batch, N, hidden]`."""
    weights = mask[..., None].to(outputs.last_hidden_state.dtype)
    return F.normalize((outputs.last_hidden_state * weights).sum(dim=1) / weights.sum(dim=1), dim=-1)


def cosine(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Return the cosine similarities of embeddings `[batch, hidden]` of length one."""
    return (x * y).sum(dim=-1)


def first_sentences(texts: list[str], most: int) -> list[str]:
    """Return the first so many sentences, in the order of the text."""
    sentences: list[str] = []
    for text in texts:
        sentences += [part.strip() for part in END_OF_SENTENCE.split(text) if len(part.strip()) >= SHORTEST_SENTENCE]
        if len(sentences) >= most:
            break
    return sentences[:most]
