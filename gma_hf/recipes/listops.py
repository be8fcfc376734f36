"""
ListOps (Nangia and Bowman, 2018) with the operators, arguments and depth of Long Range Arena (Tay et al., 2021):
nested MIN, MAX, MED (median, rounded down) and SM (sum modulo 10) over digits, whose value is one of ten classes.

    [MAX 4 3 [MIN 2 3 ] 1 0 [MED 1 5 8 9 2 ] ]    is 5
"""

import random
import statistics
from collections.abc import Callable, Iterator
from itertools import accumulate, islice

from .running import train_extra


with train_extra():
    from datasets import Dataset, DatasetDict


OPERATORS: dict[str, Callable[[list[int]], int]] = {
    "[MIN": min,
    "[MAX": max,
    "[MED": lambda values: int(statistics.median(values)),
    "[SM": lambda values: sum(values) % 10,
}
SYMBOLS = [*OPERATORS, "]", *map(str, range(10))]
MAX_DEPTH, MAX_ARGUMENTS, OPERATOR_PROBABILITY = 10, 10, 0.25
MAX_IN_VAIN = 100_000  # expressions in a row that are of another length or known


def expression(generator: random.Random, depth: int = 1) -> tuple[list[str], int]:
    """Return a random expression as its symbols, and its value. At `MAX_DEPTH` it is a digit."""
    if depth == MAX_DEPTH or (depth > 1 and generator.random() > OPERATOR_PROBABILITY):
        digit = generator.randrange(10)
        return [str(digit)], digit
    operator = generator.choice(list(OPERATORS))
    symbols, values = [operator], []
    for _ in range(generator.randint(2, MAX_ARGUMENTS)):
        more, value = expression(generator, depth + 1)
        symbols += more
        values.append(value)
    return [*symbols, "]"], OPERATORS[operator](values)


def examples(generator: random.Random, shortest: int, longest: int) -> Iterator[dict]:
    """Yield expressions of `shortest` to `longest` symbols, none twice, as long as new ones turn up."""
    seen, in_vain = set(), 0
    while in_vain < MAX_IN_VAIN:
        symbols, value = expression(generator)
        text, in_vain = " ".join(symbols), in_vain + 1
        if shortest <= len(symbols) <= longest and text not in seen:
            seen.add(text)
            in_vain = 0
            yield {"text": text, "label": value}


def make_listops(counts: dict[str, int], shortest: int, longest: int, seed: int) -> DatasetDict:
    """
    Return splits of so many examples each, the same for the same seed, and no example in two of them.

    Raises:
        ValueError: for lengths that no expression has, or too few have.
    """
    if not 4 <= shortest <= longest:
        raise ValueError(f"`listops` must be two lengths, 4 <= shortest <= longest, but it is {shortest} {longest}.")
    rows = list(islice(examples(random.Random(seed), shortest, longest), sum(counts.values())))
    if len(rows) < sum(counts.values()):
        total = f"at least {sum(counts.values())} expressions"
        raise ValueError(f"`listops` must be lengths of {total}, but {shortest} to {longest} gave {len(rows)}.")
    ends = list(accumulate(counts.values()))
    return DatasetDict({split: Dataset.from_list(rows[end - counts[split] : end]) for split, end in zip(counts, ends)})
