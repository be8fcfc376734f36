"""
The causal form of many tokens in plain torch as one operator, forward and backward by hand (paper 3.6).

Inside a chunk of tokens a masked (or decay-weighted) product of responsibilities, across chunks a running state, by
one product for the chunks of a block, in which what comes later counts 0 times: what is infinite or NaN is felt by the
earlier tokens of its block too. The operator walks from block to block, keeps its inputs, its output with the
normaliser and the state before each block, and computes the responsibilities again in the backward, but for those of
the last blocks, which are kept: what it stores of a long sequence beyond inputs and output are states.

Inside, heads come before the batch.
"""

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .operators_gma import CausalGradients, CausalInputs, Form, Operator
from .torch_routing_gma import (
    Block,
    Layout,
    Lifted,
    RoutingGradients,
    Workspace,
    batch_first,
    block_tokens,
    extend_values,
    features,
    grad_scores,
    grad_weighted,
    read_weighted,
    rows_first,
    score,
)


# Chunks of a block: the product that carries states from chunk to chunk grows with their square.
BLOCK_CHUNKS = 64


class _Decay(NamedTuple):
    """
    What the gate and the borders of documents leave of what was written, as factors; None for 1. A block has n chunks
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
    def of(cls, block: Block, heads: int, batch: int, earlier, inputs: CausalInputs, inside, is_filled) -> "_Decay":
        """
        Return the factors of a block.

        Args:
            block: the block.
            heads, batch: H and B.
            earlier: ones below the diagonal, for as many chunks as a block has at most.
            inputs: with log decays `[B, H, N]` and document ids `[B, N]`, or None.
            inside: the memory of the factors of that name, `[chunks, C, C]`, which has them already if `is_filled`;
                None where nothing decays.
        """
        log_decay, document_ids = inputs.log_decay, inputs.document_ids
        rows, chunks = heads * batch, (block.stop - block.start) // block.size
        earlier = earlier[:chunks, :chunks]
        if log_decay is None and document_ids is None:
            return cls(earlier.expand(rows, -1, -1))
        if log_decay is None:
            elapsed = earlier.new_zeros(heads, batch, chunks, block.size)
        else:
            elapsed = log_decay.transpose(0, 1)[:, :, block.start : block.stop]
            elapsed = elapsed.unflatten(-1, (chunks, block.size)).cumsum(-1)
        total = elapsed[..., -1:]
        read, write, carry = elapsed.exp(), (total - elapsed).exp(), total.exp()
        if not is_filled:
            between = inside.view(*elapsed.shape, block.size)
            torch.sub(elapsed[..., :, None], elapsed[..., None, :], out=between).exp_().tril_()
        if document_ids is not None:
            here = document_ids[:, block.start : block.stop].unflatten(-1, (chunks, block.size))
            last = here[..., -1:]
            before = document_ids[:, block.start - 1] if block.start else torch.zeros_like(document_ids[:, 0])
            before = torch.cat([before[:, None, None], last[:, :-1]], dim=1)
            if not is_filled:
                between.mul_(here[..., :, None] == here[..., None, :])
            read, write, carry = read * (here == before), write * (here == last), carry * (before == last)
        carry = carry.reshape(rows, chunks, 1)
        since = torch.where(earlier > 0, carry, 1).cumprod(1)  # from the end of a chunk to that of a later one
        return cls(
            F.pad(since[:, :-1], (0, 0, 1, 0)) * earlier,
            inside,
            read.reshape(-1, block.size, 1),
            write.reshape(-1, block.size, 1),
            carry,
            first=F.pad(carry[:, :-1].cumprod(1), (0, 0, 1, 0), value=1),
            last=since[:, -1, :, None],
        )


class _Chunks(NamedTuple):
    """What forward and backward of a block of chunks share; `[chunks, ...]` where not said otherwise."""

    features: Tensor  # [2 H, B L, 2 d_r]
    gamma: Tensor  # reading weights of queries, responsibilities of keys, [2, chunks, C, K]
    values: Tensor  # [chunks, C, d_v + 1]
    affinity: Tensor  # [chunks, C, C], with the causal mask and decays
    decay: _Decay
    before: Tensor  # the state before each chunk, [H * B, chunks of a row, K, d_v + 1]
    lifted: Lifted | None = None  # where there is a read exponent
    after: Tensor | None = None  # the state after the last chunk, [H * B, K, d_v + 1], unless the block was kept


class _CausalScan:
    """The causal form block by block: what forward and backward compute from the inputs."""

    def __init__(self, layout: Layout, inputs: CausalInputs, epsilon: float):
        self.epsilon = inputs.centre.new_tensor(epsilon)
        self.sides = list(zip(*(layout.cut(x.transpose(0, 1)) for x in (inputs.queries, inputs.keys))))
        self.values = layout.cut(inputs.values.transpose(0, 1))
        self.weights, self.constant = inputs.weights.flatten(0, 1), inputs.constant.flatten(0, 1)
        self.inputs = inputs
        self.work, chunks = Workspace(inputs.centre), layout.step // layout.chunk_size
        self.earlier = inputs.centre.new_ones(chunks, chunks).tril(-1)
        self.so_far = inputs.centre.new_ones(layout.chunk_size, layout.chunk_size).tril()

    def chunks(self, block: Block, state: Tensor, kept: Tensor, is_filled: bool) -> _Chunks:
        """
        Return what forward and backward share of a block.

        Args:
            block: the block.
            state: the state before the block, `[H * B, K, d_v + 1]`.
            kept: what is kept of the last blocks, `[blocks, numbers]`, to read (`is_filled`) or to write.
        """
        work, values = self.work, self.values[block.index]
        rows, components, width = state.shape
        heads, batch, length, _ = values.shape
        chunks = rows * length // block.size
        x = features(work, self.sides[block.index], self.inputs.centre)
        values = extend_values(work, values).view(chunks, block.size, width)

        shapes = {
            "gamma": (2, chunks, block.size, components),
            "affinity": (chunks, block.size, block.size),
            "before": (rows, chunks // rows, components, width),
        }
        if has_decay(self.inputs):
            shapes["inside"] = shapes["affinity"]
        exponent, lifted = self.inputs.read_exponent, None
        if exponent is not None:
            shapes |= dict.fromkeys(("held", "log_held"), (chunks, block.size, components))
        if block.kept is None:
            is_filled, parts = False, [work(name, *shape) for name, shape in shapes.items()]
        else:
            *parts, unused = _parts(kept[block.kept], shapes.values())
        parts = dict(zip(shapes, parts))
        gamma, affinity, before, inside = (parts.get(name) for name in ("gamma", "affinity", "before", "inside"))
        decay = _Decay.of(block, heads, batch, self.earlier, self.inputs, inside, is_filled)
        if exponent is not None:
            lifted = Lifted.of(parts["held"], parts["log_held"], exponent)
        made = _Chunks(x, gamma, values, affinity, decay, before, lifted)
        if block.kept is not None:
            if is_filled:
                return made
            unused.zero_()  # after a shorter block: an operator returns nothing undefined

        query_gamma, key_gamma = gamma
        query_scores, key_scores = score(work, x, self.weights, self.constant).view(gamma.shape)
        torch.softmax(key_scores, dim=-1, out=key_gamma)
        if (mask := self.inputs.mask) is not None:
            key_gamma.view(heads, batch, length, components).mul_(mask[:, block.start : block.stop, None])
        writing = _times(key_gamma, decay.write, work)
        written = torch.bmm(writing.mT, values, out=work("written", chunks, components, width)).view(before.shape)
        _sum_over_chunks(decay.between, written, _at_edge(state, decay.first), out=before)
        if lifted is not None:
            self.hold(made)
            lifted.lift(query_scores)
        torch.softmax(query_scores, dim=-1, out=query_gamma)
        torch.bmm(query_gamma, key_gamma.mT, out=affinity)
        affinity.tril_() if decay.inside is None else affinity.mul_(decay.inside)
        return made._replace(after=_carry_on(before[:, -1], decay.carry, -1, written[:, -1]))

    def hold(self, chunks: _Chunks) -> None:
        """Fill in what the slots hold at each token, for the read exponent."""
        lifted, decay, key_gamma = chunks.lifted, chunks.decay, chunks.gamma[1]
        mass = chunks.before.flatten(0, 1)[..., -1].contiguous()[:, None]
        if decay.inside is None:
            torch.cumsum(key_gamma, dim=1, out=lifted.held).add_(mass + self.epsilon)
        else:
            torch.addcmul(self.epsilon, decay.read, mass, out=lifted.held).baddbmm_(decay.inside, key_gamma)
        torch.log(lifted.held, out=lifted.log_held)


def _layout(queries: Tensor, chunk_size: int, keep: bool) -> Layout:
    return Layout.of(queries, min(block_tokens(queries, sides=2), BLOCK_CHUNKS * chunk_size), chunk_size, keep)


def _parts(flat: Tensor, shapes: Iterable[tuple[int, ...]]) -> list[Tensor]:
    """Views of `flat`, one after another, and what is left of it."""
    sizes = [math.prod(shape) for shape in shapes]
    *parts, rest = flat.split([*sizes, len(flat) - sum(sizes)])
    return [*(part.view(shape) for part, shape in zip(parts, shapes)), rest]


def has_decay(inputs: CausalInputs) -> bool:
    """Return whether anything is left of what was written but all of it."""
    return inputs.log_decay is not None or inputs.document_ids is not None


def _times(x: Tensor, factor: Tensor | None, work: Workspace) -> Tensor:
    """Return `[chunks, C, K]` times `[chunks, C, 1]`, in memory that the next call uses again."""
    return x if factor is None else torch.mul(x, factor, out=work("times", *x.shape))


def _at_edge(state: Tensor, factor: Tensor | None) -> Tensor:
    """Return a state at the edge of a block, `[H * B, K, d_v + 1]`, as every chunk feels it, `[H * B, n, numbers]`."""
    state = state.view(len(state), 1, -1)
    return state if factor is None else state * factor


def _dot(x: Tensor, y: Tensor) -> Tensor:
    """Return the sum of all products of each row, `[rows, ...]` to `[rows]`, without memory for the products."""
    return torch.bmm(x.reshape(len(x), 1, -1), y.reshape(len(y), -1, 1)).view(-1)


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


class CausalResults(NamedTuple):
    """What the tokens read, the last state, and what the backward needs."""

    output: Tensor  # [B, H, N, d_v]
    state: Tensor  # [B, H, K, d_v + 1]
    normaliser: Tensor  # GammaQ z + eps, [B, H, N, 1]
    states: Tensor  # before each block, [blocks, H * B, K, d_v + 1]
    kept: Tensor  # of the last blocks, flat: `_CausalScan.chunks`


def _new_results(inputs: CausalInputs, epsilon: float, chunk_size: int, keep: bool) -> CausalResults:
    layout = _layout(inputs.queries, chunk_size, keep)
    state = inputs.state
    batch, heads, components, width = state.shape
    sides = 2 if inputs.read_exponent is None else 4  # and what the slots hold, with its logarithm
    squares = 2 if has_decay(inputs) else 1
    # Of a chunk: `_CausalScan.chunks`
    per_row = sides * components * chunk_size + squares * chunk_size**2 + components * width
    return CausalResults(
        output=torch.empty_like(inputs.values),
        state=torch.empty_like(state, memory_format=torch.contiguous_format),
        normaliser=state.new_empty(batch, heads, layout.length, 1),
        states=state.new_empty(layout.num_blocks, heads * batch, components, width),
        kept=state.new_empty(layout.num_kept, layout.step * heads * batch * per_row // chunk_size),
    )


def _forward(inputs: CausalInputs, epsilon: float, chunk_size: int, keep: bool) -> CausalResults:
    results = _new_results(inputs, epsilon, chunk_size, keep)
    layout = _layout(inputs.queries, chunk_size, keep)
    scan = _CausalScan(layout, inputs, epsilon)
    outputs, normalisers = (layout.cut(x.transpose(0, 1)) for x in (results.output, results.normaliser))
    running = rows_first(inputs.state)
    for block, before, output, normaliser in zip(layout.blocks(), results.states, outputs, normalisers):
        before.copy_(running)
        chunks = scan.chunks(block, running, results.kept, is_filled=False)
        weighted = torch.bmm(chunks.affinity, chunks.values, out=scan.work("weighted", *chunks.values.shape))
        weighted.baddbmm_(_times(chunks.gamma[0], chunks.decay.read, scan.work), chunks.before.flatten(0, 1))
        read_weighted(weighted, epsilon, output, normaliser)
        running = chunks.after
    results.state.copy_(batch_first(running, inputs.values))
    return results


def _new_gradients(inputs: CausalInputs) -> CausalGradients:
    return CausalGradients(
        *(torch.empty_like(x) for x in (inputs.queries, inputs.keys, inputs.values)),
        weights=inputs.weights.new_empty(inputs.weights.shape),  # not in the layout of the weights, which may expand
        constant=inputs.constant.new_empty(inputs.constant.shape),
        log_decay=inputs.state.new_empty(0) if inputs.log_decay is None else torch.empty_like(inputs.log_decay),
        read_exponent=inputs.state.new_zeros(0 if inputs.read_exponent is None else len(inputs.read_exponent)),
        state=inputs.state.new_empty(inputs.state.shape),
    )


class _Targets(NamedTuple):
    """Where the gradients of the tokens of a block go, `[H, B, L, d]`."""

    queries: Tensor
    keys: Tensor
    values: Tensor


class _CausalGradient(_CausalScan):
    """The backward, from the last block to the first."""

    def __init__(self, layout: Layout, inputs: CausalInputs, epsilon: float):
        super().__init__(layout, inputs, epsilon)
        self.routing, self.grads = RoutingGradients(self.weights), _new_gradients(inputs)

    def block(
        self, block: Block, chunks: _Chunks, incoming: Iterable[Tensor], targets: _Targets, after: Tensor
    ) -> Tensor:
        """
        Write the gradients of a block, and return that of the state before it, `[H * B, K, d_v + 1]`.

        Args:
            block, chunks: the block and what the forward made of it.
            incoming: gradient of the output, output and normaliser of the block.
            targets: where gradients of queries, keys and values go.
            after: gradient of the state after the block, `[H * B, K, d_v + 1]`.
        """
        work, (query_gamma, key_gamma) = self.work, chunks.gamma
        grad = grad_weighted(work, *incoming).view(chunks.values.shape)
        grad_query, grad_key = work("grad_gamma", *chunks.gamma.shape)
        scores = work("scores", *chunks.gamma.shape)
        grad_affinity = self.grad_affinity(chunks, grad)
        self.grad_reading(chunks, grad, grad_affinity, out=grad_query)
        grad_scores(query_gamma, grad_query, out=scores[0])
        grad_held = None if chunks.lifted is None else self.grad_held(chunks, scores[0])
        grad_written, before = self.grad_states(chunks, grad, grad_held, after)
        grad_total = self.grad_writing(chunks, grad_affinity, grad_held, grad_written, out=grad_key)
        grad_scores(key_gamma, grad_key, out=scores[1])
        self.routing.add(work, [targets.queries, targets.keys], chunks.features, scores)
        if grad_total is not None:
            grad_mass = None if grad_held is None else self.epsilon * grad_held.sum(-1)
            here = _grad_log_decay(chunks, grad_query, grad_key, grad_mass, grad_total)
            target = self.grads.log_decay.transpose(0, 1)[:, :, block.start : block.stop]
            target.copy_(here.view(target.shape))
        targets.values.copy_(self.grad_values(chunks, grad, grad_written).view(targets.values.shape))
        return before

    def grad_affinity(self, chunks: _Chunks, grad: Tensor) -> Tensor:
        """Gradient of the affinity, with the causal mask and decays, from that of what is read, `[chunks, C, C]`."""
        inside = chunks.decay.inside
        out = torch.bmm(grad, chunks.values.mT, out=self.work("grad_affinity", *chunks.affinity.shape))
        return out.tril_() if inside is None else out.mul_(inside)

    def grad_reading(self, chunks: _Chunks, grad: Tensor, grad_affinity: Tensor, out: Tensor) -> None:
        """Gradient of the reading weights of queries, `[chunks, C, K]`."""
        torch.bmm(grad, chunks.before.flatten(0, 1).mT, out=out)
        if chunks.decay.read is not None:
            out.mul_(chunks.decay.read)
        out.baddbmm_(grad_affinity, chunks.gamma[1])

    def grad_held(self, chunks: _Chunks, grad_query_scores: Tensor) -> Tensor:
        """Gradient of what the slots hold at each token, `[chunks, C, K]`; that of the read exponent is added up."""
        held, exponent = chunks.lifted.grad_held(self.work, grad_query_scores), self.grads.read_exponent
        exponent.add_(chunks.lifted.grad_exponent(grad_query_scores, len(exponent)))
        return held

    def grad_states(
        self, chunks: _Chunks, grad: Tensor, grad_held: Tensor | None, after: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Gradients of what each chunk wrote, `[chunks, K, d_v + 1]`, and of the state before the block."""
        decay, shape = chunks.decay, chunks.before.shape
        reading = _times(chunks.gamma[0], decay.read, self.work)
        grad_before = self.work("grad_before", *shape)
        torch.bmm(reading.mT, grad, out=grad_before.flatten(0, 1))
        if grad_held is not None:
            of_mass = grad_held.sum(1) if decay.read is None else (decay.read.mT @ grad_held)[:, 0]
            grad_before.flatten(0, 1)[..., -1].add_(of_mass)
        out = self.work("grad_states", *shape)
        _sum_over_chunks(decay.between.mT, grad_before, _at_edge(after, decay.last), out=out)
        return out.flatten(0, 1), _carry_on(out[:, 0], decay.carry, 0, grad_before[:, 0])

    def grad_writing(
        self, chunks: _Chunks, grad_affinity: Tensor, grad_held: Tensor | None, grad_written: Tensor, out: Tensor
    ) -> Tensor | None:
        """
        Gradient of the responsibilities of keys, `[chunks, C, K]`. Return that of the log of what a chunk carries on,
        `[chunks]`, with a forget gate; else None.
        """
        decay, grad_total = chunks.decay, None
        query_gamma, key_gamma = chunks.gamma
        torch.bmm(chunks.values, grad_written.mT, out=out)
        if decay.write is not None:
            out.mul_(decay.write)
        if self.inputs.log_decay is not None:
            grad_carry = _dot(grad_written, chunks.before.flatten(0, 1)) * decay.carry.view(-1)
            grad_total = grad_carry + _dot(out, key_gamma)
        out.baddbmm_(grad_affinity.mT, query_gamma)
        if grad_held is not None:
            size = out.shape[1]
            inside = self.so_far[:size, :size] if decay.inside is None else decay.inside
            out.baddbmm_(inside.mT.expand(len(out), -1, -1), grad_held)
        return grad_total

    def grad_values(self, chunks: _Chunks, grad: Tensor, grad_written: Tensor) -> Tensor:
        """Gradient of the values, `[chunks, C, d_v]`."""
        width = grad.shape[-1] - 1
        out = self.work("grad_values", *grad.shape[:2], width)
        torch.bmm(chunks.affinity.mT, grad[..., :width], out=out)
        writing = _times(chunks.gamma[1], chunks.decay.write, self.work)
        return out.baddbmm_(writing, grad_written[..., :width])


