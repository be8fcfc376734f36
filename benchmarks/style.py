"""
How every plot of this project looks: one colour for each method, ticks such as 512, 2k and 16k, names at the ends of
the lines instead of a legend.

The colours are those of Okabe and Ito, which colour-blind people tell apart.
"""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator
from PIL import Image


# A method is found by the beginning of its name; the first that fits is taken
COLOURS = {
    "gma by cumsum": "#56b4e9",
    "products of gma": "#56b4e9",
    "gma": "#0072b2",
    "converted": "#0072b2",
    "flashattention": "#e69f00",
    "softmax": "#d55e00",
    "source": "#d55e00",
    "gpt-2": "#d55e00",
    "hybrid": "#a6761d",
    "linear": "#009e73",
    "mamba": "#cc79a7",
    "performer": "#666666",
    "gla": "#666666",
    "delta": "#e69f00",
    "gated-delta": "#e69f00",
}
OTHER = "#000000"
# What is a second form of a method has its colour and another line
DASHED = ("read exponent", "preallocated", "every second", "conv + gate", "gated-delta")
FONT = {"font.size": 9, "axes.titlesize": 10, "axes.titleweight": "bold", "axes.titlelocation": "left"}
LOOKS = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#666666",
    "figure.facecolor": "white",
}
DPI = 150


def colour_of(method: str) -> str:
    """Return the colour of a method by its name in a benchmark, such as `"GMA, read exponent"`."""
    return next((colour for start, colour in COLOURS.items() if method.lower().startswith(start)), OTHER)


def line_of(method: str) -> str:
    """Return the line style of a method: dashed for what is a second form of it."""
    return "--" if any(word in method for word in DASHED) else "-"


def in_words(number: float, _: object = None) -> str:
    """Return a count as a tick shows it: 512, 2k, 16k, 1M; powers of two by 1,024."""
    for size, unit in ((1_000_000, "M"), (1_000, "k")):
        if number >= size:
            scaled = number / (1024 ** (2 if unit == "M" else 1) if number % 1024 == 0 else size)
            return f"{scaled:.3g}{unit}"
    return f"{number:g}"


def new(rows: int, columns: int, size: tuple[float, float]) -> tuple[Figure, np.ndarray]:
    """Return a figure with panels `[rows, columns]`, each of `size` inches."""
    with matplotlib.rc_context(FONT | LOOKS):
        figure = Figure(figsize=(size[0] * columns, size[1] * rows), layout="constrained")
        figure.get_layout_engine().set(w_pad=0.12, h_pad=0.08)
        return figure, figure.subplots(rows, columns, squeeze=False)


def by_tokens(axis: Axes, figures: dict[str, dict], title: str, unit: str) -> None:
    """
    Draw figures by number of tokens, a line for each method, both axes logarithmic.

    Args:
        figures: by method and number of tokens (a string as JSON has it, or a number).
        title: the message of the panel.
        unit: what the figures are in.
    """
    lengths = sorted({int(length) for line in figures.values() for length in line})
    ends = []
    for method, line in figures.items():
        points = sorted((int(length), value) for length, value in line.items())
        if points:
            look = {"color": colour_of(method), "ls": line_of(method), "marker": "o", "ms": 3.5, "lw": 1.6}
            axis.plot(*zip(*points), label=method, **look)
            ends.append((*points[-1], method))
    axis.set(xscale="log", yscale="log", xlabel="tokens", ylabel=unit)
    axis.margins(y=0.12)
    axis.set_title(title, fontsize=10, fontweight="bold", loc="left")
    shown = lengths if len(lengths) <= 5 else lengths[:: 2 if len(lengths) < 10 else 3]
    axis.set_xticks(shown, [in_words(length) for length in shown])
    axis.xaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_major_locator(LogLocator(numticks=6))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
    axis.yaxis.set_minor_formatter(NullFormatter())
    axis.grid(True, which="major", alpha=0.25)
    # Room for the names of the lines, one length alone included
    axis.set_xlim(lengths[0] * 0.9, lengths[-1] * max(2, (lengths[-1] / lengths[0]) ** 0.62))
    name_lines(axis, ends)


