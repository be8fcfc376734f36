"""The causal form by our kernels against plain torch in float64."""

import functools
import sys

import pytest
import torch

from gma_hf.model.additions_gma import MIN_LOG_DECAY, log_forget_gate
from gma_hf.model.backend_triton_gma import fused_scan
from gma_hf.model.documents_gma import Documents
from gma_hf.model.equations_gma import Mixture, score_weights
from gma_hf.model.mixing_gma import mix_causal


BATCH, HEADS, COMPONENTS, ROUTING, WIDTH, EPSILON = 2, 3, 7, 10, 5, 1e-6
PLAIN = functools.partial(mix_causal, chunk_size=16, backend="torch")
CASES = {
    "plain": {},
    "gate": {"gated": True},
    "mask": {"masked": True},
    "state": {"with_state": True},
    "exponent": {"with_exponent": True},
    "all": {"gated": True, "masked": True, "with_state": True, "with_exponent": True},
}


@pytest.fixture
def mix():
    """`mix_causal` by our kernels."""
    return functools.partial(mix_causal, chunk_size=16, backend="triton")


def set_sizes(monkeypatch, components, width):
    """Other numbers of components and of columns of the values."""
    monkeypatch.setattr(sys.modules[__name__], "COMPONENTS", components)
    monkeypatch.setattr(sys.modules[__name__], "WIDTH", width)


def make_documents(length):
    """Borders in the middle of a chunk and at its end, a document over several chunks, and one that goes on."""
    ids = torch.zeros(BATCH, length, dtype=torch.long)
    ids[0, 10:] = 1
    ids[1, 30:] += 1
    ids[1, 64:] += 1
    ids[1, 67:] += 1
    return ids


def make_inputs(device, length, gated=False, masked=False, with_state=False, with_exponent=False, dtype=torch.float32):
    """Tensors to differentiate by, by name, and the mask."""
    torch.manual_seed(0)
    mask = None
    if masked:
        mask = torch.rand(BATCH, length) < 0.7
        mask[0, : length // 4] = False
    queries, keys = torch.randn(2, BATCH, length, HEADS, ROUTING).transpose(2, 3)
    tensors = {
        "queries": queries.to(dtype),
        "keys": keys.to(dtype),
        "values": torch.randn(BATCH, length, HEADS, WIDTH, dtype=dtype).transpose(1, 2),
        "means": torch.randn(HEADS, COMPONENTS, ROUTING),
        "variances": 0.5 + torch.rand(HEADS, COMPONENTS, ROUTING),
        "prior_logits": torch.randn(HEADS, COMPONENTS),
    }
    if gated:
        tensors["log_decay"] = log_forget_gate(3 * torch.randn(BATCH, length, HEADS), mask)
    if with_state:
        tensors["state"] = torch.rand(BATCH, HEADS, COMPONENTS, WIDTH + 1)
    if with_exponent:
        tensors["read_exponent"] = torch.linspace(0.02, 1, HEADS)
    leaves = {name: tensor.to(device).requires_grad_() for name, tensor in tensors.items()}
    return leaves, None if mask is None else mask.to(device)


def run(mix, tensors, mask, ids=None):
    """Output, state and the gradients of a random combination of both."""
    names = ("means", "variances", "prior_logits")
    sequences = [tensors[name] for name in ("queries", "keys", "values")]
    scores = score_weights(Mixture(*(tensors[name] for name in names)))
    rest = {name: tensors.get(name) for name in ("log_decay", "read_exponent", "state")}
    rest["documents"] = Documents(mask, ids)
    results = mix(*sequences, scores, EPSILON, **rest)
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x.device) for x in results]
    total = sum((x.double() * w).sum() for x, w in zip(results, weights))
    return results, dict(zip(tensors, torch.autograd.grad(total, list(tensors.values()))))


def check(assert_close, mix, tensors, mask, ids=None):
    results, gradients = run(mix, tensors, mask, ids)
    doubles = {name: tensor.detach().double().requires_grad_() for name, tensor in tensors.items()}
    expected, expected_gradients = run(PLAIN, doubles, mask, ids)
    for what, actual, reference in zip(("output", "state"), results, expected):
        assert actual.dtype == torch.float32
        assert_close(actual, reference, 1e-4, what)
    for name, reference in expected_gradients.items():
        assert_close(gradients[name], reference, 1e-4, f"gradient of {name}", at_least=1.0)


