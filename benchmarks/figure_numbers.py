"""
The numbers in the prose of README.md and docs/, each made from the JSON of a run.

A number of a run stands in a sentence with its name behind it, as `100<!-- = recall_32_pairs -->`.
"""

import json
import math
import statistics
from collections.abc import Callable, Iterable, Mapping

from huggingface_hub import ModelCard

from .figure_data import RESULTS, ROOT, curve, load, parameters_in, recall_groups, training_scores


BOTH = "forward + backward"
ADDED = " + conv + gates, no positions"
SOFTMAX = "softmax + conv + output gate, no positions"
RECOMMENDED = "gma, recommended"
LONG_RUNS = ("gma-recommended", "linear+conv+gates-nopositions")
TURNS = ": time per token over GMA's in the same turns"
GPT2, PREALLOCATED, LINEAR = "GPT-2" + TURNS, "GPT-2, preallocated cache" + TURNS, "linear (elu + 1)" + TURNS
ITSELF = "GMA's time per token over that at the shortest context"


def more(one: float, other: float) -> str:
    """Return by how many percent the first is more than the second."""
    return f"{100 * (one / other - 1):.0f}"


def less(one: float, other: float) -> str:
    """Return by how many percent the first is less than the second."""
    return f"{100 * (1 - one / other):.0f}"


def first_above_one(file: str, contender: str, what: str = BOTH) -> str:
    """Return the shortest length measured from which on a contender takes longer than GMA."""
    times = load(file)["ratios"][f"{contender}'s time over GMA's"][what]
    slower = [int(length) for length, ratio in times.items() if ratio <= 1]
    return f"{min(int(length) for length in times if int(length) > max(slower, default=0)):,}"


def extremes(name: str, values: Iterable[float], digits: int = 1) -> dict[str, Callable[[], str]]:
    """Return the numbers `NAME_least` and `NAME_most`."""
    values = list(values)
    return {
        f"{name}_least": lambda: f"{min(values):.{digits}f}",
        f"{name}_most": lambda: f"{max(values):.{digits}f}",
    }


def perplexity(mixer: str) -> float:
    """Return the mean perplexity of a mixer on WikiText-2 under the small budget."""
    return statistics.mean(training_scores("wikitext2")[mixer])


def accuracy(folder: str, mixer: str) -> float:
    """Return the mean accuracy of a mixer in a comparison, in %."""
    return statistics.mean(training_scores(folder)[mixer])


def started(change: str) -> list[float]:
    """Return the perplexities on WikiText-2, by seed, of a row of the table of starts."""
    rows = dict(load("recorded/recommended_starts.json")["rows"])
    return [float(value) for value in rows[change].split(", ")]


def recommended() -> str:
    """Return the mean perplexity of `GMAConfig.recommended` on WikiText-2."""
    return f"{statistics.mean(started('`GMAConfig.recommended`')):.1f}"


def late_forgetting() -> str:
    """Return the perplexity of linear attention with everything, forget gates to 8,192 tokens, with the first seed."""
    return f"{started('linear attention with the same additions, forget gates to 8,192 tokens')[0]:.1f}"


def longer() -> str:
    """Return how many times as many tokens the long training on WikiText-2 reads."""
    read = []
    for folder in ("wikitext2", "wikitext2-long"):
        steps = load(f"trainings/{folder}/results.json")["linear" + ADDED][0]["steps"]
        read.append(steps * load(f"trainings/{folder}/settings.json")["batch_size"])
    return f"{read[1] / read[0]:.1f}"


def after_longer(mixer: str) -> float:
    """Return the mean perplexity of a mixer after the long training on WikiText-2."""
    return statistics.mean(training_scores("wikitext2-long")[mixer])


def last_loss(mixer: str, rate: str) -> float:
    """Return the loss in nats of the last steps of the long training on WikiText-2 at a rate, with the first seed."""
    return list(curve(f"trainings/wikitext2-long/runs/{mixer}-{rate}-0-3000.json").values())[-1]


def behind_on_the_way() -> list[float]:
    """Return by how many nats GMA is behind linear attention over that training."""
    of_gma, of_linear = (curve(f"trainings/wikitext2-long/runs/{name}-0.008-0-3000.json") for name in LONG_RUNS)
    return [of_gma[step] - of_linear[step] for step in of_gma]


