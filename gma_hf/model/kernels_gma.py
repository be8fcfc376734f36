"""
Triton kernels for the responsibilities of one side, from queries or keys straight to gamma: scores, softmax and mask
in one pass, forward and backward. Neither features nor scores are written to memory. Without Triton this file imports
all the same, and `can_route` says that there are no kernels.

A row is one token of one head; the rows of a head are numbered through the batch.
"""

import torch
from torch import Tensor

from .functional_gma import ScoreWeights
from .routing_gma import NAMESPACE, refuse_second_derivative


try:
    import triton
    import triton.language as tl
except ImportError:
    triton = tl = None

# All components of a row are in one program. With more of them it would not fit into the shared memory of a small GPU.
MAX_COMPONENTS = 256
# Programs that sum the gradient of the weights of a head: bounds what they write, whatever the number of tokens.
STRIPES = 32
IS_INTERPRETED = triton is not None and triton.knobs.runtime.interpret


if triton is not None:

    @triton.jit
    def _load_centred(
        x, centre, rows, columns, num_rows, length, stride_batch, stride_token, stride_column, WIDTH: tl.constexpr
    ):
        """`x - centre` of some rows and columns of a head, float32; 0 in columns beyond the last."""
        starts = rows // length * stride_batch + rows % length * stride_token
        is_inside = (rows < num_rows)[:, None] & (columns < WIDTH)[None, :]
        values = tl.load(x + starts[:, None] + columns[None, :] * stride_column, mask=is_inside, other=0.0)
        return values.to(tl.float32) - tl.load(centre + columns, mask=columns < WIDTH, other=0.0)[None, :]

    @triton.jit
    def _gamma_offsets(rows, head, heads, length, components, COMPONENTS: tl.constexpr):
        """Where the responsibilities of some rows of a head lie in `[B, H, N, K]`."""
        starts = ((rows // length * heads + head) * length + rows % length) * COMPONENTS
        return starts[:, None] + components[None, :]

    @triton.jit
    def _load_grad_scores(
        gamma, grad_gamma, rows, head, heads, num_rows, length, components, COMPONENTS: tl.constexpr
    ):
        """`d gamma_k / d s_l = gamma_k (delta_kl - gamma_l)`: zero in a masked row and beyond the last row."""
        offsets = _gamma_offsets(rows, head, heads, length, components, COMPONENTS)
        is_inside = (rows < num_rows)[:, None] & (components < COMPONENTS)[None, :]
        gamma = tl.load(gamma + offsets, mask=is_inside, other=0.0)
        grad = tl.load(grad_gamma + offsets, mask=is_inside, other=0.0)
        return gamma * (grad - tl.sum(gamma * grad, axis=1)[:, None])

    @triton.jit
    def _route_kernel(
        x, weights, constant, centre, mask, gamma,
        heads, num_rows, length, stride_batch, stride_head, stride_token, stride_column,
        WIDTH: tl.constexpr, COMPONENTS: tl.constexpr, HAS_MASK: tl.constexpr,
        BLOCK_ROWS: tl.constexpr, BLOCK_WIDTH: tl.constexpr, BLOCK_COMPONENTS: tl.constexpr,
    ):  # fmt: skip
        """Responsibilities of a block of rows. Grid: blocks of rows, heads."""
        rows = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
        head = tl.program_id(1).to(tl.int64)
        components = tl.arange(0, BLOCK_COMPONENTS)
        is_component = components < COMPONENTS
        x += head * stride_head
        centre += head * WIDTH
        weights += head * 2 * WIDTH * COMPONENTS

        scores = tl.zeros([BLOCK_ROWS, BLOCK_COMPONENTS], dtype=tl.float32)
        scores += tl.load(constant + head * COMPONENTS + components, mask=is_component, other=float("-inf"))[None, :]
        for start in range(0, WIDTH, BLOCK_WIDTH):
            columns = start + tl.arange(0, BLOCK_WIDTH)
            values = _load_centred(
                x, centre, rows, columns, num_rows, length, stride_batch, stride_token, stride_column, WIDTH
            )
            offsets = columns[:, None] * COMPONENTS + components[None, :]
            is_weight = (columns < WIDTH)[:, None] & is_component[None, :]
            quadratic = tl.load(weights + offsets, mask=is_weight, other=0.0)
            linear = tl.load(weights + WIDTH * COMPONENTS + offsets, mask=is_weight, other=0.0)
            scores = tl.dot(values * values, quadratic, scores, input_precision="tf32x3")
            scores = tl.dot(values, linear, scores, input_precision="tf32x3")

        scores = tl.exp(scores - tl.max(scores, axis=1)[:, None])
        scores = scores / tl.sum(scores, axis=1)[:, None]
        if HAS_MASK:
            scores *= tl.load(mask + rows, mask=rows < num_rows, other=0.0)[:, None]
        offsets = _gamma_offsets(rows, head, heads, length, components, COMPONENTS)
        tl.store(gamma + offsets, scores, mask=(rows < num_rows)[:, None] & is_component[None, :])

    @triton.jit
    def _grad_inputs_kernel(
        x, weights, centre, gamma, grad_gamma, grad_x,
        heads, num_rows, length, stride_batch, stride_head, stride_token, stride_column,
        grad_stride_batch, grad_stride_head, grad_stride_token, grad_stride_column,
        WIDTH: tl.constexpr, COMPONENTS: tl.constexpr, PRECISION: tl.constexpr,
        BLOCK_ROWS: tl.constexpr, BLOCK_WIDTH: tl.constexpr, BLOCK_COMPONENTS: tl.constexpr,
    ):  # fmt: skip
        """Gradient of a block of rows of x. Grid: blocks of rows, heads."""
        rows = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
        head = tl.program_id(1).to(tl.int64)
        components = tl.arange(0, BLOCK_COMPONENTS)
        x += head * stride_head
        centre += head * WIDTH
        weights += head * 2 * WIDTH * COMPONENTS
        grad_x += head * grad_stride_head
        targets = rows // length * grad_stride_batch + rows % length * grad_stride_token
        grad_scores = _load_grad_scores(gamma, grad_gamma, rows, head, heads, num_rows, length, components, COMPONENTS)

        for start in range(0, WIDTH, BLOCK_WIDTH):
            columns = start + tl.arange(0, BLOCK_WIDTH)
            offsets = columns[None, :] * COMPONENTS + components[:, None]
            is_weight = (columns < WIDTH)[None, :] & (components < COMPONENTS)[:, None]
            quadratic = tl.load(weights + offsets, mask=is_weight, other=0.0)
            grad = tl.dot(grad_scores, quadratic, input_precision=PRECISION)
            values = _load_centred(
                x, centre, rows, columns, num_rows, length, stride_batch, stride_token, stride_column, WIDTH
            )
            grad = 2 * values * grad
            linear = tl.load(weights + WIDTH * COMPONENTS + offsets, mask=is_weight, other=0.0)
            grad = tl.dot(grad_scores, linear, grad, input_precision=PRECISION)
            target = grad_x + targets[:, None] + columns[None, :] * grad_stride_column
            is_inside = (rows < num_rows)[:, None] & (columns < WIDTH)[None, :]
            tl.store(target, grad.to(grad_x.dtype.element_ty), mask=is_inside)

    @triton.jit
    def _grad_weights_kernel(
        x, centre, gamma, grad_gamma, grad_weights, grad_constant,
        heads, num_rows, length, rows_per_stripe, stride_batch, stride_head, stride_token, stride_column,
        WIDTH: tl.constexpr, COMPONENTS: tl.constexpr, PRECISION: tl.constexpr,
        BLOCK_ROWS: tl.constexpr, BLOCK_WIDTH: tl.constexpr, BLOCK_COMPONENTS: tl.constexpr,
    ):  # fmt: skip
        """
        What one stripe of rows adds to the gradient of some rows of the weights, and of the constant. Grid: stripes,
        heads, blocks of columns of x.
        """
        stripe = tl.program_id(0).to(tl.int64)
        head = tl.program_id(1).to(tl.int64)
        columns = tl.program_id(2) * BLOCK_WIDTH + tl.arange(0, BLOCK_WIDTH)
        components = tl.arange(0, BLOCK_COMPONENTS)
        x += head * stride_head
        centre += head * WIDTH

        quadratic = tl.zeros([BLOCK_WIDTH, BLOCK_COMPONENTS], dtype=tl.float32)
        linear = tl.zeros([BLOCK_WIDTH, BLOCK_COMPONENTS], dtype=tl.float32)
        total = tl.zeros([BLOCK_COMPONENTS], dtype=tl.float32)
        for start in range(0, rows_per_stripe, BLOCK_ROWS):
            rows = stripe * rows_per_stripe + start + tl.arange(0, BLOCK_ROWS)
            grad_scores = _load_grad_scores(
                gamma, grad_gamma, rows, head, heads, num_rows, length, components, COMPONENTS
            )
            values = tl.trans(
                _load_centred(
                    x, centre, rows, columns, num_rows, length, stride_batch, stride_token, stride_column, WIDTH
                )
            )
            quadratic = tl.dot(values * values, grad_scores, quadratic, input_precision=PRECISION)
            linear = tl.dot(values, grad_scores, linear, input_precision=PRECISION)
            total += tl.sum(grad_scores, axis=0)

        is_component = components < COMPONENTS
        is_weight = (columns < WIDTH)[:, None] & is_component[None, :]
        grad_weights += (stripe * heads + head) * 2 * WIDTH * COMPONENTS
        offsets = columns[:, None] * COMPONENTS + components[None, :]
        tl.store(grad_weights + offsets, quadratic, mask=is_weight)
        tl.store(grad_weights + WIDTH * COMPONENTS + offsets, linear, mask=is_weight)
        if tl.program_id(2) == 0:
            tl.store(grad_constant + (stripe * heads + head) * COMPONENTS + components, total, mask=is_component)


def can_route(x: Tensor, scores: ScoreWeights) -> bool:
    """
    Whether the kernels take this: Triton is there, `x` is on an NVIDIA GPU (or Triton's interpreter is on), nothing is
    float64, and there are at most `MAX_COMPONENTS` components.
    """
    has_kernels = triton is not None and (IS_INTERPRETED or x.is_cuda and torch.version.hip is None)
    is_float32 = x.dtype != torch.float64 and scores.weights.dtype == torch.float32
    return has_kernels and is_float32 and scores.constant.shape[-1] <= MAX_COMPONENTS


def products(dtype: torch.dtype) -> str:
    """
    How the matrix units multiply for inputs of a dtype: TF32 (10 bits of the factors) for half precision, and for
    float32 three such products, which are as good as float32.
    """
    return "tf32x3" if dtype == torch.float32 else "tf32"


def fused_responsibilities(
    queries: Tensor, keys: Tensor, scores: ScoreWeights, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """
    `functional_gma.responsibilities` by the kernels: same arguments, same result (float32, contiguous), for what
    `can_route` agrees to.
    """
    query_gamma = route_side(queries, scores.weights[0], scores.constant[0], scores.centre, None)
    return query_gamma, route_side(keys, scores.weights[1], scores.constant[1], scores.centre, mask)


def route(x: Tensor, weights: Tensor, constant: Tensor, centre: Tensor, mask: Tensor | None) -> Tensor:
    """
    Responsibilities of queries or of keys (paper eq. 2).

    Args:
        x: `[B, H, N, d_r]`, float16, bfloat16 or float32, in any strides.
        weights: `[H, 2 d_r, K]`, float32, of one side, from `score_weights`; so are the next two.
        constant: `[H, K]`, float32.
        centre: `[H, d_r]`, float32.
        mask: `[B, N]`, False where the responsibilities are to be zero, or None.

    Returns:
        `[B, H, N, K]`, float32, contiguous.
    """
    gamma = _empty_gamma(x, constant)
    batch, heads, length, width = x.shape
    sizes, blocks = (heads, batch * length, length), _blocks(width, constant.shape[-1])
    mask = None if mask is None else mask.to(torch.float32).contiguous()
    inputs = (x, weights.contiguous(), constant.contiguous(), centre.contiguous(), mask, gamma)
    if gamma.numel() > 0:
        with torch.cuda.device_of(x):
            grid = (triton.cdiv(batch * length, blocks["BLOCK_ROWS"]), heads)
            _route_kernel[grid](*inputs, *sizes, *x.stride(), HAS_MASK=mask is not None, **blocks)
    return gamma


def route_backward(
    grad_gamma: Tensor, x: Tensor, weights: Tensor, centre: Tensor, gamma: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x (in its dtype), weights and constant; the sums are in a fixed order, without atomics."""
    batch, heads, length, width = x.shape
    components = gamma.shape[-1]
    num_rows, blocks = batch * length, _blocks(width, components) | {"PRECISION": products(x.dtype)}
    grad_gamma, weights, centre = grad_gamma.contiguous(), weights.contiguous(), centre.contiguous()
    num_blocks = triton.cdiv(num_rows, blocks["BLOCK_ROWS"])
    rows_per_stripe = triton.cdiv(num_blocks, STRIPES) * blocks["BLOCK_ROWS"]
    stripes = triton.cdiv(num_rows, rows_per_stripe) if num_rows > 0 else 0
    grad_x = torch.empty_like(x)
    grad_weights = gamma.new_empty(stripes, heads, 2 * width, components)
    grad_constant = gamma.new_empty(stripes, heads, components)
    if num_rows > 0:
        with torch.cuda.device_of(x):
            sizes = (heads, num_rows, length)
            _grad_inputs_kernel[num_blocks, heads](
                x, weights, centre, gamma, grad_gamma, grad_x, *sizes, *x.stride(), *grad_x.stride(), **blocks
            )
            grid = (stripes, heads, triton.cdiv(width, blocks["BLOCK_WIDTH"]))
            outputs = (grad_weights, grad_constant)
            _grad_weights_kernel[grid](
                x, centre, gamma, grad_gamma, *outputs, *sizes, rows_per_stripe, *x.stride(), **blocks
            )
    return grad_x, grad_weights.sum(0), grad_constant.sum(0)


@torch.library.custom_op(f"{NAMESPACE}::route_side", mutates_args=())
def route_side(x: Tensor, weights: Tensor, constant: Tensor, centre: Tensor, mask: Tensor | None) -> Tensor:
    """`route` as an operator. Its backward stores these inputs and the result."""
    return route(x, weights, constant, centre, mask)


@route_side.register_fake
def _(x, weights, constant, centre, mask):
    return _empty_gamma(x, constant)


@torch.library.custom_op(f"{NAMESPACE}::route_side_backward", mutates_args=())
def _backward(
    grad_gamma: Tensor, x: Tensor, weights: Tensor, centre: Tensor, gamma: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return route_backward(grad_gamma, x, weights, centre, gamma)


@_backward.register_fake
def _(grad_gamma, x, weights, centre, gamma):
    heads, rows, components = weights.shape
    return torch.empty_like(x), weights.new_empty(heads, rows, components), weights.new_empty(heads, components)


def _setup(ctx, inputs, output) -> None:
    x, weights, _, centre, _ = inputs
    ctx.save_for_backward(x, weights, centre, output)


def _gradients(ctx, grad_gamma):
    return *_backward(grad_gamma, *ctx.saved_tensors), None, None


route_side.register_autograd(_gradients, setup_context=_setup)
_backward.register_autograd(refuse_second_derivative)


def _empty_gamma(x: Tensor, constant: Tensor) -> Tensor:
    return constant.new_empty(*x.shape[:3], constant.shape[-1])


def block_size(size: int) -> int:
    """The power of two that holds `size`, of at least 16, as `tl.dot` wants it."""
    return max(16, triton.next_power_of_2(size))


def _blocks(width: int, components: int) -> dict[str, int]:
    """
    Sizes of the blocks, powers of two of at least 16 as `tl.dot` wants them: all components, and as many rows and
    columns of x as leave their products in registers (looked up in what the compiler makes for compute capability 8.0
    and 9.0, where it spills nothing up to 128 components and little at 256).
    """
    block_components = block_size(components)
    block = 32 if block_components <= 64 else 16
    return {
        "WIDTH": width,
        "COMPONENTS": components,
        "BLOCK_ROWS": block,
        "BLOCK_WIDTH": min(block, block_size(width)),
        "BLOCK_COMPONENTS": block_components,
        "num_warps": 8,
        "num_stages": 1,
    }
