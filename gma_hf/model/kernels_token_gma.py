"""
A Triton kernel for one token of the causal form: scores, responsibilities, decay, update of the state and read in one
launch, with a program for each head of each batch row.
"""

import torch
from torch import Tensor

from .kernels_gma import block_size, strides, tl, token_by_token, triton
from .operators_gma import NAMESPACE, CausalInputs


# Numbers of the largest tile that a program holds: of a state, or of the weights of the scores.
TILE = 4096


if triton is not None:

    @triton.jit
    def _gamma(
        x, weights, constant, centre, components, stride_feature, stride_component,
        ROUTING: tl.constexpr, COMPONENTS: tl.constexpr, BLOCK_ROUTING: tl.constexpr,
        BLOCK_COMPONENTS: tl.constexpr,
    ):  # fmt: skip
        """Return the responsibilities of one vector, `[BLOCK_COMPONENTS]`, with 0 beyond the last component."""
        is_component = components < COMPONENTS
        scores = tl.zeros([BLOCK_COMPONENTS], tl.float32)
        for start in range(0, ROUTING, BLOCK_ROUTING):
            features = start + tl.arange(0, BLOCK_ROUTING)
            is_feature = features < ROUTING
            values = tl.load(x + features, mask=is_feature, other=0.0).to(tl.float32)
            values = (values - tl.load(centre + features, mask=is_feature, other=0.0))[None, :]
            places = weights + components[:, None] * stride_component + features[None, :] * stride_feature
            is_inside = is_component[:, None] & is_feature[None, :]
            quadratic = tl.load(places, mask=is_inside, other=0.0)
            linear = tl.load(places + ROUTING * stride_feature, mask=is_inside, other=0.0)
            scores += tl.sum(values * (values * quadratic + linear), axis=1)
        scores += tl.load(constant + components, mask=is_component, other=float("-inf"))
        scores = tl.exp(scores - tl.max(scores, axis=0))
        return scores / tl.sum(scores, axis=0)

    @triton.jit
    def _token_kernel(
        queries, keys, values, weights, constant, centre, mask, log_decay, document_ids, exponent, state,
        output, new_state, epsilon, heads, query_stride_batch, query_stride_head,
        key_stride_batch, key_stride_head, value_stride_batch, value_stride_head,
        weights_stride_side, weights_stride_head, weights_stride_feature, weights_stride_component,
        constant_stride_side, constant_stride_head,
        ROUTING: tl.constexpr, COMPONENTS: tl.constexpr, WIDTH: tl.constexpr,
        HAS_MASK: tl.constexpr, HAS_DECAY: tl.constexpr, HAS_DOCUMENTS: tl.constexpr, HAS_EXPONENT: tl.constexpr,
        BLOCK_ROUTING: tl.constexpr, BLOCK_COMPONENTS: tl.constexpr, BLOCK_WIDTH: tl.constexpr,
    ):  # fmt: skip
        """Compute the state after a token, which may overwrite the one before, and what it reads. Grid: rows."""
        row = tl.program_id(0).to(tl.int64)
        batch, head = row // heads, row % heads
        components = tl.arange(0, BLOCK_COMPONENTS)
        is_component = components < COMPONENTS
        state += row * COMPONENTS * (WIDTH + 1)
        new_state += row * COMPONENTS * (WIDTH + 1)
        mass = tl.load(state + components * (WIDTH + 1) + WIDTH, mask=is_component, other=0.0)

        weights += head * weights_stride_head
        constant += head * constant_stride_head
        centre += head * ROUTING
        queries += batch * query_stride_batch + head * query_stride_head
        query = _gamma(
            queries, weights, constant, centre, components, weights_stride_feature, weights_stride_component,
            ROUTING, COMPONENTS, BLOCK_ROUTING, BLOCK_COMPONENTS,
        )  # fmt: skip
        weights += weights_stride_side
        constant += constant_stride_side
        keys += batch * key_stride_batch + head * key_stride_head
        key = _gamma(
            keys, weights, constant, centre, components, weights_stride_feature, weights_stride_component,
            ROUTING, COMPONENTS, BLOCK_ROUTING, BLOCK_COMPONENTS,
        )  # fmt: skip
        if HAS_MASK:
            key *= tl.load(mask + batch).to(tl.float32)
        kept = 1.0
        if HAS_DECAY:
            kept *= tl.exp(tl.load(log_decay + row))
        if HAS_DOCUMENTS:
            kept *= tl.where(tl.load(document_ids + batch) == 0, 1.0, 0.0)

        mass = mass * kept + key
        if HAS_EXPONENT:  # the sum over the components drops out, see `reading_weights`
            query *= tl.exp(-tl.load(exponent + head) * tl.log(mass + epsilon))
        factor = 1.0 / tl.sum(query * (mass + epsilon), axis=0)
        tl.debug_barrier()  # nobody else still has to read what is written over
        tl.store(new_state + components * (WIDTH + 1) + WIDTH, mass, mask=is_component)
        values += batch * value_stride_batch + head * value_stride_head
        output += row * WIDTH
        for start in range(0, WIDTH, BLOCK_WIDTH):
            columns = start + tl.arange(0, BLOCK_WIDTH)
            is_column = columns < WIDTH
            places = components[:, None] * (WIDTH + 1) + columns[None, :]
            is_inside = is_component[:, None] & is_column[None, :]
            x = tl.load(values + columns, mask=is_column, other=0.0).to(tl.float32)
            memory = tl.load(state + places, mask=is_inside, other=0.0) * kept + key[:, None] * x[None, :]
            tl.debug_barrier()
            tl.store(new_state + places, memory, mask=is_inside)
            read = tl.sum(query[:, None] * memory, axis=0) * factor
            tl.store(output + columns, read.to(output.dtype.element_ty), mask=is_column)


