"""ListOps: expressions of the grammar, with their values, the same for the same seed."""

import pytest

from gma_hf.recipes import listops


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


def test_values_lengths_and_seeds():
    splits = listops.make_listops({"train": 200, "test": 100}, 10, 60, seed=0)
    assert {split: len(of) for split, of in splits.items()} == {"train": 200, "test": 100}
    texts = [*splits["train"]["text"], *splits["test"]["text"]]
    symbols = [text.split() for text in texts]
    assert all(10 <= len(x) <= 60 for x in symbols)
    assert {symbol for x in symbols for symbol in x} == set(listops.SYMBOLS)
    assert [value(x) for x in symbols] == [*splits["train"]["label"], *splits["test"]["label"]]
    assert listops.make_listops({"train": 200, "test": 100}, 10, 60, seed=0)["test"]["text"] == splits["test"]["text"]
    assert listops.make_listops({"train": 200}, 10, 60, seed=1)["train"]["text"] != splits["train"]["text"]


def test_no_example_is_in_two_splits():
    splits = listops.make_listops({"train": 100, "test": 100}, 4, 4, seed=0)  # of 400 that there are
    assert len({*splits["train"]["text"], *splits["test"]["text"]}) == 200


def test_the_example_of_the_paper():
    assert value(["[MAX", "4", "3", "[MIN", "2", "3", "]", "1", "0", "[MED", "1", "5", "8", "9", "2", "]", "]"]) == 5
    assert listops.OPERATORS["[MED"]([1, 2, 5, 8]) == 3  # rounded down


def test_impossible_lengths_are_refused(monkeypatch):
    with pytest.raises(ValueError, match="`listops` must be two lengths, .* but it is 9 5"):
        listops.make_listops({"train": 1}, 9, 5, seed=0)
    monkeypatch.setattr(listops, "MAX_IN_VAIN", 100)
    there_are = 4 * 10 * 10  # an operator and two digits
    with pytest.raises(ValueError, match="of at least 500 expressions, but 4 to 4 gave ") as error:
        listops.make_listops({"train": 400, "test": 100}, 4, 4, seed=0)
    assert 100 < int(str(error.value).split()[-1].rstrip(".")) <= there_are
