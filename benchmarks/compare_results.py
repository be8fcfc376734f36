"""What a comparison of mixers gives: the runs in its folder as a table and as a plot."""

import json
import math
import statistics
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path

from matplotlib.figure import Figure

from . import style
from .compare_cost import Costs


Results = dict[str, list[dict]]  # the runs of each mixer, by seed


def finished(folder: Path, steps: int, mixers: Iterable[str]) -> Results:
    """
    Return the runs of so many steps that `folder` holds, of each mixer at its best rate if it was trained at several:
    the best of those with the most seeds.
    """
    runs = [json.loads(path.read_text(encoding="utf-8")) for path in folder.glob("*.json")]
    results = {}
    for mixer in mixers:
        of_mixer = [run for run in runs if (run["mixer"], run["steps"]) == (mixer, steps)]
        of_mixer.sort(key=lambda run: (run["learning_rate"], run["seed"]))
        rates = [list(group) for _, group in groupby(of_mixer, key=lambda run: run["learning_rate"])]
        if rates:
            most = max(len(group) for group in rates)
            complete = [group for group in rates if len(group) == most]
            results[mixer] = min(complete, key=lambda group: statistics.mean(run["loss"] for run in group))
    return results


def scores_of(results: Results) -> tuple[str, dict[str, list[float]]]:
    """Return what the score is, and the scores of each mixer by seed, the best mixer first."""
    is_accuracy = "accuracy" in next(iter(results.values()))[0]
    scores = {
        mixer: [100 * run["accuracy"] if is_accuracy else math.exp(run["loss"]) for run in runs]
        for mixer, runs in results.items()
    }
    ranked = sorted(scores, key=lambda mixer: statistics.mean(scores[mixer]), reverse=is_accuracy)
    return "accuracy, %" if is_accuracy else "perplexity", {mixer: scores[mixer] for mixer in ranked}


def table(results: Results, costs: Costs) -> str:
    """
    Return a table in Markdown, best first: perplexity or accuracy, as mean and standard deviation over the seeds, and
    the costs.
    """
    title, scores = scores_of(results)
    lines = [
        f"| mixer | {title} | seeds | loss | learning rate | parameters | ms per step | MiB of a step |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for mixer, values in scores.items():
        runs = results[mixer]
        spread = f" ± {statistics.stdev(values):.2f}" if len(runs) > 1 else ""
        loss = statistics.mean(run["loss"] for run in runs)
        milliseconds, memory = costs[mixer]["milliseconds"], costs[mixer]["mebibytes"]
        lines.append(
            f"| {mixer} | {statistics.mean(values):.2f}{spread} | {len(runs)} | {loss:.4f} | "
            f"{runs[0]['learning_rate']:g} | {runs[0]['parameters']:,} | {milliseconds:.0f} | {memory:.0f} |"
        )
    return "\n".join(lines)


def draw(results: Results) -> Figure:
    """Draw the score of each mixer, the best first, with a dot for each seed."""
    title, scores = scores_of(results)
    return style.scores(f"{title} of {len(scores)} mixers under one budget", list(scores.items()), title)


def write(results: Results, costs: Costs, folder: Path) -> None:
    """Print the table, and write table.md, results.json, costs.json and scores.png."""
    text = table(results, costs)
    print(text)
    (folder / "table.md").write_text(text + "\n", encoding="utf-8")
    (folder / "costs.json").write_text(json.dumps(costs, indent=1) + "\n", encoding="utf-8")
    (folder / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    style.save(draw(results), folder / "scores.png")