def seed_of_gma(seed: int) -> str:
    """Return the perplexity of one seed of the best GMA of that comparison."""
    return f"{training_scores('wikitext2')['gma' + ADDED][seed]:.1f}"


def cooler() -> str:
    """Return by how many percent a start temperature of 0.1 is better, over three seeds."""
    runs = (load(f"trainings/wikitext2/tried/gt.1-0.004-{seed}-800.json")["loss"] for seed in (0, 1, 2))
    return f"{100 * (1 - statistics.mean(map(math.exp, runs)) / perplexity('gma' + ADDED)):.1f}"


def right(pairs: int, length: int, mixer: str, digits: int = 0) -> str:
    """Return the share of right answers in %."""
    return f"{recall_groups()[pairs, length, mixer][0]:.{digits}f}"


def right_elsewhere(trained: int, asked: int, task: str | None = None) -> str:
    """Return the share of right answers of the recommended GMA in % of 8 pairs in longer rows than trained on."""
    runs = [run for runs in load("recall/recall.json") for run in runs if run["mixer"] == "gma-30-recommended"]
    runs = [run for run in runs if run["settings"].keys() <= {"evaluate", "task", "text_file"}]
    runs = [run for run in runs if (run["pairs"], run["length"], run["settings"].get("task")) == (8, trained, task)]
    shares = (part["accuracy"] for run in runs for part in run["evaluation"] if part["length"] == asked)
    return f"{100 * statistics.mean(shares):.0f}"


def listops(mixer: str, seeds: Iterable[int] = (0, 1, 2)) -> str:
    """Return the accuracy in % at the rate 2e-3."""
    runs = (load(f"trainings/listops/other-rates/{mixer}-0.002-{seed}-1500.json") for seed in seeds)
    return f"{100 * statistics.mean(run['accuracy'] for run in runs):.1f}"


def imdb(file: str, name: str) -> str:
    """Return the accuracy of `gma-imdb-bytes` in %."""
    return f"{100 * load(f'trainings/gma-imdb-bytes/{file}.json')[name]:.2f}"


def card_figure(name: str, digits: int) -> str:
    """Return the figure that the card of a checkpoint names first."""
    card = ModelCard.load(ROOT / "model_cards" / name / "README.md").data
    return f"{card.eval_results[0].metric_value:.{digits}f}"


def more_parameters(name: str, folder: str, mixer: str) -> str:
    """Return by how many percent a checkpoint has more parameters than a mixer it is compared with."""
    return more(
        parameters_in(ROOT / "model_cards" / name), load(f"trainings/{folder}/results.json")[mixer][0]["parameters"]
    )


def standard_error(share: float, examples: int) -> str:
    """Return the standard error of an accuracy, in points."""
    return f"{100 * math.sqrt(share * (1 - share) / examples):.1f}"


def over_gma(folder: str) -> list[float]:
    """Return how many times as long a step of softmax attention takes as one of the other mixers."""
    costs = {name: cost["milliseconds"] for name, cost in load(f"trainings/{folder}/costs.json").items()}
    softmax = next(cost for name, cost in costs.items() if name.startswith("softmax"))
    return [softmax / cost for name, cost in costs.items() if name.startswith(("gma", "linear"))]


def chunks_of_32() -> list[float]:
    """Return by how many percent chunks of 32 take less time than chunks of 64."""
    times = load("chunk_size_cpu.json")[BOTH]
    return [100 * (1 - time / times["chunks of 64"][length]) for length, time in times["chunks of 32"].items()]


def doubled(what: str) -> list[float]:
    """Return by how much time or memory grows when the tokens double, from 8,192 on."""
    grown = load("mixer_cpu.json")["ratios"]["GMA when the tokens double"][what]
    return [ratio for length, ratio in grown.items() if int(length) >= 8192]


def over_products(file: str) -> Iterable[float]:
    """Return GMA's time over that of its matrix products alone, by length."""
    return load(file)["ratios"]["GMA's time over that of its matrix products alone"][BOTH].values()


def linear_over_gma(length: int) -> str:
    """Return linear attention's time over GMA's on a CPU."""
    times = load("mixer_cpu.json")[BOTH]
    return f"{times['linear (elu + 1)'][str(length)] / times['GMA'][str(length)]:.2f}"


