"""These collectives let gradients flow back through them."""

import torch
import torch.distributed as dist
from torch import Tensor


# Newer versions of torch have these names, and warn about the older ones
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


class _Gather(torch.autograd.Function):
    """Gather the tensors of all ranks; the backward gives each rank the sum of the gradients for its tensor."""

    @staticmethod
    def forward(ctx, x: Tensor, group: dist.ProcessGroup) -> Tensor:  # noqa: ANN001
        ctx.group = group
        gathered = x.new_empty(dist.get_world_size(group), *x.shape)
        _all_gather(gathered.view(-1), x.contiguous().view(-1), group=group)
        return gathered

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:  # noqa: ANN001
        mine = grad.new_empty(grad.shape[1:])
        _reduce_scatter(mine.view(-1), grad.contiguous().view(-1), group=ctx.group)
        return mine, None


class _Sum(torch.autograd.Function):
    """Sum the tensors of all ranks; the backward sums their gradients."""

    @staticmethod
    def forward(ctx, x: Tensor, group: dist.ProcessGroup) -> Tensor:  # noqa: ANN001
        ctx.group = group
        total = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:  # noqa: ANN001
        total = grad.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=ctx.group)
        return total, None


def gather(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """
    Return the tensors of all ranks, `[ranks, *x.shape]`; `x` must have the same shape on every rank.

    Every rank must call this function. If one rank takes gradients through the result, every rank must do so.
    """
    return _Gather.apply(x, group)


def add_up(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Return the sum over the ranks of tensors of one shape; the rules of `gather` hold."""
    return _Sum.apply(x, group)
