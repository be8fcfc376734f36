"""Which runs of a comparison its table is of."""

import json

import pytest

from benchmarks import compare_results


@pytest.fixture
def folder(tmp_path):
    """Runs of ten steps: rate 1 with two seeds, rate 2 with two, rate 3 with one; and one of twenty steps."""
    losses = {(1, 0): 3.0, (1, 1): 3.2, (2, 0): 2.9, (2, 1): 3.1, (3, 0): 2.5}
    runs = [{"mixer": "gma", "learning_rate": r, "seed": s, "steps": 10, "loss": x} for (r, s), x in losses.items()]
    runs.append({"mixer": "gma", "learning_rate": 1, "seed": 0, "steps": 20, "loss": 1.0})
    for number, run in enumerate(runs):
        (tmp_path / f"{number}.json").write_text(json.dumps(run))
    return tmp_path


def test_the_best_rate_of_those_with_the_most_seeds(folder):
    runs = compare_results.finished(folder, 10, ["gma", "linear"])
    assert [(run["learning_rate"], run["seed"]) for run in runs["gma"]] == [(2, 0), (2, 1)] and set(runs) == {"gma"}
