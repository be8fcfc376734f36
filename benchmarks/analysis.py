"""
What `gma-hf report` takes on a long text, in a process of its own: time and peak memory, everything included.

    python -m benchmarks.analysis --text ../shared/data/tinyshakespeare/input.txt
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

from gma_hf.recipes.arguments import parse
from gma_hf.recipes.running import run

from .harness import machine


@dataclass
class Arguments:
    """What is read, by which model."""

    text: str = field(metadata={"help": "A text file."})
    checkpoint: str = field(default="model_cards/gma-shakespeare", metadata={"help": "A GMA checkpoint."})
    tokens: int = field(default=1_000_000, metadata={"help": "Tokens to read, at most."})
    output_dir: str = field(default="benchmarks/results", metadata={"help": "Where the JSON goes."})


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, write."""
    (args,) = parse((Arguments,), arguments)
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "gma_hf", "report", args.checkpoint, args.text]
        command += ["-o", f"{folder}/report.html", "--json", f"{folder}/report.json", "--max-tokens", str(args.tokens)]
        start = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        seconds = time.perf_counter() - start
        read = json.loads(Path(folder, "report.json").read_text())["tokens"]
        page = Path(folder, "report.html").stat().st_size
    figures = {"tokens": read, "seconds": seconds, "bytes_of_the_page": page}
    figures["peak_mebibytes"] = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    print(f"{read:,} tokens in {seconds:.0f} s, {figures['peak_mebibytes']:.0f} MiB at the peak")
    content = {"machine": machine("cpu"), "arguments": asdict(args), "figures": figures}
    Path(args.output_dir).mkdir(parents=True, exist_ok=True)
    Path(args.output_dir, "analysis_cpu.json").write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    run(main)
