"""Peak memory of a part of a run: on a GPU by torch, on a CPU by what Linux says of the process."""

import ctypes
import gc
import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


# What the processes that measure would import else, each for itself
PRELOADED = ["benchmarks.contenders", "gma_hf.recipes.arguments", "matplotlib.pyplot"]


class PeakMemory:
    """
    `with PeakMemory(device) as memory: ...`, then `memory.bytes`: the peak above what was there before.

    Args:
        device: "cuda" or "cpu"; by default that of the GPU if there is one.
    """

    bytes: int

    def __init__(self, device: str | None = None):
        self.on_gpu = torch.cuda.is_available() if device is None else device == "cuda"

    def __enter__(self) -> "PeakMemory":
        gc.collect()
        if self.on_gpu:
            torch.cuda.reset_peak_memory_stats()
            self.before = torch.cuda.memory_allocated()
        else:
            ctypes.CDLL("libc.so.6").malloc_trim(0)  # what was freed before is given back to the system
            Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
            self.before = resident("VmRSS")
        return self

    def __exit__(self, *error: object) -> None:
        self.bytes = (torch.cuda.max_memory_allocated() if self.on_gpu else resident("VmHWM")) - self.before

    @property
    def mebibytes(self) -> float:
        """The peak in MiB."""
        return self.bytes / 2**20


def resident(field: str) -> int:
    """Return a field of /proc/self/status in bytes: VmRSS, what is resident, or VmHWM, its peak."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(field))
    return int(line.split()[1]) * 1024


def peak_bytes(make_call: Callable[[], Callable[[], object]], device: str) -> int:
    """
    Return the peak memory of making a call with its inputs and calling it once, inputs and gradients included. On a
    CPU (Linux only) each is measured in a fresh process, so that `make_call` must be picklable.
    """
    return _peak(make_call, device) if device == "cuda" else in_fresh_process(_peak, make_call, device)


def _peak(make_call: Callable[[], Callable[[], object]], device: str) -> int:
    with PeakMemory(device) as memory:
        make_call()()
    return memory.bytes


def in_fresh_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """
    Return what a function returns in a process that has imported what it needs and done nothing else.

    Args:
        function: of a module, so that it can be pickled, as its arguments and what it returns must be.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(there, function, arguments))
    process.start()
    there.close()
    try:
        return here.recv()
    except EOFError as error:
        raise RuntimeError(f"The process of {function.__name__} ended in an error, which stands above.") from error
    finally:
        process.join()
        here.close()


def _send(pipe, function: Callable[..., Any], arguments: tuple) -> None:  # noqa: ANN001
    pipe.send(function(*arguments))
