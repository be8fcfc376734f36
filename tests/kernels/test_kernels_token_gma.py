"""One token by our kernel against plain torch in float64, and decoding with it."""

import pytest
import torch
from transformers import DynamicCache, StaticCache

from gma_hf import GMAForCausalLM
from gma_hf.model import backend_triton_gma, kernels_token_gma
from gma_hf.model.documents_gma import Documents
from gma_hf.model.equations_gma import Mixture, ScoreWeights, score_weights
from gma_hf.model.mixing_gma import mix_causal
from gma_hf.model.operators_gma import CausalInputs


BATCH, HEADS, EPSILON = 3, 2, 1e-6
SIZES = [(7, 10, 5), (64, 64, 64), (70, 66, 66), (256, 64, 64), (1, 1, 1), (16, 8, 300)]
CASES = {
    "plain": {},
    "gate": {"log_decay"},
    "mask": {"mask"},
    "documents": {"document_ids"},
    "temperature": {"temperature"},
    "all": {"log_decay", "mask", "document_ids", "temperature", "read_exponent"},
}
EXPONENTS = {"paper": None, "p = 0": 0.0, "p = 0.37": 0.37, "p = 1": 1.0}


def make_inputs(device, given=(), sizes=SIZES[0], dtype=torch.float32):
    components, routing, width = sizes
    torch.manual_seed(0)
    projected = torch.randn(BATCH, 1, HEADS, 2 * routing + width, dtype=dtype).to(device)
    queries, keys, values = projected.transpose(1, 2).split([routing, routing, width], dim=-1)
    means = torch.randn(HEADS, components, routing)
    variances = 0.3 * routing**0.5 * (0.5 + torch.rand(HEADS, components, routing))
    temperature = 0.5 + torch.rand(2, HEADS) if "temperature" in given else None
    scores = score_weights(Mixture(means, variances, torch.randn(HEADS, components), temperature))
    others = {
        "mask": torch.tensor([[True], [False], [True]]),
        "log_decay": -torch.rand(BATCH, HEADS, 1),
        "document_ids": torch.tensor([[0], [1], [0]]),
        "read_exponent": torch.linspace(0.02, 0.98, HEADS),
    }
    others = {name: x.to(device) if name in given else None for name, x in others.items()}
    state = 3 * torch.rand(BATCH, HEADS, components, width + 1, device=device)
    state[:, :, ::2] = 0  # slots that nothing was written into
    return CausalInputs(queries, keys, values, *(x.to(device) for x in scores), **others, state=state)


@torch.no_grad()
def mix(inputs, backend, in_place=False):
    scores = ScoreWeights(inputs.weights, inputs.constant, inputs.centre)
    documents = Documents(inputs.mask, inputs.document_ids)
    sequences = (inputs.queries, inputs.keys, inputs.values, scores, EPSILON, 16, documents)
    return mix_causal(*sequences, inputs.log_decay, inputs.state, backend, inputs.read_exponent, in_place)


def in_double(inputs):
    return CausalInputs(*(x.double() if x is not None and x.is_floating_point() else x for x in inputs))


def check(assert_close, inputs):
    output, state = mix(inputs, "triton")
    expected, expected_state = mix(in_double(inputs), "torch")
    assert output.dtype == inputs.values.dtype and state.dtype == torch.float32
    assert_close(output, expected, max(1e-5, torch.finfo(output.dtype).eps), "output")
    assert_close(state, expected_state, 1e-5, "state")


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_output_and_state(assert_close, device, case):
    check(assert_close, make_inputs(device, case))


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_sizes(assert_close, device, sizes):
    check(assert_close, make_inputs(device, CASES["all"], sizes))


@pytest.mark.parametrize("exponent", EXPONENTS.values(), ids=EXPONENTS)
def test_read_exponents(assert_close, device, exponent):
    inputs = make_inputs(device, {"log_decay"})
    exponent = None if exponent is None else torch.full((HEADS,), exponent, device=device)
    check(assert_close, inputs._replace(read_exponent=exponent))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_keeps_its_state_in_float32(assert_close, device, dtype):
    check(assert_close, make_inputs(device, CASES["all"], dtype=dtype))


def test_nothing_to_read_gives_zeros(device):
    inputs = make_inputs(device, CASES["all"])
    inputs = inputs._replace(mask=torch.zeros_like(inputs.mask), state=torch.zeros_like(inputs.state))
    output, state = mix(inputs, "triton")
    assert not output.any() and not state.any()


@pytest.mark.parametrize("sizes", SIZES[:2], ids=str)
def test_in_place_it_is_the_same_without_a_copy(device, sizes):
    inputs = make_inputs(device, CASES["all"], sizes)
    before = inputs.state.clone()
    output, state = mix(inputs, "triton")
    assert torch.equal(inputs.state, before)
    output_in_place, state_in_place = mix(inputs, "triton", in_place=True)
    assert state_in_place is inputs.state
    assert torch.equal(output_in_place, output) and torch.equal(state_in_place, state)


