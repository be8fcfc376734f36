"""What a GMA layer starts from: projections of the softmax layer, and components fitted to its queries and keys."""

import pytest
import torch

from gma_hf import convert_checkpoint
from gma_hf.conversion.calibration import mixer_inputs
from gma_hf.conversion.mixers import CHOSEN
from gma_hf.conversion.mixture_fit import EXPONENTS, kmeans, softmax_heads
from gma_hf.model.documents_gma import Documents


def sharpened(source):
    """With queries and keys that go by what a token is more than where it stands, and attention that is not flat."""
    with torch.no_grad():
        for name, parameter in source.named_parameters():
            if any(part in name for part in ("c_attn", "query", "key", "q_lin", "k_lin")):
                parameter.mul_(6)
            if "wpe" in name or "position_embeddings" in name:
                parameter.mul_(0.1)
    return source


def batches(count=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(5, 59, (4, 30), generator=generator) for _ in range(count)]


@torch.no_grad()
def first_layer_error(converted, source, tokens):
    """Of the first layer's attention on the source's own hidden states, over the variance of what the source gave."""
    exact = convert_checkpoint(source, layers="none").base_model
    hidden = exact.layers[0].mixer_input(exact(tokens, output_hidden_states=True).hidden_states[0])
    mask = torch.ones(1, 1, *(2 * tokens.shape[1:]), dtype=torch.bool)
    masks = {"full_attention": mask.tril() if exact.config.is_causal else mask}
    expected, *_ = exact.layers[0].attention(hidden, Documents(softmax_masks=masks))
    actual = converted.base_model.layers[0].attention(hidden).hidden_states
    return ((actual - expected).square().mean() / expected.var(dim=(0, 1)).mean()).item()


@pytest.mark.parametrize(
    "family, name", [("gpt2", "GPT2LMHeadModel"), ("bert", "BertModel"), ("distilbert", "DistilBertModel")]
)
def test_a_start_from_the_data_is_nearer_than_a_random_one(make_source, family, name):
    source = sharpened(make_source(family, name))
    unseen = torch.cat(batches(2, seed=1))
    at_random, fitted = (
        first_layer_error(convert_checkpoint(source, num_components=32, calibration=data), source, unseen)
        for data in (None, batches())
    )
    assert fitted < 0.9 * at_random


def test_projections_carry_over(make_source):
    source = make_source("gpt2", "GPT2Model")
    attention = convert_checkpoint(source, layers=[1]).layers[1].attention
    assert torch.equal(attention.qkv_proj.weight, source.h[1].attn.c_attn.weight.T)
    assert torch.equal(attention.qkv_proj.bias, source.h[1].attn.c_attn.bias)
    assert torch.equal(attention.o_proj.weight, source.h[1].attn.c_proj.weight.T)

    fitted = convert_checkpoint(source, layers=[1], num_components=8, calibration=batches()).layers[1].attention
    (q, k, v), (old_q, old_k, old_v) = (x.qkv_proj.weight.chunk(3) for x in (fitted, attention))
    assert torch.equal(v, old_v)
    for head in range(2):  # what a softmax sees of them is the same
        rows = slice(head * 12, head * 12 + 12)
        assert torch.allclose(q[rows].T @ k[rows], old_q[rows].T @ old_k[rows], atol=1e-5)


def mixtures(model):
    return [tensor for name, tensor in model.state_dict().items() if "mixture" in name or "qkv" in name]


def assert_same(one, other):
    assert all(torch.equal(x, y) for x, y in zip(mixtures(one), mixtures(other), strict=True))


def test_calibration_comes_in_several_forms(make_source):
    source = make_source("bert", "BertModel")
    by_tensor, by_dict, by_list, by_one = (
        convert_checkpoint(source, num_components=8, calibration=data)
        for data in (
            batches(),
            iter({"input_ids": ids, "attention_mask": torch.ones_like(ids)} for ids in batches()),
            [ids.tolist() for ids in batches()],
            {"input_ids": torch.cat(batches()), "attention_mask": torch.ones(24, 30)},  # as a tokenizer gives it
        )
    )
    assert_same(by_tensor, by_dict)
    assert_same(by_tensor, by_list)
    for x, y in zip(mixtures(by_tensor), mixtures(by_one), strict=True):  # in batches of another size
        assert torch.allclose(x, y, atol=1e-4)


@pytest.mark.parametrize("family, name", [("bert", "BertModel"), ("gpt2", "GPT2Model")])
def test_padding_of_the_calibration_counts_for_nothing(make_source, family, name):
    source = make_source(family, name)
    mask = (torch.arange(30) < torch.tensor([[30], [12], [5], [22]])).long()
    garbled = [{"input_ids": ids.where(mask > 0, 59), "attention_mask": mask} for ids in batches()]
    plain = [{"input_ids": ids, "attention_mask": mask} for ids in batches()]
    one, other = (convert_checkpoint(source, num_components=8, calibration=data) for data in (plain, garbled))
    for x, y in zip(mixtures(one), mixtures(other), strict=True):
        assert torch.allclose(x, y, atol=1e-4)


