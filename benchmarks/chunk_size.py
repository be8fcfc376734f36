"""
The causal mixer in plain torch with chunks of several sizes, in turns in one run: whence the default of `chunk_size`.

    python -m benchmarks.chunk_size
    python -m benchmarks.chunk_size --device cuda --dtype bfloat16
"""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import torch

from gma_hf.recipes.arguments import parse
from gma_hf.recipes.running import run

from .contenders import GMA
from .harness import freed_memory_kept, machine, save, time_side_by_side
from .mixer import forward, forward_and_backward, random_inputs


@dataclass
class Arguments:
    """Sizes, and what is measured."""

    chunk_sizes: list[int] = field(default_factory=lambda: [16, 32, 64, 128, 256], metadata={"help": "Tokens."})
    lengths: list[int] = field(default_factory=lambda: [1024, 4096, 16384], metadata={"help": "Tokens."})
    batch_size: int = field(default=1, metadata={"help": "Rows."})
    heads: int = field(default=8, metadata={"help": "Heads."})
    width: int = field(default=64, metadata={"help": "Width of queries, keys and values of a head."})
    components: int = field(default=64, metadata={"help": "K, the components of a head."})
    dtype: Literal["float32", "bfloat16", "float16"] = field(
        default="float32", metadata={"help": "Of queries, keys and values."}
    )
    device: Literal["cpu", "cuda"] = field(default="cpu", metadata={"help": "cpu or cuda."})
    rounds: int = field(default=15, metadata={"help": "Turns of each chunk size; the median counts."})
    output_dir: str = field(default="benchmarks/results", metadata={"help": "Where JSON and plot go."})
    seed: int = field(default=0, metadata={"help": "Of the random inputs."})


@freed_memory_kept()
def main(arguments: list[str] | None = None) -> None:
    """Measure, print, write."""
    (args,) = parse((Arguments,), arguments)
    mixers = {}
    for size in args.chunk_sizes:
        torch.manual_seed(args.seed)  # the same mixture for all
        mixer = GMA(args.heads, args.components, args.width, size, backend="torch")
        mixers[f"chunks of {size}"] = mixer.to(args.device)
    panels = {}
    for title, make in (("forward", forward), ("forward + backward", forward_and_backward)):
        figures = {name: {} for name in mixers}
        for length in args.lengths:
            inputs = random_inputs(args, length)
            calls = {name: make(mixer, inputs) for name, mixer in mixers.items()}
            for name, seconds in time_side_by_side(calls, args.device, args.rounds, limit=60).items():
                figures[name][length] = seconds * 1e3
        panels[title] = (figures, "milliseconds")
    report = {"machine": machine(args.device), "arguments": asdict(args)}
    report |= {title: figures for title, (figures, _) in panels.items()}
    save(Path(args.output_dir), f"chunk_size_{args.device}", report, panels)


if __name__ == "__main__":
    run(main)
