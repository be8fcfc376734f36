"""
ListOps (Nangia and Bowman, 2018) with the operators, arguments and depth of Long Range Arena (Tay et al., 2021):
nested MIN, MAX, MED (median, rounded down) and SM (sum modulo 10) over digits, whose value is one of ten classes.

    [MAX 4 3 [MIN 2 3 ] 1 0 [MED 1 5 8 9 2 ] ]    is 5
"""

import random
import statistics
from collections.abc import Callable, Iterator

from datasets import Dataset


OPERATORS: dict[str, Callable[[list[int]], int]] = {
    "[MIN": min,
    "[MAX": max,
    "[MED": lambda values: int(statistics.median(values)),
    "[SM": lambda values: sum(values) % 10,
}
SYMBOLS = [*OPERATORS, "]", *map(str, range(10))]
MAX_DEPTH, MAX_ARGUMENTS, OPERATOR_PROBABILITY = 10, 10, 0.25


def expression(generator: random.Random, depth: int = 1) -> tuple[list[str], int]:
    """A random expression as its symbols, and its value. At `MAX_DEPTH` it is a digit."""
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
    """Expressions of `shortest` to `longest` symbols without end, none twice: `text` and `label`."""
    seen = set()
    while True:
        symbols, value = expression(generator)
        text = " ".join(symbols)
        if shortest <= len(symbols) <= longest and text not in seen:
            seen.add(text)
            yield {"text": text, "label": value}


def make_listops(count: int, shortest: int, longest: int, seed: int) -> Dataset:
    """
    A data set of so many examples, the same for the same seed.

    Raises:
        ValueError: for lengths that no expression has.
    """
    if not 4 <= shortest <= longest:
        raise ValueError(f"`listops` must be two lengths, 4 <= shortest <= longest, but it is {shortest} {longest}.")
    of = examples(random.Random(seed), shortest, longest)
    return Dataset.from_list([next(of) for _ in range(count)])
