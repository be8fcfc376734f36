"""The JSON of the runs that tables and plots are made from."""

import json
import math
import statistics
from functools import cache
from pathlib import Path
from typing import Any

from safetensors import safe_open

from . import compare_results, recall_results


ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"


@cache
def load(name: str) -> Any:  # noqa: ANN401
    """Return the content of a JSON file, by its path from benchmarks/results."""
    return json.loads((RESULTS / name).read_text(encoding="utf-8"))


def training_scores(folder: str) -> dict[str, list[float]]:
    """
    Return the perplexity or the accuracy in % of each mixer of a comparison by seed, the best mixer first.

    Args:
        folder: of benchmarks/results/trainings, as `compare.py` leaves it.
    """
    return compare_results.scores_of(load(f"trainings/{folder}/results.json"))[1]


def curve(name: str) -> dict[int, float]:
    """Return the training loss of a run in nats, each the mean since the one before, by step; `name` as of `load`."""
    return dict(load(name)["curve"])


def recall_groups() -> dict[tuple[int, int, str], tuple[float, int]]:
    """Return the share of right answers in % and the number of seeds, by pairs, tokens and label of the mixer."""
    found = {}
    for runs in load("recall/recall.json"):
        key = (runs[0]["pairs"], runs[0]["length"], label_of(runs[0]))
        found[key] = (100 * statistics.mean(run["accuracy"] for run in runs), len(runs))
    return found


def label_of(run: dict) -> str:
    """Return the mixer of a run, and what was said about it otherwise than by default."""
    return ", ".join([run["mixer"], *recall_results.in_words(recall_results.said(run))])


def parameters_in(folder: Path) -> int:
    """Return the number of weights in the safetensors file of a checkpoint."""
    with safe_open(folder / "model.safetensors", framework="numpy") as file:
        shapes = [file.get_slice(name).get_shape() for name in file.keys()]  # noqa: SIM118 (no mapping)
    return sum(math.prod(shape) for shape in shapes)