def test_strides(assert_close, device):
    """A state whose numbers lie apart, one mask for all rows, values backwards, and no state."""
    inputs = make_inputs(device, CASES["all"])
    expected = mix(inputs._replace(mask=inputs.mask[:1]), "torch")
    apart = inputs.state.mT.contiguous().mT
    backwards = inputs.values.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0)
    for actual, reference in zip(mix(inputs._replace(mask=inputs.mask[:1], state=apart), "triton"), expected):
        assert_close(actual, reference, 1e-5)
    for actual, reference in zip(
        mix(inputs._replace(mask=inputs.mask[:1], values=backwards, state=inputs.state), "triton"), expected
    ):
        assert_close(actual, reference, 1e-5)
    for actual, reference in zip(
        mix(inputs._replace(state=None), "triton"), mix(inputs._replace(state=None), "torch")
    ):
        assert_close(actual, reference, 1e-5)


@pytest.mark.parametrize("case", ["plain", "all"])
def test_the_operators_keep_their_contract(device, case):
    inputs = make_inputs(device, CASES[case])
    for operator in (kernels_token_gma.step, kernels_token_gma.step_in_place):
        torch.library.opcheck(operator, (*inputs, EPSILON))


def test_gradients_are_those_of_plain_torch(device):
    inputs = make_inputs(device, CASES["all"])
    scores = ScoreWeights(inputs.weights, inputs.constant, inputs.centre)
    found = []
    for backend in ("triton", "torch"):
        values, state = inputs.values.detach().requires_grad_(), inputs.state.clone().requires_grad_()
        output, after = mix_causal(
            inputs.queries, inputs.keys, values, scores, EPSILON, 16, state=state, backend=backend, in_place=True
        )
        found.append(torch.autograd.grad(output.square().sum() + after.sum(), (values, state)))
    assert all(torch.equal(x, y) for x, y in zip(*found))


@pytest.fixture
def steps(monkeypatch):
    """How often each of the two operators was called."""
    counts = {}
    for name in ("step", "step_in_place"):
        operator = getattr(backend_triton_gma, name)

        def counted(*arguments, name=name, operator=operator):
            counts[name] = counts.get(name, 0) + 1
            return operator(*arguments)

        monkeypatch.setattr(backend_triton_gma, name, counted)
    return counts


@pytest.mark.parametrize("kind", ["dynamic", "static"])
@pytest.mark.parametrize("name", ["causal", "causal_additions", "causal_hybrid_additions"])
@torch.no_grad()
def test_a_decoding_step_is_one_call_of_a_layer(
    make_config, make_model, random_rows, assert_close, device, steps, name, kind
):
    """And gives what reading all tokens at once gives; a static cache keeps its tensors."""
    model = make_model(GMAForCausalLM, make_config(name)).to(device)
    ids = torch.stack(random_rows([12, 12])).to(device)
    cache = DynamicCache(config=model.config) if kind == "dynamic" else StaticCache(model.config, max_cache_len=12)
    logits = [model(ids[:, :9], past_key_values=cache).logits]
    held = [layer.state for layer in cache.layers if hasattr(layer, "state")]
    logits += [model(ids[:, token : token + 1], past_key_values=cache).logits for token in range(9, 12)]
    assert steps == {"step" if kind == "dynamic" else "step_in_place": 3 * len(held)}
    if kind == "static":
        assert all(x is layer.state for x, layer in zip(held, (y for y in cache.layers if hasattr(y, "state"))))
    assert_close(torch.cat(logits, dim=1), model(ids, use_cache=False).logits, 1e-4)


@pytest.mark.skipif(not hasattr(torch.compiler, "is_exporting"), reason="this torch cannot trace caches")
@pytest.mark.parametrize("kind", ["dynamic", "static"])
@torch.no_grad()
def test_a_compiled_step(make_config, make_model, random_rows, assert_close, device, kind):
    torch._dynamo.reset()
    model = make_model(GMAForCausalLM, make_config("causal_additions")).to(device)
    ids = torch.stack(random_rows([12, 12])).to(device)
    cache = DynamicCache(config=model.config) if kind == "dynamic" else StaticCache(model.config, max_cache_len=12)
    model(ids[:, :9], past_key_values=cache)
    step = torch.compile(model, fullgraph=True, backend="aot_eager")
    for token in range(9, 12):
        logits = step(input_ids=ids[:, token : token + 1], past_key_values=cache).logits
    assert_close(logits, model(ids, use_cache=False).logits[:, -1:], 1e-4)


def test_beams_static_caches_and_assistants(make_config, make_model, random_rows, device):
    """What reorders rows and what goes back gives what it gives without the kernel."""
    model = make_model(GMAForCausalLM, make_config("causal_additions")).to(device)
    ids = torch.stack(random_rows([12, 12])).to(device)
    choices = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    for others in ({"num_beams": 3}, {"cache_implementation": "static", "disable_compile": True}):
        found = []
        for backend in ("triton", "torch"):
            model.config.mixer_backend = backend
            found.append(model.generate(ids, **choices, **others))
        assert torch.equal(*found)
    assisted = model.generate(ids[:1], assistant_model=model, **choices)
    assert torch.equal(assisted, model.generate(ids[:1], **choices))
