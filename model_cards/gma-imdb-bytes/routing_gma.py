"""
What mixing in blocks stands on: buffers that are used again, the cut of a sequence into blocks, and the routing of a
block, forward and backward by hand. Heads come before the batch here, since the score weights are per head.
"""

import threading
from typing import NamedTuple

import torch


# A copy of these files that travels with a checkpoint registers operators of its own
NAMESPACE = __name__.replace(".", "_")
# Rows (sides x batch x heads x tokens) of a block: on a CPU what stays in the cache, elsewhere what fills the device.
BLOCK_ROWS_CPU, BLOCK_ROWS = 2**12, 2**20
# Rows (batch x heads x tokens) of which the backward finds what the forward made: a bound that does not grow with N.
KEPT_ROWS = 2**13


_CPU_BUFFERS = threading.local()


class Workspace:
    """
    Buffers by name, used again for each block, and on a CPU for each call of a thread: there, fresh memory costs as
    much as the arithmetic on it. Their size is that of a block, whatever the sequence.
    """

    def __init__(self, like: torch.Tensor):
        self.like = like
        self.buffers = vars(_CPU_BUFFERS).setdefault(like.dtype, {}) if like.device.type == "cpu" else {}

    def __call__(self, name: str, *shape: int) -> torch.Tensor:
        size = torch.Size(shape).numel()
        if name not in self.buffers or self.buffers[name].numel() < size:
            with torch.inference_mode(False):  # or gradients could not use it later
                self.buffers[name] = torch.empty(size, dtype=self.like.dtype, device=self.like.device)
        return self.buffers[name][:size].view(shape)


def refuse_second_derivative(ctx, *grads: torch.Tensor) -> None:
    """The derivative of an operator that is itself a backward by hand."""
    raise NotImplementedError(
        "GMA has no second derivative: `create_graph` must be False where a gradient passes through its mixer, but it "
        "is True."
    )


class Block(NamedTuple):
    """Tokens `start` to `stop`, cut into chunks of `size` tokens; `kept`: its place among the blocks that are kept."""

    start: int
    stop: int
    size: int
    kept: int | None


