"""The baselines compute what they are named after, and nothing of the future."""

import pytest
import torch
import torch.nn.functional as F

from benchmarks import baselines
from benchmarks.linear_attention import chunked
from gma_hf import GMAConfig, GMAForCausalLM, GMAForMaskedLM
from gma_hf.model.documents_gma import ONE_EACH


NAMES = ["softmax", "softmax + conv", "softmax + conv + output gate", "softmax + conv + output gate, no positions"]
NAMES += ["softmax + conv + gates, no positions"]
NAMES += ["linear", "linear + conv", "linear + conv + gate", "linear + conv + output gate"]
NAMES += ["linear + conv + gates, no positions"]
NAMES += ["performer", "performer + conv", "performer + conv + gate", "performer + conv + gates, no positions"]
NAMES += ["gma", "gma + conv", "gma + conv + gate", "gma + conv + gates, no positions", "gma, recommended"]
NAMES += ["hybrid", "hybrid, no positions", "mamba"]
FIELDS = {"vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "num_components": 16}
FIELDS |= {
    "chunk_size": 8,
    "max_position_embeddings": 64,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
BIDIRECTIONAL = FIELDS | {"is_causal": False, "norm_position": "post"}


@pytest.fixture(scope="module")
def build():
    """`build(name, head, fields)`: one with no weight at zero."""

    def make(name, head=GMAForCausalLM, fields=FIELDS):
        torch.manual_seed(0)
        model = baselines.build(head, name, fields).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
        return model

    return make


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_nothing_of_the_future_is_read(build, name):
    assert [*baselines.MIXERS, "mamba"] == NAMES
    model, tokens = build(name), torch.randint(100, (2, 29), generator=torch.Generator().manual_seed(0))
    changed = tokens.clone()
    changed[:, 17] = (tokens[:, 17] + 1) % 100
    moved = (model(tokens).logits - model(changed).logits).abs().amax(dim=(0, 2))
    assert moved[:17].max() < 1e-6
    assert moved[18:].min() > 1e-6


@pytest.mark.parametrize("name", [name for name in NAMES if name != "mamba"])
@torch.no_grad()
def test_padding_is_not_read(build, name):
    model = build(name, GMAForMaskedLM, BIDIRECTIONAL)
    tokens = torch.randint(100, (1, 20), generator=torch.Generator().manual_seed(0))
    mask = (torch.arange(20) < 13).long()[None]
    alone = model(tokens[:, :13]).logits
    assert torch.allclose(model(tokens, attention_mask=mask).logits[:, :13], alone, atol=1e-4)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "mamba"])
def test_parameters_are_those_of_plain_gma(build, name):
    plain = GMAForCausalLM(GMAConfig(**FIELDS)).num_parameters()
    assert build(name).num_parameters() == pytest.approx(plain, rel=0.003)


@pytest.mark.parametrize("is_causal", [True, False])
def test_the_recommended_contender_is_the_recommended_config(is_causal):
    fields = FIELDS if is_causal else BIDIRECTIONAL
    config = baselines.build(GMAForCausalLM if is_causal else GMAForMaskedLM, "gma, recommended", fields).config
    expected = GMAConfig.recommended(**fields)
    names = ("normalize_routing", "mixture_rate", "read_exponent", "output_gate", "forget_gate", "conv_kernel_size")
    names += ("position_embedding", "is_causal", "norm_position", "routing_temperature")
    assert {name: getattr(config, name) for name in names} == {name: getattr(expected, name) for name in names}


@torch.no_grad()
def test_softmax_that_forgets_is_a_softmax_of_decayed_exponentials(build):
    """Token by token, as the Forgetting Transformer has it: `sum_j f_ij exp(q_i k_j) v_j` over the sum of weights."""
    layer = build("softmax + conv + gates, no positions").double().base_model.layers[0].attention
    x = torch.randn(1, 12, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    projected = torch.cat([proj(x) for proj in (layer.q_proj, layer.k_proj, layer.v_proj)], dim=-1)
    projected, _ = layer.convolution(projected, True, ONE_EACH, None)
    query, key, value = (part.unflatten(-1, (2, 16)) for part in projected[0].chunk(3, dim=-1))
    gate = layer.forget_gate(x)[0].sigmoid()
    expected = torch.zeros(12, 2, 16, dtype=torch.float64)
    for head in range(2):
        for i in range(12):
            weights = [
                (query[i, head] @ key[j, head] / 4).exp() * gate[j + 1 : i + 1, head].prod() for j in range(i + 1)
            ]
            expected[i, head] = sum(w * value[j, head] for j, w in enumerate(weights)) / sum(weights)
    expected = layer.o_proj(expected.flatten(1) * F.silu(layer.output_gate(x))[0])
    assert torch.allclose(layer(x).hidden_states[0], expected)


@pytest.mark.parametrize("with_gate", [False, True])
@pytest.mark.parametrize("length", [1, 7, 8, 21])
def test_chunks_are_the_sum_over_the_past(length, with_gate):
    generator = torch.Generator().manual_seed(0)
    queries, keys = torch.rand(2, 2, 3, length, 5, generator=generator, dtype=torch.float64)
    values = torch.randn(2, 3, length, 4, generator=generator, dtype=torch.float64)
    log_decay = -torch.rand(2, 3, length, generator=generator, dtype=torch.float64) if with_gate else None
    elapsed = torch.zeros(2, 3, length, dtype=torch.float64) if log_decay is None else log_decay.cumsum(-1)
    weights = (queries @ keys.mT) * (elapsed[..., None] - elapsed[..., None, :]).exp().tril()
    expected = weights @ values / (weights.sum(-1, keepdim=True) + 1e-6)
    assert torch.allclose(chunked(queries, keys, values, 8, log_decay), expected)


@torch.no_grad()
def test_many_random_features_are_softmax_attention():
    torch.manual_seed(0)
    config = GMAConfig(**FIELDS | {"num_components": 8192, "is_causal": False})
    layer = baselines.Performer(config, 0)
    queries, keys, values = torch.randn(3, 1, 2, 12, 16) * torch.tensor([0.5, 0.5, 1]).view(3, 1, 1, 1, 1)
    features = layer.features(queries, True) @ layer.features(keys, False).mT
    weights = features / features.sum(-1, keepdim=True)
    assert torch.allclose(weights @ values, F.scaled_dot_product_attention(queries, keys, values), atol=0.1)
    products = layer.directions[:, :16] @ layer.directions[:, :16].mT
    assert torch.allclose(products, torch.diag_embed(products.diagonal(dim1=1, dim2=2)), atol=1e-4)  # orthogonal


@pytest.mark.parametrize("name", [name for name in NAMES if "conv" in name])
def test_the_convolution_has_as_many_taps_as_told(name):
    model = baselines.build(GMAForCausalLM, name, FIELDS, conv_kernel_size=7)
    taps = {weight.shape[-1] for key, weight in model.named_parameters() if "convolution" in key}
    assert taps == {7}


def test_another_name_is_refused():
    with pytest.raises(ValueError, match="`mixer` must be one of softmax, .* mamba, but it is 'rnn'"):
        baselines.build(GMAForCausalLM, "rnn", FIELDS)
