"""
Sequence parallelism on this machine: several processes (gloo) read one document together, beside one that reads it
alone: logits, loss and gradients, peak memory of each process, bytes that are exchanged, time.

    python -m benchmarks.sequence_parallel                     # benchmarks/results/sequence_parallel_cpu.json
    python -m benchmarks.sequence_parallel --length 4096 --processes 2

The processes share the cores of the machine, so that times say what the extra work is, and not what more machines
gain.
"""

import ctypes
import json
import multiprocessing
import socket
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from gma_hf import GMAConfig, GMAForCausalLM
from gma_hf.parallel import collectives, shard_batch
from gma_hf.recipes.arguments import Parser
from gma_hf.recipes.running import run

from .harness import machine
from .memory import PeakMemory


ADDITIONS = {"conv_kernel_size": 4, "forget_gate": True, "output_gate": True, "read_exponent": "learned"}
ADDITIONS |= {"normalize_routing": True}
CASES = {  # fields of the config, how many tokens more than asked for, and what the rows are
    "plain": ({}, 0, "whole"),
    "gates and convolution": (ADDITIONS, 0, "whole"),
    "odd length": (ADDITIONS, 1, "whole"),
    "padding": (ADDITIONS, 0, "padded"),
    "packed documents": (ADDITIONS, 0, "packed"),
}


# What each process would import else
PRELOADED = ["gma_hf.parallel", "gma_hf.recipes.arguments", "benchmarks.harness", "benchmarks.memory"]


@dataclass
class Arguments:
    """What is measured."""

    length: int = field(default=65536, metadata={"help": "Tokens of the document."})
    processes: list[int] = field(default_factory=lambda: [2, 4], metadata={"help": "Numbers of processes."})
    hidden_size: int = field(default=32, metadata={"help": "Width of the network."})
    layers: int = field(default=2, metadata={"help": "Layers of the network."})
    heads: int = field(default=2, metadata={"help": "Heads of a layer."})
    components: int = field(default=32, metadata={"help": "Components of a head."})
    seed: int = field(default=0, metadata={"help": "Of weights and tokens."})
    cases: list[str] = field(default_factory=lambda: [*CASES], metadata={"help": "Which of the cases."})
    output_dir: str = field(
        default=str(Path(__file__).parent / "results"), metadata={"help": "Folder of the JSON file."}
    )


def make_model(args: Arguments, fields: dict[str, Any]) -> GMAForCausalLM:
    """Return a model without a zero in its weights, which would hide what is wrong."""
    torch.manual_seed(args.seed)
    shape = {"hidden_size": args.hidden_size, "num_attention_heads": args.heads, "num_hidden_layers": args.layers}
    shape |= {"num_components": args.components, "vocab_size": 257, "position_embedding": "none", "use_cache": False}
    model = GMAForCausalLM(GMAConfig(**shape, **fields, hidden_dropout_prob=0.0))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.02)
    return model


