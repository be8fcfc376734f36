"""
Triton kernels for the read exponent: what queries weigh the slots with, `gamma_k w_k^(-p)` divided by its sum over k,
where `w = z + eps` is what a slot holds at a token; and the gradients that pass through w. The scan then reads with
these weights as with responsibilities.
"""

from torch import Tensor

from .kernels_chunks_gma import ChunkCalls
from .kernels_gma import ceil_div, tl, triton


if triton is not None:
    from .kernels_chunks_gma import decays, dot
    from .kernels_gma import load_tile, store_tile

    @triton.jit
    def _held(
        key_gamma, states, tokens, components, length, inside, read, epsilon,
        COMPONENTS: tl.constexpr, WIDTH: tl.constexpr, PRECISION: tl.constexpr,
    ):  # fmt: skip
        """What some slots hold at the tokens of a chunk, `[C, BLOCK]`."""
        key = load_tile(key_gamma, tokens, components, COMPONENTS, length, COMPONENTS)
        mass = tl.load(states + COMPONENTS * WIDTH + components, mask=components < COMPONENTS, other=0.0)
        return dot(inside, key, read[:, None] * mass[None, :] + epsilon, PRECISION)

    @triton.jit
    def _lift_kernel(
        query_gamma, key_gamma, log_decay, document_ids, states, exponent, epsilon, heads, length, chunks,
        COMPONENTS: tl.constexpr, WIDTH: tl.constexpr, CHUNK: tl.constexpr, PRECISION: tl.constexpr,
        HAS_DECAY: tl.constexpr, HAS_DOCUMENTS: tl.constexpr,
        BLOCK_COMPONENTS: tl.constexpr, BLOCK_WIDTH: tl.constexpr,
    ):  # fmt: skip
        """In the place of the responsibilities of the queries of a chunk, their weights. Grid: chunks of all rows."""
        chunk, row = tl.program_id(0) % chunks, (tl.program_id(0) // chunks).to(tl.int64)
        tokens = chunk * CHUNK + tl.arange(0, CHUNK)
        inside, read, _, _ = decays(
            log_decay, document_ids, chunk, row, heads, length, CHUNK, HAS_DECAY, HAS_DOCUMENTS
        )
        query_gamma += row * length * COMPONENTS
        key_gamma += row * length * COMPONENTS
        states += (row * chunks + chunk) * COMPONENTS * (WIDTH + 1)
        power = -tl.load(exponent + row % heads)

        total = tl.zeros([CHUNK], tl.float32)
        for first in range(0, COMPONENTS, BLOCK_COMPONENTS):
            components = first + tl.arange(0, BLOCK_COMPONENTS)
            held = _held(
                key_gamma, states, tokens, components, length, inside, read, epsilon, COMPONENTS, WIDTH, PRECISION
            )
            query = load_tile(query_gamma, tokens, components, COMPONENTS, length, COMPONENTS)
            total += tl.sum(query * tl.exp(power * tl.log(held)), axis=1)
        factor = 1.0 / tl.where(tokens < length, total, 1.0)
        for first in range(0, COMPONENTS, BLOCK_COMPONENTS):
            components = first + tl.arange(0, BLOCK_COMPONENTS)
            held = _held(
                key_gamma, states, tokens, components, length, inside, read, epsilon, COMPONENTS, WIDTH, PRECISION
            )
            query = load_tile(query_gamma, tokens, components, COMPONENTS, length, COMPONENTS)
            query *= tl.exp(power * tl.log(held)) * factor[:, None]
            store_tile(query_gamma, query, tokens, components, COMPONENTS, length, COMPONENTS)

    @triton.jit
    def _grad_held_kernel(
        weights, key_gamma, log_decay, document_ids, states, exponent,
        grad_weights, grad_key_gamma, grad_elapsed, grad_exponent, grad_mass, epsilon, heads, length, chunks,
        COMPONENTS: tl.constexpr, WIDTH: tl.constexpr, CHUNK: tl.constexpr, PRECISION: tl.constexpr,
        HAS_DECAY: tl.constexpr, HAS_DOCUMENTS: tl.constexpr,
        BLOCK_COMPONENTS: tl.constexpr, BLOCK_WIDTH: tl.constexpr,
    ):  # fmt: skip
        """
        From the gradient of the weights, what passes through some slots: it is added to the gradients of the keys'
        responsibilities, and given for the elapsed log decays `[B, H, blocks, N]`, the exponent and the mass before
        the first token. From the last chunk to the first. Grid: rows, blocks of components.
        """
        row, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
        blocks = tl.num_programs(1)
        components = block * BLOCK_COMPONENTS + tl.arange(0, BLOCK_COMPONENTS)
        weights += row * length * COMPONENTS
        key_gamma += row * length * COMPONENTS
        grad_weights += row * length * COMPONENTS
        grad_key_gamma += row * length * COMPONENTS
        grad_elapsed += (row * blocks + block) * length
        power = tl.load(exponent + row % heads)
        after = tl.zeros([BLOCK_COMPONENTS], tl.float32)  # gradient of the mass after the chunk
        of_exponent = 0.0
        for step in range(chunks):
            chunk = chunks - 1 - step
            tokens = chunk * CHUNK + tl.arange(0, CHUNK)
            inside, read, write, carry = decays(
                log_decay, document_ids, chunk, row, heads, length, CHUNK, HAS_DECAY, HAS_DOCUMENTS
            )
            # d r_k / d s_l = r_k (delta_kl - r_l), where s is lifted: s - p log w
            common = tl.zeros([CHUNK], tl.float32)
            for first in range(0, COMPONENTS, BLOCK_COMPONENTS):
                others = first + tl.arange(0, BLOCK_COMPONENTS)
                x = load_tile(weights, tokens, others, COMPONENTS, length, COMPONENTS)
                common += tl.sum(x * load_tile(grad_weights, tokens, others, COMPONENTS, length, COMPONENTS), axis=1)
            held = _held(
                key_gamma, states + (row * chunks + chunk) * COMPONENTS * (WIDTH + 1), tokens, components, length,
                inside, read, epsilon, COMPONENTS, WIDTH, PRECISION,
            )  # fmt: skip
            grad = load_tile(grad_weights, tokens, components, COMPONENTS, length, COMPONENTS) - common[:, None]
            grad *= load_tile(weights, tokens, components, COMPONENTS, length, COMPONENTS)
            of_exponent -= tl.sum(grad * tl.log(held))
            grad_held = -power * grad / held
            grad_key = dot(tl.trans(inside), grad_held, write[:, None] * after[None, :], PRECISION)
            added = load_tile(grad_key_gamma, tokens, components, COMPONENTS, length, COMPONENTS) + grad_key
            store_tile(grad_key_gamma, added, tokens, components, COMPONENTS, length, COMPONENTS)
            after = carry * after + tl.sum(read[:, None] * grad_held, axis=0)
            if HAS_DECAY:
                key = load_tile(key_gamma, tokens, components, COMPONENTS, length, COMPONENTS)
                ends = tl.sum(grad_held * (held - epsilon) - grad_key * key, axis=1)
                tl.store(grad_elapsed + tokens, ends, mask=tokens < length)
        tl.store(grad_exponent + row * blocks + block, of_exponent)
        tl.store(grad_mass + row * COMPONENTS + components, after, mask=components < COMPONENTS)


def lift(
    calls: ChunkCalls, query_gamma: Tensor, key_gamma: Tensor, states: Tensor, exponent: Tensor, epsilon: float
) -> None:
    """
    Put the reading weights of the queries in the place of their responsibilities.

    Args:
        query_gamma, key_gamma: `[B, H, N, K]`, float32, contiguous.
        states: before each chunk, flat, `[B, H, chunks, K * (d_v + 1)]`.
        exponent: `[H]`, float32.
        epsilon: eps of the read.
    """
    calls(_lift_kernel, query_gamma, key_gamma, *calls.decay, states, exponent.contiguous(), epsilon, layout=())


def lift_backward(
    calls: ChunkCalls,
    weights: Tensor,
    key_gamma: Tensor,
    states: Tensor,
    exponent: Tensor,
    epsilon: float,
    grad_weights: Tensor,
    grad_key_gamma: Tensor,
    grad_log_decay: Tensor | None,
    grad_state: Tensor,
) -> Tensor:
    """
    Add what passes through the mass to the gradients of the keys' responsibilities, of the log decays and of the
    state, and return the gradient of the exponent, `[H]`.
    """
    blocks = ceil_div(calls.sizes["COMPONENTS"], calls.options["BLOCK_COMPONENTS"])
    grad_elapsed = weights.new_empty(calls.batch, calls.heads, blocks, calls.length)
    grad_exponent = weights.new_empty(calls.batch, calls.heads, blocks)
    grad_mass = weights.new_empty(calls.batch, calls.heads, calls.sizes["COMPONENTS"])
    gradients = (grad_weights, grad_key_gamma, grad_elapsed, grad_exponent, grad_mass)
    numbers = (epsilon, calls.heads, calls.length, calls.chunks)
    tensors = (weights, key_gamma, *calls.decay, states, exponent.contiguous())
    _grad_held_kernel[(calls.batch * calls.heads, blocks)](*tensors, *gradients, *numbers, **calls.options)
    if grad_log_decay is not None:  # a token's decay is in what has elapsed at it and after it
        grad_log_decay += grad_elapsed.sum(2).flip(-1).cumsum(-1).flip(-1)
    grad_state[..., -1] += grad_mass
    return grad_exponent.sum((0, 2))
