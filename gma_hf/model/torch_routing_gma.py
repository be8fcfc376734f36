"""
What mixing in blocks stands on: buffers that are used again, the cut of a sequence into blocks, and the routing of a
block, forward and backward by hand. Heads come before the batch here, since the score weights are per head.
"""

import math
import threading
from typing import NamedTuple

import torch

from .compat_gma import cpu_capabilities


# Rows (sides x batch x heads x tokens) of a block: on a CPU by the cache of a core, elsewhere what fills the device.
BLOCK_ROWS_CPU = 2**13 if cpu_capabilities().get("l2_cache_size", 0) >= 2**21 else 2**12
BLOCK_ROWS = 2**20
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
        view, buffer = self.buffers.get(name, (None, None))
        if view is None or view.shape != shape:
            size = math.prod(shape)
            with torch.inference_mode(False):  # or gradients could not use it later
                if buffer is None or len(buffer) < size:
                    buffer = torch.empty(size, dtype=self.like.dtype, device=self.like.device)
                view = buffer[:size].view(shape)
            self.buffers[name] = view, buffer
        return view


class Block(NamedTuple):
    """Tokens `start` to `stop`, cut into chunks of `size` tokens; `kept`: its place among the blocks that are kept."""

    index: int
    start: int
    stop: int
    size: int
    kept: int | None


def block_tokens(x: torch.Tensor, sides: int) -> int:
    """Tokens of a block of `[B, H, N, d]`. `sides`: 2 where it has queries and keys, 1 where it has one of them."""
    batch, heads, _, _ = x.shape
    return (BLOCK_ROWS_CPU if x.device.type == "cpu" else BLOCK_ROWS) // (sides * batch * heads)


