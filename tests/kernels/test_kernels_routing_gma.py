"""The routing kernels against `equations_gma.responsibilities` in float64: the result and all gradients."""

import os
import subprocess
import sys
import textwrap

import pytest
import torch

from gma_hf.model import kernels_routing_gma
from gma_hf.model.equations_gma import Mixture, ScoreWeights, responsibilities, score_weights
from gma_hf.model.kernels_routing_gma import launch_route, launch_route_backward
from gma_hf.model.operators_gma import CausalInputs


TOLERANCE = 1e-4
SIZES = [  # tokens, width, components
    (1, 10, 7),
    (63, 10, 1),
    (65, 16, 64),
    (63, 64, 64),
    (65, 64, 100),
    (65, 100, 7),
    (63, 100, 100),
    (1, 64, 1),
    (20, 4, 200),
]


class Route(torch.autograd.Function):
    """Both launches as one function to differentiate."""

    @staticmethod
    def forward(ctx, queries, keys, weights, constant, centre, mask):
        ctx.inputs = CausalInputs(queries, keys, None, weights, constant, centre, mask, None, None, None, None)
        ctx.gamma = launch_route(ctx.inputs)
        return ctx.gamma

    @staticmethod
    def backward(ctx, grad):
        return *launch_route_backward(grad, ctx.inputs, ctx.gamma), None, None


def by_kernels(queries, keys, scores, mask=None):
    query_gamma, key_gamma = Route.apply(queries, keys, *scores, mask)
    return query_gamma, key_gamma


def make_inputs(device, length=63, width=10, components=7, batch=2, heads=2, offset=0.0, dtype=torch.float32):
    """Queries, keys and the scores of a mixture whose means lie around `offset`."""
    torch.manual_seed(0)
    means = torch.randn(heads, components, width) + offset
    variances = 0.3 * width**0.5 * (0.5 + torch.rand(heads, components, width))
    temperature = 0.5 + torch.rand(2, heads)
    scores = score_weights(Mixture(means, variances, torch.randn(heads, components), temperature))
    queries, keys = torch.randn(2, batch, heads, length, width) + offset
    scores = ScoreWeights(*(x.to(device) for x in scores))
    return queries.to(device, dtype), keys.to(device, dtype), scores


def make_mask(device, length, batch=2):
    mask = torch.rand(batch, length, generator=torch.Generator().manual_seed(1)) < 0.7
    mask[0, : length // 4] = False
    return mask.to(device)


def gammas_and_gradients(route, queries, keys, scores, mask, dtype):
    """Responsibilities, and the gradients of a random combination of them, all of them on the CPU."""
    inputs = [x.detach().to(dtype).requires_grad_() for x in (queries, keys)]
    weights, constant = (x.detach().to(dtype).contiguous().requires_grad_() for x in scores[:2])
    gammas = route(*inputs, ScoreWeights(weights, constant, scores.centre.to(dtype)), mask)
    generator = torch.Generator().manual_seed(2)
    combination = (torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x.device) for x in gammas)
    total = sum((x.double() * w).sum() for x, w in zip(gammas, combination))
    gradients = torch.autograd.grad(total, [*inputs, weights, constant])
    names = ["queries", "keys", "weights", "constant"]
    return gammas, dict(zip(names, gradients))


def check(assert_close, queries, keys, scores, mask=None):
    gammas, gradients = gammas_and_gradients(by_kernels, queries, keys, scores, mask, torch.float32)
    expected, expected_gradients = gammas_and_gradients(responsibilities, queries, keys, scores, mask, torch.float64)
    for actual, reference in zip(gammas, expected):
        assert actual.dtype == torch.float32 and actual.is_contiguous()
        assert_close(actual, reference, TOLERANCE, "responsibilities")
    for name, reference in expected_gradients.items():
        assert_close(gradients[name], reference, TOLERANCE, f"gradient of {name}", at_least=1.0)


@pytest.mark.parametrize("masked", [False, True], ids=["all", "masked"])
@pytest.mark.parametrize(("length", "width", "components"), SIZES)
def test_result_and_gradients(assert_close, device, length, width, components, masked):
    inputs = make_inputs(device, length, width, components, batch=1)
    check(assert_close, *inputs, make_mask(device, length, batch=1) if masked else None)


def test_many_rows_in_every_stripe(assert_close, device, monkeypatch):
    """So that a stripe has several blocks of rows, crosses from one batch row into the next, and the last one ends
    early."""
    monkeypatch.setattr(kernels_routing_gma, "STRIPES", 2)
    check(assert_close, *make_inputs(device, length=67, batch=3), make_mask(device, 67, batch=3))


def test_one_mask_for_all_rows(assert_close, device):
    check(assert_close, *make_inputs(device, length=20), make_mask(device, 20)[1:])


@pytest.mark.parametrize("mask_dtype", [torch.int64, torch.float32], ids=str)
def test_a_mask_of_numbers(assert_close, device, mask_dtype):
    check(assert_close, *make_inputs(device, length=20), make_mask(device, 20).to(mask_dtype))


def test_means_far_from_the_origin(assert_close, device):
    check(assert_close, *make_inputs(device, width=16, offset=300.0), make_mask(device, 63))


