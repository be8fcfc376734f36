"""
The causal form of many tokens as one operator, forward and backward by hand (paper 3.6).

Inside a chunk of tokens a masked (or decay-weighted) product of responsibilities, across chunks a running state, by
one product for the chunks of a block, in which what comes later counts 0 times: what is infinite or NaN is felt by the
earlier tokens of its block too. The operator walks from block to block, keeps its inputs, its output with the
normaliser and the state before each block, and computes the responsibilities again in the backward, but for those of
the last blocks, which are kept: what it stores of a long sequence beyond inputs and output are states.
`torch.compile` takes it as one node, whatever the length. A second derivative is refused.

Inside, heads come before the batch.
"""

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .functional_gma import decay_between
from .routing_gma import (
    NAMESPACE,
    Block,
    Layout,
    RoutingGradients,
    Workspace,
    batch_first,
    block_tokens,
    extend_values,
    features,
    grad_weighted,
    read_weighted,
    refuse_second_derivative,
    route,
    rows_first,
)


# Chunks of a block: the product that carries states from chunk to chunk grows with their square.
BLOCK_CHUNKS = 64


class _Decay(NamedTuple):
    """
    What the gate and the borders of segments leave of what was written, as factors; None for 1. A block has n chunks
    of each row, `chunks` in all.
    """

    between: Tensor  # from the end of a chunk to the start of a later one, else 0: [H * B, n later, n]
    inside: Tensor | None = None  # from token to token of a chunk: [chunks, C, C]
    read: Tensor | None = None  # from the start of the chunk to a token: [chunks, C, 1]
    write: Tensor | None = None  # from a token to the end of the chunk: [chunks, C, 1]
    carry: Tensor | None = None  # over a chunk: [H * B, n, 1]
    first: Tensor | None = None  # from the start of the block to that of a chunk: [H * B, n, 1]
    last: Tensor | None = None  # from the end of a chunk to that of the block: [H * B, n, 1]

    @classmethod
    def of(cls, block: Block, heads: int, batch: int, earlier, log_decay, segments) -> "_Decay":
        """
        From log decays `[B, H, N]` and segments `[B, N]`, or None of one or both. `earlier`: ones below the diagonal,
        for as many chunks as a block has at most.
        """
        rows, chunks = heads * batch, (block.stop - block.start) // block.size
        earlier = earlier[:chunks, :chunks]
        if log_decay is None and segments is None:
            return cls(earlier.expand(rows, -1, -1))
        if log_decay is None:
            elapsed = earlier.new_zeros(heads, batch, chunks, block.size)
        else:
            elapsed = log_decay.transpose(0, 1)[:, :, block.start : block.stop]
            elapsed = elapsed.unflatten(-1, (chunks, block.size)).cumsum(-1)
        total = elapsed[..., -1:]
        inside, read, write, carry = decay_between(elapsed), elapsed.exp(), (total - elapsed).exp(), total.exp()
        if segments is not None:
            here = segments[:, block.start : block.stop].unflatten(-1, (chunks, block.size))
            last = here[..., -1:]
            before = segments[:, block.start - 1] if block.start else torch.zeros_like(segments[:, 0])
            before = torch.cat([before[:, None, None], last[:, :-1]], dim=1)
            inside = inside * (here[..., :, None] == here[..., None, :])
            read, write, carry = read * (here == before), write * (here == last), carry * (before == last)
        carry = carry.reshape(rows, chunks, 1)
        since = torch.where(earlier > 0, carry, 1).cumprod(1)  # from the end of a chunk to that of a later one
        return cls(
            F.pad(since[:, :-1], (0, 0, 1, 0)) * earlier,
            inside.reshape(-1, block.size, block.size),
            read.reshape(-1, block.size, 1),
            write.reshape(-1, block.size, 1),
            carry,
            first=F.pad(carry[:, :-1].cumprod(1), (0, 0, 1, 0), value=1),
            last=since[:, -1, :, None],
        )


class _Chunks(NamedTuple):
    """What forward and backward of a block of chunks share; `[chunks, ...]` where not said otherwise."""

    features: Tensor  # [2 H, B L, 2 d_r]
    gamma: Tensor  # of queries and of keys, [2, chunks, C, K]
    values: Tensor  # [chunks, C, d_v + 1]
    affinity: Tensor  # [chunks, C, C], with the causal mask and decays
    decay: _Decay
    before: Tensor  # the state before each chunk, [H * B, chunks of a row, K, d_v + 1]
    after: Tensor | None = None  # the state after the last chunk, [H * B, K, d_v + 1], unless the block was kept


