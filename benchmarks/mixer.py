"""
Speed and memory of the mixers alone, causal, side by side in one run: forward, forward and backward, peak memory.

    python -m benchmarks.mixer                       # two CPU cores, float32: about 7 minutes
    python -m benchmarks.mixer --lengths 512 1024    # a few minutes
    python -m benchmarks.mixer --device cuda --dtype bfloat16 --batch_size 16 --heads 16 --rounds 7 --limit 0.25 \
        --longest_softmax 65536 --longest_linear 32768

`--floor` also times the matrix products of our forward and backward alone, with the same shapes and nothing else.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from gma_hf.recipes.arguments import parse
from gma_hf.recipes.running import run

from .contenders import contenders
from .harness import freed_memory_kept, machine, save, time_side_by_side
from .memory import peak_bytes


SOFTMAX, FLASH, PRODUCTS = "softmax (SDPA)", "FlashAttention", "products of GMA"
FIRST_FACTOR = {"aten::bmm": 0, "aten::baddbmm": 1, "aten::baddbmm_": 1}  # which input of a matrix product


@dataclass
class Arguments:
    """Sizes, and what is measured."""

    lengths: list[int] = field(default_factory=lambda: [2**n for n in range(9, 17)], metadata={"help": "Tokens."})
    batch_size: int = field(default=1, metadata={"help": "Rows."})
    heads: int = field(default=8, metadata={"help": "Heads."})
    width: int = field(default=64, metadata={"help": "Width of queries, keys and values of a head."})
    components: int = field(default=64, metadata={"help": "K, the components of a head."})
    chunk_size: int = field(default=64, metadata={"help": "Tokens per chunk of GMA and of linear attention."})
    dtype: Literal["float32", "bfloat16", "float16"] = field(
        default="float32", metadata={"help": "Of queries, keys and values."}
    )
    device: Literal["cpu", "cuda"] = field(default="cpu", metadata={"help": "cpu or cuda."})
    rounds: int = field(default=15, metadata={"help": "Turns of each contender; the median counts."})
    limit: float = field(default=8.0, metadata={"help": "Seconds beyond which a contender gets one turn only."})
    longest_softmax: int = field(default=16384, metadata={"help": "Tokens beyond which SDPA is left out."})
    longest_linear: int = field(default=65536, metadata={"help": "Tokens beyond which linear attention is left out."})
    longest_cumsum: int = field(default=2048, metadata={"help": "Tokens beyond which the cumsum form is left out."})
    longest_mamba: int = field(default=512, metadata={"help": "Tokens beyond which Mamba is left out."})
    floor: bool = field(default=False, metadata={"help": "Also time the matrix products of GMA alone (cpu)."})
    output_dir: str = field(default="benchmarks/results", metadata={"help": "Where JSON and plot go."})
    seed: int = field(default=0, metadata={"help": "Of the random inputs."})


def all_mixers(args: Arguments) -> dict[str, nn.Module]:
    """The contenders in these sizes."""
    sizes = (args.heads, args.width, args.components, args.chunk_size)
    return contenders(*sizes, getattr(torch, args.dtype), args.device)


def random_inputs(args: Arguments, length: int) -> list[torch.Tensor]:
    """Queries, keys and values."""
    shape = (args.batch_size, args.heads, length, args.width)
    dtype = getattr(torch, args.dtype)
    return [torch.randn(shape, dtype=dtype, device=args.device).requires_grad_() for _ in range(3)]


def forward(mixer: nn.Module, inputs: list[torch.Tensor]) -> Callable[[], object]:
    """A call of the forward alone."""
    return torch.no_grad()(lambda: mixer(*inputs))


def forward_and_backward(mixer: nn.Module, inputs: list[torch.Tensor]) -> Callable[[], object]:
    """A call of forward and backward, to the inputs and the parameters."""

    def call() -> object:
        output = mixer(*inputs)
        wanted = [*inputs, *(parameter for parameter in mixer.parameters())]
        return torch.autograd.grad(output, wanted, torch.ones_like(output), allow_unused=True)

    return call


def products_alone(call: Callable[[], object], device: str) -> Callable[[], object]:
    """A call of the batched matrix products that `call` makes, on random matrices of the same shapes."""
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as recorded:
        call()
    products = []
    for event in recorded.key_averages(group_by_input_shape=True):
        if event.key in FIRST_FACTOR:
            first = FIRST_FACTOR[event.key]
            a, b = (torch.randn(event.input_shapes[first + i], device=device) for i in range(2))
            products.append((event.count, a, b, a @ b))

    def replay() -> None:
        for count, a, b, out in products:
            for _ in range(count):
                torch.bmm(a, b, out=out)

    return replay


def measured_call(args: Arguments, name: str, length: int) -> Callable[[], object]:
    """Forward and backward of one contender, from nothing."""
    mixer = all_mixers(args)[name].to(args.device)
    return forward_and_backward(mixer, random_inputs(args, length))


def growth(args: Arguments, mixer: nn.Module) -> dict[str, dict[int, float]]:
    """By how much the time of a mixer grows when the tokens double: all lengths in turns, since machines drift."""
    ratios = {}
    for title, make in (("forward", forward), ("forward + backward", forward_and_backward)):
        calls = {str(length): make(mixer, random_inputs(args, length)) for length in args.lengths}
        seconds = time_side_by_side(calls, args.device, args.rounds, args.limit)
        pairs = [(n, seconds.get(str(2 * n))) for n in args.lengths]
        ratios[title] = {n: double / seconds[str(n)] for n, double in pairs if double is not None}
    return ratios


def report_ratios(title: str, rows: dict[str, dict[int, float]]) -> None:
    """Prints a ratio by length, one row each."""
    print(f"\n{title}:")
    for name, values in rows.items():
        print(f"{name:>20}: " + ", ".join(f"{length:,}: {value:.2f}" for length, value in values.items()))


def quotient(a: dict[int, float], b: dict[int, float]) -> dict[int, float]:
    """Where both have a figure."""
    return {length: a[length] / b[length] for length in a if length in b}


@freed_memory_kept()
def main(arguments: list[str] | None = None) -> None:
    """Measure, print, write."""
    (args,) = parse((Arguments,), arguments)
    if args.floor and args.device != "cpu":
        raise ValueError(f"`floor` must be False, since kernels of a GPU are not recorded, on {args.device!r}.")
    torch.manual_seed(args.seed)
    longest = {SOFTMAX: args.longest_softmax, FLASH: args.longest_softmax, "linear (elu + 1)": args.longest_linear}
    longest |= {"GMA by cumsum": args.longest_cumsum, "Mamba": args.longest_mamba}
    mixers = all_mixers(args)
    at = {n: [name for name in mixers if n <= longest.get(name, n)] for n in args.lengths}

    memory, forwards, both = ({name: {} for name in mixers} for _ in range(3))
    for length, names in at.items():
        for name in names:
            memory[name][length] = peak_bytes(partial(measured_call, args, name, length), args.device) / 2**20
        inputs = random_inputs(args, length)
        for make, figures in ((forward, forwards), (forward_and_backward, both)):
            calls = {name: make(mixers[name].to(args.device), inputs) for name in names}
            if args.floor:
                calls[PRODUCTS] = products_alone(calls["GMA"], args.device)
            for name, seconds in time_side_by_side(calls, args.device, args.rounds, args.limit).items():
                figures.setdefault(name, {})[length] = seconds * 1e3
        print(f"{length:,} tokens done", flush=True)

    input_size = 3 * args.batch_size * args.heads * args.width * getattr(torch, args.dtype).itemsize / 2**20
    times = {"forward": forwards, "forward + backward": both}
    ratios = {
        "SDPA's time over GMA's": {k: quotient(x[SOFTMAX], x["GMA"]) for k, x in times.items()},
        "GMA's peak memory over the bytes of queries, keys and values": {
            "forward + backward": quotient(memory["GMA"], {n: input_size * n for n in at}),
        },
        "GMA when the tokens double": growth(args, mixers["GMA"])
        | {"peak memory": quotient({n: memory["GMA"][2 * n] for n in at if 2 * n in at}, memory["GMA"])},
    }
    if FLASH in mixers:
        ratios["FlashAttention's time over GMA's"] = {k: quotient(x[FLASH], x["GMA"]) for k, x in times.items()}
    if args.floor:
        ratios["GMA's time over that of its matrix products alone"] = {
            k: quotient(x["GMA"], x[PRODUCTS]) for k, x in times.items()
        }
    panels = {
        "forward": (forwards, "milliseconds"),
        "forward + backward": (both, "milliseconds"),
        "peak memory, forward + backward": (memory, "MiB"),
    }
    report = {"machine": machine(args.device), "arguments": asdict(args), "ratios": ratios}
    report |= {title: figures for title, (figures, _) in panels.items()}
    save(Path(args.output_dir), f"mixer_{args.device}", report, panels)
    for title, rows in ratios.items():
        report_ratios(title, rows)


if __name__ == "__main__":
    run(main)
