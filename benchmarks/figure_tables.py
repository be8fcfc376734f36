"""The tables of README.md and docs/ in Markdown, each made from the JSON of a run."""

import math
import statistics
from collections.abc import Callable, Iterable
from functools import partial

from huggingface_hub import ModelCard

from . import compare_results, recall_results
from .figure_data import RESULTS, ROOT, curve, load, parameters_in, recall_groups, training_scores


Row = Iterable[str]
PEAK = "GMA's peak memory over the bytes of queries, keys and values"
CARDS = {  # the order in which the checkpoints are shown, and what each is for
    "gma-shakespeare": ("language model of characters, to try the library with", "tiny Shakespeare"),
    "gma-wikitext2": ("language model of English with a BPE of 8,000", "WikiText-2"),
    "gma-imdb-bytes": ("praise or not, of film reviews as bytes", "IMDB"),
    "gma-minilm-l6": ("sentence embeddings, converted from all-MiniLM-L6-v2", "enwik8, as plain text"),
    "gma-minilm-l6-4k": ("the same of texts of up to 4,096 tokens", "long articles of the same"),
}

RECALLERS = {  # the mixers of recall.py in words
    "gma-30-recommended": "GMA, recommended, K = 30",
    "softmax": "softmax",
    "linear": "linear (elu + 1)",
    "linear-unnormalized": "the same, not normalised",
    "gla": "gated linear",
    "delta": "delta rule",
    "gated-delta": "gated delta rule",
    "mamba": "Mamba",
    "gma-32-p1": "GMA, read exponent 1, K = 32",
    "gma-32": "GMA, the paper's read, K = 32",
}


