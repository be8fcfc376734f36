"""What the benchmarks share: timing side by side, the machine in words, tables, JSON and plots."""

import ctypes
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

import torch
import transformers

from . import style


# A figure by contender and by length (tokens), absent where it was left out.
Figures = dict[str, dict[int, float]]


def machine(device: str) -> str:
    """Return the machine and the versions, in one line."""
    if device == "cuda":
        triton = next(iter(metadata.distributions(name="triton")), None)
        kernels = "without Triton" if triton is None else f"Triton {triton.version}"
        hardware = f"{torch.cuda.get_device_name()}, {kernels}"
    else:
        lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
        names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
        hardware = f"{names[0] if names else platform.processor()}, {torch.get_num_threads()} threads"
    return f"{hardware}; torch {torch.__version__}, transformers {transformers.__version__}"


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """
    Let glibc keep what is freed in the block, for all contenders. It gives large tensors back to Linux otherwise, and
    when the next one is written each of its pages is a fault.
    """
    libc = ctypes.CDLL("libc.so.6")
    map_max, trim_threshold = -4, -1  # M_MMAP_MAX, M_TRIM_THRESHOLD
    libc.mallopt(map_max, 0)
    libc.mallopt(trim_threshold, 2**31 - 1)
    try:
        yield
    finally:  # what glibc starts with
        libc.mallopt(map_max, 65536)
        libc.mallopt(trim_threshold, 128 * 1024)


def _seconds(call: Callable[[], object], device: str, clock: Callable[[], float]) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    start = clock()
    call()
    if device == "cuda":
        torch.cuda.synchronize()
    return clock() - start


def time_side_by_side(
    calls: dict[str, Callable[[], object]],
    device: str,
    rounds: int,
    limit: float,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """
    Return the median seconds of each call. The calls take turns, so that whatever else the machine does falls on all
    of them; what takes longer than `limit` seconds in its first turn is not called again.

    Raises:
        ValueError: for fewer `rounds` than one.
    """
    if rounds < 1:
        raise ValueError(f"`rounds` must be at least 1, but it is {rounds}.")
    seconds = {name: [] for name in calls}
    for call in calls.values():  # warm up: allocator, threads, kernels
        call()
    for turn in range(rounds):
        for name, call in calls.items():
            if turn == 0 or seconds[name][0] <= limit:
                seconds[name].append(_seconds(call, device, clock))
    return {name: statistics.median(values) for name, values in seconds.items()}


def table(title: str, figures: Figures, unit: str) -> str:
    """Return a table with lengths as rows and contenders as columns."""
    lengths = sorted({length for column in figures.values() for length in column})
    lines = [
        f"\n{title} ({unit})",
        "tokens".rjust(8) + "".join(name.rjust(max(14, len(name) + 2)) for name in figures),
    ]
    for length in lengths:
        cells = []
        for name, column in figures.items():
            value = column.get(length)
            cells.append(("-" if value is None else f"{value:,.4g}").rjust(max(14, len(name) + 2)))
        lines.append(f"{length:>8,}" + "".join(cells))
    return "\n".join(lines)


def plot(path: Path, panels: dict[str, tuple[Figures, str]]) -> None:
    """Draw one panel per title, both axes logarithmic: tokens, and the figure in its unit."""
    figure, axes = style.new(1, len(panels), (4.9, 3.5))
    for axis, (title, (figures, unit)) in zip(axes[0], panels.items()):
        style.by_tokens(axis, figures, title, unit)
    style.save(figure, path)


def save(folder: Path, name: str, report: dict, panels: dict[str, tuple[Figures, str]]) -> None:
    """Print the tables and write `name.json` and `name.png`."""
    folder.mkdir(parents=True, exist_ok=True)
    print(report["machine"])
    for title, (figures, unit) in panels.items():
        print(table(title, figures, unit))
    (folder / f"{name}.json").write_text(json.dumps(report, indent=2) + "\n")
    plot(folder / f"{name}.png", panels)
