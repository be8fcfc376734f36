"""The short convolution by our kernels against the definition in `gma_hf.reference` and against plain torch."""

import os
import subprocess
import sys
import textwrap

import pytest
import torch

from gma_hf.model import kernels_convolution_gma
from gma_hf.model.convolution_gma import short_convolution
from gma_hf.model.documents_gma import Documents
from gma_hf.reference import reference_convolution


BATCH = 2
KINDS = [(True, 1), (True, 4), (False, 3), (False, 5)]
NAMES = ["causal 1", "causal 4", "centred 3", "centred 5"]


def make_inputs(device, length, width, channels=6, dtype=torch.float32):
    """The inputs and the taps, to differentiate by."""
    torch.manual_seed(0)
    x, weight = torch.randn(BATCH, length, channels), torch.randn(channels, width)
    return x.to(device, dtype).requires_grad_(), weight.to(device, dtype).requires_grad_()


def make_documents(device, length, masked, packed):
    """Padding at the beginning and inside; borders within reach of each other, also in padding."""
    generator = torch.Generator().manual_seed(1)
    mask = torch.rand(BATCH, length, generator=generator) < 0.7
    mask[0, : length // 4] = False
    ids = (torch.rand(BATCH, length, generator=generator) < 0.3).cumsum(1)
    return Documents(mask.to(device) if masked else None, ids.to(device) if packed else None)


def results(convolve, x, weight, documents):
    """What a convolution gives, and the gradients of a random combination of it."""
    output = convolve(x, weight)
    where = torch.ones(x.shape[:2], dtype=torch.bool) if documents.mask is None else documents.mask
    direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(2)).to(x) * where[..., None].to(x)
    return output[where.to(x.device)], *torch.autograd.grad((output * direction).sum(), [x, weight])


def by_kernels(causal, documents=None, backend="triton"):
    """`short_convolution` as a function of x and the taps."""
    settings = {"causal": causal, "documents": documents or Documents(), "backend": backend}
    return lambda x, weight: short_convolution(x, weight, **settings)[0]


@pytest.mark.parametrize("masked", [False, True], ids=["whole", "padded"])
@pytest.mark.parametrize(("causal", "width"), KINDS, ids=NAMES)
@pytest.mark.parametrize("length", [2, 33])
def test_it_is_the_definition(assert_close, device, length, causal, width, masked):
    x, weight = make_inputs(device, length, width)
    documents = make_documents(device, length, masked, packed=False)
    actual = results(by_kernels(causal, documents), x, weight, documents)
    doubles = [tensor.detach().double().requires_grad_() for tensor in (x, weight)]
    expected = results(lambda x, weight: reference_convolution(x, weight, causal, documents.mask), *doubles, documents)
    for what, mine, reference in zip(("output", "gradient of x", "gradient of weight"), actual, expected):
        assert_close(mine, reference, 1e-5, what, at_least=1.0)