def table(header: Row, rows: Iterable[Row]) -> str:
    """Return a table in Markdown."""
    header = list(header)
    lines = [header, ["---"] * len(header), *(list(row) for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def number(value: float | None, digits: int = 3) -> str:
    """Return a figure with three digits or all of those before the point, as 0.83, 34.3 or 2,245; "" for none."""
    if value is None:
        return ""
    if value >= 10 ** (digits - 1):
        return f"{value:,.0f}"
    return f"{value:#.{digits}g}".rstrip(".")


def by_length(rows: dict[str, dict[str, float]], lengths: Iterable[int], first: str = "tokens") -> str:
    """Return a table with a column for each length."""
    lengths = list(lengths)
    body = ([name, *(number(line.get(str(length))) for length in lengths)] for name, line in rows.items())
    return table([first, *(f"{length:,}" for length in lengths)], body)


def mixer(file: str, lengths: tuple[int, ...]) -> str:
    """Return the ratios of the mixers' benchmark."""
    ratios = load(file)["ratios"]
    over, memory = ratios["SDPA's time over GMA's"], ratios[PEAK]["forward + backward"]
    rows = {f"SDPA's time over GMA's, {what}": line for what, line in over.items()} | {PEAK: memory}
    return by_length(rows, lengths)


def mixer_cuda() -> str:
    """Return ratios to both softmax kernels on a GPU."""
    report, rows = load("mixer_cuda.json"), {}
    for contender in ("FlashAttention", "SDPA"):
        for what in ("forward + backward", "forward"):
            rows[f"{contender}'s time over GMA's, {what}"] = report["ratios"][f"{contender}'s time over GMA's"][what]
    rows["GMA, forward + backward, ms"] = report["forward + backward"]["GMA"]
    rows[PEAK] = report["ratios"][PEAK]["forward + backward"]
    return by_length(rows, [1024, 2048, 4096, 8192, 16384, 32768, 65536])


def decode(device: str) -> str:
    """Return time per token and what is kept, by context."""
    report = load(f"decode_{device}.json")
    rows = {f"{name}, ms per token": line for name, line in report["time per token"].items()}
    for name in ("GPT-2", "GPT-2, preallocated cache"):
        rows[f"{name}: time over GMA's in the same turns"] = report["ratios"][
            f"{name}: time per token over GMA's in the same turns"
        ]
    kept = report["state or key-value cache"]
    rows |= {"GMA, MiB of state": kept["GMA"], "GPT-2, MiB of cache": kept["GPT-2"]}
    return by_length(rows, [1000, 4096, 16384, 32768, 65536, 100000], "tokens read before")


def model(device: str, lengths: tuple[int, ...]) -> str:
    """Return training step and prefill of a whole network, in milliseconds."""
    report = load(f"model_{device}.json")
    rows = {}
    for what in ("training step", "prefill"):
        rows |= {f"{what}, {name}, ms": line for name, line in report[what].items() if line}
    return by_length(rows, lengths)


def encoder() -> str:
    """Return time and memory of an encoder and its conversions."""
    report = load("encoder_cpu.json")
    rows = {f"{name}, ms": line for name, line in report["encoding"].items()}
    rows |= {f"{name}, MiB at the peak": line for name, line in report["peak memory"].items()}
    return by_length(rows, [512, 1024, 2048, 4096, 8192])


def chunk_size() -> str:
    """Return the time of the mixer by the size of its chunks."""
    report = load("chunk_size_cpu.json")
    rows = {f"{name}, ms": line for name, line in report["forward + backward"].items()}
    return by_length(rows, [1024, 4096, 16384])


def read_exponent() -> str:
    """Return what a learned read exponent costs."""
    report = load("read_exponent/mixer_cpu.json")
    rows = {}
    for what in ("forward + backward", "forward", "peak memory, forward + backward"):
        with_exponent, without = report[what]["GMA, read exponent"], report[what]["GMA"]
        rows[f"with the exponent over without, {what}"] = {n: with_exponent[n] / without[n] for n in without}
    return by_length(rows, [1024, 4096, 16384])


def again() -> str:
    """Return three runs in turns of older code and of newer, on the machine of mixer_cpu.json."""
    rows = {}
    for name, code in (("before", "older code"), ("again", "newer code")):
        for run in (1, 2, 3):
            ratios = load(f"mixer_{name}_{run}.json")["ratios"]["SDPA's time over GMA's"]["forward + backward"]
            rows[f"{code}, run {run}"] = ratios
    return by_length(rows, [512, 1024, 4096, 8192])


def comparison(folder: str) -> str:
    """Return a comparison of mixers under one budget, as `compare.py` writes it."""
    results = load(f"trainings/{folder}/results.json")
    return compare_results.table(results, load(f"trainings/{folder}/costs.json"))


def routing_start() -> str:
    """Return how the start of the routing changes what is learned."""
    names = ("loss", "entropy_before", "entropy_after", "components_in_use")
    header = ["start", "loss, nats", "entropy at step 0", "entropy after", "components in use after"]
    rows = []
    for start, found in load("trainings/routing_start.json").items():
        rows.append([start, *("" if name not in found else f"{found[name]:.3f}" for name in names)])
    return table(header, rows)


def recall() -> str:
    """Return the share of right answers in %, a row for each task and a column for each mixer, in words."""
    groups = {key: share for key, share in recall_groups().items() if "," not in key[2]}
    shown = [name for name in RECALLERS if any(name == mixer_name for *_, mixer_name in groups)]
    states = {runs[0]["mixer"]: runs[0]["state"] for runs in load("recall/recall.json")}
    kept = ("grows" if name == "softmax" else f"{states[name]:,}" for name in shown)
    rows = [["numbers kept by a layer", *kept]]
    for length, pairs in sorted({(length, pairs) for pairs, length, _ in groups}):
        found = (groups.get((pairs, length, name)) for name in shown)
        cells = ("" if one is None else f"{one[0]:.1f}" + (f" ({one[1]})" if one[1] > 1 else "") for one in found)
        rows.append([f"{pairs} pairs in {length} tokens", *cells])
    return table(["", *(RECALLERS[name] for name in shown)], rows)


def needle() -> str:
    """Return the share of right answers in % by the length of the text, of networks trained at 512 tokens."""
    groups = [runs for runs in load("recall/recall.json") if runs[0]["settings"].get("task") == "needle"]
    rows = {}
    for runs in groups:
        answers = [{str(at["length"]): 100 * at["accuracy"] for at in run["evaluation"]} for run in runs]
        rows[RECALLERS[runs[0]["mixer"]]] = {n: statistics.mean(line[n] for line in answers) for n in answers[0]}
    return by_length(rows, [512, 1024, 2048, 4096, 8192, 16384, 32768])


def recall_all() -> str:
    """Return all runs of recall, as `recall.py` writes them."""
    return recall_results.table(load("recall/recall.json"))


def tried_longer() -> str:
    """Return how the loss falls over the long training on WikiText-2, with what was tried against a slow start."""
    folder, steps = "trainings/wikitext2-long", (450, 900, 1500, 3000)
    curves = {
        "`GMAConfig.recommended`": f"{folder}/runs/gma-recommended-0.008-0-3000.json",
        "the same, the mixture at the rate of the rest (broken off)": "recorded/wikitext2_mixture_rate.json",
        "the same, routing width 16 instead of 32": f"{folder}/tried/width16-0.008-0-3000.json",
        "linear attention with the same additions": f"{folder}/runs/linear+conv+gates-nopositions-0.008-0-3000.json",
    }
    rows = (
        [name, *(f"{curve(file)[step]:.3f}" if step in curve(file) else "" for step in steps)]
        for name, file in curves.items()
    )
    return table(["training loss, nats, up to step", *(f"{step:,}" for step in steps)], rows)


def tried_wikitext2() -> str:
    """Return what was tried on WikiText-2 beside the table, from the runs that are kept."""
    words = {
        "gt.05": "start temperature 0.05",
        "gt.1": "start temperature 0.1",
        "gt.4": "start temperature 0.4",
        "gnorm": "`normalize_routing`",
        "heads8-gma+conv+gates-nopositions": "8 heads of width 16",
        "gt0.1x4": "temperature 0.1, four times the rate for the mixtures",
        "gk128d32t0.1": "temperature 0.1, K = 128",
        "gk256d32t0.1": "temperature 0.1, K = 256",
        "gk128d64t0.1": "temperature 0.1, K = 128, routing width 64",
        "wgexp": "temperature 0.1, a gate per head, `exp(w x)`, on what a token writes",
        "slotd": "temperature 0.1, a component forgets as much as a token writes into it, times `sigmoid(w x)`",
        "slotg": "temperature 0.1, a second forget gate for each component (rank 16), as in gated linear attention",
        "pt0.1": "plain GMA, temperature 0.1",
        "widesoftmax": "softmax attention, started with as large queries and keys as the others",
        "widesoftmax+conv": "softmax attention with convolution, started so",
        "heads2-linear+conv+gates-nopositions": "linear attention with everything, 2 heads of width 64",
    }
    runs: dict[str, list[tuple[str, float]]] = {}
    for path in sorted((ROOT / "benchmarks/results/trainings/wikitext2/tried").glob("*-0.004-*-800.json")):
        key, _, seed, _ = path.stem.rsplit("-", 3)
        if key in words:
            run = load(f"trainings/wikitext2/tried/{path.name}")
            runs.setdefault(key, []).append((seed, math.exp(run["loss"])))
    rows = ([words[key], ", ".join(f"{value:.1f}" for _, value in found)] for key, found in runs.items())
    return table(["change", "perplexity at 4e-3, by seed (0, 1, 2)"], sorted(rows))


def recorded(name: str) -> str:
    """Return a table whose runs were not kept."""
    content = load(f"recorded/{name}.json")
    return table(content["header"], content["rows"])


def minilm() -> str:
    """Return how near the shipped conversion comes to its source."""
    report = load("../../model_cards/gma-minilm-l6/distillation.json")
    rows = [[row["model"], f"{row['spearman']:.3f}", f"{row['cosine']:.3f}"] for row in report["rows"]]
    return table(["model", "Spearman correlation with the source's similarities", "cosine with its embedding"], rows)


def conversion_exponent() -> str:
    """Return how near conversions without distillation are to their source, by read exponent."""
    rows = load("conversion_exponent_cpu.json")["results"]
    body = ([name, f"{row['cosine']:.3f}", f"{row['spearman']:.3f}"] for name, row in rows.items())
    return table(["read exponent", "cosine with the source's embedding", "Spearman of similarities"], body)


def conversion_positions() -> str:
    """Return how near a model with more positions is to its source's windows, by where they start."""
    rows = load("conversion_positions_cpu.json")["results"]
    rows = sorted(rows.items(), key=lambda row: -row[1]["tokens, mean"])
    body = ([name, f"{row['tokens, mean']:.3f}", f"{row['texts, mean']:.3f}"] for name, row in rows)
    header = ["positions beyond the source's start as", "cosine with the windows: tokens beyond 512"]
    return table([*header, "the whole text, pooled"], body)


def long_texts() -> str:
    """Return time and memory of the long checkpoint beside what its source reads, with the ratios to it."""
    own, lengths = "converted, all layers", ("4096", "8192")
    words, rows = {own: "gma-minilm-l6-4k, whole", "source (softmax)": "source, whole"}, {}
    reports = {n: load(f"long_texts/{n}/encoder_cpu.json") for n in lengths}
    for title, unit, factor in (("encoding", "seconds", 1e-3), ("peak memory", "MiB at the peak", 1)):
        for name in reports[lengths[0]][title]:
            found = {n: (reports[n][title][name].get(n), reports[n][title][own][n]) for n in lengths}
            cells = ["not run" if x is None else f"{number(factor * x)} ({x / of:.2f})" for x, of in found.values()]
            rows[f"{words.get(name, name)}, {unit}"] = cells
    return table(["tokens", *(f"{int(n):,}" for n in lengths)], ([name, *cells] for name, cells in rows.items()))


def long_retrieval() -> str:
    """Return how often the first half of an article finds its second half."""
    ways = {"first": "first 512 tokens", "windows": "windows of 512 tokens, averaged", "whole": "whole"}
    body = []
    for path in sorted((RESULTS / "long_retrieval").glob("*.json")):
        report = load(f"long_retrieval/{path.name}")
        for way, figures in report["results"].items():
            measured = (figures["recall at 1"], figures["mean reciprocal rank"])
            errors = (figures[f"{name}, standard error"] for name in ("recall at 1", "mean reciprocal rank"))
            body.append([report["name"], ways[way], *(f"{x:.3f} ± {e:.3f}" for x, e in zip(measured, errors))])
    return table(["model", "reads", "recall at 1", "mean reciprocal rank"], body)


def long_context() -> str:
    """Return what reading a long document takes."""
    report = load("long_context_cpu.json")
    return table(
        ["what", "figure"],
        [
            ["a document of 100,000 characters, read once", f"{report['seconds to read the document']:.1f} s"],
            ["its state, saved", f"{report['bytes of the file']:,} bytes"],
            ["a key-value cache of the same model", f"{report['bytes of a key-value cache']:,} bytes"],
            [
                "loaded in another process, and one token read",
                f"{1000 * report['seconds to load it in another process and read one more token']:.0f} ms",
            ],
            ["largest difference of the logits then", number(report["largest difference of the logits"], 2)],
            [
                f"a prompt of {report['tokens of the prompt']:,} characters",
                f"{report['seconds to read it and generate 20 tokens']:.0f} s, "
                f"{report['growth of the peak memory, MiB']:.0f} MiB more at the peak",
            ],
        ],
    )


def sequence_parallel() -> str:
    """Return peak memory, differences and bytes of processes that read one document together."""
    report = load("sequence_parallel_cpu.json")
    several, body = [str(count) for count in report["arguments"]["processes"]], []
    for case, found in report["cases"].items():
        peaks = [f"{max(found['1']['peak']) / 2**20:.0f}"]
        for count in several:
            share = found[count]["peak of the largest over 1 / processes"]
            peaks.append(f"{max(found[count]['peak']) / 2**20:.0f} ({share:.2f})")
        errors = (max(found[count]["off by"][what] for count in several) for what in ("logits", "loss", "gradients"))
        sent = (f"{found[count]['bytes per rank']['back']:,}" for count in several)
        body.append([case, *peaks, ", ".join(f"{error:.0e}" for error in errors), "; ".join(sent)])
    return table(["", "1 process", *(f"{count} processes" for count in several), "off by", "bytes"], body)


def serving() -> str:
    """Return what a server holds and answers, of a GMA model and of a GPT-2 of its size."""
    models = load("serving_cpu.json")["found"]

    def row(name: str, *path: str) -> list[str]:
        values = list(models.values())
        for key in path:
            values = [value[key] for value in values]
        return [name, *(f"{value:,.0f}" if value >= 1000 else number(value) for value in values)]

    rate = ("requests per second", "by CPU time")
    body = [
        row("parameters", "parameters"),
        row("conversations held at once", "conversations", "held at once"),
        row("their bytes", "conversations", "bytes"),
        row("bytes of one", "conversations", "bytes per conversation"),
        row("vLLM, requests per second of CPU time", *rate, "vLLM"),
        row("`generate` in batches, the same", *rate, "generate"),
        row("vLLM over `generate`, by CPU time", "vLLM over generate", "by CPU time"),
        row("vLLM over `generate`, by the clock", "vLLM over generate", "by the clock"),
    ]
    return table(["", *models], body)


def checkpoints() -> str:
    """Return the checkpoints that are in the repository, from their folders."""
    rows = []
    for name, (use, data) in CARDS.items():
        folder = ROOT / "model_cards" / name
        card = ModelCard.load(folder / "README.md").data
        size = f"{parameters_in(folder) / 1e6:.2f} M"
        rows.append([f"`model_cards/{name}`", use, size, data, figure_of(name, card), card.license])
    return table(["checkpoint", "what it does", "parameters", "data", "figure", "licence"], rows)


def figure_of(name: str, card: object) -> str:
    """Return the figure that a card names first, or how near a conversion is to its source."""
    if not getattr(card, "eval_results", None):
        rows = {row["model"]: row for row in load(f"../../model_cards/{name}/distillation.json")["rows"]}
        figures = rows["after stage 2"]
        return f"{figures.get('spearman', figures.get('sentences_spearman')):.3f} Spearman correlation with its source"
    metric = card.eval_results[0]
    if metric.metric_type == "accuracy":
        return f"{100 * metric.metric_value:.4g} % of 2,000 test reviews right"
    return f"{metric.metric_value:g} {'nats per character' if metric.metric_type == 'loss' else 'perplexity'}"


def front() -> str:
    """Return the one table of the README: GMA beside other mixers in quality, recall, speed and memory."""
    rows = [*perplexities(), *recalled(), *decoding(), *mixing()]
    filled = ([name, *(cell or "–" for cell in cells)] for name, *cells in rows)
    return table(["", "GMA", "softmax", "linear", "Mamba", "delta rule"], filled)


def perplexities() -> list[Row]:
    """Return the rows of quality."""
    scores, long = (
        {name: f"{statistics.mean(values):.1f}" for name, values in training_scores(folder).items()}
        for folder in ("wikitext2", "wikitext2-long")
    )
    additions = " + conv + gates, no positions"
    return [
        [
            "perplexity, WikiText-2, 800 steps, plain mixers",
            scores["gma"],
            scores["softmax"],
            scores["linear"],
            "",
            "",
        ],
        [
            "the same, each with its additions",
            *(scores[name + additions] for name in ("gma", "softmax", "linear")),
            scores["mamba"],
            "",
        ],
        [
            "trained 7.5 times as long, GMA as recommended, test text",
            *(
                long.get(name, "")
                for name in ("gma, recommended", "softmax" + additions, "linear" + additions, "mamba")
            ),
            "",
        ],
    ]


def recalled() -> list[Row]:
    """Return the rows of recall, in % right."""
    groups, rows = recall_groups(), []
    for pairs, length in ((16, 128), (32, 256)):
        shown = ("gma-30-recommended", "softmax", "linear", "mamba", "delta")
        found = (groups.get((pairs, length, mixer_name)) for mixer_name in shown)
        answers = ("" if one is None else f"{one[0]:.0f}" for one in found)
        rows.append([f"{pairs} key-value pairs in {length} tokens, % recalled", *answers])
    return rows


def decoding() -> list[Row]:
    """Return the rows of a generated token."""
    report, at = load("decode_cpu.json"), "100000"
    times, kept = report["time per token"], report["state or key-value cache"]
    names = ("GMA", "GPT-2, preallocated cache", "linear (elu + 1)", "Mamba")
    return [
        ["a token after 100,000, 125 M parameters, CPU, ms", *(number(times[name][at]) for name in names), ""],
        ["what is kept of these 100,000 tokens, MiB", *(number(kept[name][at]) for name in names), ""],
    ]


def mixing() -> list[Row]:
    """Return the rows of the mixer alone, in times of GMA's."""
    rows = []
    for device, length, words in (
        ("cpu", "16384", "16,384 tokens, CPU"),
        ("cpu", "1024", "1,024 tokens, CPU"),
        ("cuda", "1024", "1,024 tokens, GPU"),
        ("cuda", "16384", "16,384 tokens, GPU"),
    ):
        times = load(f"mixer_{device}.json")["forward + backward"]
        over = (number(times[name][length] / times["GMA"][length]) for name in ("softmax (SDPA)", "linear (elu + 1)"))
        rows.append([f"time over GMA's, mixer, forward + backward, {words}", "1", *over, "", ""])
    return rows


TABLES: dict[str, Callable[[], str]] = {
    "front": front,
    "checkpoints": checkpoints,
    "mixer_cpu": partial(mixer, "mixer_cpu.json", (512, 1024, 4096, 8192, 16384)),
    "mixer_epyc": partial(mixer, "epyc/mixer_cpu.json", (512, 1024, 4096, 8192, 16384)),
    "mixer_again": again,
    "mixer_cuda": mixer_cuda,
    "decode_cpu": partial(decode, "cpu"),
    "decode_cuda": partial(decode, "cuda"),
    "model_cpu": partial(model, "cpu", (256, 512, 1024, 2048)),
    "model_cuda": partial(model, "cuda", (1024, 4096, 16384)),
    "encoder_cpu": encoder,
    "chunk_size": chunk_size,
    "read_exponent": read_exponent,
    "wikitext2": partial(comparison, "wikitext2"),
    "wikitext2_long": partial(comparison, "wikitext2-long"),
    "shakespeare": partial(comparison, "shakespeare"),
    "listops": partial(comparison, "listops"),
    "imdb_bytes": partial(comparison, "imdb-bytes"),
    "imdb_bytes_pretrained": partial(comparison, "imdb-bytes-pretrained"),
    "imdb_bytes_long": partial(comparison, "imdb-bytes-long"),
    "routing_start": routing_start,
    "tried_wikitext2": tried_wikitext2,
    "tried_longer": tried_longer,
    "recall": recall,
    "recall_all": recall_all,
    "needle": needle,
    "minilm": minilm,
    "conversion_exponent": conversion_exponent,
    "conversion_positions": conversion_positions,
    "long_texts": long_texts,
    "long_retrieval": long_retrieval,
    "long_context": long_context,
    "sequence_parallel": sequence_parallel,
    "serving": serving,
    **{
        name: partial(recorded, name)
        for name in (
            "additions_shakespeare",
            "imdb_bytes_validation",
            "recall_before",
            "recall_prototype",
            "recall_sharper",
            "recall_starts",
            "recall_trials",
            "recommended_starts",
            "gpt2_distillation",
            "minilm_half_distillation",
            "minilm_start",
            "wikitext2_rates",
        )
    },
}