@pytest.mark.parametrize("length", [2, 64, 130])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_outputs_state_and_gradients(assert_close, device, mix, case, length):
    check(assert_close, mix, *make_inputs(device, length, **case))


@pytest.mark.parametrize("length", [65, 200])
@pytest.mark.parametrize("case", ["state", "exponent", "all"])
def test_packed_documents(assert_close, device, mix, case, length):
    """Of several documents in a row, by our kernels."""
    check(assert_close, mix, *make_inputs(device, length, **CASES[case]), make_documents(length).to(device))


def test_the_same_documents_for_all_rows(assert_close, device, mix):
    check(assert_close, mix, *make_inputs(device, 70, gated=True), make_documents(70)[1:].to(device))


@pytest.mark.parametrize("case", ["plain", "gate", "all"])
def test_more_components_and_columns_than_a_tile_has(assert_close, device, mix, case, monkeypatch):
    set_sizes(monkeypatch, 70, 66)
    check(assert_close, mix, *make_inputs(device, 70, **CASES[case]))


def test_closed_gates(assert_close, device, mix):
    """What is forgotten entirely, in between what is not: sums of log decays that overflow where they are not read."""
    tensors, _ = make_inputs(device, 100, gated=True)
    with torch.no_grad():
        tensors["log_decay"][:, :, ::2] = MIN_LOG_DECAY
    check(assert_close, mix, tensors, None)