class Layout(NamedTuple):
    """
    How a sequence is cut into blocks of whole chunks, and what is left as one short chunk. The sizes are arithmetic on
    the length, so that a compiler may leave it open.
    """

    length: int
    rows: int  # batch x heads
    chunk_size: int
    step: int  # tokens of a block
    whole: int  # tokens in whole chunks
    num_blocks: int
    num_kept: int  # the last ones, of which what the forward makes is kept

    @classmethod
    def of(cls, queries: torch.Tensor, sides: int, chunk_size: int, keep: bool) -> "Layout":
        """`sides`: 2 where a block has queries and keys, 1 where it has one of them, and so twice the tokens."""
        batch, heads, length, _ = queries.shape
        rows, whole = batch * heads, length - length % chunk_size
        block_rows = BLOCK_ROWS_CPU if queries.device.type == "cpu" else BLOCK_ROWS
        step = min(max(1, block_rows // (sides * rows * chunk_size)) * chunk_size, max(whole, chunk_size))
        rest = 1 if length > whole else 0
        kept = KEPT_ROWS // (rows * step) if keep else 0
        num_blocks = -(-whole // step) + rest
        return cls(length, rows, chunk_size, step, whole, num_blocks, min(num_blocks, kept + min(kept, 1) * rest))

    def blocks(self) -> list[Block]:
        starts = range(0, self.whole, self.step)
        spans = [(start, min(start + self.step, self.whole), self.chunk_size) for start in starts]
        if self.whole < self.length:
            spans.append((self.whole, self.length, self.length - self.whole))
        dropped = len(spans) - self.num_kept
        return [Block(*span, index - dropped if index >= dropped else None) for index, span in enumerate(spans)]


def features(work: Workspace, block: Block, sides: list[torch.Tensor], centre: torch.Tensor) -> torch.Tensor:
    """`[x * x, x]` of centred queries and keys `[B, H, N, d_r]`, or one of them, `[sides * H, B * L, 2 d_r]`."""
    batch, heads, _, width = sides[0].shape
    length = block.stop - block.start
    both = work("features", len(sides), heads, batch, length, 2 * width)
    for target, x in zip(both, sides):
        torch.sub(x.transpose(0, 1)[:, :, block.start : block.stop], centre[:, None, None], out=target[..., width:])
    torch.mul(both[..., width:], both[..., width:], out=both[..., :width])
    return both.view(len(sides) * heads, batch * length, 2 * width)


def route(
    work: Workspace, features: torch.Tensor, weights: torch.Tensor, constant: torch.Tensor, out: torch.Tensor
) -> torch.Tensor:
    """Responsibilities `[sides * H, B * L, K]`, into `out`: one matrix product and a softmax (paper eq. 2)."""
    scores = torch.baddbmm(constant[:, None], features, weights, out=work("scores", *out.shape))
    return torch.softmax(scores, dim=-1, out=out)


class RoutingGradients:
    """
    Collects the gradients of queries and keys (or one of them), and of the weights of their scores.

    Args:
        inputs: queries and keys, `[B, H, N, d_r]` each.
        weights: `[sides * H, 2 d_r, K]`.
    """

    def __init__(self, inputs: list[torch.Tensor], weights: torch.Tensor):
        self.inputs = [torch.empty_like(x) for x in inputs]
        self.transposed_weights = weights.transpose(1, 2)
        self.weights = torch.zeros_like(weights)
        self.constant = torch.zeros_like(weights[:, 0])

    def add(
        self, work: Workspace, block: Block, features: torch.Tensor, gamma: torch.Tensor, grad_gamma: torch.Tensor
    ) -> None:
        """
        Adds those of one block: `d gamma_k / d s_l = gamma_k (delta_kl - gamma_l)`, and the scores are linear in the
        features. A masked row of gamma is zero, and so is its gradient.

        Args:
            gamma, grad_gamma: responsibilities and their gradient, in any view of `[sides * H, B * L, K]`.
        """
        gamma, grad_gamma = (x.view(*features.shape[:2], -1) for x in (gamma, grad_gamma))
        grad = work("scores", *gamma.shape)
        torch._softmax_backward_data(grad_gamma, gamma, -1, gamma.dtype, grad_input=grad)
        self.weights.baddbmm_(features.transpose(1, 2), grad)
        self.constant.add_(grad.sum(1))
        grad = torch.bmm(grad, self.transposed_weights, out=work("grad_features", *features.shape))
        width = features.shape[-1] // 2
        squares, grad = grad.split(width, dim=-1)
        sides = (x.unflatten(0, (len(self.inputs), -1)) for x in (grad, features[..., width:], squares))
        for target, grad, x, squares in zip(self.inputs, *sides):
            target = target.transpose(0, 1)[:, :, block.start : block.stop]
            grad, x, squares = (t.view(target.shape) for t in (grad, x, squares))
            torch.addcmul(grad, x, squares, value=2, out=target)


def rows_first(state: torch.Tensor) -> torch.Tensor:
    """A state `[B, H, K, d_v + 1]` as `[H * B, K, d_v + 1]`, in memory of its own."""
    return state.transpose(0, 1).flatten(0, 1).clone()


def batch_first(state: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """A state `[H * B, K, d_v + 1]` as `[B, H, K, d_v + 1]`; `like`: `[B, H, ...]`."""
    return state.unflatten(0, (like.shape[1], like.shape[0])).transpose(0, 1).contiguous()


def extend_values(work: Workspace, block: Block, values: torch.Tensor) -> torch.Tensor:
    """Values `[B, H, N, d_v]` of a block with a column of ones, `[H, B, L, d_v + 1]`."""
    values = values.transpose(0, 1)[:, :, block.start : block.stop]
    *shape, width = values.shape
    extended = work("values", *shape, width + 1)
    extended[..., :width].copy_(values)
    extended[..., width:].fill_(1)
    return extended


def read_weighted(
    block: Block, weighted: torch.Tensor, epsilon: float, output: torch.Tensor, normaliser: torch.Tensor
) -> None:
    """
    `O = GammaQ M / (GammaQ z + eps)` of a block, from `weighted = GammaQ [M, z]`, `[H, B, L, d_v + 1]` in any view.

    Args:
        output: filled with O, `[B, H, N, d_v]`.
        normaliser: filled with `GammaQ z + eps`, `[H, B, N, 1]`.
    """
    normaliser = normaliser[:, :, block.start : block.stop]
    weighted = weighted.view(*normaliser.shape[:3], -1)
    torch.add(weighted[..., -1:], epsilon, out=normaliser)
    torch.div(weighted[..., :-1], normaliser, out=output.transpose(0, 1)[:, :, block.start : block.stop])


def grad_weighted(
    work: Workspace, block: Block, grad_output: torch.Tensor, output: torch.Tensor, normaliser: torch.Tensor
) -> torch.Tensor:
    """Gradient of `weighted` from that of `output`, see `read_weighted`; `[H, B, L, d_v + 1]`."""
    grad_output, output = (x.transpose(0, 1)[:, :, block.start : block.stop] for x in (grad_output, output))
    *shape, width = output.shape
    grad = work("grad_weighted", *shape, width + 1)
    torch.div(grad_output, normaliser[:, :, block.start : block.stop], out=grad[..., :width])
    product = torch.mul(grad[..., :width], output, out=work("product", *shape, width))
    torch.sum(product, dim=-1, keepdim=True, out=grad[..., width:])
    grad[..., width:].neg_()
    return grad
