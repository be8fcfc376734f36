"""
A long document, read once: what it costs to keep its state and to go on from it in another process, beside reading it
again; and a prompt of a million tokens, given to `generate` as it is.

    python -m benchmarks.long_context --text ../shared/data/tinyshakespeare/input.txt
"""

import json
import resource
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

from gma_hf import GMAState
from gma_hf.recipes.arguments import parse
from gma_hf.recipes.running import run

from .harness import machine
from .memory import in_fresh_process


PIECE = 8192


@dataclass
class Arguments:
    """What is read, by which model."""

    text: str = field(metadata={"help": "A text file; it is repeated where it is too short."})
    checkpoint: str = field(default="model_cards/gma-shakespeare", metadata={"help": "A causal GMA checkpoint."})
    document: int = field(default=100_000, metadata={"help": "Tokens of the document that is kept."})
    prompt: int = field(default=2**20, metadata={"help": "Tokens of the prompt that `generate` gets."})
    output_dir: str = field(default="benchmarks/results", metadata={"help": "Where the JSON goes."})


def tokens(args: Arguments, number: int) -> torch.Tensor:
    """Return the first tokens of the text, `[1, number]`."""
    ids = AutoTokenizer.from_pretrained(args.checkpoint)(Path(args.text).read_text()[:number], verbose=False)
    ids = torch.tensor([ids["input_ids"]])
    return ids.repeat(1, -(-number // ids.shape[1]))[:, :number]


def read(model, ids: torch.Tensor) -> tuple[DynamicCache, torch.Tensor, float]:  # noqa: ANN001
    """Return the cache after `ids`, the last logits, and the seconds it took."""
    start, cache = time.perf_counter(), DynamicCache(config=model.config)
    for piece in ids.split(PIECE, dim=1):
        logits = model(piece, cache=cache, logits_to_keep=1).logits
    return cache, logits, time.perf_counter() - start


@torch.inference_mode()
def read_on(args: Arguments, state: Path) -> dict[str, float | list[float]]:
    """Return the logits after the last token of the document, read from a state, and the seconds it took."""
    model = AutoModelForCausalLM.from_pretrained(args.checkpoint)
    token, start = tokens(args, args.document + 1)[:, -1:], time.perf_counter()
    cache = GMAState.load(state).to_cache(model)
    logits = model(token, cache=cache).logits
    return {"seconds": time.perf_counter() - start, "logits": logits.flatten().tolist()}


@torch.inference_mode()
def main(arguments: list[str] | None = None) -> None:
    """Measure, print, write."""
    (args,) = parse((Arguments,), arguments)
    model = AutoModelForCausalLM.from_pretrained(args.checkpoint)
    ids = tokens(args, args.document + 1)
    cache, _, seconds = read(model, ids[:, :-1])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "context.safetensors"
        start = time.perf_counter()
        GMAState.from_cache(cache).save(path)
        saving, size = time.perf_counter() - start, path.stat().st_size
        there = in_fresh_process(read_on, args, path)
    here = model(ids[:, -1:], cache=cache).logits.flatten()
    report = {
        "machine": machine("cpu"),
        "arguments": asdict(args),
        "seconds to read the document": seconds,
        "seconds to save its state": saving,
        "seconds to load it in another process and read one more token": there["seconds"],
        "bytes of the file": size,
        "bytes of a key-value cache": 8 * args.document * model.config.num_hidden_layers * model.config.hidden_size,
        "largest difference of the logits": (here - torch.tensor(there["logits"])).abs().max().item(),
    }
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    prompt, start = tokens(args, args.prompt), time.perf_counter()
    generated = model.generate(prompt, max_new_tokens=20, do_sample=False)
    report |= {
        "tokens of the prompt": prompt.shape[1],
        "seconds to read it and generate 20 tokens": time.perf_counter() - start,
        "growth of the peak memory, MiB": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024,
        "generated": generated.shape[1] - prompt.shape[1],
    }
    Path(args.output_dir).mkdir(parents=True, exist_ok=True)
    (Path(args.output_dir) / "long_context_cpu.json").write_text(json.dumps(report, indent=2) + "\n")
    for name, value in report.items():
        print(f"{name}: {value}")


if __name__ == "__main__":
    run(main)
