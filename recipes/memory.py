"""Peak memory of a part of a run, on a GPU by torch, on a CPU by what Linux says of the process."""

import ctypes
import gc
from pathlib import Path

import torch


class PeakMemory:
    """`with PeakMemory() as memory: ...`, then `memory.mebibytes`: the peak above what was there before."""

    mebibytes: float

    def __enter__(self) -> "PeakMemory":
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        else:
            ctypes.CDLL("libc.so.6").malloc_trim(0)  # what earlier runs freed is given back to the system
            Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        self.before = self.now("VmRSS", torch.cuda.memory_allocated)
        return self

    def __exit__(self, *error: object) -> None:
        self.mebibytes = (self.now("VmHWM", torch.cuda.max_memory_allocated) - self.before) / 2**20

    @staticmethod
    def now(name, on_gpu) -> int:  # noqa: ANN001
        """Bytes, by a line of /proc/self/status or by a function of torch."""
        if torch.cuda.is_available():
            return on_gpu()
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith(name)).split()[1]) * 1024
