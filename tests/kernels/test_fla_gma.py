"""The causal form by flash-linear-attention, its own kernels included, against plain torch in float64."""

import functools

import pytest
import torch

from gma_hf.model.fla_gma import mix_with_fla
from gma_hf.model.functional_gma import MIN_LOG_DECAY, log_forget_gate, score_weights
from gma_hf.model.mixing_gma import mix_causal


pytestmark = [
    pytest.mark.usefixtures("fla"),
    # By numpy, of decays above the diagonal, which the kernels throw away.
    pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered:RuntimeWarning"),
]

BATCH, HEADS, COMPONENTS, ROUTING, WIDTH, EPSILON = 2, 3, 7, 10, 5, 1e-6
CASES = {
    "plain": {},
    "gate": {"gated": True},
    "mask": {"masked": True},
    "state": {"with_state": True},
    "all": {"gated": True, "masked": True, "with_state": True},
}


@pytest.fixture(autouse=True)
def _ieee(monkeypatch):
    """By default Triton computes in TF32 on a GPU, which cannot be told from a small error."""
    monkeypatch.setenv("TRITON_F32_DEFAULT", "ieee")


def make_inputs(device, length, gated=False, masked=False, with_state=False, dtype=torch.float32):
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
    leaves = {name: tensor.to(device).requires_grad_() for name, tensor in tensors.items()}
    return leaves, None if mask is None else mask.to(device)


def run(mix, tensors, mask):
    """Output, state and the gradients of a random combination of both."""
    names = ("means", "variances", "prior_logits")
    sequences = [tensors[name] for name in ("queries", "keys", "values")]
    scores = score_weights(*(tensors[name] for name in names))
    rest = {"mask": mask, "log_decay": tensors.get("log_decay"), "state": tensors.get("state")}
    results = mix(*sequences, scores, EPSILON, **rest)
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x.device) for x in results]
    total = sum((x.double() * w).sum() for x, w in zip(results, weights))
    return results, dict(zip(tensors, torch.autograd.grad(total, list(tensors.values()))))


def check(assert_close, tensors, mask):
    results, gradients = run(mix_with_fla, tensors, mask)
    doubles = {name: tensor.detach().double().requires_grad_() for name, tensor in tensors.items()}
    expected, expected_gradients = run(functools.partial(mix_causal, chunk_size=16), doubles, mask)
    for what, actual, reference in zip(("output", "state"), results, expected):
        assert actual.dtype == torch.float32
        assert_close(actual, reference, 1e-4, what)
    for name, reference in expected_gradients.items():
        assert_close(gradients[name], reference, 1e-4, f"gradient of {name}", at_least=1.0)


@pytest.mark.parametrize("length", [2, 64, 130])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_outputs_state_and_gradients(assert_close, device, case, length):
    check(assert_close, *make_inputs(device, length, **case))


def test_closed_gates(assert_close, device):
    """What is forgotten entirely, in between what is not: sums of log decays that overflow where they are not read."""
    tensors, _ = make_inputs(device, 100, gated=True)
    with torch.no_grad():
        tensors["log_decay"][:, :, ::2] = MIN_LOG_DECAY
    check(assert_close, tensors, None)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_keeps_its_state_in_float32(assert_close, device, dtype):
    """That is, state and responsibilities are those of the same numbers in float32, and only the output is rounded."""
    tensors, mask = make_inputs(device, 65, gated=True, masked=True, dtype=dtype)
    (output, state), gradients = run(mix_with_fla, tensors, mask)
    doubles = {name: tensor.detach().double().requires_grad_() for name, tensor in tensors.items()}
    (expected, expected_state), _ = run(functools.partial(mix_causal, chunk_size=16), doubles, mask)
    assert output.dtype == dtype and state.dtype == torch.float32
    assert_close(output, expected, torch.finfo(dtype).eps)
    assert_close(state, expected_state, 1e-4)
    assert all(gradients[name].dtype == tensor.dtype for name, tensor in tensors.items())


@pytest.mark.parametrize("name", ["queries", "values", "log_decay", "state"])
def test_a_second_derivative_is_refused(device, name):
    tensors, mask = make_inputs(device, 20, gated=True, with_state=True)
    scores = score_weights(tensors["means"], tensors["variances"], tensors["prior_logits"])
    sequences = (tensors[name] for name in ("queries", "keys", "values"))
    output, _ = mix_with_fla(*sequences, scores, EPSILON, mask, tensors["log_decay"], tensors["state"])
    with pytest.raises(NotImplementedError, match="`create_graph` must be False"):
        torch.autograd.grad(output.square().sum(), tensors[name], create_graph=True)


@torch.no_grad()
def test_what_it_gives_is_carried_on_by_plain_torch(assert_close, device):
    """Read a prompt with one, go on token by token with the other."""
    tensors, _ = make_inputs(device, 70, gated=True)
    scores = score_weights(*(tensors.pop(name) for name in ("means", "variances", "prior_logits")))
    first, second = ({name: x[:, :, part] for name, x in tensors.items()} for part in (slice(67), slice(67, None)))
    mix = functools.partial(mix_causal, scores=scores, epsilon=EPSILON, chunk_size=16)
    expected, expected_state = mix(**tensors)
    output, state = mix_with_fla(**first, scores=scores, epsilon=EPSILON, mask=None, state=None)
    outputs = [output]
    for token in range(3):
        output, state = mix(**{name: x[:, :, token : token + 1] for name, x in second.items()}, state=state)
        outputs.append(output)
    assert_close(torch.cat(outputs, dim=2), expected, 1e-4)
    assert_close(state, expected_state, 1e-4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("backend", ["auto", "fla"])
def test_mix_causal_takes_it_on_a_gpu(assert_close, device, backend):
    tensors, mask = make_inputs(device, 65, gated=True, masked=True, with_state=True)
    (output, state), _ = run(functools.partial(mix_causal, chunk_size=16, backend=backend), tensors, mask)
    (expected, expected_state), _ = run(functools.partial(mix_causal, chunk_size=16, backend="torch"), tensors, mask)
    assert_close(output, expected, 1e-4)
    assert_close(state, expected_state, 1e-4)
