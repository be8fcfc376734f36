"""
The scan of Transformers' Mamba on a CPU, a token at a time with a backward by hand. What Transformers has where there
are no CUDA kernels takes several times as long.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.models.mamba import modeling_mamba


NAME = "mamba_selective_scan"  # in that file


class Scan(torch.autograd.Function):
    """
    `h_t = exp(dt_t A) h_{t-1} + B_t x_t` and `y_t = C_t^T h_t`, for N tokens, B rows, D channels with S states each:
    x and dt `[N, B, D]`, A `[S, D]`, B and C `[N, B, S]`, all float32 and contiguous; y `[N, B, D]`.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
        """Return y."""
        states = x.new_empty(*B.shape, x.shape[-1])  # [N, B, S, D]
        state, kept = torch.zeros_like(states[0]), torch.empty_like(states[0])
        for x_t, dt_t, b_t, new in zip(x, dt, B, states):
            torch.mul(dt_t[:, None], A, out=kept).exp_().mul_(state)
            state = torch.mul(b_t[..., None], x_t[:, None], out=new).add_(kept)  # five times as fast as addcmul
        ctx.save_for_backward(x, dt, A, B, C, states)
        return (C[..., None, :] @ states)[..., 0, :]

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, ...]:
        """Return the gradients of x, dt, A, B and C."""
        x, dt, A, B, C, states = ctx.saved_tensors
        dy = dy.contiguous()
        gradients, d_dt = torch.empty_like(states), torch.empty_like(dt)
        carried, kept, d_A, product = (torch.zeros_like(states[0]) for _ in range(4))
        for t in reversed(range(len(x))):
            gradient = torch.mul(C[t, ..., None], dy[t, :, None], out=gradients[t]).add_(carried)
            torch.mul(dt[t, :, None], A, out=kept).exp_()
            torch.mul(kept, gradient, out=carried)
            if t == 0:
                d_dt[0] = 0  # nothing was kept of what was before
                break
            torch.mul(carried, states[t - 1], out=kept)  # of the logarithm of what is kept
            d_A.add_(torch.mul(kept, dt[t, :, None], out=product))
            torch.sum(kept.mul_(A), dim=1, out=d_dt[t])
        d_x = (B[..., None, :] @ gradients)[..., 0, :]
        d_B = (gradients @ x[..., None])[..., 0]
        d_C = (states @ dy[..., None])[..., 0]
        return d_x, d_dt, d_A.sum(dim=0), d_B, d_C


def selective_scan(
    hidden_states: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    z: Tensor,
    delta_bias: Tensor,
    **kwargs: Any,
) -> Tensor:
    """
    Return what Transformers' function of that name does for a whole sequence.

    Args:
        hidden_states, dt, z: `[B, D, N]`.
        A: `[D, S]`.
        B, C: `[B, S, N]`.
        D, delta_bias: `[D]`.
    """
    dt = F.softplus(dt + delta_bias[:, None])
    time_first = ((dt * hidden_states), dt, B, C)
    x, dt, B, C = (tensor.permute(2, 0, 1).contiguous() for tensor in time_first)
    output = Scan.apply(x, dt, A.T.contiguous(), B, C).permute(1, 2, 0)
    return (output + hidden_states * D[:, None]) * F.silu(z)


@contextmanager
def fast_scan() -> Iterator[None]:
    """Let Transformers' Mamba scan by `selective_scan` in the block, where its release has such a function."""
    before = getattr(modeling_mamba, NAME, None)
    if before is not None:
        setattr(modeling_mamba, NAME, selective_scan)
    try:
        yield
    finally:
        if before is not None:
            setattr(modeling_mamba, NAME, before)