def test_strides(assert_close, device):
    """As the layer has them (`[B, N, H, d_r]` in memory, a slice of more columns), reversed, and expanded."""
    queries, keys, scores = make_inputs(device)
    wide = torch.randn(2, 63, 2, 25, device=device)
    wide[..., 3:13] = queries.transpose(1, 2)
    layer = wide[..., 3:13].transpose(1, 2)
    backwards = keys.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0)
    expected = by_kernels(queries, keys, scores)
    for actual, reference in zip(by_kernels(layer, backwards, scores), expected):
        assert torch.equal(actual, reference)
    check(assert_close, layer, backwards, scores)
    once = queries[:1].expand(2, -1, -1, -1)
    check(assert_close, once, keys, scores)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_routed_in_float32(assert_close, device, dtype):
    queries, keys, scores = make_inputs(device, dtype=dtype)
    expected = responsibilities(queries.double(), keys.double(), ScoreWeights(*(x.double() for x in scores)))
    x = queries.requires_grad_()
    gammas = by_kernels(x, keys, scores)
    for actual, reference in zip(gammas, expected):
        assert actual.dtype == torch.float32
        assert_close(actual, reference, TOLERANCE)
    direction = torch.randn_like(gammas[0])
    (grad,) = torch.autograd.grad((gammas[0] * direction).sum(), x)
    x = queries.detach().double().requires_grad_()
    gamma, _ = responsibilities(x, keys.double(), ScoreWeights(*(x.double() for x in scores)))
    (reference,) = torch.autograd.grad((gamma * direction).sum(), x)
    assert grad.dtype == dtype
    assert_close(grad, reference, 2 * torch.finfo(dtype).eps)


def test_scores_that_are_far_apart(device):
    """Where exp would overflow or be zero, rows still sum to one, and gradients are finite."""
    queries, keys, scores = make_inputs(device, length=5)
    scores = scores._replace(weights=scores.weights * 1e4, constant=scores.constant * 1e4)
    x = queries.requires_grad_()
    gammas = by_kernels(x, keys, scores)
    for gamma in gammas:
        torch.testing.assert_close(gamma.sum(-1), torch.ones_like(gamma[..., 0]))
    assert torch.autograd.grad(gammas[0][..., 0].sum(), x)[0].isfinite().all()


def test_nothing_to_route(device):
    queries, keys, scores = make_inputs(device, length=0)
    gamma, _ = by_kernels(queries.requires_grad_(), keys, scores)
    assert gamma.shape == (2, 2, 0, 7)
    assert torch.autograd.grad(gamma.sum(), queries)[0].shape == queries.shape


def test_the_gradient_is_the_same_each_time(device):
    queries, keys, scores = make_inputs(device)
    first, second = (gammas_and_gradients(by_kernels, queries, keys, scores, None, torch.float32)[1] for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


# The interpreter is more forgiving than the compiler, which needs no GPU either.
COMPILE = """
    import sys
    import torch
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from gma_hf.model import kernels_exponent_gma, kernels_gma, kernels_routing_gma, kernels_scan_gma

    dtype, components = getattr(torch, sys.argv[1]), int(sys.argv[2])
    FLAGS = {"CHUNK": 64, "HAS_DECAY": True, "HAS_DOCUMENTS": True, "HAS_MASK": True, "IS_GRADIENT": True}
    FLAGS |= {"BLOCK_STATE": 256}
    KINDS = {torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float32: "*fp32"}
    INPUTS = ["x", "grad_x", "values", "grad_values", "output", "grad_output"]
    NUMBERS = ["batch", "heads", "length", "blocks", "chunks", "blocks_per_stripe"]

    def compile(kernel, **options):
        options = FLAGS | options | {"COMPONENTS": components, "WIDTH": 64}
        names, flags = kernel.arg_names, {"num_warps": 4, "num_stages": 1}
        constants = {name: value for name, value in options.items() if name in names}
        kinds = dict.fromkeys(names, "*fp32") | dict.fromkeys(INPUTS, KINDS[dtype])
        kinds |= {"document_ids": "*i64", "epsilon": "fp32"} | dict.fromkeys(NUMBERS, "i32")
        kinds |= {name: "i32" for name in names if "stride" in name and name not in NUMBERS}
        signature = {name: "constexpr" if name in constants else kinds[name] for name in names}
        source = ASTSource(kernel, signature, {(names.index(name),): value for name, value in constants.items()})
        compiled = triton.compile(source, GPUTarget("cuda", 86, 32), flags)
        assert compiled.metadata.shared <= 99 * 1024, (kernel, compiled.metadata.shared)

    tile = kernels_gma.tile_size(dtype)
    scan = {"PRECISION": kernels_gma.precision(dtype), "BLOCK_COMPONENTS": tile, "BLOCK_WIDTH": tile}
    route = kernels_routing_gma._tiles(dtype, 64, components) | {"PRECISION": kernels_gma.precision(dtype, components)}
    for module, tiles in ((kernels_routing_gma, route), (kernels_scan_gma, scan), (kernels_exponent_gma, scan)):
        for name, kernel in vars(module).items():
            if name.endswith("_kernel"):
                compile(kernel, **tiles)
"""


@pytest.mark.parametrize(
    ("dtype", "components"), [("bfloat16", 64), ("float16", 64), ("float32", 64), ("float32", 256)]
)
def test_the_kernels_compile_for_a_gpu_and_fit_into_its_shared_memory(tmp_path, dtype, components):
    """Of those since Ampere, the ones with the least."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    command = [sys.executable, "-c", textwrap.dedent(COMPILE), dtype, str(components)]
    process = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
