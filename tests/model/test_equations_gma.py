"""The equations as functions against the definition in `gma_hf.reference`: outputs and all gradients."""

import pytest
import torch

from gma_hf.model.equations_gma import Mixture, affinity, responsibilities, score_weights
from gma_hf.reference import reference_mix, reference_responsibilities


BATCH, HEADS, COMPONENTS, EPSILON = 2, 2, 5, 1e-6
LENGTHS = [1, 63, 64, 65]


# The affinity is what a mix does to the values "1 at token j": with the identity as values the output is the matrix.
@pytest.mark.parametrize(
    ("causal", "gates"),
    [(False, "none"), *((True, gates) for gates in ("none", "mild", "closed", "open", "one closed", "mixed"))],
    ids=lambda value: {True: "causal", False: "bidirectional"}[value] if isinstance(value, bool) else value,
)
@pytest.mark.parametrize(("with_state", "masked"), [(False, False), (True, True)], ids=["plain", "state and padding"])
@pytest.mark.parametrize("length", [1, 65])
@pytest.mark.parametrize("exponent", [None, 0.37, 1.0], ids=["paper", "0.37", "1"])
def test_affinity_is_what_the_definition_applies(
    compare, leaves, log_decay, padding_mask, exponent, length, with_state, masked, causal, gates
):
    torch.manual_seed(length)
    query_gamma, key_gamma = torch.randn(2, BATCH, HEADS, length, COMPONENTS).mul(2).softmax(-1)
    mask = padding_mask(length) if masked else None
    arguments = leaves(
        {
            "query_gamma": query_gamma,
            "key_gamma": key_gamma if mask is None else key_gamma * mask[:, None, :, None],
            "state": torch.rand(BATCH, HEADS, COMPONENTS, 4) + 0.1 if with_state else None,
            "log_decay": log_decay(gates, (BATCH, HEADS, length), mask),
            "read_exponent": None if exponent is None else torch.full((HEADS,), exponent),
        }
    )

    def fast(**kwargs):
        return [affinity(**kwargs, epsilon=EPSILON, causal=causal)]

    def reference(state=None, **kwargs):
        if state is not None:  # only its mass takes part
            state = torch.cat([torch.zeros(BATCH, HEADS, COMPONENTS, length), state[..., -1:]], dim=-1)
        values = torch.eye(length, dtype=torch.float64).expand(BATCH, HEADS, length, length)
        return [reference_mix(**kwargs, values=values, state=state, epsilon=EPSILON, causal=causal)[0]]

    compare(fast, reference, arguments)
    if masked:
        weights = fast(**arguments)[0]
        assert (weights[~mask[:, None, None, :].expand_as(weights)] == 0).all()
        assert (weights >= 0).all() and (weights.sum(-1) < 1 + 1e-12).all()


def mixture(length=17, routing_dim=6, offset=0.0):
    torch.manual_seed(0)
    return {
        "queries": torch.randn(BATCH, HEADS, length, routing_dim) + offset,
        "keys": torch.randn(BATCH, HEADS, length, routing_dim) + offset,
        "means": torch.randn(HEADS, COMPONENTS, routing_dim) + offset,
        "variances": torch.rand(HEADS, COMPONENTS, routing_dim) * 2 + 0.1,
        "prior_logits": torch.randn(HEADS, COMPONENTS),
        "temperature": torch.rand(2, HEADS) + 0.2,
    }


def both_sides(queries, keys, means, variances, prior_logits, temperature=None, mask=None):
    return responsibilities(queries, keys, score_weights(Mixture(means, variances, prior_logits, temperature)), mask)


def reference_sides(queries, keys, means, variances, prior_logits, temperature=(None, None), mask=None):
    shared = (means, variances, prior_logits)
    return (
        reference_responsibilities(queries, *shared, temperature[0]),
        reference_responsibilities(keys, *shared, temperature[1], mask),
    )


