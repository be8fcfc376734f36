"""What `recall.py` gives: all runs of its folder as a table, as JSON and as a plot."""

import json
import statistics
from itertools import groupby
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gma_hf.files import whole_file

from .recall_contenders import CONTENDERS


ORDER = list(CONTENDERS)
MARKERS = "osv^D"  # ten colours with each


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


def contender(runs: list[dict]) -> str:
    """Return what a line of the plot is of."""
    return f"{runs[0]['label']}, {runs[0]['steps']:,} steps"


def draw(groups: list[list[dict]]) -> Figure:
    """Draw the share of right answers: above by pairs, below by step of the most pairs; a column for each length."""
    lengths = sorted({runs[0]["length"] for runs in groups})
    names = dict.fromkeys(contender(runs) for runs in groups)
    styles = {
        name: {"label": name, "color": f"C{number % 10}", "marker": MARKERS[number // 10 % len(MARKERS)]}
        for number, name in enumerate(names)
    }
    width = 1 + 5.5 * len(lengths)
    columns = max(1, int(14 * width / (8 + max(map(len, names)))))  # of the legend
    plot = Figure(figsize=(width, 8 + len(names) / columns / 6), layout="constrained")
    axes = plot.subplots(2, len(lengths), squeeze=False)
    for (upper, lower), length in zip(axes.T, lengths):
        of_length = [runs for runs in groups if runs[0]["length"] == length]
        by_pairs(upper, of_length, styles)
        upper.set(title=f"{length:,} tokens", xlabel="key-value pairs")
        most = max(runs[0]["pairs"] for runs in of_length)
        by_step(lower, [runs for runs in of_length if runs[0]["pairs"] == most], styles)
        lower.set(title=f"{most} pairs in {length:,} tokens", xlabel="training steps")
        for axis in (upper, lower):
            axis.set(ylabel="right, %", ylim=(-1, 101))
            axis.grid(True, alpha=0.3)
    lines = {line.get_label(): line for axis in axes[0] for line in axis.lines}
    plot.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=columns, fontsize=7)
    return plot


def by_pairs(axis: Axes, groups: list[list[dict]], styles: dict[str, dict]) -> None:
    """Draw the share of right answers by the number of pairs, a line for each contender."""
    points = {}
    for runs in groups:
        points.setdefault(contender(runs), []).append((runs[0]["pairs"], 100 * accuracy(runs)))
    for name, line in points.items():
        axis.plot(*zip(*sorted(line)), **styles[name])
    ticks = sorted({pairs for line in points.values() for pairs, _ in line})
    axis.set_xscale("log", base=2)
    axis.set_xticks(ticks, [str(pairs) for pairs in ticks])


def by_step(axis: Axes, groups: list[list[dict]], styles: dict[str, dict]) -> None:
    """Draw the share of right answers while training, mean over the seeds, a line for each contender."""
    for runs in groups:
        steps = [point["step"] for point in runs[0]["curve"]]
        of_runs = ([100 * point["accuracy"] for point in run["curve"]] for run in runs)
        axis.plot(steps, [statistics.mean(values) for values in zip(*of_runs)], **styles[contender(runs)])


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
        draw(groups).savefig(unfinished, dpi=110)
