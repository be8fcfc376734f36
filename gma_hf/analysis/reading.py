"""Texts as the sequences of tokens that a model reads."""

from collections.abc import Callable, Iterable, Iterator
from itertools import chain, compress, islice
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase


PIECE = 100_000  # characters that are tokenized in one
# The labels of the tokens of a piece of text, from the piece and the span of each token in it
Labeller = Callable[[str, list[tuple[int, int]]], list[str]]


class TokenSequence(NamedTuple):
    """What a model reads in one."""

    ids: list[int]
    counted: list[bool]  # of each token: whether it is of the text, and not put around it as [CLS] is
    labels: dict[str, list[str]]  # of the counted ones

    def beginning(self, tokens: int) -> "TokenSequence":
        """Up to the last of so many counted tokens."""
        places = [place for place, counted in enumerate(self.counted) if counted]
        if tokens >= len(places):
            return self
        end = places[tokens]
        labels = {name: values[:tokens] for name, values in self.labels.items()}
        return TokenSequence(self.ids[:end], self.counted[:end], labels)


def pieces(chunks: Iterable[str]) -> Iterator[str]:
    """A text that comes in chunks of `PIECE` characters, cut before white space where there is some."""
    text = ""
    for chunk in chunks:
        if len(text) >= PIECE:  # and goes on
            cut = max(text.rfind(" "), text.rfind("\n"))
            cut = cut if cut > 0 else len(text)
            yield text[:cut]
            text = text[cut:]
        text += chunk
    if text:
        yield text


def token_sequences(
    tokenizer: PreTrainedTokenizerBase, texts: Iterable[str], length: int, labellers: dict[str, Labeller]
) -> Iterator[TokenSequence]:
    """Each text in sequences of at most `length` tokens, with what the tokenizer puts around a text around each."""
    for text in texts:
        for piece in pieces(text[start : start + PIECE] for start in range(0, len(text), PIECE)):
            encoded = tokenizer(
                piece,
                truncation=True,
                max_length=length,
                return_overflowing_tokens=True,
                return_special_tokens_mask=True,
                return_offsets_mapping=bool(labellers),
                verbose=False,
            )
            counted = [[not special for special in row] for row in encoded["special_tokens_mask"]]
            labels = {name: iter(_labels(name, of, piece, encoded, counted)) for name, of in labellers.items()}
            for ids, of_text in zip(encoded["input_ids"], counted):
                values = {name: list(islice(of, sum(of_text))) for name, of in labels.items()}
                if any(of_text):
                    yield TokenSequence(ids, of_text, values)


def _labels(name: str, labeller: Labeller, piece: str, encoded: dict, counted: list[list[bool]]) -> list[str]:
    spans = list(compress(chain(*encoded["offset_mapping"]), chain(*counted)))
    labels = list(labeller(piece, spans))
    if len(labels) != len(spans):
        raise ValueError(
            f"`labellers` must give one label per token, but {name!r} gave {len(labels)} for {len(spans)}."
        )
    return labels