@pytest.mark.parametrize("masked", [False, True], ids=["whole", "padded"])
@pytest.mark.parametrize(("causal", "width"), KINDS, ids=NAMES)
@pytest.mark.parametrize(("length", "channels"), [(3, 130), (70, 6)], ids=str)
def test_packed_documents(assert_close, device, length, channels, causal, width, masked):
    x, weight = make_inputs(device, length, width, channels)
    documents = make_documents(device, length, masked, packed=True)
    actual = results(by_kernels(causal, documents), x, weight, documents)
    expected = results(by_kernels(causal, documents, "torch"), x, weight, documents)
    for what, mine, reference in zip(("output", "gradient of x", "gradient of weight"), actual, expected):
        assert_close(mine, reference, 1e-5, what, at_least=1.0)


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "centred"])
def test_gradients_by_differences(device, causal):
    x, weight = make_inputs(device, 5, 3, channels=2, dtype=torch.float64)
    for packed in (False, True):
        documents = make_documents(device, 5, masked=packed, packed=packed)
        assert torch.autograd.gradcheck(by_kernels(causal, documents), [x, weight], fast_mode=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_summed_in_float32(assert_close, device, dtype):
    x, weight = make_inputs(device, 40, 4, dtype=dtype)
    documents = Documents()
    weight = weight.detach().float().requires_grad_()  # as under autocast
    actual = results(by_kernels(True), x, weight, documents)
    doubles = [tensor.detach().double().requires_grad_() for tensor in (x, weight)]
    expected = results(by_kernels(True, backend="torch"), *doubles, documents)
    assert [tensor.dtype for tensor in actual] == [dtype, dtype, torch.float32]
    for mine, reference in zip(actual, expected):
        assert_close(mine, reference, 2 * torch.finfo(dtype).eps)  # the interpreter rounds bfloat16 towards zero


def test_a_tail_continues_it(assert_close, device):
    x, weight = make_inputs(device, 41, 4)
    documents = make_documents(device, 41, masked=True, packed=False)
    whole, last = short_convolution(x, weight, True, documents, backend="triton")
    parts, tail = [], None
    for start, end in zip([0, 2, 35], [2, 35, 41]):
        piece = Documents(documents.mask[:, start:end])
        part, tail = short_convolution(x[:, start:end], weight, True, piece, tail, "triton")
        parts.append(part)
    assert_close(torch.cat(parts, 1)[documents.mask], whole[documents.mask], 1e-6)
    assert_close(tail, last, 1e-6)
    of_real = documents.mask[..., None]
    actual, expected = (
        torch.autograd.grad((output * of_real).sum() + tail.sum(), [x, weight], retain_graph=True)
        for output, tail in ((torch.cat(parts, 1), tail), (whole, last))
    )
    for mine, reference in zip(actual, expected):
        assert_close(mine, reference, 1e-5)


def test_strides(assert_close, device):
    """A slice of more channels, as a projection may leave them, and channels that lie apart."""
    x, weight = make_inputs(device, 20, 4)
    expected = by_kernels(True)(x, weight)
    wide = torch.randn(BATCH, 20, 11, device=device)
    wide[..., 2:8] = x.detach()
    apart = x.detach().transpose(1, 2).contiguous().transpose(1, 2)
    for other in (wide[..., 2:8], apart):
        assert torch.equal(by_kernels(True)(other, weight), expected)


def test_many_blocks_in_every_stripe(assert_close, device, monkeypatch):
    """So that a stripe crosses from one row into the next, and the last one ends early."""
    x, weight = make_inputs(device, 70, 4)
    expected = results(by_kernels(True, backend="torch"), x, weight, Documents())
    monkeypatch.setattr(kernels_convolution_gma, "STRIPES", 4)
    for mine, reference in zip(results(by_kernels(True), x, weight, Documents()), expected):
        assert_close(mine, reference, 1e-5)


def test_no_tokens(device):
    x, weight = make_inputs(device, 0, 4)
    output = by_kernels(True)(x, weight)
    grads = torch.autograd.grad(output.sum(), [x, weight])
    assert output.shape == x.shape and [grad.shape for grad in grads] == [x.shape, weight.shape]
    assert not grads[1].any()


# The interpreter is more forgiving than the compiler, which needs no GPU either.
COMPILE = """
    import torch
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from gma_hf.model import kernels_convolution_gma as kernels
    from gma_hf.model.operators_gma import ConvolutionInputs

    INPUTS = ["x", "output", "grad_output", "grad_x"]
    POINTERS = INPUTS + ["weight", "grad_weight", "order", "mask", "document_ids"]
    for dtype, kind in ((torch.bfloat16, "*bf16"), (torch.float32, "*fp32"), (torch.float64, "*fp64")):
        x = torch.empty(0, 0, 1536, dtype=dtype)
        inputs = ConvolutionInputs(x, torch.empty(1536, 4), x, x, x)
        options = kernels._options(inputs, causal=True) | {"BLOCK_TAPS": 4}
        for kernel in (kernels._convolution_kernel, kernels._convolution_grad_kernel):
            names = kernel.arg_names
            constants = {name: value for name, value in options.items() if name in names}
            kinds = dict.fromkeys(names, "i32") | dict.fromkeys(POINTERS, "*fp32") | dict.fromkeys(INPUTS, kind)
            kinds |= {"order": "*i64", "mask": "*u8", "document_ids": "*i64"} | dict.fromkeys(constants, "constexpr")
            signature = {name: kinds[name] for name in names}
            source = ASTSource(kernel, signature, {(names.index(name),): value for name, value in constants.items()})
            for capability in (80, 90):
                triton.compile(source, GPUTarget("cuda", capability, 32), {"num_warps": options["num_warps"]})
"""


def test_the_kernels_compile_for_a_gpu(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    command = [sys.executable, "-c", textwrap.dedent(COMPILE)]
    process = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
