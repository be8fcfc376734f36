"""What the mathematics promises, held against autograd and against what happens."""

import pytest
import torch

from gma_hf import GMAConfig, GMAModel
from gma_hf.analysis import (
    affinity_properties,
    gradient_error,
    mean_gradients,
    observed_sensitivity,
    one_side,
    responsibility_gradients,
    routing_sensitivity,
)
from gma_hf.analysis.theory import responsibilities_of
from gma_hf.model.equations_gma import responsibilities


@pytest.fixture(params=[False, True])
def attention(request):
    torch.manual_seed(0)
    config = GMAConfig(
        vocab_size=20,
        hidden_size=12,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_components=7,
        normalize_routing=request.param,
        routing_temperature=0.8,
        is_causal=False,
        norm_position="post",
    )
    attention = GMAModel(config).layers[0].attention
    with torch.no_grad():
        for parameter in attention.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return attention


@pytest.mark.parametrize("side", [0, 1])
def test_responsibilities_and_gradients_are_the_models(attention, side):
    mixture = one_side(attention.mixture, side)
    x = torch.randn(2, 9, 6, dtype=torch.float64, requires_grad=True)
    gamma = responsibilities_of(mixture, x)
    of_model = responsibilities(x[None].float(), x[None].float(), attention.mixture())[side][0]
    assert torch.allclose(gamma.float(), of_model, atol=1e-5)
    expected = torch.stack(
        [torch.autograd.grad(gamma[..., k].sum(), x, retain_graph=True)[0] for k in range(gamma.shape[-1])], dim=2
    )
    assert torch.allclose(responsibility_gradients(mixture, x.detach()), expected, atol=1e-10)
    means = mixture.means.clone().requires_grad_()
    moved = responsibilities_of(mixture._replace(means=means), x.detach()).sum(1)
    of_means = [torch.autograd.grad(moved[:, k].sum(), means, retain_graph=True)[0] for k in range(moved.shape[-1])]
    assert torch.allclose(mean_gradients(mixture, x.detach()), torch.stack(of_means, dim=1), atol=1e-10)
    assert gradient_error(mixture, x).max() < 1e-10


@pytest.mark.parametrize("radius", [1e-3, 0.1, 1.0])
def test_the_bound_holds_and_says_something(attention, radius):
    mixture = one_side(attention.mixture, 0)
    x = torch.randn(2, 50, 6, dtype=torch.float64)
    bound, observed = routing_sensitivity(mixture, x, radius), observed_sensitivity(mixture, x, radius)
    assert bound.shape == observed.shape == (2, 50)
    assert torch.all(observed <= bound)
    if radius < 1:
        assert (observed / bound).max() > 0.2


def test_affinity_has_the_rank_and_the_rows_that_are_promised(attention):
    hidden_states = torch.randn(2, 30, 12)
    with torch.no_grad():
        weights = attention(hidden_states, output_attentions=True)[1]
    properties = affinity_properties(weights)
    assert properties["rank"].shape == (2, 2)
    assert properties["rank"].max() <= 7 and properties["rank"].min() > 1
    assert properties["smallest"].min() >= 0
    for name in ("smallest_row_sum", "largest_row_sum"):
        assert torch.allclose(properties[name], torch.ones(2, 2, dtype=torch.float64), atol=1e-5)