def make_batch(args: Arguments, more: int, rows: str) -> dict[str, torch.Tensor]:
    """Return one row of random tokens: whole, padded at both ends and inside, or of documents of unequal length."""
    generator = torch.Generator().manual_seed(args.seed)
    length = args.length + more
    ids = torch.randint(257, (1, length), generator=generator)
    batch = {"input_ids": ids, "labels": ids.clone()}
    if rows == "padded":
        mask = torch.rand(1, length, generator=generator) > 0.1
        mask[:, : length // 20] = mask[:, -length // 20 :] = False
        batch["attention_mask"], batch["labels"] = mask.long(), torch.where(mask, ids, -100)
    if rows == "packed":
        borders = torch.randint(1, length, (8,), generator=generator).unique().tolist()
        lengths = torch.tensor([0, *borders, length]).diff().tolist()
        batch["position_ids"] = torch.cat([torch.arange(x) for x in lengths])[None]
    return batch


def count_bytes() -> dict[str, int]:
    """Return what the collectives of a step send from here on, in bytes per rank, by what they do."""
    sent = {"gather": 0, "back": 0}

    def counting(name: str, collective: Callable, size: Callable) -> Callable:
        def call(out: torch.Tensor, given: torch.Tensor, group: Any) -> Any:
            sent[name] += size(out, given)
            return collective(out, given, group=group)

        return call

    # Each rank gets the parts of the others, and gives each of them the gradient of its own
    collectives._all_gather = counting("gather", collectives._all_gather, lambda out, x: out.nbytes - x.nbytes)
    collectives._reduce_scatter = counting("back", collectives._reduce_scatter, lambda out, x: x.nbytes - out.nbytes)
    return sent


def step(rank: int, size: int, port: int, args: Arguments, case: str, folder: str) -> None:
    """Run forward and backward in one process of several, or alone, and write what came out of it."""
    torch.set_num_threads(1)
    # glibc keeps what is freed below a limit that grows up to 32 MiB, so that its peaks say less of small tensors
    mmap_threshold = -3
    ctypes.CDLL("libc.so.6").mallopt(mmap_threshold, 2**16)
    fields, more, rows = CASES[case]
    model, batch = make_model(args, fields), make_batch(args, more, rows)
    if size > 1:
        dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=size)
    small = {name: x[:, : 64 * size] for name, x in batch.items()}
    for given in (small, batch):  # the first step allocates what stays
        model.zero_grad(set_to_none=False)
        sent, start = count_bytes() if size > 1 and given is batch else {}, time.perf_counter()
        with PeakMemory("cpu") as memory:
            inputs = shard_batch(model, given) if size > 1 else given
            output = model(**inputs)
            output.loss.backward()
        seconds, loss, logits = time.perf_counter() - start, output.loss.detach(), output.logits.detach()
    figures = {"peak": memory.bytes, "seconds": seconds, "sent": dict(sent)}
    gradients = [x.grad for x in model.parameters()]
    if size > 1:
        logits = inputs["sequence_part"].gather_tokens(logits)
        for x in (loss, *gradients):
            dist.all_reduce(x)
            x /= size
    (Path(folder) / f"{size}-{rank}.json").write_text(json.dumps(figures))
    if rank == 0:
        names = [name for name, _ in model.named_parameters()]
        torch.save({"loss": loss, "logits": logits, **dict(zip(names, gradients))}, Path(folder) / f"{size}.pt")
    if size > 1:
        dist.barrier()
        dist.destroy_process_group()


def start(size: int, args: Arguments, case: str, folder: str) -> list[dict[str, Any]]:
    """Return the figures of each of `size` processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    processes = [context.Process(target=step, args=(rank, size, port, args, case, folder)) for rank in range(size)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    if any(process.exitcode for process in processes):
        raise RuntimeError(f"A process of {case} ended in an error, which stands above.")
    return [json.loads((Path(folder) / f"{size}-{rank}.json").read_text()) for rank in range(size)]


def differences(folder: str, size: int, mask: torch.Tensor | None) -> dict[str, float]:
    """Return the largest difference from one process, over the largest entry of the same tensor."""
    alone, together = (torch.load(Path(folder) / f"{count}.pt") for count in (1, size))
    if mask is not None:
        for found in (alone, together):
            found["logits"] = found["logits"][mask.bool()]
    errors = {
        name: ((together[name] - x).abs().max() / x.abs().max().clamp_min(1e-30)).item() for name, x in alone.items()
    }
    loss, logits = errors.pop("loss"), errors.pop("logits")
    return {"logits": logits, "loss": loss, "gradients": max(errors.values())}


def compare(args: Arguments, case: str) -> dict[str, Any]:
    """Return the figures of a case."""
    mask = make_batch(args, *CASES[case][1:]).get("attention_mask")
    with tempfile.TemporaryDirectory() as folder:
        (alone,) = start(1, args, case, folder)
        found: dict[str, Any] = {"1": {"peak": [alone["peak"]], "seconds": alone["seconds"]}}
        for size in args.processes:
            figures = start(size, args, case, folder)
            peaks = [x["peak"] for x in figures]
            found[str(size)] = {
                "peak": peaks,
                "peak of the largest over 1 / processes": max(peaks) * size / alone["peak"],
                "seconds": max(x["seconds"] for x in figures),
                "bytes per rank": figures[0]["sent"],
                "off by": differences(folder, size, mask),
            }
            print(case, size, json.dumps(found[str(size)]), flush=True)
    return found


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Measure, print and write the figures."""
    (args,) = Parser(Arguments, allow_abbrev=False).parse_args_into_dataclasses(arguments)
    unknown = sorted(set(args.cases) - set(CASES))
    if unknown or min(args.processes, default=0) < 2:
        raise ValueError(
            f"`cases` must be among {', '.join(CASES)}, and `processes` 2 or more each, but they are {args.cases} "
            f"and {args.processes}."
        )
    report = {"machine": machine("cpu"), "arguments": vars(args) | {"output_dir": None}, "cases": {}}
    path = Path(args.output_dir) / "sequence_parallel_cpu.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    for case in args.cases:
        report["cases"][case] = compare(args, case)
        path.write_text(json.dumps(report, indent=2) + "\n")
    return report


if __name__ == "__main__":
    run(main)