class _CausalScan:
    """The causal form block by block: what both of its operators compute from the inputs."""

    def __init__(self, layout: Layout, queries, keys, values, weights, constant, centre, mask, log_decay, segments):
        self.sides = list(zip(*(layout.cut(x.transpose(0, 1)) for x in (queries, keys))))
        self.values = layout.cut(values.transpose(0, 1))
        self.weights, self.constant, self.centre = weights.flatten(0, 1), constant.flatten(0, 1), centre
        self.mask, self.log_decay, self.segments = mask, log_decay, segments
        self.work, chunks = Workspace(centre), layout.step // layout.chunk_size
        self.earlier = centre.new_ones(chunks, chunks).tril(-1)

    def chunks(self, block: Block, state: Tensor, kept: Tensor, is_filled: bool) -> _Chunks:
        """
        Args:
            state: the state before the block, `[H * B, K, d_v + 1]`.
            kept: what is kept of the last blocks, `[blocks, numbers]`, to read (`is_filled`) or to write.
        """
        work, values = self.work, self.values[block.index]
        rows, components, width = state.shape
        heads, batch, length, _ = values.shape
        chunks = rows * length // block.size
        x = features(work, self.sides[block.index], self.centre)
        values = extend_values(work, values).view(chunks, block.size, width)
        decay = _Decay.of(block, heads, batch, self.earlier, self.log_decay, self.segments)

        shapes = {
            "gamma": (2, chunks, block.size, components),
            "affinity": (chunks, block.size, block.size),
            "before": (rows, chunks // rows, components, width),
        }
        if block.kept is None:
            gamma, affinity, before = (work(name, *shape) for name, shape in shapes.items())
        else:
            gamma, affinity, before, unused = _parts(kept[block.kept], shapes.values())
        made = _Chunks(x, gamma, values, affinity, decay, before)
        if block.kept is not None:
            if is_filled:
                return made
            unused.zero_()  # after a shorter block: an operator returns nothing undefined

        query_gamma, key_gamma = gamma
        route(work, x, self.weights, self.constant, out=gamma.view(*x.shape[:2], components))
        if self.mask is not None:
            key_gamma.view(heads, batch, length, components).mul_(self.mask[:, block.start : block.stop, None])
        torch.bmm(query_gamma, key_gamma.mT, out=affinity)
        affinity.tril_() if decay.inside is None else affinity.mul_(decay.inside)
        writing = _times(key_gamma, decay.write)
        written = torch.bmm(writing.mT, values, out=work("written", chunks, components, width)).view(before.shape)
        _sum_over_chunks(decay.between, written, _times(state.view(rows, 1, -1), decay.first), out=before)
        return made._replace(after=_carry_on(before[:, -1], decay.carry, -1, written[:, -1]))


def _layout(queries: Tensor, chunk_size: int, keep: bool) -> Layout:
    return Layout.of(queries, min(block_tokens(queries, sides=2), BLOCK_CHUNKS * chunk_size), chunk_size, keep)


def _parts(flat: Tensor, shapes: Iterable[tuple[int, ...]]) -> list[Tensor]:
    """Views of `flat`, one after another, and what is left of it."""
    sizes = [math.prod(shape) for shape in shapes]
    *parts, rest = flat.split([*sizes, len(flat) - sum(sizes)])
    return [*(part.view(shape) for part, shape in zip(parts, shapes)), rest]


def _times(x: Tensor, factor: Tensor | None) -> Tensor:
    return x if factor is None else x * factor


def _sum_over_chunks(between: Tensor, x: Tensor, edge: Tensor, out: Tensor) -> None:
    """
    `between x + edge`: of what each chunk of a block adds, what has added up where a chunk begins; of gradients, with
    `between` transposed, where it ends.

    Args:
        x, out: `[H * B, n, K, d_v + 1]`.
        edge: what comes from outside the block, `[H * B, 1 or n, K * (d_v + 1)]`.
    """
    torch.baddbmm(edge, between, x.flatten(2), out=out.flatten(2))


def _carry_on(x: Tensor, carry: Tensor | None, chunk: int, new: Tensor) -> Tensor:
    return x + new if carry is None else torch.addcmul(new, x, carry[:, chunk, :, None])


@torch.library.custom_op(f"{NAMESPACE}::causal", mutates_args=())
def causal_scan(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    weights: Tensor,
    constant: Tensor,
    centre: Tensor,
    mask: Tensor | None,
    log_decay: Tensor | None,
    segments: Tensor | None,
    state: Tensor,
    epsilon: float,
    chunk_size: int,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """
    Output and last state, and for the backward the normaliser `GammaQ z + eps` `[B, H, N, 1]`, the state before each
    block `[blocks, H * B, K, d_v + 1]`, and what is kept of the last blocks `[blocks, numbers]`.
    """
    with torch.autocast(device_type=values.device.type, enabled=False):
        output, last, normaliser, states, kept = _buffers(queries, values, state, chunk_size, keep)
        layout = _layout(queries, chunk_size, keep)
        scan = _CausalScan(layout, queries, keys, values, weights, constant, centre, mask, log_decay, segments)
        outputs, normalisers = (layout.cut(x.transpose(0, 1)) for x in (output, normaliser))
        running = rows_first(state)
        for block, before, *results in zip(layout.blocks(), states, outputs, normalisers):
            before.copy_(running)
            chunks = scan.chunks(block, running, kept, is_filled=False)
            weighted = torch.bmm(chunks.affinity, chunks.values, out=scan.work("weighted", *chunks.values.shape))
            weighted.baddbmm_(_times(chunks.gamma[0], chunks.decay.read), chunks.before.flatten(0, 1))
            read_weighted(weighted, epsilon, *results)
            running = chunks.after
        last.copy_(batch_first(running, values))
        return output, last, normaliser, states, kept


@causal_scan.register_fake
def _(queries, keys, values, weights, constant, centre, mask, log_decay, segments, state, epsilon, chunk_size, keep):
    return _buffers(queries, values, state, chunk_size, keep)


def _buffers(queries, values, state, chunk_size, keep):
    layout = _layout(queries, chunk_size, keep)
    batch, heads, components, width = state.shape
    per_row = 2 * components * chunk_size + chunk_size**2 + components * width  # of a chunk: see `_CausalScan.chunks`
    return (
        torch.empty_like(values),
        torch.empty_like(state, memory_format=torch.contiguous_format),
        state.new_empty(batch, heads, layout.length, 1),
        state.new_empty(layout.num_blocks, heads * batch, components, width),
        state.new_empty(layout.num_kept, layout.step * heads * batch * per_row // chunk_size),
    )


@torch.library.custom_op(f"{NAMESPACE}::causal_backward", mutates_args=())
def _backward(
    grad_output: Tensor,
    grad_state: Tensor,
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    weights: Tensor,
    constant: Tensor,
    centre: Tensor,
    mask: Tensor | None,
    log_decay: Tensor | None,
    segments: Tensor | None,
    output: Tensor,
    normaliser: Tensor,
    states: Tensor,
    kept: Tensor,
    chunk_size: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of queries, keys, values, weights, constant, log decays (empty without a gate) and the first state."""
    with torch.autocast(device_type=values.device.type, enabled=False):
        layout = _layout(queries, chunk_size, keep=len(kept) > 0)
        scan = _CausalScan(layout, queries, keys, values, weights, constant, centre, mask, log_decay, segments)
        work, routing = scan.work, RoutingGradients(scan.weights)
        grads = [torch.empty_like(x) for x in (queries, keys, values)]
        grad_log_decay = states.new_empty(0) if log_decay is None else torch.empty_like(log_decay)
        tensors = (grad_output, output, normaliser, *grads)
        pieces = zip(layout.blocks(), states, *(layout.cut(x.transpose(0, 1)) for x in tensors))
        running = rows_first(grad_state)  # gradient of the state after the block at hand
        for block, state, *incoming, query_target, key_target, value_target in reversed(list(pieces)):
            c = scan.chunks(block, state, kept, is_filled=True)
            grad = grad_weighted(work, *incoming).view(c.values.shape)

            query_gamma, key_gamma = c.gamma
            reading, writing = _times(query_gamma, c.decay.read), _times(key_gamma, c.decay.write)
            before = c.before.flatten(0, 1)
            grad_before = torch.bmm(reading.mT, grad, out=work("grad_before", *before.shape)).view(c.before.shape)
            grad_states, last = work("grad_states", *c.before.shape), running.view(len(running), 1, -1)
            _sum_over_chunks(c.decay.between.mT, grad_before, _times(last, c.decay.last), out=grad_states)
            running = _carry_on(grad_states[:, 0], c.decay.carry, 0, grad_before[:, 0])

            grad_written = grad_states.flatten(0, 1)
            grad_affinity = torch.bmm(grad, c.values.mT, out=work("grad_affinity", *c.affinity.shape))
            grad_query, grad_key = grad_gamma = work("grad_gamma", *c.gamma.shape)
            torch.bmm(grad, before.mT, out=grad_query)
            torch.bmm(c.values, grad_written.mT, out=grad_key)
            if c.decay.inside is None:
                grad_affinity.tril_()
            else:
                grad_query.mul_(c.decay.read)
                grad_key.mul_(c.decay.write)
                if log_decay is not None:
                    grad_carry = (grad_states * c.before).sum((-2, -1))
                    grad_total = (grad_carry * c.decay.carry[..., 0]).view(-1)
                    here = _grad_log_decay(c, grad_affinity * c.affinity, grad_query, grad_key, grad_total)
                    target = grad_log_decay.transpose(0, 1)[:, :, block.start : block.stop]
                    target.copy_(here.view(target.shape))
                grad_affinity.mul_(c.decay.inside)
            grad_query.baddbmm_(grad_affinity, key_gamma)
            grad_key.baddbmm_(grad_affinity.mT, query_gamma)
            routing.add(work, [query_target, key_target], c.features, c.gamma, grad_gamma)

            width = values.shape[-1]
            here = torch.bmm(c.affinity.mT, grad[..., :width], out=work("grad_values", *grad.shape[:2], width))
            value_target.copy_(here.baddbmm_(writing, grad_written[..., :width]).view(value_target.shape))
        grad_weights, grad_constant = routing.weights.view(weights.shape), routing.constant.view(constant.shape)
        return *grads, grad_weights, grad_constant, grad_log_decay, batch_first(running, values)


def _grad_log_decay(chunks: _Chunks, moved, grad_query, grad_key, grad_total) -> Tensor:
    """
    Gradient of the log decays of a block, `[chunks, C]`. All that decays does so by `exp` of a difference of elapsed
    log decays, so that its gradient times its value goes to the two ends.

    Args:
        moved: affinity times its gradient, `[chunks, C, C]`.
        grad_query, grad_key: gradients of the responsibilities that came through the states, `[chunks, C, K]`.
        grad_total: gradient of the log of what a chunk carries on, `[chunks]`.
    """
    reading = torch.linalg.vecdot(grad_query, chunks.gamma[0])
    writing = torch.linalg.vecdot(grad_key, chunks.gamma[1])
    grad_elapsed = moved.sum(-1) - moved.sum(-2) + reading - writing
    grad_total = grad_total + writing.sum(-1)
    return grad_elapsed.flip(-1).cumsum(-1).flip(-1) + grad_total[:, None]


@_backward.register_fake
def _(
    grad_output, grad_state, queries, keys, values, weights, constant, centre, mask, log_decay, segments, output,
    normaliser, states, kept, chunk_size,
):  # fmt: skip
    grad_log_decay = states.new_empty(0) if log_decay is None else torch.empty_like(log_decay)
    inputs = (torch.empty_like(x) for x in (queries, keys, values))
    mixture = (x.new_empty(x.shape) for x in (weights, constant))  # not in the layout of what they are the gradient of
    return *inputs, *mixture, grad_log_decay, grad_state.new_empty(grad_state.shape)


def _setup(ctx, inputs, output) -> None:
    ctx.set_materialize_grads(False)
    *tensors, _, _, ctx.chunk_size, _ = inputs
    result, state, *recorded = output
    ctx.state_shape = state.shape
    ctx.save_for_backward(*tensors, result, *recorded)


def _gradients(ctx, grad_output, grad_state, *_):
    *tensors, states, kept = ctx.saved_tensors
    log_decay, output = tensors[7], tensors[9]
    grad_output = torch.zeros_like(output) if grad_output is None else grad_output
    grad_state = states.new_zeros(ctx.state_shape) if grad_state is None else grad_state
    *grads, grad_log_decay, grad_state = _backward(grad_output, grad_state, *tensors, states, kept, ctx.chunk_size)
    grad_log_decay = None if log_decay is None else grad_log_decay
    return *grads, None, None, grad_log_decay, None, grad_state, None, None, None


causal_scan.register_autograd(_gradients, setup_context=_setup)
_backward.register_autograd(refuse_second_derivative)
