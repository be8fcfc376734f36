"""
Triton kernels for the causal scan over responsibilities, forward and backward (paper 3.6). They compute what each
chunk of `CHUNK` tokens writes, the running sum of these states over the chunks, and what the tokens of a chunk read.

Inside, the state of a chunk is flat: K rows of the memory M, then the mass z. So is its gradient. A row is a head of a
batch row.

The weights that a query reads with are `r_k = gamma_k w_k^(-p)`, where `w = z + eps` is what a slot holds at the token
and p the read exponent, or `gamma_k` without one. They are not divided by their sum, which drops out of `r M / r w`,
and never written to memory.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from .kernels_chunks_gma import ChunkCalls
from .kernels_gma import ceil_div, tl, triton


# Numbers of a state that one program sums over the chunks.
BLOCK_STATE = 256
# Warps of a program of the gradients of responsibilities, which hold more at a time than registers of four take.
GRADIENT_WARPS = 8


if triton is not None:
    from .kernels_chunks_gma import decays, dot
    from .kernels_gma import load_tile, of_row, store_tile

    @triton.jit
    def _held(
        key, states, components, inside, read, epsilon,
        COMPONENTS: tl.constexpr, WIDTH: tl.constexpr, PRECISION: tl.constexpr,
    ):  # fmt: skip
        """Return the mass of some components at the tokens of a chunk, plus epsilon, `[C, BLOCK]`."""
        mass = tl.load(states + COMPONENTS * WIDTH + components, mask=components < COMPONENTS, other=0.0)
        return dot(inside, key, read[:, None] * mass[None, :] + epsilon, PRECISION)

    @triton.jit
    def _gram(
        x, y, tokens, length, x_stride_token, y_stride_token,
        WIDTH: tl.constexpr, BLOCK_WIDTH: tl.constexpr, CHUNK: tl.constexpr, PRECISION: tl.constexpr,
    ):  # fmt: skip
        """Return `X Y^T` of the tokens of a chunk, `[C, C]`."""
        result = tl.zeros([CHUNK, CHUNK], tl.float32)
        for start in range(0, WIDTH, BLOCK_WIDTH):
            columns = start + tl.arange(0, BLOCK_WIDTH)
            left = load_tile(x, tokens, columns, x_stride_token, length, WIDTH)
            right = load_tile(y, tokens, columns, y_stride_token, length, WIDTH)
            result = dot(left, tl.trans(right), result, PRECISION)
        return result

    @triton.jit
    def _write_kernel(
        key_gamma, values, log_decay, document_ids, states, carries,
        heads, length, chunks, stride_batch, stride_head, stride_token,
        COMPONENTS: tl.constexpr, WIDTH: tl.constexpr, CHUNK: tl.constexpr, PRECISION: tl.constexpr,
        HAS_DECAY: tl.constexpr, HAS_DOCUMENTS: tl.constexpr, HAS_EXPONENT: tl.constexpr,
        BLOCK_COMPONENTS: tl.constexpr, BLOCK_WIDTH: tl.constexpr,
    ):  # fmt: skip
        """Compute what the tokens of a chunk write, `GammaK^T [V, 1]`. Grid: chunks of all rows."""
        chunk, row = tl.program_id(0) % chunks, (tl.program_id(0) // chunks).to(tl.int64)
        tokens = chunk * CHUNK + tl.arange(0, CHUNK)
        _, _, write, carry = decays(
            log_decay, document_ids, chunk, row, heads, length, CHUNK, HAS_DECAY, HAS_DOCUMENTS
        )
        key_gamma += row * length * COMPONENTS
        values = of_row(values, row, heads, stride_batch, stride_head)
        states += (row * chunks + chunk) * COMPONENTS * (WIDTH + 1)
        tl.store(carries + row * chunks + chunk, carry)
        for first in range(0, COMPONENTS, BLOCK_COMPONENTS):
            components = first + tl.arange(0, BLOCK_COMPONENTS)
            writing = load_tile(key_gamma, tokens, components, COMPONENTS, length, COMPONENTS) * write[:, None]
            mass = tl.sum(writing, axis=0)
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
        Replace what each chunk adds to the state by the state before the chunk. With `IS_GRADIENT` the sum runs from
        the last chunk to the first, and gives the gradient of the state after each chunk. `first` and `last`,
        `[rows, K, d_v + 1]`, are where the sum begins and ends. Grid: rows, blocks of numbers of a state.
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
        query_gamma, key_gamma, values, log_decay, document_ids, exponent, states, output, normaliser,
        epsilon, heads, length, chunks, stride_batch, stride_head, stride_token,
        output_stride_batch, output_stride_head, output_stride_token,
        COMPONENTS: tl.constexpr, WIDTH: tl.constexpr, CHUNK: tl.constexpr, PRECISION: tl.constexpr,
        HAS_DECAY: tl.constexpr, HAS_DOCUMENTS: tl.constexpr, HAS_EXPONENT: tl.constexpr,
        BLOCK_COMPONENTS: tl.constexpr, BLOCK_WIDTH: tl.constexpr,
    ):  # fmt: skip
        """Compute `O = R M / R w` of a chunk, and the normaliser `R w`. Grid: chunks of all rows, columns."""
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
        if HAS_EXPONENT:
            power = -tl.load(exponent + row % heads)

        affinity = tl.zeros([CHUNK, CHUNK], tl.float32)
        weighted = tl.zeros([CHUNK, BLOCK_WIDTH], tl.float32)
        total = tl.zeros([CHUNK], tl.float32)
        for first in range(0, COMPONENTS, BLOCK_COMPONENTS):
            components = first + tl.arange(0, BLOCK_COMPONENTS)
            query = load_tile(query_gamma, tokens, components, COMPONENTS, length, COMPONENTS)
            key = load_tile(key_gamma, tokens, components, COMPONENTS, length, COMPONENTS)
            if HAS_EXPONENT:
                held = _held(key, states, components, inside, read, epsilon, COMPONENTS, WIDTH, PRECISION)
                query *= tl.exp(power * tl.log(held))
            affinity = dot(query, tl.trans(key), affinity, PRECISION)
            mass = tl.load(states + COMPONENTS * WIDTH + components, mask=components < COMPONENTS, other=0.0)
            total += tl.sum(query * (read[:, None] * mass[None, :] + epsilon), axis=1)
            memory = load_tile(states, components, columns, WIDTH, COMPONENTS, WIDTH)
            weighted = dot(query * read[:, None], memory, weighted, PRECISION)
        affinity *= inside
        total = tl.where(tokens < length, total + tl.sum(affinity, axis=1), 1.0)
        x = load_tile(values, tokens, columns, stride_token, length, WIDTH)
        weighted = dot(affinity, x, weighted, PRECISION)
        store_tile(output, weighted * (1.0 / total)[:, None], tokens, columns, output_stride_token, length, WIDTH)
        if tl.program_id(1) == 0:
            tl.store(normaliser + row * length + tokens, total, mask=tokens < length)

    @triton.jit
    def _grad_memory_kernel(
        query_gamma, key_gamma, grad_output, log_decay, document_ids, exponent, states, normaliser,
        scratch, grad_states, carries, epsilon, heads, length, chunks, stride_batch, stride_head, stride_token,
        COMPONENTS: tl.constexpr, WIDTH: tl.constexpr, CHUNK: tl.constexpr, PRECISION: tl.constexpr,
        HAS_DECAY: tl.constexpr, HAS_DOCUMENTS: tl.constexpr, HAS_EXPONENT: tl.constexpr,
        BLOCK_COMPONENTS: tl.constexpr, BLOCK_WIDTH: tl.constexpr,
    ):  # fmt: skip
        """
        Compute what the tokens of a chunk add to the gradient of the memory before the chunk: `R^T` times the gradient
        of `R M`.
        `scratch`: `[N, K]` of a row. Grid: chunks of all rows.
        """
        chunk, row = tl.program_id(0) % chunks, (tl.program_id(0) // chunks).to(tl.int64)
        tokens = chunk * CHUNK + tl.arange(0, CHUNK)
        inside, read, _, carry = decays(
            log_decay, document_ids, chunk, row, heads, length, CHUNK, HAS_DECAY, HAS_DOCUMENTS
        )
        query_gamma += row * length * COMPONENTS
        key_gamma += row * length * COMPONENTS
        scratch += row * length * COMPONENTS
        grad_output = of_row(grad_output, row, heads, stride_batch, stride_head)
        states += (row * chunks + chunk) * COMPONENTS * (WIDTH + 1)
        grad_states += (row * chunks + chunk) * COMPONENTS * (WIDTH + 1)
        tl.store(carries + row * chunks + chunk, carry)
        inverse = 1.0 / tl.load(normaliser + row * length + tokens, mask=tokens < length, other=1.0)
        if HAS_EXPONENT:
            power = -tl.load(exponent + row % heads)
        for first in range(0, COMPONENTS, BLOCK_COMPONENTS):
            components = first + tl.arange(0, BLOCK_COMPONENTS)
            query = load_tile(query_gamma, tokens, components, COMPONENTS, length, COMPONENTS)
            if HAS_EXPONENT:
                key = load_tile(key_gamma, tokens, components, COMPONENTS, length, COMPONENTS)
                held = _held(key, states, components, inside, read, epsilon, COMPONENTS, WIDTH, PRECISION)
                query *= tl.exp(power * tl.log(held))
                # What comes of a product and is transposed may come out wrong as a factor of bfloat16 on Hopper, see
                # benchmarks/hopper_products.py: it goes by way of memory
                store_tile(scratch, query, tokens, components, COMPONENTS, length, COMPONENTS)
                tl.debug_barrier()
                query = load_tile(scratch, tokens, components, COMPONENTS, length, COMPONENTS)
            reading = tl.trans(query * (read * inverse)[:, None])
            for start in range(0, WIDTH, BLOCK_WIDTH):
                columns = start + tl.arange(0, BLOCK_WIDTH)
                grad = load_tile(grad_output, tokens, columns, stride_token, length, WIDTH)
                added = tl.zeros([BLOCK_COMPONENTS, BLOCK_WIDTH], tl.float32)
                added = dot(reading, grad, added, PRECISION)
                store_tile(grad_states, added, components, columns, WIDTH, COMPONENTS, WIDTH)

    @triton.jit
    def _grad_read_kernel(
        query_gamma, key_gamma, values, grad_output, output, log_decay, document_ids, exponent, states, normaliser,
        grad_query_gamma, grad_held, grad_elapsed, grad_exponent, grad_states, delta,
        epsilon, heads, length, chunks, stride_batch, stride_head, stride_token,
        grad_stride_batch, grad_stride_head, grad_stride_token,
        output_stride_batch, output_stride_head, output_stride_token,
        COMPONENTS: tl.constexpr, WIDTH: tl.constexpr, CHUNK: tl.constexpr, PRECISION: tl.constexpr,
        HAS_DECAY: tl.constexpr, HAS_DOCUMENTS: tl.constexpr, HAS_EXPONENT: tl.constexpr,
        BLOCK_COMPONENTS: tl.constexpr, BLOCK_WIDTH: tl.constexpr,
    ):  # fmt: skip
        """
        Compute the gradient of the queries' responsibilities of a chunk, and what reading adds to three other
        gradients: that of the mass before the chunk; by the read exponent, that of the mass of each component at each
        token, `[N, K]`; and that of the elapsed log decays. `delta` is `sum(grad_output * output)`. Grid: chunks of
        all rows.
        """
        chunk, row = tl.program_id(0) % chunks, (tl.program_id(0) // chunks).to(tl.int64)
        tokens = chunk * CHUNK + tl.arange(0, CHUNK)
        is_token = tokens < length
        inside, read, _, _ = decays(
            log_decay, document_ids, chunk, row, heads, length, CHUNK, HAS_DECAY, HAS_DOCUMENTS
        )
        query_gamma += row * length * COMPONENTS
        key_gamma += row * length * COMPONENTS
        grad_query_gamma += row * length * COMPONENTS
        values = of_row(values, row, heads, stride_batch, stride_head)
        grad_output = of_row(grad_output, row, heads, grad_stride_batch, grad_stride_head)
        output = of_row(output, row, heads, output_stride_batch, output_stride_head)
        states += (row * chunks + chunk) * COMPONENTS * (WIDTH + 1)
        grad_states += (row * chunks + chunk) * COMPONENTS * (WIDTH + 1)
        inverse = 1.0 / tl.load(normaliser + row * length + tokens, mask=is_token, other=1.0)
        if HAS_EXPONENT:
            grad_held += row * length * COMPONENTS
            power = -tl.load(exponent + row % heads)
            of_exponent = 0.0

        grad_total = tl.zeros([CHUNK], tl.float32)  # gradient of the normaliser, times the normaliser
        for start in range(0, WIDTH, BLOCK_WIDTH):
            columns = start + tl.arange(0, BLOCK_WIDTH)
            grad = load_tile(grad_output, tokens, columns, grad_stride_token, length, WIDTH).to(tl.float32)
            grad_total -= tl.sum(grad * load_tile(output, tokens, columns, output_stride_token, length, WIDTH), axis=1)
        tl.store(delta + row * length + tokens, -grad_total, mask=is_token)
        grad_affinity = _gram(
            grad_output, values, tokens, length, grad_stride_token, stride_token, WIDTH, BLOCK_WIDTH, CHUNK, PRECISION
        )
        grad_affinity = (grad_affinity + grad_total[:, None]) * inside * inverse[:, None]
        grad_total *= inverse

        elapsed = tl.zeros([CHUNK], tl.float32)
        for first in range(0, COMPONENTS, BLOCK_COMPONENTS):
            components = first + tl.arange(0, BLOCK_COMPONENTS)
            is_component = components < COMPONENTS
            query = load_tile(query_gamma, tokens, components, COMPONENTS, length, COMPONENTS)
            key = load_tile(key_gamma, tokens, components, COMPONENTS, length, COMPONENTS)
            if HAS_EXPONENT:
                held = _held(key, states, components, inside, read, epsilon, COMPONENTS, WIDTH, PRECISION)
                lift = tl.exp(power * tl.log(held))
                query *= lift
            grad_query = tl.zeros([CHUNK, BLOCK_COMPONENTS], tl.float32)
            for start in range(0, WIDTH, BLOCK_WIDTH):
                columns = start + tl.arange(0, BLOCK_WIDTH)
                grad = load_tile(grad_output, tokens, columns, grad_stride_token, length, WIDTH)
                memory = load_tile(states, components, columns, WIDTH, COMPONENTS, WIDTH)
                grad_query = dot(grad, tl.trans(memory), grad_query, PRECISION)
            mass = tl.load(states + COMPONENTS * WIDTH + components, mask=is_component, other=0.0)
            grad_query *= (read * inverse)[:, None]
            grad_query += grad_total[:, None] * (read[:, None] * mass[None, :] + epsilon)
            grad_query = dot(grad_affinity, key, grad_query, PRECISION)
            of_mass = query * grad_total[:, None]
            if HAS_EXPONENT:
                of_lift = query * grad_query  # gradient of log r, which sums to zero over the components
                of_exponent -= tl.sum(of_lift * tl.log(held))
                of_lift *= power / held
                store_tile(grad_held, of_lift, tokens, components, COMPONENTS, length, COMPONENTS)
                of_mass += of_lift
                grad_query *= lift
            store_tile(grad_query_gamma, grad_query, tokens, components, COMPONENTS, length, COMPONENTS)
            elapsed -= epsilon * tl.sum(of_mass, axis=1)
            of_mass = tl.sum(read[:, None] * of_mass, axis=0)
            tl.store(grad_states + COMPONENTS * WIDTH + components, of_mass, mask=is_component)
        if HAS_DECAY:  # all that decays: what is read would not change but for eps
            tl.store(grad_elapsed + row * length + tokens, elapsed, mask=is_token)
        if HAS_EXPONENT:
            tl.store(grad_exponent + row * chunks + chunk, of_exponent)

    @triton.jit
    def _grad_values_kernel(
        query_gamma, key_gamma, grad_output, log_decay, document_ids, exponent, states, grad_states, normaliser,
        grad_values, epsilon, heads, length, chunks, stride_batch, stride_head, stride_token,
        grad_stride_batch, grad_stride_head, grad_stride_token,
        COMPONENTS: tl.constexpr, WIDTH: tl.constexpr, CHUNK: tl.constexpr, PRECISION: tl.constexpr,
        HAS_DECAY: tl.constexpr, HAS_DOCUMENTS: tl.constexpr, HAS_EXPONENT: tl.constexpr,
        BLOCK_COMPONENTS: tl.constexpr, BLOCK_WIDTH: tl.constexpr,
    ):  # fmt: skip
        """Compute the gradient of the values of a chunk. Grid: chunks of all rows, columns."""
        chunk, row = tl.program_id(0) % chunks, (tl.program_id(0) // chunks).to(tl.int64)
        tokens = chunk * CHUNK + tl.arange(0, CHUNK)
        columns = tl.program_id(1) * BLOCK_WIDTH + tl.arange(0, BLOCK_WIDTH)
        inside, read, write, _ = decays(
            log_decay, document_ids, chunk, row, heads, length, CHUNK, HAS_DECAY, HAS_DOCUMENTS
        )
        query_gamma += row * length * COMPONENTS
        key_gamma += row * length * COMPONENTS
        grad_output = of_row(grad_output, row, heads, stride_batch, stride_head)
        grad_values = of_row(grad_values, row, heads, grad_stride_batch, grad_stride_head)
        states += (row * chunks + chunk) * COMPONENTS * (WIDTH + 1)
        grad_states += (row * chunks + chunk) * COMPONENTS * (WIDTH + 1)
        if HAS_EXPONENT:
            power = -tl.load(exponent + row % heads)

        affinity = tl.zeros([CHUNK, CHUNK], tl.float32)  # transposed from the start, see `_grad_memory_kernel`
        result = tl.zeros([CHUNK, BLOCK_WIDTH], tl.float32)
        for first in range(0, COMPONENTS, BLOCK_COMPONENTS):
            components = first + tl.arange(0, BLOCK_COMPONENTS)
            query = load_tile(query_gamma, tokens, components, COMPONENTS, length, COMPONENTS)
            key = load_tile(key_gamma, tokens, components, COMPONENTS, length, COMPONENTS)
            if HAS_EXPONENT:
                held = _held(key, states, components, inside, read, epsilon, COMPONENTS, WIDTH, PRECISION)
                query *= tl.exp(power * tl.log(held))
            affinity = dot(key, tl.trans(query), affinity, PRECISION)
            memory = load_tile(grad_states, components, columns, WIDTH, COMPONENTS, WIDTH)
            result = dot(key * write[:, None], memory, result, PRECISION)
        total = tl.load(normaliser + row * length + tokens, mask=tokens < length, other=1.0)
        affinity *= tl.trans(inside) * (1.0 / total)[None, :]
        grad = load_tile(grad_output, tokens, columns, stride_token, length, WIDTH)
        result = dot(affinity, grad, result, PRECISION)
        store_tile(grad_values, result, tokens, columns, grad_stride_token, length, WIDTH)

    @triton.jit
    def _grad_write_kernel(
        query_gamma, key_gamma, values, grad_output, log_decay, document_ids, exponent, states, grad_states,
        normaliser, delta, grad_key_gamma, grad_log_decay,
        epsilon, heads, length, chunks, stride_batch, stride_head, stride_token,
        grad_stride_batch, grad_stride_head, grad_stride_token,
        COMPONENTS: tl.constexpr, WIDTH: tl.constexpr, CHUNK: tl.constexpr, PRECISION: tl.constexpr,
        HAS_DECAY: tl.constexpr, HAS_DOCUMENTS: tl.constexpr, HAS_EXPONENT: tl.constexpr,
        BLOCK_COMPONENTS: tl.constexpr, BLOCK_WIDTH: tl.constexpr,
    ):  # fmt: skip
        """
        Compute the gradients of the keys' responsibilities and of the log decays of a chunk. They replace the
        gradients of the mass and of the elapsed log decays that `_grad_read_kernel` left in their place. Every decay
        is `exp` of a difference of two elapsed log decays, so its gradient times its value is added to the one and
        subtracted from the other. Grid: chunks of all rows.
        """
        chunk, row = tl.program_id(0) % chunks, (tl.program_id(0) // chunks).to(tl.int64)
        tokens = chunk * CHUNK + tl.arange(0, CHUNK)
        is_token = tokens < length
        inside, read, write, carry = decays(
            log_decay, document_ids, chunk, row, heads, length, CHUNK, HAS_DECAY, HAS_DOCUMENTS
        )
        query_gamma += row * length * COMPONENTS
        key_gamma += row * length * COMPONENTS
        grad_key_gamma += row * length * COMPONENTS
        values = of_row(values, row, heads, stride_batch, stride_head)
        grad_output = of_row(grad_output, row, heads, grad_stride_batch, grad_stride_head)
        states += (row * chunks + chunk) * COMPONENTS * (WIDTH + 1)
        grad_states += (row * chunks + chunk) * COMPONENTS * (WIDTH + 1)
        inverse = 1.0 / tl.load(normaliser + row * length + tokens, mask=is_token, other=1.0)
        grad_total = -tl.load(delta + row * length + tokens, mask=is_token, other=0.0)
        if HAS_EXPONENT:
            power = -tl.load(exponent + row % heads)
        later = tl.trans(inside)
        grad_affinity = _gram(  # transposed from the start, see `_grad_memory_kernel`
            values, grad_output, tokens, length, stride_token, grad_stride_token, WIDTH, BLOCK_WIDTH, CHUNK, PRECISION
        )
        grad_affinity = (grad_affinity + grad_total[None, :]) * later * inverse[None, :]

        if HAS_DECAY:
            elapsed = tl.load(grad_log_decay + row * length + tokens, mask=is_token, other=0.0)
            of_total = 0.0  # gradient of the log of `carry` and, summed, of `write`
        for first in range(0, COMPONENTS, BLOCK_COMPONENTS):
            components = first + tl.arange(0, BLOCK_COMPONENTS)
            is_component = components < COMPONENTS
            grad_mass = tl.load(grad_states + COMPONENTS * WIDTH + components, mask=is_component, other=0.0)
            grad_key = tl.zeros([CHUNK, BLOCK_COMPONENTS], tl.float32) + grad_mass[None, :]
            if HAS_DECAY:
                mass = tl.load(states + COMPONENTS * WIDTH + components, mask=is_component, other=0.0)
                of_total += tl.sum(mass * grad_mass) * carry
            for start in range(0, WIDTH, BLOCK_WIDTH):
                columns = start + tl.arange(0, BLOCK_WIDTH)
                x = load_tile(values, tokens, columns, stride_token, length, WIDTH)
                grad_memory = load_tile(grad_states, components, columns, WIDTH, COMPONENTS, WIDTH)
                grad_key = dot(x, tl.trans(grad_memory), grad_key, PRECISION)
                if HAS_DECAY:
                    memory = load_tile(states, components, columns, WIDTH, COMPONENTS, WIDTH)
                    of_total += tl.sum(memory * grad_memory) * carry
            grad_key *= write[:, None]
            query = load_tile(query_gamma, tokens, components, COMPONENTS, length, COMPONENTS)
            key = load_tile(key_gamma, tokens, components, COMPONENTS, length, COMPONENTS)
            if HAS_DECAY:
                of_total += tl.sum(grad_key * key)
            if HAS_EXPONENT:
                held = _held(key, states, components, inside, read, epsilon, COMPONENTS, WIDTH, PRECISION)
                query *= tl.exp(power * tl.log(held))
                grad_held = load_tile(grad_key_gamma, tokens, components, COMPONENTS, length, COMPONENTS)
                grad_key = dot(later, grad_held, grad_key, PRECISION)
                tl.debug_barrier()  # nobody still has to read what is written over
            grad_key = dot(grad_affinity, query, grad_key, PRECISION)
            store_tile(grad_key_gamma, grad_key, tokens, components, COMPONENTS, length, COMPONENTS)
            if HAS_DECAY:
                elapsed -= tl.sum(grad_key * key, axis=1)
        if HAS_DECAY:
            result = tl.cumsum(elapsed, 0, reverse=True) + of_total
            tl.store(grad_log_decay + row * length + tokens, result, mask=is_token)


class ScanGradients(NamedTuple):
    """Hold the gradients of the arguments of `scan`."""

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
    Return what the tokens read, and the state after them.

    Args:
        gamma: responsibilities of queries and of keys, `[2, B, H, N, K]`, float32, contiguous.
        values: `[B, H, N, d_v]`, float16, bfloat16 or float32.
        log_decay: `[B, H, N]`, float32, or None.
        document_ids: `[B, N]`, integers, or None.
        read_exponent: `[H]`, float32, or None.
        state: `[B, H, K, d_v + 1]`, float32, contiguous.

    Returns:
        The output, laid out like the values; the last state; and for the backward the normaliser `R w` `[B, H, N]` and
        the state before each chunk, `[B, H, chunks, K * (d_v + 1)]`, flat.
    """
    query_gamma, key_gamma = gamma
    calls = ChunkCalls(query_gamma, values, log_decay, document_ids, read_exponent)
    output, last = torch.empty_like(values), torch.empty_like(state)
    normaliser, states, carries = calls.new_sums(), calls.new_states(), calls.new_carries()
    calls(_write_kernel, key_gamma, values, *calls.decay, states, carries, layout=(values,))
    _sum(calls, states, carries, state, last, IS_GRADIENT=False)
    tensors = (query_gamma, key_gamma, values, *calls.decay, calls.exponent, states, output, normaliser, epsilon)
    calls(_read_kernel, *tensors, layout=(values, output), by_columns=True)
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
    """Return the gradients of the arguments of `scan`, from its results."""
    query_gamma, key_gamma = gamma
    calls = ChunkCalls(query_gamma, values, log_decay, document_ids, read_exponent)
    grad_first, grad_values, grad_gamma = (torch.empty_like(x) for x in (grad_state, values, gamma))
    delta, grad_states, carries = calls.new_sums(), calls.new_states(), calls.new_carries()
    grad_log_decay = None if log_decay is None else torch.empty_like(log_decay)
    grad_exponent = None if read_exponent is None else calls.new_carries()
    gammas, given = (query_gamma, key_gamma), (*calls.decay, calls.exponent, states)
    tensors = (*gammas, grad_output, *given, normaliser, grad_gamma[0], grad_states, carries, epsilon)
    calls(_grad_memory_kernel, *tensors, layout=(grad_output,))
    results = (*grad_gamma, grad_log_decay, grad_exponent, grad_states, delta)
    tensors = (*gammas, values, grad_output, output, *given, normaliser, *results, epsilon)
    calls(_grad_read_kernel, *tensors, layout=(values, grad_output, output), num_warps=GRADIENT_WARPS)
    _sum(calls, grad_states, carries, grad_state, grad_first, IS_GRADIENT=True)
    tensors = (*gammas, grad_output, *given, grad_states, normaliser, grad_values, epsilon)
    calls(_grad_values_kernel, *tensors, layout=(grad_output, grad_values), by_columns=True)
    tensors = (*gammas, values, grad_output, *given, grad_states, normaliser, delta)
    tensors = (*tensors, grad_gamma[1], grad_log_decay, epsilon)
    calls(_grad_write_kernel, *tensors, layout=(values, grad_output), num_warps=GRADIENT_WARPS)
    grad_exponent = None if grad_exponent is None else grad_exponent.sum((0, 2))
    return ScanGradients(grad_gamma, grad_values, grad_log_decay, grad_exponent, grad_first)


def _sum(calls: ChunkCalls, states: Tensor, carries: Tensor, first: Tensor, last: Tensor, **flags) -> None:
    """Run `_sum_kernel` from the state `first` to the state `last`."""
    grid = (calls.batch * calls.heads, ceil_div(states.shape[-1], BLOCK_STATE))
    _sum_kernel[grid](states, carries, first, last, calls.chunks, **calls.sizes, **flags, BLOCK_STATE=BLOCK_STATE)