@pytest.mark.parametrize("masked", [False, True], ids=["whole", "padded"])
@pytest.mark.parametrize("scaled", [False, True], ids=["plain", "temperature"])
@pytest.mark.parametrize("length", [*LENGTHS, 1000])
def test_responsibilities_are_the_definition(assert_close, compare, leaves, padding_mask, length, scaled, masked):
    arguments = leaves(mixture(length))
    if not scaled:
        del arguments["temperature"]
    mask = padding_mask(length) if masked else None
    compare(
        lambda **kwargs: both_sides(**kwargs, mask=mask),
        lambda **kwargs: reference_sides(**kwargs, mask=mask),
        arguments,
    )
    whole = torch.ones(BATCH, length)
    for gamma, real in zip(both_sides(**arguments, mask=mask), (whole, whole if mask is None else mask)):
        assert_close(gamma.sum(-1), real[:, None].expand(BATCH, HEADS, length), 1e-5)


def test_responsibilities_do_not_cancel_far_from_the_origin(assert_close):
    arguments = mixture(offset=300.0)
    expected = reference_sides(**{name: tensor.double() for name, tensor in arguments.items()})
    for x, y in zip(both_sides(**arguments), expected):
        assert_close(x, y, 1e-4)


@pytest.mark.parametrize("low", [torch.float16, torch.bfloat16], ids=str)
def test_responsibilities_of_half_precision_inputs_are_float32(assert_close, low):
    arguments = mixture()
    for side in ("queries", "keys"):
        arguments[side] = arguments[side].to(low)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = both_sides(**arguments)
    expected = reference_sides(**{name: tensor.double() for name, tensor in arguments.items()})
    for x, y in zip(actual, expected):
        assert x.dtype == torch.float32
        assert_close(x, y, 1e-4)


@pytest.mark.parametrize("wrt", ["x", "means", "variances", "prior_logits", "temperature"])
@pytest.mark.parametrize("side", [0, 1], ids=["queries", "keys"])
def test_gradients_of_the_responsibilities_are_the_analytic_ones(assert_close, leaves, side, wrt):
    """`d gamma_k / d s_l = gamma_k (delta_kl - gamma_l)` times the derivative of the score `s_l` of component l."""
    arguments = leaves(mixture(length=3, routing_dim=4))
    name = ("queries", "keys")[side] if wrt == "x" else wrt
    actual = torch.autograd.functional.jacobian(
        lambda value: both_sides(**{**arguments, name: value})[side][0, 0], arguments[name]
    )
    x = arguments[("queries", "keys")[side]].detach()
    means, variances, prior_logits, temperature = (tensor.detach() for tensor in list(arguments.values())[2:])
    gamma = both_sides(**arguments)[side].detach()[0, 0]
    softmax = gamma[:, :, None] * (torch.eye(COMPONENTS, dtype=torch.float64) - gamma[:, None, :])  # [N, k, l]
    difference = x[0, 0][:, None] - means[0]  # [N, l, d]
    if wrt == "temperature":
        score = prior_logits[0] - 0.5 * (difference**2 / variances[0] + variances[0].log()).sum(-1)
        expected, actual = (softmax * score[:, None]).sum(-1), actual[:, :, side, 0]
    else:
        softmax = softmax * temperature[side, 0]
        if wrt == "prior_logits":
            expected, actual = softmax, actual[:, :, 0]
        elif wrt == "x":
            tokens = torch.arange(x.shape[2])
            actual = actual[:, :, 0, 0].permute(0, 2, 1, 3)[tokens, tokens]  # a token's own gradient
            expected = torch.einsum("nkl,nld->nkd", softmax, -difference / variances[0])
        else:
            score = difference / variances[0]
            if wrt == "variances":
                score = 0.5 * (difference**2 / variances[0] ** 2 - 1 / variances[0])
            expected, actual = softmax[..., None] * score[:, None], actual[:, :, 0]
    assert_close(actual, expected, 1e-9)
