"""What computes the causal mixer: plain torch, our Triton kernels, or flash-linear-attention."""

import torch
from torch import Tensor

from .fla_gma import has_fla
from .functional_gma import ScoreWeights
from .routing_kernels_gma import MAX_COMPONENTS, can_route
from .triton_gma import IS_INTERPRETED, has_kernels


BACKENDS = ("auto", "torch", "triton", "fla")


def choose_backend(backend: str, queries: Tensor, scores: ScoreWeights) -> str:
    """
    Whether `"torch"`, `"triton"` or `"fla"` is to mix.

    Args:
        backend: `mixer_backend` of the config. `"auto"` is our kernels on a GPU where they can be had; for what they
            do not take, flash-linear-attention where it is installed, unless `torch.compile` is at work, whose graph
            it breaks. Float64 is for torch in any case.
        queries, scores: what is to be mixed.

    Raises:
        ValueError: for another backend, and for one that cannot be had.
    """
    if backend not in BACKENDS:
        raise ValueError(f"`mixer_backend` must be one of {', '.join(BACKENDS)}, but it is {backend!r}.")
    problem = _problem(backend, queries, scores)
    if problem is not None:
        raise ValueError(f"`mixer_backend` is {backend!r}, {problem}, or set `mixer_backend` to 'auto' or 'torch'.")
    if queries.dtype == torch.float64:
        return "torch"
    if backend != "auto":
        return backend
    if queries.is_cuda and can_route(queries, scores):
        return "triton"
    return "fla" if queries.is_cuda and not torch.compiler.is_compiling() and has_fla() else "torch"


def _problem(backend: str, queries: Tensor, scores: ScoreWeights) -> str | None:
    """What is wrong with a backend that somebody asks for, and what would mend it."""
    if backend in ("auto", "torch"):
        return None
    if not (queries.is_cuda or backend == "triton" and IS_INTERPRETED):
        return f"which needs a model on a CUDA device, but it is on {queries.device.type}: move it"
    if backend == "fla":
        missing = "but flash-linear-attention or its Triton is not installed: `pip install gma-hf[fla]`"
        return None if has_fla() else missing
    if not has_kernels(queries.device):
        return (
            "which needs Triton and an NVIDIA GPU of compute capability 8.0 or more: install Triton, take such a GPU"
        )
    components = scores.constant.shape[-1]
    if components > MAX_COMPONENTS:
        return f"whose kernels take at most {MAX_COMPONENTS} components, but there are {components}: take fewer"
    return None
