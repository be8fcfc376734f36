"""What `recall.py` gives: all runs of its folder as a table, as JSON and as a plot."""

import json
import statistics
from itertools import groupby
from pathlib import Path

from matplotlib.figure import Figure

from gma_hf.files import whole_file

from . import style
from .recall_contenders import CONTENDERS


ORDER = list(CONTENDERS)


def said(run: dict) -> dict:
    """Return what was said about a run otherwise than by default, the points where it was asked left out."""
    settings = dict(run["settings"])
    return settings.pop("fields", {}) | {name: value for name, value in settings.items() if name != "evaluate"}


def in_words(settings: dict) -> list[str]:
    """Return settings as they stand in a table."""
    return [f"{name} = {value}" for name, value in settings.items()]


def in_common(runs: list[dict]) -> dict:
    """Return what was said about all runs alike."""
    return {name: value for name, value in said(runs[0]).items() if all(said(run).get(name) == value for run in runs)}


def finished(folder: Path) -> list[list[dict]]:
    """
    Return the runs that `folder` holds, those of one mixer, task and number of steps together, by seed: at the rate
    that was best with the most seeds. The `label` of a run is its mixer, and what was not said about all runs.
    """
    # What begins with a dot is a file that another process is writing
    runs = [json.loads(path.read_text(encoding="utf-8")) for path in folder.glob("[!.]*.json")]
    common = in_common(runs)
    for run in runs:
        own = {name: value for name, value in said(run).items() if name not in common}
        run["label"] = ", ".join([run["mixer"], *in_words(own)])

    def what(run: dict) -> tuple:
        task = (run["length"], run["pairs"], run["steps"], ORDER.index(run["mixer"]))
        return *task, run["label"], json.dumps(run["settings"], sort_keys=True)

    groups = []
    runs.sort(key=lambda run: (*what(run), run["learning_rate"], run["seed"]))
    for _, group in groupby(runs, key=what):
        rates = [list(of_rate) for _, of_rate in groupby(group, key=lambda run: run["learning_rate"])]
        most = max(len(of_rate) for of_rate in rates)
        groups.append(max((of_rate for of_rate in rates if len(of_rate) == most), key=accuracy))
    return groups


def accuracy(runs: list[dict], place: int = 0) -> float:
    """Return the mean share of right answers at the n-th point where the runs were asked; 0: where they trained."""
    return statistics.mean(run["evaluation"][place]["accuracy"] for run in runs)


def table(groups: list[list[dict]]) -> str:
    """Return a table in Markdown, with mean and standard deviation over the seeds."""
    common = in_common([run for runs in groups for run in runs])
    lines = [
        *(["All runs: " + ", ".join(in_words(common)) + ".", ""] if common else []),
        "| pairs | tokens | mixer | right, % | elsewhere (pairs x tokens: right, %) | seeds | learning rate | steps | "
        "state of a layer | parameters | ms per step |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for runs in groups:
        first = runs[0]
        shares = [100 * run["accuracy"] for run in runs]
        spread = f" ± {statistics.stdev(shares):.1f}" if len(runs) > 1 else ""
        elsewhere = ", ".join(
            f"{point['pairs']}x{point['length']}: {100 * accuracy(runs, place):.1f}"
            for place, point in enumerate(first["evaluation"])
            if place
        )
        milliseconds = 1000 * statistics.mean(run["seconds"] / run["steps"] for run in runs)
        lines.append(
            f"| {first['pairs']} | {first['length']} | {first['label']} | {statistics.mean(shares):.1f}{spread} | "
            f"{elsewhere} | {len(runs)} | {first['learning_rate']:g} | {first['steps']} | {first['state']:,} | "
            f"{first['parameters']:,} | {milliseconds:.0f} |"
        )
    return "\n".join(lines)


def draw(groups: list[list[dict]]) -> Figure:
    """Draw the share of right answers as bars: a panel for each task, a row for each contender."""
    tasks = sorted({(runs[0]["length"], runs[0]["pairs"]) for runs in groups})
    names = list(dict.fromkeys(f"{runs[0]['label']}, {runs[0]['steps']:,} steps" for runs in groups))
    width = 3.2 + 0.08 * max(map(len, names)) / len(tasks)  # the first panel has the names beside it
    figure, axes = style.new(1, len(tasks), (width, 1.2 + 0.25 * len(names)))
    for axis, task in zip(axes[0], tasks):
        for runs in groups:
            if (runs[0]["length"], runs[0]["pairs"]) == task:
                place, share = names.index(f"{runs[0]['label']}, {runs[0]['steps']:,} steps"), 100 * accuracy(runs)
                axis.barh(place, share, color=style.colour_of(runs[0]["mixer"]), height=0.65)
                axis.text(min(share + 2, 88), place, f"{share:.0f}", va="center", fontsize=8)
        axis.set_yticks(range(len(names)), names if axis is axes[0][0] else [""] * len(names))
        axis.set(ylim=(len(names) - 0.4, -0.6), xlim=(0, 100), xlabel="right answers, %")
        axis.set_title(f"{task[1]} pairs in {task[0]:,} tokens", fontsize=10, fontweight="bold", loc="left")
    return figure


def write(folder: Path) -> None:
    """Print the table, and write recall.md, recall.json and recall.png; other processes may do so at the same time."""
    groups = finished(folder / "runs")
    text = table(groups)
    print(text)
    with whole_file(folder / "recall.md") as unfinished:
        unfinished.write_text(text + "\n", encoding="utf-8")
    with whole_file(folder / "recall.json") as unfinished:
        unfinished.write_text(json.dumps(groups, indent=1) + "\n", encoding="utf-8")
    with whole_file(folder / "recall.png") as unfinished:
        style.save(draw(groups), unfinished)