def _backward(
    grad_output: Tensor,
    grad_state: Tensor,
    inputs: CausalInputs,
    results: CausalResults,
    epsilon: float,
    chunk_size: int,
    keep: bool,
) -> CausalGradients:
    layout = _layout(inputs.queries, chunk_size, keep)
    scan = _CausalGradient(layout, inputs, epsilon)
    grads, routing = scan.grads, scan.routing
    of_tokens = (grad_output, results.output, results.normaliser, grads.queries, grads.keys, grads.values)
    pieces = zip(layout.blocks(), results.states, *(layout.cut(x.transpose(0, 1)) for x in of_tokens))
    running = rows_first(grad_state)  # gradient of the state after the block at hand
    for block, state, *tensors in reversed(list(pieces)):
        chunks = scan.chunks(block, state, results.kept, is_filled=True)
        running = scan.block(block, chunks, tensors[:3], _Targets(*tensors[3:]), running)
    return grads._replace(
        weights=routing.weights.view(inputs.weights.shape),
        constant=routing.constant.view(inputs.constant.shape),
        state=batch_first(running, inputs.values),
    )


def _grad_log_decay(chunks: _Chunks, grad_query, grad_key, grad_mass, grad_total) -> Tensor:
    """
    Gradient of the log decays of a block, `[chunks, C]`. All that decays does so by `exp` of a difference of elapsed
    log decays, so that its gradient times its value goes to the two ends: to what reads and, negative, to what was
    written.

    Args:
        grad_query, grad_key: gradients of the reading weights and of the responsibilities of keys, `[chunks, C, K]`;
            they are written over.
        grad_mass: with a read exponent, less the gradient of the mass z times z, `[chunks, C]`: that of `w = z + eps`
            times eps, since times w it sums to 0, as the gradient of the scores does; else None.
        grad_total: gradient of the log of what a chunk carries on, `[chunks]`.
    """
    reading, writing = (x.mul_(gamma).sum(-1) for x, gamma in zip((grad_query, grad_key), chunks.gamma))
    grad_elapsed = reading - writing
    if grad_mass is not None:
        grad_elapsed -= grad_mass
    return grad_elapsed.flip(-1).cumsum(-1).flip(-1) + grad_total[:, None]


causal_scan = Operator(
    Form(
        name="causal",
        inputs=CausalInputs,
        results=CausalResults,
        gradients=CausalGradients,
        settings="float epsilon, int chunk_size, bool keep",
        new_results=_new_results,
        forward=_forward,
        new_gradients=_new_gradients,
        backward=_backward,
    )
)
