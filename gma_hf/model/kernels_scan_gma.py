"""
Triton kernels for the causal scan over responsibilities, forward and backward (paper 3.6): what is written in each
chunk of `CHUNK` tokens, the running sum of that over the chunks, and what the tokens of each chunk read.

Inside, the state of a chunk is flat: K rows of the memory M, then the mass z. So is its gradient. A row is a head of a
batch row.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from .kernels_chunks_gma import ChunkCalls
from .kernels_exponent_gma import lift, lift_backward
from .kernels_gma import ceil_div, tl, triton


# Numbers of a state that one program sums over the chunks.
BLOCK_STATE = 256


if triton is not None:
    from .kernels_chunks_gma import decays, dot
    from .kernels_gma import load_tile, of_row, store_tile

    @triton.jit
    def _write_kernel(
        gamma, values, log_decay, document_ids, states, carries, output, normaliser, delta,
        heads, length, chunks, stride_batch, stride_head, stride_token,
        output_stride_batch, output_stride_head, output_stride_token,
        COMPONENTS: tl.constexpr, WIDTH: tl.constexpr, CHUNK: tl.constexpr, PRECISION: tl.constexpr,
        HAS_DECAY: tl.constexpr, HAS_DOCUMENTS: tl.constexpr, IS_GRADIENT: tl.constexpr,
        BLOCK_COMPONENTS: tl.constexpr, BLOCK_WIDTH: tl.constexpr,
    ):  # fmt: skip
        """
        What the tokens of a chunk write into the state after it, `GammaK^T [V, 1]`; or (`IS_GRADIENT`, `values` being
        the gradient of the output) what they add to the gradient of the state before it, `GammaQ^T` times the gradient
        of `GammaQ [M, z]`, whose last column is `-delta / normaliser`. Grid: chunks of all rows.
        """
        chunk, row = tl.program_id(0) % chunks, (tl.program_id(0) // chunks).to(tl.int64)
        tokens = chunk * CHUNK + tl.arange(0, CHUNK)
        _, read, write, carry = decays(
            log_decay, document_ids, chunk, row, heads, length, CHUNK, HAS_DECAY, HAS_DOCUMENTS
        )
        gamma += row * length * COMPONENTS
        values = of_row(values, row, heads, stride_batch, stride_head)
        states += (row * chunks + chunk) * COMPONENTS * (WIDTH + 1)
        tl.store(carries + row * chunks + chunk, carry)
        if IS_GRADIENT:
            output = of_row(output, row, heads, output_stride_batch, output_stride_head)
            weight = tl.zeros([CHUNK], tl.float32)
            for start in range(0, WIDTH, BLOCK_WIDTH):
                columns = start + tl.arange(0, BLOCK_WIDTH)
                x = load_tile(values, tokens, columns, stride_token, length, WIDTH).to(tl.float32)
                weight -= tl.sum(x * load_tile(output, tokens, columns, output_stride_token, length, WIDTH), axis=1)
            tl.store(delta + row * length + tokens, -weight, mask=tokens < length)
            factor = read / tl.load(normaliser + row * length + tokens, mask=tokens < length, other=1.0)
        else:
            weight = tl.full([CHUNK], 1.0, tl.float32)
            factor = write
        for first in range(0, COMPONENTS, BLOCK_COMPONENTS):
            components = first + tl.arange(0, BLOCK_COMPONENTS)
            writing = load_tile(gamma, tokens, components, COMPONENTS, length, COMPONENTS) * factor[:, None]
            mass = tl.sum(writing * weight[:, None], axis=0)
            tl.store(states + COMPONENTS * WIDTH + components, mass, mask=components < COMPONENTS)
            for start in range(0, WIDTH, BLOCK_WIDTH):
                columns = start + tl.arange(0, BLOCK_WIDTH)
                x = load_tile(values, tokens, columns, stride_token, length, WIDTH)
                memory = tl.zeros([BLOCK_COMPONENTS, BLOCK_WIDTH], tl.float32)
                memory = dot(tl.trans(writing), x, memory, PRECISION)
                store_tile(states, memory, components, columns, WIDTH, COMPONENTS, WIDTH)

    @triton.jit
    def _sum_kernel(
        states, carries, first, last, chunks,
        COMPONENTS: tl.constexpr, WIDTH: tl.constexpr, IS_GRADIENT: tl.constexpr, BLOCK_STATE: tl.constexpr,
    ):  # fmt: skip
        """
        In the place of what each chunk adds to a state, the state before it; from the last chunk to the first
        (`IS_GRADIENT`), its gradient after it. `first` and `last`, `[rows, K, d_v + 1]`, are what it begins and ends
        with. Grid: rows, blocks of numbers of a state.
        """
        SIZE: tl.constexpr = COMPONENTS * (WIDTH + 1)
        row = tl.program_id(0).to(tl.int64)
        offsets = tl.program_id(1) * BLOCK_STATE + tl.arange(0, BLOCK_STATE)
        is_inside = offsets < SIZE
        in_mass = offsets - COMPONENTS * WIDTH
        places = tl.where(in_mass < 0, offsets // WIDTH * (WIDTH + 1) + offsets % WIDTH, in_mass * (WIDTH + 1) + WIDTH)
        places += row * SIZE
        running = tl.load(first + places, mask=is_inside, other=0.0)
        for step in tl.range(0, chunks, num_stages=4):
            chunk = row * chunks + (chunks - 1 - step if IS_GRADIENT else step)
            added = tl.load(states + chunk * SIZE + offsets, mask=is_inside, other=0.0)
            tl.store(states + chunk * SIZE + offsets, running, mask=is_inside)
            running = running * tl.load(carries + chunk) + added
        tl.store(last + places, running, mask=is_inside)

    @triton.jit
    def _read_kernel(
        query_gamma, key_gamma, values, log_decay, document_ids, states, output, normaliser,
        epsilon, heads, length, chunks, stride_batch, stride_head, stride_token,
        output_stride_batch, output_stride_head, output_stride_token,
        COMPONENTS: tl.constexpr, WIDTH: tl.constexpr, CHUNK: tl.constexpr, PRECISION: tl.constexpr,
        HAS_DECAY: tl.constexpr, HAS_DOCUMENTS: tl.constexpr,
        BLOCK_COMPONENTS: tl.constexpr, BLOCK_WIDTH: tl.constexpr,
    ):  # fmt: skip
        """`O = GammaQ M / (GammaQ z + eps)` of a chunk, and the normaliser. Grid: chunks of all rows, columns."""
        chunk, row = tl.program_id(0) % chunks, (tl.program_id(0) // chunks).to(tl.int64)
        tokens = chunk * CHUNK + tl.arange(0, CHUNK)
        columns = tl.program_id(1) * BLOCK_WIDTH + tl.arange(0, BLOCK_WIDTH)
        inside, read, _, _ = decays(
            log_decay, document_ids, chunk, row, heads, length, CHUNK, HAS_DECAY, HAS_DOCUMENTS
        )
        query_gamma += row * length * COMPONENTS
        key_gamma += row * length * COMPONENTS
        values = of_row(values, row, heads, stride_batch, stride_head)
        output = of_row(output, row, heads, output_stride_batch, output_stride_head)
        states += (row * chunks + chunk) * COMPONENTS * (WIDTH + 1)

        affinity = tl.zeros([CHUNK, CHUNK], tl.float32)
        weighted = tl.zeros([CHUNK, BLOCK_WIDTH], tl.float32)
        total = tl.full([CHUNK], epsilon, tl.float32)
        for first in range(0, COMPONENTS, BLOCK_COMPONENTS):
            components = first + tl.arange(0, BLOCK_COMPONENTS)
            query = load_tile(query_gamma, tokens, components, COMPONENTS, length, COMPONENTS)
            key = load_tile(key_gamma, tokens, components, COMPONENTS, length, COMPONENTS)
            affinity = dot(query, tl.trans(key), affinity, PRECISION)
            query *= read[:, None]
            memory = load_tile(states, components, columns, WIDTH, COMPONENTS, WIDTH)
            mass = tl.load(states + COMPONENTS * WIDTH + components, mask=components < COMPONENTS, other=0.0)
            weighted = dot(query, memory, weighted, PRECISION)
            total += tl.sum(query * mass[None, :], axis=1)
        affinity *= inside
        total += tl.sum(affinity, axis=1)
        x = load_tile(values, tokens, columns, stride_token, length, WIDTH)
        weighted = dot(affinity, x, weighted, PRECISION)
        store_tile(output, weighted * (1.0 / total)[:, None], tokens, columns, output_stride_token, length, WIDTH)
        if tl.program_id(1) == 0:
            tl.store(normaliser + row * length + tokens, total, mask=tokens < length)

    @triton.jit
    def _grad_values_kernel(
        query_gamma, key_gamma, grad_output, log_decay, document_ids, grad_states, normaliser, grad_values,
        heads, length, chunks, stride_batch, stride_head, stride_token,
        grad_stride_batch, grad_stride_head, grad_stride_token,
        COMPONENTS: tl.constexpr, WIDTH: tl.constexpr, CHUNK: tl.constexpr, PRECISION: tl.constexpr,
        HAS_DECAY: tl.constexpr, HAS_DOCUMENTS: tl.constexpr,
        BLOCK_COMPONENTS: tl.constexpr, BLOCK_WIDTH: tl.constexpr,
    ):  # fmt: skip
        """Gradient of the values of a chunk. Grid: chunks of all rows, columns."""
        chunk, row = tl.program_id(0) % chunks, (tl.program_id(0) // chunks).to(tl.int64)
        tokens = chunk * CHUNK + tl.arange(0, CHUNK)
        columns = tl.program_id(1) * BLOCK_WIDTH + tl.arange(0, BLOCK_WIDTH)
        inside, _, write, _ = decays(
            log_decay, document_ids, chunk, row, heads, length, CHUNK, HAS_DECAY, HAS_DOCUMENTS
        )
        query_gamma += row * length * COMPONENTS
        key_gamma += row * length * COMPONENTS
        grad_output = of_row(grad_output, row, heads, stride_batch, stride_head)
        grad_values = of_row(grad_values, row, heads, grad_stride_batch, grad_stride_head)
        grad_states += (row * chunks + chunk) * COMPONENTS * (WIDTH + 1)

        affinity = tl.zeros([CHUNK, CHUNK], tl.float32)
        result = tl.zeros([CHUNK, BLOCK_WIDTH], tl.float32)
        for first in range(0, COMPONENTS, BLOCK_COMPONENTS):
            components = first + tl.arange(0, BLOCK_COMPONENTS)
            query = load_tile(query_gamma, tokens, components, COMPONENTS, length, COMPONENTS)
            key = load_tile(key_gamma, tokens, components, COMPONENTS, length, COMPONENTS)
            affinity = dot(query, tl.trans(key), affinity, PRECISION)
            memory = load_tile(grad_states, components, columns, WIDTH, COMPONENTS, WIDTH)
            result = dot(key * write[:, None], memory, result, PRECISION)
        total = tl.load(normaliser + row * length + tokens, mask=tokens < length, other=1.0)
        affinity *= inside * (1.0 / total)[:, None]
        grad = load_tile(grad_output, tokens, columns, stride_token, length, WIDTH)
        result = dot(tl.trans(affinity), grad, result, PRECISION)
        store_tile(grad_values, result, tokens, columns, grad_stride_token, length, WIDTH)

    @triton.jit
    def _grad_gamma_kernel(
        query_gamma, key_gamma, values, grad_output, log_decay, document_ids, states, grad_states, normaliser, delta,
        grad_query_gamma, grad_key_gamma, grad_log_decay,
        heads, length, chunks, stride_batch, stride_head, stride_token,
        grad_stride_batch, grad_stride_head, grad_stride_token,
        COMPONENTS: tl.constexpr, WIDTH: tl.constexpr, CHUNK: tl.constexpr, PRECISION: tl.constexpr,
        HAS_DECAY: tl.constexpr, HAS_DOCUMENTS: tl.constexpr,
        BLOCK_COMPONENTS: tl.constexpr, BLOCK_WIDTH: tl.constexpr,
    ):  # fmt: skip
        """
        Gradients of the responsibilities and of the log decays of a chunk. All that decays does so by `exp` of a
        difference of elapsed log decays, so that its gradient times its value goes to the two ends. Grid: chunks of
        all rows.
        """
        chunk, row = tl.program_id(0) % chunks, (tl.program_id(0) // chunks).to(tl.int64)
        tokens = chunk * CHUNK + tl.arange(0, CHUNK)
        inside, read, write, carry = decays(
            log_decay, document_ids, chunk, row, heads, length, CHUNK, HAS_DECAY, HAS_DOCUMENTS
        )
        query_gamma += row * length * COMPONENTS
        key_gamma += row * length * COMPONENTS
        grad_query_gamma += row * length * COMPONENTS
        grad_key_gamma += row * length * COMPONENTS
        values = of_row(values, row, heads, stride_batch, stride_head)
        grad_output = of_row(grad_output, row, heads, grad_stride_batch, grad_stride_head)
        states += (row * chunks + chunk) * COMPONENTS * (WIDTH + 1)
        grad_states += (row * chunks + chunk) * COMPONENTS * (WIDTH + 1)
        inverse = 1.0 / tl.load(normaliser + row * length + tokens, mask=tokens < length, other=1.0)
        # The gradient of the normaliser, times the normaliser
        grad_total = -tl.load(delta + row * length + tokens, mask=tokens < length, other=0.0)

        grad_affinity = tl.zeros([CHUNK, CHUNK], tl.float32) + grad_total[:, None]
        for start in range(0, WIDTH, BLOCK_WIDTH):
            columns = start + tl.arange(0, BLOCK_WIDTH)
            x = load_tile(values, tokens, columns, stride_token, length, WIDTH)
            grad = load_tile(grad_output, tokens, columns, grad_stride_token, length, WIDTH)
            grad_affinity = dot(grad, tl.trans(x), grad_affinity, PRECISION)
        grad_affinity *= inside * inverse[:, None]

        affinity = tl.zeros([CHUNK, CHUNK], tl.float32)
        grad_elapsed = tl.zeros([CHUNK], tl.float32)
        grad_written, grad_carried = 0.0, 0.0  # of the logs of `write`, summed, and of `carry`
        for first in range(0, COMPONENTS, BLOCK_COMPONENTS):
            components = first + tl.arange(0, BLOCK_COMPONENTS)
            is_component = components < COMPONENTS
            mass = tl.load(states + COMPONENTS * WIDTH + components, mask=is_component, other=0.0)
            grad_mass = tl.load(grad_states + COMPONENTS * WIDTH + components, mask=is_component, other=0.0)
            grad_query = grad_total[:, None] * mass[None, :]
            grad_key = tl.zeros([CHUNK, BLOCK_COMPONENTS], tl.float32) + grad_mass[None, :]
            if HAS_DECAY:
                grad_carried += tl.sum(mass * grad_mass) * carry
            for start in range(0, WIDTH, BLOCK_WIDTH):
                columns = start + tl.arange(0, BLOCK_WIDTH)
                grad = load_tile(grad_output, tokens, columns, grad_stride_token, length, WIDTH)
                memory = load_tile(states, components, columns, WIDTH, COMPONENTS, WIDTH)
                grad_query = dot(grad, tl.trans(memory), grad_query, PRECISION)
                x = load_tile(values, tokens, columns, stride_token, length, WIDTH)
                grad_memory = load_tile(grad_states, components, columns, WIDTH, COMPONENTS, WIDTH)
                grad_key = dot(x, tl.trans(grad_memory), grad_key, PRECISION)
                if HAS_DECAY:
                    grad_carried += tl.sum(memory * grad_memory) * carry
            grad_query *= (read * inverse)[:, None]
            grad_key *= write[:, None]
            query = load_tile(query_gamma, tokens, components, COMPONENTS, length, COMPONENTS)
            key = load_tile(key_gamma, tokens, components, COMPONENTS, length, COMPONENTS)
            if HAS_DECAY:
                affinity = dot(query, tl.trans(key), affinity, PRECISION)
                writing = tl.sum(grad_key * key, axis=1)
                grad_elapsed += tl.sum(grad_query * query, axis=1) - writing
                grad_written += tl.sum(writing)
            grad_query = dot(grad_affinity, key, grad_query, PRECISION)
            store_tile(grad_query_gamma, grad_query, tokens, components, COMPONENTS, length, COMPONENTS)
            grad_key = dot(tl.trans(grad_affinity), query, grad_key, PRECISION)
            store_tile(grad_key_gamma, grad_key, tokens, components, COMPONENTS, length, COMPONENTS)
        if HAS_DECAY:
            moved = affinity * grad_affinity
            grad_elapsed += tl.sum(moved, axis=1) - tl.sum(moved, axis=0)
            result = tl.cumsum(grad_elapsed, 0, reverse=True) + grad_written + grad_carried
            tl.store(grad_log_decay + row * length + tokens, result, mask=tokens < length)


class ScanGradients(NamedTuple):
    """The gradients of what `scan` was given."""

    gamma: Tensor  # [2, B, H, N, K]
    values: Tensor
    log_decay: Tensor | None
    read_exponent: Tensor | None
    state: Tensor


def scan(
    gamma: Tensor,
    values: Tensor,
    log_decay: Tensor | None,
    document_ids: Tensor | None,
    read_exponent: Tensor | None,
    state: Tensor,
    epsilon: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """
    What the tokens read, and the state after them.

    Args:
        gamma: responsibilities of queries and of keys, `[2, B, H, N, K]`, float32, contiguous. With a read exponent
            those of queries become their reading weights.
        values: `[B, H, N, d_v]`, float16, bfloat16 or float32.
        log_decay: `[B, H, N]`, float32, or None.
        document_ids: `[B, N]`, integers, or None.
        read_exponent: `[H]`, float32, or None.
        state: `[B, H, K, d_v + 1]`, float32, contiguous.

    Returns:
        The output, laid out like the values; the last state; and for the backward the normaliser `GammaQ z + eps`
        `[B, H, N]` and the state before each chunk, `[B, H, chunks, K * (d_v + 1)]`, flat.
    """
    query_gamma, key_gamma = gamma
    calls = ChunkCalls(query_gamma, values, log_decay, document_ids)
    output, last = torch.empty_like(values), torch.empty_like(state)
    normaliser, states, carries = calls.new_sums(), calls.new_states(), calls.new_carries()
    written = (values, *calls.decay, states, carries, None, None, None)
    calls(_write_kernel, key_gamma, *written, layout=(values, values), IS_GRADIENT=False)
    _sum(calls, states, carries, state, last, IS_GRADIENT=False)
    if read_exponent is not None:
        lift(calls, query_gamma, key_gamma, states, read_exponent, epsilon)
    tensors = (query_gamma, key_gamma, values, *calls.decay, states, output, normaliser)
    calls(_read_kernel, *tensors, epsilon, layout=(values, output), by_columns=True)
    return output, last, normaliser, states


def scan_backward(
    grad_output: Tensor,
    grad_state: Tensor,
    gamma: Tensor,
    values: Tensor,
    log_decay: Tensor | None,
    document_ids: Tensor | None,
    read_exponent: Tensor | None,
    output: Tensor,
    normaliser: Tensor,
    states: Tensor,
    epsilon: float,
) -> ScanGradients:
    """
    Return the gradients of the arguments of `scan`, from what it gave. With a read exponent, the softmax of what is
    lifted has them: `gamma` of queries becomes their reading weights again, and its gradient is that of these.
    """
    query_gamma, key_gamma = gamma
    calls = ChunkCalls(query_gamma, values, log_decay, document_ids)
    grad_first, grad_values = torch.empty_like(grad_state), torch.empty_like(values)
    delta, grad_states, carries = calls.new_sums(), calls.new_states(), calls.new_carries()
    if read_exponent is not None:
        lift(calls, query_gamma, key_gamma, states, read_exponent, epsilon)
    written = (grad_output, *calls.decay, grad_states, carries, output, normaliser, delta)
    calls(_write_kernel, query_gamma, *written, layout=(grad_output, output), IS_GRADIENT=True)
    _sum(calls, grad_states, carries, grad_state, grad_first, IS_GRADIENT=True)
    tensors = (query_gamma, key_gamma, grad_output, *calls.decay, grad_states, normaliser, grad_values)
    calls(_grad_values_kernel, *tensors, layout=(grad_output, grad_values), by_columns=True)
    grad_gamma = torch.empty_like(gamma)
    grad_log_decay = None if log_decay is None else torch.empty_like(log_decay)
    tensors = (query_gamma, key_gamma, values, grad_output, *calls.decay, states, grad_states, normaliser, delta)
    results = (*grad_gamma, grad_log_decay)
    calls(_grad_gamma_kernel, *tensors, *results, layout=(values, grad_output))
    grad_exponent = None
    if read_exponent is not None:
        gradients = (*grad_gamma, grad_log_decay, grad_first)
        grad_exponent = lift_backward(calls, query_gamma, key_gamma, states, read_exponent, epsilon, *gradients)
    return ScanGradients(grad_gamma, grad_values, grad_log_decay, grad_exponent, grad_first)


def _sum(calls: ChunkCalls, states: Tensor, carries: Tensor, first: Tensor, last: Tensor, **flags) -> None:
    """`_sum_kernel` from `first` to `last`."""
    grid = (calls.batch * calls.heads, ceil_div(states.shape[-1], BLOCK_STATE))
    _sum_kernel[grid](states, carries, first, last, calls.chunks, **calls.sizes, **flags, BLOCK_STATE=BLOCK_STATE)
