"""Each mixer computes its published equation, a token at a time; its layer reads nothing of the future."""

from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F

from benchmarks.linear_attention import summed
from benchmarks.mamba_scan import fast_scan
from benchmarks.recall_contenders import CONTENDERS, network, state_size
from benchmarks.recall_data import Recall
from benchmarks.recall_mixers import MIN_LOG_DECAY, delta, gated_linear
from benchmarks.recall_training import answers
from gma_hf import GMAConfig
from gma_hf.model.configuration_gma import OWN_FIELDS


LENGTHS = [1, 16, 63, 65, 100]
KNOWN = [name for name, contender in CONTENDERS.items() if set(contender.fields) <= set(OWN_FIELDS)]


@pytest.fixture
def inputs():
    """`inputs(length)`: queries and keys `[2, 3, N, 5]`, keys of length 1, values `[2, 3, N, 4]`, in float64."""

    def make(length):
        generator = torch.Generator().manual_seed(length)
        queries, keys = torch.randn(2, 2, 3, length, 5, generator=generator, dtype=torch.float64)
        values = torch.randn(2, 3, length, 4, generator=generator, dtype=torch.float64)
        return queries, F.normalize(keys, dim=-1), values

    return make


def random(*shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def token_by_token(queries, keys, values, step):
    """What tokens read of a state `[B, H, d, d_v]` that `step(state, t)` writes to."""
    state, outputs = torch.zeros_like(keys[:, :, :1].mT @ values[:, :, :1]), []
    for t in range(queries.shape[2]):
        state = step(state, t)
        outputs.append((queries[:, :, t, None] @ state)[:, :, 0])
    return torch.stack(outputs, dim=2)


def agree(output, expected, inputs):
    """Compare outputs, and the gradients of the inputs."""
    assert torch.allclose(output, expected)
    weights = random(*output.shape)
    ours, theirs = (torch.autograd.grad((x * weights).sum(), inputs) for x in (output, expected))
    assert all(torch.allclose(x, y) for x, y in zip(ours, theirs))


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("forgets", [False, True])
def test_linear_attention_without_a_normalizer(inputs, length, forgets):
    queries, keys, values = inputs(length)
    log_decay = -random(2, 3, length) if forgets else None
    decay = torch.ones(2, 3, length, dtype=torch.float64) if log_decay is None else log_decay.exp()

    def step(state, t):
        return decay[:, :, t, None, None] * state + keys[:, :, t, :, None] * values[:, :, t, None]

    expected = token_by_token(queries, keys, values, step)
    assert torch.allclose(summed(queries, keys, values, 8, log_decay), expected)


@pytest.mark.parametrize("length", LENGTHS)
def test_gated_linear_attention(inputs, length):
    """Yang et al., 2024 (GLA): S_t = diag(a_t) S_{t-1} + k_t v_t^T."""
    queries, keys, values = inputs(length)
    log_decay = -random(2, 3, length, 5)

    def step(state, t):
        return log_decay[:, :, t].exp()[..., None] * state + keys[:, :, t, :, None] * values[:, :, t, None]

    given = [x.requires_grad_() for x in (queries, keys, values, log_decay)]
    agree(gated_linear(*given), token_by_token(queries, keys, values, step), given)


def test_gated_linear_attention_does_not_overflow(inputs):
    """With the strongest decay everywhere, in float32, outputs and gradients."""
    given = [x.float().requires_grad_() for x in inputs(100)]
    log_decay = torch.full((2, 3, 100, 5), MIN_LOG_DECAY, requires_grad=True)
    output = gated_linear(*given, log_decay)
    expected = gated_linear(*(x.double() for x in given), log_decay.double())
    assert torch.allclose(output.double(), expected, atol=1e-5)
    gradients = torch.autograd.grad(output.square().sum(), [*given, log_decay])
    assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("forgets", [False, True])
def test_delta_rule(inputs, length, forgets):
    """Yang et al., 2024 and 2025: S_t = a_t S_{t-1} (I - b_t k_t k_t^T) + b_t v_t k_t^T, here transposed."""
    queries, keys, values = inputs(length)
    beta = random(2, 3, length)
    log_decay = -random(2, 3, length) if forgets else torch.zeros(2, 3, length, dtype=torch.float64)
    given = [x.requires_grad_() for x in (queries, keys, values, beta, log_decay)][: 5 if forgets else 4]

    def step(state, t):
        key, b = keys[:, :, t, :, None], beta[:, :, t, None, None]
        erased = torch.eye(5, dtype=torch.float64) - b * key @ key.mT
        return log_decay[:, :, t, None, None].exp() * erased @ state + b * key @ values[:, :, t, None]

    agree(delta(*given), token_by_token(queries, keys, values, step), given)


@pytest.mark.parametrize("name", KNOWN)
@torch.no_grad()
def test_nothing_of_the_future_is_read(name):
    torch.manual_seed(0)
    model = network(name, 100, {}).eval()
    for parameter in model.parameters():
        parameter.add_(torch.randn_like(parameter), alpha=0.1)
    tokens = torch.randint(100, (2, 70), generator=torch.Generator().manual_seed(0))
    changed = tokens.clone()
    changed[:, 40] = (tokens[:, 40] + 1) % 100
    moved = (model(tokens).logits - model(changed).logits).abs().amax(dim=(0, 2))
    assert moved[:40].max() < 1e-5
    assert moved[40:].min() > 1e-5


def test_the_scan_of_mamba_is_that_of_transformers():
    """Logits and gradients."""
    torch.manual_seed(0)
    model = network("mamba", 160, {})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    batch, found = Recall().batch(2, 8, 65, torch.Generator().manual_seed(0)), []
    for scan in (nullcontext, fast_scan):
        with scan():
            logits, labels = answers(model, batch)
            gradients = torch.autograd.grad(F.cross_entropy(logits, labels), list(model.parameters()))
        found.append([logits, *gradients])
    for theirs, ours in zip(*found):
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-5 * theirs.abs().max().item())


SIZES = {
    "gma-30-recommended": 4 * 30 * 17,
    "gma-32": 2 * 32 * 33,
    "gma-64": 2 * 64 * 33,
    "gma-128": 2 * 128 * 33,
    "softmax": 2 * 64 * 50,
}
SIZES |= {"linear": 2 * 32 * 33, "mamba": 2 * 64 * 16}
SIZES |= dict.fromkeys(["linear-unnormalized", "gla", "delta", "gated-delta"], 2 * 32 * 32)


@pytest.mark.parametrize("name", SIZES)
def test_the_state_has_the_size_that_is_told(name):
    assert state_size(network(name, 100, {}), 50) == SIZES[name]


def test_a_field_that_there_is_not_is_refused():
    assert "no_such_field" not in vars(GMAConfig())
    with pytest.raises(ValueError, match="`fields` must be of GMAConfig, but one of gma-32 is 'no_such_field'"):
        network("gma-32", 100, {"no_such_field": 1})


@pytest.mark.parametrize("name", ["gma-32", "gma-30-recommended", "linear", "linear-unnormalized", "gla", "delta"])
def test_contenders_start_alike(name):
    """Queries as the keys, and keys with that of the token before added."""
    for layer in network(name, 100, {}).base_model.layers:
        queries, keys, _ = layer.attention.qkv_proj.weight.chunk(3)
        assert torch.equal(queries, keys)
        taps = torch.zeros(192, 4)
        taps[64:128, 2] = 1
        assert torch.equal(layer.attention.convolution.weight, taps)
