"""What is asked is what was bound last; nothing else has a label."""

import pytest
import torch

from benchmarks.recall_data import NO_LABEL, Needle, Recall


@pytest.fixture
def generator():
    """A generator that always starts the same."""
    return torch.Generator().manual_seed(0)


@pytest.fixture
def text(tmp_path):
    """A file of the bytes 0 to 199, of which the last twenty are held out."""
    path = tmp_path / "text.txt"
    path.write_bytes(bytes(range(200)))
    return str(path)


def bound_last(tokens, pairs):
    """The value of each key in a run of pairs, as a dictionary."""
    return dict(zip(tokens[: 2 * pairs : 2], tokens[1 : 2 * pairs : 2]))


@pytest.mark.parametrize("pairs, length, bound_again", [(1, 4, 0.0), (8, 64, 0.0), (8, 64, 0.5), (64, 385, 1.0)])
def test_a_label_is_the_value_that_was_bound_last(generator, pairs, length, bound_again):
    task = Recall(bound_again=bound_again)
    tokens, labels = task.batch(16, pairs, length, generator)
    assert tokens.shape == labels.shape == (16, length)
    bound = pairs + round(bound_again * pairs)
    for row, asked in zip(tokens.tolist(), labels.tolist()):
        values = bound_last(row, bound)
        places = [place for place in range(length) if asked[place] != NO_LABEL]
        assert len(values) == pairs and sorted(row[place] for place in places) == sorted(values)  # each key once
        assert all(place >= 2 * bound and place % 2 == 0 for place in places)
        assert [asked[place] for place in places] == [values[row[place]] for place in places]
        rest = [row[place] for place in range(2 * bound, length) if place not in places]
        assert all(128 <= token < 160 for token in rest)
        assert all(key < 64 <= value < 128 for key, value in values.items())


def test_a_key_is_bound_again_to_another_value(generator):
    tokens, _ = Recall(num_values=2, bound_again=0.5).batch(64, 8, 64, generator)
    for row in tokens.tolist():
        first, second = bound_last(row, 8), bound_last(row[16:], 4)
        assert len(second) == 4 and all(first[key] != value for key, value in second.items())


def test_places_and_keys_differ_from_row_to_row(generator):
    tokens, labels = Recall().batch(64, 2, 64, generator)
    assert len(labels.ne(NO_LABEL).unique(dim=0)) > 32 and len(tokens[:, :1].unique()) > 16


@pytest.mark.parametrize("pairs, length", [(1, 4), (1, 64), (3, 63)])
@pytest.mark.parametrize("held_out", [False, True])
def test_a_needle_stands_in_the_text_and_is_asked_for_at_its_end(generator, text, pairs, length, held_out):
    tokens, labels = Needle(text).batch(16, pairs, length, generator, held_out)
    for row, asked in zip(tokens.tolist(), labels.tolist()):
        needles = {row[place]: row[place + 1] for place in range(length - 1) if row[place + 1] >= 256 + 64}
        questions = [length - 1 - 2 * place for place in range(pairs)]
        assert [place for place in range(length) if asked[place] != NO_LABEL] == sorted(questions)
        assert sorted(row[place] for place in questions) == sorted(needles)
        assert all(asked[place] == needles[row[place]] for place in questions)
        rest = [(place, token) for place, token in enumerate(row) if token < 256]
        assert len(rest) == length - 3 * pairs
        size, first = (20, 180) if held_out else (180, 0)
        assert len({(token - first - place) % size for place, token in rest}) == 1 and rest[0][1] >= first


def test_what_does_not_fit_is_refused(generator, text):
    with pytest.raises(ValueError, match="`length` must be at least 32 with 8 pairs, .* but it is 31"):
        Recall().batch(1, 8, 31, generator)
    with pytest.raises(ValueError, match="`length` must be at least 40 with 8 pairs, .* but it is 39"):
        Recall(bound_again=0.5).batch(1, 8, 39, generator)
    with pytest.raises(ValueError, match="`pairs` must be from 1 to `num_keys`, 64, but it is 65"):
        Recall().batch(1, 65, 1000, generator)
    with pytest.raises(ValueError, match="`bound_again` must be from 0 to 1, but it is 2"):
        Recall(bound_again=2)
    with pytest.raises(ValueError, match="`num_values` must be at least 2, but it is 1"):
        Recall(num_values=1)
    with pytest.raises(ValueError, match="`length` must be at least 8 with 2 pairs, but it is 7"):
        Needle(text).batch(1, 2, 7, generator)
