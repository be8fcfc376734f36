"""The tables of an analysis as plots for a paper."""

import textwrap

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from .tables import Analysis


STYLES = {"query": "--", "key": "-"}


def usage_plot(analysis: Analysis) -> Figure:
    """Draw the mass of the components of each head, sorted, one panel per layer; keys solid, queries dashed."""
    layers = analysis.counts.layer_indices
    figure = Figure(figsize=(3.2 * len(layers), 3), layout="constrained")
    axes = figure.subplots(1, len(layers), squeeze=False, sharey=True)[0]
    colours = colormaps["viridis"].resampled(analysis.counts.heads)
    for axis, layer in zip(axes, layers):
        of_layer = analysis.components[analysis.components["layer"] == layer]
        for (side, head), rows in of_layer.groupby(["side", "head"], sort=False):
            shares = np.sort(rows["mass"].to_numpy())[::-1]
            axis.plot(np.arange(1, len(shares) + 1), shares, color=colours(head), lw=1, ls=STYLES[side])
        axis.set(title=f"layer {layer}", xlabel="components, largest first", yscale="log")
    axes[0].set_ylabel("share of the responsibilities")
    of_heads = [Line2D([], [], color=colours(head), label=f"head {head}") for head in range(analysis.counts.heads)]
    of_sides = [Line2D([], [], color="black", ls=style, label=side) for side, style in STYLES.items()]
    figure.legend(handles=of_heads + of_sides, loc="outside right upper", fontsize=6)
    return figure


def head_plot(table: pd.DataFrame, value: str, label: str) -> Figure:
    """Draw a figure of each layer and head as two maps, of queries and of keys; `table` has one row for each."""
    sides = list(table["side"].unique())
    figure = Figure(figsize=(4 * len(sides), 3.4), layout="constrained")
    axes = figure.subplots(1, len(sides), squeeze=False)[0]
    for axis, side in zip(axes, sides):
        grid = table[table["side"] == side].pivot(index="layer", columns="head", values=value)
        image = axis.imshow(
            grid, aspect="auto", cmap="viridis", vmin=min(0, table[value].min()), vmax=table[value].max()
        )
        axis.set(title=side, xlabel="head", ylabel="layer")
        axis.set_xticks(range(grid.shape[1]), grid.columns)
        axis.set_yticks(range(grid.shape[0]), grid.index)
    figure.colorbar(image, ax=list(axes)).set_label(textwrap.fill(label, 34), fontsize=8)
    return figure


def plots(analysis: Analysis) -> dict[str, Figure]:
    """Return all plots by name."""
    figures = {
        "usage": usage_plot(analysis),
        "entropy": head_plot(analysis.heads, "token_entropy", "entropy of a token's responsibilities (nats)"),
        "effective_components": head_plot(analysis.heads, "effective_components", "effective components"),
    }
    for labelling, table in analysis.alignment.groupby("labelling", sort=False):
        name = f"alignment_{labelling.replace(' ', '_')}"
        figures[name] = head_plot(table, "ami", f"adjusted mutual information with {labelling}")
    return figures
