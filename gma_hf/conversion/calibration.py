"""Calibration texts: samples of what a model usually reads, as batches of tokens."""

from collections.abc import Iterable, Iterator

import torch
from transformers import PreTrainedTokenizerBase

from ..model.modeling_gma import GMAPreTrainedModel


# Real tokens that are read of a calibration text.
CALIBRATION_TOKENS = 8192
BATCH_SIZE = 8

Batch = dict[str, torch.Tensor]


def token_batches(
    calibration: Iterable, tokenizer: PreTrainedTokenizerBase | None, max_length: int, vocab_size: int
) -> list[Batch]:
    """
    Return batches of `input_ids` and `attention_mask`, `[batch, N]`, that together hold `CALIBRATION_TOKENS` real
    tokens, if there are so many. No row is longer than `max_length`.

    Args:
        calibration: texts, or token batches (ids `[batch, N]`, or dicts of them).
        tokenizer: for texts.
        max_length: longest row.
        vocab_size: number of tokens that the model knows.

    Raises:
        ValueError: for texts without a tokenizer, for what is neither texts nor tokens, and for unknown tokens.
    """
    batches, seen = [], 0
    for batch in all_batches(calibration, tokenizer, max_length):
        if batch["input_ids"].numel() == 0:
            continue
        if batch["input_ids"].max() >= vocab_size or batch["input_ids"].min() < 0:
            raise ValueError(
                f"`calibration` must hold token ids below {vocab_size}, but one is {int(batch['input_ids'].max())}."
            )
        batches.append(batch)
        seen += int(batch["attention_mask"].sum())
        if seen >= CALIBRATION_TOKENS:
            break
    if seen == 0:
        raise ValueError("`calibration` must hold some tokens, but it holds none.")
    return batches


def all_batches(calibration: Iterable, tokenizer: PreTrainedTokenizerBase | None, max_length: int) -> Iterator[Batch]:
    """Yield the batches one after another."""
    rows = []
    is_one = isinstance(calibration, (str, torch.Tensor)) or hasattr(calibration, "keys")
    for item in [calibration] if is_one else calibration:
        if not isinstance(item, str):
            batch = batch_of(item, max_length)
            for parts in zip(*(x.split(BATCH_SIZE) for x in batch.values())):
                yield dict(zip(batch, parts))
            continue
        if tokenizer is None:
            raise ValueError(
                "`calibration` must be token batches where `source` has no tokenizer, but it holds texts."
            )
        if row := tokenizer(item, truncation=True, max_length=max_length)["input_ids"]:
            rows.append(torch.tensor(row))
        if len(rows) == BATCH_SIZE:
            yield padded(rows)
            rows = []
    if rows:
        yield padded(rows)


def padded(rows: list[torch.Tensor]) -> Batch:
    """Return rows as one batch, padded on the right. Which token pads does not matter, since padding is masked."""
    pad = torch.nn.utils.rnn.pad_sequence
    mask = pad([torch.ones_like(row) for row in rows], batch_first=True)
    return {"input_ids": pad(rows, batch_first=True), "attention_mask": mask}


def batch_of(item: object, max_length: int) -> Batch:
    """Return a token batch as the models take it."""
    given = item if hasattr(item, "keys") else {"input_ids": item}
    try:
        ids = torch.as_tensor(given["input_ids"])
        mask = torch.as_tensor(given["attention_mask"]) if "attention_mask" in given else torch.ones_like(ids)
        if ids.ndim != 2 or ids.is_floating_point() or mask.shape != ids.shape:
            raise ValueError
    except (TypeError, ValueError, KeyError, RuntimeError) as error:
        raise ValueError(
            "`calibration` must hold texts, or token ids [batch, N] (or dicts of 'input_ids' and 'attention_mask'), "
            f"but it holds a {type(item).__name__} that is neither."
        ) from error
    return {"input_ids": ids[:, :max_length], "attention_mask": mask[:, :max_length].long()}


@torch.no_grad()
def mixer_inputs(
    model: GMAPreTrainedModel, indices: list[int], batches: list[Batch]
) -> dict[int, list[tuple[torch.Tensor, torch.Tensor]]]:
    """Return the inputs of the mixers of some layers: hidden states `[B, N, hidden]` and the mask of real tokens."""
    inputs = {index: [] for index in indices}
    mask = None

    def record(index: int):  # noqa: ANN202
        return lambda module, args: inputs[index].append((args[0], mask))

    layers, was_training = model.base_model.layers, model.training
    hooks = [layers[index].attention.register_forward_pre_hook(record(index)) for index in indices]
    try:
        for batch in batches:
            batch = {name: x.to(model.device) for name, x in batch.items()}
            mask = batch["attention_mask"].bool()
            model.eval().base_model(**batch, **({"use_cache": False} if model.config.is_causal else {}))
    finally:
        model.train(was_training)
        for hook in hooks:
            hook.remove()
    return inputs
