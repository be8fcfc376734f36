"""The pictures that explain GMA in docs/concepts, drawn with the equations of the package itself."""

from collections.abc import Callable

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse

from gma_hf.reference import reference_responsibilities

from . import style


GMA, SOFTMAX = style.COLOURS["gma"], style.COLOURS["softmax"]
COMPONENTS = ["#0072b2", "#e69f00", "#009e73", "#cc79a7"]
TOKENS = ["the", "cat", "sat", "on", "the", "mat", "and", "slept"]


def mixture() -> tuple[torch.Tensor, torch.Tensor]:
    """Return means and variances of four components in the plane, `[1, 4, 2]`."""
    means = torch.tensor([[[-2.0, 1.2], [1.6, 1.6], [-0.6, -1.7], [2.3, -1.3]]])
    variances = torch.tensor([[[0.7, 0.5], [0.6, 0.9], [1.1, 0.4], [0.5, 0.6]]])
    return means, variances


def responsibilities(x: np.ndarray) -> np.ndarray:
    """Return the responsibilities of points `[N, 2]`, `[N, 4]`, by the definition in gma_hf/reference.py."""
    means, variances = mixture()
    x = torch.as_tensor(x, dtype=torch.float32)[None, None]
    return reference_responsibilities(x, means, variances, torch.zeros(1, 4))[0, 0].numpy()


def points(count: int, seed: int, shares: tuple[float, ...] = (0.25, 0.25, 0.25, 0.25)) -> np.ndarray:
    """Return random points near the components, `[count, 2]`, of which each component has its share."""
    generator = np.random.default_rng(seed)
    means = mixture()[0][0].numpy()
    return means[generator.choice(4, count, p=shares)] + generator.normal(0, 0.75, (count, 2))


def bare(axis: Axes, title: str) -> None:
    """Leave nothing of an axis but its title."""
    axis.set_axis_off()
    axis.set_title(title, fontsize=10, fontweight="bold", loc="left")


def idea() -> Figure:
    """Draw softmax attention, in which tokens meet each other, and GMA, in which they meet components."""
    figure, axes = style.new(1, 2, (5.0, 3.1))
    count, generator = len(TOKENS), np.random.default_rng(3)
    bare(axes[0][0], "Softmax attention: each token reads each token before it")
    bare(axes[0][1], "GMA: tokens write into K components and read from them")
    for axis in axes[0]:
        axis.set(xlim=(-1.9, count - 0.3), ylim=(-0.45, 2.5))
        for place, token in enumerate(TOKENS):
            for height, va in ((0, "top"), (2, "bottom")):
                axis.plot(place, height, "o", color="#444444", ms=5)
                axis.text(place, height + (-0.12 if height == 0 else 0.12), token, ha="center", va=va, fontsize=8)
        axis.text(-0.45, 0, "keys,\nvalues", ha="right", va="center", fontsize=8, color="#555555")
        axis.text(-0.45, 2, "queries", ha="right", va="center", fontsize=8, color="#555555")
    for query in range(count):
        for key in range(query + 1):
            axes[0][0].plot([query, key], [2, 0], color=SOFTMAX, alpha=0.35, lw=0.9)
    places = np.linspace(0.9, count - 1.9, 4)
    writes, reads = (generator.dirichlet([0.35] * 4, count) for _ in range(2))
    for k, place in enumerate(places):
        for token in range(count):
            axes[0][1].plot([token, place], [0, 1], color=COMPONENTS[k], alpha=0.08 + 0.8 * writes[token, k], lw=1.2)
            axes[0][1].plot([place, token], [1, 2], color=COMPONENTS[k], alpha=0.08 + 0.8 * reads[token, k], lw=1.2)
        axes[0][1].plot(place, 1, "s", color=COMPONENTS[k], ms=15)
        axes[0][1].text(place, 1, str(k), ha="center", va="center", color="white", fontsize=9, fontweight="bold")
    axes[0][1].text(-0.45, 1, "K components:\nthe memory", ha="right", va="center", fontsize=8, color="#555555")
    return figure