def token_tiles(components: int, routing: int, width: int) -> dict[str, int]:
    """Return the sizes of a tile: all components, and as many columns as keep the tile in registers."""
    block = block_size(components)
    columns = max(1, TILE // block)
    return {
        "COMPONENTS": components,
        "ROUTING": routing,
        "WIDTH": width,
        "BLOCK_COMPONENTS": block,
        "BLOCK_ROUTING": min(columns, block_size(routing)),
        "BLOCK_WIDTH": min(columns, block_size(width)),
        "num_warps": 4,
    }


def _launch(inputs: CausalInputs, state: Tensor, new_state: Tensor, epsilon: float) -> Tensor:
    """Write the state after a token into `new_state`, contiguous as `state` is, and return what the token reads."""
    queries, keys, values = (token_by_token(x) for x in (inputs.queries, inputs.keys, inputs.values))
    batch, heads, _, width = values.shape
    output = values.new_empty(values.shape)
    weights, constant = inputs.weights, token_by_token(inputs.constant)
    by_row = (inputs.mask, inputs.log_decay, inputs.document_ids)
    mask, log_decay, ids = (None if x is None else x.expand(batch, *x.shape[1:]).contiguous() for x in by_row)
    exponent = None if inputs.read_exponent is None else inputs.read_exponent.contiguous()
    flags = {
        "HAS_MASK": mask is not None,
        "HAS_DECAY": log_decay is not None,
        "HAS_DOCUMENTS": ids is not None,
        "HAS_EXPONENT": exponent is not None,
    }
    numbers = (heads, *(n for x in (queries, keys, values) for n in strides(x)[:2]))
    numbers += (*weights.stride(), *constant.stride()[:2])
    tensors = (weights, constant, inputs.centre.contiguous(), mask, log_decay, ids, exponent, state)
    if output.numel() > 0:
        with torch.cuda.device_of(values):
            _token_kernel[(batch * heads,)](
                queries, keys, values, *tensors, output, new_state, epsilon, *numbers, **flags,
                **token_tiles(constant.shape[-1], queries.shape[-1], width),
            )  # fmt: skip
    return output


def _step(*arguments) -> tuple[Tensor, Tensor]:
    inputs, epsilon = CausalInputs(*arguments[:-1]), arguments[-1]
    state = inputs.state.contiguous()
    new_state = torch.empty_like(state)
    return _launch(inputs, state, new_state, epsilon), new_state


def _step_in_place(*arguments) -> Tensor:
    inputs, epsilon = CausalInputs(*arguments[:-1]), arguments[-1]
    return _launch(inputs, inputs.state, inputs.state, epsilon)


def _operator(name: str, function, fake, is_in_place: bool):
    optional = CausalInputs.__annotations__
    given = {field: f"Tensor{'' if optional[field] is Tensor else '?'}" for field in CausalInputs._fields}
    if is_in_place:
        given["state"] = "Tensor(a!)"
    arguments = ", ".join(f"{kind} {field}" for field, kind in given.items())
    schema = f"({arguments}, float epsilon) -> {'Tensor' if is_in_place else '(Tensor, Tensor)'}"
    mutates = ("state",) if is_in_place else ()
    operator = torch.library.custom_op(f"{NAMESPACE}::{name}", function, mutates_args=mutates, schema=schema)
    operator.register_fake(fake)
    return operator


def _fake_output(*arguments) -> Tensor:
    values = CausalInputs(*arguments[:-1]).values
    return values.new_empty(values.shape)


def _fake_step(*arguments) -> tuple[Tensor, Tensor]:
    return _fake_output(*arguments), torch.empty_like(CausalInputs(*arguments[:-1]).state.contiguous())


# What one token reads, and the state after it; in place the state is overwritten. Neither has a gradient.
step = _operator("token", _step, _fake_step, is_in_place=False)
step_in_place = _operator("token_in_place", _step_in_place, _fake_output, is_in_place=True)
