"""ListOps: expressions of the grammar, with their values, the same for the same seed."""

import pytest


RECIPE = "listops"


def value(symbols):
    """By a stack, another way than the recipe's."""
    stack = [[]]
    for symbol in symbols:
        if symbol.startswith("["):
            stack.append([symbol])
        elif symbol == "]":
            operator, *values = stack.pop()
            values.sort()
            middle = values[(len(values) - 1) // 2], values[len(values) // 2]
            results = {"[MIN": values[0], "[MAX": values[-1], "[MED": sum(middle) // 2, "[SM": sum(values) % 10}
            stack[-1].append(results[operator])
        else:
            stack[-1].append(int(symbol))
    (result,) = stack[0]
    return result


def test_values_lengths_and_seeds(recipe):
    examples = recipe.make_listops(200, 10, 60, seed=0)
    symbols = [text.split() for text in examples["text"]]
    assert all(10 <= len(x) <= 60 for x in symbols)
    assert {symbol for x in symbols for symbol in x} == set(recipe.SYMBOLS)
    assert [value(x) for x in symbols] == examples["label"]
    assert len(set(examples["text"])) == 200
    assert recipe.make_listops(200, 10, 60, seed=0)["text"] == examples["text"]
    assert not set(recipe.make_listops(200, 30, 60, seed=1)["text"]) & set(examples["text"])


def test_the_example_of_the_paper(recipe):
    assert value(["[MAX", "4", "3", "[MIN", "2", "3", "]", "1", "0", "[MED", "1", "5", "8", "9", "2", "]", "]"]) == 5
    assert recipe.OPERATORS["[MED"]([1, 2, 5, 8]) == 3  # rounded down


def test_impossible_lengths_are_refused(recipe):
    with pytest.raises(ValueError, match="`listops` must be two lengths, .* but it is 9 5"):
        recipe.make_listops(1, 9, 5, seed=0)
