"""Count, over a corpus, which tokens go to which components."""

from collections.abc import Iterable
from itertools import islice

import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .counts import LabelCounts, RoutingCounts
from .labels import POSITIONS, position_bands
from .reading import Labeller, TokenSequence, token_sequences
from .tables import LABELLINGS, Analysis


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
        sequence_length: tokens per sequence, at most, with those that the tokenizer puts around a text, such as
            [CLS], which are read and not counted.
        batch_size: sequences at a time.
        max_tokens: after which no more are read.
        labellers: other categories to compare components with, by name: functions of a piece of text (a whole text,
            or up to 100,000 characters of a longer one) and of the spans `(start, end)` of its tokens that give one
            label per token (a part of speech, an entity).
        progress: whether to show a progress bar.

    Returns:
        See `Analysis`.

    Raises:
        ValueError: for a model without GMA layers or with weights that are not in memory, a slow tokenizer, no text,
            sequences longer than the model reads, or a labeller that does not give one label per token or has a name
            that is taken.
    """
    _check_model(model, sequence_length)
    if isinstance(texts, str):
        raise ValueError("`texts` must be several texts, such as a list of one, but it is a single string.")
    for name, value in (("batch_size", batch_size), ("max_tokens", max_tokens)):
        if value is not None and value < 1:
            raise ValueError(f"`{name}` must be at least 1, but it is {value}.")
    if not tokenizer.is_fast:
        raise ValueError(f"`tokenizer` must be a fast one, but it is a {type(tokenizer).__name__}.")
    if sequence_length <= (around := tokenizer.num_special_tokens_to_add()):
        raise ValueError(
            f"`sequence_length` must be more than the {around} tokens around a text, but it is {sequence_length}."
        )
    for name in labellers or {}:
        if name in LABELLINGS:
            raise ValueError(f"`labellers` must not be named {', '.join(LABELLINGS)}, but one is {name!r}.")
    config = model.config
    layer_indices = [index for index, kind in enumerate(config.layer_types) if kind == "gma"]
    vocabulary = max(config.vocab_size, len(tokenizer))
    counts = RoutingCounts(
        len(layer_indices), config.num_attention_heads, config.num_components, layer_indices, vocabulary
    )
    counts.labels = {name: LabelCounts() for name in (labellers or {})}
    counts.labels["position"] = LabelCounts({name: index for index, name in enumerate(POSITIONS)})
    model.eval()
    sequences = token_sequences(tokenizer, texts, sequence_length, labellers or {})
    with tqdm(total=max_tokens, unit=" tokens", disable=not progress) as bar:
        while batch := list(islice(sequences, batch_size)):
            before = counts.tokens
            _add_batch(model, counts, _beginning(batch, max_tokens and max_tokens - before), sequence_length)
            bar.update(counts.tokens - before)
            if counts.tokens == max_tokens:
                break
    if counts.tokens == 0:
        raise ValueError("`texts` must hold at least one token, but there is none.")
    return Analysis(model, tokenizer, counts)


def _check_model(model: PreTrainedModel, sequence_length: int) -> None:
    config = model.config
    if config.model_type != "gma":
        raise ValueError(f"`model` must be a GMA model, but it is a {type(model).__name__}.")
    if "gma" not in config.layer_types:
        raise ValueError("`model` must have GMA layers, but all of its `layer_types` are softmax.")
    if any(parameter.is_meta for parameter in model.parameters()):
        raise ValueError("`model` must be in memory as a whole, but some of its weights are offloaded.")
    if sequence_length < 1:
        raise ValueError(f"`sequence_length` must be at least 1, but it is {sequence_length}.")
    limit = config.position_limit
    if limit is not None and sequence_length > limit:
        raise ValueError(
            f"`sequence_length` must be at most `max_position_embeddings`, {limit}, but it is {sequence_length}."
        )


def _beginning(batch: list[TokenSequence], tokens: int | None) -> list[TokenSequence]:
    """The sequences of the first so many counted tokens."""
    if tokens is None:
        return batch
    cut = []
    for sequence in batch:
        if tokens > 0:
            cut.append(sequence.beginning(tokens))
        tokens -= sum(sequence.counted)
    return cut


def _add_batch(model: PreTrainedModel, counts: RoutingCounts, batch: list[TokenSequence], length: int) -> None:
    longest = max(len(sequence.ids) for sequence in batch)
    largest = max(max(sequence.ids) for sequence in batch)
    if largest >= model.config.vocab_size:
        raise ValueError(
            f"`tokenizer` must be the model's, whose ids are below {model.config.vocab_size}, but one is {largest}."
        )
    tokens = torch.zeros(len(batch), longest, dtype=torch.long)
    mask, counted = (torch.zeros(len(batch), longest, dtype=torch.bool) for _ in range(2))
    for row, sequence in enumerate(batch):
        tokens[row, : len(sequence.ids)] = torch.tensor(sequence.ids)
        mask[row, : len(sequence.ids)] = True
        counted[row, : len(sequence.ids)] = torch.tensor(sequence.counted)
    output = model.base_model(
        tokens.to(model.device),
        attention_mask=mask.long().to(model.device),
        output_responsibilities=True,
        use_cache=False,
    )
    labels = {
        name: of.index([label for sequence in batch for label in sequence.labels[name]])
        for name, of in counts.labels.items()
        if name != "position"
    }
    labels["position"] = position_bands(length)[counted.nonzero()[:, 1].numpy()]
    gammas = tuple(tuple(side.cpu() for side in sides) for sides in output.responsibilities)
    counts.add(tokens, counted, gammas, labels)