class Layout(NamedTuple):
    """
    How a sequence is cut into blocks of whole chunks, and what is left as one short chunk. The sizes are arithmetic on
    the length, so that a compiler may leave it open.
    """

    length: int
    chunk_size: int
    step: int  # tokens of a block
    whole: int  # tokens in whole chunks
    num_blocks: int
    num_kept: int  # the last ones, of which what the forward makes is kept

    @classmethod
    def of(cls, x: torch.Tensor, tokens: int, chunk_size: int, keep: bool) -> "Layout":
        """Of `[B, H, N, d]`, in blocks of at most `tokens` tokens, but one chunk at least."""
        batch, heads, length, _ = x.shape
        rows, whole = batch * heads, length - length % chunk_size
        step = min(max(1, tokens // chunk_size) * chunk_size, max(whole, chunk_size))
        rest = 1 if length > whole else 0
        kept = KEPT_ROWS // (rows * step) if keep else 0
        num_blocks = -(-whole // step) + rest
        return cls(length, chunk_size, step, whole, num_blocks, min(num_blocks, kept + min(kept, 1) * rest))

    def blocks(self) -> list[Block]:
        starts = range(0, self.whole, self.step)
        spans = [(start, min(start + self.step, self.whole), self.chunk_size) for start in starts]
        if self.whole < self.length:
            spans.append((self.whole, self.length, self.length - self.whole))
        dropped = len(spans) - self.num_kept
        return [Block(i, *span, i - dropped if i >= dropped else None) for i, span in enumerate(spans)]

    def cut(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The blocks of `[H, B, N, d]`: views of `x`, `[H, B, L, d]`."""
        return x.split([block.stop - block.start for block in self.blocks()], dim=2)


def features(work: Workspace, sides: list[torch.Tensor], centre: torch.Tensor) -> torch.Tensor:
    """`[x * x, x]` of a block of queries and keys `[H, B, L, d_r]`, or one, centred: `[sides * H, B * L, 2 d_r]`."""
    heads, batch, length, width = sides[0].shape
    both = work("features", len(sides) * heads, batch * length, 2 * width)
    squares, centred = both.view(len(sides), heads, batch, length, 2 * width).split(width, dim=-1)
    centre = centre.view(heads, 1, 1, width)
    for x, target in zip(sides, centred):
        torch.sub(x, centre, out=target)
    torch.mul(centred, centred, out=squares)
    return both


def score(work: Workspace, features: torch.Tensor, weights: torch.Tensor, constant: torch.Tensor) -> torch.Tensor:
    """Scores `[sides * H, B * L, K]` by one matrix product; their softmax are the responsibilities (paper eq. 2)."""
    out = work("scores", *features.shape[:2], weights.shape[-1])
    return torch.baddbmm(constant[:, None], features, weights, out=out)


def grad_scores(gamma: torch.Tensor, grad_gamma: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """`d gamma_k / d s_l = gamma_k (delta_kl - gamma_l)`, into `out`; zero for a masked row, where gamma is zero."""
    torch._softmax_backward_data(grad_gamma, gamma, -1, gamma.dtype, grad_input=out)
    return out


class Lifted(NamedTuple):
    """
    What a read exponent makes of the scores of queries: `s_k - p log w_k`, whose softmax are their `reading_weights`,
    where `w = z + eps` is what a slot holds. `[rows, tokens or 1, K]`, the rows of a head one after another.
    """

    held: torch.Tensor  # w
    log_held: torch.Tensor
    exponent: torch.Tensor  # p, [rows, 1, 1]

    @classmethod
    def of(cls, held: torch.Tensor, log_held: torch.Tensor, exponent: torch.Tensor) -> "Lifted":
        """Of `w`, its logarithm, and p of each head, `[H]`."""
        return cls(held, log_held, exponent.repeat_interleave(len(held) // len(exponent))[:, None, None])

    def lift(self, scores: torch.Tensor) -> None:
        """Change scores `[rows, tokens, K]` of queries in place."""
        scores.addcmul_(self.log_held, self.exponent, value=-1)

    def grad_held(self, work: Workspace, grad: torch.Tensor) -> torch.Tensor:
        """The gradient of `w` for each query, from that of the lifted scores, `[rows, tokens, K]`."""
        out = torch.div(grad, self.held, out=work("grad_held", *grad.shape))
        return out.mul_(-self.exponent)

    def grad_exponent(self, grad: torch.Tensor, heads: int) -> torch.Tensor:
        """The gradient of p of each head, `[H]`, from that of the lifted scores."""
        if self.log_held.shape[1] == 1:
            grad = grad.sum(1)
        return -torch.bmm(grad.view(heads, 1, -1), self.log_held.view(heads, -1, 1)).view(-1)


class RoutingGradients:
    """
    Block by block those of queries and keys (or one of them), and those of the weights of their scores, `[sides * H,
    2 d_r, K]`, and of the constants as sums over the blocks.
    """

    def __init__(self, weights: torch.Tensor):
        self.transposed_weights = weights.mT
        self.weights = weights.new_zeros(weights.shape)
        self.constant = weights.new_zeros(weights[:, 0].shape)

    def add(
        self,
        work: Workspace,
        inputs: list[torch.Tensor],
        features: torch.Tensor,
        grad_scores: torch.Tensor,
    ) -> None:
        """
        Adds those of one block: the scores are linear in the features.

        Args:
            inputs: filled with the gradients of the block's queries and keys, `[H, B, L, d_r]` each.
            grad_scores: gradient of the scores, in any view of `[sides * H, B * L, K]`.
        """
        rows, columns, width = features.shape
        grad = grad_scores.view(rows, columns, -1)
        self.weights.baddbmm_(features.mT, grad)
        self.constant.add_(grad.sum(1))
        grad = torch.bmm(grad, self.transposed_weights, out=work("grad_features", *features.shape))
        parts = (x.view(len(inputs), *inputs[0].shape[:3], width).split(width // 2, dim=-1) for x in (grad, features))
        (grad_squares, grad_centred), (_, centred) = parts
        for target, *terms in zip(inputs, grad_centred, centred, grad_squares):
            torch.addcmul(*terms, value=2, out=target)


def rows_first(state: torch.Tensor) -> torch.Tensor:
    """A state `[B, H, K, d_v + 1]` as `[H * B, K, d_v + 1]`, in memory of its own."""
    return state.transpose(0, 1).flatten(0, 1).clone()


def batch_first(state: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """A state `[H * B, K, d_v + 1]` as `[B, H, K, d_v + 1]`; `like`: `[B, H, ...]`."""
    return state.unflatten(0, (like.shape[1], like.shape[0])).transpose(0, 1).contiguous()


def extend_values(work: Workspace, values: torch.Tensor) -> torch.Tensor:
    """A block of values `[H, B, L, d_v]` with a column of ones, `[H, B, L, d_v + 1]`."""
    *shape, width = values.shape
    extended = work("values", *shape, width + 1)
    same, ones = extended.split([width, 1], dim=-1)
    same.copy_(values)
    ones.fill_(1)
    return extended


def read_weighted(weighted: torch.Tensor, epsilon: float, output: torch.Tensor, normaliser: torch.Tensor) -> None:
    """
    `O = GammaQ M / (GammaQ z + eps)` of a block, from `weighted = GammaQ [M, z]`, `[H, B, L, d_v + 1]` in any view.

    Args:
        output: filled with O, `[H, B, L, d_v]`.
        normaliser: filled with `GammaQ z + eps`, `[H, B, L, 1]`.
    """
    *shape, width = output.shape
    weighted, total = weighted.view(*shape, width + 1).split([width, 1], dim=-1)
    torch.add(total, epsilon, out=normaliser)
    torch.div(weighted, normaliser, out=output)


def grad_weighted(
    work: Workspace, grad_output: torch.Tensor, output: torch.Tensor, normaliser: torch.Tensor
) -> torch.Tensor:
    """Gradient of `weighted` from that of `output`, see `read_weighted`; `[H, B, L, d_v + 1]`."""
    *shape, width = output.shape
    grad = work("grad_weighted", *shape, width + 1)
    weighted, total = grad.split([width, 1], dim=-1)
    torch.div(grad_output, normaliser, out=weighted)
    product = torch.mul(weighted, output, out=work("product", *shape, width))
    torch.sum(product, dim=-1, keepdim=True, out=total).neg_()
    return grad
