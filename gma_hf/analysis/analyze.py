"""Count, over a corpus, which tokens go to which components."""

from collections.abc import Callable, Iterable, Iterator
from itertools import islice

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .counts import LabelCounts, RoutingCounts
from .labels import POSITIONS, position_bands
from .tables import Analysis


# The labels of the tokens of a text, from the text and the span of each token in it
Labeller = Callable[[str, list[tuple[int, int]]], list[str]]


@torch.no_grad()
def analyze(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Iterable[str],
    *,
    sequence_length: int = 256,
    batch_size: int = 16,
    max_tokens: int | None = None,
    labellers: dict[str, Labeller] | None = None,
    progress: bool = True,
) -> Analysis:
    """
    Read texts and count what their tokens are routed to. Memory does not depend on how much is read; what is counted
    per token of the vocabulary takes at most a few entries for each layer, side, head and component that it went to.

    Args:
        model: a GMA model with any head; put into evaluation mode.
        tokenizer: a fast one, of the model.
        texts: read one after another, each cut into sequences of its own.
        sequence_length: tokens per sequence, at most.
        batch_size: sequences at a time.
        max_tokens: after which no more are read.
        labellers: other categories to compare components with, by name: functions of a text and of the spans
            `(start, end)` of its tokens that give one label per token (a part of speech, an entity).
        progress: whether to show a progress bar.

    Returns:
        See `Analysis`.

    Raises:
        ValueError: for a model without GMA layers, no text, sequences longer than the model reads, or a labeller that
            does not give one label per token.
    """
    if isinstance(texts, str):
        raise ValueError("`texts` must be several texts, such as a list of one, but it is a single string.")
    for name, value in (("sequence_length", sequence_length), ("batch_size", batch_size), ("max_tokens", max_tokens)):
        if value is not None and value < 1:
            raise ValueError(f"`{name}` must be at least 1, but it is {value}.")
    layer_indices = [index for index, kind in enumerate(model.config.layer_types) if kind == "gma"]
    if not layer_indices:
        raise ValueError("`model` must have GMA layers, but all of its `layer_types` are softmax.")
    limit = model.config.max_position_embeddings
    if model.config.position_embedding == "learned" and sequence_length > limit:
        raise ValueError(
            f"`sequence_length` must be at most `max_position_embeddings`, {limit}, but it is {sequence_length}."
        )
    config = model.config
    vocabulary = max(config.vocab_size, len(tokenizer))
    counts = RoutingCounts(
        len(layer_indices), config.num_attention_heads, config.num_components, layer_indices, vocabulary
    )
    counts.labels = {name: LabelCounts() for name in (labellers or {})}
    counts.labels["position"] = LabelCounts({name: index for index, name in enumerate(POSITIONS)})
    model.eval()
    sequences = _sequences(tokenizer, texts, sequence_length, labellers or {})
    with tqdm(total=max_tokens, unit=" tokens", disable=not progress) as bar:
        while batch := list(islice(sequences, batch_size)):
            left = None if max_tokens is None else max_tokens - counts.tokens
            read = _add_batch(model, counts, list(_at_most(batch, left)), sequence_length)
            bar.update(read)
            if max_tokens is not None and counts.tokens >= max_tokens:
                break
    if counts.tokens == 0:
        raise ValueError("`texts` must hold at least one token, but there is none.")
    return Analysis(model, tokenizer, counts)


def _sequences(
    tokenizer: PreTrainedTokenizerBase, texts: Iterable[str], length: int, labellers: dict[str, Labeller]
) -> Iterator[tuple[list[int], dict[str, list[str]]]]:
    """Token ids and labels, piece by piece."""
    for text in texts:
        encoded = tokenizer(text, return_offsets_mapping=bool(labellers), verbose=False)
        ids, labels = encoded["input_ids"], {}
        for name, labeller in labellers.items():
            labels[name] = list(labeller(text, encoded["offset_mapping"]))
            if len(labels[name]) != len(ids):
                raise ValueError(
                    f"`labellers` must give one label per token, but {name!r} gave {len(labels[name])} for {len(ids)}."
                )
        for start in range(0, len(ids), length):
            piece = slice(start, start + length)
            yield ids[piece], {name: values[piece] for name, values in labels.items()}


def _at_most(batch: Iterable, tokens: int | None) -> Iterator:
    for ids, labels in batch:
        if tokens is not None:
            if tokens <= 0:
                return
            ids, labels = ids[:tokens], {name: values[:tokens] for name, values in labels.items()}
            tokens -= len(ids)
        yield ids, labels


def _add_batch(model: PreTrainedModel, counts: RoutingCounts, batch: list, sequence_length: int) -> int:
    longest = max(len(ids) for ids, _ in batch)
    largest = max(max(ids) for ids, _ in batch)
    if largest >= model.config.vocab_size:
        raise ValueError(
            f"`tokenizer` must be the model's, whose ids are below {model.config.vocab_size}, but one is {largest}."
        )
    tokens = torch.zeros(len(batch), longest, dtype=torch.long)
    mask = torch.zeros(len(batch), longest, dtype=torch.bool)
    for row, (ids, _) in enumerate(batch):
        tokens[row, : len(ids)] = torch.tensor(ids)
        mask[row, : len(ids)] = True
    output = model.base_model(
        tokens.to(model.device),
        attention_mask=mask.long().to(model.device),
        output_responsibilities=True,
        use_cache=False,
    )
    labels = {
        name: of.index([label for _, values in batch for label in values[name]])
        for name, of in counts.labels.items()
        if name != "position"
    }
    bands = position_bands(sequence_length)
    labels["position"] = np.concatenate([bands[: len(ids)] for ids, _ in batch])
    gammas = tuple(tuple(side.cpu() for side in sides) for sides in output.responsibilities)
    counts.add(tokens, mask, gammas, labels)
    return int(mask.sum())