def routing() -> Figure:
    """Draw components as ellipses, tokens by their likeliest component, and the responsibilities of three tokens."""
    figure, axes = style.new(1, 2, (4.6, 3.4))
    plane, bars = axes[0]
    tokens = points(60, seed=1)
    likeliest = responsibilities(tokens).argmax(-1)
    means, variances = (value[0].numpy() for value in mixture())
    for k in range(4):
        for deviations, alpha in ((1, 0.30), (2, 0.12)):
            width, height = 2 * deviations * np.sqrt(variances[k])
            plane.add_patch(Ellipse(means[k], width, height, color=COMPONENTS[k], alpha=alpha, lw=0))
        plane.scatter(*tokens[likeliest == k].T, s=14, color=COMPONENTS[k])
        plane.text(*means[k], str(k), ha="center", va="center", fontweight="bold", fontsize=11)
    chosen = np.array([[-1.9, 1.0], [-0.1, 1.5], [0.9, -1.55]])
    for name, place in zip("abc", chosen):
        plane.plot(*place, "*", color="black", ms=11)
        plane.text(place[0] + 0.18, place[1] + 0.18, name, fontweight="bold")
    plane.set(xlabel="first dimension of queries and keys", ylabel="second")
    plane.set_title(
        "Components are Gaussians in the space of queries and keys", fontsize=9, fontweight="bold", loc="left"
    )
    left = np.zeros(3)
    for k, share in enumerate(responsibilities(chosen).T):
        bars.barh(range(3), share, left=left, color=COMPONENTS[k], height=0.55)
        for row in range(3):
            if share[row] > 0.12:
                middle = left[row] + share[row] / 2
                bars.text(middle, row, f"{k}: {share[row]:.0%}", ha="center", va="center", color="white", fontsize=8)
        left += share
    bars.set_yticks(range(3), ["token a", "token b", "token c"])
    bars.set(ylim=(2.6, -0.6), xlim=(0, 1), xlabel="responsibilities of a token, which sum to one")
    bars.set_title("A token belongs to several, more or less", fontsize=9, fontweight="bold", loc="left")
    return figure


def memory() -> Figure:
    """Draw the mass of components while a text is read, and the bytes of a state beside those of a cache."""
    figure, axes = style.new(1, 2, (4.6, 3.2))
    mass, sizes = axes[0]
    gamma = responsibilities(points(200, seed=2, shares=(0.45, 0.3, 0.17, 0.08)))
    for k, line in enumerate(gamma.cumsum(0).T):
        mass.plot(range(1, 201), line, color=COMPONENTS[k], lw=1.8)
        mass.text(204, line[-1], f"$z_{k}$", color=COMPONENTS[k], va="center")
    mass.set(xlabel="tokens read", ylabel="mass of each component", xlim=(0, 225))
    mass.set_title("Reading a token adds its responsibilities to z", fontsize=9, fontweight="bold", loc="left")
    heads, width, components, layers = 12, 64, 64, 12  # of GPT-2's size, float32
    lengths = [16, 64, 256, 1024, 4096, 16384, 65536]
    cache = {length: 2 * layers * heads * width * length * 4 / 2**20 for length in lengths}
    state = dict.fromkeys(lengths, layers * heads * components * (width + 1) * 4 / 2**20)
    style.by_tokens(
        sizes, {"softmax: cache": cache, "GMA: state": state}, "The state never grows", "MiB, 12 layers of 12 heads"
    )
    return figure


def read_exponent() -> Figure:
    """Draw how much of a read comes from a component that was rarely written to, by the read exponent."""
    figure, ((axis,),) = style.new(1, 1, (5.6, 3.3))
    posterior = np.array([0.7, 0.3])  # of the rare component and of the common one
    written = np.geomspace(1, 1000, 40)
    for exponent, look in ((0, ":"), (0.5, "--"), (1, "-")):
        shares = []
        for common in written:
            weights = posterior * np.array([1.0, common]) ** (1 - exponent)
            shares.append(100 * weights[0] / weights.sum())
        axis.plot(written, shares, look, color=GMA, lw=2)
        name = {0: "p = 0: the paper", 0.5: "p = 0.5", 1: "p = 1: mean of each component"}[exponent]
        axis.annotate(name, (written[-1], shares[-1]), (1150, shares[-1] + 1), fontsize=8, va="center", color=GMA)
    axis.set(
        xscale="log", xlabel="tokens written into the common component, for each into the rare one", xlim=(1, 30000)
    )
    axis.set_xticks([1, 10, 100, 1000], ["1", "10", "100", "1000"])
    axis.set(ylabel="% of the read from the rare component", ylim=(0, 80))
    axis.set_title("With p = 1 the rare is not drowned by the common", fontsize=10, fontweight="bold", loc="left")
    return figure


PLOTS: dict[str, Callable[[], Figure]] = {
    "idea": idea,
    "routing": routing,
    "memory": memory,
    "read_exponent": read_exponent,
}
