"""The plots of results in README.md and docs/, each drawn from the JSON of a run."""

import statistics
from collections.abc import Callable

from matplotlib.figure import Figure

from . import style
from .figure_data import load, recall_groups, training_scores


TIME, MEMORY = "forward + backward", "peak memory, forward + backward"


def without(figures: dict[str, dict], *names: str) -> dict[str, dict]:
    """Return the figures of all methods but those named, and none that is empty."""
    return {name: line for name, line in figures.items() if line and name not in names}


def two_panels(left: tuple, right: tuple) -> Figure:
    """Draw two panels by tokens; each is figures, title and unit."""
    figure, axes = style.new(1, 2, (4.9, 3.5))
    for axis, panel in zip(axes[0], (left, right)):
        style.by_tokens(axis, *panel)
    return figure


def mixer_cpu() -> Figure:
    """Draw time and memory of the mixers on a CPU."""
    report = load("mixer_cpu.json")
    left_out = ("GMA by cumsum", "Mamba", "products of GMA")
    return two_panels(
        (without(report[TIME], *left_out), "From 1k tokens on, GMA takes less time than softmax", "milliseconds"),
        (without(report[MEMORY], "GMA by cumsum", "Mamba"), "Memory of all grows linearly", "MiB at the peak"),
    )


def mixer_cuda() -> Figure:
    """Draw time and memory of the mixers on a GPU."""
    report = load("mixer_cuda.json")
    left_out, longest = ("GMA by cumsum", "Mamba"), "32768"  # the last at which linear attention was run
    memory = without(report[MEMORY], *left_out)
    memory = {name: {n: value for n, value in line.items() if int(n) <= int(longest)} for name, line in memory.items()}
    times = memory["GMA"][longest] / memory["FlashAttention"][longest]
    return two_panels(
        (without(report[TIME], *left_out), "On a GPU, GMA is ahead from 8k tokens on", "milliseconds"),
        (memory, f"and takes {times:.1f} times FlashAttention's memory", "MiB at the peak"),
    )


def decode(device: str, message: str) -> Figure:
    """Draw time per token and bytes that are kept, by the length of the context."""
    report = load(f"decode_{device}.json")
    kept = without(report["state or key-value cache"], "GPT-2, preallocated cache")
    return two_panels(
        (without(report["time per token"]), message, "milliseconds per token"),
        (kept, "GMA's state keeps its size", "MiB kept of the context"),
    )


def model_cpu() -> Figure:
    """Draw training step and prefill of a whole network on a CPU."""
    ratio = load("model_cpu.json")["ratios"]["training step"]["2048"]
    message = f"At 2k tokens softmax takes {ratio:.1f} times as long for a step"
    return whole_network("cpu", ("GMA by cumsum", "Mamba"), message)


def model_cuda() -> Figure:
    """Draw training step and prefill of a whole network on a GPU."""
    return whole_network("cuda", (), "On a GPU, plain GMA is ahead at 16k tokens")


def whole_network(device: str, left_out: tuple[str, ...], message: str) -> Figure:
    """Draw training step and prefill of a whole network."""
    report = load(f"model_{device}.json")
    return two_panels(
        (without(report["training step"], *left_out), message, "milliseconds"),
        (without(report["prefill"], *left_out), "Reading a prompt (prefill)", "milliseconds"),
    )


def encoder_cpu() -> Figure:
    """Draw time and memory of an encoder and of its conversions."""
    report = load("encoder_cpu.json")
    source, converted = (report["encoding"][name]["8192"] for name in ("source (softmax)", "converted, all layers"))
    return two_panels(
        (
            report["encoding"],
            f"Converted, an encoder reads 8k tokens {source / converted:.0f} times as fast",
            "milliseconds",
        ),
        (report["peak memory"], "in about the same memory", "MiB at the peak, weights included"),
    )


def quality() -> Figure:
    """Draw the perplexities of all mixers under one budget."""
    rows = list(training_scores("wikitext2").items())
    best = {kind: min(statistics.mean(v) for n, v in rows if n.startswith(kind)) for kind in ("gma", "linear")}
    message = f"The best GMA is {best['gma'] / best['linear'] - 1:.0%} behind linear attention, and level with softmax"
    return style.scores(message, rows, "perplexity")


def recall() -> Figure:
    """Draw how many key-value pairs each mixer recalls, a panel for each task."""
    shown = {
        "gma-30-recommended": "GMA, recommended, K = 30",
        "gma-32": "GMA, the paper's read",
        "delta": "delta rule",
        "gated-delta": "gated delta rule",
        "linear": "linear attention",
        "gla": "gated linear attention",
        "mamba": "Mamba",
        "softmax": "softmax (its cache grows)",
    }
    groups, tasks = recall_groups(), ((8, 64), (16, 128), (32, 256))
    figure, axes = style.new(1, 3, (3.5, 3.3))
    for axis, (pairs, length) in zip(axes[0], tasks):
        for place, mixer in enumerate(shown):
            share = groups.get((pairs, length, mixer))
            if share is not None:
                axis.barh(place, share[0], color=style.colour_of(mixer), height=0.65)
                inside = share[0] > 80
                axis.text(
                    share[0] + (-2 if inside else 2),
                    place,
                    f"{share[0]:.0f}",
                    ha="right" if inside else "left",
                    va="center",
                    fontsize=8,
                    color="white" if inside else "black",
                )
            else:
                axis.text(2, place, "not run", va="center", fontsize=7, color="#777777")
        axis.set_yticks(range(len(shown)), shown.values() if axis is axes[0][0] else [""] * len(shown))
        axis.set(ylim=(len(shown) - 0.4, -0.6), xlim=(0, 105), xlabel="right answers, %")
        axis.set_title(f"{pairs} pairs in {length} tokens", fontsize=10, fontweight="bold", loc="left")
    figure.suptitle("Started alike, GMA and others recall what was written once", fontweight="bold", fontsize=11)
    return figure


def distillation() -> Figure:
    """Draw what each stage of the distillation of all-MiniLM-L6-v2 recovers, by layer."""
    errors = load("../../model_cards/gma-minilm-l6/distillation.json")["layer_errors"]
    figure, ((axis,),) = style.new(1, 1, (5.2, 3.2))
    for name, values in errors.items():
        dashed = "-" if "stage" in name else "--"
        axis.plot(range(len(values)), values, dashed, marker="o", color=style.colour_of("GMA"))
        axis.annotate(name, (len(values) - 1, values[-1]), (len(values) - 0.85, values[-1]), va="center", fontsize=8)
    axis.set(xlabel="layer", ylabel="error, over the layer's variance", ylim=(0, None), xlim=(-0.2, 6.8))
    axis.set_xticks(range(6))
    axis.set_title("Stage 1 brings each layer near its source", fontsize=10, fontweight="bold", loc="left")
    return figure


PLOTS: dict[str, Callable[[], Figure]] = {
    "mixer_cpu": mixer_cpu,
    "mixer_cuda": mixer_cuda,
    "decode_cpu": lambda: decode("cpu", "GMA takes as long for a token after 100k as after 1k"),
    "decode_cuda": lambda: decode("cuda", "On a GPU it is constant too, but not ahead"),
    "model_cpu": model_cpu,
    "model_cuda": model_cuda,
    "encoder_cpu": encoder_cpu,
    "quality": quality,
    "recall": recall,
    "distillation": distillation,
}