@pytest.mark.parametrize("sizes", [(7, 5), (64, 64)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_keeps_its_state_in_float32(assert_close, device, mix, monkeypatch, dtype, sizes):
    """That is, state and responsibilities are those of the same numbers in float32, and only the output is rounded."""
    set_sizes(monkeypatch, *sizes)
    tensors, mask = make_inputs(device, 65, gated=True, masked=True, with_exponent=True, dtype=dtype)
    (output, state), gradients = run(mix, tensors, mask)
    doubles = {name: tensor.detach().double().requires_grad_() for name, tensor in tensors.items()}
    (expected, expected_state), expected_gradients = run(PLAIN, doubles, mask)
    assert output.dtype == dtype and state.dtype == torch.float32
    assert_close(output, expected, torch.finfo(dtype).eps)
    is_tf32 = device == "cuda" and dtype == torch.float16
    assert_close(state, expected_state, 5e-4 if is_tf32 else 1e-4)
    for name, gradient in expected_gradients.items():
        assert gradients[name].dtype == tensors[name].dtype
        # The interpreter rounds bfloat16 towards zero, and the gradient of decays adds up what it rounds of all tokens
        allowed = 5 if name == "log_decay" else 4
        assert_close(gradients[name], gradient, allowed * torch.finfo(dtype).eps, name, at_least=1.0)


@pytest.mark.parametrize("name", ["queries", "values", "log_decay", "read_exponent", "state"])
def test_a_second_derivative_is_refused(device, mix, name):
    tensors, mask = make_inputs(device, 20, gated=True, with_state=True, with_exponent=True)
    scores = score_weights(Mixture(tensors["means"], tensors["variances"], tensors["prior_logits"]))
    sequences = (tensors[name] for name in ("queries", "keys", "values"))
    rest = {name: tensors[name] for name in ("log_decay", "read_exponent", "state")} | {"documents": Documents(mask)}
    output, _ = mix(*sequences, scores, EPSILON, **rest)
    with pytest.raises(NotImplementedError, match="`create_graph` must be False"):
        (grad,) = torch.autograd.grad(output.square().sum(), tensors[name], create_graph=True)
        torch.autograd.grad(grad.sum(), tensors[name])


@torch.no_grad()
def test_what_it_gives_is_carried_on_by_plain_torch(assert_close, device, mix):
    """Read a prompt with one, go on token by token with the other."""
    tensors, _ = make_inputs(device, 70, gated=True, with_exponent=True)
    scores = score_weights(Mixture(*(tensors.pop(name) for name in ("means", "variances", "prior_logits"))))
    exponent = tensors.pop("read_exponent")
    first, second = ({name: x[:, :, part] for name, x in tensors.items()} for part in (slice(67), slice(67, None)))
    settings = {"scores": scores, "epsilon": EPSILON, "read_exponent": exponent}
    expected, expected_state = PLAIN(**tensors, **settings)
    output, state = mix(**first, **settings)
    outputs = [output]
    for token in range(3):
        token = {name: x[:, :, token : token + 1] for name, x in second.items()}
        output, state = PLAIN(**token, **settings, state=state)
        outputs.append(output)
    assert_close(torch.cat(outputs, dim=2), expected, 1e-4)
    assert_close(state, expected_state, 1e-4)


@torch.no_grad()
def test_as_the_layer_has_them(assert_close, device):
    """Slices of one projection, `[B, N, H, d]` in memory; and values whose numbers lie apart."""
    projected = torch.randn(BATCH, 70, HEADS, 2 * ROUTING + WIDTH, device=device)
    queries, keys, values = projected.transpose(1, 2).split([ROUTING, ROUTING, WIDTH], dim=-1)
    tensors, _ = make_inputs(device, 2)
    scores = score_weights(Mixture(*(tensors[name] for name in ("means", "variances", "prior_logits"))))
    mix = functools.partial(mix_causal, scores=scores, epsilon=EPSILON, chunk_size=16)
    expected, _ = mix(queries, keys, values, backend="torch")
    output, _ = mix(queries, keys, values, backend="triton")
    assert output.transpose(1, 2).is_contiguous()
    assert_close(output, expected, 1e-5)
    apart = values.mT.contiguous().mT
    assert torch.equal(mix(queries, keys, apart, backend="triton")[0], output)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_operators_keep_their_contract(device, case):
    tensors, mask = make_inputs(device, 70, **case)
    scores = score_weights(Mixture(*(tensors[name] for name in ("means", "variances", "prior_logits"))))
    state = tensors.get("state", torch.zeros(BATCH, HEADS, COMPONENTS, WIDTH + 1, device=device))
    weights, constant = (x.detach().clone().requires_grad_() for x in scores[:2])
    inputs = [*(tensors[name].detach().clone().requires_grad_() for name in ("queries", "keys", "values"))]
    inputs += [weights, constant, scores.centre, mask, tensors.get("log_decay"), make_documents(70).to(device)]
    inputs += [tensors.get("read_exponent"), state]
    torch.library.opcheck(fused_scan.forward, (*inputs, EPSILON))
    with torch.no_grad():
        results = fused_scan(inputs, EPSILON)
        grads = (torch.randn_like(results.output), torch.randn_like(results.state))
        inputs = [x if x is None else x.detach() for x in inputs]
        torch.library.opcheck(fused_scan.backward, (*grads, *inputs, *results, EPSILON))


def test_torch_compile_takes_it_as_one_graph(assert_close, device):
    tensors, mask = make_inputs(device, 65, gated=True, masked=True)

    def output(queries, keys, values, means, variances, prior_logits, log_decay):
        scores = score_weights(Mixture(means, variances, prior_logits))
        return mix_causal(queries, keys, values, scores, EPSILON, 16, Documents(mask), log_decay, backend="triton")[0]

    results = []
    for function in (output, torch.compile(output, backend="aot_eager", fullgraph=True)):
        result = function(**tensors)
        results.append([result, *torch.autograd.grad(result.square().sum(), list(tensors.values()))])
    for expected, actual in zip(*results):
        assert_close(actual, expected, 1e-6)


def test_no_token(device):
    tensors, _ = make_inputs(device, 0, with_state=True)
    (output, state), _ = run(functools.partial(mix_causal, chunk_size=16, backend="triton"), tensors, None)
    assert output.shape == (BATCH, HEADS, 0, WIDTH)
    assert torch.equal(state, tensors["state"])


def test_auto_takes_the_kernels(device, mix):
    tensors, mask = make_inputs(device, 65, gated=True, masked=True, with_state=True)
    results, _ = run(functools.partial(mix_causal, chunk_size=16, backend="auto"), tensors, mask)
    expected, _ = run(mix, tensors, mask)
    assert all(torch.equal(x, y) for x, y in zip(results, expected))
