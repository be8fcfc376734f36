"""
Assisted decoding from a state that can go back: the share of drafted tokens that is accepted, and the time beside
greedy decoding, in turns, on 20 prompts of a text.

    python -m benchmarks.assisted --text tests/data/shakespeare.txt
"""

import json
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from gma_hf.recipes.arguments import parse
from gma_hf.recipes.running import run

from .harness import machine


@dataclass
class Arguments:
    """What is gone on from, by which model."""

    text: str = field(metadata={"help": "A text file that the prompts are cut from."})
    checkpoint: str = field(default="model_cards/gma-shakespeare", metadata={"help": "A causal GMA checkpoint."})
    prompts: int = field(default=20, metadata={"help": "How many prompts."})
    prompt_length: int = field(default=400, metadata={"help": "Tokens of a prompt."})
    max_new_tokens: int = field(default=100, metadata={"help": "Tokens to generate."})
    prompt_lookup_num_tokens: int = field(default=5, metadata={"help": "Tokens drafted at a time."})
    output_dir: str = field(default="benchmarks/results", metadata={"help": "Where the JSON goes."})


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, write."""
    (args,) = parse((Arguments,), arguments)
    model = AutoModelForCausalLM.from_pretrained(args.checkpoint)
    ids = torch.tensor(AutoTokenizer.from_pretrained(args.checkpoint)(Path(args.text).read_text())["input_ids"])
    calls = []
    model.register_forward_hook(
        lambda module, inputs, kwargs, output: calls.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    seconds, same, drafted, accepted = {"greedy": 0.0, "assisted": 0.0}, 0, 0, 0
    starts = torch.linspace(0, len(ids) - args.prompt_length, args.prompts).long().tolist()
    for start in starts:
        prompt, outputs = ids[None, start : start + args.prompt_length], {}
        for name, choice in {
            "greedy": {},
            "assisted": {"prompt_lookup_num_tokens": args.prompt_lookup_num_tokens},
        }.items():
            calls.clear()
            begin = time.perf_counter()
            outputs[name] = model.generate(prompt, do_sample=False, max_new_tokens=args.max_new_tokens, **choice)
            seconds[name] += time.perf_counter() - begin
        same += torch.equal(*outputs.values())
        # Each call reads one token that is certain and those that were drafted; the first reads the prompt as well
        drafts = calls[0] - args.prompt_length + sum(calls[1:]) - (len(calls) - 1)
        drafted += drafts
        accepted += args.max_new_tokens - len(calls)
    report = {
        "machine": machine("cpu"),
        "arguments": asdict(args),
        "prompts with exactly the greedy tokens": same,
        "tokens drafted": drafted,
        "tokens accepted": accepted,
        "share accepted": accepted / drafted,
        "greedy seconds over assisted seconds": seconds["greedy"] / seconds["assisted"],
    }
    Path(args.output_dir).mkdir(parents=True, exist_ok=True)
    (Path(args.output_dir) / "assisted_cpu.json").write_text(json.dumps(report, indent=2) + "\n")
    for name, value in report.items():
        print(f"{name}: {value}")


if __name__ == "__main__":
    run(main)
