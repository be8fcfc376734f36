"""
What `recall.py` asks: multi-query associative recall (Arora et al., 2023, "Zoology") of random tokens, and needles in
a text. Both make batches from a torch.Generator: tokens `[B, N]`, and labels `[B, N]`, which are the value at the
place of a key that is asked for and -100 everywhere else. A label is of the SAME place: the logits there predict it.
"""

from dataclasses import dataclass
from pathlib import Path

import torch


NO_LABEL = -100
HELD_OUT = 0.1  # share of a text, its end, that evaluation takes its pieces from

Batch = tuple[torch.Tensor, torch.Tensor]  # tokens and labels, [B, N] each


def some_of(count: int, chosen: int, batch_size: int, generator: torch.Generator) -> torch.Tensor:
    """Return distinct numbers below `count` in random order, `[B, chosen]`."""
    return torch.rand(batch_size, count, generator=generator).argsort(dim=-1)[:, :chosen]


def required(name: str, value: int, least: int, why: str) -> None:
    """Refuse a value that is too small, with a ValueError."""
    if value < least:
        raise ValueError(f"`{name}` must be at least {least}{why}, but it is {value}.")


def check_pairs(pairs: int, num_keys: int) -> None:
    """Refuse a number of pairs that there are no distinct keys for, with a ValueError."""
    if not 1 <= pairs <= num_keys:
        raise ValueError(f"`pairs` must be from 1 to `num_keys`, {num_keys}, but it is {pairs}.")


@dataclass
class Recall:
    """
    Pairs of a key and a value stand first. Then come distractors, and among them, at random even places, each key once
    more. The vocabulary is keys, values and distractors, in that order.

    Args:
        num_keys, num_values, num_distractors: tokens of each kind.
        bound_again: share of the pairs whose key is bound again, to another value, in a second run of pairs right
            after the first one. The last value counts.
    """

    num_keys: int = 64
    num_values: int = 64
    num_distractors: int = 32
    bound_again: float = 0.0

    def __post_init__(self):
        if not 0 <= self.bound_again <= 1:
            raise ValueError(f"`bound_again` must be from 0 to 1, but it is {self.bound_again}.")
        for name, least in (("num_keys", 1), ("num_values", 2), ("num_distractors", 1)):
            required(name, getattr(self, name), least, "")

    @property
    def vocab_size(self) -> int:
        """Return the number of tokens there are."""
        return self.num_keys + self.num_values + self.num_distractors

    def check(self, pairs: int, length: int) -> None:
        """Refuse more pairs than there are keys, or than the length has room for, with a ValueError."""
        check_pairs(pairs, self.num_keys)
        least = 2 * (pairs + round(self.bound_again * pairs)) + 2 * pairs
        required("length", length, least, f" with {pairs} pairs, all of them bound and asked for")

    def batch(
        self, batch_size: int, pairs: int, length: int, generator: torch.Generator, held_out: bool = False
    ) -> Batch:
        """
        Return a batch.

        Args:
            batch_size: rows.
            pairs: keys that are bound, and asked for.
            length: tokens in a row.
            generator: of all that is random.
            held_out: without an effect, since every batch is fresh.
        """
        self.check(pairs, length)
        again = round(self.bound_again * pairs)
        keys = some_of(self.num_keys, pairs, batch_size, generator)
        values = torch.randint(self.num_values, (batch_size, pairs), generator=generator)
        bound = torch.stack([keys, values + self.num_keys], dim=-1).flatten(1)
        if again:
            which = some_of(pairs, again, batch_size, generator)
            step = torch.randint(1, self.num_values, (batch_size, again), generator=generator)
            new = (values.gather(1, which) + step) % self.num_values
            values = values.scatter(1, which, new)
            bound_again = torch.stack([keys.gather(1, which), new + self.num_keys], dim=-1)
            bound = torch.cat([bound, bound_again.flatten(1)], dim=1)
        rest = length - bound.shape[1]
        places = 2 * some_of((rest + 1) // 2, pairs, batch_size, generator)
        tokens = torch.randint(self.num_distractors, (batch_size, rest), generator=generator)
        tokens = (tokens + self.num_keys + self.num_values).scatter(1, places, keys)
        labels = torch.full((batch_size, rest), NO_LABEL).scatter(1, places, values + self.num_keys)
        return torch.cat([bound, tokens], dim=1), torch.cat([torch.full_like(bound, NO_LABEL), labels], dim=1)


@dataclass
class Needle:
    """
    A piece of a text, byte for byte, in which pairs of a key and a value are put at random places. At its end each
    key is asked for, with a byte of text between two of them. The vocabulary is bytes, keys and values, in that order.

    Args:
        text_file: where the text is; training takes pieces of its first nine tenths, evaluation of the rest. A text
            that is shorter than a piece begins again.
        num_keys, num_values: tokens of each kind.
    """

    text_file: str
    num_keys: int = 64
    num_values: int = 64

    def __post_init__(self):
        text = torch.frombuffer(bytearray(Path(self.text_file).read_bytes()), dtype=torch.uint8).long()
        required("text_file", len(text), 20, " bytes long")
        held_out = int(len(text) * HELD_OUT)
        self.parts = {False: text[:-held_out], True: text[-held_out:]}

    @property
    def vocab_size(self) -> int:
        """Return the number of tokens there are."""
        return 256 + self.num_keys + self.num_values

    def check(self, pairs: int, length: int) -> None:
        """Refuse more pairs than there are keys, or than the length has room for, with a ValueError."""
        check_pairs(pairs, self.num_keys)
        required("length", length, 4 * pairs, f" with {pairs} pairs")

    def batch(
        self, batch_size: int, pairs: int, length: int, generator: torch.Generator, held_out: bool = False
    ) -> Batch:
        """
        Return a batch.

        Args:
            batch_size: rows.
            pairs: needles, which are asked for in random order.
            length: tokens in a row, needles and questions included.
            generator: of all that is random.
            held_out: whether the pieces are of the end of the text.
        """
        self.check(pairs, length)
        text = self.parts[held_out]
        start = torch.randint(len(text), (batch_size, 1), generator=generator)
        tokens = text[(start + torch.arange(length)) % len(text)]
        keys = 256 + some_of(self.num_keys, pairs, batch_size, generator)
        values = 256 + self.num_keys + torch.randint(self.num_values, (batch_size, pairs), generator=generator)
        places = 2 * some_of((length - 2 * pairs + 1) // 2, pairs, batch_size, generator)
        tokens = tokens.scatter(1, places, keys).scatter(1, places + 1, values)
        order = some_of(pairs, pairs, batch_size, generator)
        asked = (length - 1 - 2 * torch.arange(pairs)).expand(batch_size, -1)
        labels = torch.full_like(tokens, NO_LABEL).scatter(1, asked, values.gather(1, order))
        return tokens.scatter(1, asked, keys.gather(1, order)), labels