def gpu_memory(length: int) -> str:
    """Return GMA's memory over FlashAttention's."""
    memory = load("mixer_cuda.json")["peak memory, forward + backward"]
    return f"{memory['GMA'][str(length)] / memory['FlashAttention'][str(length)]:.1f}"


def per_token(file: str, name: str) -> Mapping[str, float]:
    """Return the ratios of the time of a token, by context."""
    return load(file)["ratios"][name]


def recorded() -> dict[str, Callable[[], str]]:
    """Return the numbers whose runs were not kept."""
    content = json.loads((RESULTS / "recorded" / "prose.json").read_text(encoding="utf-8"))
    return {name: (lambda value=entry["value"]: value) for name, entry in content.items()}


NUMBERS: dict[str, Callable[[], str]] = {
    # speed
    "cpu_ahead": lambda: first_above_one("mixer_cpu.json", "SDPA"),
    "cpu_ahead_epyc": lambda: first_above_one("epyc/mixer_cpu.json", "SDPA"),
    "cpu_reads_ahead": lambda: first_above_one("mixer_cpu.json", "SDPA", "forward"),
    "cpu_reads_ahead_epyc": lambda: first_above_one("epyc/mixer_cpu.json", "SDPA", "forward"),
    "gpu_ahead_of_flash": lambda: first_above_one("mixer_cuda.json", "FlashAttention"),
    "gpu_ahead_of_sdpa": lambda: first_above_one("mixer_cuda.json", "SDPA"),
    **extremes("over_products", over_products("mixer_cpu.json")),
    **extremes("over_products_epyc", over_products("epyc/mixer_cpu.json")),
    **extremes("time_doubled", doubled(BOTH), 2),
    "memory_doubled": lambda: f"{max(doubled('peak memory')):.2f}",
    "linear_512": lambda: linear_over_gma(512),
    "linear_1024": lambda: linear_over_gma(1024),
    **extremes("chunks_of_32", chunks_of_32(), 0),
    "gpu_memory_1024": lambda: gpu_memory(1024),
    "gpu_memory_16384": lambda: gpu_memory(16384),
    "token_100k": lambda: f"{per_token('decode_cpu.json', ITSELF)['100000']:.2f}",
    "gpt2_16k": lambda: f"{per_token('decode_cpu.json', GPT2)['16384']:.0f}",
    "gpt2_16k_kept": lambda: f"{per_token('kept_memory/decode_cpu.json', GPT2)['16384']:.1f}",
    "preallocated_64k": lambda: f"{per_token('decode_cpu.json', PREALLOCATED)['65536']:.1f}",
    **extremes("linear_token", per_token("decode_cpu.json", LINEAR).values(), 2),
    **extremes("gpu_token", (1 / ratio for ratio in per_token("decode_cuda.json", PREALLOCATED).values())),
    "drafts_accepted": lambda: f"{100 * load('assisted_cpu.json')['share accepted']:.0f}",
    "greedy_over_drafted": lambda: f"{load('assisted_cpu.json')['greedy seconds over assisted seconds']:.2f}",
    "analysis_seconds": lambda: f"{load('analysis_cpu.json')['figures']['seconds']:.0f}",
    "analysis_memory": lambda: f"{load('analysis_cpu.json')['figures']['peak_mebibytes']:,.0f}",
    # quality
    "behind_linear": lambda: more(perplexity("gma" + ADDED), perplexity("linear" + ADDED)),
    "behind_mamba": lambda: more(perplexity("gma" + ADDED), perplexity("mamba")),
    "behind_linear_with_positions": lambda: more(perplexity("gma + conv + gate"), perplexity("linear + conv + gate")),
    "ahead_of_softmax": lambda: less(perplexity("gma" + ADDED), perplexity(SOFTMAX)),
    "recommended": recommended,
    "longer": longer,
    "longer_ahead": lambda: f"{100 * (1 - after_longer(RECOMMENDED) / after_longer('linear' + ADDED)):.1f}",
    "longer_behind_mamba": lambda: more(after_longer(RECOMMENDED), after_longer("mamba")),
    "longer_gma_slower": lambda: f"{last_loss(LONG_RUNS[0], '0.004'):.2f}",
    "longer_gma": lambda: f"{last_loss(LONG_RUNS[0], '0.008'):.2f}",
    "longer_linear_slower": lambda: f"{last_loss(LONG_RUNS[1], '0.004'):.2f}",
    "longer_linear": lambda: f"{last_loss(LONG_RUNS[1], '0.008'):.2f}",
    "longer_gap": lambda: f"{max(behind_on_the_way()):.2f}",
    "longer_gap_last": lambda: f"{behind_on_the_way()[-1]:.3f}",
    "linear_late_forgetting": late_forgetting,
    "plain": lambda: f"{perplexity('gma'):.1f}",
    "with_convolution": lambda: f"{perplexity('gma + conv'):.1f}",
    "with_forget_gate": lambda: f"{perplexity('gma + conv + gate'):.1f}",
    "with_all": lambda: f"{perplexity('gma' + ADDED):.1f}",
    "linear_with_all": lambda: f"{perplexity('linear' + ADDED):.1f}",
    "forgetting": lambda: f"{perplexity('softmax' + ADDED):.1f}",
    **extremes("forgetting", training_scores("wikitext2")["softmax" + ADDED], 0),
    "seed_0": lambda: seed_of_gma(0),
    "seed_1": lambda: seed_of_gma(1),
    "seed_2": lambda: seed_of_gma(2),
    "cooler": cooler,
    "shakespeare": lambda: card_figure("gma-shakespeare", 2),
    "shakespeare_larger": lambda: more_parameters("gma-shakespeare", "shakespeare", "linear" + ADDED),
    "listops_learned": lambda: f"{accuracy('listops', 'gma'):.0f}",
    "listops_gma": lambda: listops("gma"),
    "listops_softmax": lambda: listops("softmax"),
    "listops_linear": lambda: listops("linear"),
    "imdb_chosen": lambda: imdb("chosen_2000", "eval_accuracy"),
    "imdb_first": lambda: imdb("first_2000", "accuracy"),
    "imdb_error": lambda: standard_error(accuracy("imdb-bytes-long", "gma" + ADDED) / 100, 2000),
    "imdb_small_error": lambda: standard_error(accuracy("imdb-bytes-pretrained", "gma" + ADDED) / 100, 1000),
    "imdb_softmax_behind": lambda: (
        f"{accuracy('imdb-bytes-long', 'linear' + ADDED) - accuracy('imdb-bytes-long', SOFTMAX):.1f}"
    ),
    **extremes("imdb_softmax_step", over_gma("imdb-bytes-long")),
    "imdb_short_softmax_step": lambda: f"{statistics.mean(over_gma('imdb-bytes')):.0f}",
    # recall
    "recall_paper": lambda: right(8, 64, "gma-32"),
    "recall_p1": lambda: right(8, 64, "gma-32-p1"),
    "recall_32_pairs": lambda: right(32, 128, "gma-30-recommended"),
    "recall_256_pairs": lambda: right(32, 256, "gma-30-recommended"),
    "recall_256_linear": lambda: right(32, 256, "linear"),
    "recall_32_k8": lambda: right(32, 128, "gma-30-recommended, num_components = 8"),
    "recall_32_k16": lambda: right(32, 128, "gma-30-recommended, num_components = 16"),
    "recall_512": lambda: right_elsewhere(64, 512),
    "needle_32k": lambda: right_elsewhere(512, 32768, "needle"),
    "recall_512_pairs": lambda: right(16, 512, "gma-30-recommended"),
    "recall_512_linear": lambda: right(16, 512, "linear"),
    "bound_again_gma": lambda: right(8, 64, "gma-30-recommended, bound_again = 0.5"),
    "bound_again_delta": lambda: right(8, 64, "gated-delta, bound_again = 0.5"),
    "recall_32_paper": lambda: right(32, 128, "gma-30-recommended, read_exponent = 0.0"),
    "bound_again_paper": lambda: right(8, 64, "gma-30-recommended, read_exponent = 0.0, bound_again = 0.5"),
    "bound_again_gla": lambda: right(8, 64, "gla, bound_again = 0.5"),
    "bound_again_linear": lambda: right(8, 64, "linear, bound_again = 0.5"),
    # conversion
    "gpt2_converted": lambda: f"{100 * (float(load('recorded/gpt2_distillation.json')['rows'][1][2]) - 1):.0f}",
    "minilm": lambda: f"{load('../../model_cards/gma-minilm-l6/distillation.json')['rows'][-1]['spearman']:.2f}",
    **recorded(),
}