def test_the_rest_of_a_half_converted_model_is_the_sources(make_source, make_inputs):
    source = make_source("bert", "BertForMaskedLM")
    converted = convert_checkpoint(source, layers="every:2", num_components=8, calibration=batches())
    assert converted.config.layer_types == ["full_attention", "gma", "full_attention"]
    exact = convert_checkpoint(source, layers="none").state_dict()
    for name, tensor in converted.state_dict().items():
        if "layers.1.attention.mixture" not in name and "layers.1.attention.qkv_proj" not in name:
            assert torch.equal(tensor, exact[name]), name


@pytest.mark.parametrize("fields", [{"conv_kernel_size": 3}, {"output_gate": True}, {"mixture_rate": 4.0}], ids=str)
@pytest.mark.parametrize("normalize_routing", [False, True])
@torch.no_grad()
def test_additions_start_without_an_effect(fields, normalize_routing, make_source, make_inputs):
    source = make_source("gpt2", "GPT2LMHeadModel")
    options = {"num_components": 8, "calibration": batches(1), "normalize_routing": normalize_routing}
    logits = [
        convert_checkpoint(source, **options, **more).eval()(**make_inputs("gpt2")).logits for more in (fields, {})
    ]
    assert torch.allclose(*logits, atol=1e-5)


def test_a_forget_gate_starts_open(make_source):
    model = convert_checkpoint(make_source("gpt2", "GPT2Model"), num_components=4, forget_gate=True)
    assert (model.layers[0].attention.forget_gate.bias.sigmoid() > 0.9998).all()


# One value of every field of the mixer that is not its default
FIELDS = {
    "variance_floor": 1e-2,
    "read_epsilon": 1e-4,
    "chunk_size": 16,
    "routing_temperature": 0.5,
    "normalize_routing": True,
    "mixture_rate": 2.0,
    "conv_kernel_size": 3,
    "forget_gate": True,
    "output_gate": True,
    "read_exponent": "learned",
    "mixer_backend": "torch",
}


def test_every_field_of_the_mixer_is_accepted(make_source, make_inputs, tmp_path):
    assert {*FIELDS, "num_components"} == set(CHOSEN)
    model = convert_checkpoint(
        make_source("gpt2", "GPT2LMHeadModel"), num_components=8, calibration=batches(1), **FIELDS
    ).eval()
    assert all(getattr(model.config, name) == value for name, value in FIELDS.items())
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        again = type(model).from_pretrained(tmp_path)(**make_inputs("gpt2")).logits
        assert torch.equal(model(**make_inputs("gpt2")).logits, again)


@pytest.mark.parametrize("family, name", [("gpt2", "GPT2LMHeadModel"), ("bert", "BertModel")])
def test_a_learned_exponent_starts_at_the_best(make_source, family, name):
    source, tokens = sharpened(make_source(family, name)), [torch.cat(batches(3))]
    fixed, learned = (
        [
            convert_checkpoint(source, layers=[0], num_components=16, calibration=tokens, read_exponent=exponent)
            for exponent in exponents
        ]
        for exponents in ((EXPONENTS[0], EXPONENTS[2], EXPONENTS[-1]), ("learned",))
    )
    fixed, learned = ([first_layer_error(x, source, tokens[0]) for x in models] for models in (fixed, learned))
    assert learned[0] < min(fixed) * 1.002 < max(fixed)


def test_normalised_routing_is_fitted_too(make_source):
    source, unseen = sharpened(make_source("bert", "BertModel")), torch.cat(batches(2, seed=1))
    at_random, fitted = (
        first_layer_error(
            convert_checkpoint(source, num_components=32, calibration=data, normalize_routing=True), source, unseen
        )
        for data in (None, batches())
    )
    assert fitted < 0.9 * at_random


def test_a_layer_that_attends_in_a_window_is_fitted_to_what_it_sees(make_source):
    source = sharpened(make_source("gpt_neo", "GPTNeoModel"))
    exact = convert_checkpoint(source, layers="none")
    recorded, attention = [], exact.layers[1].attention
    attention.o_proj.register_forward_pre_hook(lambda module, args: recorded.append(args[0]))
    inputs = mixer_inputs(exact, [1], [{"input_ids": batches()[0], "attention_mask": torch.ones(4, 30).long()}])
    heads = softmax_heads(attention, *inputs[1][0])
    assert torch.allclose(heads.outputs.transpose(1, 2).flatten(2), recorded[0], atol=1e-5)


def test_kmeans_finds_clusters_that_are_there():
    generator = torch.Generator().manual_seed(0)
    centres = 10 * torch.randn(2, 5, 3, generator=generator)
    which = torch.randint(5, (2, 900), generator=generator).sort().values
    points = centres.gather(1, which[..., None].expand(-1, -1, 3)) + 0.1 * torch.randn(2, 900, 3, generator=generator)
    means, variance, shares = kmeans(points, 5, torch.Generator().manual_seed(1))
    nearest = torch.cdist(centres, means).argmin(dim=-1)
    for head in range(2):
        assert nearest[head].unique().numel() == 5
        assert torch.allclose(means[head, nearest[head]], centres[head], atol=0.05)
        counts = torch.bincount(which[head], minlength=5)
        assert torch.allclose(shares[head, nearest[head]], (counts + 1) / 905, atol=1e-6)
    assert torch.allclose(variance, torch.full((2,), 0.01), rtol=0.1)
