"""The fast functions against the definition in `gma_hf.reference`: outputs, states and all gradients."""

from functools import partial

import pytest
import torch

from gma_hf.model.functional_gma import (
    MIN_LOG_DECAY,
    affinity,
    log_forget_gate,
    mix_bidirectional,
    mix_causal,
    responsibilities,
    short_convolution,
)
from gma_hf.reference import reference_convolution, reference_mix, reference_responsibilities


BATCH, HEADS, COMPONENTS, WIDTH, EPSILON = 2, 2, 5, 3, 1e-6
LENGTHS = [1, 63, 64, 65]
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
EXTREME = 1e4
GATES = {
    "none": None,
    "mild": lambda logits: logits + 2,
    "closed": lambda logits: logits - EXTREME,
    "open": lambda logits: logits + EXTREME,
    "one closed": lambda logits: logits.index_fill(1, torch.tensor(logits.shape[1] // 2), -EXTREME) + 3,
    "mixed": lambda logits: logits + EXTREME * torch.randint(-1, 2, logits.shape),
}


def gradients(outputs, inputs, seed=1):
    """Gradients of a random combination of all `outputs`, for each of the `inputs`."""
    generator = torch.Generator().manual_seed(seed)
    loss = sum((x.double() * torch.randn(x.shape, generator=generator, dtype=torch.float64)).sum() for x in outputs)
    return torch.autograd.grad(loss, inputs)


def leaf(tensor):
    return tensor.detach().clone().requires_grad_()


def padding_mask(length):
    """Row 0 has padding at its start and inside; row 1 has none, or, of length 1, is nothing but padding."""
    mask = torch.ones(BATCH, length, dtype=torch.bool)
    mask[0, : length // 10] = False
    mask[0, length // 3 : length // 2] = False
    if length == 1:
        mask[1] = False
    return mask


def sequence(length, gates="none", with_state=False, mask=None, dtype=torch.float64, heads=HEADS):
    """Arguments of a mix, by name: responsibilities, values and, where asked for, a state and log decays."""
    torch.manual_seed(length)
    shape = (BATCH, heads, length)
    arguments = {
        "query_gamma": torch.randn(*shape, COMPONENTS, dtype=torch.float64).mul(2).softmax(-1),
        "key_gamma": torch.randn(*shape, COMPONENTS, dtype=torch.float64).mul(2).softmax(-1),
        "values": torch.randn(*shape, WIDTH, dtype=torch.float64),
    }
    if mask is not None:
        arguments["key_gamma"] = arguments["key_gamma"] * mask[:, None, :, None]
    if with_state:
        state = torch.randn(BATCH, heads, COMPONENTS, WIDTH + 1, dtype=torch.float64)
        arguments["state"] = torch.cat([state[..., :-1], state[..., -1:].abs() + 0.1], dim=-1)
    if GATES[gates] is not None:
        logits = GATES[gates](torch.randn(BATCH, length, heads, dtype=torch.float64))
        arguments["log_decay"] = log_forget_gate(logits, mask)
    return {name: leaf(tensor.float().to(dtype)) for name, tensor in arguments.items()}  # the same for all dtypes


def compare(assert_close, fast, reference, arguments, dtypes=tuple(TOLERANCE)):
    """Outputs and gradients of `fast(**arguments)`, in each of `dtypes`, against the definition in float64."""
    exact = {name: leaf(tensor.double()) for name, tensor in arguments.items()}
    expected = reference(**exact)
    expected_gradients = gradients(expected, list(exact.values()))
    for dtype in dtypes:
        inputs = {name: leaf(tensor.to(dtype)) for name, tensor in arguments.items()}
        actual = fast(**inputs)
        for index, (x, y) in enumerate(zip(actual, expected)):
            assert x.dtype == dtype
            assert_close(x, y, TOLERANCE[dtype], f"output {index} in {dtype}")
        for name, x, y in zip(inputs, gradients(actual, list(inputs.values())), expected_gradients):
            assert_close(x, y, TOLERANCE[dtype], f"gradient of {name} in {dtype}", at_least=1.0)


def compare_mix(assert_close, fast, arguments, causal, **kwargs):
    compare(assert_close, fast, partial(reference_mix, epsilon=EPSILON, causal=causal), arguments, **kwargs)


@pytest.mark.parametrize("with_state", [False, True], ids=["empty", "state"])
@pytest.mark.parametrize("gates", GATES)
@pytest.mark.parametrize("length", LENGTHS)
def test_causal_mix_is_the_definition(assert_close, length, gates, with_state):
    arguments = sequence(length, gates, with_state)
    compare_mix(assert_close, partial(mix_causal, epsilon=EPSILON, chunk_size=32), arguments, causal=True)


@pytest.mark.parametrize("gates", ["none", "mild", "mixed"])
@pytest.mark.parametrize("length", LENGTHS)
def test_causal_mix_with_padding_is_the_definition(assert_close, length, gates):
    arguments = sequence(length, gates, with_state=True, mask=padding_mask(length))
    compare_mix(assert_close, partial(mix_causal, epsilon=EPSILON, chunk_size=16), arguments, causal=True)


@pytest.mark.parametrize("gates", ["none", "mixed"])
def test_causal_mix_of_a_thousand_tokens_is_the_definition(assert_close, gates):
    arguments = sequence(1000, gates, with_state=True, mask=padding_mask(1000), heads=1)
    compare_mix(assert_close, partial(mix_causal, epsilon=EPSILON, chunk_size=64), arguments, causal=True)


@pytest.mark.parametrize("gates", ["none", "mild", "mixed"])
@pytest.mark.parametrize("chunk_size", [1, 2, 7, 33, 64, 65, 66, 1000])
def test_the_chunk_size_does_not_matter(assert_close, chunk_size, gates):
    arguments = sequence(65, gates, with_state=True)
    results = [
        (outputs := mix_causal(**arguments, epsilon=EPSILON, chunk_size=size))
        + gradients(outputs, list(arguments.values()))
        for size in (chunk_size, 10)
    ]
    for actual, expected in zip(*results):
        assert_close(actual, expected, 1e-9)


@pytest.mark.parametrize("cut", [1, 5, 8, 9, 23])
@pytest.mark.parametrize("gates", ["none", "mild", "mixed"])
def test_a_state_continues_a_sequence(assert_close, gates, cut):
    arguments = sequence(24, gates)
    whole, last_state = mix_causal(**arguments, epsilon=EPSILON, chunk_size=8)
    parts, state = [], None
    for part in (slice(0, cut), slice(cut, 24)):
        piece = {name: tensor[:, :, part] for name, tensor in arguments.items()}
        output, state = mix_causal(**piece, epsilon=EPSILON, chunk_size=8, state=state)
        parts.append(output)
    assert_close(torch.cat(parts, dim=2), whole, 1e-9)
    assert_close(state, last_state, 1e-9)


@pytest.mark.parametrize(("with_state", "masked"), [(False, False), (True, True)], ids=["plain", "state and padding"])
@pytest.mark.parametrize("length", [*LENGTHS, 1000])
def test_bidirectional_mix_is_the_definition(assert_close, length, with_state, masked):
    arguments = sequence(length, with_state=with_state, mask=padding_mask(length) if masked else None, heads=1)
    compare_mix(assert_close, partial(mix_bidirectional, epsilon=EPSILON), arguments, causal=False)


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])
def test_nothing_to_read_gives_zeros(causal):
    arguments = sequence(9, mask=torch.zeros(BATCH, 9, dtype=torch.bool))
    if causal:
        output, state = mix_causal(**arguments, epsilon=EPSILON, chunk_size=4)
    else:
        output, state = mix_bidirectional(**arguments, epsilon=EPSILON)
    assert (output == 0).all() and (state == 0).all()
    for gradient in gradients((output, state), list(arguments.values())):
        assert gradient.isfinite().all()


@pytest.mark.parametrize("low", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])
def test_the_state_is_float32_for_half_precision_values(causal, low):
    arguments = sequence(9, dtype=torch.float32)
    arguments["values"] = arguments["values"].detach().to(low)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        if causal:
            output, state = mix_causal(**arguments, epsilon=EPSILON, chunk_size=4)
        else:
            output, state = mix_bidirectional(**arguments, epsilon=EPSILON)
    assert state.dtype == torch.float32 and output.dtype == torch.float32


# The affinity is what a mix does to the values "1 at token j": with the identity as values the output is the matrix.
@pytest.mark.parametrize(
    ("causal", "gates"),
    [(False, "none"), *((True, gates) for gates in GATES)],
    ids=lambda value: {True: "causal", False: "bidirectional"}[value] if isinstance(value, bool) else value,
)
@pytest.mark.parametrize(("with_state", "masked"), [(False, False), (True, True)], ids=["plain", "state and padding"])
@pytest.mark.parametrize("length", [1, 65])
def test_affinity_is_what_the_definition_applies(assert_close, length, with_state, masked, causal, gates):
    mask = padding_mask(length) if masked else None
    arguments = sequence(length, gates, with_state, mask)
    del arguments["values"]

    def fast(**kwargs):
        return [affinity(**kwargs, epsilon=EPSILON, causal=causal)]

    def reference(state=None, **kwargs):
        if state is not None:  # only its mass takes part
            state = torch.cat([torch.zeros(BATCH, HEADS, COMPONENTS, length), state[..., -1:]], dim=-1)
        values = torch.eye(length, dtype=torch.float64).expand(BATCH, HEADS, length, length)
        return [reference_mix(**kwargs, values=values, state=state, epsilon=EPSILON, causal=causal)[0]]

    compare(assert_close, fast, reference, arguments)
    if masked:
        weights = fast(**arguments)[0]
        assert (weights[~mask[:, None, None, :].expand_as(weights)] == 0).all()


def mixture(length=17, routing_dim=6, offset=0.0, dtype=torch.float64):
    torch.manual_seed(0)
    arguments = {
        "x": torch.randn(BATCH, HEADS, length, routing_dim) + offset,
        "means": torch.randn(HEADS, COMPONENTS, routing_dim) + offset,
        "variances": torch.rand(HEADS, COMPONENTS, routing_dim) * 2 + 0.1,
        "prior_logits": torch.randn(HEADS, COMPONENTS),
        "temperature": torch.rand(HEADS) + 0.2,
    }
    return {name: leaf(tensor.to(dtype)) for name, tensor in arguments.items()}


@pytest.mark.parametrize("masked", [False, True], ids=["whole", "padded"])
@pytest.mark.parametrize("scaled", [False, True], ids=["plain", "temperature"])
@pytest.mark.parametrize("length", [*LENGTHS, 1000])
def test_responsibilities_are_the_definition(assert_close, length, scaled, masked):
    arguments = mixture(length)
    if not scaled:
        del arguments["temperature"]
    mask = padding_mask(length) if masked else None
    compare(
        assert_close,
        lambda **kwargs: [responsibilities(**kwargs, mask=mask)],
        lambda **kwargs: [reference_responsibilities(**kwargs, mask=mask)],
        arguments,
    )
    rows = responsibilities(**arguments, mask=mask).sum(-1)
    expected = torch.ones(BATCH, length) if mask is None else mask
    assert_close(rows, expected[:, None].expand_as(rows), 1e-5)


def test_responsibilities_do_not_cancel_far_from_the_origin(assert_close):
    arguments = mixture(offset=300.0)
    actual = responsibilities(**{name: tensor.float() for name, tensor in arguments.items()})
    assert_close(actual, reference_responsibilities(**arguments), 1e-4)


@pytest.mark.parametrize("low", [torch.float16, torch.bfloat16], ids=str)
def test_responsibilities_of_half_precision_inputs_are_float32(assert_close, low):
    arguments = mixture()
    arguments["x"] = arguments["x"].detach().to(low).double()
    inputs = {name: tensor.float() for name, tensor in arguments.items()} | {"x": arguments["x"].to(low)}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = responsibilities(**inputs)
    assert actual.dtype == torch.float32
    assert_close(actual, reference_responsibilities(**arguments), 1e-4)


@pytest.mark.parametrize("wrt", ["x", "means", "variances", "prior_logits"])
def test_gradients_of_the_responsibilities_are_the_analytic_ones(assert_close, wrt):
    """`d gamma_k / d s_l = gamma_k (delta_kl - gamma_l)` times the derivative of the score `s_l` of component l."""
    arguments = mixture(length=3, routing_dim=4)
    del arguments["temperature"]
    actual = torch.autograd.functional.jacobian(
        lambda value: responsibilities(**{**arguments, wrt: value})[0, 0], arguments[wrt]
    )
    x, means, variances = (arguments[name].detach() for name in ("x", "means", "variances"))
    gamma = responsibilities(**arguments).detach()[0, 0]
    softmax = gamma[:, :, None] * (torch.eye(COMPONENTS, dtype=torch.float64) - gamma[:, None, :])  # [N, k, l]
    difference = x[0, 0][:, None] - means[0]  # [N, l, d]
    if wrt == "prior_logits":
        expected = softmax
        actual = actual[:, :, 0]
    elif wrt == "x":
        tokens = torch.arange(x.shape[2])
        actual = actual[:, :, 0, 0].permute(0, 2, 1, 3)[tokens, tokens]  # a token's own gradient
        expected = torch.einsum("nkl,nld->nkd", softmax, -difference / variances[0])
    else:
        score = difference / variances[0]
        if wrt == "variances":
            score = 0.5 * (difference**2 / variances[0] ** 2 - 1 / variances[0])
        expected = softmax[..., None] * score[:, None]
        actual = actual[:, :, 0]
    assert_close(actual, expected, 1e-9)


@pytest.mark.parametrize("masked", [False, True], ids=["whole", "padded"])
@pytest.mark.parametrize(
    ("causal", "width"),
    [(True, 1), (True, 2), (True, 4), (False, 1), (False, 3), (False, 5)],
    ids=lambda value: {True: "causal", False: "centred"}[value] if isinstance(value, bool) else str(value),
)
@pytest.mark.parametrize("length", [1, 2, 21])
def test_convolution_is_the_definition(assert_close, length, causal, width, masked):
    torch.manual_seed(0)
    arguments = {"x": torch.randn(BATCH, length, 6), "weight": torch.randn(6, width)}
    mask = padding_mask(length) if masked else None
    real = torch.ones(BATCH, length, dtype=torch.bool) if mask is None else mask  # padding is nobody's business
    compare(
        assert_close,
        lambda **kwargs: [short_convolution(**kwargs, causal=causal, mask=mask)[0][real]],
        lambda **kwargs: [reference_convolution(**kwargs, causal=causal, mask=mask)[real]],
        arguments,
    )


@pytest.mark.parametrize("masked", [False, True], ids=["whole", "padded"])
@pytest.mark.parametrize("cuts", [[1], [2, 3], [9], [5, 6, 7, 20]], ids=str)
def test_a_tail_continues_a_convolution(assert_close, cuts, masked):
    torch.manual_seed(0)
    x, weight = torch.randn(BATCH, 21, 6, dtype=torch.float64), torch.randn(6, 4, dtype=torch.float64)
    mask = padding_mask(21) if masked else None
    whole, last_tail = short_convolution(x, weight, True, mask)
    parts, tail = [], None
    for start, end in zip([0, *cuts], [*cuts, 21]):
        piece = None if mask is None else mask[:, start:end]
        part, tail = short_convolution(x[:, start:end], weight, True, piece, tail)
        parts.append(part)
    real = torch.ones(BATCH, 21, dtype=torch.bool) if mask is None else mask
    assert_close(torch.cat(parts, dim=1)[real], whole[real], 1e-9)
    assert_close(tail, last_tail, 1e-9)
    row = x[0][real[0]]
    assert_close(tail[0], row[-3:], 1e-9)


def test_log_forget_gate(assert_close):
    logits = leaf(torch.tensor([[-EXTREME, -30.0, -3.0, 0.0, 3.0, 30.0, EXTREME]], dtype=torch.float64)[..., None])
    gate = log_forget_gate(logits)
    expected = torch.sigmoid(logits.detach()).log().clamp_min(MIN_LOG_DECAY)
    assert gate.shape == (1, 1, 7)
    assert_close(gate[0, 0], expected[0, :, 0], 1e-9)
    assert (gate <= 0).all() and (gate >= MIN_LOG_DECAY).all()
    (gradient,) = torch.autograd.grad(gate.sum(), logits)
    bounded = logits.detach() < MIN_LOG_DECAY
    assert_close(gradient, torch.sigmoid(-logits.detach()).masked_fill(bounded, 0.0), 1e-9)


def test_a_masked_token_forgets_nothing():
    logits, mask = torch.randn(BATCH, 7, HEADS), padding_mask(7)
    gate = log_forget_gate(logits, mask)
    hidden = ~mask[:, None].expand_as(gate)
    assert (gate[hidden] == 0).all() and (gate[~hidden] < 0).all()


@pytest.mark.parametrize("low", [torch.float16, torch.bfloat16], ids=str)
def test_log_forget_gate_of_half_precision_logits_is_float32(low):
    assert log_forget_gate(torch.randn(1, 3, 2).to(low)).dtype == torch.float32