def name_lines(axis: Axes, ends: list[tuple[float, float, str]], gap: float = 0.062) -> None:
    """
    Write the name of each line beside its last point, and apart from the other names.

    Args:
        ends: x, y and name of each, on a logarithmic y axis.
        gap: least distance of two names whose lines end near each other, in heights of the panel.
    """
    low, high = (np.log(limit) for limit in axis.get_ylim())
    places = {name: (np.log(y) - low) / (high - low) for _, y, name in ends}
    order = sorted(ends, key=lambda end: places[end[2]])
    for _ in range(200):  # push names apart that are too near, within the panel
        for (_, _, below), (_, _, above) in zip(order, order[1:]):
            if (lack := gap - (places[above] - places[below])) > 1e-6:
                places[below], places[above] = places[below] - lack / 2, places[above] + lack / 2
        places = {name: min(max(place, 0.03), 0.97) for name, place in places.items()}
    for x, y, name in ends:
        place = np.exp(low + places[name] * (high - low))
        axis.annotate(
            name,
            (x, y),
            (x * 1.12, place),
            color=colour_of(name),
            fontsize=8,
            va="center",
            annotation_clip=False,
        )


def scores(figure_title: str, rows: list[tuple[str, list[float]]], label: str) -> Figure:
    """
    Draw a score of each method as a row: its mean over the seeds, and a dot for each seed.

    Args:
        figure_title: the message.
        rows: name and scores of each method, the best first.
        label: what the score is.
    """
    figure, ((axis,),) = new(1, 1, (7, 0.9 + 0.27 * len(rows)))
    for place, (method, values) in enumerate(rows):
        colour = colour_of(method)
        axis.plot(values, [place] * len(values), "o", color=colour, ms=4, alpha=0.45)
        axis.plot(np.mean(values), place, "|", color=colour, ms=14, mew=2.5)
    axis.set_yticks(range(len(rows)), [method for method, _ in rows])
    for name, (method, _) in zip(axis.get_yticklabels(), rows):
        name.set_color(colour_of(method))
    axis.set(ylim=(len(rows) - 0.4, -0.6), xlabel=f"{label}; bar: mean, dots: seeds")
    figure.suptitle(figure_title, fontsize=10, fontweight="bold", x=0.01, ha="left")
    axis.grid(True, axis="x", alpha=0.25)
    return figure


def fingerprint(figure: Figure) -> str:
    """Return a hash of what a figure shows: titles, labels, and the data of lines, bars, dots and images."""
    shown = [figure.get_suptitle()]
    for axis in figure.axes:
        shown += [axis.get_title(loc="left"), axis.get_xlabel(), axis.get_ylabel()]
        shown += [text.get_text() for text in [*axis.texts, *axis.get_xticklabels(), *axis.get_yticklabels()]]
        shown += [_rounded(line.get_xydata()) for line in axis.lines]
        bars = (bar for bar in axis.patches if isinstance(bar, Rectangle))
        shown += [_rounded([bar.get_x(), bar.get_height(), bar.get_width()]) for bar in bars]
        shown += [_rounded(dots.get_offsets()) for dots in axis.collections if isinstance(dots, PathCollection)]
        shown += [_rounded(image.get_array()) for image in axis.images]
    return hashlib.sha256(json.dumps(shown).encode()).hexdigest()


def _rounded(values: Iterable) -> list:
    """Return numbers to four significant digits, so that another machine finds the same."""
    return [f"{value:.4g}" for value in np.ravel(np.asarray(values, dtype=float)) + 0.0]


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG with its fingerprint in it."""
    figure.savefig(path, format="png", dpi=DPI, metadata={"Description": fingerprint(figure), "Software": None})


def fingerprint_in(path: Path) -> str | None:
    """Return the fingerprint that `save` has left in a PNG file, or None."""
    with Image.open(path) as image:
        return image.info.get("Description")
